package e2e

import (
	"encoding/json"
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

const serverUnavailable = 0x88

// TestIncident cuts each broker off from its peers for a minute, while its clients and its kubelet still reach it.
func TestIncident(t *testing.T) {
	onOwnCluster(t)
	s := newScenario(t, "incident")
	s.create()
	checker := s.user("checker", `  acl:
  - {allow: [Publish, Subscribe], topics: ["incident/#", "jobs/#"]}
`)
	dir := s.TempDir()
	running, cut := filepath.Join(dir, "running"), filepath.Join(dir, "cut")
	touch(s, running)
	report := filepath.Join(dir, "report.txt")
	check := s.start(report, checker.client("incident", "-brokers", strings.Join(s.addresses(), ","), "-count", "10000",
		"-rate", "80", "-min-cut", "2000", "-while", running, "-cut", cut, "-out", filepath.Join(dir, "incident.jsonl"))...)
	for ordinal := range 3 {
		if !s.Run(fmt.Sprintf("broker %d", ordinal), func(s *scenario) { cutOff(s, ordinal, checker, cut) }) {
			break
		}
	}
	if err := os.Remove(running); err != nil {
		s.Fatal(err)
	}
	err := check.wait(15 * time.Minute)
	text, _ := os.ReadFile(report)
	s.Log(string(text))
	if err != nil {
		s.Fatalf("`clients incident` found problems: %v", err)
	}
}

// cutOff cuts one broker off from its peers for one minute.
func cutOff(s *scenario, ordinal int, who login, cut string) {
	s.ensureReady()
	pod := s.pods()[ordinal]
	ip := pod.Status.PodIP
	brokers := s.addresses()
	isReady := func() error { _, err := http(s.namespace, pod.Metadata.Name, 9464, "/readyz"); return err }

	// A worker that starts at the broker and may reconnect to others, and a client that waits until it is closed.
	dir := s.TempDir()
	received, sent, waits := filepath.Join(dir, "worker.jsonl"), filepath.Join(dir, "publisher.jsonl"), filepath.Join(dir, "closed.json")
	elsewhere := slices.Concat(brokers[ordinal+1:], brokers[:ordinal])
	everywhere := append([]string{brokers[ordinal]}, elsewhere...)
	topic := fmt.Sprintf("jobs/cut%d", ordinal)
	worker := s.start(received, who.client("worker", "-brokers", strings.Join(everywhere, ","), "-topic", topic,
		"-id", fmt.Sprintf("traveller-%d", ordinal))...)
	s.reached(15*time.Second, received, "subscribed", 1)
	publisher := s.start(sent, who.client("publisher", "-brokers", strings.Join(elsewhere, ","), "-topic", topic,
		"-id", fmt.Sprintf("dispatcher-%d", ordinal), "-count", "300", "-rate", "5")...)
	waiting := s.start(waits, who.client("probe", "-broker", brokers[ordinal], "-stay", "5m",
		"-id", fmt.Sprintf("waits-%d", ordinal))...)
	s.reached(10*time.Second, sent, "acknowledged", 5)

	if _, err := try(clusterScript("cut-port", ip, "7883")); err != nil {
		s.Fatal(err)
	}
	healed := false
	heal := func() {
		if !healed {
			healed = true
			if _, err := try(clusterScript("heal-port", ip, "7883")); err != nil {
				s.Error(err)
			}
			_ = os.Remove(cut)
		}
	}
	defer heal()
	touch(s, cut)
	begin := time.Now()
	took := s.eventually(5*time.Second, "/readyz fails", func() error {
		if isReady() == nil {
			return errors.New("still ready")
		}
		return nil
	})
	s.Logf("/readyz failed after %v", took.Round(10*time.Millisecond))
	bound := lease + closeClientsAfter + time.Second
	if err := waiting.wait(bound - time.Since(begin)); err != nil {
		waiting.stop(s, syscall.SIGKILL)
		s.Errorf("the broker did not close its client within %v: %v", bound, err)
	} else {
		s.Logf("client closed after %v: %s", time.Since(begin).Round(10*time.Millisecond), closedHow(waits))
	}
	if got := s.probe(brokers[ordinal], who, "-id", "latecomer"); got.Connack != serverUnavailable {
		s.Errorf("CONNECT at the cut broker: 0x%02x instead of 0x88 (%+v)", got.Connack, got)
	}
	s.reached(20*time.Second, received, "connected", 2)
	seen := len(entries(received, "job"))
	s.reached(20*time.Second, received, "job", seen+20)

	time.Sleep(time.Until(begin.Add(time.Minute))) // Stay cut off for the whole minute.
	if isReady() == nil {
		s.Error("ready while it was cut off")
	}
	heal()
	took = s.eventually(10*time.Second, "ready again", isReady)
	s.Logf("ready again %v after healing", took.Round(10*time.Millisecond))
	if err := publisher.wait(time.Minute); err != nil {
		s.Fatalf("publisher: %v", err)
	}
	arrived(received, 300)
	worker.stop(s, syscall.SIGTERM)
	s.verify(received, sent, 300)
	s.ensureReady()
}

func closedHow(path string) string {
	text, _ := os.ReadFile(path)
	var got answers
	if err := json.Unmarshal(text, &got); err != nil {
		return string(text)
	}
	return fmt.Sprintf("DISCONNECT 0x%02x, %s", got.Disconnect, got.Error)
}

func touch(s *scenario, path string) {
	s.Helper()
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		s.Fatal(err)
	}
}
