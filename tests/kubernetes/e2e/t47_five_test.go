package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestFiveNodes grows a cluster from three nodes to five under load, changes its configuration, and drains every machine.
// All of it passes by itself, with at most one node out at a time and no acknowledged job lost.
func TestFiveNodes(t *testing.T) {
	onOwnCluster(t)
	inNamespace(t, "five")
	mustApply(t, clusterManifest("five", ""))
	ensureReady(t)
	worker, dispatcher := department(t)
	s := begin(t, "five", 4500, 30, worker, dispatcher)
	s.published(100)

	kubectl(t, "scale", "-n", namespace, "mqttcluster", "five", "--replicas=5")
	took := eventually(t, time.Minute, "five nodes available", func() error {
		if err := ready(); err != nil {
			return err
		}
		return serving()
	})
	t.Logf("five nodes ready after %v", took.Round(time.Second))
	took = eventually(t, 4*time.Minute, "settled after growing", settled)
	t.Logf("settled after %v", took.Round(time.Second))

	t.Run("a rolling change passes", func(t *testing.T) {
		before := uids(t)
		outs := watchOuts(t)
		patch(t, "five", `{"spec": {"rollout": {"drain": {"rate": 400}}}}`)
		took := eventually(t, 5*time.Minute, "every pod replaced", func() error {
			for name, uid := range uids(t) {
				if before[name] == uid {
					return fmt.Errorf("%s runs the earlier template", name)
				}
			}
			return settled()
		})
		t.Logf("rolled after %v", took.Round(time.Second))
		if most := outs(); most > 1 {
			t.Errorf("%d nodes were out at once", most)
		}
	})
	t.Run("every machine drains", func(t *testing.T) {
		outs := watchOuts(t)
		for _, pod := range pods(t) {
			drain(t, pod.Spec.NodeName)
		}
		if most := outs(); most > 1 {
			t.Errorf("%d nodes were out at once", most)
		}
	})
	s.end()
}

// serving returns nil when the conditions say that clients are served and every group has a leader.
func serving() error {
	o, err := get("mqttcluster", "five")
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

// settled returns nil when nothing moves, nothing needs a person, and the budget lets one node go.
func settled() error {
	o, err := get("mqttcluster", "five")
	if err != nil {
		return err
	}
	if c := o.condition("Progressing"); c.Reason != "Settled" {
		return fmt.Errorf("Progressing (%s: %s)", c.Reason, c.Message)
	}
	if c := o.condition("Degraded"); c.Status != "False" {
		return fmt.Errorf("Degraded (%s: %s)", c.Reason, c.Message)
	}
	budget, err := get("poddisruptionbudget", "five")
	if err != nil {
		return err
	}
	if budget.Status.DisruptionsAllowed != 1 {
		return fmt.Errorf("the budget lets %d nodes go", budget.Status.DisruptionsAllowed)
	}
	return errors.Join(ready(), serving())
}

// watchOuts samples the pods until the returned function is called, which returns the most that were out at once.
func watchOuts(t *testing.T) func() int {
	t.Helper()
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
			items, err := tryList("-n", namespace, "pods", "-l", "covey.io/cluster=five")
			if err != nil {
				continue
			}
			in := 0
			for _, pod := range items {
				if pod.condition("Ready").Status == "True" {
					in++
				}
			}
			most = max(most, 5-in)
		}
	}()
	return func() int { close(stop); return <-result }
}

// drain empties a machine of its broker as an upgrade does, and gives it back.
func drain(t *testing.T, node string) {
	t.Helper()
	begin := time.Now()
	kubectl(t, "drain", node, "--pod-selector=covey.io/cluster=five", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
	kubectl(t, "uncordon", node)
	eventually(t, 2*time.Minute, "settled after the drain of "+node, settled)
	t.Logf("%s drained and back after %v", node, time.Since(begin).Round(time.Second))
}
