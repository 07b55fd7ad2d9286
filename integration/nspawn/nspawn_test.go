//go:build real

// Package nspawn boots a machine with systemd and looks at what its manager
// does with the broker's credentials.
package nspawn

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/integration/real"
)

const (
	area   = "systemd credentials"
	server = "systemd 252 (Debian bookworm, booted)"
)

// machine is a booted system without a network; what happens in it is gone
// with it.
type machine struct {
	t      *testing.T
	share  string // /mnt inside
	leader string // pid of its first process
}

// boot boots it, and powers it off with the test.
func boot(t *testing.T) *machine {
	t.Helper()
	m := &machine{t: t, share: t.TempDir()}
	if err := os.Chmod(m.share, 0o755); err != nil {
		t.Fatal(err)
	}
	m.fill()
	console, err := os.Create(filepath.Join(t.TempDir(), "console"))
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	// nspawn's own filter refuses memfd_secret and mlock.
	cmd := exec.Command("systemd-nspawn", "-q", "-D", real.Path("nspawn", "root"), "-M", "broker-"+strconv.Itoa(os.Getpid()), "--boot", "--register=no", "--keep-unit",
		"--private-network", "--console=pipe", "--volatile=overlay", "--capability=CAP_IPC_LOCK", "--bind-ro="+m.share+":/mnt")
	cmd.Env = append(os.Environ(), "SYSTEMD_SECCOMP=0")
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		if m.leader != "" {
			_, _ = m.try("systemctl", "poweroff")
		}
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
			t.Error("it did not power off")
		}
		if b, err := os.ReadFile(console.Name()); err == nil && t.Failed() {
			t.Logf("console:\n%s", b)
		}
	})
	m.until("it is up", time.Minute, func() bool {
		pid := strconv.Itoa(cmd.Process.Pid)
		b, _ := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
		if f := strings.Fields(string(b)); len(f) > 0 {
			m.leader = f[0]
		}
		_, err := m.try("systemctl", "is-system-running", "--wait")
		return m.leader != "" && err == nil
	})
	return m
}

