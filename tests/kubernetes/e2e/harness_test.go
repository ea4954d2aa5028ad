// Package e2e runs end-to-end scenarios on a real Kubernetes cluster: the one that ../cluster started (see ../run), or
// the one that KUBECONFIG names. Scenarios that break a machine or the network run only on the former. The files are
// numbered because Go runs tests in file order: the first one installs Covey, the last one removes it.
package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	// systemNamespace is the namespace of the operator.
	systemNamespace = "covey-system"
	release         = "covey"
	quickstart      = "../../../examples/quickstart.yaml"
	chart           = "../../../charts/covey"
	// lease and closeClientsAfter are the defaults of spec.fence.
	lease             = 3 * time.Second
	closeClientsAfter = 5 * time.Second
)

var (
	// namespace is that of the cluster under test. Most scenarios share one; see inNamespace.
	namespace = "e2e"
	// external is whether KUBECONFIG names the Kubernetes cluster, so that only its API server can be used.
	external = os.Getenv("KUBECONFIG") != ""
	// clientsBinary is the path of the program built from tests/clients.
	clientsBinary string
)

func TestMain(m *testing.M) {
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

// tool returns a kubectl or helm command for the Kubernetes cluster.
func tool(name string, args ...string) *exec.Cmd {
	if external {
		return exec.Command(name, args...)
	}
	return exec.Command("../cluster", append([]string{name}, args...)...)
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

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(tool("kubectl", args...))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply applies manifests in the namespace under test and returns the error of kubectl.
func apply(manifests string) error {
	command := tool("kubectl", "apply", "-n", namespace, "-f", "-")
	command.Stdin = strings.NewReader(manifests)
	_, err := try(command)
	return err
}

func mustApply(t *testing.T, manifests string) {
	t.Helper()
	if err := apply(manifests); err != nil {
		t.Fatal(err)
	}
}

// inNamespace runs the rest of a scenario in its own namespace. Scenarios run one after the other.
func inNamespace(t *testing.T, name string) {
	t.Helper()
	shared := namespace
	namespace = name
	kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		kubectl(t, "delete", "-n", name, "mqttclusters,mqttusers", "--all", "--timeout=60s")
		kubectl(t, "delete", "namespace", name, "--timeout=120s")
		namespace = shared
	})
}

// clusterManifest returns an MqttCluster of three nodes with the image under test and more fields of its spec.
func clusterManifest(name, spec string) string {
	image := ""
	if given := os.Getenv("COVEY_TEST_IMAGE"); given != "" {
		repository, tag := splitImage(given)
		image = fmt.Sprintf("  image: {repository: %q, tag: %q}\n", repository, tag)
	}
	return fmt.Sprintf("apiVersion: covey.io/v1alpha1\nkind: MqttCluster\nmetadata: {name: %s}\nspec:\n  replicas: 3\n%s%s", name, image, spec)
}

// patch merges a JSON document into the MqttCluster.
func patch(t *testing.T, name, document string) {
	t.Helper()
	kubectl(t, "patch", "-n", namespace, "mqttcluster", name, "--type=merge", "-p", document)
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

func list(t *testing.T, args ...string) []object {
	t.Helper()
	items, err := tryList(args...)
	if err != nil {
		t.Fatal(err)
	}
	return items
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

func get(args ...string) (object, error) {
	var found object
	out, err := try(tool("kubectl", append([]string{"get", "-n", namespace, "-o", "json"}, args...)...))
	if err == nil {
		err = json.Unmarshal([]byte(out), &found)
	}
	return found, err
}

// eventually polls until `holds` returns nil and returns the time that took. It fails with the last error after `limit`.
func eventually(t *testing.T, limit time.Duration, what string, holds func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	for {
		err := holds()
		if err == nil {
			return time.Since(begin)
		}
		if time.Since(begin) > limit {
			t.Fatalf("%s: timed out after %v: %v", what, limit, err)
		}
		time.Sleep(250 * time.Millisecond)
	}
}

// clusterName returns the name of the MqttCluster in the namespace under test.
func clusterName(t *testing.T) string {
	t.Helper()
	for _, o := range list(t, "-n", namespace, "mqttclusters") {
		return o.Metadata.Name
	}
	t.Fatal("there is no MqttCluster: run TestQuickstart first")
	return ""
}

// ready returns nil when every node of the cluster is ready.
func ready() error {
	items, err := tryList("-n", namespace, "mqttclusters")
	if err != nil || len(items) == 0 {
		return errors.Join(err, errors.New("no MqttCluster"))
	}
	o := items[0]
	if c := o.condition("Ready"); c.Status != "True" || o.Status.ReadyReplicas != o.Spec.Replicas {
		return fmt.Errorf("Ready=%s (%s: %s), %d/%d", c.Status, c.Reason, c.Message, o.Status.ReadyReplicas, o.Spec.Replicas)
	}
	return nil
}

// ensureReady waits until the cluster is ready and returns its name. Every scenario begins and ends with it.
func ensureReady(t *testing.T) string {
	t.Helper()
	name := clusterName(t)
	eventually(t, 3*time.Minute, "the cluster ready", ready)
	return name
}

// pods returns the broker pods, sorted by name.
func pods(t *testing.T) []object {
	t.Helper()
	return list(t, "-n", namespace, "pods", "-l", "covey.io/cluster="+clusterName(t), "--sort-by=.metadata.name")
}

// addresses returns the MQTT address of every broker pod.
func addresses(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, pod := range pods(t) {
		found = append(found, pod.Status.PodIP+":1883")
	}
	return found
}

// serviceAddress returns the MQTT address of the cluster's Service.
func serviceAddress(t *testing.T) string {
	t.Helper()
	service, err := get("service", clusterName(t))
	if err != nil {
		t.Fatal(err)
	}
	return service.Spec.ClusterIP + ":1883"
}

// http reads a page of a pod through the API server.
func http(ns, pod string, port int, path string) (string, error) {
	return try(tool("kubectl", "get", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:%d/proxy%s", ns, pod, port, path)))
}

// operatorPods returns the running pods of the operator.
func operatorPods(t *testing.T) []object {
	t.Helper()
	return list(t, "-n", systemNamespace, "pods", "--field-selector=status.phase=Running")
}

// scaleOperator sets the number of operator pods and waits until exactly these exist and are available.
func scaleOperator(t *testing.T, replicas int) {
	t.Helper()
	kubectl(t, "-n", systemNamespace, "scale", "deployment", "--all", fmt.Sprintf("--replicas=%d", replicas))
	eventually(t, time.Minute, "the operator scaled", func() error {
		all, err := tryList("-n", systemNamespace, "pods")
		if err != nil || len(all) != replicas {
			return errors.Join(err, fmt.Errorf("%d pods instead of %d", len(all), replicas))
		}
		return nil
	})
	if replicas > 0 {
		kubectl(t, "-n", systemNamespace, "wait", "deployment", "--all", "--for=condition=Available", "--timeout=60s")
	}
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
