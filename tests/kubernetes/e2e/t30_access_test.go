package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	notAuthenticated = 0x86
	notAuthorized    = 0x87
)

const insider = `  acl:
  - {allow: [Publish, Subscribe], topics: ["inside/#"]}
`

func TestAccess(t *testing.T) {
	ensureReady(t)
	known := user(t, "access", insider)
	service := serviceAddress(t)

	t.Run("no user no entry", func(t *testing.T) {
		for what, who := range map[string]login{
			"anonymous": {}, "unknown user": {"nobody", "x"}, "wrong password": {known.user, "x"}, "no password": {known.user, ""},
		} {
			if got := probe(t, service, who, "-id", "intruder"); got.Connack != notAuthenticated {
				t.Errorf("%s: CONNACK 0x%02x instead of 0x86 (%+v)", what, got.Connack, got)
			}
		}
	})
	t.Run("inside and outside the rules", func(t *testing.T) {
		got := probe(t, service, known, "-id", "a", "-subscribe", "inside/x", "-publish", "inside/x", "-stay", "5s", "-expect", "1")
		if got.Connack != 0 || got.Suback != 1 || got.Puback != 0 || len(got.Received) != 1 {
			t.Errorf("inside: %+v", got)
		}
		got = probe(t, service, known, "-id", "a", "-subscribe", "outside", "-publish", "outside")
		if got.Suback != notAuthorized || got.Puback != notAuthorized {
			t.Errorf("outside: %+v", got)
		}
		if got = probe(t, service, known, "-id", "a", "-subscribe", "#"); got.Suback != notAuthorized {
			t.Errorf("a filter wider than the rule: %+v", got)
		}
	})
	t.Run("a changed rule holds everywhere within 5 s", func(t *testing.T) { changedRule(t, known) })
	t.Run("a deleted user is out", deletedUser)
	t.Run("a broken document changes nothing", func(t *testing.T) { brokenDocument(t, known) })
}

// changedRule adds a topic to the user's rules and removes it again. Every broker must enforce each change within 5 s.
func changedRule(t *testing.T, known login) {
	brokers := addresses(t)
	for _, step := range []struct {
		topics string
		want   int
	}{{`"inside/#", "later"`, 1}, {`"inside/#"`, notAuthorized}} {
		patch := fmt.Sprintf(`{"spec":{"acl":[{"allow":["Publish","Subscribe"],"topics":[%s]}]}}`, step.topics)
		kubectl(t, "patch", "-n", namespace, "mqttuser", "access", "--type=merge", "-p", patch)
		begin := time.Now()
		for _, broker := range brokers {
			eventually(t, 5*time.Second-time.Since(begin), "the rule at "+broker, func() error {
				if got := probe(t, broker, known, "-id", "b", "-subscribe", "later"); got.Suback != step.want {
					return fmt.Errorf("SUBACK 0x%02x instead of 0x%02x", got.Suback, step.want)
				}
				return nil
			})
		}
		t.Logf("%s: on every broker after %v", step.topics, time.Since(begin).Round(10*time.Millisecond))
	}
}

func deletedUser(t *testing.T) {
	gone := user(t, "leaver", insider)
	brokers := addresses(t)
	journal := filepath.Join(t.TempDir(), "leaver.json")
	stays := start(t, journal, append([]string{"probe", "-broker", brokers[1], "-id", "leaver", "-stay", "60s"}, gone.args()...)...)
	eventually(t, 10*time.Second, "the client connected", func() error {
		o, err := get("mqttuser", "leaver")
		if err == nil && probe(t, brokers[0], gone, "-id", "leaver-2").Connack != 0 {
			err = fmt.Errorf("%s cannot connect", o.Metadata.Name)
		}
		return err
	})
	kubectl(t, "delete", "-n", namespace, "mqttuser", "leaver", "--wait")
	begin := time.Now()
	for _, broker := range brokers {
		eventually(t, 5*time.Second-time.Since(begin), "refused at "+broker, func() error {
			if got := probe(t, broker, gone, "-id", "leaver-2"); got.Connack != notAuthenticated {
				return fmt.Errorf("CONNACK 0x%02x", got.Connack)
			}
			return nil
		})
	}
	if err := stays.wait(t, 5*time.Second); err != nil {
		stays.stop(t, syscall.SIGKILL)
		t.Fatalf("the deleted user's client was not closed: %v", err)
	}
}

