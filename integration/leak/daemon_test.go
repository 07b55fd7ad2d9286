//go:build real

package leak

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/file"
)

const (
	leaked = "a-client-secret-77c1e0"
	apiKey = "an-api-key-0b51f2"
)

// A site is a host with the daemon as it ships; its relay is Exim.
type site struct {
	t       *testing.T
	dir     string
	program string
	x       *exim

	saying sync.Mutex
	log    strings.Builder // what the programs said
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "leak-") // short: a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &site{t: t, dir: dir, program: filepath.Join(dir, "brokerd"), x: startExim(t)}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", dir+"/", "./cmd/brokerd", "./cmd/broker")
	build.Dir = real.Root()
	real.Must(t, build)
	cert, ca, err := fake.TLS()
	if err != nil {
		t.Fatal(err)
	}
	issuer := httptest.NewUnstartedServer(fake.NewIssuer(fake.Client{ID: "canary-id", Secret: leaked, APIKey: apiKey}))
	issuer.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	issuer.StartTLS()
	t.Cleanup(issuer.Close)
	identity, err := file.Create(s.path("secrets"))
	if err == nil {
		err = identity.Use(func(b []byte) error { return os.WriteFile(s.path("identity"), b, 0o600) })
	}
	if err != nil {
		t.Fatal(err)
	}
	store, err := file.Open(file.Config{Path: s.path("secrets"), IdentityFile: s.path("identity"), InsecureIdentity: true}, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for name, fields := range map[string]map[string]string{"vdab": {"client_id": "canary-id", "client_secret": leaked, "api_key": apiKey},
		"smtp": {"username": "broker", "password": password}} {
		all := map[string]secret.Secret{}
		for k, v := range fields {
			all[k] = secret.FromString(v)
		}
		if _, err := store.(providers.Writer).Put(t.Context(), providers.Ref{Path: name}, all, ""); err != nil {
			t.Fatal(err)
		}
	}
	s.write("ca.pem", string(ca))
	s.write("broker.yaml", fmt.Sprintf(`providers:
  local: { file: { path: %[1]s/secrets, identity_file: %[1]s/identity, insecure_identity: true } }
clients:
  vdab:
    preset: vdab-test
    token_endpoint: %[2]s%[3]s
    ca_file: %[1]s/ca.pem
    secret: { provider: local, path: vdab }
    owner: { contact: you@corp.example, purpose: test }
    allow: [{ user: "%[4]d" }]
    leak_contacts: [ict_iam@issuer.example, security@issuer.example]
leak:
  organisation: { name: Voorbeeld nv, kbo: 0123.456.789 }
  on_call: { name: Wachtdienst, phone: +32 2 000 00 00 }
  smtp: { host: 127.0.0.1, port: %[5]d, from: broker@corp.example, secret: { provider: local, path: smtp }, ca_file: %[6]s }
  copy_to: [security@corp.example]
audit: { anchor: none }
`, dir, issuer.URL, fake.TokenPath, os.Getuid(), s.x.starttls, s.x.caFile))
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) command(args ...string) *exec.Cmd {
	return exec.CommandContext(s.t.Context(), s.program, append(args, "--config", s.path("broker.yaml"), "--state", s.path("state"))...)
}

// start runs the daemon until it answers.
func (s *site) start() (kill func()) {
	s.t.Helper()
	_ = os.Remove(s.path("broker.sock"))
	p := real.StartUnix(s.t, s.path("broker.sock"), s.command("serve", "--socket", s.path("broker.sock")))
	return func() { s.kill(p.Cmd); <-p.Exited; s.said(p.Output()) }
}

func (s *site) said(text string) {
	s.saying.Lock()
	defer s.saying.Unlock()
	s.log.WriteString(text)
}

func (s *site) kill(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }

// token asks as a consumer does.
func (s *site) token() (status int, body string) {
	s.t.Helper()
	c := client.Client{Socket: s.path("broker.sock")}
	_, err := c.Token(s.t.Context(), "vdab", client.Options{})
	if err == nil {
		return http.StatusOK, ""
	}
	return http.StatusConflict, err.Error()
}

// arrived counts the mails of each Message-ID in the mailbox.
func (s *site) arrived() (ids map[string]int, text string) {
	ids = map[string]int{}
	files, _ := filepath.Glob(filepath.Join(s.x.dir, "Maildir", "new", "*"))
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			s.t.Fatal(err)
		}
		text += string(b)
		if id := regexp.MustCompile(`(?im)^Message-ID: (\S+)`).FindSubmatch(b); id != nil {
			ids[string(id[1])]++
		}
	}
	return ids, text
}

// The daemon is killed ten times while it takes in and answers a leak.
func TestDaemonKilled(t *testing.T) {
	real.Row(t, "leak", server, "brokerd killed by SIGKILL at ten points of answering a leak: every report in the mailbox under one Message-ID, the client contained, the audit log whole, no secret anywhere")
	s := newSite(t)
	kill := s.start()
	if status, body := s.token(); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	kill()
	for n := range 10 {
		spool := s.command("leak-spool")
		spool.Stdin = strings.NewReader(`{"client":"vdab","severity":"confirmed","what":["client_secret"],"happened":"It stood in a repository.","policy":"quarantine"}`)
		if out := real.Must(t, spool); !strings.Contains(out, fmt.Sprintf("-%04d: recorded", n+1)) {
			t.Fatal(out)
		}
		cmd := s.command("serve", "--socket", s.path("broker.sock"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(60+25*n) * time.Millisecond)
		s.kill(cmd)
		_ = cmd.Wait()
		kill := s.start()
		if status, body := s.token(); status != http.StatusConflict || !strings.Contains(body, "quarantined") {
			t.Errorf("kill %d: %d %s", n, status, body)
		}
		wait, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		ids, _ := s.arrived()
		for ; len(ids) < 3*(n+1) && wait.Err() == nil; ids, _ = s.arrived() {
			<-time.After(50 * time.Millisecond)
		}
		cancel()
		if len(ids) != 3*(n+1) {
			t.Errorf("kill %d: %v", n, ids)
		}
		kill()
	}
	ids, text := s.arrived()
	twice := 0
	for id, count := range ids {
		if count > 2 {
			t.Errorf("%s came %d times", id, count)
		}
		twice += count - 1
	}
	t.Logf("%d reports, %d of them twice", len(ids), twice)
	if report, err := audit.Verify(filepath.Join(s.dir, "state", "audit"), nil); err != nil || !report.OK() {
		t.Errorf("the audit log: %+v, %v", report, err)
	}
	_ = filepath.Walk(s.path("state"), func(name string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			b, _ := os.ReadFile(name)
			text += string(b)
		}
		return nil
	})
	text += s.log.String()
	for _, v := range []string{leaked, apiKey, password} {
		if strings.Contains(text, v) {
			t.Error("a secret stands in the mailbox, the state or the log")
		}
	}
}
