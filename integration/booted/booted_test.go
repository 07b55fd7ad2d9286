//go:build real

package booted

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/nspawn/machine"
	"credentialbroker/integration/real"
)

const (
	service = "credential-broker.service"
	socket  = "credential-broker.socket"
)

var sockets = []string{socket, "credential-broker-admin.socket", "credential-broker-credential.socket"}

func TestBooted(t *testing.T) {
	dir := packages(t)
	t.Run("life", func(t *testing.T) { life(t, dir) })
	t.Run("clean", func(t *testing.T) { cleanMachine(t, dir) })
}

// life is that of one machine: starting costs more than looking.
func life(t *testing.T, packages string) {
	w := newWorld(t, packages)
	w.Machine.Build("load", "./load")
	w.sealed()
	w.File("vdab.yaml", `clients:
  vdab:
    preset: vdab-test
    token_endpoint: https://127.0.0.1:8443/isam/sps/oauth/oauth20/token
    ca_file: /etc/ssl/certs/issuer-ca.pem
    secret: { provider: local, path: vdab }
    owner: { contact: you@example.org, purpose: test }
    allow:
      - { unit: load.service }
      - { unit: feed.service }
      - { user: batch }
`)
	w.Boot()
	w.sh("sh /mnt/wires.sh; useradd --system batch; useradd --create-home vacatures")
	for _, step := range []struct {
		name, what string
		test       func(*testing.T, *world)
	}{
		{"installed", "dpkg -i: the user is made, sockets listen and are enabled, the daemon does not run", func(t *testing.T, w *world) { installed(t, w, older) }},
		{"activated", "the first that connects starts the daemon (Type=notify), waits, and gets its token", activated},
		{"sealed", "LoadCredentialEncrypted=, sealed with the host's key: the daemon reads what decrypts its store, nobody else does", sealedLogin},
		{"callers", "unit: and user: entries match system units; a user unit of the same name is refused", callers},
		{"reload", "systemctl reload with a mistake fails, the journal names file and line, tokens go on", reload},
		{"watchdog", "a daemon that hangs is killed and comes back; who connected meanwhile is answered", watchdog},
		{"restart", "systemctl restart under load: 16 consumers, none fails, no connection is cut", restart},
		{"carried", "systemctl restart costs no token: the next daemon finds it in the descriptor store, and leaves nothing there; a stop drops it", carried},
		{"killed", "SIGKILL under load: connections queue, none is refused; requests in mid-answer are cut, at most one a consumer, and answered when repeated", killed},
		{"anchors", "audit verify compares the log with the journal's anchors; a log that was cut short is noticed", anchors},
		{"exposure", "systemd-analyze: the installed service's exposure is 1.5 or lower, and verify finds nothing in the installed units", exposure},
		{"sandbox", "the daemon as it runs: no capability, system calls filtered, no new privileges, nothing to write but its state, its files and sockets, and what is temporary", sandbox},
		{"enforced", "MemoryMax=, MemorySwapMax=, LimitMEMLOCK=, IPAddressDeny= and RestrictFileSystems= are defied: what nspawn lets pass is listed, and not counted", enforced},
		{"upgrade", "upgrade under load: no consumer fails, sockets stay up, the new version serves, configuration and audit log go on", func(t *testing.T, w *world) { replaced(t, w, newer, "1.1.0") }},
		{"downgrade", "downgrade under load, likewise", func(t *testing.T, w *world) { replaced(t, w, older, "1.0.0") }},
		{"stopped", "sockets that were stopped stay so over an upgrade, and disabled ones over a reboot too", stopped},
		{"removed", "removed: sockets and daemon are gone, configuration and state stay; installed again it serves as before", func(t *testing.T, w *world) { removed(t, w, older) }},
		{"purged", "purged: configuration is gone, the audit log stays, its user's alone, and a store and a drop-in of somebody else's; the package says so", purged},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			real.Row(t, area, machine.Server, step.what)
			w.T = t
			step.test(t, w)
		}) && step.name == "activated" {
			break // nothing else can be seen
		}
	}
	w.T = t
	if t.Failed() {
		t.Log(w.Run("sh", "-c", "journalctl -q --no-pager -n 900 | grep -v -e ' fp=0x' -e '+0x' -e runtime/"))
	}
}

