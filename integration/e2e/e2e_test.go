//go:build real

// Package e2e_test runs the programs as they ship against servers that nobody
// here wrote, and the documents' own commands.
package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/integration/real"
	"credentialbroker/internal/fake"
)

// machine is an app server: Vault with an AppRole, VDAB's issuer and API, and
// the daemon as root runs it, at the paths of the contract.
type machine struct {
	t      *testing.T
	dir    string
	vault  string // address
	root   string // token
	http   *http.Client
	issuer *fake.Issuer
	site   *httptest.Server
	daemon *real.Process
	client fake.Client
}

func dist(name string) string { return filepath.Join(real.Root(), "dist", name) }

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), client: fake.Client{ID: "kCVy8fpVSU50zFzi8TIC", Secret: "e2e-secret-1", APIKey: "e2e-api-key"}}
	m.vault = real.FreeAddr(t)
	real.Start(t, m.vault, exec.Command(real.Path("bin", "vaultcore"), "-listen", m.vault, "-dir", m.dir))
	var made struct {
		Root string `json:"root_token"`
	}
	text, err := os.ReadFile(filepath.Join(m.dir, "vault.json"))
	if err = errors.Join(err, json.Unmarshal(text, &made)); err != nil {
		t.Fatal(err)
	}
	m.root = made.Root
	ca, err := os.ReadFile(filepath.Join(m.dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	m.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	t.Cleanup(m.http.CloseIdleConnections)
	m.setUpVault()
	m.startIssuer()
	return m
}

type obj map[string]any

func (m *machine) admin(method, path string, body obj) map[string]any {
	m.t.Helper()
	raw, _ := json.Marshal(body)
	r, err := http.NewRequestWithContext(m.t.Context(), method, "https://"+m.vault+"/v1/"+path, bytes.NewReader(raw))
	if err != nil {
		m.t.Fatal(err)
	}
	r.Header.Set("X-Vault-Token", m.root)
	resp, err := m.http.Do(r)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	var out struct{ Data map[string]any }
	_ = json.NewDecoder(resp.Body).Decode(&out)
	if resp.StatusCode/100 != 2 {
		m.t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
	return out.Data
}

func (m *machine) setUpVault() {
	m.admin("POST", "sys/mounts/secret", obj{"type": "kv", "options": obj{"version": "2"}})
	m.admin("PUT", "sys/policies/acl/broker", obj{"policy": `path "secret/data/vdab/prod" { capabilities = ["read"] }
path "secret/metadata/vdab/prod" { capabilities = ["read"] }`})
	m.admin("POST", "sys/auth/approle", obj{"type": "approle"})
	m.admin("POST", "auth/approle/role/broker", obj{"token_policies": "broker", "token_ttl": "20m"})
	role := m.admin("GET", "auth/approle/role/broker/role-id", nil)["role_id"].(string)
	secretID := m.admin("POST", "auth/approle/role/broker/secret-id", obj{})["secret_id"].(string)
	m.write("credentials/role-id", role)
	m.write("credentials/secret-id", secretID)
	m.secret(m.client.Secret)
}

func (m *machine) secret(s string) {
	m.admin("POST", "secret/data/vdab/prod", obj{"data": obj{"client_id": m.client.ID, "client_secret": s, "api_key": m.client.APIKey}})
}

func (m *machine) startIssuer() {
	m.issuer = fake.NewIssuer(m.client)
	cert, ca, err := fake.TLS("api.vdab.be", "op-derden.vdab.be")
	if err != nil {
		m.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", m.issuer)
	mux.Handle(fake.APIPath, m.issuer.Gateway())
	m.site = httptest.NewUnstartedServer(mux)
	m.site.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	m.site.StartTLS()
	m.t.Cleanup(m.site.Close)
	m.write("issuer-ca.pem", string(ca))
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	file := filepath.Join(m.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
		m.t.Fatal(err)
	}
}

// configure takes the first real configuration of the README and changes only
// what makes it reach this machine's Vault and issuer.
func (m *machine) configure() string {
	m.t.Helper()
	text := fences(m.t, "README.md", "yaml")[0]
	leak := text[max(0, strings.Index(text, "leak:")):]
	for old, now := range map[string]string{
		"address: https://vault.corp.example:8200": fmt.Sprintf("address: https://%s\n      ca_file: %s/ca.pem", m.vault, m.dir),
		"    preset: vdab-production\n": fmt.Sprintf("    preset: vdab-production\n    token_endpoint: %s%s\n    ca_file: %s/issuer-ca.pem\n",
			m.site.URL, fake.TokenPath, m.dir),
		"- { user: batch }": "- { user: root }",
		leak:                "leak_by_hand: there is no mail relay here\n",
	} {
		if strings.Count(text, old) != 1 {
			m.t.Fatalf("the README's configuration has no %q", old)
		}
		text = strings.Replace(text, old, now, 1)
	}
	m.write("broker.yaml", text)
	return filepath.Join(m.dir, "broker.yaml")
}

// environment is what systemd would give.
func (m *machine) environment() []string {
	return append(os.Environ(), "CREDENTIALS_DIRECTORY="+filepath.Join(m.dir, "credentials"), "PATH="+filepath.Join(real.Root(), "dist")+":"+os.Getenv("PATH"),
		"CURL_HOME="+m.dir, "HOME="+m.dir)
}

func (m *machine) serve() {
	m.t.Helper()
	cmd := exec.Command(dist("broker"), "serve", "--config", filepath.Join(m.dir, "broker.yaml"), "--state", filepath.Join(m.dir, "state"))
	cmd.Env = m.environment()
	m.daemon = real.StartUnix(m.t, "/run/credential-broker/broker.sock", cmd)
}

// sh runs a script as a user would, with the documents' own paths.
func (m *machine) sh(script string) (string, error) {
	cmd := exec.CommandContext(m.t.Context(), "bash", "-c", script)
	cmd.Env, cmd.Dir = m.environment(), m.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (m *machine) mustSh(script string) string {
	m.t.Helper()
	out, err := m.sh(script)
	if err != nil {
		m.t.Fatalf("%s\n%v\n%s\n%s", script, err, out, m.daemon.Output())
	}
	return out
}

func fences(t *testing.T, file, language string) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(real.Root(), file))
	if err != nil {
		t.Fatal(err)
	}
	for i, part := range strings.Split(string(text), "```") {
		if body, ok := strings.CutPrefix(part, language+"\n"); ok && i%2 == 1 {
			blocks = append(blocks, body)
		}
	}
	if len(blocks) == 0 {
		t.Fatalf("%s has no block of %s", file, language)
	}
	return blocks
}

// The main job, whole: a secret in Vault, a token over the socket, a rotation,
// SIGKILL, an audit log that verifies.
func TestVaultToToken(t *testing.T) {
	real.Row(t, "end to end", "Vault 1.21.4", "secret to token, rotation, SIGKILL, audit verifies")
	m := newMachine(t)
	m.configure()
	m.serve()
	first := m.mustSh("broker token vdab")
	if strings.Count(first, ".") != 2 {
		t.Fatalf("no JWT: %.20q", first)
	}
	if again := m.mustSh("broker token vdab"); again != first {
		t.Error("a second token for nothing")
	}
	m.secret("e2e-secret-2")
	m.issuer.SetSecret(m.client.ID, "e2e-secret-2", true)
	m.mustSh("broker rotate vdab")
	if out := m.mustSh("broker status --json"); !strings.Contains(out, `"version":"2"`) && !strings.Contains(out, `"version": "2"`) {
		t.Errorf("version 2 does not serve:\n%s", out)
	}
	second := m.mustSh("broker token vdab")
	if second == first {
		t.Error("the new version's token does not serve")
	}
	if err := m.daemon.Cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-m.daemon.Exited
	if out, err := m.sh("broker token vdab"); err == nil {
		t.Errorf("a token from a dead daemon: %.20q", out)
	}
	m.serve()
	m.mustSh("broker token vdab")
	out := m.mustSh("broker audit verify")
	t.Logf("audit verify: %s", out)
	if stats := m.issuer.Stats(); stats.Refused != 0 || stats.Minted > 4 {
		t.Errorf("%+v", stats)
	}
}

// The recipes of the README, word by word.
func TestReadme(t *testing.T) {
	real.Row(t, "documents", "curl, python3, Vault 1.21.4", "README: recipes and first configuration")
	m := newMachine(t)
	m.configure()
	m.write(".curlrc", fmt.Sprintf("connect-to = \"api.vdab.be:443:%s\"\ncacert = \"%s/issuer-ca.pem\"\n", strings.TrimPrefix(m.site.URL, "https://"), m.dir))
	m.serve()
	scripts := fences(t, "README.md", "sh")
	if len(scripts) != 3 {
		t.Fatalf("%d scripts in the README", len(scripts))
	}
	if out := m.mustSh(scripts[0]); !strings.Contains(out, "resultaten") {
		t.Errorf("the API answered %q", out)
	}
	m.write("recipe.py", fences(t, "README.md", "python")[0])
	if out := m.mustSh("python3 recipe.py"); !strings.Contains(out, "Authorization") || !strings.Contains(out, "X-IBM-Client-Id") {
		t.Errorf("the Python recipe printed %q", out)
	}
	// check reads the file of the system by default: here it is told which.
	if out := m.mustSh(scripts[1]); !strings.Contains(out, `"replaced":`) {
		t.Errorf("the rejection was answered with %q", out)
	}
	for line := range strings.Lines(scripts[2]) {
		command, _, _ := strings.Cut(strings.TrimSpace(line), "#")
		if strings.HasPrefix(command, "broker check") && !strings.Contains(command, "--live") {
			command += " --config broker.yaml"
		}
		out := m.mustSh(command)
		t.Logf("%s\n%s", command, out)
	}
	m.issuer.Set(fake.Fault{Kind: fake.Unavailable})
	// The same script against an API that is called without a client: it fails
	// loudly and does not call the API bare.
	broken := strings.Replace(scripts[0], "clients/vdab/", "clients/nobody/", 1)
	if out, err := m.sh(broken); err == nil {
		t.Errorf("a refused recipe succeeded: %s", out)
	}
}

// A sample configuration of each manager is free of mistakes.
func TestSamples(t *testing.T) {
	real.Row(t, "documents", "broker check", "a sample configuration for each secrets manager")
	for _, kind := range []string{"vault", "aws", "azure", "gcp", "file", "systemd", "exec"} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		cmd := exec.CommandContext(ctx, dist("broker"), "check", "--config", filepath.Join(real.Root(), "configs", "examples", kind, "broker.yaml"))
		out, err := cmd.CombinedOutput()
		cancel()
		if err != nil {
			t.Errorf("%s: %v\n%s", kind, err, out)
		}
	}
}
