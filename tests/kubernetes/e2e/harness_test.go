// Package e2e runs end-to-end scenarios on a real Kubernetes cluster: the one that ../cluster started (see ../run), or
// the one that KUBECONFIG names. Scenarios that break a machine or the network run only on the former. Each scenario
// makes what it needs, so that it can run by itself: it installs the chart if that has not been done, and creates its
// own namespace and MqttCluster. Which scenarios run side by side and in which order they begin is in turns_test.go.
package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// systemNamespace is the namespace of the operator.
	systemNamespace = "covey-system"
	release         = "covey"
	// controlPlane is the machine of ../cluster that runs the control plane.
	controlPlane = "node0"
	quickstart   = "../../../examples/quickstart.yaml"
	chart        = "../../../charts/covey"
	// quickstartCluster is the name of the MqttCluster in the quickstart.
	quickstartCluster = "prod"
	// lease and closeClientsAfter are the defaults of spec.fence.
	lease             = 3 * time.Second
	closeClientsAfter = 5 * time.Second
)

var (
	// external is whether KUBECONFIG names the Kubernetes cluster, so that only its API server can be used.
	external = os.Getenv("KUBECONFIG") != ""
	// clientsBinary is the path of the program built from tests/clients.
	clientsBinary string
)

func TestMain(m *testing.M) {
	if err := sideBySide(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "covey-e2e-")
	if err != nil {
		panic(err)
	}
	clientsBinary = filepath.Join(dir, "clients")
	build := exec.Command("go", "build", "-C", "../../clients", "-o", clientsBinary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// onOwnCluster skips a test that needs access to the machines of the Kubernetes cluster.
func onOwnCluster(t *testing.T) {
	t.Helper()
	if external {
		t.Skip("needs the machines of the cluster: run it without KUBECONFIG")
	}
}

// clusterScript returns a command of ../cluster.
func clusterScript(args ...string) *exec.Cmd { return exec.Command("../cluster", args...) }

// inCluster returns a command that runs in the network of the control plane.
func inCluster(args ...string) *exec.Cmd {
	// nsenter execs the program, so that signals reach it.
	return exec.Command("nsenter", append([]string{"--net=/run/netns/" + controlPlane, "--"}, args...)...)
}

// printed returns a function that returns what a command of ../cluster prints. It runs the command once.
func printed(command string) func() string {
	return sync.OnceValue(func() string {
		out, err := try(clusterScript(command))
		if err != nil {
			panic(err)
		}
		return strings.TrimSpace(out)
	})
}

var binaries, kubeconfig = printed("bin"), printed("kubeconfig")

// tool returns a kubectl or helm command for the Kubernetes cluster. On one from ../cluster it is what `cluster kubectl`
// runs, without the shell: the scenarios run thousands of these commands.
func tool(name string, args ...string) *exec.Cmd {
	if external {
		return exec.Command(name, args...)
	}
	command := inCluster(append([]string{filepath.Join(binaries(), name)}, args...)...)
	command.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig())
	return command
}

// try runs a command and returns its standard output. The error contains the standard error.
func try(command *exec.Cmd) (string, error) {
	var out, rest bytes.Buffer
	command.Stdout, command.Stderr = &out, &rest
	if err := command.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(command.Args, " "), err, strings.TrimSpace(rest.String()))
	}
	return out.String(), nil
}

// object has the fields of Kubernetes objects that the scenarios read.
type object struct {
	Kind     string
	Metadata struct {
		Name, Namespace, UID, ResourceVersion string
		Generation                            int64
		Labels                                map[string]string
		OwnerReferences                       []struct{ Kind, UID string }
	}
	Data   map[string]string
	Status struct {
		Phase, PodIP       string
		ReadyReplicas      int
		SyncedNodes        string
		Conditions         []condition
		Alerts             []struct{ Name, Pod string }
		Nodes              []struct{ Name, AclRevision string }
		ContainerStatuses  []struct{ RestartCount int }
		DisruptionsAllowed int
	}
	Spec struct {
		NodeName, ClusterIP string
		Replicas            int
	}
}

type condition struct{ Type, Status, Reason, Message string }

func (o object) condition(name string) condition {
	for _, c := range o.Status.Conditions {
		if c.Type == name {
			return c
		}
	}
	return condition{Type: name}
}

func tryList(args ...string) ([]object, error) {
	out, err := try(tool("kubectl", append([]string{"get", "-o", "json"}, args...)...))
	if err != nil {
		return nil, err
	}
	var found struct{ Items []object }
	err = json.Unmarshal([]byte(out), &found)
	return found.Items, err
}

func tryGet(args ...string) (object, error) {
	var found object
	out, err := try(tool("kubectl", append([]string{"get", "-o", "json"}, args...)...))
	if err == nil {
		err = json.Unmarshal([]byte(out), &found)
	}
	return found, err
}

// http reads a page of a pod through the API server.
func http(ns, pod string, port int, path string) (string, error) {
	return try(tool("kubectl", "get", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:%d/proxy%s", ns, pod, port, path)))
}

// metric returns the sum of a metric's series on a page of Prometheus text, and whether there are any.
func metric(page, name string) (sum float64, found bool) {
	for line := range strings.Lines(page) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || (rest[0] != '{' && rest[0] != ' ') {
			continue
		}
		var value float64
		if _, err := fmt.Sscan(rest[strings.LastIndex(strings.TrimSpace(rest), " ")+1:], &value); err == nil {
			sum, found = sum+value, true
		}
	}
	return sum, found
}
