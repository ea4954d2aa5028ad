package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const serverUnavailable = 0x88

// TestIncident cuts each broker off from its peers for a minute, while its clients and its kubelet still reach it.
func TestIncident(t *testing.T) {
	onOwnCluster(t)
	ensureReady(t)
	checker := user(t, "checker", `  acl:
  - {allow: [Publish, Subscribe], topics: ["incident/#", "jobs/#"]}
`)
	dir := t.TempDir()
	running, cut := filepath.Join(dir, "running"), filepath.Join(dir, "cut")
	touch(t, running)
	report := filepath.Join(dir, "report.txt")
	check := start(t, report, append([]string{"incident", "-brokers", strings.Join(addresses(t), ","), "-count", "10000",
		"-rate", "80", "-min-cut", "2000", "-while", running, "-cut", cut, "-out", filepath.Join(dir, "incident.jsonl")}, checker.args()...)...)
	for ordinal := range 3 {
		if !t.Run(fmt.Sprintf("broker %d", ordinal), func(t *testing.T) { cutOff(t, ordinal, checker, cut) }) {
			break
		}
	}
	if err := os.Remove(running); err != nil {
		t.Fatal(err)
	}
	err := check.wait(t, 15*time.Minute)
	text, _ := os.ReadFile(report)
	t.Log(string(text))
	if err != nil {
		t.Fatalf("`clients incident` found problems: %v", err)
	}
}

// cutOff cuts one broker off from its peers for one minute.
func cutOff(t *testing.T, ordinal int, who login, cut string) {
	ensureReady(t)
	pod := pods(t)[ordinal]
	ip := pod.Status.PodIP
	brokers := addresses(t)
	isReady := func() error { _, err := http(namespace, pod.Metadata.Name, 9464, "/readyz"); return err }

	// A worker that starts at the broker and may reconnect to others, and a client that waits until it is closed.
	dir := t.TempDir()
	received, sent, waits := filepath.Join(dir, "worker.jsonl"), filepath.Join(dir, "publisher.jsonl"), filepath.Join(dir, "closed.json")
	elsewhere := append(append([]string{}, brokers[ordinal+1:]...), brokers[:ordinal]...)
	topic := fmt.Sprintf("jobs/cut%d", ordinal)
	worker := start(t, received, append([]string{"worker", "-brokers", strings.Join(append([]string{brokers[ordinal]}, elsewhere...), ","),
		"-id", fmt.Sprintf("traveller-%d", ordinal), "-topic", topic}, who.args()...)...)
	reached(t, 15*time.Second, received, "subscribed", 1)
	publisher := start(t, sent, append([]string{"publisher", "-brokers", strings.Join(elsewhere, ","), "-topic", topic,
		"-id", fmt.Sprintf("dispatcher-%d", ordinal), "-count", "300", "-rate", "5"}, who.args()...)...)
	waiting := start(t, waits, append([]string{"probe", "-broker", brokers[ordinal], "-id", fmt.Sprintf("waits-%d", ordinal), "-stay", "5m"}, who.args()...)...)
	reached(t, 10*time.Second, sent, "acknowledged", 5)

	if _, err := try(clusterScript("cut-port", ip, "7883")); err != nil {
		t.Fatal(err)
	}
	healed := false
	heal := func() {
		if !healed {
			healed = true
			if _, err := try(clusterScript("heal-port", ip, "7883")); err != nil {
				t.Error(err)
			}
			_ = os.Remove(cut)
		}
	}
	defer heal()
	touch(t, cut)
	begin := time.Now()
	took := eventually(t, 5*time.Second, "/readyz fails", func() error {
		if isReady() == nil {
			return errors.New("still ready")
		}
		return nil
	})
	t.Logf("/readyz failed after %v", took.Round(10*time.Millisecond))
	bound := lease + closeClientsAfter + time.Second
	if err := waiting.wait(t, bound-time.Since(begin)); err != nil {
		waiting.stop(t, syscall.SIGKILL)
		t.Errorf("the broker did not close its client within %v: %v", bound, err)
	} else {
		t.Logf("client closed after %v: %s", time.Since(begin).Round(10*time.Millisecond), closedHow(waits))
	}
	if got := probe(t, brokers[ordinal], who, "-id", "latecomer"); got.Connack != serverUnavailable {
		t.Errorf("CONNECT at the cut broker: 0x%02x instead of 0x88 (%+v)", got.Connack, got)
	}
	reached(t, 20*time.Second, received, "connected", 2)
	seen := len(entries(received, "job"))
	reached(t, 20*time.Second, received, "job", seen+20)

	time.Sleep(time.Until(begin.Add(time.Minute))) // Stay cut off for the whole minute.
	if isReady() == nil {
		t.Error("ready while it was cut off")
	}
	heal()
	took = eventually(t, 10*time.Second, "ready again", isReady)
	t.Logf("ready again %v after healing", took.Round(10*time.Millisecond))
	if err := publisher.wait(t, time.Minute); err != nil {
		t.Fatalf("publisher: %v", err)
	}
	arrived(t, received, 300)
	worker.stop(t, syscall.SIGTERM)
	verify(t, received, sent, 300)
	ensureReady(t)
}

// clusterScript returns a command of ../cluster.
func clusterScript(args ...string) *exec.Cmd { return exec.Command("../cluster", args...) }

func closedHow(path string) string {
	text, _ := os.ReadFile(path)
	var got answers
	if err := json.Unmarshal(text, &got); err != nil {
		return string(text)
	}
	return fmt.Sprintf("DISCONNECT 0x%02x, %s", got.Disconnect, got.Error)
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}
