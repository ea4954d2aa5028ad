package e2e

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// degradedAfter is the `for` of MqttClusterDegraded.
const degradedAfter = 5 * time.Minute

// detectedWithin is the longest time from a crash until Kubernetes reports the pod as not ready (12 s after the last
// renewal of the machine's lease, which is up to 10 s old, looked at every 2 s), and of two evaluations of the alerts, 10 s
// and a scrape's timeout apart: one that begins the `for`, and one after its end.
const detectedWithin = 60 * time.Second

// TestAlerts crashes a Kubernetes node: the operator and a Prometheus with the chart's rules both raise the alert,
// every panel shows data, and the alert clears when the node is back.
func TestAlerts(t *testing.T) {
	onOwnCluster(t)
	s := newScenario(t, "alerts")
	node, others := s.machines()
	if len(others) < 2 {
		s.Fatalf("two machines besides %s are needed", node)
	}
	s.createOn(node, others[0], others[1])
	who := s.user("traffic", `  acl:
  - {allow: [Publish, Subscribe], topics: ["traffic"]}
`)
	dir := s.TempDir()
	worker := s.start(filepath.Join(dir, "worker.jsonl"), who.client("worker", "-brokers", s.serviceAddress(), "-id", "traffic-in",
		"-topic", "traffic")...)
	publisher := s.start(filepath.Join(dir, "publisher.jsonl"), who.client("publisher", "-brokers", s.serviceAddress(), "-id", "traffic-out",
		"-topic", "traffic", "-count", "1000000", "-rate", "5")...)
	defer worker.stop(s, syscall.SIGTERM)
	defer publisher.stop(s, syscall.SIGTERM)

	ask := s.prometheus()
	s.series(ask, time.Minute, `up{job="mqtt-broker"} == 1`, 3)
	s.series(ask, time.Minute, `up{job="mqtt-operator"} == 1`, 1)
	ours := fmt.Sprintf(`ALERTS{alertname="MqttClusterDegraded", alertstate="firing", namespace=%q}`, s.namespace)
	// The operator reports the clusters of other scenarios as well.
	foreign := fmt.Sprintf(`ALERTS{namespace=~"e2e-.+", namespace!=%q}`, s.namespace)
	if count, err := ask(`ALERTS{alertstate="firing"} unless ` + foreign); err != nil || count > 0 {
		s.Errorf("%d alerts fire in a healthy cluster (%v)", count, err)
	}

	onlyOneBroker(s, node)
	s.script("crash", node)
	returned := false
	defer func() {
		if !returned {
			_, _ = try(clusterScript("boot", node))
		}
	}()
	crashed := time.Now()
	limit := func() time.Duration { return degradedAfter + detectedWithin - time.Since(crashed) }
	s.eventually(limit(), "MqttClusterDegraded as condition", func() error { return s.alerting("MqttClusterDegraded") })
	s.Logf("condition %v after the crash of %s", time.Since(crashed).Round(time.Second), node)
	s.eventually(limit(), "MqttClusterDegraded as Event", func() error { return s.eventNamed("MqttClusterDegraded") })
	s.series(ask, limit(), ours, 1)

	s.Run("every panel shows data", func(s *scenario) {
		queries := s.panelQueries()
		if len(queries) < 5 {
			s.Fatalf("only %d panels with queries", len(queries))
		}
		s.eventually(30*time.Second, fmt.Sprintf("%d panels", len(queries)), func() error { return answersAll(queries, ask) })
	})

	s.script("boot", node)
	returned = true
	s.kubectl("wait", "node", node, "--for=condition=Ready", "--timeout=60s")
	took := s.eventually(time.Minute, "MqttClusterDegraded cleared", func() error { return s.notAlerting("MqttClusterDegraded") })
	s.Logf("cleared %v after the node's return", took.Round(time.Second))
	s.series(ask, time.Minute, "absent("+ours+")", 1)
	s.ensureReady()
}

// onlyOneBroker fails unless the scenario has one broker on the machine and no other scenario has any.
func onlyOneBroker(s *scenario, machine string) {
	s.Helper()
	brokers, err := tryList("-A", "pods", "-l", "covey.io/cluster", "--field-selector=spec.nodeName="+machine)
	if err != nil {
		s.Fatal(err)
	}
	var names []string
	for _, pod := range brokers {
		names = append(names, pod.Metadata.Namespace+"/"+pod.Metadata.Name)
	}
	if len(brokers) != 1 || brokers[0].Metadata.Namespace != s.namespace {
		s.Fatalf("%s runs the brokers %q instead of one of this scenario", machine, names)
	}
}
