//go:build real

// Package nspawn boots a machine with systemd and looks at what its manager
// does with the broker's credentials.
package nspawn

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/nspawn/machine"
	"credentialbroker/integration/real"
)

const (
	area   = "systemd credentials"
	server = machine.Server
)

// host is a machine with the broker and units that want credentials.
type host struct{ *machine.Machine }

// boot boots it, and powers it off with the test.
func boot(t *testing.T) host {
	t.Helper()
	m := host{machine.New(t)}
	m.fill()
	m.Boot()
	return m
}

// fill puts into the share what is to be installed.
func (m host) fill() {
	m.T.Helper()
	root := real.Root()
	copies := []string{filepath.Join(root, "dist", "broker"), filepath.Join(root, "dist", "brokerd"), filepath.Join(root, "providers", "exec", "example.sh"),
		filepath.Join(root, "configs", "polkit", "50-credential-broker.rules"), filepath.Join(root, "configs", "systemd", "sysusers.conf")}
	units, err := filepath.Glob(filepath.Join(root, "configs", "systemd", "credential-broker*"))
	if err != nil || len(units) < 4 {
		m.T.Fatal(units, err)
	}
	real.Must(m.T, exec.Command("cp", append(append(copies, units...), m.Share)...))
	m.Build("issuer", "./issuer")
	m.File("broker.yaml", `providers:
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
	m.File("install.sh", `set -eu
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
	m.File("secret.sh", `printf '{"client_id":"nspawn-client","client_secret":"nspawn-secret-3f9d2e7b","api_key":"%s"}' "$1" >/etc/store/new
mv /etc/store/new /etc/store/vdab.json
`)
	m.unit("web", "vdab.token", "vdab.headers")
	m.unit("other", "vdab.token")
	m.unit("job", "vdab.token")
	m.unit("key", "vdab.api-key")
	m.unit("stranger", "vdab.api-key")
}

// unit is a service that notes the hash of each credential that it finds.
func (m host) unit(name string, credentials ...string) {
	text := "[Service]\nUser=daemon\nRuntimeDirectory=" + name + "\nRuntimeDirectoryPreserve=yes\n"
	for _, c := range credentials {
		text += "LoadCredential=" + c + ":/run/credential-broker/credential.sock\n"
	}
	text += `ExecStart=/bin/sh -c 'cd $CREDENTIALS_DIRECTORY && sha256sum * >>/run/` + name + `/seen && exec sleep infinity'` + "\n"
	m.File(name+".service", text)
}

// seen is what a unit noted of a credential, in order.
func (m host) seen(unit, credential string) (hashes []string) {
	out, _ := m.Try("cat", "/run/"+unit+"/seen")
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 2 && f[1] == credential {
			hashes = append(hashes, f[0])
		}
	}
	return hashes
}

// refused expects that a unit does not start, and that the daemon says why.
func (m host) refused(unit, why string) {
	m.T.Helper()
	if out, err := m.Try("systemctl", "start", unit); err != nil {
		m.T.Error(out) // Type=simple: the job is done before the credential is read
	}
	m.Until(unit+" has failed", 20*time.Second, func() bool { return m.Is(unit) == "failed" })
	if got := strings.TrimSpace(m.Run("systemctl", "show", "-P", "ExecMainStatus", unit)); got != "243" {
		m.T.Errorf("%s ended with %s, not with 243/CREDENTIALS", unit, got)
	}
	if seen := m.seen(strings.TrimSuffix(unit, ".service"), "vdab.token"); seen != nil {
		m.T.Errorf("%s has run: %v", unit, seen)
	}
	for what, text := range map[string]string{"journal": m.Journal("credential-broker"), "status": m.Run("broker", "status")} {
		if !strings.Contains(text, why) || !strings.Contains(text, unit) {
			m.T.Errorf("the %s does not say why %s did not start (%s):\n%s", what, unit, why, text)
		}
	}
}

