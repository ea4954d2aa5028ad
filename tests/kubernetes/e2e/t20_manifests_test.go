package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestBadManifests: each manifest is refused by the API server or reported in a condition, with a helpful message.
func TestBadManifests(t *testing.T) {
	s := newScenario(t, "manifests")
	s.create()
	cluster := func(spec string) string {
		return "apiVersion: covey.io/v1alpha1\nkind: MqttCluster\nmetadata: {name: bad}\nspec: {" + spec + "}\n"
	}
	rule := func(action, topic string) string {
		return fmt.Sprintf("apiVersion: covey.io/v1alpha1\nkind: MqttUser\nmetadata: {name: bad}\nspec: {clusterRef: {name: %s}, acl: [{allow: [%s], topics: [%q]}]}\n",
			s.cluster, action, topic)
	}
	cases := map[string]struct {
		kind, manifest string
		words          []string
	}{
		"zero replicas":      {"mqttcluster", cluster("replicas: 0"), []string{"replicas"}},
		"two replicas":       {"mqttcluster", cluster("replicas: 2"), []string{"replicas", "majority"}},
		"bad quantity":       {"mqttcluster", cluster("storage: {size: lots}"), []string{"size"}},
		"unknown field":      {"mqttcluster", cluster("surprise: 1"), []string{"surprise"}},
		"# not last":         {"mqttuser", rule("Publish", "a/#/b"), []string{"#", "last"}},
		"+ inside a level":   {"mqttuser", rule("Subscribe", "a+/b"), []string{"+", "level"}},
		"$share in publish":  {"mqttuser", rule("Publish", "$share/g/a"), []string{"$share"}},
		"clientId unbounded": {"mqttuser", rule("Publish", "a/{clientId}"), []string{"clientIdPattern"}},
	}
	for what, c := range cases {
		s.Run(what, func(s *scenario) {
			answer := s.tryApply(c.manifest)
			if answer == nil {
				defer s.kubectl("delete", "-n", s.namespace, c.kind, "bad", "--wait")
				s.eventually(20*time.Second, "a condition with the problem", func() error {
					o, err := s.get(c.kind, "bad")
					if err != nil {
						return err
					}
					if r := o.condition("Ready"); r.Status == "False" && r.Message != "" {
						answer = errors.New(r.Message)
						return nil
					}
					return errors.New("no Ready=False with a message")
				})
			}
			s.Log(answer)
			for _, word := range c.words {
				if !strings.Contains(answer.Error(), word) {
					s.Errorf("%q is missing in: %v", word, answer)
				}
			}
		})
	}
	if err := s.ready(); err != nil {
		s.Errorf("the valid cluster is no longer ready: %v", err)
	}
}
