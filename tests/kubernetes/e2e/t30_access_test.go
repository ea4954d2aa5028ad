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
	s := newScenario(t, "access")
	s.create()
	known := s.user("access", insider)
	service := s.serviceAddress()

	s.Run("no user no entry", func(s *scenario) {
		for what, who := range map[string]login{
			"anonymous": {}, "unknown user": {"nobody", "x"}, "wrong password": {known.user, "x"}, "no password": {known.user, ""},
		} {
			if got := s.probe(service, who, "-id", "intruder"); got.Connack != notAuthenticated {
				s.Errorf("%s: CONNACK 0x%02x instead of 0x86 (%+v)", what, got.Connack, got)
			}
		}
	})
	s.Run("inside and outside the rules", func(s *scenario) {
		got := s.probe(service, known, "-id", "a", "-subscribe", "inside/x", "-publish", "inside/x", "-stay", "5s", "-expect", "1")
		if got.Connack != 0 || got.Suback != 1 || got.Puback != 0 || len(got.Received) != 1 {
			s.Errorf("inside: %+v", got)
		}
		got = s.probe(service, known, "-id", "a", "-subscribe", "outside", "-publish", "outside")
		if got.Suback != notAuthorized || got.Puback != notAuthorized {
			s.Errorf("outside: %+v", got)
		}
		if got = s.probe(service, known, "-id", "a", "-subscribe", "#"); got.Suback != notAuthorized {
			s.Errorf("a filter wider than the rule: %+v", got)
		}
	})
	s.Run("a changed rule holds everywhere within 5 s", func(s *scenario) { changedRule(s, known) })
	s.Run("a deleted user is out", deletedUser)
	s.alone()
	s.Run("a broken document changes nothing", func(s *scenario) { brokenDocument(s, known) })
}

// changedRule adds a topic to the user's rules and removes it again. Every broker must enforce each change within 5 s.
func changedRule(s *scenario, known login) {
	brokers := s.addresses()
	for _, step := range []struct {
		topics string
		want   int
	}{{`"inside/#", "later"`, 1}, {`"inside/#"`, notAuthorized}} {
		patch := fmt.Sprintf(`{"spec":{"acl":[{"allow":["Publish","Subscribe"],"topics":[%s]}]}}`, step.topics)
		s.kubectl("patch", "-n", s.namespace, "mqttuser", "access", "--type=merge", "-p", patch)
		begin := time.Now()
		for _, broker := range brokers {
			s.eventually(5*time.Second-time.Since(begin), "the rule at "+broker, func() error {
				if got := s.probe(broker, known, "-id", "b", "-subscribe", "later"); got.Suback != step.want {
					return fmt.Errorf("SUBACK 0x%02x instead of 0x%02x", got.Suback, step.want)
				}
				return nil
			})
		}
		s.Logf("%s: on every broker after %v", step.topics, time.Since(begin).Round(10*time.Millisecond))
	}
}

func deletedUser(s *scenario) {
	gone := s.user("leaver", insider)
	brokers := s.addresses()
	journal := filepath.Join(s.TempDir(), "leaver.json")
	stays := s.start(journal, gone.client("probe", "-broker", brokers[1], "-id", "leaver", "-stay", "60s")...)
	s.eventually(10*time.Second, "the client connected", func() error {
		o, err := s.get("mqttuser", "leaver")
		if err == nil && s.probe(brokers[0], gone, "-id", "leaver-2").Connack != 0 {
			err = fmt.Errorf("%s cannot connect", o.Metadata.Name)
		}
		return err
	})
	s.kubectl("delete", "-n", s.namespace, "mqttuser", "leaver", "--wait")
	begin := time.Now()
	for _, broker := range brokers {
		s.eventually(5*time.Second-time.Since(begin), "refused at "+broker, func() error {
			if got := s.probe(broker, gone, "-id", "leaver-2"); got.Connack != notAuthenticated {
				return fmt.Errorf("CONNACK 0x%02x", got.Connack)
			}
			return nil
		})
	}
	if err := stays.wait(5 * time.Second); err != nil {
		stays.stop(s, syscall.SIGKILL)
		s.Fatalf("the deleted user's client was not closed: %v", err)
	}
}

// brokenDocument puts an invalid document of a higher revision into the access Secret while no operator runs.
func brokenDocument(s *scenario, known login) {
	s.ensureReady()
	s.scaleOperator(0)
	defer s.scaleOperator(1)
	secret := s.accessSecret()
	var index map[string]any
	if err := json.Unmarshal([]byte(s.decode(secret.Data["index.json"])), &index); err != nil {
		s.Fatal(err)
	}
	revision, ok := index["revision"].(float64)
	if !ok {
		s.Fatalf("the index has no revision: %v", index)
	}
	part := []byte("these are no users")
	index["revision"], index["parts"] = revision+1000, map[string]string{"users-0.json": fmt.Sprintf("%x", sha256.Sum256(part))}
	text, err := json.Marshal(index)
	if err != nil {
		s.Fatal(err)
	}
	patch, err := json.Marshal(map[string]any{"data": map[string][]byte{"index.json": text, "users-0.json": part}})
	if err != nil {
		s.Fatal(err)
	}
	s.kubectl("patch", "-n", s.namespace, "secret", secret.Metadata.Name, "--type=merge", "-p", string(patch))
	s.eventually(2*time.Minute, "every broker to report that it refused the document", func() error {
		for _, pod := range s.pods() {
			page, err := http(s.namespace, pod.Metadata.Name, 9464, "/metrics")
			if err != nil {
				return err
			}
			if refused, _ := metric(page, "mqtt_broker_acl_rejected_revision"); refused == 0 {
				return fmt.Errorf("%s: mqtt_broker_acl_rejected_revision is 0", pod.Metadata.Name)
			}
			if log := s.kubectl("logs", "-n", s.namespace, pod.Metadata.Name); !strings.Contains(log, fmt.Sprint(int(revision)+1000)) {
				return fmt.Errorf("%s: the log does not name the revision", pod.Metadata.Name)
			}
		}
		return nil
	})
	for _, broker := range s.addresses() {
		if got := s.probe(broker, known, "-id", "c", "-subscribe", "inside/x", "-publish", "outside"); got.Suback != 1 || got.Puback != notAuthorized {
			s.Errorf("%s does not enforce the previous rules: %+v", broker, got)
		}
	}
	s.scaleOperator(1)
	s.eventually(time.Minute, "MqttAclNotSynced raised", func() error { return s.eventNamed("MqttAclNotSynced") })
	s.eventually(2*time.Minute, "MqttAclNotSynced cleared", func() error { return s.notAlerting("MqttAclNotSynced") })
	s.ensureReady()
}

func (s *scenario) accessSecret() object {
	s.Helper()
	for _, secret := range s.list("secrets") {
		if _, ok := secret.Data["index.json"]; ok {
			return secret
		}
	}
	s.Fatal("no Secret has an access document")
	return object{}
}

// eventNamed returns nil if an Event names the alert.
func (s *scenario) eventNamed(alert string) error {
	out, err := try(tool("kubectl", "get", "-n", s.namespace, "events", "-o", `jsonpath={range .items[*]}{.reason} {.message}{"\n"}{end}`))
	if err == nil && !strings.Contains(out, alert) {
		err = errors.New("no Event names " + alert)
	}
	return err
}

// alerting returns nil if the cluster's status lists the alert and condition Alerting is True.
func (s *scenario) alerting(alert string) error {
	o, err := s.get("mqttcluster", s.cluster)
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
func (s *scenario) notAlerting(alert string) error {
	o, err := s.get("mqttcluster", s.cluster)
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
