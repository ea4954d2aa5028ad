package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// degradedAfter is the `for` of MqttClusterDegraded.
const degradedAfter = 5 * time.Minute

// TestAlerts crashes a Kubernetes node: the operator and a Prometheus with the chart's rules both raise the alert,
// every panel shows data, and the alert clears when the node is back.
func TestAlerts(t *testing.T) {
	onOwnCluster(t)
	name := ensureReady(t)
	who := user(t, "traffic", `  acl:
  - {allow: [Publish, Subscribe], topics: ["traffic"]}
`)
	dir := t.TempDir()
	worker := start(t, filepath.Join(dir, "worker.jsonl"), append([]string{"worker", "-brokers", serviceAddress(t), "-id", "traffic-in",
		"-topic", "traffic"}, who.args()...)...)
	publisher := start(t, filepath.Join(dir, "publisher.jsonl"), append([]string{"publisher", "-brokers", serviceAddress(t), "-id", "traffic-out",
		"-topic", "traffic", "-count", "1000000", "-rate", "5"}, who.args()...)...)
	defer worker.stop(t, syscall.SIGTERM)
	defer publisher.stop(t, syscall.SIGTERM)

	ask := prometheus(t)
	series(t, ask, time.Minute, `up{job="mqtt-broker"} == 1`, 3)
	series(t, ask, time.Minute, `up{job="mqtt-operator"} == 1`, 1)
	if count, err := ask(`ALERTS{alertstate="firing"}`); err != nil || count > 0 {
		t.Errorf("%d alerts fire in a healthy cluster (%v)", count, err)
	}

	node := nodeWithoutOperator(t)
	if _, err := try(clusterScript("crash", node)); err != nil {
		t.Fatal(err)
	}
	returned := false
	defer func() {
		if !returned {
			_, _ = try(clusterScript("boot", node))
		}
	}()
	crashed := time.Now()
	limit := func() time.Duration { return degradedAfter + 30*time.Second - time.Since(crashed) }
	eventually(t, limit(), "MqttClusterDegraded as condition", func() error { return alerting(name, "MqttClusterDegraded") })
	t.Logf("condition %v after the crash of %s", time.Since(crashed).Round(time.Second), node)
	eventually(t, limit(), "MqttClusterDegraded as Event", func() error { return eventNamed("MqttClusterDegraded") })
	series(t, ask, limit(), `ALERTS{alertname="MqttClusterDegraded", alertstate="firing"}`, 1)

	t.Run("every panel shows data", func(t *testing.T) {
		queries := panelQueries(t, name)
		if len(queries) < 5 {
			t.Fatalf("only %d panels with queries", len(queries))
		}
		eventually(t, 30*time.Second, fmt.Sprintf("%d panels", len(queries)), func() error { return answersAll(queries, ask) })
	})

	if _, err := try(clusterScript("boot", node)); err != nil {
		t.Fatal(err)
	}
	returned = true
	kubectl(t, "wait", "node", node, "--for=condition=Ready", "--timeout=60s")
	took := eventually(t, time.Minute, "MqttClusterDegraded cleared", func() error { return notAlerting(name, "MqttClusterDegraded") })
	t.Logf("cleared %v after the node's return", took.Round(time.Second))
	series(t, ask, time.Minute, `absent(ALERTS{alertname="MqttClusterDegraded", alertstate="firing"})`, 1)
	ensureReady(t)
}

// nodeWithoutOperator returns a node that runs a broker, but neither the operator nor the control plane.
func nodeWithoutOperator(t *testing.T) string {
	t.Helper()
	avoid := []string{"node0"}
	for _, pod := range operatorPods(t) {
		avoid = append(avoid, pod.Spec.NodeName)
	}
	for _, pod := range pods(t) {
		if !slices.Contains(avoid, pod.Spec.NodeName) {
			return pod.Spec.NodeName
		}
	}
	t.Fatal("every broker shares its node with the operator or the control plane")
	return ""
}
