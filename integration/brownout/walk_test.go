//go:build real

// Package brownout starts a daemon while its secrets manager is down, and kills
// processes that write copies for that.
package brownout

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
	"credentialbroker/internal/fake"
	"credentialbroker/providers/file"
)

const canary = "canary-secret-5e0f1d9b7c24"

// A vault is a real one, which can fail.
type vault struct {
	t     *testing.T
	p     *real.Process
	addr  string
	dir   string
	root  string
	key   string
	admin *http.Client
}

func startVault(t *testing.T) *vault {
	t.Helper()
	v := &vault{t: t, dir: t.TempDir(), addr: real.FreeAddr(t)}
	v.p = real.Start(t, v.addr, exec.Command(real.Path("bin", "vaultcore"), "-listen", v.addr, "-dir", v.dir))
	var made struct {
		Root string `json:"root_token"`
		Key  string `json:"unseal_key"`
	}
	text, err1 := os.ReadFile(filepath.Join(v.dir, "vault.json"))
	ca, err2 := os.ReadFile(filepath.Join(v.dir, "ca.pem"))
	if err := errors.Join(err1, err2, json.Unmarshal(text, &made), os.WriteFile(filepath.Join(v.dir, "token"), []byte(made.Root), 0o600)); err != nil {
		t.Fatal(err)
	}
	v.root, v.key = made.Root, made.Key
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	v.admin = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	t.Cleanup(v.admin.CloseIdleConnections)
	v.call(http.MethodPost, "sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
	return v
}

func (v *vault) call(method, path string, body any) {
	v.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		v.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(v.t.Context(), method, "https://"+v.addr+"/v1/"+path, bytes.NewReader(raw))
	if err != nil {
		v.t.Fatal(err)
	}
	r.Header.Set("X-Vault-Token", v.root)
	resp, err := v.admin.Do(r)
	if err != nil {
		v.t.Fatal(err)
	}
	defer resp.Body.Close()
	if out, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode/100 != 2 {
		v.t.Fatalf("%s %s: %s: %s: %v", method, path, resp.Status, out, err)
	}
}

func (v *vault) signal(s syscall.Signal) {
	v.t.Helper()
	if err := syscall.Kill(-v.p.Cmd.Process.Pid, s); err != nil {
		v.t.Fatal(err)
	}
}

// A host has the daemon, and an issuer beside it.
type host struct {
	t      *testing.T
	dir    string
	yaml   string
	daemon *real.Process
	admin  *client.Admin
	client *client.Client
}

func newHost(t *testing.T, v *vault) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "brownout-") // short: a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &host{t: t, dir: dir}
	h.admin, h.client = &client.Admin{Socket: h.path("admin.sock")}, &client.Client{Socket: h.path("broker.sock")}
	fields := map[string]string{"client_id": "app-id", "client_secret": canary, "api_key": canary + "-key"}
	v.call(http.MethodPost, "secret/data/app", map[string]any{"data": fields})
	issuer := fake.NewIssuer(fake.Client{ID: fields["client_id"], Secret: canary, APIKey: fields["api_key"]})
	cert, ca, err := fake.TLS()
	identity, err2 := file.Create(h.path("unused"))
	if err := errors.Join(err, err2, os.WriteFile(h.path("ca.pem"), ca, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := identity.Use(func(b []byte) error { return os.WriteFile(h.path("identity"), b, 0o600) }); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(issuer)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	h.yaml = fmt.Sprintf(`providers:
  corp: { vault: { address: "https://%s", ca_file: %s/ca.pem, auth: { token_file: %s/token } } }
  local: { file: { path: %s/state/brown-out, identity_file: %s/identity, insecure_identity: true } }
clients:
  app:
    preset: vdab-test
    token_endpoint: %s%s
    ca_file: %s/ca.pem
    secret: { provider: corp, mount: secret, path: app }
    owner: { contact: team@corp.example, purpose: brown-out }
    allow: [{ user: "%d" }]
audit: { anchor: none }
`, v.addr, v.dir, v.dir, dir, dir, s.URL, fake.TokenPath, dir, os.Getuid())
	return h
}

func (h *host) path(elem ...string) string {
	return filepath.Join(append([]string{h.dir}, elem...)...)
}

func (h *host) start(maxAge string) {
	h.t.Helper()
	h.write(h.yaml + "brown_out: { provider: local, max_age: " + maxAge + " }\n")
	h.serve()
}

func (h *host) serve(environment ...string) {
	h.t.Helper()
	cmd := exec.Command(filepath.Join(real.Root(), "dist", "brokerd"), "serve", "--config", h.path("broker.yaml"), "--state", h.path("state"), "--socket", h.path("broker.sock"))
	cmd.Env = append(append(os.Environ(), "HOME="+h.dir), environment...)
	_ = os.Remove(h.path("broker.sock"))
	h.daemon = real.StartUnix(h.t, h.path("broker.sock"), cmd)
}

func (h *host) kill() {
	h.t.Helper()
	if err := h.daemon.Cmd.Process.Kill(); err != nil {
		h.t.Fatal(err)
	}
	<-h.daemon.Exited
}

// token gets one within a time.
func (h *host) token(within time.Duration) {
	h.t.Helper()
	begin := time.Now()
	token, err := h.client.Token(h.t.Context(), "app", client.Options{})
	took := time.Since(begin)
	if err != nil || token.AccessToken == "" || took > within {
		h.t.Errorf("a token after %v: %v", took, err)
	}
	h.t.Logf("a token after %v", took)
}

func (h *host) status() client.StatusClient {
	h.t.Helper()
	st, err := h.admin.Status(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return st.Clients[0]
}

func (h *host) until(what string, done func(c client.StatusClient) bool) {
	h.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !done(h.status()); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("not in time: %s: %+v", what, h.status())
		}
	}
}

