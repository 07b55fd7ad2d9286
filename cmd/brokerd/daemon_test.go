package main

import (
	"bytes"
	"context"
	"crypto/tls"
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
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/file"
)

// daemonProgram is the daemon as it ships, built once for all tests.
var daemonProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "brokerd-test-")
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "brokerd")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", name, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return name, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if name, err := daemonProgram(); err == nil {
		_ = os.RemoveAll(filepath.Dir(name))
	}
	os.Exit(code)
}

// site is a machine with an issuer, an age-encrypted store and a daemon, all
// real but for the issuer, which obeys the test.
type site struct {
	t        *testing.T
	dir      string
	issuer   *fake.Issuer
	srv      *httptest.Server
	store    providers.Writer
	identity string // the secrets manager's own login
	client   fake.Client

	cmd     *exec.Cmd
	stderr  *output
	journal bool // the daemon takes stderr for a stream to the journal
}

type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// shortDir is a directory whose name could stand in a configuration: a test's
// name with a random number behind it may look drawn.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "brokerd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: shortDir(t), client: fake.Client{ID: "canary-id-8a1c", Secret: "canary+secret/é%=3f9d2e7b1c", APIKey: "canarykey71b2d9e04f"}}
	s.issuer = fake.NewIssuer(s.client)
	cert, ca, err := fake.TLS()
	if err != nil {
		t.Fatal(err)
	}
	s.srv = httptest.NewUnstartedServer(s.issuer)
	s.srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.srv.StartTLS()
	t.Cleanup(s.srv.Close)
	identity, err := file.Create(s.path("secrets"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := identity.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.identity = strings.TrimSpace(string(b))
	s.write("identity", s.identity)
	s.write("ca.pem", string(ca))
	p, err := file.Open(file.Config{Path: s.path("secrets"), IdentityFile: s.path("identity"), InsecureIdentity: true}, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	s.store = p.(providers.Writer)
	s.put(s.client.Secret, "")
	s.write("broker.yaml", s.config())
	return s
}

func (s *site) path(elem ...string) string { return filepath.Join(append([]string{s.dir}, elem...)...) }

func (s *site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// put stores a version with that client secret.
func (s *site) put(clientSecret string, expect providers.Version) providers.Version {
	s.t.Helper()
	v, err := s.store.Put(s.t.Context(), providers.Ref{Path: "vdab"}, map[string]secret.Secret{"client_id": secret.FromString(s.client.ID),
		"client_secret": secret.FromString(clientSecret), "api_key": secret.FromString(s.client.APIKey)}, expect)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

func (s *site) config() string {
	return fmt.Sprintf(`providers:
  local: { file: { path: %[1]s/secrets, identity_file: %[1]s/identity, insecure_identity: true } }
clients:
  vdab:
    preset: vdab-test
    token_endpoint: %[2]s%[3]s
    ca_file: %[1]s/ca.pem
    secret: { provider: local, path: vdab }
    owner: { contact: you@example.org, purpose: test }
    allow: [{ user: "%[4]d", surfaces: [token, headers, api-key] }]
  closed:
    preset: vdab-test
    token_endpoint: %[2]s%[3]s
    ca_file: %[1]s/ca.pem
    secret: { provider: local, path: vdab }
    owner: { contact: you@example.org, purpose: test }
    allow: [{ user: "54321" }]
audit: { anchor: none }
`, s.dir, s.srv.URL, fake.TokenPath, os.Getuid())
}

// start runs the daemon and waits until it answers.
func (s *site) start(environment ...string) {
	s.t.Helper()
	name, err := daemonProgram()
	if err != nil {
		s.t.Fatal(err)
	}
	s.stderr = &output{}
	s.cmd = exec.Command(name, "serve", "--config", s.path("broker.yaml"), "--socket", s.path("broker.sock"), "--state", s.path("state"))
	s.cmd.Stderr, s.cmd.Stdout = s.stderr, s.stderr
	s.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, environment...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if s.journal {
		r, w, name := stream(s.t)
		s.cmd.Stderr, s.cmd.Env = w, append(s.cmd.Env, "JOURNAL_STREAM="+name)
		defer w.Close()
		go func(to io.Writer) { _, _ = io.Copy(to, r) }(s.stderr)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd := s.cmd
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	c := client.Client{Socket: s.path("broker.sock")}
	for ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second); ; {
		if _, err := c.Whoami(ctx); err == nil {
			cancel()
			return
		}
		if ctx.Err() != nil {
			cancel()
			s.t.Fatalf("the daemon does not answer:\n%s", s.stderr)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// stop ends the daemon with a signal and waits for it.
func (s *site) stop(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if sig != syscall.SIGKILL && errors.As(err, &exit) {
		s.t.Errorf("the daemon ended with %v:\n%s", err, s.stderr)
	}
}

// do makes a raw request on a socket and gives the status and the body.
func (s *site) do(socket, method, path, body string) (int, string) {
	s.t.Helper()
	hc := http.Client{Timeout: 40 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.path(socket))
		}}}
	req, err := http.NewRequestWithContext(s.t.Context(), method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if strings.HasPrefix(body, "{") {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := hc.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", method, path, err, s.stderr)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, _ = b.ReadFrom(resp.Body)
	return resp.StatusCode, b.String()
}
