package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// scenario is what one test function works with. Two scenarios share only the Kubernetes cluster and the operator.
type scenario struct {
	*testing.T
	// namespace is that of the scenario, and cluster the name of its MqttCluster. Both differ from those of all others.
	namespace, cluster string
	// place is nil if the scenario has no turn.
	place *place
}

// place is the turn that a scenario has at the moment.
type place struct {
	turn  string
	since time.Time
}

// newScenario waits for the turn of the test function, see `turns`, and returns its scenario: the chart is installed and
// the namespace is empty.
func newScenario(t *testing.T, cluster string) *scenario {
	t.Helper()
	s := &scenario{T: t, namespace: "e2e-" + cluster, cluster: cluster, place: &place{turn: t.Name()}}
	if err := scenarios.register(t.Name()); err != nil {
		t.Fatal(err)
	}
	t.Parallel()
	s.enter()
	// Runs after the cleanups of prepare.
	t.Cleanup(func() { s.leave("") })
	s.prepare()
	return s
}

// enter waits for the turn of the scenario's place.
func (s *scenario) enter() {
	s.Helper()
	registered := time.Now()
	beside := scenarios.enter(s.place.turn)
	s.place.since = time.Now()
	s.Logf("%s begins in %s after waiting for %v, beside %q", s.place.turn, s.namespace, time.Since(registered).Round(time.Second), beside)
}

// leave ends the turn. If `then` is not empty, it is the scenario's next turn, which can be entered.
func (s *scenario) leave(then string) {
	s.Helper()
	s.Logf("%s took %v", s.place.turn, time.Since(s.place.since).Round(time.Second))
	if err := scenarios.leave(s.place.turn, then); err != nil {
		s.Fatal(err)
	}
	s.place.turn = then
}

// alone waits until no other scenario runs, and none that has not begun may begin before. The rest of the scenario may
// scale the operator to zero.
func (s *scenario) alone() {
	s.Helper()
	then := strings.TrimSuffix(s.place.turn, withoutOperator) + withoutOperator
	s.leave(then)
	s.enter()
}

// prepare installs the chart and creates the namespace, which is deleted at the end with all that is in it.
func (s *scenario) prepare() {
	s.Helper()
	s.installed()
	// It exists if an earlier run was killed.
	s.remove()
	s.kubectl("create", "namespace", s.namespace)
	s.Cleanup(func() {
		if s.Failed() {
			s.describe()
		}
		s.remove()
	})
}

// remove deletes the namespace and the volumes of the scenario.
func (s *scenario) remove() {
	s.Helper()
	if s.kubectl("get", "namespace", s.namespace, "--ignore-not-found", "-o", "name") != "" {
		s.kubectl("delete", "-n", s.namespace, "mqttclusters,mqttusers", "--all", "--timeout=60s")
		s.kubectl("delete", "namespace", s.namespace, "--timeout=120s")
	}
	if !external {
		s.script("remove-volumes", s.namespace)
	}
}

// describe logs the state of the scenario's objects and the end of the operator's log.
func (s *scenario) describe() {
	for _, args := range [][]string{
		{"get", "-n", s.namespace, "mqttclusters,mqttusers,pods", "-o", "wide"},
		{"describe", "-n", s.namespace, "mqttclusters"},
		{"logs", "-n", systemNamespace, "-l", "app.kubernetes.io/name=covey-operator", "--tail=40"},
	} {
		out, err := try(tool("kubectl", args...))
		if err != nil {
			out += err.Error()
		}
		s.Logf("kubectl %s\n%s", strings.Join(args, " "), out)
	}
}

// Run runs a part of the scenario as a subtest.
func (s *scenario) Run(name string, body func(*scenario)) bool {
	s.Helper()
	return s.T.Run(name, func(t *testing.T) {
		part := *s
		part.T = t
		body(&part)
	})
}

// Errorf is that of testing.T and names the scenario and its namespace, as do the three others.
func (s *scenario) Errorf(format string, args ...any) {
	s.Helper()
	s.T.Errorf("%s in %s: %s", s.Name(), s.namespace, fmt.Sprintf(format, args...))
}

func (s *scenario) Fatalf(format string, args ...any) {
	s.Helper()
	s.T.Fatalf("%s in %s: %s", s.Name(), s.namespace, fmt.Sprintf(format, args...))
}

func (s *scenario) Error(args ...any) {
	s.Helper()
	s.T.Errorf("%s in %s: %s", s.Name(), s.namespace, fmt.Sprint(args...))
}

func (s *scenario) Fatal(args ...any) {
	s.Helper()
	s.T.Fatalf("%s in %s: %s", s.Name(), s.namespace, fmt.Sprint(args...))
}

// eventually polls until `holds` returns nil and returns the time that took. It fails with the last error after `limit`.
func (s *scenario) eventually(limit time.Duration, what string, holds func() error) time.Duration {
	s.Helper()
	begin := time.Now()
	for {
		err := holds()
		passed := time.Since(begin)
		if err == nil {
			return passed
		}
		if passed > limit {
			s.Fatalf("%s: timed out after %v: %v", what, limit, err)
		}
		// Most conditions start a process. Those that take longer are asked for less often.
		pause := 250 * time.Millisecond
		if passed > 10*time.Second {
			pause = time.Second
		}
		time.Sleep(min(pause, limit-passed+time.Millisecond))
	}
}

