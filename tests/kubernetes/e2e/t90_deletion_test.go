package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDeletion: after deleting the resources and the chart only the CRDs and the retained claims are left.
func TestDeletion(t *testing.T) {
	if before == nil {
		t.Skip("needs the inventory that TestQuickstart took before it installed Covey")
	}
	name := clusterName(t)
	kubectl(t, "delete", "-n", namespace, "mqttcluster", name, "--timeout=60s")
	eventually(t, 2*time.Minute, "the brokers gone", func() error {
		rest, err := tryList("-n", namespace, "pods,statefulsets,services,configmaps", "-l", "covey.io/cluster="+name)
		if err == nil && len(rest) > 0 {
			err = fmt.Errorf("%d objects, the first is %s %s", len(rest), rest[0].Kind, rest[0].Metadata.Name)
		}
		return err
	})
	kubectl(t, "delete", "-n", namespace, "mqttusers", "--all", "--timeout=60s")
	if _, err := try(tool("helm", "uninstall", release, "-n", systemNamespace, "--wait")); err != nil {
		t.Fatal(err)
	}
	claims := 0
	eventually(t, time.Minute, "nothing left but CRDs and claims", func() error {
		claims = 0
		var left []string
		for _, line := range inventory(t) {
			switch {
			case slices.Contains(before, line):
			case strings.HasPrefix(line, "CustomResourceDefinition ") && strings.HasSuffix(line, ".covey.io"):
			case strings.HasPrefix(line, "APIService ") && strings.HasSuffix(line, ".covey.io"):
			case strings.HasPrefix(line, "PersistentVolumeClaim "+namespace+" "):
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
		t.Errorf("%d claims instead of 3: deletionPolicy is Retain", claims)
	}
}
