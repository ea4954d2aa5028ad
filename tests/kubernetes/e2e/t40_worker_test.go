package e2e

import (
	"errors"
	"fmt"
	"os/exec"
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
	ensureReady(t)
	worker, dispatcher := department(t)
	t.Run("the pod it is connected to is deleted", func(t *testing.T) {
		s := begin(t, "pod", jobs, rate, worker, dispatcher)
		s.published(200)
		s.deleteItsPod()
		s.end()
	})
	t.Run("all pods are deleted at once", func(t *testing.T) {
		s := begin(t, "all", jobs, rate, worker, dispatcher)
		s.published(200)
		old := addresses(t)
		kubectl(t, "delete", "-n", namespace, "pods", "-l", "covey.io/cluster="+clusterName(t), "--wait=false")
		s.end()
		for _, address := range addresses(t) {
			if slices.Contains(old, address) {
				t.Errorf("%s kept its address, but the scenario needs new ones", address)
			}
		}
	})
	for _, operators := range []int{1, 0} {
		t.Run(fmt.Sprintf("it is stopped and killed with %d operators", operators), func(t *testing.T) {
			scaleOperator(t, operators)
			defer scaleOperator(t, 1)
			s := begin(t, fmt.Sprintf("stop%d", operators), jobs, rate, worker, dispatcher)
			for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
				s.published(100)
				s.worker.stop(t, signal)
				time.Sleep(outage) // Jobs are published meanwhile.
				s.work()
			}
			s.end()
		})
	}
	ensureReady(t)
}

// department creates the users of worker and publisher.
func department(t *testing.T) (worker, dispatcher login) {
	t.Helper()
	worker = user(t, "worker", `  clientIdPattern: "deploy.*"
  acl:
  - {allow: [Subscribe], topics: ["jobs/#"]}
`)
	dispatcher = user(t, "dispatcher", `  acl:
  - {allow: [Publish], topics: ["jobs/#"]}
`)
	return worker, dispatcher
}

// story is one run of a worker and a publisher.
type story struct {
	*testing.T
	topic, received, sent string
	count                 int
	who                   login
	worker, publisher     *client
}

// begin starts the worker and, once it has subscribed, the publisher with `count` jobs at `perSecond`.
func begin(t *testing.T, topic string, count, perSecond int, worker, dispatcher login) *story {
	t.Helper()
	dir := t.TempDir()
	s := &story{T: t, topic: "jobs/" + topic, received: filepath.Join(dir, "worker.jsonl"), sent: filepath.Join(dir, "publisher.jsonl"), count: count, who: worker}
	s.work()
	s.publisher = start(t, s.sent, append([]string{"publisher", "-brokers", serviceAddress(t), "-topic", s.topic,
		"-count", fmt.Sprint(count), "-rate", fmt.Sprint(perSecond)}, dispatcher.args()...)...)
	return s
}

// work starts the worker and waits for its subscription.
func (s *story) work() {
	s.Helper()
	before := len(entries(s.received, "subscribed"))
	s.worker = start(s.T, s.received, append([]string{"worker", "-brokers", serviceAddress(s.T), "-topic", s.topic}, s.who.args()...)...)
	reached(s.T, 30*time.Second, s.received, "subscribed", before+1)
}

// published waits for `more` further acknowledgements.
func (s *story) published(more int) {
	s.Helper()
	reached(s.T, time.Minute, s.sent, "acknowledged", min(s.count, len(entries(s.sent, "acknowledged"))+more))
}

// deleteItsPod deletes the pod that the worker is connected to, and waits until the worker has connected again.
func (s *story) deleteItsPod() {
	s.Helper()
	connections := len(entries(s.received, "connected"))
	victims := pods(s.T)
	if !external {
		address := s.connectedTo()
		victims = slices.DeleteFunc(victims, func(pod object) bool { return pod.Status.PodIP != address })
		if len(victims) != 1 {
			s.Fatalf("%d pods have the address %s", len(victims), address)
		}
	}
	// On an external cluster the pod is unknown: delete one after the other until the worker reconnects.
	for _, pod := range victims {
		kubectl(s.T, "delete", "-n", namespace, "pod", pod.Metadata.Name, "--wait")
		ensureReady(s.T)
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
			table, err := try(exec.Command("nsenter", "--net=/run/netns/node0", "--", "conntrack", "-L", "-p", "tcp", "--sport", port))
			if found := regexp.MustCompile(`dst=\S+ sport=\d+ dport=1883 src=(\S+)`).FindStringSubmatch(table); found != nil {
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
	if err := s.publisher.wait(s.T, 6*time.Minute); err != nil {
		s.Fatalf("publisher: %v after %d acknowledgements", err, len(entries(s.sent, "acknowledged")))
	}
	arrived(s.T, s.received, s.count)
	s.worker.stop(s.T, syscall.SIGTERM)
	verify(s.T, s.received, s.sent, s.count)
	ensureReady(s.T)
}