func installed(t *testing.T, w *world, deb string) {
	w.Run("dpkg", "-i", deb)
	if out := w.Run("id", "credential-broker"); !strings.Contains(out, "(credential-broker)") {
		t.Error(out)
	}
	for _, s := range sockets {
		if w.Is(s) != "active" || w.Show("UnitFileState", s) != "enabled" {
			t.Errorf("%s is %s, %s", s, w.Is(s), w.Show("UnitFileState", s))
		}
	}
	for _, name := range []string{"broker", "admin", "credential"} {
		if w.Run("ss", "-xlH", "src", "/run/credential-broker/"+name+".sock") == "" {
			t.Errorf("nobody listens on %s.sock", name)
		}
	}
	if w.Is(service) != "inactive" || w.Show("UnitFileState", service) != "enabled" {
		t.Errorf("the daemon is %s, %s", w.Is(service), w.Show("UnitFileState", service))
	}
}

func activated(t *testing.T, w *world) {
	w.sh(`install -D -m 0644 /mnt/vdab.age /etc/credential-broker/secrets/vdab.age
install -m 0644 /mnt/vdab.yaml /etc/credential-broker/clients.d/vdab.yaml
cat >>/etc/credential-broker/broker.yaml <<END
providers:
  local: { file: { path: /etc/credential-broker/secrets, identity_file: "\${CREDENTIALS_DIRECTORY}/identity" } }
END
install -d -m 0700 /etc/credstore.encrypted
systemd-creds encrypt --name=identity /mnt/identity /etc/credstore.encrypted/identity
mkdir -p /etc/systemd/system/credential-broker.service.d
printf '[Service]\nLoadCredentialEncrypted=identity:/etc/credstore.encrypted/identity\n' >/etc/systemd/system/credential-broker.service.d/credentials.conf
systemctl daemon-reload`)
	if w.Is(service) != "inactive" {
		t.Fatal("it runs already")
	}
	w.wantToken("feed.service")
	if w.Is(service) != "active" || w.Show("Type", service) != "notify" || w.Show("StatusText", service) == "" {
		t.Errorf("%s, Type=%s, status %q", w.Is(service), w.Show("Type", service), w.Show("StatusText", service))
	}
	if n := w.issuer.Stats().Minted; n != 1 {
		t.Errorf("%d tokens were minted", n)
	}
}

func sealedLogin(t *testing.T, w *world) {
	if out, err := w.Try("grep", "-rl", "AGE-SECRET-KEY", "/etc", "/var"); err == nil {
		t.Errorf("on disk in the clear: %s", out)
	}
	const file = "/run/credentials/credential-broker.service/identity"
	if out, err := w.Try("setpriv", "--reuid=credential-broker", "--regid=credential-broker", "--clear-groups", "grep", "-c", "AGE-SECRET-KEY", file); err != nil {
		t.Errorf("the daemon's user cannot read it: %s", out)
	}
	if out, err := w.Try("setpriv", "--reuid=vacatures", "--regid=vacatures", "--clear-groups", "cat", file); err == nil {
		t.Errorf("somebody else can read it: %s", out)
	}
	// Sealed under another name, it is another credential.
	w.sh(`systemd-creds encrypt --name=other /mnt/identity /run/other
if systemd-creds decrypt --name=identity /run/other - >/dev/null 2>&1; then exit 1; fi`)
}

