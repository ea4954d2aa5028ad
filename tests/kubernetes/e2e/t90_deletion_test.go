package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDeletion is the last scenario. After deleting the resources and the chart only the CRDs and the retained claims are
// left.
func TestDeletion(t *testing.T) {
	s := newScenario(t, "deletion")
	if before == nil {
		s.Skip("needs the inventory from before Covey was installed: run it on a fresh Kubernetes cluster")
	}
	s.cluster = quickstartCluster
	s.apply(s.quickstartManifest())
	s.ensureReady()
	s.kubectl("delete", "-n", s.namespace, "mqttcluster", s.cluster, "--timeout=60s")
	s.eventually(2*time.Minute, "the brokers gone", func() error {
		rest, err := tryList("-n", s.namespace, "pods,statefulsets,services,configmaps", "-l", "covey.io/cluster="+s.cluster)
		if err == nil && len(rest) > 0 {
			err = fmt.Errorf("%d objects, the first is %s %s", len(rest), rest[0].Kind, rest[0].Metadata.Name)
		}
		return err
	})
	s.kubectl("delete", "-n", s.namespace, "mqttusers", "--all", "--timeout=60s")
	if _, err := try(tool("helm", "uninstall", release, "-n", systemNamespace, "--wait")); err != nil {
		s.Fatal(err)
	}
	chartInstalled.done = false
	// What every namespace has. The inventory is older than this one.
	own := []string{"Namespace <none> " + s.namespace, "ServiceAccount " + s.namespace + " default", "ConfigMap " + s.namespace + " kube-root-ca.crt"}
	claims := 0
	s.eventually(time.Minute, "nothing left but CRDs and claims", func() error {
		claims = 0
		var left []string
		for _, line := range s.inventory() {
			switch {
			case slices.Contains(before, line), slices.Contains(own, line):
			case strings.HasPrefix(line, "CustomResourceDefinition ") && strings.HasSuffix(line, ".covey.io"):
			case strings.HasPrefix(line, "APIService ") && strings.HasSuffix(line, ".covey.io"):
			case strings.HasPrefix(line, "PersistentVolumeClaim "+s.namespace+" "):
				claims++
			default:
				left = append(left, line)
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("left: %s", strings.Join(left, "; "))
		}
		return nil
	})
	if claims != 3 {
		s.Errorf("%d claims instead of 3: deletionPolicy is Retain", claims)
	}
}
