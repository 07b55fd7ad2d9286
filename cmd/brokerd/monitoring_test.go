package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/proxy"
)

// exposes lists what the daemon can expose, and each one's labels.
func exposes(t *testing.T) map[string][]string {
	t.Helper()
	log, err := audit.Open(audit.Config{Anchor: "none"}, audit.Options{Dir: filepath.Join(t.TempDir(), "audit")})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{broker: broker.New(broker.Options{Audit: log, Clock: clock.System{}}), proxy: proxy.New(proxy.Options{})}
	own, _ := s.gatherers()
	descs := make(chan *prometheus.Desc, 100)
	own.(*prometheus.Registry).Describe(descs)
	close(descs)
	desc := regexp.MustCompile(`fqName: "([a-z_]+)".*constLabels: {(.*)}, variableLabels: {(.*)}}`)
	all := map[string][]string{}
	for d := range descs {
		m := desc.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("unread: %s", d)
		}
		labels := []string{"instance", "job"}
		for l := range strings.SplitSeq(m[2]+","+m[3], ",") {
			name, _, _ := strings.Cut(l, "=")
			labels = append(labels, name)
		}
		all[m[1]] = labels
		if strings.HasSuffix(m[1], "_duration_seconds") {
			all[m[1]+"_bucket"], all[m[1]+"_sum"], all[m[1]+"_count"] = append(labels, "le"), labels, labels
		}
	}
	return all
}

// A promQL reads as much of an expression as tells whether it can ever find
// anything. That it can be parsed is shown by promtool, in the integration
// suite.
type promQL struct {
	text, selector, word, by *regexp.Regexp
}

func newPromQL() promQL {
	return promQL{regexp.MustCompile(`"[^"]*"`), regexp.MustCompile(`([a-z_]*)\{([^}]*)\}`), regexp.MustCompile(`[A-Za-z_]\w*`),
		regexp.MustCompile(`\b(?:by|on|without|ignoring) \(([^)]*)\)`)}
}

// check says what is wrong with an expression, given what there is.
func (q promQL) check(expr string, known map[string][]string) (wrong []string) {
	words := []string{"absent", "and", "by", "count", "histogram_quantile", "increase", "max", "min", "on", "or", "rate", "sum", "time", "unless"}
	expr = regexp.MustCompile(`\[[^\]]*\]`).ReplaceAllString(q.text.ReplaceAllString(expr, ""), "")
	var may []string // labels of what is in the expression
	for _, name := range q.word.FindAllString(expr, -1) {
		may = append(may, known[name]...)
	}
	for _, m := range q.selector.FindAllStringSubmatch(expr, -1) {
		for _, l := range q.word.FindAllString(m[2], -1) {
			if !slices.Contains(known[m[1]], l) {
				wrong = append(wrong, m[1]+" has no label "+l)
			}
		}
	}
	for _, m := range q.by.FindAllStringSubmatch(expr, -1) {
		for _, l := range q.word.FindAllString(m[1], -1) {
			if !slices.Contains(may, l) {
				wrong = append(wrong, "there is no label "+l)
			}
		}
	}
	expr = q.by.ReplaceAllString(q.selector.ReplaceAllString(expr, "$1 "), "by ")
	found := false
	for _, name := range q.word.FindAllString(expr, -1) {
		_, ok := known[name]
		found = found || ok
		if !ok && !slices.Contains(words, name) {
			wrong = append(wrong, "there is no "+name)
		}
	}
	if !found {
		wrong = append(wrong, "it names no metric")
	}
	if strings.Count(expr, "(") != strings.Count(expr, ")") {
		wrong = append(wrong, "brackets")
	}
	return wrong
}

type alertRules struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Expr, For string
			Labels           struct{ Severity string }
			Annotations      struct{ Summary, Description string }
		}
	}
}

