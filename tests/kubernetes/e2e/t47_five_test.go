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
		outs := watchOuts(t)
		took := rolled(t, 400, func() {})
		t.Logf("rolled after %v", took.Round(time.Second))
		if most := outs(); most > 1 {
			t.Errorf("%d nodes were unavailable at the same time", most)
		}
	})
	t.Run("every machine drains while a change rolls out", func(t *testing.T) {
		outs := watchOuts(t)
		took := rolled(t, 200, func() {
			for _, pod := range pods(t) {
				drain(t, pod.Spec.NodeName)
			}
		})
		t.Logf("rolled and drained after %v", took.Round(time.Second))
		if most := outs(); most > 1 {
			t.Errorf("%d nodes were unavailable at the same time", most)
		}
	})
	t.Run("a machine drains when nothing else moves", func(t *testing.T) {
		drain(t, pods(t)[0].Spec.NodeName)
		eventually(t, 2*time.Minute, "settled after the drain", settled)
	})
	s.end()
}

// rolled changes a field of the template, calls meanwhile, and returns how long it took until every pod was replaced.
func rolled(t *testing.T, rate int, meanwhile func()) time.Duration {
	t.Helper()
	begin := time.Now()
	before := uids(t)
	patch(t, "five", fmt.Sprintf(`{"spec": {"rollout": {"drain": {"rate": %d}}}}`, rate))
	meanwhile()
	eventually(t, 5*time.Minute, "every pod replaced", func() error {
		for name, uid := range uids(t) {
			if before[name] == uid {
				return fmt.Errorf("%s runs the earlier template", name)
			}
		}
		return settled()
	})
	return time.Since(begin)
}

// serving returns nil if conditions Available and QuorumHealthy are True.
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

// settled returns nil if the cluster is ready, neither progressing nor degraded, and its budget permits one disruption.
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
		return fmt.Errorf("the budget permits %d disruptions", budget.Status.DisruptionsAllowed)
	}
	return errors.Join(ready(), serving())
}

// watchOuts samples the pods until the returned function is called, which returns the highest number of unready pods.
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

// drain drains the broker from a machine and uncordons the machine. It waits for the disruption budget.
func drain(t *testing.T, node string) {
	t.Helper()
	begin := time.Now()
	kubectl(t, "drain", node, "--pod-selector=covey.io/cluster=five", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s")
	kubectl(t, "uncordon", node)
	t.Logf("%s drained after %v", node, time.Since(begin).Round(time.Second))
}
