package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fault is a change of the manifest with which no pod can start.
type fault struct {
	name string
	// apply is the patch that makes the change, correct the patch that reverts it.
	apply, correct string
	// manifest is applied before the change, if not empty.
	manifest string
	// words must be in the condition's message.
	words []string
}

var faults = []fault{
	{name: "the image cannot be pulled",
		apply:   `{"spec": {"image": {"repository": "covey", "tag": "nope"}}}`,
		correct: `{"spec": {"image": null}}`,
		words:   []string{"cannot pull image", "covey:nope"}},
	{name: "the container cannot be started",
		apply:   `{"spec": {"image": {"repository": "localhost/pause", "tag": "1"}}}`,
		correct: `{"spec": {"image": null}}`,
		words:   []string{"executable file not found"}},
	{name: "the broker stops after each start",
		apply:   `{"spec": {"image": {"repository": "localhost/covey-clients", "tag": "test"}}}`,
		correct: `{"spec": {"image": null}}`,
		words:   []string{"stops after each start", "exit code 2"}},
	{name: "no machine has room",
		apply:   `{"spec": {"resources": {"requests": {"cpu": "1000"}, "limits": {"cpu": "1000"}}}}`,
		correct: `{"spec": {"resources": null}}`,
		words:   []string{"cannot be scheduled", "Insufficient cpu"}},
	// Known before a pod is evicted: all three stay.
	{name: "the quota has no room",
		apply:    `{"spec": {"resources": {"limits": {"memory": "2Gi"}}}}`,
		correct:  `{"spec": {"resources": null}}`,
		manifest: "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: small}\nspec: {hard: {limits.memory: 3Gi}}\n",
		words:    []string{"no further pod is evicted", "exceeded quota"}},
}

// TestRolloutFaults rolls out templates that cannot start. Another broker is killed right after the change, and killed,
// fenced and evicted while the rollout is stopped. The two other pods, or all three if a pod of the template would be
// refused, must stay and serve, the condition must name the cause, and the corrected manifest alone must repair the
// cluster. No acknowledged job may be lost.
func TestRolloutFaults(t *testing.T) {
	onOwnCluster(t)
	s := newScenario(t, "rollout")
	s.create()
	worker, dispatcher := s.department()
	story := s.story("rollout", 3000, 12, worker, dispatcher)
	for _, f := range faults {
		if !s.Run(f.name, func(s *scenario) { survives(s, f) }) {
			break
		}
	}
	story.end()
}

// survives runs one fault, with the other failures while the rollout is stopped.
func survives(s *scenario, f fault) {
	s.ensureReady()
	before := uids(s)
	if f.manifest != "" {
		s.apply(f.manifest)
	}
	s.patch(f.apply)
	// The operator may be choosing the first pod now. It must not choose this one because it is unready.
	kill(s, s.cluster+"-0")

	var victim string
	took := s.eventually(90*time.Second, "NewTemplateFails names the cause", func() error {
		o, err := s.get("mqttcluster", s.cluster)
		if err != nil {
			return err
		}
		c := o.condition("Degraded")
		missing := slices.DeleteFunc(slices.Clone(f.words), func(word string) bool { return strings.Contains(c.Message, word) })
		if c.Status != "True" || c.Reason != "NewTemplateFails" || len(missing) > 0 {
			return fmt.Errorf("%s=%s (%s: %s), missing words: %q", c.Type, c.Status, c.Reason, c.Message, missing)
		}
		victim, _, _ = strings.Cut(c.Message, " ")
		s.Log(c.Message)
		return nil
	})
	s.Logf("%s, named after %v", victim, took.Round(time.Second))
	survivors := slices.DeleteFunc([]string{s.cluster + "-0", s.cluster + "-1", s.cluster + "-2"}, func(name string) bool { return name == victim })
	twoServe(s, survivors, before)

	kill(s, survivors[0])
	evictionIsRefused(s, survivors[0])
	twoServe(s, survivors, before)
	fence(s, survivors[1], func() {
		// Both are unready now, and both are needed.
		evictionIsRefused(s, survivors[0])
		evictionIsRefused(s, survivors[1])
	})
	twoServe(s, survivors, before)
	evictionIsRefused(s, survivors[0])

	if f.manifest != "" {
		s.kubectl("delete", "-n", s.namespace, "resourcequota", "--all")
	}
	s.patch(f.correct)
	took = s.eventually(2*time.Minute, "the cluster repaired by the correction", func() error {
		o, err := s.get("mqttcluster", s.cluster)
		if err != nil {
			return err
		}
		if c := o.condition("Degraded"); c.Status != "False" {
			return fmt.Errorf("Degraded: %s", c.Message)
		}
		if c := o.condition("Progressing"); c.Reason != "Settled" {
			return fmt.Errorf("Progressing: %s", c.Message)
		}
		return s.ready()
	})
	s.Logf("repaired after %v", took.Round(time.Second))
	twoServe(s, survivors, before)
}

