//go:build real

// Package monitoring has Prometheus read what the daemon exposes, and judge
// the alert rules and the board that ship.
package monitoring

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/real"
)

const server = "Prometheus and promtool (Debian)"

func promtool(t *testing.T, input string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), real.Path("prometheus", "usr", "bin", "promtool"), args...)
	cmd.Stdin = strings.NewReader(input)
	return real.Must(t, cmd)
}

func shipped(name string) string { return filepath.Join(real.Root(), "configs", "monitoring", name) }

func TestRulesAndBoard(t *testing.T) {
	real.Row(t, "monitoring", server, "alert rules: they parse, and each one fires when it should; the board's queries parse")
	promtool(t, "", "check", "rules", "--lint-fatal", shipped("rules.yaml"))
	promtool(t, "", "test", "rules", shipped("rules_test.yaml"))

	// The board's queries as rules, with Grafana's variables filled in.
	text, err := os.ReadFile(shipped("dashboard.json"))
	var board struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err = errors.Join(err, json.Unmarshal(text, &board)); err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("$__rate_interval", "5m", "$client", ".*", "$instance", ".*")
	var rules []map[string]string
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			rules = append(rules, map[string]string{"record": fmt.Sprintf("board:%d", len(rules)), "expr": fill.Replace(target.Expr)})
		}
	}
	b, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "board", "rules": rules}}})
	file := filepath.Join(t.TempDir(), "board.yaml") // JSON is YAML
	if err = errors.Join(err, os.WriteFile(file, b, 0o600)); err != nil {
		t.Fatal(err)
	}
	if out := promtool(t, "", "check", "rules", file); len(rules) < 15 || !strings.Contains(out, fmt.Sprintf("%d rules found", len(rules))) {
		t.Errorf("%d queries: %s", len(rules), out)
	}
}

func TestScrape(t *testing.T) {
	real.Row(t, "monitoring", server, "scrapes the daemon's loopback listener and its textfile's content; the rules see a client that cannot be served")
	dir, metrics, web := t.TempDir(), real.FreeAddr(t), real.FreeAddr(t)
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("credentials/vdab", `{"client_id":"id","client_secret":"canary-3f9d2e","api_key":"canary-71b2d9"}`)
	config := write("broker.yaml", fmt.Sprintf(`providers: { unit: { systemd: {} } }
clients:
  vdab:
    preset: vdab-test
    token_endpoint: https://%s/token   # where nobody is
    secret: { provider: unit, path: vdab }
    owner: { contact: you@example.org, purpose: test }
    rotation: { max_age: 365d }
    keep_warm: true
    allow: [{ user: root }]
audit: { anchor: none }
metrics: { listen: '%s', textfile: %s/broker.prom }
`, real.FreeAddr(t), metrics, dir))
	socket := filepath.Join(dir, "broker.sock")
	daemon := exec.Command(filepath.Join(real.Root(), "dist", "brokerd"), "serve", "--config", config, "--socket", socket, "--state", filepath.Join(dir, "state"))
	daemon.Env = append(os.Environ(), "CREDENTIALS_DIRECTORY="+filepath.Join(dir, "credentials"))
	real.StartUnix(t, socket, daemon)

	// What node_exporter would read is well formed, in promtool's judgement.
	var text []byte
	eventually(t, "the textfile is written", func() (err error) { text, err = os.ReadFile(filepath.Join(dir, "broker.prom")); return err })
	promtool(t, string(text), "check", "metrics")
	for _, hidden := range []string{"canary", `"id"`} {
		if strings.Contains(string(text), hidden) {
			t.Errorf("metrics hold %s", hidden)
		}
	}

	prometheus := write("prometheus.yml", fmt.Sprintf(`global: { scrape_interval: 1s, evaluation_interval: 1s }
rule_files: [%s]
scrape_configs: [{ job_name: broker, static_configs: [{ targets: ['%s'] }] }]
`, shipped("rules.yaml"), metrics))
	real.Start(t, web, exec.Command(real.Path("prometheus", "usr", "bin", "prometheus"), "--config.file="+prometheus,
		"--storage.tsdb.path="+filepath.Join(dir, "tsdb"), "--web.listen-address="+web, "--web.console.libraries="+dir, "--web.console.templates="+dir))
	type alerts struct {
		Data struct {
			Alerts []struct{ Labels map[string]string }
		}
	}
	eventually(t, "the rules see the client", func() error {
		var a alerts
		if err := get(web, "/api/v1/alerts", &a); err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, one := range a.Data.Alerts {
			seen[one.Labels["alertname"]+" "+one.Labels["client"]] = true
		}
		for _, want := range []string{"CredentialBrokerClientNotReady vdab", "CredentialBrokerIssuerFailing vdab", "CredentialBrokerSecretAgeUnknown vdab"} {
			if !seen[want] {
				return fmt.Errorf("no alert %s: %v", want, seen)
			}
		}
		if len(seen) != 3 {
			t.Fatalf("false alarms: %v", seen)
		}
		return nil
	})
	var rules struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError string }
			}
		}
	}
	if err := get(web, "/api/v1/rules", &rules); err != nil {
		t.Fatal(err)
	}
	for _, r := range rules.Data.Groups[0].Rules {
		if r.Health != "ok" {
			t.Errorf("rule %s: %s %s", r.Name, r.Health, r.LastError)
		}
	}
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	err := f()
	for end := time.Now().Add(60 * time.Second); err != nil; err = f() {
		if time.Now().After(end) {
			t.Fatalf("not so: %s: %v", what, err)
		}
		<-time.After(200 * time.Millisecond)
	}
}

func get(addr, path string, into any) error {
	resp, err := http.Get("http://" + addr + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return errors.Join(err, json.Unmarshal(b, into))
}