// fill puts into the share what is to be installed.
func (m *machine) fill() {
	m.t.Helper()
	root := real.Root()
	copies := []string{filepath.Join(root, "dist", "broker"), filepath.Join(root, "dist", "brokerd"), filepath.Join(root, "providers", "exec", "example.sh"),
		filepath.Join(root, "configs", "polkit", "50-credential-broker.rules"), filepath.Join(root, "configs", "systemd", "sysusers.conf")}
	units, err := filepath.Glob(filepath.Join(root, "configs", "systemd", "credential-broker*"))
	if err != nil || len(units) < 4 {
		m.t.Fatal(units, err)
	}
	real.Must(m.t, exec.Command("cp", append(append(copies, units...), m.share)...))
	build := exec.Command("go", "build", "-tags", "real", "-o", filepath.Join(m.share, "issuer"), "./issuer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	real.Must(m.t, build)
	m.file("broker.yaml", `providers:
  local: { exec: { command: [/usr/local/libexec/get-bundle], environment: { SECRETS_DIR: /etc/store } } }
clients:
  vdab:
    preset: vdab-test
    token_endpoint: https://127.0.0.1:8443/isam/sps/oauth/oauth20/token
    ca_file: /run/issuer-ca.pem
    secret: { provider: local, path: vdab }
    owner: { contact: you@example.org, purpose: test }
    allow:
      - { unit: web.service, surfaces: [credential], restart: true }
      - { unit: other.service, surfaces: [credential], restart: true }
      - { unit: job.service, surfaces: [credential] }
      - { unit: key.service, surfaces: [credential, api-key] }
`)
	m.file("install.sh", `set -eu
install -m 0755 /mnt/broker /usr/bin/broker
install -D -m 0755 /mnt/brokerd /usr/libexec/credential-broker/brokerd
install -D -m 0755 /mnt/example.sh /usr/local/libexec/get-bundle
install -D -m 0644 /mnt/sysusers.conf /usr/lib/sysusers.d/credential-broker.conf
systemd-sysusers
install -D -m 0644 /mnt/broker.yaml /etc/credential-broker/broker.yaml
install -m 0644 /mnt/credential-broker*.service /mnt/credential-broker*.socket /mnt/web.service /mnt/other.service /mnt/job.service /mnt/key.service /mnt/stranger.service /etc/systemd/system/
install -m 0644 /mnt/50-credential-broker.rules /etc/polkit-1/rules.d/
mkdir /etc/store
sh /mnt/secret.sh nspawn-key-71b2d9e0
systemctl daemon-reload
systemd-run -q --unit=issuer /mnt/issuer /run/issuer-ca.pem /run/issuer-ready
while [ ! -s /run/issuer-ca.pem ]; do sleep 0.1; done
systemctl enable -q --now credential-broker.socket credential-broker-admin.socket credential-broker-credential.socket
`)
	m.file("secret.sh", `printf '{"client_id":"nspawn-client","client_secret":"nspawn-secret-3f9d2e7b","api_key":"%s"}' "$1" >/etc/store/new
mv /etc/store/new /etc/store/vdab.json
`)
	m.unit("web", "vdab.token", "vdab.headers")
	m.unit("other", "vdab.token")
	m.unit("job", "vdab.token")
	m.unit("key", "vdab.api-key")
	m.unit("stranger", "vdab.api-key")
}

// unit is a service that notes the hash of each credential that it finds.
func (m *machine) unit(name string, credentials ...string) {
	text := "[Service]\nUser=daemon\nRuntimeDirectory=" + name + "\nRuntimeDirectoryPreserve=yes\n"
	for _, c := range credentials {
		text += "LoadCredential=" + c + ":/run/credential-broker/credential.sock\n"
	}
	text += `ExecStart=/bin/sh -c 'cd $CREDENTIALS_DIRECTORY && sha256sum * >>/run/` + name + `/seen && exec sleep infinity'` + "\n"
	m.file(name+".service", text)
}

func (m *machine) file(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.share, name), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) try(args ...string) (string, error) {
	if m.leader == "" {
		return "", fmt.Errorf("it has no first process yet")
	}
	out, err := exec.Command("nsenter", append([]string{"-t", m.leader, "-a"}, args...)...).CombinedOutput()
	return string(out), err
}

func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return out
}

func (m *machine) until(what string, most time.Duration, f func() bool) {
	m.t.Helper()
	for end := time.Now().Add(most); !f(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			journal, _ := m.try("journalctl", "-q", "--no-pager", "-o", "short-monotonic", "-n", "60")
			m.t.Fatalf("not within %v: %s\n%s", most, what, journal)
		}
	}
}

// seen is what a unit noted of a credential, in order.
func (m *machine) seen(unit, credential string) (hashes []string) {
	out, _ := m.try("cat", "/run/"+unit+"/seen")
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 2 && f[1] == credential {
			hashes = append(hashes, f[0])
		}
	}
	return hashes
}

func (m *machine) is(unit string) string {
	out, _ := m.try("systemctl", "show", "-P", "ActiveState", unit)
	return strings.TrimSpace(out)
}

// journal is what the daemon said.
func (m *machine) journal() string {
	return m.run("journalctl", "-q", "--no-pager", "-o", "cat", "-u", "credential-broker")
}

// refused expects that a unit does not start, and that the daemon says why.
func (m *machine) refused(unit, why string) {
	m.t.Helper()
	if out, err := m.try("systemctl", "start", unit); err != nil {
		m.t.Error(out) // Type=simple: the job is done before the credential is read
	}
	m.until(unit+" has failed", 20*time.Second, func() bool { return m.is(unit) == "failed" })
	if got := strings.TrimSpace(m.run("systemctl", "show", "-P", "ExecMainStatus", unit)); got != "243" {
		m.t.Errorf("%s ended with %s, not with 243/CREDENTIALS", unit, got)
	}
	if seen := m.seen(strings.TrimSuffix(unit, ".service"), "vdab.token"); seen != nil {
		m.t.Errorf("%s has run: %v", unit, seen)
	}
	for what, text := range map[string]string{"journal": m.journal(), "status": m.run("broker", "status")} {
		if !strings.Contains(text, why) || !strings.Contains(text, unit) {
			m.t.Errorf("the %s does not say why %s did not start (%s):\n%s", what, unit, why, text)
		}
	}
}

