package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// These tests run the clients against an independent broker, to exclude the clients as the cause of failures elsewhere.

func TestWorkerMissesNothingWhereSessionsAreKept(t *testing.T) {
	b := startMosquitto(t)
	out, err := b.story(t, "-session-expiry", "3600")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// Without a Session Expiry Interval Mosquitto ends the session with the connection. verify must report the lost jobs.
func TestVerifySeesTheLossWhereSessionsAreNotKept(t *testing.T) {
	b := startMosquitto(t)
	out, err := b.story(t)
	if err == nil || !strings.Contains(out, "never arrived") || !strings.Contains(out, "without session present") {
		t.Fatalf("the loss was not reported: %v\n%s", err, out)
	}
}

func TestIncidentFindsNothingWrongWithOneBroker(t *testing.T) {
	b := startMosquitto(t)
	journal := filepath.Join(t.TempDir(), "incident.jsonl")
	args := []string{"incident", "-brokers", b.addresses[0] + "," + b.addresses[1], "-user", "u", "-password", "p",
		"-count", "400", "-rate", "400", "-out", journal, "-settle", "10s"}
	out, err := b.client(args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := dropOneArrival(t, journal); !strings.Contains(got, "never reached") {
		t.Fatalf("a lost arrival was not reported: %s", got)
	}
}

func TestProbeReportsReasonCodes(t *testing.T) {
	b := startMosquitto(t)
	var refused, admitted answers
	b.probe(t, &refused, "-user", "u", "-password", "wrong")
	b.probe(t, &admitted, "-user", "u", "-password", "p", "-subscribe", "a", "-publish", "a", "-stay", "5s", "-expect", "1")
	if refused.Connack != 0x87 && refused.Connack != 0x86 {
		t.Fatalf("wrong password: %+v", refused)
	}
	if admitted.Connack != 0 || admitted.Suback != 1 || admitted.Puback != 0 || len(admitted.Received) != 1 || admitted.Closed {
		t.Fatalf("right password: %+v", admitted)
	}
}

// mosquitto is a Mosquitto process with two listeners.
type mosquitto struct {
	binary, dir string
	addresses   [2]string
	command     *exec.Cmd
}

func startMosquitto(t *testing.T) *mosquitto {
	t.Helper()
	b := &mosquitto{dir: t.TempDir()}
	b.binary = filepath.Join(b.dir, "clients")
	if out, err := exec.Command("go", "build", "-o", b.binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	config := fmt.Sprintf("persistence true\npersistence_location %s/\nautosave_interval 1\nautosave_on_changes true\n", b.dir) +
		fmt.Sprintf("allow_anonymous false\npassword_file %s/passwords\nmax_queued_messages 0\nuser root\n", b.dir)
	for i := range b.addresses {
		b.addresses[i] = freeAddress(t)
		_, port, _ := net.SplitHostPort(b.addresses[i])
		config += fmt.Sprintf("listener %s 127.0.0.1\n", port)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "mosquitto.conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mosquitto_passwd", "-c", "-b", filepath.Join(b.dir, "passwords"), "u", "p").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b.start(t)
	t.Cleanup(func() { b.stop() })
	return b
}

func (b *mosquitto) start(t *testing.T) {
	t.Helper()
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto"
	}
	b.command = exec.Command(path, "-c", filepath.Join(b.dir, "mosquitto.conf"))
	if err := b.command.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "mosquitto", 10*time.Second, func() bool {
		conn, err := net.Dial("tcp", b.addresses[1])
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
}

func (b *mosquitto) stop() {
	_ = b.command.Process.Signal(syscall.SIGTERM)
	_ = b.command.Wait()
}

func (b *mosquitto) client(args ...string) *exec.Cmd { return exec.Command(b.binary, args...) }

func (b *mosquitto) probe(t *testing.T, into *answers, args ...string) {
	t.Helper()
	out, err := b.client(append([]string{"probe", "-broker", b.addresses[0]}, args...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, into); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// story publishes 300 jobs while the worker is stopped once and killed once, and the broker is restarted once. It
// returns output and error of verify.
func (b *mosquitto) story(t *testing.T, options ...string) (string, error) {
	t.Helper()
	received, sent := filepath.Join(b.dir, "worker.jsonl"), filepath.Join(b.dir, "publisher.jsonl")
	login := []string{"-user", "u", "-password", "p"}
	work := func() *exec.Cmd {
		before := seen(received, kindSubscribed)
		args := append([]string{"worker", "-brokers", b.addresses[0], "-retry", "100ms", "-out", received}, login...)
		command := b.client(append(args, options...)...)
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, "the worker's subscription", 10*time.Second, func() bool { return seen(received, kindSubscribed) > before })
		return command
	}
	worker := work()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	publisher := exec.CommandContext(ctx, b.binary, append([]string{"publisher", "-brokers", b.addresses[1], "-count", "300",
		"-rate", "100", "-out", sent}, login...)...)
	if err := publisher.Start(); err != nil {
		t.Fatal(err)
	}
	reached := func(count int) {
		await(t, "acknowledgements", 20*time.Second, func() bool { return seen(sent, kindAcknowledged) >= count })
	}
	for i, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		reached(50 + 60*i)
		_ = worker.Process.Signal(signal)
		_ = worker.Wait()
		reached(80 + 60*i)
		worker = work()
	}
	reached(180)
	b.stop()
	b.start(t)
	if err := publisher.Wait(); err != nil {
		t.Fatal(err)
	}
	// Wait for the last jobs. If jobs are lost, this ends after five seconds.
	last := time.Now().Add(5 * time.Second)
	for seen(received, kindJob) < 300 && time.Now().Before(last) {
		time.Sleep(50 * time.Millisecond)
	}
	_ = worker.Process.Signal(syscall.SIGTERM)
	_ = worker.Wait()
	out, err := b.client("verify", "-worker", received, "-publisher", sent, "-count", "300").CombinedOutput()
	return string(out), err
}

// seen returns the number of records of a kind; 0 if the journal does not exist yet.
func seen(path, kind string) int {
	records, _ := readJournal(path)
	count := 0
	for _, r := range records {
		if r.Kind == kind {
			count++
		}
	}
	return count
}

// dropOneArrival removes one arrival from a journal and returns the error of conclude.
func dropOneArrival(t *testing.T, path string) string {
	t.Helper()
	records, err := readJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range records {
		if r.Kind == kindArrived {
			err = conclude(append(append([]record{}, records[:i]...), records[i+1:]...), 0)
			return fmt.Sprint(err)
		}
	}
	return "no arrival at all"
}

func await(t *testing.T, what string, limit time.Duration, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}