// uids returns the UIDs of the broker pods by name.
func uids(s *scenario) map[string]string {
	s.Helper()
	found := map[string]string{}
	for _, pod := range s.pods() {
		found[pod.Metadata.Name] = pod.Metadata.UID
	}
	return found
}

// twoServe waits until the surviving pods are ready, and fails if one of them was replaced.
func twoServe(s *scenario, survivors []string, before map[string]string) {
	s.Helper()
	s.eventually(30*time.Second, "two of three serve", func() error {
		for _, pod := range s.pods() {
			name := pod.Metadata.Name
			if !slices.Contains(survivors, name) {
				continue
			}
			if pod.Metadata.UID != before[name] {
				s.Fatalf("%s was replaced although the new template fails elsewhere", name)
			}
			if pod.condition("Ready").Status != "True" {
				return fmt.Errorf("%s is not ready", name)
			}
		}
		return nil
	})
}

// kill kills the broker process of a pod with SIGKILL. It waits for the process: the kubelet restarts one that was killed
// a moment ago after a pause. No other scenario has pods of these names.
func kill(s *scenario, pod string) {
	s.Helper()
	var found []int
	s.eventually(time.Minute, pod+" has one process", func() error {
		if found = processesOf(s, pod); len(found) != 1 {
			return fmt.Errorf("it has the processes %v", found)
		}
		return nil
	})
	if err := syscall.Kill(found[0], syscall.SIGKILL); err != nil {
		s.Fatal(err)
	}
}

// processesOf returns the process ids of a pod's broker.
func processesOf(s *scenario, pod string) []int {
	s.Helper()
	wanted := []byte("\x00--name\x00" + pod + "\x00")
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var found []int
	for _, path := range processes {
		if line, err := os.ReadFile(path); err == nil && bytes.Contains(line, wanted) {
			var pid int
			if _, err := fmt.Sscanf(path, "/proc/%d/cmdline", &pid); err != nil {
				s.Fatal(err)
			}
			found = append(found, pid)
		}
	}
	return found
}

// fence cuts a broker off from its peers until its pod is not ready, calls meanwhile, and reconnects it.
func fence(s *scenario, name string, meanwhile func()) {
	s.Helper()
	pod, err := s.get("pod", name)
	if err != nil {
		s.Fatal(err)
	}
	if _, err := try(clusterScript("cut-port", pod.Status.PodIP, "7883")); err != nil {
		s.Fatal(err)
	}
	defer func() {
		if _, err := try(clusterScript("heal-port", pod.Status.PodIP, "7883")); err != nil {
			s.Error(err)
		}
	}()
	s.eventually(15*time.Second, name+" fenced", func() error {
		pod, err := s.get("pod", name)
		if err == nil && pod.condition("Ready").Status == "True" {
			return errors.New("still ready")
		}
		return err
	})
	meanwhile()
}

// evictionIsRefused requests an eviction as a drain does. The disruption budget must refuse it.
func evictionIsRefused(s *scenario, name string) {
	s.Helper()
	s.eventually(20*time.Second, "the eviction of "+name+" refused", func() error {
		command := tool("kubectl", "create", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s/eviction", s.namespace, name), "-f", "-")
		command.Stdin = strings.NewReader(fmt.Sprintf(`{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": %q, "namespace": %q}}`, name, s.namespace))
		_, err := try(command)
		if err == nil {
			s.Fatalf("%s was evicted although only two of three nodes serve", name)
		}
		if !strings.Contains(err.Error(), "disruption budget") {
			return err
		}
		return nil
	})
}
