package e2e

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"
)

// TestQuickstart is the first scenario. After helm install and kubectl apply the cluster is ready within a minute, and
// reconciles are no-ops.
func TestQuickstart(t *testing.T) {
	// It has no turn: tests that are not parallel end before the parallel ones go on.
	s := &scenario{T: t, namespace: "e2e-quickstart", cluster: quickstartCluster}
	if s.systemNamespaceExists() {
		s.Fatalf("namespace %s exists already: run this test on a fresh Kubernetes cluster", systemNamespace)
	}
	s.prepare()
	s.apply(s.quickstartManifest())
	took := s.eventually(60*time.Second, "3/3 ready", s.ready)
	s.Logf("ready after %v", took.Round(time.Second))

	s.Run("columns", func(s *scenario) {
		for kind, want := range map[string]string{
			"mqc": "NAME READY QUORUM CONNS SESSIONS ACLREV ROLLOUT ALERTS VERSION AGE",
			"mqu": "NAME CLUSTER READY SYNCED CLIENTS AGE",
		} {
			table := s.kubectl("get", "-n", s.namespace, kind)
			header, rows, _ := strings.Cut(table, "\n")
			if got := strings.Join(strings.Fields(header), " "); got != want {
				s.Errorf("kubectl get %s prints %q instead of %q", kind, got, want)
			}
			if !strings.Contains(rows, "3/3") {
				s.Errorf("kubectl get %s shows no 3/3:\n%s", kind, table)
			}
		}
	})
	s.Run("users are ready", func(s *scenario) {
		for _, u := range s.list("mqttusers") {
			s.eventually(20*time.Second, u.Metadata.Name, func() error {
				o, err := s.get("mqttuser", u.Metadata.Name)
				if err == nil && (o.condition("Ready").Status != "True" || o.Status.SyncedNodes != "3/3") {
					err = fmt.Errorf("Ready=%+v, synced %s", o.condition("Ready"), o.Status.SyncedNodes)
				}
				return err
			})
		}
	})
	s.Run("ten reconciles change nothing", tenReconciles)
}

// tenReconciles triggers ten reconciles by annotating the resource, and checks that no child changes.
func tenReconciles(s *scenario) {
	s.ensureReady()
	owner, err := s.get("mqttcluster", s.cluster)
	if err != nil {
		s.Fatal(err)
	}
	reconciles := func() float64 {
		total := 0.0
		for _, pod := range s.operatorPods() {
			page, err := http(systemNamespace, pod.Metadata.Name, 9465, "/metrics")
			if err != nil {
				s.Fatal(err)
			}
			count, found := metric(page, "mqtt_operator_reconcile_total")
			if !found {
				s.Fatal("the operator has no metric mqtt_operator_reconcile_total")
			}
			total += count
		}
		return total
	}
	versions := children(s, owner.Metadata.UID)
	if len(versions) < 5 {
		s.Fatalf("only %d children: %v", len(versions), versions)
	}
	begin, touch := reconciles(), 0
	s.eventually(time.Minute, "ten reconciles", func() error {
		touch++
		s.kubectl("annotate", "-n", s.namespace, "mqttcluster", s.cluster, "--overwrite", fmt.Sprintf("covey.io/e2e=%d", touch))
		if done := reconciles() - begin; done < 10 {
			return fmt.Errorf("%v so far", done)
		}
		return nil
	})
	if after := children(s, owner.Metadata.UID); !maps.Equal(versions, after) {
		s.Fatalf("children changed:\n%v\n%v", versions, after)
	}
}

// children returns the resource versions of all objects that the cluster owns.
func children(s *scenario, uid string) map[string]string {
	s.Helper()
	kinds := "configmaps,secrets,services,statefulsets,poddisruptionbudgets,networkpolicies,serviceaccounts"
	versions := map[string]string{}
	for _, o := range s.list(kinds) {
		for _, owner := range o.Metadata.OwnerReferences {
			if owner.UID == uid {
				versions[o.Kind+"/"+o.Metadata.Name] = o.Metadata.ResourceVersion
			}
		}
	}
	return versions
}
