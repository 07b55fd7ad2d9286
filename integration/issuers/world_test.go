//go:build real

// Package issuers runs the daemon as it ships with a client of every preset
// and every client authentication, against servers that behave as the
// documents say and against one that nobody here wrote: THE table of issuers.
package issuers

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
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
	"syscall"
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

// world is an app server: an age-encrypted store, issuers and APIs on
// loopback, and the daemon between them.
type world struct {
	t       *testing.T
	dir     string
	cert    tls.Certificate
	caFile  string
	store   providers.Provider
	clients bytes.Buffer // YAML
	daemon  *real.Process
	ask     *client.Client
	log     strings.Builder // of daemons that have ended

	mu     sync.Mutex
	hidden map[string]string // what must not show, and what it is
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "issuers-") // short: a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, caFile: filepath.Join(dir, "ca.pem"), hidden: map[string]string{}}
	w.ask = &client.Client{Socket: w.path("broker.sock")}
	cert, ca, err := fake.TLS()
	if err != nil {
		t.Fatal(err)
	}
	w.cert = cert
	identity, err := file.Create(w.path("secrets"))
	if err != nil {
		t.Fatal(err)
	}
	err = identity.Use(func(b []byte) error { return os.WriteFile(w.path("identity"), b, 0o600) })
	if err = errors.Join(err, os.WriteFile(w.caFile, ca, 0o600)); err != nil {
		t.Fatal(err)
	}
	w.store, err = file.Open(file.Config{Path: w.path("secrets"), IdentityFile: w.path("identity"), InsecureIdentity: true}, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.store.Close() })
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// site serves h over TLS and takes client certificates.
func (w *world) site(h http.Handler) string {
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{w.cert}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	w.t.Cleanup(s.Close)
	return s.URL
}

// put stores fields as a version of a secret, beside those that are there, and
// remembers what must not show.
func (w *world) put(name string, fields map[string]string) {
	w.t.Helper()
	all, have := map[string]secret.Secret{}, providers.Version("")
	b, err := w.store.Fetch(w.t.Context(), providers.Ref{Path: name}, "")
	if err == nil {
		all, have = b.Fields, b.Version
	} else if providers.KindOf(err) != providers.NotFound {
		w.t.Fatal(err)
	}
	for field, value := range fields {
		all[field] = secret.FromString(value)
		if field != "client_id" && field != "certificate" {
			w.hide(name+"'s "+field, value)
		}
	}
	if _, err := w.store.(providers.Writer).Put(w.t.Context(), providers.Ref{Path: name}, all, have); err != nil {
		w.t.Fatal(err)
	}
}

// fields reads a secret as its owner would.
func (w *world) fields(name string) map[string]string {
	w.t.Helper()
	b, err := w.store.Fetch(w.t.Context(), providers.Ref{Path: name}, "")
	if err != nil {
		w.t.Fatal(err)
	}
	defer b.Wipe()
	out := map[string]string{}
	for field, v := range b.Fields {
		if err := v.Use(func(b []byte) error { out[field] = string(b); return nil }); err != nil {
			w.t.Fatal(err)
		}
	}
	return out
}

func (w *world) hide(what, value string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hidden[value] = what
}

// client adds one to the configuration. Its YAML says what it needs beyond
// preset, secret, owner and allow, without indentation.
func (w *world) client(name, preset, yaml string, fields map[string]string) {
	w.t.Helper()
	if len(fields) > 0 {
		w.put(name, fields)
	}
	fmt.Fprintf(&w.clients, "  %s:\n    preset: %s\n    secret: { provider: store, path: %s }\n    owner: { contact: team@corp.example, purpose: the table }\n    allow: [{ user: %q, surfaces: [token, headers, api-key, jwt] }]\n",
		name, preset, name, fmt.Sprint(os.Getuid()))
	for line := range strings.Lines(strings.TrimSpace(yaml) + "\n") {
		w.clients.WriteString("    " + line)
	}
}

func dist(name string) string { return filepath.Join(real.Root(), "dist", name) }