func (s *scenario) kubectl(args ...string) string {
	s.Helper()
	return s.must(tool("kubectl", args...))
}

// script runs a command of ../cluster and returns its output.
func (s *scenario) script(args ...string) string {
	s.Helper()
	return s.must(clusterScript(args...))
}

// must runs a command that must succeed, and returns its output.
func (s *scenario) must(command *exec.Cmd) string {
	s.Helper()
	out, err := try(command)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// tryApply applies manifests in the scenario's namespace and returns the error of kubectl.
func (s *scenario) tryApply(manifests string) error {
	command := tool("kubectl", "apply", "-n", s.namespace, "-f", "-")
	command.Stdin = strings.NewReader(manifests)
	_, err := try(command)
	return err
}

func (s *scenario) apply(manifests string) {
	s.Helper()
	if err := s.tryApply(manifests); err != nil {
		s.Fatal(err)
	}
}

// patch merges a JSON document into the MqttCluster.
func (s *scenario) patch(document string) {
	s.Helper()
	s.kubectl("patch", "-n", s.namespace, "mqttcluster", s.cluster, "--type=merge", "-p", document)
}

// get returns an object of the scenario's namespace.
func (s *scenario) get(kind, name string) (object, error) {
	return tryGet("-n", s.namespace, kind, name)
}

// list returns objects of the scenario's namespace.
func (s *scenario) list(args ...string) []object {
	s.Helper()
	items, err := tryList(append([]string{"-n", s.namespace}, args...)...)
	if err != nil {
		s.Fatal(err)
	}
	return items
}

// create creates the MqttCluster and waits until it has settled. On a Kubernetes cluster from ../cluster its brokers are on
// three machines of which none is the spare one.
func (s *scenario) create() {
	s.Helper()
	if external {
		s.createWith("")
		return
	}
	spare, others := s.machines()
	if len(others) < 3 {
		s.Fatalf("three machines besides %s are needed", spare)
	}
	s.createOn(others[:3]...)
}

// createOn is create for given machines. Each has one volume for the MqttCluster.
func (s *scenario) createOn(machines ...string) {
	s.Helper()
	s.script(append([]string{"volumes", s.namespace}, machines...)...)
	s.createWith(fmt.Sprintf("  storage: {storageClassName: %s}\n", s.namespace))
}

// createWith creates the MqttCluster with more fields of its spec. What a scenario does to the cluster shall not meet its
// formation.
func (s *scenario) createWith(spec string) {
	s.Helper()
	s.apply(clusterManifest(s.cluster, spec))
	s.eventually(3*time.Minute, "the new cluster settled", func() error { return settled(s) })
}

// machines returns the spare machine, which TestAlerts crashes, and the others. The spare one runs neither the control
// plane nor the operator. The operator keeps its machine while scenarios run side by side.
func (s *scenario) machines() (spare string, others []string) {
	s.Helper()
	var names, avoid []string
	for _, node := range s.list("nodes") {
		names = append(names, node.Metadata.Name)
	}
	slices.Sort(names)
	avoid = append(avoid, controlPlane)
	for _, pod := range s.operatorPods() {
		avoid = append(avoid, pod.Spec.NodeName)
	}
	for _, name := range slices.Backward(names) {
		if spare == "" && !slices.Contains(avoid, name) {
			spare = name
		}
	}
	if spare == "" {
		s.Fatalf("each of the machines %q runs the operator or the control plane", names)
	}
	return spare, slices.DeleteFunc(names, func(name string) bool { return name == spare })
}

// ready returns nil when every node of the cluster is ready.
func (s *scenario) ready() error {
	o, err := s.get("mqttcluster", s.cluster)
	if err != nil {
		return err
	}
	if c := o.condition("Ready"); c.Status != "True" || o.Status.ReadyReplicas != o.Spec.Replicas {
		return fmt.Errorf("Ready=%s (%s: %s), %d/%d", c.Status, c.Reason, c.Message, o.Status.ReadyReplicas, o.Spec.Replicas)
	}
	return nil
}

// ensureReady waits until the cluster is ready.
func (s *scenario) ensureReady() {
	s.Helper()
	s.eventually(3*time.Minute, "the cluster ready", s.ready)
}

// pods returns the broker pods, sorted by name.
func (s *scenario) pods() []object {
	s.Helper()
	return s.list("pods", "-l", "covey.io/cluster="+s.cluster, "--sort-by=.metadata.name")
}

// addresses returns the MQTT address of every broker pod.
func (s *scenario) addresses() []string {
	s.Helper()
	var found []string
	for _, pod := range s.pods() {
		found = append(found, pod.Status.PodIP+":1883")
	}
	return found
}

// serviceAddress returns the MQTT address of the cluster's Service.
func (s *scenario) serviceAddress() string {
	s.Helper()
	service, err := s.get("service", s.cluster)
	if err != nil {
		s.Fatal(err)
	}
	return service.Spec.ClusterIP + ":1883"
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
