//go:build real

// Package intake brings credentials in archives that other programs made into
// real secrets managers, and looks where they must not show.
package intake

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
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
	"credentialbroker/internal/fake"
)

// A manager is a secrets manager with a version of the client's secret.
type manager struct {
	server    string   // for the table of what ran
	providers string   // YAML below providers:; the client's is corp
	place     string   // YAML of its secret
	env       []string // of the administrator
	home      func(dir string) error
	newest    func() (version string, fields map[string]string)
}

// A world is an app server, its issuer, and an administrator who has mail.
type world struct {
	t        *testing.T
	dir      string
	manager  *manager
	daemon   *real.Process
	fields   map[string]string // what the issuer has sent
	password string
	said     bytes.Buffer // by all commands

	mu   sync.Mutex
	seen map[string]bool // places where something showed that must not
}

// initial is what is in the secrets manager before.
func initial() map[string]string {
	return map[string]string{"client_id": "id-of-before", "client_secret": "secret-of-before", "api_key": "key-51c07"}
}

func newWorld(t *testing.T, m *manager) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "intake-") // short: a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, manager: m, password: "SMS-" + rand.Text(), seen: map[string]bool{},
		fields: map[string]string{"client_id": "id-" + rand.Text(), "client_secret": "s" + rand.Text() + rand.Text()}}
	issuer := fake.NewIssuer(fake.Client{ID: w.fields["client_id"], Secret: w.fields["client_secret"], APIKey: initial()["api_key"]})
	cert, ca, err := fake.TLS()
	if err = errors.Join(err, os.WriteFile(w.path("ca.pem"), ca, 0o600), os.Mkdir(w.path("home"), 0o700)); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(issuer)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	yaml := fmt.Sprintf("providers:\n%s\nclients:\n  vdab:\n    preset: vdab-test\n    token_endpoint: %s\n    ca_file: %s\n    secret: { provider: corp, %s }\n"+
		"    owner: { contact: team@corp.example, purpose: intake }\n    allow: [{ user: %q }]\naudit: { anchor: none }\n",
		m.providers, s.URL+fake.TokenPath, w.path("ca.pem"), m.place, fmt.Sprint(os.Getuid()))
	if err := os.WriteFile(w.path("broker.yaml"), []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(dist("brokerd"), "serve", "--config", w.path("broker.yaml"), "--state", w.path("state"), "--socket", w.path("broker.sock"))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir}
	w.daemon = real.StartUnix(t, w.path("broker.sock"), cmd)
	return w
}

func dist(name string) string { return filepath.Join(real.Root(), "dist", name) }

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// archive has a tool pack the mail's attachment.
func (w *world) archive(tool string) string {
	w.t.Helper()
	text, zip := w.path("credentials.txt"), w.path(tool+".zip")
	body := fmt.Sprintf("Beste,\r\n\r\nClient ID: %s\r\nClient Secret: %s\r\n", w.fields["client_id"], w.fields["client_secret"])
	if err := os.WriteFile(text, []byte(body), 0o600); err != nil {
		w.t.Fatal(err)
	}
	args := map[string][]string{
		"7zz":    {"a", "-tzip", "-bd", "-bso0", "-mem=AES256", "-p" + w.password, zip, "credentials.txt"},
		"bsdtar": {"-cf", zip, "--format", "zip", "--options", "zip:encryption=aes128", "--passphrase", w.password, "credentials.txt"},
		"zip":    {"-q", "-P", w.password, zip, "credentials.txt"},
	}[tool]
	cmd := exec.Command(tool, args...)
	cmd.Dir = w.dir
	real.Must(w.t, cmd)
	if err := os.Remove(text); err != nil {
		w.t.Fatal(err)
	}
	return zip
}

// broker runs a command as the administrator, and wants an exit code.
func (w *world) broker(code int, stdin string, args ...string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, dist("broker"), args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.path("home"), client.Environment + "=" + w.path("broker.sock")}, w.manager.env...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	w.said.Write(out)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || cmd.ProcessState.ExitCode() != code {
		w.t.Fatalf("broker %s: %v, want exit code %d\n%s", strings.Join(args, " "), err, code, out)
	}
	return string(out)
}

// unchanged fails if a version was stored.
func (w *world) unchanged(version, after string) {
	w.t.Helper()
	if now, _ := w.manager.newest(); now != version {
		w.t.Errorf("after %s the newest version is %s, was %s", after, now, version)
	}
}

// secrets are what must show nowhere.
func (w *world) secrets() map[string]string {
	return map[string]string{"the secret": w.fields["client_secret"], "the password": w.password}
}

func (w *world) look(where string, text []byte) {
	for what, value := range w.secrets() {
		if bytes.Contains(text, []byte(value)) {
			w.mu.Lock()
			w.seen[what+" in "+where] = true
			w.mu.Unlock()
		}
	}
}

// watch looks at the arguments and environments of all processes until stop,
// which says how many looks there were.
func (w *world) watch() (stop func() int) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done, looks := make(chan struct{}), 0
	go func() {
		defer close(done)
		for ; ctx.Err() == nil; looks++ {
			names, _ := filepath.Glob("/proc/[0-9]*")
			for _, name := range names {
				for _, part := range []string{"cmdline", "environ"} {
					text, _ := os.ReadFile(filepath.Join(name, part))
					w.look("the "+part+" of a process", text)
				}
			}
		}
	}()
	return func() int { cancel(); <-done; return looks }
}

// files looks at what is on the disk, but for the archive and the store, which
// are encrypted.
func (w *world) files() {
	w.t.Helper()
	n := 0
	err := filepath.WalkDir(w.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(name)
		n++
		w.look("the file "+name, text)
		return err
	})
	if err != nil || n < 5 {
		w.t.Errorf("%d files, %v", n, err)
	}
}

// nothingShows ends a test.
func (w *world) nothingShows(stop func() int) {
	w.t.Helper()
	if looks := stop(); looks < 3 {
		w.t.Errorf("only %d looks at the processes", looks)
	}
	w.files()
	w.look("what commands print", w.said.Bytes())
	w.look("the daemon's journal", []byte(w.daemon.Output()))
	audit := w.broker(0, "", "audit", "tail", "-n", "1000")
	if !strings.Contains(audit, `"code":"intake"`) {
		w.t.Errorf("the intake is not recorded:\n%s", audit)
	}
	w.look("the audit log", []byte(audit))
	for what := range w.seen {
		w.t.Error("found " + what)
	}
}