// configure writes the configuration, and has the command line check it.
func (w *world) configure(providers string) {
	w.t.Helper()
	text := fmt.Sprintf("providers:\n  store:\n    file: { path: %s, identity_file: %s, insecure_identity: true }\n%s\nclients:\n%s\naudit: { anchor: none }\nleak_by_hand: a test\n",
		w.path("secrets"), w.path("identity"), providers, w.clients.String())
	if err := os.WriteFile(w.path("broker.yaml"), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if out, err := exec.CommandContext(w.t.Context(), dist("broker"), "check", "--config", w.path("broker.yaml")).CombinedOutput(); err != nil {
		w.t.Fatalf("check: %v\n%s\n%s", err, out, text)
	}
}

// serve runs the daemon until stop or kill, or the end of the test.
func (w *world) serve() {
	w.t.Helper()
	_, _ = os.Remove(w.path("broker.sock")), os.Remove(w.path("admin.sock"))
	cmd := exec.Command(dist("broker"), "serve", "--config", w.path("broker.yaml"), "--state", w.path("state"), "--socket", w.path("broker.sock"))
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(real.Root(), "dist")+":"+os.Getenv("PATH"), "HOME="+w.dir)
	w.daemon = real.StartUnix(w.t, w.path("broker.sock"), cmd)
	for deadline := time.Now().Add(20 * time.Second); ; { // the other socket comes a moment later
		c, err := net.Dial("unix", w.path("admin.sock"))
		if err == nil {
			_ = c.Close()
			break
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("no admin socket:\n%s", w.daemon.Output())
		}
	}
	w.ask = &client.Client{Socket: w.path("broker.sock")} // connections of the daemon before are of no use
}

// end ends the daemon by a signal.
func (w *world) end(s syscall.Signal) {
	w.t.Helper()
	if err := w.daemon.Cmd.Process.Signal(s); err != nil {
		w.t.Fatal(err)
	}
	select {
	case <-w.daemon.Exited:
	case <-time.After(20 * time.Second):
		w.t.Fatalf("the daemon does not end:\n%s", w.daemon.Output())
	}
	w.log.WriteString(w.daemon.Output())
}

func (w *world) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, dist("broker"), append(args, "--socket", w.path("broker.sock"))...)
	cmd.Env = append(os.Environ(), "HOME="+w.dir)
	return cmd
}

// try runs a command of the command line, and gives what it wrote.
func (w *world) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	cmd := w.command(ctx, args...)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("broker %s: %w: %s", strings.Join(args, " "), err, problem.String())
	}
	return out.String(), nil
}

func (w *world) broker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := w.try(args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// status is one client's.
func (w *world) status(t *testing.T, name string) client.StatusClient {
	t.Helper()
	var s client.Status
	if err := json.Unmarshal([]byte(w.broker(t, "status", "--json")), &s); err != nil {
		t.Fatal(err)
	}
	for _, c := range s.Clients {
		if c.Client == name {
			return c
		}
	}
	t.Fatalf("no status of %s", name)
	return client.StatusClient{}
}

// token asks as a consumer does.
func (w *world) token(t *testing.T, name string, o client.Options) *client.Token {
	t.Helper()
	tok, err := w.ask.Token(t.Context(), name, o)
	if err != nil {
		t.Fatalf("token of %s: %v", name, err)
	}
	w.hide("access token of "+name, tok.AccessToken)
	return tok
}

func (w *world) headers(t *testing.T, name string, o client.Options) client.Headers {
	t.Helper()
	h, err := w.ask.Headers(t.Context(), name, o)
	if err != nil {
		t.Fatalf("headers of %s: %v", name, err)
	}
	for header, v := range h {
		w.hide("header "+header+" of "+name, strings.TrimPrefix(v, "Bearer "))
	}
	return h
}

// transport is how a consumer reaches the APIs, with a certificate if it has one.
func (w *world) transport(cert ...tls.Certificate) *http.Transport {
	ca, err := os.ReadFile(w.caFile)
	if err != nil {
		w.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	rt := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: cert, MinVersion: tls.VersionTLS12}}
	w.t.Cleanup(rt.CloseIdleConnections)
	return rt
}

// call calls an API with the headers that a consumer got.
func (w *world) call(t *testing.T, url string, h client.Headers, cert ...tls.Certificate) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range h {
		req.Header.Set(name, v)
	}
	resp, err := (&http.Client{Transport: w.transport(cert...)}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

// usable fails the test unless the API takes the headers.
func (w *world) usable(t *testing.T, url string, h client.Headers, cert ...tls.Certificate) {
	t.Helper()
	if status, body := w.call(t, url, h, cert...); status != http.StatusOK {
		t.Errorf("the API answers %d %s", status, body)
	}
	if status, body := w.call(t, url, nil, cert...); status == http.StatusOK {
		t.Errorf("the API takes a call without credentials: %s", body)
	}
}

// certificate is what a consumer needs beside a certificate-bound token.
func (w *world) certificate(t *testing.T, name string) tls.Certificate {
	t.Helper()
	f := w.fields(name)
	c, err := tls.X509KeyPair([]byte(f["certificate"]), []byte(f["private_key"]))
	if err != nil {
		t.Fatal(err)
	}
	return c
}
