//go:build real

// Package servers runs the recipes of docs/servers.md: each server with the
// files that stand there, as the users and in the units that they name.
package servers

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/file"
)

// What a page shows when it got through to the API.
const vacancy = "Software engineer"

// The users of the recipes, and who they are on this machine.
var users = strings.NewReplacer("user = vacatures", "user = www-data", "group = vacatures", "group = www-data",
	"user: vacatures", "user: www-data", "* vacatures ", "* www-data ", "User=vacatures", "User=www-data")

// world is an app server: a store, VDAB's issuer and API, and the daemon with
// the allow entries of one recipe.
type world struct {
	t   *testing.T
	dir string // in the place of /run/credential-broker; open to everybody
	api *httptest.Server

	slice string // where the cgroups of its units are
}

// newWorld starts a daemon with the named block of the page.
func newWorld(t *testing.T, allow string) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("servers change their user: run this as root")
	}
	dir, err := os.MkdirTemp("", "servers-") // short: a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t, dir: dir}
	w.makeSlice()
	issuer := fake.NewIssuer(fake.Client{ID: "one", Secret: "secret-one", APIKey: "key-one"})
	site := httptest.NewTLSServer(issuer)
	t.Cleanup(site.Close)
	w.api = httptest.NewServer(issuer.Gateway())
	t.Cleanup(w.api.Close)
	overTLS := httptest.NewTLSServer(issuer.Gateway()) // for the reverse proxy
	t.Cleanup(overTLS.Close)
	w.write("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: site.Certificate().Raw})))
	w.store()
	entries := strings.ReplaceAll(w.block(allow), "https://api.example.org/services/openservices\"", overTLS.URL+"/services/openservices\", ca_file: "+dir+"/ca.pem")
	w.write("broker.yaml", fmt.Sprintf(`providers:
  local:
    file: { path: %[1]s/secrets, identity_file: %[1]s/identity, insecure_identity: true }
clients:
  vdab:
    preset: vdab-test
    token_endpoint: %[2]s%[3]s
    ca_file: %[1]s/ca.pem
    secret: { provider: local, path: one }
    owner: { contact: you@localhost, purpose: test }
%[4]s
audit: { anchor: none }
`, dir, site.URL, fake.TokenPath, entries))
	cmd := exec.Command(filepath.Join(real.Root(), "dist", "broker"), "serve", "--config", w.path("broker.yaml"), "--state", w.path("state"), "--socket", w.path("broker.sock"))
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(real.Root(), "dist")+":"+os.Getenv("PATH"), "HOME="+dir)
	real.StartUnix(t, w.path("broker.sock"), cmd)
	if err := os.Chmod(dir, 0o755); err != nil { // as the socket unit makes it
		t.Fatal(err)
	}
	return w
}

func (w *world) path(elem ...string) string {
	return filepath.Join(append([]string{w.dir}, elem...)...)
}

// write makes a file that everybody can read; the store's are in a directory
// that nobody else may enter.
func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(w.path(name)), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.path(name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// copy puts a file of the project, or a directory, into the world.
func (w *world) copy(name string, source ...string) {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{real.Root()}, source...)...))
	if err != nil {
		w.t.Fatal(err)
	}
	w.write(name, string(text))
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
	fields := map[string]secret.Secret{"client_id": secret.FromString("one"), "client_secret": secret.FromString("secret-one"), "api_key": secret.FromString("key-one")}
	if _, err := p.(providers.Writer).Put(w.t.Context(), providers.Ref{Path: "one"}, fields, ""); err != nil {
		w.t.Fatal(err)
	}
}

// block is a file of the page, by the name that follows its language, with this
// machine's users and the places of this world.
func (w *world) block(name string) string {
	w.t.Helper()
	body := users.Replace(real.Block(w.t, "servers.md", name))
	if !strings.HasSuffix(name, ".allow") {
		body = strings.ReplaceAll(body, "https://api.example.org", w.api.URL)
	}
	for _, place := range []string{"/run/credential-broker", "/run/php", "/srv", "/usr/local", "/var/lib/vacatures"} {
		body = strings.ReplaceAll(body, place, w.dir)
	}
	return body
}

// inUnit is a command that runs in the cgroup of a unit, as the system's
// manager makes it, in a slice that only this world uses.
func (w *world) inUnit(unit, name string, args ...string) *exec.Cmd {
	w.t.Helper()
	group := filepath.Join(w.slice, unit)
	if err := os.MkdirAll(group, 0o755); err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command("sh", append([]string{"-c", `echo 0 >"$0/cgroup.procs" && exec "$@"`, group, name}, args...)...)
	cmd.Dir = w.dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "CREDENTIAL_BROKER_SOCKET=" + w.path("broker.sock")}
	return cmd
}

// makeSlice makes the slice; with the test everything in it ends.
func (w *world) makeSlice() {
	w.t.Helper()
	w.slice = filepath.Join(unified(w.t), filepath.Base(w.dir)+".slice")
	if err := os.Mkdir(w.slice, 0o755); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(w.slice, "cgroup.kill"), []byte("1"), 0o200)
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			real.Must(w.t, exec.Command("find", w.slice, "-depth", "-type", "d", "-exec", "sh", "-c", `rmdir "$0" 2>/dev/null || true`, "{}", ";"))
			if _, err := os.Stat(w.slice); os.IsNotExist(err) {
				return
			}
			if time.Now().After(end) {
				w.t.Errorf("%s is not empty", w.slice)
				return
			}
		}
	})
}

// unified is where the machine has its cgroup v2 tree.
func unified(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(mounts)) {
		if f := strings.Fields(l); len(f) > 2 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	t.Fatal("this machine has no cgroup v2 tree, and so no units")
	return ""
}

// as is a command of a user, in a unit or in none ("").
func (w *world) as(user, unit, name string, args ...string) string {
	w.t.Helper()
	args = append([]string{"--reuid", user, "--regid", group(user), "--clear-groups", name}, args...)
	cmd := exec.Command("setpriv", args...)
	if unit != "" {
		cmd = w.inUnit(unit, "setpriv", args...)
	}
	cmd.Dir = w.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "CREDENTIAL_BROKER_SOCKET=" + w.path("broker.sock")}
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		w.t.Fatal(err)
	}
	return string(out)
}

func group(user string) string {
	if user == "nobody" {
		return "nogroup"
	}
	return user
}

// shows says that an answer has a text in it, and names what has answered.
func shows(t *testing.T, who, answer, want string) {
	t.Helper()
	if !strings.Contains(answer, want) {
		t.Errorf("%s: no %q in\n%s", who, want, answer)
	}
}

// ask asks a server on loopback for a page of a site.
func ask(t *testing.T, method, addr, site, path string, headers ...string) (status int, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = site
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if err := resp.Write(&b); err != nil { // headers, too: none of them may be a credential
		t.Fatal(err)
	}
	return resp.StatusCode, b.String()
}

// check is what broker check says of the configuration.
func (w *world) check() string {
	w.t.Helper()
	cmd := exec.Command(filepath.Join(real.Root(), "dist", "broker"), "check", "--config", w.path("broker.yaml"))
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(real.Root(), "dist")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}
