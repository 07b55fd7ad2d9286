//go:build real

package booted

import (
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/nspawn/machine"
	"credentialbroker/integration/real"
)

// TestCleanMachine is the first day of a host, by docs/install.md.
func TestCleanMachine(t *testing.T) {
	real.Row(t, area, machine.Server+", Vault 1.21.4", "a clean machine: installed, configured, a unit of www-data has its token; rebooted, it has one again")
	w := newWorld(t)
	deb := w.deb(t, "1.0.0")
	w.appRole(w.vault(t), `
path "secret/data/vdab/prod"     { capabilities = ["read"] }
path "secret/metadata/vdab/prod" { capabilities = ["read"] }`)
	w.File("broker.yaml", `
providers:
  corp:
    vault:
      address: https://127.0.0.1:8200
      ca_file: /etc/ssl/certs/vault-ca.pem
      auth: { approle: { role_id_file: "${CREDENTIALS_DIRECTORY}/role-id", secret_id_file: "${CREDENTIALS_DIRECTORY}/secret-id" } }
`)
	w.File("vdab.yaml", `clients:
  vdab:
    preset: vdab-test
    token_endpoint: https://127.0.0.1:8443/isam/sps/oauth/oauth20/token
    ca_file: /etc/ssl/certs/issuer-ca.pem
    secret: { provider: corp, mount: secret, path: vdab/prod }
    owner: { contact: you@example.org, purpose: test }
    allow:
      - { unit: php8.2-fpm.service, user: www-data }
`)
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
	w.Run("dpkg", "-i", deb)
	l.note("the package is installed, its sockets listen")
	w.sh(`cat /mnt/broker.yaml >>/etc/credential-broker/broker.yaml
install -m 0644 /mnt/vdab.yaml /etc/credential-broker/clients.d/vdab.yaml
install -d -m 0700 /etc/credstore.encrypted
systemd-creds encrypt --name=role-id /mnt/role-id.txt /etc/credstore.encrypted/role-id
systemd-creds encrypt --name=secret-id /mnt/secret-id.txt /etc/credstore.encrypted/secret-id
install -D -m 0644 /usr/share/credential-broker/drop-ins/credentials.conf /etc/systemd/system/credential-broker.service.d/credentials.conf
systemctl daemon-reload
broker check`)
	l.note("the login at Vault is sealed, the client is configured, broker check is content")
	w.sh("systemctl restart credential-broker; broker status")
	w.Until("all is well", 30*time.Second, func() bool { _, err := w.Try("broker", "status", "--check"); return err == nil })
	l.note("the daemon has read the secret: broker status --check")
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
}