// brokenDocument puts an invalid document of a higher revision into the access Secret while no operator runs.
func brokenDocument(t *testing.T, known login) {
	name := ensureReady(t)
	scaleOperator(t, 0)
	defer scaleOperator(t, 1)
	secret := accessSecret(t)
	var index map[string]any
	if err := json.Unmarshal([]byte(decode(t, secret.Data["index.json"])), &index); err != nil {
		t.Fatal(err)
	}
	revision, ok := index["revision"].(float64)
	if !ok {
		t.Fatalf("the index has no revision: %v", index)
	}
	part := []byte("these are no users")
	index["revision"], index["parts"] = revision+1000, map[string]string{"users-0.json": fmt.Sprintf("%x", sha256.Sum256(part))}
	text, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := json.Marshal(map[string]any{"data": map[string][]byte{"index.json": text, "users-0.json": part}})
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, "patch", "-n", namespace, "secret", secret.Metadata.Name, "--type=merge", "-p", string(patch))
	eventually(t, 2*time.Minute, "every broker to report that it refused the document", func() error {
		for _, pod := range pods(t) {
			page, err := http(namespace, pod.Metadata.Name, 9464, "/metrics")
			if err != nil {
				return err
			}
			if refused, _ := metric(page, "mqtt_broker_acl_rejected_revision"); refused == 0 {
				return fmt.Errorf("%s: mqtt_broker_acl_rejected_revision is 0", pod.Metadata.Name)
			}
			if log := kubectl(t, "logs", "-n", namespace, pod.Metadata.Name); !strings.Contains(log, fmt.Sprint(int(revision)+1000)) {
				return fmt.Errorf("%s: the log does not name the revision", pod.Metadata.Name)
			}
		}
		return nil
	})
	for _, broker := range addresses(t) {
		if got := probe(t, broker, known, "-id", "c", "-subscribe", "inside/x", "-publish", "outside"); got.Suback != 1 || got.Puback != notAuthorized {
			t.Errorf("%s does not enforce the previous rules: %+v", broker, got)
		}
	}
	scaleOperator(t, 1)
	eventually(t, time.Minute, "MqttAclNotSynced raised", func() error { return eventNamed("MqttAclNotSynced") })
	eventually(t, 2*time.Minute, "MqttAclNotSynced cleared", func() error { return notAlerting(name, "MqttAclNotSynced") })
	ensureReady(t)
}

func accessSecret(t *testing.T) object {
	t.Helper()
	for _, secret := range list(t, "-n", namespace, "secrets") {
		if _, ok := secret.Data["index.json"]; ok {
			return secret
		}
	}
	t.Fatal("no Secret has an access document")
	return object{}
}

// eventNamed returns nil if an Event names the alert.
func eventNamed(alert string) error {
	out, err := try(tool("kubectl", "get", "-n", namespace, "events", "-o", `jsonpath={range .items[*]}{.reason} {.message}{"\n"}{end}`))
	if err == nil && !strings.Contains(out, alert) {
		err = errors.New("no Event names " + alert)
	}
	return err
}

// alerting returns nil if the cluster's status lists the alert and condition Alerting is True.
func alerting(name, alert string) error {
	o, err := get("mqttcluster", name)
	if err != nil {
		return err
	}
	for _, a := range o.Status.Alerts {
		if a.Name == alert {
			if c := o.condition("Alerting"); c.Status != "True" {
				return fmt.Errorf("%s is listed, but Alerting is %s", alert, c.Status)
			}
			return nil
		}
	}
	return fmt.Errorf("%s is not in status.alerts: %v", alert, o.Status.Alerts)
}

// notAlerting returns nil if the cluster's status does not list the alert.
func notAlerting(name, alert string) error {
	o, err := get("mqttcluster", name)
	if err != nil {
		return err
	}
	for _, a := range o.Status.Alerts {
		if a.Name == alert {
			return fmt.Errorf("%s is still in status.alerts", alert)
		}
	}
	return nil
}
