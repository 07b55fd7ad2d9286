// Package systemd_test checks the units: what they promise, with Go alone, and
// what systemd says of them.
package systemd_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A unit is a file's directives, by section and name, in order.
type unit struct {
	directives map[string][]string // "Service.User": its values
	comments   string
}

func read(t *testing.T, name string) unit {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	u := unit{directives: map[string][]string{}}
	section := ""
	for i, line := range strings.Split(string(b), "\n") {
		switch {
		case strings.HasPrefix(line, "#"):
			u.comments += strings.TrimPrefix(line, "#") + "\n"
		case strings.HasPrefix(line, "["):
			section = strings.Trim(line, "[]")
		case line != "":
			key, value, ok := strings.Cut(line, "=")
			if !ok || section == "" || strings.TrimSpace(line) != line {
				t.Errorf("%s:%d: %q is no directive", name, i+1, line)
			}
			u.directives[section+"."+key] = append(u.directives[section+"."+key], value)
		}
	}
	return u
}

// has expects the directives, each exactly so, and gives the reason if not.
func (u unit) has(t *testing.T, name string, want [][3]string) {
	t.Helper()
	for _, w := range want {
		if got := strings.Join(u.directives[w[0]], " | "); got != w[1] {
			t.Errorf("%s: %s=%s, want %s: %s", name, w[0], got, w[1], w[2])
		}
	}
}

func TestSockets(t *testing.T) {
	for name, w := range map[string]struct{ path, fd, mode, reason string }{
		"credential-broker.socket":            {"/run/credential-broker/broker.sock", "broker", "0666", "anyone may connect, the kernel's word decides"},
		"credential-broker-admin.socket":      {"/run/credential-broker/admin.sock", "admin", "0666", "anyone may connect, the kernel's word decides"},
		"credential-broker-credential.socket": {"/run/credential-broker/credential.sock", "credential", "0600", "systemd connects as root"},
	} {
		read(t, name).has(t, name, [][3]string{
			{"Socket.ListenStream", w.path, "programs and recipes look there"},
			{"Socket.FileDescriptorName", w.fd, "the daemon knows its sockets by these names"},
			{"Socket.Service", "credential-broker.service", "one daemon has them all"},
			{"Socket.SocketMode", w.mode, "the daemon refuses to start on another: " + w.reason},
			{"Socket.DirectoryMode", "0755", "others have to reach the socket, and only root may replace it"},
			{"Socket.Accept", "", "one process has all connections"},
			{"Install.WantedBy", "sockets.target", "the first consumer starts the daemon"},
		})
	}
}

func TestService(t *testing.T) {
	const name = "credential-broker.service"
	u := read(t, name)
	u.has(t, name, [][3]string{
		{"Unit.Requires", "credential-broker.socket credential-broker-admin.socket credential-broker-credential.socket", "without its sockets, the daemon would make others that a restart loses"},
		{"Unit.StartLimitIntervalSec", "0", "recovery needs nobody"},
		{"Service.Type", "notify", "who waits for the unit waits for a daemon that serves"},
		{"Service.ExecStart", "/usr/libexec/credential-broker/brokerd serve", "the package puts it there"},
		{"Service.ExecReload", "/usr/bin/broker reload", "it fails with the configuration's error"},
		{"Service.WatchdogSec", "60s", "a daemon that hangs is replaced"},
		{"Service.Restart", "on-failure", ""},
		{"Service.RestartPreventExitStatus", "64 78", "wrong usage and configuration are for a person"},
		{"Service.FileDescriptorStoreMax", "1", "a restart costs no token"},
		{"Service.User", "credential-broker", "the user of sysusers.conf"},
		{"Service.StateDirectory", "credential-broker", "the daemon finds it in STATE_DIRECTORY"},
		{"Service.StateDirectoryMode", "0700", "the daemon refuses to start on another"},
		{"Service.RuntimeDirectory", "credential-broker/files credential-broker/proxy", "the innermost directories alone goes with a stop; the one of the sockets has to stay"},
		{"Service.RuntimeDirectoryMode", "0711", "readers of files pass through it"},
		{"Service.RuntimeDirectoryPreserve", "restart", "a restart takes no file away, and a stop all"},
		{"Service.LimitCORE", "0", "a core has tokens in it"},
		{"Service.LimitMEMLOCK", "64M", "secrets are in locked memory"},
		{"Service.MemorySwapMax", "0", "tokens are in memory that could be swapped"},
		{"Service.CapabilityBoundingSet", "", "no privilege is needed"},
		{"Service.ProtectProc", "default", "the daemon reads the cgroup of its callers"},
		{"Service.SystemCallFilter", "@system-service memfd_secret | ~@privileged @resources", "memfd_secret is not among @system-service"},
		{"Service.RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6", ""},
		{"Install.Also", "credential-broker.socket credential-broker-admin.socket credential-broker-credential.socket", "one systemctl enable does it"},
	})
	for _, set := range []string{"CapabilityBoundingSet", "AmbientCapabilities"} {
		if len(u.directives["Service."+set]) != 1 {
			t.Errorf("%s= has to be there, and empty: without it, all are kept", set)
		}
	}
	for directive, reason := range map[string]string{
		"DynamicUser":     "the group in the configuration files' modes has to stay the same",
		"PrivateUsers":    "SO_PEERCRED would give every caller as nobody",
		"PrivatePIDs":     "SO_PEERCRED would give no pid",
		"PrivateNetwork":  "issuers are somewhere in the network",
		"IPAddressDeny":   "only the site knows the addresses",
		"RootDirectory":   "CA certificates and users are the machine's",
		"PassEnvironment": "no secret comes by the environment",
		"EnvironmentFile": "no secret comes by the environment",
	} {
		if v, ok := u.directives["Service."+directive]; ok {
			t.Errorf("%s=%s: %s", directive, v, reason)
		}
	}
}

