//go:build real

package booted

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/nspawn/machine"
	"credentialbroker/integration/real"
)

// cleanMachine is the first day of a host.
func cleanMachine(t *testing.T, packages string) {
	real.Row(t, area, machine.Server+", Vault 1.21.4", "a clean machine: installed, broker setup, a unit of www-data has its token; rebooted, it has one again")
	w := newWorld(t, packages)
	vault := w.vault(t)
	// It keeps what it gets, by boot.
	w.File("php8.2-fpm.service", `[Service]
Type=exec
User=www-data
StateDirectory=php
ExecStart=/bin/sh -c 'token=$(broker token vdab) && echo "$(cat /proc/sys/kernel/random/boot_id) $token" >>/var/lib/php/tokens && exec sleep infinity'
[Install]
WantedBy=multi-user.target
`)
	var l timeline
	served := func(boots int) []string {
		t.Helper()
		var tokens []string
		w.Until("the unit has its token", time.Minute, func() bool {
			out, _ := w.Try("cat", "/var/lib/php/tokens")
			tokens = strings.Fields(out)
			return len(tokens) == 2*boots
		})
		if w.Is("php8.2-fpm.service") != "active" || w.Show("User", "php8.2-fpm.service") != "www-data" {
			t.Error("it does not run")
		}
		return tokens
	}
	l.note("a fresh Debian is switched on")
	w.Boot()
	w.sh("sh /mnt/wires.sh; install -m 0644 /mnt/vault-ca.pem /etc/ssl/certs/; mkdir -p /var/log/journal; systemctl restart systemd-journald")
	l.note("it is up")
	w.Run("dpkg", "-i", older)
	l.note("the package is installed, its sockets listen")
	const setup = `broker setup --json --yes --manager vault --address https://127.0.0.1:8200 --ca-file /etc/ssl/certs/vault-ca.pem --role broker \
	--client vdab --preset vdab-test --path vdab/prod --set token_endpoint=https://127.0.0.1:8443/isam/sps/oauth/oauth20/token --set ca_file=/etc/ssl/certs/issuer-ca.pem \
	--contact you@example.org --purpose test --allow unit=php8.2-fpm.service,user=www-data --leak-by-hand 'the service desk writes'`
	var printed struct {
		Changed bool
		Policy  struct{ Text string }
		Curl    string
	}
	run := func(more string) {
		t.Helper()
		out := w.sh(setup + more + " 2>/run/setup || { cat /run/setup; exit 1; }")
		if err := json.Unmarshal([]byte(out), &printed); err != nil {
			t.Fatal(err, out)
		}
	}
	run(" --dry-run")
	w.appRole(vault, printed.Policy.Text)
	l.note("broker setup --dry-run has printed the policy, Vault's administrator has made the login")
	const login = " --credential role-id=/mnt/role-id.txt --credential secret-id=/mnt/secret-id.txt"
	if run(login); !printed.Changed || !strings.Contains(printed.Curl, "/run/credential-broker/broker.sock") {
		t.Errorf("%+v", printed)
	}
	l.note("broker setup has sealed it, written the configuration, started the daemon, tried everything")
	if run(login); printed.Changed {
		t.Error("the same answers change something")
	}
	if _, err := w.Try("sh", "-c", "grep -rqF -f /mnt/secret-id.txt /etc /var"); err == nil {
		t.Error("the secret-id is on disk in the clear")
	}
	w.sh("install -m 0644 /mnt/php8.2-fpm.service /etc/systemd/system/; systemctl daemon-reload; systemctl enable -q --now php8.2-fpm.service")
	served(1)
	l.note("a unit of www-data has its token")
	w.Reboot()
	l.note("it was rebooted, and is up")
	tokens := served(2)
	l.note("the unit has a token again; nobody did anything")
	if tokens[0] == tokens[2] || tokens[1] == tokens[3] {
		t.Errorf("it was the same boot, or the same token: %s, %s", tokens[0], tokens[2])
	}
	if out := w.Run("broker", "audit", "verify"); !strings.Contains(out, "intact; ") {
		t.Error(out)
	}
	note(t, "clean machine", l.text.String())
	t.Run("purged", func(t *testing.T) {
		real.Row(t, area, machine.Server, "purged: what broker setup has made is gone, with the sealed login")
		w.T = t
		made := w.sh("ls /etc/credstore.encrypted /etc/systemd/system/credential-broker.service.d /etc/credential-broker/clients.d")
		if !strings.Contains(made, "-role-id\n") || !strings.Contains(made, "-secret-id\n") || !strings.Contains(made, "\nsetup-") || !strings.Contains(made, "\nvdab.yaml\n") {
			t.Errorf("made: %s", made)
		}
		w.sh("echo else >/etc/credstore.encrypted/else")
		w.Run("dpkg", "-P", "credential-broker")
		if left := w.sh("ls /etc/credstore.encrypted; ls -d /etc/credential-broker /etc/systemd/system/*credential-broker* 2>/dev/null || true"); left != "else\n" {
			t.Errorf("left: %s", left)
		}
	})
	w.T = t
}