// TestCredentials is one life of a machine: starting costs more than looking.
func TestCredentials(t *testing.T) {
	m := boot(t)
	m.run("sh", "/mnt/install.sh")
	const none = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // of nothing
	t.Run("waits", func(t *testing.T) {
		real.Row(t, area, server, "a unit that starts before there is a token waits, and starts with one")
		m.t = t
		m.run("systemctl", "start", "--no-block", "web.service", "other.service")
		m.until("the daemon holds systemd", 20*time.Second, func() bool {
			out, _ := m.try("ss", "-xH", "state", "connected", "src", "/run/credential-broker/credential.sock")
			return out != "" && m.is("credential-broker.service") == "active"
		})
		if seen := m.seen("web", "vdab.token"); seen != nil {
			t.Fatalf("there is a token already: %v", seen)
		}
		m.run("touch", "/run/issuer-ready")
		m.until("it has a token", 60*time.Second, func() bool { return len(m.seen("web", "vdab.token")) == 1 && len(m.seen("other", "vdab.token")) == 1 })
		if m.seen("web", "vdab.token")[0] == none || m.seen("web", "vdab.headers")[0] == none {
			t.Error("it is empty")
		}
	})
	t.Run("refused", func(t *testing.T) {
		real.Row(t, area, server, "a token for a unit that is not restarted is refused: the unit fails, journal and status say why")
		m.t = t
		m.refused("job.service", "restart: true")
		m.refused("stranger.service", "no allow entry")
	})
	t.Run("key", func(t *testing.T) {
		real.Row(t, area, server, "an API key needs no restart")
		m.t = t
		m.run("systemctl", "start", "key.service")
		m.until("it has the key", 20*time.Second, func() bool { return len(m.seen("key", "vdab.api-key")) == 1 })
	})
	t.Run("user", func(t *testing.T) {
		real.Row(t, area, server, "a user's own manager gets nothing")
		m.t = t
		m.run("systemctl", "start", "user@2.service")
		out, err := m.try("setpriv", "--reuid=2", "--regid=2", "--clear-groups", "env", "XDG_RUNTIME_DIR=/run/user/2", "systemd-run", "--user", "--wait", "--pipe", "-q",
			"-p", "LoadCredential=vdab.token:/run/credential-broker/credential.sock", "sh", "-c", "echo has run")
		if err == nil || strings.Contains(out, "has run") {
			t.Errorf("%v %s", err, out)
		}
	})
	t.Run("restart", func(t *testing.T) {
		real.Row(t, area, server, "after a rotation the unprivileged daemon restarts the unit, by the polkit rule, and sees it read the new token")
		m.t = t
		m.run("sh", "/mnt/secret.sh", "nspawn-key-2-a71b2d9e")
		m.run("broker", "rotate", "vdab")
		m.until("it has another token", 60*time.Second, func() bool { return len(m.seen("web", "vdab.token")) == 2 })
		if seen := m.seen("web", "vdab.token"); seen[0] == seen[1] || m.is("web.service") != "active" {
			t.Errorf("%v, %s", seen, m.is("web.service"))
		}
		m.until("the daemon knows", 20*time.Second, func() bool { return strings.Contains(m.journal(), "has read its new credential") })
		m.until("it says what polkit refuses", 40*time.Second, func() bool {
			return strings.Contains(m.journal(), "other.service cannot be restarted") && strings.Contains(m.run("broker", "status"), "50-credential-broker.rules")
		})
		if n := len(m.seen("other", "vdab.token")); n != 1 {
			t.Errorf("other.service was started %d times", n)
		}
		if n := len(m.seen("key", "vdab.api-key")); n != 1 {
			t.Errorf("key.service was started %d times", n)
		}
	})
	if t.Failed() {
		t.Log(m.run("journalctl", "-q", "--no-pager", "-n", "200"))
	}
}
