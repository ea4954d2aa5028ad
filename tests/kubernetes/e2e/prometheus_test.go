package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const prometheusURL = "http://127.0.0.1:9090"

// prometheus starts a Prometheus in the network of node0 that scrapes the scenario's cluster and the operator and
// evaluates the chart's rules. It returns a function that queries it and returns the number of series of an expression.
// The operator's metrics include those of the clusters of other scenarios. Only one scenario may use it: its port is fixed.
func (s *scenario) prometheus() func(expression string) (int, error) {
	s.Helper()
	bin := strings.TrimSpace(s.must(exec.Command("../prometheus")))
	dir := s.TempDir()
	rules := ""
	for _, o := range s.systemConfigMaps() {
		if text, ok := o.Data["rules.yml"]; ok {
			rules = text
		}
	}
	if rules == "" {
		s.Fatal("the chart installed no ConfigMap with rules.yml")
	}
	config, err := os.ReadFile("testdata/prometheus.yml")
	if err != nil {
		s.Fatal(err)
	}
	files := map[string]string{
		"rules.yml":      rules,
		"prometheus.yml": strings.NewReplacer("KUBECONFIG", kubeconfig(), "RULES", filepath.Join(dir, "rules.yml"), "NAMESPACE", s.namespace).Replace(string(config)),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			s.Fatal(err)
		}
	}
	server := inCluster(filepath.Join(bin, "prometheus"), "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:9090", "--log.level=error")
	server.Stdout, server.Stderr = os.Stderr, os.Stderr
	if err := server.Start(); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	return func(expression string) (int, error) {
		out, err := try(inCluster(filepath.Join(bin, "promtool"), "query", "instant", "-o", "json", prometheusURL, expression))
		if err != nil {
			return 0, err
		}
		var series []any
		if err := json.Unmarshal([]byte(out), &series); err != nil {
			return 0, fmt.Errorf("%w: %s", err, out)
		}
		return len(series), nil
	}
}

// systemConfigMaps returns ConfigMaps that the chart installed.
func (s *scenario) systemConfigMaps(args ...string) []object {
	s.Helper()
	items, err := tryList(append([]string{"-n", systemNamespace, "configmaps"}, args...)...)
	if err != nil {
		s.Fatal(err)
	}
	return items
}

// panel is a dashboard's panel, or a row of panels.
type panel struct {
	Title   string
	Panels  []panel
	Targets []struct{ Expr string }
}

// panelQueries returns the expressions of all dashboards of the chart by "dashboard: panel", with variables replaced.
func (s *scenario) panelQueries() map[string][]string {
	s.Helper()
	queries := map[string][]string{}
	for _, o := range s.systemConfigMaps("-l", "grafana_dashboard=1") {
		for _, text := range o.Data {
			var dashboard struct {
				Title      string
				Panels     []panel
				Templating struct {
					List []struct{ Name, Type string }
				}
			}
			if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
				s.Fatalf("%s: %v", o.Metadata.Name, err)
			}
			values := map[string]string{"__rate_interval": "1m", "__interval": "30s", "__range": "10m"}
			for _, v := range dashboard.Templating.List {
				switch {
				case strings.Contains(v.Name, "namespace"):
					values[v.Name] = s.namespace
				case strings.Contains(v.Name, "cluster"):
					values[v.Name] = s.cluster
				default:
					values[v.Name] = ".*"
				}
			}
			collect(dashboard.Title, dashboard.Panels, values, queries)
		}
	}
	return queries
}

var variable = regexp.MustCompile(`\$\{(\w+)(?::\w+)?\}|\$(\w+)`)

func collect(dashboard string, panels []panel, values map[string]string, into map[string][]string) {
	for _, p := range panels {
		collect(dashboard, p.Panels, values, into)
		for _, target := range p.Targets {
			expression := variable.ReplaceAllStringFunc(target.Expr, func(found string) string {
				name := variable.FindStringSubmatch(found)
				return values[name[1]+name[2]]
			})
			if expression != "" {
				into[dashboard+": "+p.Title] = append(into[dashboard+": "+p.Title], expression)
			}
		}
	}
}

// TestVariablesAreFilledIn checks that the panel check runs the same queries as the panels.
func TestVariablesAreFilledIn(t *testing.T) {
	queries := map[string][]string{}
	collect("d", []panel{{Title: "row", Panels: []panel{{Title: "p", Targets: []struct{ Expr string }{
		{`rate(x{namespace="$namespace", c=~"${cluster:regex}"}[$__rate_interval])`},
	}}}}}, map[string]string{"namespace": "n", "cluster": "c", "__rate_interval": "1m"}, queries)
	if got := queries["d: p"]; len(got) != 1 || got[0] != `rate(x{namespace="n", c=~"c"}[1m])` {
		t.Fatal(got)
	}
}

// answersAll returns nil if every query yields data.
func answersAll(queries map[string][]string, ask func(string) (int, error)) error {
	var empty []string
	for title, expressions := range queries {
		for _, expression := range expressions {
			if count, err := ask(expression); err != nil || count == 0 {
				empty = append(empty, fmt.Sprintf("%s: %s (%v)", title, expression, err))
			}
		}
	}
	if len(empty) > 0 {
		return fmt.Errorf("%d of the panels' queries have no data:\n%s", len(empty), strings.Join(empty, "\n"))
	}
	return nil
}

// series waits until an expression yields at least `least` series, and returns how long that took.
func (s *scenario) series(ask func(string) (int, error), limit time.Duration, expression string, least int) time.Duration {
	s.Helper()
	return s.eventually(limit, expression, func() error {
		count, err := ask(expression)
		if err == nil && count < least {
			err = fmt.Errorf("%d series", count)
		}
		return err
	})
}