func monitoring(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "configs", "monitoring", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func page(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "monitoring.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestAlertRules: each alert asks for what the daemon exposes, says whom and
// what it is about, and has its line in the page and its case in the tests.
func TestAlertRules(t *testing.T) {
	known, q := exposes(t), newPromQL()
	var r alertRules
	if err := yaml.UnmarshalWithOptions(monitoring(t, "rules.yaml"), &r, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	text, cases, seen := page(t), string(monitoring(t, "rules_test.yaml")), map[string]bool{}
	label := regexp.MustCompile(`\$labels\.(\w+)`)
	for _, a := range r.Groups[0].Rules {
		for _, wrong := range q.check(a.Expr, known) {
			t.Errorf("%s: %s: %s", a.Alert, a.Expr, wrong)
		}
		if a.Labels.Severity != "critical" && a.Labels.Severity != "warning" || a.Annotations.Summary == "" || a.Annotations.Description == "" || seen[a.Alert] {
			t.Errorf("%+v", a)
		}
		for _, m := range label.FindAllStringSubmatch(a.Annotations.Summary+a.Annotations.Description, -1) {
			if !slices.ContainsFunc(q.word.FindAllString(a.Expr, -1), func(name string) bool { return slices.Contains(known[name], m[1]) }) {
				t.Errorf("%s speaks of a label %s, which it has not", a.Alert, m[1])
			}
		}
		if !strings.Contains(text, "`"+strings.TrimPrefix(a.Alert, "CredentialBroker")+"`") {
			t.Errorf("docs/monitoring.md does not name %s", a.Alert)
		}
		if !strings.Contains(cases, `alertname="`+a.Alert+`"`) {
			t.Errorf("rules_test.yaml has no case of %s", a.Alert)
		}
		seen[a.Alert] = true
	}
	if len(seen) < 20 {
		t.Errorf("%d alerts", len(seen))
	}
	for name := range known {
		if short := strings.TrimPrefix(name, "credential_broker_"); !strings.Contains(text, "`"+short+"`") && !strings.Contains(short, "duration_seconds_") {
			t.Errorf("docs/monitoring.md does not name %s", name)
		}
	}
}

// TestBoard: every panel has an id of its own, lies on the board, and asks for
// what the daemon exposes.
func TestBoard(t *testing.T) {
	known, q := exposes(t), newPromQL()
	var board struct {
		UID, Title string
		Templating struct {
			List []struct {
				Name  string
				Query any
			}
		}
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ H, W, X, Y int }
			Targets []struct{ Expr, RefID string }
		}
	}
	raw := monitoring(t, "dashboard.json")
	if err := json.Unmarshal(raw, &board); err != nil {
		t.Fatal(err)
	}
	vars := []string{"__rate_interval", "__all"}
	for _, v := range board.Templating.List {
		vars = append(vars, v.Name)
		m, ok := v.Query.(map[string]any)
		if !ok {
			continue
		}
		inner, ok := strings.CutPrefix(m["query"].(string), "label_values(")
		metric, label, _ := strings.Cut(strings.TrimSuffix(inner, ")"), ", ")
		if !ok || !slices.Contains(known[metric], label) {
			t.Errorf("variable %s: %v", v.Name, v.Query)
		}
	}
	for _, m := range regexp.MustCompile(`\$\{?(\w+)`).FindAllSubmatch(raw, -1) {
		if !slices.Contains(vars, string(m[1])) {
			t.Errorf("no variable is called %s", m[1])
		}
	}
	seen, place := map[int]string{}, map[[2]int]string{}
	for _, p := range board.Panels {
		if p.ID == 0 || seen[p.ID] != "" || p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("panel %+v", p)
		}
		seen[p.ID] = p.Title
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := place[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%q does not lie beside %q", p.Title, other)
				}
				place[[2]int{x, y}] = p.Title
			}
		}
		for _, target := range p.Targets {
			for _, wrong := range q.check(target.Expr, known) {
				t.Errorf("panel %q: %s: %s", p.Title, target.Expr, wrong)
			}
		}
	}
	if board.UID == "" || len(board.Panels) < 10 {
		t.Errorf("%q, %d panels", board.UID, len(board.Panels))
	}
}

// TestPromQLCheckFinds holds the check itself against mistakes.
func TestPromQLCheckFinds(t *testing.T) {
	known := map[string][]string{"a_total": {"client"}, "b": {"client", "instance"}}
	for expr, want := range map[string]string{
		`sum by (client) (rate(a_total{client=~"x|y"}[5m])) > 0`: "",
		`b == 1 and on (client) a_total`:                         "",
		`rate(a_totl[5m])`:                                       "there is no a_totl it names no metric",
		`a_total{instance="x"}`:                                  "a_total has no label instance",
		`sum by (who) (b)`:                                       "there is no label who",
		`rates(b)`:                                               "there is no rates",
		`sum(b`:                                                  "brackets",
		`time() > 1`:                                             "it names no metric",
	} {
		if got := strings.Join(newPromQL().check(expr, known), " "); got != want {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}
