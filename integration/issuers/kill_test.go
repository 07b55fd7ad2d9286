//go:build real

package issuers

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
	"credentialbroker/internal/fake"
)

// gate stands before a server and can stop a request there: before the server
// sees it, or when it has done what was asked and before its answer is out.
type gate struct {
	http.Handler
	stops func(*http.Request) bool // which requests it concerns

	mu      sync.Mutex
	shut    string        // "", before, after, or refuse: with status 503
	stopped chan struct{} // closed when one has been stopped
	free    chan struct{} // closed when it may go, to nobody
}

// set shuts the gate one way or another, or opens it, and gives a channel that
// is closed when a request has been stopped.
func (g *gate) set(how string) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.free != nil {
		close(g.free)
	}
	g.shut, g.stopped, g.free = how, make(chan struct{}), make(chan struct{})
	return g.stopped
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !g.stops(r) {
		g.Handler.ServeHTTP(w, r)
		return
	}
	g.mu.Lock()
	how, stopped, free := g.shut, g.stopped, g.free
	g.mu.Unlock()
	switch how {
	case "":
		g.Handler.ServeHTTP(w, r)
		return
	case "refuse":
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case "after":
		g.Handler.ServeHTTP(httptest.NewRecorder(), r)
	}
	g.mu.Lock()
	select {
	case <-stopped:
	default:
		close(stopped)
	}
	g.mu.Unlock()
	<-free
	panic(http.ErrAbortHandler)
}

// mijn is a world with a portal whose refresh tokens rotate, and Vault for
// them, each behind a gate.
type mijn struct {
	*world
	portal         *fake.MijnKlantportaal
	site           string
	issuer, vault  *gate
	vaultDir, addr string
}

func newMijn(t *testing.T) *mijn {
	t.Helper()
	m := &mijn{world: newWorld(t), portal: &fake.MijnKlantportaal{RotateRefresh: true, User: "a person"}, vaultDir: t.TempDir(), addr: real.FreeAddr(t)}
	if err := m.portal.Register(fake.Client{ID: "mijn-app", Secret: "mijn-secret", Scopes: []string{"read"}, RedirectURIs: []string{"http://127.0.0.1/callback"}}); err != nil {
		t.Fatal(err)
	}
	m.issuer = &gate{Handler: http.HandlerFunc(m.tap), stops: func(r *http.Request) bool { return r.URL.Path == "/oauth/tokens" }}
	m.issuer.set("")
	m.site = m.world.site(m.issuer)
	m.startVault()
	m.client("mijn", "mijnklantportaal", fmt.Sprintf("ca_file: %s\nauthorization_endpoint: %[2]s/oauth/authorize\ntoken_endpoint: %[2]s/oauth/tokens\nrefresh: { provider: vault, mount: secret, path: mijn-login }\n", m.caFile, m.site),
		map[string]string{"client_id": "mijn-app", "client_secret": "mijn-secret"})
	m.configure(fmt.Sprintf("  vault:\n    vault: { address: %q, ca_file: %s, auth: { token_file: %s } }\n", m.world.site(m.vault), m.caFile, m.path("vault-token")))
	m.serve()
	m.consent(t)
	return m
}

