package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The largest window of a case, configured in brokers that limit the messages in flight to a subscriber.
const mostInflight = 256

var bench = account{user: "bench", password: "8Yq1nS0mJ6cXo2Tz"}

// programs has the paths of the brokers' binaries. A broker with an empty path is not measured.
type programs struct {
	mosquitto, nats, rumqttd, covey string
	before                          string // an earlier binary of Covey, to compare with
	rounds                          int    // how often Covey is measured
}

// candidate is a broker in one configuration.
type candidate struct {
	name  string
	start func(directory string, port int) (*running, error)
}

func (p programs) candidates() []candidate {
	all := []candidate{{"Mosquitto", p.startMosquitto}}
	if p.nats != "" {
		all = append(all, candidate{"NATS JetStream", p.startNats("2m")}, candidate{"NATS, sync always", p.startNats("always")})
	}
	if p.rumqttd != "" {
		all = append(all, candidate{"rumqttd", p.startRumqttd})
	}
	if p.covey == "" {
		return all
	}
	for round := range max(p.rounds, 1) {
		for _, nodes := range []int{1, 3} {
			all = append(all, p.binaries(nodes, round%2 == 1)...)
		}
	}
	return all
}

// binaries returns the present binary, and before it the earlier one, if there is one. A round that is turned has the
// opposite order, because a machine is faster or slower for minutes.
func (p programs) binaries(nodes int, turned bool) []candidate {
	suffix := fmt.Sprintf(", %d nodes", nodes)
	if nodes == 1 {
		suffix = ", 1 node"
	}
	now := candidate{nameNow + suffix, p.startCovey(nodes)}
	if p.before == "" {
		return []candidate{now}
	}
	before := candidate{nameBefore + suffix, programs{covey: p.before}.startCovey(nodes)}
	if turned {
		return []candidate{now, before}
	}
	return []candidate{before, now}
}

func single(name, directory string, port int, who account, program string, arguments ...string) (*running, error) {
	command, err := launch(directory, program, arguments...)
	if err != nil {
		return nil, err
	}
	b := &running{name: name, addresses: []string{fmt.Sprintf("127.0.0.1:%d", port)}, who: who,
		pids: []int{command.Process.Pid}, main: command}
	if err := b.awaitListening(); err != nil {
		_ = b.stop()
		return nil, fmt.Errorf("%w; its output: %s", err, tail(directory))
	}
	return b, nil
}

// startMosquitto starts Mosquitto with persistence, which writes the whole store every 30 minutes and at the end.
// Mosquitto has no setting that syncs before it acknowledges.
func (p programs) startMosquitto(directory string, port int) (*running, error) {
	passwords := filepath.Join(directory, "passwords")
	create := exec.Command("mosquitto_passwd", "-b", "-c", passwords, bench.user, bench.password)
	if out, err := create.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mosquitto_passwd: %w: %s", err, out)
	}
	lines := []string{
		fmt.Sprintf("listener %d 127.0.0.1", port),
		"allow_anonymous false", "password_file " + passwords,
		"persistence true", "persistence_location " + directory + "/",
		"max_queued_messages 0", fmt.Sprintf("max_inflight_messages %d", mostInflight),
		"log_type error", "log_type warning",
	}
	if os.Getuid() == 0 {
		lines = append(lines, "user root")
	}
	config, err := write(directory, "mosquitto.conf", lines...)
	if err != nil {
		return nil, err
	}
	return single("Mosquitto", directory, port, bench, p.mosquitto, "-c", config)
}

func (p programs) startNats(sync string) func(string, int) (*running, error) {
	return func(directory string, port int) (*running, error) {
		config, err := write(directory, "nats.conf",
			"server_name: bench", fmt.Sprintf("listen: 127.0.0.1:%d", port+1),
			fmt.Sprintf("jetstream { store_dir: %q, sync_interval: %s }", filepath.Join(directory, "data"), sync),
			fmt.Sprintf("authorization { user: %s, password: %s }", bench.user, bench.password),
			fmt.Sprintf("mqtt { listen: \"127.0.0.1:%d\" }", port))
		if err != nil {
			return nil, err
		}
		return single("NATS", directory, port, bench, p.nats, "-c", config)
	}
}

func (p programs) startRumqttd(directory string, port int) (*running, error) {
	return single("rumqttd", directory, port, account{}, p.rumqttd, fmt.Sprint(port+1), fmt.Sprint(port))
}

// manifest is a cluster with default settings and one user who may do everything under bench/.
const manifest = `apiVersion: covey.io/v1alpha1
kind: MqttCluster
metadata:
  name: bench
spec:
  replicas: %d
---
apiVersion: covey.io/v1alpha1
kind: MqttUser
metadata:
  name: bench
spec:
  clusterRef:
    name: bench
  authentication:
    password:
      generate: true
  acl:
    - allow: [Publish, Subscribe]
      topics: ["bench/#"]
`

// coveyReport is the part of connect.json that is used here.
type coveyReport struct {
	Clusters []struct {
		Brokers []struct {
			Addresses []string
			HTTP      string
			Pid       *int
		}
		Users []struct{ Username, Password string }
	}
}

func (p programs) startCovey(replicas int) func(string, int) (*running, error) {
	return func(directory string, port int) (*running, error) {
		file, err := write(directory, "bench.yaml", fmt.Sprintf(manifest, replicas))
		if err != nil {
			return nil, err
		}
		data := filepath.Join(directory, "data")
		command, err := launch(directory, p.covey, "local", file, "--data", data, "--port", fmt.Sprint(port))
		if err != nil {
			return nil, err
		}
		b := &running{name: "Covey", main: command}
		if err := b.readReport(filepath.Join(data, "connect.json")); err != nil {
			_ = b.stop()
			return nil, fmt.Errorf("%w; its output: %s", err, tail(directory))
		}
		return b, b.awaitListening()
	}
}

// readReport waits for the file that `covey local` writes when all brokers are ready, and reads it.
func (b *running) readReport(file string) error {
	deadline := time.Now().Add(startTimeout)
	text, err := os.ReadFile(file)
	for err != nil {
		if time.Now().After(deadline) {
			return fmt.Errorf("covey local is not ready: %w", err)
		}
		time.Sleep(50 * time.Millisecond)
		text, err = os.ReadFile(file)
	}
	var report coveyReport
	if err := json.Unmarshal(text, &report); err != nil {
		return err
	}
	if len(report.Clusters) != 1 || len(report.Clusters[0].Users) != 1 {
		return fmt.Errorf("%s: expected one cluster with one user", file)
	}
	for _, broker := range report.Clusters[0].Brokers {
		if len(broker.Addresses) == 0 || broker.Pid == nil {
			return fmt.Errorf("%s: a broker without address or process", file)
		}
		b.addresses = append(b.addresses, broker.Addresses[0])
		b.pids = append(b.pids, *broker.Pid)
		b.metrics = append(b.metrics, "http://"+broker.HTTP+"/metrics")
	}
	user := report.Clusters[0].Users[0]
	b.who = account{user: user.Username, password: user.Password}
	return nil
}

func write(directory, name string, lines ...string) (string, error) {
	path := filepath.Join(directory, name)
	return path, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}

// tail returns the last 500 bytes of a broker's output.
func tail(directory string) string {
	text, err := os.ReadFile(filepath.Join(directory, "log"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-500):])
}
