//go:build real

// Package booted installs the package of make package on a booted Debian, and
// looks at what an operator and a consumer see of it.
package booted

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"credentialbroker/integration/nspawn/machine"
	"credentialbroker/integration/real"
	"credentialbroker/internal/fake"
)

const area = "installed package"

// The registration at the issuer; test data.
const bundle = `{"client_id":"booted-client","client_secret":"booted-secret-9c41e7d2","api_key":"booted-key-52b8f0a6"}`

// world is a machine, and an issuer elsewhere, which it reaches as
// 127.0.0.1:8443.
type world struct {
	*machine.Machine
	issuer *fake.Issuer
}

// The packages, inside.
const (
	older = "/mnt/credential-broker_1.0.0-1_" + runtime.GOARCH + ".deb"
	newer = "/mnt/credential-broker_1.1.0-1_" + runtime.GOARCH + ".deb"
)

// packages makes both, in a directory.
func packages(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, version := range []string{"1.0.0", "1.1.0"} {
		one := t.TempDir()
		cmd := exec.Command("make", "package", "VERSION="+version, "PACKAGES_DIR="+one, "ARCHES="+runtime.GOARCH)
		cmd.Dir = real.Root()
		real.Must(t, cmd)
		real.Must(t, exec.Command("sh", "-c", `mv "$0"/*.deb "$1"`, one, dir))
	}
	return dir
}

// newWorld lays the machine out; nothing of ours is installed in it, and it is
// not booted.
func newWorld(t *testing.T, packages string) *world {
	t.Helper()
	m := machine.New(t)
	real.Must(t, exec.Command("sh", "-c", `cp "$0"/*.deb "$1"`, packages, m.Share))
	cert, ca, err := fake.TLS()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{m, fake.NewIssuer(fake.Client{ID: "booted-client", Secret: "booted-secret-9c41e7d2", APIKey: "booted-key-52b8f0a6"})}
	w.File("issuer-ca.pem", string(ca))
	srv := &http.Server{Handler: w.issuer, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	l := tls.NewListener(w.wire("issuer"), &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	served := make(chan struct{})
	go func() { _ = srv.Serve(l); close(served) }()
	t.Cleanup(func() { _ = srv.Close(); <-served })
	w.File("wires.sh", `set -eu
for wire in issuer:8443 vault:8200; do
	name=${wire%:*}
	printf '[Socket]\nListenStream=127.0.0.1:%s\n[Install]\nWantedBy=sockets.target\n' "${wire#*:}" >/etc/systemd/system/wire-$name.socket
	printf '[Service]\nExecStart=/lib/systemd/systemd-socket-proxyd /mnt/%s.sock\n' "$name" >/etc/systemd/system/wire-$name.service
	systemctl enable -q --now wire-$name.socket
done
install -m 0644 /mnt/issuer-ca.pem /etc/ssl/certs/issuer-ca.pem
`)
	return w
}

// wire listens where systemd-socket-proxyd inside connects.
func (w *world) wire(name string) net.Listener {
	w.T.Helper()
	l, err := net.Listen("unix", filepath.Join(w.Share, name+".sock"))
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { _ = l.Close() })
	return l
}

// forward takes what comes in to a server of this machine.
func forward(t *testing.T, l net.Listener, addr string) {
	t.Helper()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", addr)
				if err != nil {
					return
				}
				defer out.Close()
				go func() { _, _ = io.Copy(out, in); _ = out.(*net.TCPConn).CloseWrite() }()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
}

// sealed puts the client's secret into the share, encrypted, and the identity
// that decrypts it.
func (w *world) sealed() {
	w.T.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		w.T.Fatal(err)
	}
	var out bytes.Buffer
	to, err := age.Encrypt(&out, id.Recipient())
	if err != nil {
		w.T.Fatal(err)
	}
	if _, err := io.WriteString(to, bundle); err != nil {
		w.T.Fatal(err)
	}
	if err := to.Close(); err != nil {
		w.T.Fatal(err)
	}
	w.File("vdab.age", out.String())
	w.File("identity", id.String()+"\n")
}

// sh runs a script inside.
func (w *world) sh(script string) string {
	w.T.Helper()
	return w.Run("sh", "-euc", script)
}

// token asks from a unit of the system manager.
func (w *world) token(unit string, properties ...string) (string, error) {
	args := []string{"systemd-run", "-q", "--wait", "--pipe", "--collect", "--unit=" + unit}
	for _, p := range properties {
		args = append(args, "-p", p)
	}
	return w.Try(append(args, "broker", "token", "vdab")...)
}

// wantToken expects that the unit gets one.
func (w *world) wantToken(unit string, properties ...string) {
	w.T.Helper()
	if out, err := w.token(unit, properties...); err != nil || len(strings.TrimSpace(out)) < 20 {
		w.T.Errorf("%s %v gets no token: %v\n%s", unit, properties, err, out)
	}
}

// A count is what the consumers of integration/booted/load saw.
type count struct {
	Answered, Cut, Failed, Longest int
	First                          string
}

// underLoad does something while 16 consumers ask, and gives what they saw: they
// were answered before, during and after.
func (w *world) underLoad(do func()) count {
	w.T.Helper()
	counted := func() (c count) {
		out, _ := w.Try("cat", "/run/load/count")
		_ = json.Unmarshal([]byte(out), &c)
		return c
	}
	w.sh("rm -f /run/load/count; systemd-run -q --collect --unit=load -p User=daemon -p RuntimeDirectory=load -p RuntimeDirectoryPreserve=yes /mnt/load vdab /run/load/count")
	w.Until("the consumers are served", 30*time.Second, func() bool { return counted().Answered > 200 })
	do()
	before := counted()
	w.Until("the consumers are served afterwards", 30*time.Second, func() bool { c := counted(); return c.Answered+c.Failed > before.Answered+before.Failed+2000 })
	w.Run("systemctl", "stop", "load.service") // waits for requests under way
	c := counted()
	w.T.Logf("%+v", c)
	if c.Failed > 0 {
		w.T.Errorf("%d consumers failed, the first: %s", c.Failed, c.First)
	}
	return c
}

// A timeline says what happened when.
type timeline struct {
	start time.Time
	text  strings.Builder
}

func (l *timeline) note(what string) {
	if l.start.IsZero() {
		l.start = time.Now()
	}
	fmt.Fprintf(&l.text, "%6.1f s  %s\n", time.Since(l.start).Seconds(), what)
}

// note keeps a text for the end of make test-real.
func note(t *testing.T, name, text string) {
	t.Helper()
	t.Log("\n" + text)
	if err := errors.Join(os.MkdirAll(real.Path("results"), 0o755), os.WriteFile(real.Path("results", name+".txt"), []byte(text), 0o644)); err != nil {
		t.Error(err)
	}
}
