package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	jobs   = 2000
	rate   = 50
	outage = 30 * time.Second
)

// TestWorker publishes jobs while brokers, the worker or the operator are stopped. No acknowledged job may be lost.
func TestWorker(t *testing.T) {
	s := newScenario(t, "worker")
	s.create()
	worker, dispatcher := s.department()
	s.Run("the pod it is connected to is deleted", func(s *scenario) {
		story := s.story("pod", jobs, rate, worker, dispatcher)
		story.published(200)
		story.deleteItsPod()
		story.end()
	})
	s.Run("all pods are deleted at once", func(s *scenario) {
		story := s.story("all", jobs, rate, worker, dispatcher)
		story.published(200)
		old := s.addresses()
		s.kubectl("delete", "-n", s.namespace, "pods", "-l", "covey.io/cluster="+s.cluster, "--wait=false")
		story.end()
		for _, address := range s.addresses() {
			if slices.Contains(old, address) {
				s.Errorf("%s kept its address, but the scenario needs new ones", address)
			}
		}
	})
	for _, operators := range []int{1, 0} {
		if operators == 0 {
			s.alone()
		}
		s.Run(fmt.Sprintf("it is stopped and killed with %d operators", operators), func(s *scenario) {
			s.scaleOperator(operators)
			defer s.scaleOperator(1)
			story := s.story(fmt.Sprintf("stop%d", operators), jobs, rate, worker, dispatcher)
			for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
				story.published(100)
				story.worker.stop(s, signal)
				time.Sleep(outage) // Jobs are published meanwhile.
				story.work()
			}
			story.end()
		})
	}
	s.ensureReady()
}

// department creates the users of worker and publisher.
func (s *scenario) department() (worker, dispatcher login) {
	s.Helper()
	worker = s.user("worker", `  clientIdPattern: "deploy.*"
  acl:
  - {allow: [Subscribe], topics: ["jobs/#"]}
`)
	dispatcher = s.user("dispatcher", `  acl:
  - {allow: [Publish], topics: ["jobs/#"]}
`)
	return worker, dispatcher
}

// story is one run of a worker and a publisher.
type story struct {
	*scenario
	topic, received, sent string
	count                 int
	who                   login
	worker, publisher     *client
}

// story starts the worker and, once it has subscribed, the publisher with `count` jobs at `perSecond`.
func (s *scenario) story(topic string, count, perSecond int, worker, dispatcher login) *story {
	s.Helper()
	dir := s.TempDir()
	run := &story{scenario: s, topic: "jobs/" + topic, received: filepath.Join(dir, "worker.jsonl"), sent: filepath.Join(dir, "publisher.jsonl"), count: count, who: worker}
	run.work()
	run.publisher = s.start(run.sent, dispatcher.client("publisher", "-brokers", s.serviceAddress(), "-topic", run.topic,
		"-count", fmt.Sprint(count), "-rate", fmt.Sprint(perSecond))...)
	return run
}

// work starts the worker and waits for its subscription.
func (s *story) work() {
	s.Helper()
	before := len(entries(s.received, "subscribed"))
	s.worker = s.start(s.received, s.who.client("worker", "-brokers", s.serviceAddress(), "-topic", s.topic)...)
	s.reached(30*time.Second, s.received, "subscribed", before+1)
}

// published waits for `more` further acknowledgements.
func (s *story) published(more int) {
	s.Helper()
	s.reached(time.Minute, s.sent, "acknowledged", min(s.count, len(entries(s.sent, "acknowledged"))+more))
}

// deleteItsPod deletes the pod that the worker is connected to, and waits until the worker has connected again.
func (s *story) deleteItsPod() {
	s.Helper()
	connections := len(entries(s.received, "connected"))
	victims := s.pods()
	if !external {
		address := s.connectedTo()
		victims = slices.DeleteFunc(victims, func(pod object) bool { return pod.Status.PodIP != address })
		if len(victims) != 1 {
			s.Fatalf("%d pods have the address %s", len(victims), address)
		}
	}
	// On an external cluster the pod is unknown: delete one after the other until the worker reconnects.
	for _, pod := range victims {
		s.kubectl("delete", "-n", s.namespace, "pod", pod.Metadata.Name, "--wait")
		s.ensureReady()
		deadline := time.Now().Add(20 * time.Second)
		for len(entries(s.received, "connected")) == connections && time.Now().Before(deadline) {
			time.Sleep(250 * time.Millisecond)
		}
		if len(entries(s.received, "connected")) > connections {
			return
		}
	}
	s.Fatal("the worker never had to reconnect")
}

// connectedTo returns the pod address behind the worker's connection to the Service, from the kernel's conntrack table.
func (s *story) connectedTo() string {
	s.Helper()
	out, err := try(inCluster("ss", "-Htnp", "state", "established"))
	if err != nil {
		s.Fatal(err)
	}
	pid := fmt.Sprintf("pid=%d,", s.worker.command.Process.Pid)
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); strings.Contains(line, pid) {
			port := fields[2][strings.LastIndex(fields[2], ":")+1:]
			table, err := try(inCluster("conntrack", "-L", "-p", "tcp", "--sport", port))
			// Clients of other clusters may have the same port.
			service := regexp.QuoteMeta(strings.TrimSuffix(s.serviceAddress(), ":1883"))
			if found := regexp.MustCompile(`dst=` + service + ` sport=\d+ dport=1883 src=(\S+)`).FindStringSubmatch(table); found != nil {
				return found[1]
			}
			s.Fatal(errors.Join(err, errors.New("no such connection in: "+table)))
		}
	}
	s.Fatal("the worker is not connected:\n" + out)
	return ""
}

// end waits for the last job on both sides and verifies the journals.
func (s *story) end() {
	s.Helper()
	if err := s.publisher.wait(6 * time.Minute); err != nil {
		s.Fatalf("publisher: %v after %d acknowledgements", err, len(entries(s.sent, "acknowledged")))
	}
	arrived(s.received, s.count)
	s.worker.stop(s.scenario, syscall.SIGTERM)
	s.verify(s.received, s.sent, s.count)
	s.ensureReady()
}
