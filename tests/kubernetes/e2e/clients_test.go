package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// MQTT clients are processes in the network of node0 of a cluster from ../cluster, and pods on an external cluster.

// client is a running MQTT client.
type client struct {
	command *exec.Cmd
	// pod is the name of its pod on an external cluster. command then follows the pod's log.
	pod string
}

// start starts a client and appends its output to the journal. What it writes to standard error is logged on failure.
func (s *scenario) start(journal string, args ...string) *client {
	s.Helper()
	file, err := os.OpenFile(journal, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		s.Fatal(err)
	}
	defer file.Close()
	complaints, err := os.CreateTemp(s.TempDir(), "stderr-")
	if err != nil {
		s.Fatal(err)
	}
	defer complaints.Close()
	c := &client{}
	if external {
		c.pod = fmt.Sprintf("client-%d", time.Now().UnixNano())
		image := os.Getenv("COVEY_TEST_CLIENTS_IMAGE")
		if image == "" {
			s.Fatal("COVEY_TEST_CLIENTS_IMAGE must name the image that `tests/kubernetes/image clients` built")
		}
		s.kubectl(append([]string{"-n", s.namespace, "run", c.pod, "--image=" + image, "--restart=Never", "--"}, args...)...)
		s.kubectl("-n", s.namespace, "wait", "pod", c.pod, "--for=jsonpath={.status.containerStatuses[0].started}=true", "--timeout=60s")
		c.command = tool("kubectl", "-n", s.namespace, "logs", "-f", c.pod)
	} else {
		c.command = inCluster(append([]string{clientsBinary}, args...)...)
	}
	c.command.Stdout, c.command.Stderr = file, complaints
	if err := c.command.Start(); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		_ = c.command.Process.Kill()
		if text, _ := os.ReadFile(complaints.Name()); s.Failed() && len(text) > 0 {
			s.Logf("client %q wrote:\n%s", args, text)
		}
		if c.pod != "" {
			_, _ = try(tool("kubectl", "-n", s.namespace, "delete", "pod", c.pod, "--ignore-not-found", "--wait=false"))
		}
	})
	return c
}

// stop ends the client with a signal and waits until it has ended.
func (c *client) stop(s *scenario, signal syscall.Signal) {
	s.Helper()
	if external {
		grace := "10"
		if signal == syscall.SIGKILL {
			grace = "1"
		}
		s.kubectl("-n", s.namespace, "delete", "pod", c.pod, "--wait", "--grace-period="+grace)
	} else if err := c.command.Process.Signal(signal); err != nil {
		s.Fatal(err)
	}
	_ = c.command.Wait()
}

// wait waits until the client has ended by itself.
func (c *client) wait(limit time.Duration) error {
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
func (s *scenario) probe(broker string, who login, args ...string) answers {
	s.Helper()
	args = append([]string{"probe", "-broker", broker, "-user", who.user, "-password", who.password}, args...)
	var command *exec.Cmd
	if external {
		command = tool("kubectl", append([]string{"-n", s.namespace, "run", fmt.Sprintf("probe-%d", time.Now().UnixNano()), "--rm",
			"--quiet", "--attach", "--restart=Never", "--image=" + os.Getenv("COVEY_TEST_CLIENTS_IMAGE"), "--"}, args...)...)
	} else {
		command = inCluster(append([]string{clientsBinary}, args...)...)
	}
	out, err := try(command)
	if err != nil {
		s.Fatal(err)
	}
	var got answers
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		s.Fatalf("%v: %s", err, out)
	}
	return got
}

// login is a user name and a password.
type login struct{ user, password string }

// client returns the arguments of a client that connects with these credentials; see `clients <command> -h`.
func (l login) client(command string, options ...string) []string {
	return slices.Concat([]string{command, "-user", l.user, "-password", l.password}, options)
}

// user applies an MqttUser and returns its generated credentials once every node enforces them.
func (s *scenario) user(name, spec string) login {
	s.Helper()
	s.apply(fmt.Sprintf("apiVersion: covey.io/v1alpha1\nkind: MqttUser\nmetadata: {name: %s}\nspec:\n  clusterRef: {name: %s}\n%s",
		name, s.cluster, spec))
	s.eventually(30*time.Second, "user "+name+" ready", func() error {
		o, err := s.get("mqttuser", name)
		if err != nil {
			return err
		}
		if c := o.condition("Ready"); c.Status != "True" {
			return fmt.Errorf("Ready=%s (%s: %s)", c.Status, c.Reason, c.Message)
		}
		return nil
	})
	secret, err := s.get("secret", name+"-mqtt")
	if err != nil {
		s.Fatal(err)
	}
	return login{s.decode(secret.Data["username"]), s.decode(secret.Data["password"])}
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
func (s *scenario) reached(limit time.Duration, path, kind string, count int) {
	s.Helper()
	s.eventually(limit, fmt.Sprintf("%d times %s", count, kind), func() error {
		if got := len(entries(path, kind)); got < count {
			return fmt.Errorf("%d of %d", got, count)
		}
		return nil
	})
}

// arrived waits until a worker has received `count` jobs, or none for 20 seconds. verify then reports missing jobs.
func arrived(journal string, count int) {
	last, since := 0, time.Now()
	for last < count && time.Since(since) < 20*time.Second {
		time.Sleep(250 * time.Millisecond)
		if got := len(entries(journal, "job")); got != last {
			last, since = got, time.Now()
		}
	}
}

// verify checks a worker's journal against a publisher's.
func (s *scenario) verify(received, sent string, count int) {
	s.Helper()
	out, err := exec.Command(clientsBinary, "verify", "-worker", received, "-publisher", sent, "-count", fmt.Sprint(count)).CombinedOutput()
	s.Log(strings.TrimSpace(string(out)))
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		s.Fatal("`clients verify` found problems")
	} else if err != nil {
		s.Fatal(err)
	}
}
