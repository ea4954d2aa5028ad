package e2e

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestQuickstart: after helm install and kubectl apply the cluster is ready within a minute, and reconciles are no-ops.
func TestQuickstart(t *testing.T) {
	if items, err := tryList("-n", namespace, "mqttclusters"); err == nil && len(items) > 0 {
		t.Fatal("an MqttCluster exists already: run this test on a fresh Kubernetes cluster")
	}
	for _, ns := range []string{systemNamespace, namespace} {
		kubectl(t, "create", "namespace", ns)
	}
	before = inventory(t)
	install(t)
	manifest := quickstartManifest(t)
	mustApply(t, manifest)
	took := eventually(t, 60*time.Second, "3/3 ready", ready)
	t.Logf("ready after %v", took.Round(time.Second))

	t.Run("columns", func(t *testing.T) {
		for kind, want := range map[string]string{
			"mqc": "NAME READY QUORUM CONNS SESSIONS ACLREV ROLLOUT ALERTS VERSION AGE",
			"mqu": "NAME CLUSTER READY SYNCED CLIENTS AGE",
		} {
			table := kubectl(t, "get", "-n", namespace, kind)
			header, rows, _ := strings.Cut(table, "\n")
			if got := strings.Join(strings.Fields(header), " "); got != want {
				t.Errorf("kubectl get %s prints %q instead of %q", kind, got, want)
			}
			if !strings.Contains(rows, "3/3") {
				t.Errorf("kubectl get %s shows no 3/3:\n%s", kind, table)
			}
		}
	})
	t.Run("users are ready", func(t *testing.T) {
		for _, u := range list(t, "-n", namespace, "mqttusers") {
			eventually(t, 20*time.Second, u.Metadata.Name, func() error {
				o, err := get("mqttuser", u.Metadata.Name)
				if err == nil && (o.condition("Ready").Status != "True" || o.Status.SyncedNodes != "3/3") {
					err = fmt.Errorf("Ready=%+v, synced %s", o.condition("Ready"), o.Status.SyncedNodes)
				}
				return err
			})
		}
	})
	t.Run("ten reconciles change nothing", tenReconciles)
}

// tenReconciles triggers ten reconciles by annotating the resource, and checks that no child changes.
func tenReconciles(t *testing.T) {
	name := ensureReady(t)
	owner, err := get("mqttcluster", name)
	if err != nil {
		t.Fatal(err)
	}
	reconciles := func() float64 {
		total := 0.0
		for _, pod := range operatorPods(t) {
			page, err := http(systemNamespace, pod.Metadata.Name, 9465, "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			count, found := metric(page, "mqtt_operator_reconcile_total")
			if !found {
				t.Fatal("the operator has no metric mqtt_operator_reconcile_total")
			}
			total += count
		}
		return total
	}
	versions := children(t, owner.Metadata.UID)
	if len(versions) < 5 {
		t.Fatalf("only %d children: %v", len(versions), versions)
	}
	begin, touch := reconciles(), 0
	eventually(t, time.Minute, "ten reconciles", func() error {
		touch++
		kubectl(t, "annotate", "-n", namespace, "mqttcluster", name, "--overwrite", fmt.Sprintf("covey.io/e2e=%d", touch))
		if done := reconciles() - begin; done < 10 {
			return fmt.Errorf("%v so far", done)
		}
		return nil
	})
	if after := children(t, owner.Metadata.UID); !maps.Equal(versions, after) {
		t.Fatalf("children changed:\n%v\n%v", versions, after)
	}
}

// children returns the resource versions of all objects that the cluster owns.
func children(t *testing.T, uid string) map[string]string {
	t.Helper()
	kinds := "configmaps,secrets,services,statefulsets,poddisruptionbudgets,networkpolicies,serviceaccounts"
	versions := map[string]string{}
	for _, o := range list(t, "-n", namespace, kinds) {
		for _, owner := range o.Metadata.OwnerReferences {
			if owner.UID == uid {
				versions[o.Kind+"/"+o.Metadata.Name] = o.Metadata.ResourceVersion
			}
		}
	}
	return versions
}

// install installs the chart, with the image of COVEY_TEST_IMAGE if it is set.
func install(t *testing.T) {
	t.Helper()
	args := []string{"upgrade", "--install", release, chart, "-n", systemNamespace, "--wait", "--timeout", "2m"}
	if image := os.Getenv("COVEY_TEST_IMAGE"); image != "" {
		repository, tag := splitImage(image)
		args = append(args, "--set", "image.repository="+repository, "--set-string", "image.tag="+tag)
	}
	if _, err := try(tool("helm", args...)); err != nil {
		t.Fatal(errors.Join(err, fmt.Errorf("%s", kubectl(t, "-n", systemNamespace, "describe", "pods"))))
	}
}

// quickstartManifest returns the example, with the image of COVEY_TEST_IMAGE if it is set.
func quickstartManifest(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(quickstart)
	if err != nil {
		t.Fatal(err)
	}
	manifest := string(text)
	if image := os.Getenv("COVEY_TEST_IMAGE"); image != "" {
		repository, tag := splitImage(image)
		at := strings.Index(manifest, "kind: MqttCluster")
		spec := strings.Index(manifest[at:], "\nspec:\n")
		if at < 0 || spec < 0 {
			t.Fatal("the quickstart has no MqttCluster with a spec")
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

func decode(t *testing.T, text string) string {
	t.Helper()
	plain, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(plain)
}

// before is the inventory of the Kubernetes cluster before Covey was installed.
var before []string

// inventory returns kind, namespace and name of every object, except of kinds whose objects change by themselves.
func inventory(t *testing.T) []string {
	t.Helper()
	passing := []string{"events", "leases", "endpoints", "endpointslices", "componentstatuses", "pods.metrics", "nodes.metrics", "replicasets", "controllerrevisions"}
	var names []string
	for _, namespaced := range []string{"true", "false"} {
		kinds := strings.Fields(kubectl(t, "api-resources", "--verbs=list", "--namespaced="+namespaced, "-o", "name"))
		kinds = slices.DeleteFunc(kinds, func(kind string) bool {
			return slices.ContainsFunc(passing, func(p string) bool { return kind == p || strings.HasPrefix(kind, p+".") })
		})
		out := kubectl(t, "get", strings.Join(kinds, ","), "-A", "--ignore-not-found", "--show-kind", "--no-headers",
			"-o", "custom-columns=K:.kind,NS:.metadata.namespace,N:.metadata.name")
		for line := range strings.Lines(out) {
			names = append(names, strings.Join(strings.Fields(line), " "))
		}
	}
	slices.Sort(names)
	return names
}
