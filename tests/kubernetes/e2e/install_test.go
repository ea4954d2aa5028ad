package e2e

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// chartInstalled is whether a scenario of this run has installed the chart and none has removed it.
var chartInstalled struct {
	sync.Mutex
	done bool
}

// installed installs the chart unless a scenario has done so. Scenarios can call it at the same time.
func (s *scenario) installed() {
	s.Helper()
	chartInstalled.Lock()
	defer chartInstalled.Unlock()
	if chartInstalled.done {
		return
	}
	if !s.systemNamespaceExists() {
		s.kubectl("create", "namespace", systemNamespace)
		before = s.inventory()
	}
	s.install()
	chartInstalled.done = true
}

func (s *scenario) systemNamespaceExists() bool {
	s.Helper()
	return s.kubectl("get", "namespace", systemNamespace, "--ignore-not-found", "-o", "name") != ""
}

// operatorPods returns the running pods of the operator.
func (s *scenario) operatorPods() []object {
	s.Helper()
	items, err := tryList("-n", systemNamespace, "pods", "--field-selector=status.phase=Running")
	if err != nil {
		s.Fatal(err)
	}
	return items
}

// scaleOperator sets the number of operator pods and waits until exactly these exist and are available. It disturbs every
// scenario that runs beside this one, unless the number stays 1.
func (s *scenario) scaleOperator(replicas int) {
	s.Helper()
	s.kubectl("-n", systemNamespace, "scale", "deployment", "--all", fmt.Sprintf("--replicas=%d", replicas))
	s.eventually(time.Minute, "the operator scaled", func() error {
		all, err := tryList("-n", systemNamespace, "pods")
		if err != nil || len(all) != replicas {
			return errors.Join(err, fmt.Errorf("%d pods instead of %d", len(all), replicas))
		}
		return nil
	})
	if replicas > 0 {
		s.kubectl("-n", systemNamespace, "wait", "deployment", "--all", "--for=condition=Available", "--timeout=60s")
	}
}

// install installs the chart, with the image of COVEY_TEST_IMAGE if it is set.
func (s *scenario) install() {
	s.Helper()
	// Scenarios that run side by side roll out their changes independently.
	args := []string{"upgrade", "--install", release, chart, "-n", systemNamespace, "--wait", "--timeout", "2m",
		"--set", "maxRollingClusters=4"}
	if image := os.Getenv("COVEY_TEST_IMAGE"); image != "" {
		repository, tag := splitImage(image)
		args = append(args, "--set", "image.repository="+repository, "--set-string", "image.tag="+tag)
	}
	if _, err := try(tool("helm", args...)); err != nil {
		s.Fatal(errors.Join(err, fmt.Errorf("%s", s.kubectl("-n", systemNamespace, "describe", "pods"))))
	}
}

// quickstartManifest returns the example, with the image of COVEY_TEST_IMAGE if it is set.
func (s *scenario) quickstartManifest() string {
	s.Helper()
	text, err := os.ReadFile(quickstart)
	if err != nil {
		s.Fatal(err)
	}
	manifest := string(text)
	if image := os.Getenv("COVEY_TEST_IMAGE"); image != "" {
		repository, tag := splitImage(image)
		at := strings.Index(manifest, "kind: MqttCluster")
		spec := strings.Index(manifest[at:], "\nspec:\n")
		if at < 0 || spec < 0 {
			s.Fatal("the quickstart has no MqttCluster with a spec")
		}
		at += spec + len("\nspec:\n")
		manifest = manifest[:at] + fmt.Sprintf("  image: {repository: %q, tag: %q}\n", repository, tag) + manifest[at:]
	}
	return manifest
}

func splitImage(image string) (repository, tag string) {
	at := strings.LastIndex(image, ":")
	if at < strings.LastIndex(image, "/") {
		return image, "latest"
	}
	return image[:at], image[at+1:]
}

func (s *scenario) decode(text string) string {
	s.Helper()
	plain, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		s.Fatal(err)
	}
	return string(plain)
}

// before is the inventory of the Kubernetes cluster before Covey was installed, nil if that was not in this run.
var before []string

// inventory returns kind, namespace and name of every object, except of kinds whose objects change by themselves.
func (s *scenario) inventory() []string {
	s.Helper()
	passing := []string{"events", "leases", "endpoints", "endpointslices", "componentstatuses", "pods.metrics", "nodes.metrics", "replicasets", "controllerrevisions"}
	var names []string
	for _, namespaced := range []string{"true", "false"} {
		kinds := strings.Fields(s.kubectl("api-resources", "--verbs=list", "--namespaced="+namespaced, "-o", "name"))
		kinds = slices.DeleteFunc(kinds, func(kind string) bool {
			return slices.ContainsFunc(passing, func(p string) bool { return kind == p || strings.HasPrefix(kind, p+".") })
		})
		out := s.kubectl("get", strings.Join(kinds, ","), "-A", "--ignore-not-found", "--show-kind", "--no-headers",
			"-o", "custom-columns=K:.kind,NS:.metadata.namespace,N:.metadata.name")
		for line := range strings.Lines(out) {
			names = append(names, strings.Join(strings.Fields(line), " "))
		}
	}
	slices.Sort(names)
	return names
}