// clean looks for the secret on the disk.
func (h *host) clean() {
	h.t.Helper()
	files := 0
	err := filepath.WalkDir(h.path("state"), func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		files++
		for shift := range 3 {
			in := append(make([]byte, shift), canary...)
			text := base64.RawStdEncoding.EncodeToString(in[:len(in)/3*3])
			if bytes.Contains(b, []byte(text[4:])) {
				h.t.Errorf("%s holds the secret in base64", name)
			}
		}
		if bytes.Contains(b, []byte(canary)) || bytes.Contains(b, []byte(hex.EncodeToString([]byte(canary)))) {
			h.t.Errorf("%s holds the secret", name)
		}
		return err
	})
	if _, err2 := os.Stat(h.path("state", "brown-out", "app.copy.age")); err != nil || err2 != nil || files < 3 {
		h.t.Errorf("%d files, %v, %v", files, err, err2)
	}
}

func TestStartInAnOutage(t *testing.T) {
	real.Row(t, "brown-out", "Vault 1.21.4, brokerd, fake VDAB", "a daemon that was killed starts while the manager is sealed, hangs or is gone: tokens at once, marked, until it answers or the copy is too old; nothing on the disk tells the secret")
	v := startVault(t)
	h := newHost(t, v)
	h.start("24h")
	h.token(10 * time.Second)
	h.until("there is a copy", func(c client.StatusClient) bool { return !c.Kept.IsZero() })
	h.clean()
	for _, x := range []struct {
		name     string
		down, up func()
		patience time.Duration
		forEver  bool
	}{
		{"sealed", func() { v.call(http.MethodPut, "sys/seal", nil) }, func() { v.call(http.MethodPut, "sys/unseal", map[string]string{"key": v.key}) }, time.Second, false},
		{"hangs", func() { v.signal(syscall.SIGSTOP) }, func() { v.signal(syscall.SIGCONT) }, 7 * time.Second, false},
		{"gone", func() { v.signal(syscall.SIGKILL); <-v.p.Exited }, nil, time.Second, true},
	} {
		before := h.status().Kept
		x.down()
		h.kill()
		h.start("24h")
		h.token(x.patience)
		c := h.status()
		if left := time.Until(c.DegradedUntil); !c.Ready || left > 24*time.Hour || left < 23*time.Hour || c.Source.State != "failing" {
			t.Errorf("%s: status %+v", x.name, c)
		}
		h.clean()
		if x.forEver {
			break
		}
		x.up()
		h.until("the manager answers", func(c client.StatusClient) bool { return c.DegradedUntil.IsZero() && c.Source.State == "ok" })
		h.until("there is a new copy", func(c client.StatusClient) bool { return c.Kept.After(before) })
		h.token(time.Second)
	}
	h.until("the copy is older than 2 s", func(c client.StatusClient) bool { return time.Since(c.Kept) > 2*time.Second })
	h.kill()
	h.start("2s")
	_, err := h.client.Token(t.Context(), "app", client.Options{})
	var problem *client.Problem
	if !errors.As(err, &problem) || problem.Code != client.ProviderUnavailable {
		t.Errorf("a copy that is too old: %v", err)
	}
	if c := h.status(); !c.DegradedUntil.IsZero() || c.Ready {
		t.Errorf("status %+v", c)
	}
}
