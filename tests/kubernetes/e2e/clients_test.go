package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// MQTT clients are processes in the network of node0 of a cluster from ../cluster, and pods on an external cluster.

// client is a running MQTT client.
type client struct {
	command *exec.Cmd
	// pod is the name of its pod on an external cluster. command then follows the pod's log.
	pod string
}

// inCluster returns a command that runs in the network of node0.
func inCluster(args ...string) *exec.Cmd {
	// nsenter execs the program, so that signals reach it.
	return exec.Command("nsenter", append([]string{"--net=/run/netns/node0", "--"}, args...)...)
}

// start starts a client and appends its output to the journal.
func start(t *testing.T, journal string, args ...string) *client {
	t.Helper()
	file, err := os.OpenFile(journal, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	c := &client{}
	if external {
		c.pod = fmt.Sprintf("client-%d", time.Now().UnixNano())
		image := os.Getenv("COVEY_TEST_CLIENTS_IMAGE")
		if image == "" {
			t.Fatal("COVEY_TEST_CLIENTS_IMAGE must name the image that `tests/kubernetes/image clients` built")
		}
		kubectl(t, append([]string{"-n", namespace, "run", c.pod, "--image=" + image, "--restart=Never", "--"}, args...)...)
		kubectl(t, "-n", namespace, "wait", "pod", c.pod, "--for=jsonpath={.status.containerStatuses[0].started}=true", "--timeout=60s")
		c.command = tool("kubectl", "-n", namespace, "logs", "-f", c.pod)
	} else {
		c.command = inCluster(append([]string{clientsBinary}, args...)...)
	}
	c.command.Stdout, c.command.Stderr = file, os.Stderr
	if err := c.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.command.Process.Kill()
		if c.pod != "" {
			_, _ = try(tool("kubectl", "-n", namespace, "delete", "pod", c.pod, "--ignore-not-found", "--wait=false"))
		}
	})
	return c
}

// stop ends the client with a signal and waits until it has ended.
func (c *client) stop(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if external {
		grace := "10"
		if signal == syscall.SIGKILL {
			grace = "1"
		}
		kubectl(t, "-n", namespace, "delete", "pod", c.pod, "--wait", "--grace-period="+grace)
	} else if err := c.command.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	_ = c.command.Wait()
}

// wait waits until the client has ended by itself.
func (c *client) wait(t *testing.T, limit time.Duration) error {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- c.command.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(limit):
		return fmt.Errorf("still running after %v", limit)
	}
}

// answers has the broker's answers to a probe. Reason codes are -1 if the request was not sent or not answered.
type answers struct {
	Connack, Suback, Puback, Disconnect int
	SessionPresent, Closed              bool
	Received                            []string
	Error                               string
}

// probe makes one connection and returns the broker's answers; see `clients probe -h`.
func probe(t *testing.T, broker string, who login, args ...string) answers {
	t.Helper()
	args = append([]string{"probe", "-broker", broker, "-user", who.user, "-password", who.password}, args...)
	var command *exec.Cmd
	if external {
		command = tool("kubectl", append([]string{"-n", namespace, "run", fmt.Sprintf("probe-%d", time.Now().UnixNano()), "--rm",
			"--quiet", "--attach", "--restart=Never", "--image=" + os.Getenv("COVEY_TEST_CLIENTS_IMAGE"), "--"}, args...)...)
	} else {
		command = inCluster(append([]string{clientsBinary}, args...)...)
	}
	out, err := try(command)
	if err != nil {
		t.Fatal(err)
	}
	var got answers
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return got
}

// login is a user name and a password.
type login struct{ user, password string }

// args returns the credentials as options of a client.
func (l login) args() []string { return []string{"-user", l.user, "-password", l.password} }

// user applies an MqttUser and returns its generated credentials once every node enforces them.
func user(t *testing.T, name, spec string) login {
	t.Helper()
	mustApply(t, fmt.Sprintf("apiVersion: covey.io/v1alpha1\nkind: MqttUser\nmetadata: {name: %s}\nspec:\n  clusterRef: {name: %s}\n%s",
		name, clusterName(t), spec))
	eventually(t, 30*time.Second, "user "+name+" ready", func() error {
		o, err := get("mqttuser", name)
		if err != nil {
			return err
		}
		if c := o.condition("Ready"); c.Status != "True" {
			return fmt.Errorf("Ready=%s (%s: %s)", c.Status, c.Reason, c.Message)
		}
		return nil
	})
	secret, err := get("secret", name+"-mqtt")
	if err != nil {
		t.Fatal(err)
	}
	return login{decode(t, secret.Data["username"]), decode(t, secret.Data["password"])}
}

// entry has the fields of a journal's line that the scenarios read.
type entry struct {
	Time           time.Time
	Kind           string
	SessionPresent bool
	Number, Reason int
}

// entries returns a journal's lines of a kind, without a line that is still being written.
func entries(path, kind string) []entry {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	var found []entry
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var e entry
		if json.Unmarshal(lines.Bytes(), &e) == nil && e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}

// reached waits until a journal has at least `count` lines of a kind.
func reached(t *testing.T, limit time.Duration, path, kind string, count int) {
	t.Helper()
	eventually(t, limit, fmt.Sprintf("%d times %s", count, kind), func() error {
		if got := len(entries(path, kind)); got < count {
			return fmt.Errorf("%d of %d", got, count)
		}
		return nil
	})
}

// arrived waits until a worker has received `count` jobs, or none for 20 seconds. verify then reports missing jobs.
func arrived(t *testing.T, journal string, count int) {
	t.Helper()
	last, since := 0, time.Now()
	for last < count && time.Since(since) < 20*time.Second {
		time.Sleep(250 * time.Millisecond)
		if got := len(entries(journal, "job")); got != last {
			last, since = got, time.Now()
		}
	}
}

// verify checks a worker's journal against a publisher's.
func verify(t *testing.T, received, sent string, count int) {
	t.Helper()
	out, err := exec.Command(clientsBinary, "verify", "-worker", received, "-publisher", sent, "-count", fmt.Sprint(count)).CombinedOutput()
	t.Log(strings.TrimSpace(string(out)))
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatal("`clients verify` found problems")
	} else if err != nil {
		t.Fatal(err)
	}
}