func callers(t *testing.T, w *world) {
	w.wantToken("feed.service", "User=vacatures")
	w.wantToken("nightly.service", "User=batch")
	refused := func(what, out string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(out, "no allow entry") {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
	}
	out, err := w.token("nightly.service", "User=vacatures")
	refused("another user", out, err)
	w.Run("loginctl", "enable-linger", "vacatures")
	uid := strings.TrimSpace(w.Run("id", "-u", "vacatures"))
	w.Until("the user's manager is up", 30*time.Second, func() bool { return w.Is("user@"+uid+".service") == "active" })
	// The user's systemd-run would want a bus for users, which this Debian has not.
	w.sh(`mkdir -p /etc/systemd/user; cat >/etc/systemd/user/feed.service <<END
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'broker whoami >%t/whoami 2>&1 && ! broker token vdab >%t/token 2>&1'
END`)
	out, err = w.Try("setpriv", "--reuid=vacatures", "--regid=vacatures", "--clear-groups", "env", "XDG_RUNTIME_DIR=/run/user/"+uid, "systemctl", "--user", "start", "feed.service")
	if err != nil {
		t.Errorf("the user's own feed.service: %v\n%s", err, out)
	}
	if out := w.Run("cat", "/run/user/"+uid+"/whoami"); !strings.Contains(out, "feed.service") {
		t.Errorf("it was no unit of that name: %s", out)
	}
	if out := w.Run("cat", "/run/user/"+uid+"/token"); !strings.Contains(out, "no allow entry") {
		t.Errorf("it was not refused: %s", out)
	}
}

func reload(t *testing.T, w *world) {
	defer w.sh("rm /etc/credential-broker/clients.d/other.yaml; systemctl reload " + service)
	w.sh(`printf 'clients:\n  other:\n    presett: vdab-test\n' >/etc/credential-broker/clients.d/other.yaml`)
	if out, err := w.Try("systemctl", "reload", service); err == nil {
		t.Errorf("it succeeds: %s", out)
	}
	w.Until("the journal says where", 10*time.Second, func() bool {
		return strings.Contains(w.Journal(service), "clients.d/other.yaml:3")
	})
	w.wantToken("feed.service")
	if w.Is(service) != "active" {
		t.Error("it has ended")
	}
}

func watchdog(t *testing.T, w *world) {
	if got := w.Show("WatchdogUSec", service); got != "1min" {
		t.Errorf("the installed unit's watchdog: %s", got)
	}
	const conf = "/etc/systemd/system/credential-broker.service.d/watchdog.conf"
	w.sh(`printf '[Service]\nWatchdogSec=8s\n' >` + conf + `; systemctl daemon-reload; systemctl restart ` + service)
	w.wantToken("feed.service")
	pid := w.Show("MainPID", service)
	w.Run("kill", "-STOP", pid)
	w.Run("systemd-run", "-q", "--unit=feed.service", "-p", "RemainAfterExit=yes", "-p", "StandardOutput=file:/run/feed-token", "broker", "token", "vdab")
	w.Until("somebody waits for an answer", 10*time.Second, func() bool { return w.Show("SubState", "feed.service") == "running" })
	w.Until("it is answered", time.Minute, func() bool {
		sub := w.Show("SubState", "feed.service")
		if sub == "failed" {
			t.Fatal(w.Journal("feed.service"))
		}
		return sub == "exited"
	})
	if out := w.Run("cat", "/run/feed-token"); len(out) < 20 {
		t.Errorf("no token: %s", out)
	}
	w.Run("systemctl", "stop", "feed.service")
	if again := w.Show("MainPID", service); again == pid || w.Show("NRestarts", service) != "1" {
		t.Errorf("process %s after %s, %s restarts", again, pid, w.Show("NRestarts", service))
	}
	if !strings.Contains(w.Journal(service), "Watchdog timeout") {
		t.Error("the journal names no watchdog")
	}
	w.sh("rm " + conf + "; systemctl daemon-reload; systemctl restart " + service)
}

func restart(t *testing.T, w *world) {
	pid := w.Show("MainPID", service)
	c := w.underLoad(func() { w.Run("systemctl", "restart", service) })
	if c.Cut != 0 {
		t.Errorf("%d connections were cut, the first: %s", c.Cut, c.First)
	}
	if w.Show("MainPID", service) == pid {
		t.Error("it is the same process")
	}
}

func carried(t *testing.T, w *world) {
	before, _ := w.token("feed.service")
	minted := w.issuer.Stats().Minted
	w.Run("systemctl", "restart", service)
	if after, err := w.token("feed.service"); err != nil || after != before {
		t.Errorf("it is another token: %v", err)
	}
	if n := w.issuer.Stats().Minted - minted; n != 0 {
		t.Errorf("the restart cost %d tokens", n)
	}
	if n := w.Show("NFileDescriptorStore", service); n != "0" {
		t.Errorf("%s descriptors are in the store", n)
	}
	w.Run("systemctl", "stop", service)
	if after, err := w.token("feed.service"); err != nil || after == before || w.issuer.Stats().Minted != minted+1 {
		t.Errorf("after a stop: %v, %d tokens were minted", err, w.issuer.Stats().Minted-minted)
	}
}

func killed(t *testing.T, w *world) {
	pid := w.Show("MainPID", service)
	c := w.underLoad(func() {
		w.Run("kill", "-KILL", pid)
		w.Until("it is back", 30*time.Second, func() bool { return w.Is(service) == "active" && w.Show("MainPID", service) != pid })
	})
	if c.Cut > 16 {
		t.Errorf("%d connections were cut, the first: %s", c.Cut, c.First)
	}
	if n, _ := strconv.Atoi(w.Show("NRestarts", service)); n != 1 {
		t.Errorf("%d restarts", n)
	}
}

func anchors(t *testing.T, w *world) {
	w.Run("systemctl", "restart", service) // its last entry is an anchor
	w.wantToken("feed.service")
	out := w.Run("broker", "audit", "verify")
	if m := regexp.MustCompile(`intact; (\d+) anchors fit`).FindStringSubmatch(out); m == nil || len(m[1]) == 1 && m[1] < "2" {
		t.Errorf("%s", out)
	}
	// Half of the newest file is taken away, as by somebody who was there.
	w.sh(`rm -rf /run/cut; cp -a /var/lib/credential-broker/audit /run/cut
newest=$(ls -d /run/cut/*.jsonl | tail -n 1)
lines=$(wc -l <"$newest")
head -n $((lines / 2)) "$newest" >"$newest.new"
mv "$newest.new" "$newest"`)
	if out, err := w.Try("broker", "audit", "verify", "--dir", "/run/cut"); err == nil || !strings.Contains(out, "WRONG") {
		t.Errorf("a log that was cut short: %v\n%s", err, out)
	}
}

func exposure(t *testing.T, w *world) {
	out := w.Run("systemd-analyze", "security", "--no-pager", service)
	m := regexp.MustCompile(`Overall exposure level for credential-broker.service: ([0-9.]+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatal(out)
	}
	t.Log("exposure", m[1])
	if score, err := strconv.ParseFloat(m[1], 64); err != nil || score > 1.5 {
		t.Errorf("%v %s", err, out)
	}
	if out, err := w.Try(append([]string{"systemd-analyze", "verify", "--man=no", service}, sockets...)...); err != nil || out != "" {
		t.Errorf("verify: %v\n%s", err, out)
	}
}

func sandbox(t *testing.T, w *world) {
	pid := w.Show("MainPID", service)
	status := w.Run("cat", "/proc/"+pid+"/status")
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, want+"\n") {
			t.Errorf("not %q:\n%s", want, status)
		}
	}
	out := w.Run("nsenter", "-t", pid, "-m", "setpriv", "--reuid=credential-broker", "--regid=credential-broker", "--clear-groups", "sh", "-c",
		`find / \( -path /proc -o -path /sys \) -prune -o -writable ! -type l ! -type c ! -type s -print 2>/dev/null; true`)
	for _, path := range []string{"/var/lib/credential-broker", "/run/credential-broker/files", "/run/credential-broker/proxy"} {
		if !strings.Contains(out, "\n"+path+"\n") {
			t.Errorf("it may not write %s:\n%s", path, out)
		}
	}
	for path := range strings.FieldsSeq(out) {
		if !regexp.MustCompile(`^(/tmp|/var/tmp|/dev/shm|/dev/mqueue|/var/lib/credential-broker(/.*)?|/run/credential-broker/(files|proxy))$`).MatchString(path) {
			t.Errorf("it may write %s", path)
		}
	}
}

func enforced(t *testing.T, w *world) {
	var list strings.Builder
	for _, c := range []struct{ property, defiance string }{
		{"MemoryMax=8M", "head -c 64M /dev/zero | tail -c 64M | wc -c"},
		{"MemorySwapMax=0", "head -c 64M /dev/zero | tail -c 64M | wc -c"},
		{"IPAddressDeny=any", "timeout 3 bash -c 'exec 3<>/dev/tcp/127.0.0.1/8443'"},
		{"RestrictFileSystems=ext4", "cat /proc/version"},
		{"LimitMEMLOCK=64M", "test $(ulimit -l) != 65536"},
		{"LimitMEMLOCK=1G", "test $(ulimit -l) != 1048576"},
	} {
		try := func(property string) error {
			_, err := w.Try("systemd-run", "-q", "--wait", "--pipe", "--collect", "-p", property, "bash", "-euc", c.defiance)
			return err
		}
		if err := try("Nice=0"); err != nil {
			t.Errorf("%s: without it, that fails too: %v", c.property, err)
		}
		verdict := "enforced"
		if try(c.property) == nil {
			verdict = "NOT enforced, not counted"
		}
		list.WriteString(c.property + "\t" + verdict + "\n")
	}
	note(t, "enforced", list.String())
}

// audited is the number of the log's newest entry, which is intact.
func (w *world) audited() int {
	w.T.Helper()
	out := w.Run("broker", "audit", "verify")
	m := regexp.MustCompile(`entries 1 to (\d+) in`).FindStringSubmatch(out)
	if m == nil || !strings.Contains(out, "intact; ") {
		w.T.Fatal(out)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

func replaced(t *testing.T, w *world, deb, version string) {
	up, entries := w.Show("ActiveEnterTimestampMonotonic", socket), w.audited()
	config := w.Run("cat", "/etc/credential-broker/broker.yaml")
	c := w.underLoad(func() {
		w.Run("dpkg", "-i", "--force-confold", deb)
		w.Until("the daemon is up", 30*time.Second, func() bool { return w.Is(service) == "active" })
	})
	if c.Cut != 0 {
		t.Errorf("%d connections were cut, the first: %s", c.Cut, c.First)
	}
	if got := w.Show("ActiveEnterTimestampMonotonic", socket); got != up {
		t.Errorf("the socket was down: up since %s, not %s", got, up)
	}
	if out := w.Run("/proc/"+w.Show("MainPID", service)+"/exe", "--version"); !strings.Contains(out, version) {
		t.Errorf("%q serves", out)
	}
	if w.Run("cat", "/etc/credential-broker/broker.yaml") != config {
		t.Error("the configuration has changed")
	}
	if n := w.audited(); n <= entries {
		t.Errorf("%d entries after %d", n, entries)
	}
	w.wantToken("feed.service")
}

// stopped is what the runbook for leaks ends all hand-outs with, and the brief
// stop of the page on backups.
func stopped(t *testing.T, w *world) {
	is := func(when, want string) {
		t.Helper()
		for _, unit := range append([]string{service}, sockets...) {
			if got := w.Is(unit); got != want {
				t.Errorf("%s, %s is %s", when, unit, got)
			}
		}
	}
	units := strings.Join(append(sockets, service), " ")
	w.sh("systemctl stop " + units)
	w.Run("dpkg", "-i", "--force-confold", newer)
	is("stopped, then upgraded", "inactive")
	w.sh("systemctl start " + service)
	is("started", "active")
	runbook, err := os.ReadFile(filepath.Join(real.Root(), "docs", "leak-runbook.md"))
	disable := "systemctl disable --now " + units
	if err != nil || !strings.Contains(string(runbook), "\n"+disable+"\n") {
		t.Fatalf("the runbook does not say %q: %v", disable, err)
	}
	w.sh(disable)
	w.Run("dpkg", "-i", "--force-confold", older)
	is("disabled, then downgraded", "inactive")
	w.Reboot()
	is("disabled, then booted", "inactive")
	w.sh("systemctl enable -q --now " + service)
	is("enabled", "active")
	w.wantToken("feed.service")
}

func removed(t *testing.T, w *world, deb string) {
	entries := w.audited()
	w.Run("dpkg", "-r", "credential-broker")
	for _, unit := range append([]string{service}, sockets...) {
		if is := w.Is(unit); is != "inactive" {
			t.Errorf("%s is %s", unit, is)
		}
	}
	if left := w.sh("ls /run/credential-broker 2>/dev/null | grep sock || true"); left != "" {
		t.Errorf("left in /run: %s", left)
	}
	if out := w.Run("sh", "-c", "pgrep brokerd || true"); out != "" {
		t.Errorf("it still runs: %s", out)
	}
	w.sh("test -s /etc/credential-broker/clients.d/vdab.yaml; test -s /etc/credential-broker/broker.yaml; test -d /var/lib/credential-broker/audit; ! test -e /usr/bin/broker")
	w.Run("dpkg", "-i", deb)
	for _, s := range sockets {
		if w.Is(s) != "active" {
			t.Errorf("installed again, %s is %s", s, w.Is(s))
		}
	}
	w.wantToken("feed.service")
	if n := w.audited(); n <= entries {
		t.Errorf("%d entries after %d", n, entries)
	}
}

func purged(t *testing.T, w *world) {
	out := w.Run("dpkg", "-P", "credential-broker")
	for _, want := range []string{"stay in /var/lib/credential-broker", "stays in /etc/credential-broker;", "stays in /etc/systemd/system/credential-broker.service.d;"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q: %s", want, out)
		}
	}
	if got := w.sh("stat -c '%a %U' /var/lib/credential-broker"); got != "700 credential-broker\n" {
		t.Error(got)
	}
	w.sh("test -n \"$(ls /var/lib/credential-broker/audit)\"; ! test -e /etc/credential-broker/broker.yaml; ! test -e /etc/credential-broker/clients.d; test -s /etc/credential-broker/secrets/vdab.age")
	if left := w.sh("ls /var/lib/credential-broker"); strings.TrimSpace(left) != "audit\nincidents" {
		t.Errorf("left: %q", left)
	}
}
