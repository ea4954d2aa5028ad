package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestFiveNodes grows a cluster from three nodes to five under load, rolls out a change, and drains every machine while
// another change rolls out. At most one node may be unavailable at a time, and no acknowledged job may be lost.
func TestFiveNodes(t *testing.T) {
	onOwnCluster(t)
	s := newScenario(t, "five")
	// Not on chosen machines: the scheduler shall spread five brokers over five machines.
	s.createWith("")
	worker, dispatcher := s.department()
	story := s.story("five", 4500, 30, worker, dispatcher)
	story.published(100)

	s.kubectl("scale", "-n", s.namespace, "mqttcluster", s.cluster, "--replicas=5")
	took := s.eventually(time.Minute, "five nodes available", func() error {
		if err := s.ready(); err != nil {
			return err
		}
		return serving(s)
	})
	s.Logf("five nodes ready after %v", took.Round(time.Second))
	took = s.eventually(4*time.Minute, "settled after growing", func() error { return settled(s) })
	s.Logf("settled after %v", took.Round(time.Second))

	s.Run("a rolling change passes", func(s *scenario) {
		outs := watchOuts(s, 5)
		took := rolled(s, 400, func() {})
		s.Logf("rolled after %v", took.Round(time.Second))
		if most := outs(); most > 1 {
			s.Errorf("%d nodes were unavailable at the same time", most)
		}
	})
	s.Run("every machine drains while a change rolls out", func(s *scenario) {
		outs := watchOuts(s, 5)
		took := rolled(s, 200, func() {
			for _, pod := range s.pods() {
				drain(s, pod.Spec.NodeName)
			}
		})
		s.Logf("rolled and drained after %v", took.Round(time.Second))
		if most := outs(); most > 1 {
			s.Errorf("%d nodes were unavailable at the same time", most)
		}
	})
	s.Run("a machine drains when nothing else moves", func(s *scenario) {
		drain(s, s.pods()[0].Spec.NodeName)
		s.eventually(2*time.Minute, "settled after the drain", func() error { return settled(s) })
	})
	s.Run("five nodes become three", func(s *scenario) {
		outs := watchOuts(s, 3)
		s.kubectl("scale", "-n", s.namespace, "mqttcluster", s.cluster, "--replicas=3")
		took := s.eventually(4*time.Minute, "three nodes", func() error {
			if pods := s.pods(); len(pods) != 3 {
				return fmt.Errorf("%d pods", len(pods))
			}
			return settled(s)
		})
		s.Logf("three nodes after %v", took.Round(time.Second))
		if most := outs(); most > 1 {
			s.Errorf("%d nodes were unavailable at the same time", most)
		}
	})
	story.end()
	s.Run("kept volumes join again", func(s *scenario) {
		s.kubectl("scale", "-n", s.namespace, "mqttcluster", s.cluster, "--replicas=5")
		s.eventually(3*time.Minute, "five nodes again", func() error {
			if pods := s.pods(); len(pods) != 5 {
				return fmt.Errorf("%d pods", len(pods))
			}
			return settled(s)
		})
	})
}

// rolled changes a field of the template, calls meanwhile, and returns how long it took until every pod was replaced.
func rolled(s *scenario, rate int, meanwhile func()) time.Duration {
	s.Helper()
	begin := time.Now()
	before := uids(s)
	s.patch(fmt.Sprintf(`{"spec": {"rollout": {"drain": {"rate": %d}}}}`, rate))
	meanwhile()
	s.eventually(5*time.Minute, "every pod replaced", func() error {
		for name, uid := range uids(s) {
			if before[name] == uid {
				return fmt.Errorf("%s runs the earlier template", name)
			}
		}
		return settled(s)
	})
	return time.Since(begin)
}

// serving returns nil if conditions Available and QuorumHealthy are True.
func serving(s *scenario) error {
	o, err := s.get("mqttcluster", s.cluster)
	if err != nil {
		return err
	}
	for _, name := range []string{"Available", "QuorumHealthy"} {
		if c := o.condition(name); c.Status != "True" {
			return fmt.Errorf("%s=%s (%s: %s)", name, c.Status, c.Reason, c.Message)
		}
	}
	return nil
}

// settled returns nil if the cluster is ready, neither progressing nor degraded, and its budget permits one disruption.
func settled(s *scenario) error {
	o, err := s.get("mqttcluster", s.cluster)
	if err != nil {
		return err
	}
	if c := o.condition("Progressing"); c.Reason != "Settled" {
		return fmt.Errorf("Progressing (%s: %s)", c.Reason, c.Message)
	}
	if c := o.condition("Degraded"); c.Status != "False" {
		return fmt.Errorf("Degraded (%s: %s)", c.Reason, c.Message)
	}
	budget, err := s.get("poddisruptionbudget", s.cluster)
	if err != nil {
		return err
	}
	if budget.Status.DisruptionsAllowed != 1 {
		return fmt.Errorf("the budget permits %d disruptions", budget.Status.DisruptionsAllowed)
	}
	return errors.Join(s.ready(), serving(s))
}

// watchOuts samples the pods until the returned function is called, which returns the highest number of pods that were not
// ready or missing. wanted is the number of pods that the cluster has at least.
func watchOuts(s *scenario, wanted int) func() int {
	s.Helper()
	stop, result := make(chan struct{}), make(chan int, 1)
	go func() {
		most := 0
		for {
			select {
			case <-stop:
				result <- most
				return
			case <-time.After(300 * time.Millisecond):
			}
			items, err := tryList("-n", s.namespace, "pods", "-l", "covey.io/cluster="+s.cluster)
			if err != nil {
				continue
			}
			var out []string
			for _, pod := range items {
				if c := pod.condition("Ready"); c.Status != "True" {
					out = append(out, pod.Metadata.Name)
				}
			}
			missing := max(0, wanted-len(items))
			if count := len(out) + missing; count > 1 && count > most {
				s.Logf("unavailable at the same time: %d pods missing, not ready: %q", missing, out)
				for _, name := range out {
					// A pod whose broker has not started has no log.
					text, err := try(tool("kubectl", "-n", s.namespace, "logs", name, "--since=20s", "--tail=60"))
					s.Logf("log of %s: %v\n%s", name, err, text)
				}
			}
			most = max(most, len(out)+missing)
		}
	}()
	return func() int { close(stop); return <-result }
}

// drain drains the broker from a machine and uncordons the machine. It waits for the disruption budget.
func drain(s *scenario, node string) {
	s.Helper()
	begin := time.Now()
	_, err := try(tool("kubectl", "drain", node, "--pod-selector=covey.io/cluster="+s.cluster, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s"))
	// Also if it failed, for the scenarios that follow.
	s.kubectl("uncordon", node)
	if err != nil {
		s.Fatal(err)
	}
	s.Logf("%s drained after %v", node, time.Since(begin).Round(time.Second))
}
