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

// An MQTT client runs as a process in the network of node0 on our own cluster, and as a pod on somebody's.

// client is one that was started.
type client struct {
	command *exec.Cmd
	// pod is its name on somebody's cluster; command follows its log then.
	pod string
}

// inCluster is a command in the network of the cluster.
func inCluster(args ...string) *exec.Cmd {
	// nsenter replaces itself, so that a signal reaches the program.
	return exec.Command("nsenter", append([]string{"--net=/run/netns/node0", "--"}, args...)...)
}

// start runs a client; what it records is appended to the journal.
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

// stop ends the client with a signal and waits until it is gone.
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

// wait returns when the client has ended by itself.
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

// answers is what the broker told a probe; -1 where it was not asked or did not answer.
type answers struct {
	Connack, Suback, Puback, Disconnect int
	SessionPresent, Closed              bool
	Received                            []string
	Error                               string
}

// probe makes one connection; see `clients probe -h`.
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

// args are the options of a client.
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

// entry is the part of a journal's line that the scenarios read.
type entry struct {
	Time           time.Time
	Kind           string
	SessionPresent bool
	Number, Reason int
}

// entries are a journal's lines of a kind. A line that is still being written is left out.
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

// reached waits until a journal has so many lines of a kind.
func reached(t *testing.T, limit time.Duration, path, kind string, count int) {
	t.Helper()
	eventually(t, limit, fmt.Sprintf("%d times %s", count, kind), func() error {
		if got := len(entries(path, kind)); got < count {
			return fmt.Errorf("%d of %d", got, count)
		}
		return nil
	})
}

// arrived waits until a worker has so many jobs, or none has come for 20 seconds: the verdict says what is missing.
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

// verify is the verdict over a worker's and a publisher's journals.
func verify(t *testing.T, received, sent string, count int) {
	t.Helper()
	out, err := exec.Command(clientsBinary, "verify", "-worker", received, "-publisher", sent, "-count", fmt.Sprint(count)).CombinedOutput()
	t.Log(strings.TrimSpace(string(out)))
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatal("the verdict is red")
	} else if err != nil {
		t.Fatal(err)
	}
}