// TestComments: what a comment says is missing, is; every other directive that
// one names is there, so that no comment outlives what it explains.
func TestComments(t *testing.T) {
	named := regexp.MustCompile(`\b([A-Z][A-Za-z]+)=(?:[a-z-]*)`)
	elsewhere := []string{"Type", "DynamicUser"} // named as what is not done, in other words
	u := read(t, "credential-broker.service")
	sentences := strings.Split(strings.Join(strings.Fields(u.comments), " "), ". ")
	missing, there := 0, 0
	for _, s := range sentences {
		for _, m := range named.FindAllStringSubmatch(s, -1) {
			_, has := u.directives["Service."+m[1]]
			switch says := regexp.MustCompile(`\b(is|are) missing\b`).MatchString(s); {
			case slices.Contains(elsewhere, m[1]):
			case says:
				missing++
				if has {
					t.Errorf("a comment says that %s= is missing, and it is not", m[1])
				}
			default:
				there++
				if !has {
					t.Errorf("a comment names %s=, which is not there: %s", m[1], s)
				}
			}
		}
	}
	if missing < 5 || there < 1 {
		t.Errorf("%d directives said to be missing, %d others: the comments are not read as meant", missing, there)
	}
}

// TestDropIns: what is shipped as an example fits the service.
func TestDropIns(t *testing.T) {
	files, err := filepath.Glob("drop-ins/*.conf")
	if err != nil || len(files) < 3 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		u := read(t, f)
		for key := range u.directives {
			if !strings.HasPrefix(key, "Service.") {
				t.Errorf("%s: %s", f, key)
			}
		}
		if !strings.Contains(u.comments, "/etc/systemd/system/credential-broker.service.d/") {
			t.Errorf("%s does not say where it goes", f)
		}
	}
	const executable = "drop-ins/executable.conf"
	read(t, executable).has(t, executable, [][3]string{
		{"Service.CapabilityBoundingSet", "CAP_SYS_PTRACE", "and no other"},
		{"Service.AmbientCapabilities", "CAP_SYS_PTRACE", "the daemon is not root: the bounding set alone gives it nothing"},
	})
	const group = "drop-ins/files.conf"
	read(t, group).has(t, group, [][3]string{{"Service.SystemCallFilter", "fchown", "the service's own filter takes it away, with all of @chown"}})
	b, err := os.ReadFile("sysusers.conf")
	if user := read(t, "credential-broker.service").directives["Service.User"][0]; err != nil || !strings.Contains(string(b), "\nu "+user+" - ") {
		t.Errorf("sysusers.conf makes no user %s: %v", user, err)
	}
}
