//go:build real

// Package clients runs the clients of other languages, and real OAuth
// libraries, against the daemon as it ships.
package clients

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/file"
)

// world is an app server: a store, VDAB's issuer and API, and the daemon.
type world struct {
	t      *testing.T
	dir    string
	issuer *fake.Issuer
	site   *httptest.Server // issuer, over TLS
	api    *api
	ask    *client.Client
	daemon *real.Process
}

// api is the gateway, and refuses below some paths what it would take.
type api struct {
	gateway http.Handler

	mu    sync.Mutex
	stale map[string]string // path: the Authorization that it does not take
	calls map[string][]string
}

// ServeHTTP takes what the gateway takes; but below stale/ never the first
// token that it saw at a path, and below key/ no key.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	a.mu.Lock()
	a.calls[r.URL.Path] = append(a.calls[r.URL.Path], r.Header.Get("Authorization")+r.Header.Get("X-IBM-Client-Id")+" "+string(body))
	first, seen := a.stale[r.URL.Path]
	if !seen {
		first = r.Header.Get("Authorization")
		a.stale[r.URL.Path] = first
	}
	a.mu.Unlock()
	var more string
	switch rest := strings.TrimPrefix(r.URL.Path, fake.APIPath); {
	case strings.HasPrefix(rest, "stale/") && first == r.Header.Get("Authorization"):
		more = "Cannot pass the security checks that are required by the target API or operation, Enable debug headers for more details."
	case strings.HasPrefix(rest, "key/"):
		more = "Invalid client id or secret."
	case strings.HasPrefix(rest, "away/"): // another host, as far as a client can see
		http.Redirect(w, r, strings.Replace("http://"+r.Host, "127.0.0.1", "localhost", 1)+"/elsewhere", http.StatusFound)
		return
	case strings.HasPrefix(r.URL.Path, "/elsewhere"):
		w.WriteHeader(http.StatusNoContent)
		return
	default:
		a.gateway.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnauthorized)
	_ = json.NewEncoder(w).Encode(map[string]string{"httpCode": "401", "httpMessage": "Unauthorized", "moreInformation": more})
}

// seen are the calls of a path.
func (a *api) seen(path string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls[path]
}

// newWorld serves the named clients, and leaked, whose secret is another.
func newWorld(t *testing.T, names ...string) *world {
	t.Helper()
	return newWorldOf(t, "", names...)
}

// newWorldOf is newWorld with more in the configuration of each client: first
// allow entries, then keys.
func newWorldOf(t *testing.T, more string, names ...string) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "clients-") // short: a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, ask: &client.Client{Socket: filepath.Join(dir, "broker.sock")}}
	w.issuer = fake.NewIssuer(fake.Client{ID: "one", Secret: "secret-one", APIKey: "key-one"}, fake.Client{ID: "two", Secret: "secret-two", APIKey: "key-two"})
	w.site = httptest.NewTLSServer(w.issuer)
	t.Cleanup(w.site.Close)
	w.api = &api{gateway: w.issuer.Gateway(), stale: map[string]string{}, calls: map[string][]string{}}
	w.write("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.site.Certificate().Raw})))
	w.store()
	var clients strings.Builder
	for _, name := range append(names, "leaked") {
		path := "one"
		more := more
		if name == "leaked" {
			path, more = "two", ""
		}
		fmt.Fprintf(&clients, `  %s:
    preset: vdab-test
    token_endpoint: %s%s
    ca_file: %s/ca.pem
    secret: { provider: local, path: %s }
    owner: { contact: you@localhost, purpose: test }
    allow:
      - { user: "%d" }
%s`, name, w.site.URL, fake.TokenPath, dir, path, os.Getuid(), more)
	}
	w.write("broker.yaml", fmt.Sprintf("providers:\n  local:\n    file: { path: %s/secrets, identity_file: %s/identity, insecure_identity: true }\nclients:\n%saudit: { anchor: none }\n", dir, dir, clients.String()))
	cmd := exec.Command(filepath.Join(real.Root(), "dist", "broker"), "serve", "--config", w.path("broker.yaml"), "--state", w.path("state"), "--socket", w.path("broker.sock"))
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(real.Root(), "dist")+":"+os.Getenv("PATH"), "HOME="+dir)
	w.daemon = real.StartUnix(t, w.path("broker.sock"), cmd)
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) store() {
	w.t.Helper()
	identity, err := file.Create(w.path("secrets"))
	if err != nil {
		w.t.Fatal(err)
	}
	err = identity.Use(func(b []byte) error { return os.WriteFile(w.path("identity"), b, 0o600) })
	p, e := file.Open(file.Config{Path: w.path("secrets"), IdentityFile: w.path("identity"), InsecureIdentity: true}, clock.System{})
	if err := errors.Join(err, e); err != nil {
		w.t.Fatal(err)
	}
	defer p.Close()
	for _, name := range []string{"one", "two"} {
		fields := map[string]secret.Secret{"client_id": secret.FromString(name), "client_secret": secret.FromString("secret-" + name), "api_key": secret.FromString("key-" + name)}
		if _, err := p.(providers.Writer).Put(w.t.Context(), providers.Ref{Path: name}, fields, ""); err != nil {
			w.t.Fatal(err)
		}
	}
}

// serveAPI gives the API's URL, over TCP as everywhere.
func (w *world) serveAPI(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(w.api)
	t.Cleanup(s.Close)
	return s.URL
}

// quarantine declares that the secret of a client has leaked.
func (w *world) quarantine(t *testing.T, client string) {
	t.Helper()
	real.Must(t, exec.Command(filepath.Join(real.Root(), "dist", "broker"), "--socket", w.path("broker.sock"), "leak", "declare", client,
		"--confirmed", "--what", "client_secret", "--happened", "A test.", "--policy", "quarantine", "--no-mail", "--incident", "2026-0001@elsewhere", "--yes"))
}

// aged waits until the token of a client is one that the broker replaces when
// it is refused: a minute old.
func (w *world) aged(t *testing.T, name string) {
	t.Helper()
	for {
		tok, err := w.ask.Token(t.Context(), name, client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if tok.ExpiresIn < 900-10-62 {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(time.Second):
		}
	}
}

// standIn answers on a Unix socket in place of a broker.
func standIn(t *testing.T, h http.HandlerFunc) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "stand-in-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "broker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	_ = s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return socket
}

// said is what a driver says.
type said struct {
	Token      string            `json:"token"`
	Headers    map[string]string `json:"headers"`
	Status     int               `json:"status"`
	Body       string            `json:"body"`
	Code       string            `json:"code"`
	Detail     string            `json:"detail"`
	RetryAfter int               `json:"retry_after"`
	Micros     float64           `json:"micros"` // the median of $REPEAT further readings
}

// run runs a driver. Its standard output is one JSON object.
func run(t *testing.T, socket string, command []string, env ...string) (s said) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(append(os.Environ(), "CREDENTIAL_BROKER_SOCKET="+socket), env...)
	var problem strings.Builder
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err = errors.Join(err, json.Unmarshal(out, &s)); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(command, " "), err, out, problem.String())
	}
	return s
}
