//go:build real

package nspawn

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/real"
)

// TestRecipes is what docs/servers.md says of systemd: the timer, and what
// hides the socket.
func TestRecipes(t *testing.T) {
	const area, page = "recipes for servers", "servers.md"
	m := boot(t)
	config, err := os.ReadFile(filepath.Join(m.Share, "broker.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(config), "    allow:")
	m.File("broker.yaml", head+real.Block(t, page, "timer.allow"))
	m.File("vacatures-feed.service", real.Block(t, page, "vacatures-feed.service"))
	m.File("vacatures-feed.timer", real.Block(t, page, "vacatures-feed.timer"))
	m.File("vacatures-feed", "#!/bin/sh\nset -eu\nbroker token vdab >\"$1.new\"\nmv \"$1.new\" \"$1\"\n") // this machine has no curl
	m.File("now.conf", "[Timer]\nOnActiveSec=0\nRandomizedDelaySec=0\n")
	m.Run("sh", "-ec", `sh /mnt/install.sh
touch /run/issuer-ready
useradd --system vacatures
install -m 0755 /mnt/vacatures-feed /usr/local/bin/
install -m 0644 /mnt/vacatures-feed.service /mnt/vacatures-feed.timer /etc/systemd/system/
install -D -m 0644 /mnt/now.conf /etc/systemd/system/vacatures-feed.timer.d/now.conf
systemctl daemon-reload`)

	t.Run("timer", func(t *testing.T) {
		real.Row(t, area, server, "the timer runs the job in its unit and sandbox, which gets a token; the user elsewhere is refused")
		m.T = t
		m.Run("systemctl", "enable", "-q", "--now", "vacatures-feed.timer")
		m.Until("the feed is there", time.Minute, func() bool {
			out, err := m.Try("cat", "/var/lib/vacatures/feed.json")
			return err == nil && len(strings.TrimSpace(out)) > 20
		})
		if next := m.Run("systemctl", "show", "-P", "TimersCalendar", "vacatures-feed.timer"); !strings.Contains(next, "*-*-* *:00/15:00") {
			t.Errorf("the timer's calendar: %s", next)
		}
		out, err := m.Try("setpriv", "--reuid=vacatures", "--regid=vacatures", "--clear-groups", "broker", "token", "vdab")
		if err == nil || !strings.Contains(out, "no allow entry") {
			t.Errorf("outside of the unit: %v %s", err, out)
		}
	})
	t.Run("sandboxes", func(t *testing.T) {
		real.Row(t, area, server, "which sandboxes hide the socket from a unit, and what shows it again")
		m.T = t
		for _, c := range []struct{ properties, hidden string }{
			{"ProtectSystem=strict PrivateTmp=yes PrivateNetwork=yes ProtectProc=invisible NoNewPrivileges=yes", ""},
			{"PrivateUsers=yes", ""},
			{"DynamicUser=yes", ""},
			{"TemporaryFileSystem=/run", "no such file"},
			{"TemporaryFileSystem=/run BindReadOnlyPaths=/run/credential-broker", ""},
			{"InaccessiblePaths=/run/credential-broker", "permission denied"},
			{"RootDirectory=/srv BindReadOnlyPaths=/usr", "no such file"},
			{"RootDirectory=/srv BindReadOnlyPaths=/usr BindReadOnlyPaths=/run/credential-broker", ""},
			{"RestrictAddressFamilies=AF_INET", "address family not supported"},
			{"SystemCallFilter=~@network-io SystemCallErrorNumber=EPERM", "operation not permitted"},
		} {
			args := []string{"systemd-run", "-q", "--wait", "--pipe"}
			if !strings.Contains(c.properties, "DynamicUser") {
				args = append(args, "-p", "User=vacatures")
			}
			for p := range strings.FieldsSeq(c.properties) {
				args = append(args, "-p", p)
			}
			out, err := m.Try(append(args, "broker", "whoami")...)
			switch {
			case c.hidden == "" && (err != nil || !strings.Contains(out, ".service")):
				t.Errorf("%s: %v\n%s", c.properties, err, out)
			case c.hidden != "" && (err == nil || !strings.Contains(out, c.hidden)):
				t.Errorf("%s: %v, not %q\n%s", c.properties, err, c.hidden, out)
			}
		}
	})
}