// tap is the portal, and remembers what it gives.
func (m *mijn) tap(w http.ResponseWriter, r *http.Request) {
	answer := httptest.NewRecorder()
	m.portal.ServeHTTP(answer, r)
	given := map[string]any{}
	_ = json.Unmarshal(answer.Body.Bytes(), &given) // not all answers are JSON
	for _, name := range []string{"access_token", "refresh_token"} {
		if v, ok := given[name].(string); ok {
			m.hide("a "+name, v)
		}
	}
	for name, v := range answer.Header() {
		w.Header()[name] = v
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

// startVault runs Vault, and a gate before what writes there.
func (m *mijn) startVault() {
	t := m.t
	real.Start(t, m.addr, exec.Command(real.Path("bin", "vaultcore"), "-listen", m.addr, "-dir", m.vaultDir))
	var made struct {
		Root string `json:"root_token"`
	}
	text, err1 := os.ReadFile(filepath.Join(m.vaultDir, "vault.json"))
	ca, err2 := os.ReadFile(filepath.Join(m.vaultDir, "ca.pem"))
	if err := errors.Join(err1, err2, json.Unmarshal(text, &made), os.WriteFile(m.path("vault-token"), []byte(made.Root), 0o600)); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: m.addr})
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	m.vault = &gate{Handler: proxy, stops: func(r *http.Request) bool {
		return (r.Method == http.MethodPut || r.Method == http.MethodPost) && strings.Contains(r.URL.Path, "/data/")
	}}
	m.vault.set("")
	r, err := http.NewRequest(http.MethodPost, "https://"+m.addr+"/v1/sys/mounts/secret", strings.NewReader(`{"type":"kv","options":{"version":"2"}}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Vault-Token", made.Root)
	resp, err := (&http.Client{Transport: proxy.Transport}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		t.Fatalf("%s %s", resp.Status, body)
	}
}

// consent has a person log in.
func (m *mijn) consent(t *testing.T) {
	t.Helper()
	m.login(t, "mijn", false, func(start string) string { return m.browse(t, start, false) })
	m.usable(t, m.site+"/api/v1/customers", m.headers(t, "mijn", client.Options{}))
}

// usableNow wants a token, and a login that needs nobody.
func (m *mijn) usableNow(t *testing.T) {
	t.Helper()
	m.usable(t, m.site+"/api/v1/customers", m.headers(t, "mijn", client.Options{}))
	if s := m.status(t, "mijn").Login; s == nil || s.State != "ok" {
		t.Errorf("status of the login: %+v", s)
	}
}

// problem is why there is no token.
func (m *mijn) problem(t *testing.T) client.Problem {
	t.Helper()
	_, err := m.ask.Token(t.Context(), "mijn", client.Options{})
	p, ok := err.(*client.Problem) //nolint:errorlint // Token promises this very type
	if !ok {
		t.Fatalf("a token, or an error that is none of the broker's: %v", err)
	}
	return *p
}

// alarm waits for the audit log to say that a person has to act: what hands out
// nothing is written a moment later.
func (m *mijn) alarm(t *testing.T) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !strings.Contains(m.broker(t, "audit", "tail", "-n", "20"), `"type":"login.required"`) {
		select {
		case <-deadline:
			t.Fatal("no alarm in the audit log")
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (m *mijn) restart() {
	m.t.Helper()
	m.end(syscall.SIGKILL)
	m.serve()
}

// killed starts a daemon, kills it while a refresh is where the gate stops it,
// and starts another.
func (m *mijn) killed(t *testing.T, g *gate, how string) {
	t.Helper()
	m.end(syscall.SIGKILL) // the token in hand dies with it
	m.serve()
	stopped := g.set(how)
	go func() { _, _ = m.ask.Token(m.t.Context(), "mijn", client.Options{}) }() // its answer is of no interest, and may never come
	select {
	case <-stopped:
	case <-time.After(20 * time.Second):
		t.Fatal("no refresh reached the gate")
	}
	m.end(syscall.SIGKILL)
	g.set("")
	m.serve()
}

func TestKill(t *testing.T) {
	m := newMijn(t)
	row := func(t *testing.T, what string) {
		real.Row(t, "refresh token", "brokerd, fake MijnKlantportaal, Vault 1.21.4", what)
	}
	for _, step := range []struct {
		name, what string
		gate       *gate
		how        string
	}{
		{"asked", "SIGKILL before the issuer has seen the request: nothing is lost", m.issuer, "before"},
		{"sealed", "SIGKILL after the seal, before the manager has the new token: nothing is lost", m.vault, "before"},
		{"written", "SIGKILL after the manager has written the new token, before it says so: nothing is lost", m.vault, "after"},
	} {
		t.Run(step.name, func(t *testing.T) {
			row(t, step.what)
			for range 3 { // also when it happens again and again
				m.killed(t, step.gate, step.how)
				m.usableNow(t)
			}
		})
	}
	t.Run("served", func(t *testing.T) {
		row(t, "SIGKILL after the token was served, ten times: nothing is lost; what this host writes is no candidate for rotation")
		version := m.status(t, "mijn").Version
		for range 10 {
			m.restart()
			m.usableNow(t)
		}
		m.broker(t, "rotate", "mijn")
		if s := m.status(t, "mijn"); version == "" || s.Version != version || s.Candidate != "" {
			t.Errorf("version %q, then %q, candidate %q", version, s.Version, s.Candidate)
		}
	})
	t.Run("owner", func(t *testing.T) {
		row(t, "one host owns the login: another one does not touch it")
		mine, err := os.ReadFile(m.path("broker.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		asked := m.portal.Stats().Requests
		m.end(syscall.SIGKILL)
		if err := os.WriteFile(m.path("broker.yaml"), bytes.Replace(mine, []byte("path: mijn-login }"), []byte("path: mijn-login, owner: another-host }"), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		m.serve()
		if p := m.problem(t); p.Code != client.LoginRequired || strings.Contains(p.Detail, "another-host") {
			t.Errorf("%+v: consumers learn no host", p)
		}
		if l := m.status(t, "mijn").Login; l == nil || !strings.Contains(l.Reason, "another-host") {
			t.Errorf("%+v", l)
		}
		if n := m.portal.Stats().Requests - asked; n != 0 {
			t.Errorf("another host sent %d requests", n)
		}
		m.end(syscall.SIGKILL)
		if err := os.WriteFile(m.path("broker.yaml"), mine, 0o600); err != nil {
			t.Fatal(err)
		}
		m.serve()
		m.usableNow(t)
	})
	t.Run("down", func(t *testing.T) {
		row(t, "the manager takes no writes: the seal counts, over a SIGKILL, until it does")
		m.vault.set("refuse")
		m.restart()
		m.usable(t, m.site+"/api/v1/customers", m.headers(t, "mijn", client.Options{}))
		if s := m.status(t, "mijn").Login; s == nil || s.State != "pending" {
			t.Errorf("status of the login: %+v", s)
		}
		m.restart()
		m.usable(t, m.site+"/api/v1/customers", m.headers(t, "mijn", client.Options{}))
		m.vault.set("")
		m.restart()
		m.usableNow(t)
		// What the manager has is the newest: without any state it serves.
		m.end(syscall.SIGKILL)
		if err := os.Rename(m.path("state"), m.path("state-of-before")); err != nil {
			t.Fatal(err)
		}
		m.serve()
		m.usableNow(t)
	})
	t.Run("lost", func(t *testing.T) {
		row(t, "SIGKILL between the issuer's answer and the seal, the documented loss: the old token is tried once, then login_required and an alarm; a new login heals")
		asked := m.portal.Stats().Requests
		m.killed(t, m.issuer, "after")
		for range 3 {
			if p := m.problem(t); p.Code != client.LoginRequired || p.Status != http.StatusConflict || !strings.Contains(p.Detail, "broker login mijn") {
				t.Errorf("%+v", p)
			}
		}
		if n := m.portal.Stats().Requests - asked; n != 2 {
			t.Errorf("%d requests, want 2: the one whose answer was lost, and one more", n)
		}
		if s := m.status(t, "mijn"); s.Ready || s.Login == nil || s.Login.State != "required" {
			t.Errorf("status: %+v", s)
		}
		m.alarm(t)
		m.consent(t)
		m.restart()
		m.usableNow(t)
	})
	t.Run("leaks", func(t *testing.T) {
		real.Row(t, "secrets", "brokerd", "after all kills: no refresh token in log, audit log, status, metrics and state directory: not in clear, base64, base64url or hex")
		m.leaks(t)
	})
}

func TestWithdrawn(t *testing.T) {
	real.Row(t, "refresh token", "brokerd, fake MijnKlantportaal, Vault 1.21.4", "a person's withdrawal is told from an outage, and is final until somebody logs in")
	m := newMijn(t)
	m.portal.Set(fake.Fault{Kind: fake.Unavailable})
	m.restart()
	if p := m.problem(t); p.Code != client.IssuerUnavailable || p.Status != http.StatusServiceUnavailable || p.RetryAfter == 0 {
		t.Errorf("an outage: %+v", p)
	}
	if s := m.status(t, "mijn").Login; s == nil || s.State != "ok" {
		t.Errorf("an outage needs no login: %+v", s)
	}
	m.portal.Set(fake.Fault{})
	m.restart()
	m.usableNow(t)
	m.portal.Revoke("a person")
	m.restart()
	if p := m.problem(t); p.Code != client.LoginRequired {
		t.Errorf("a withdrawal: %+v", p)
	}
	m.restart()
	asked := m.portal.Stats().Requests
	if p := m.problem(t); p.Code != client.LoginRequired {
		t.Errorf("a withdrawal, after a restart: %+v", p)
	}
	if n := m.portal.Stats().Requests - asked; n != 0 {
		t.Errorf("%d requests with a token that the issuer has refused", n)
	}
	m.consent(t)
	m.usableNow(t)
}