// TestCredentials is one life of a machine: starting costs more than looking.
func TestCredentials(t *testing.T) {
	m := boot(t)
	m.Run("sh", "/mnt/install.sh")
	const none = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // of nothing
	t.Run("waits", func(t *testing.T) {
		real.Row(t, area, server, "a unit that starts before there is a token waits, and starts with one")
		m.T = t
		m.Run("systemctl", "start", "--no-block", "web.service", "other.service")
		m.Until("the daemon holds systemd", 20*time.Second, func() bool {
			out, _ := m.Try("ss", "-xH", "state", "connected", "src", "/run/credential-broker/credential.sock")
			return out != "" && m.Is("credential-broker.service") == "active"
		})
		if seen := m.seen("web", "vdab.token"); seen != nil {
			t.Fatalf("there is a token already: %v", seen)
		}
		m.Run("touch", "/run/issuer-ready")
		m.Until("it has a token", 60*time.Second, func() bool { return len(m.seen("web", "vdab.token")) == 1 && len(m.seen("other", "vdab.token")) == 1 })
		if m.seen("web", "vdab.token")[0] == none || m.seen("web", "vdab.headers")[0] == none {
			t.Error("it is empty")
		}
	})
	t.Run("refused", func(t *testing.T) {
		real.Row(t, area, server, "a token for a unit that is not restarted is refused: the unit fails, journal and status say why")
		m.T = t
		m.refused("job.service", "restart: true")
		m.refused("stranger.service", "no allow entry")
	})
	t.Run("key", func(t *testing.T) {
		real.Row(t, area, server, "an API key needs no restart")
		m.T = t
		m.Run("systemctl", "start", "key.service")
		m.Until("it has the key", 20*time.Second, func() bool { return len(m.seen("key", "vdab.api-key")) == 1 })
	})
	t.Run("user", func(t *testing.T) {
		real.Row(t, area, server, "a user's own manager gets nothing")
		m.T = t
		m.Run("systemctl", "start", "user@2.service")
		// systemd-run would want a bus for users, which this Debian has not.
		start := func(unit, more string) error {
			m.Run("sh", "-euc", `mkdir -p /etc/systemd/user; printf '[Service]\nType=oneshot\nExecStart=touch %%t/'"$0"'\n'"$1" >"/etc/systemd/user/$0.service"`, unit, more)
			_, err := m.Try("setpriv", "--reuid=2", "--regid=2", "--clear-groups", "env", "XDG_RUNTIME_DIR=/run/user/2", "systemctl", "--user", "start", unit+".service")
			return err
		}
		if err := start("bare", ""); err != nil {
			t.Errorf("without a credential: %v", err)
		}
		m.Run("test", "-e", "/run/user/2/bare")
		err := start("own", `LoadCredential=vdab.token:/run/credential-broker/credential.sock\n`)
		if _, has := m.Try("test", "-e", "/run/user/2/own"); err == nil || has == nil {
			t.Errorf("%v; it has run: %v", err, has == nil)
		}
	})
	t.Run("restart", func(t *testing.T) {
		real.Row(t, area, server, "after a rotation the unprivileged daemon restarts the unit, by the polkit rule, and sees it read the new token")
		m.T = t
		m.Run("sh", "/mnt/secret.sh", "nspawn-key-2-a71b2d9e")
		m.Run("broker", "rotate", "vdab")
		m.Until("it has another token", 60*time.Second, func() bool { return len(m.seen("web", "vdab.token")) == 2 })
		if seen := m.seen("web", "vdab.token"); seen[0] == seen[1] || m.Is("web.service") != "active" {
			t.Errorf("%v, %s", seen, m.Is("web.service"))
		}
		m.Until("the daemon knows", 20*time.Second, func() bool { return strings.Contains(m.Journal("credential-broker"), "has read its new credential") })
		m.Until("it says what polkit refuses", 40*time.Second, func() bool {
			return strings.Contains(m.Journal("credential-broker"), "other.service cannot be restarted") && strings.Contains(m.Run("broker", "status"), "50-credential-broker.rules")
		})
		if n := len(m.seen("other", "vdab.token")); n != 1 {
			t.Errorf("other.service was started %d times", n)
		}
		if n := len(m.seen("key", "vdab.api-key")); n != 1 {
			t.Errorf("key.service was started %d times", n)
		}
	})
	if t.Failed() {
		t.Log(m.Run("journalctl", "-q", "--no-pager", "-n", "200"))
	}
}
