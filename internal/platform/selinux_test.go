package platform

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const program = "/usr/libexec/credential-broker/brokerd"

// well is a host on which everything is labelled as the policy says.
func well() map[string]string {
	return map[string]string{
		"/sys/fs/selinux/enforce":                                  "1",
		"/sys/fs/selinux/booleans/credential_broker_httpd_connect": "1 1",
		"/proc/self/attr/current":                                  "system_u:system_r:credential_broker_t:s0\x00",
	}
}

func files() []string {
	return []string{"/etc/credential-broker/broker.yaml", "/var/lib/credential-broker", "/run/credential-broker/broker.sock",
		"/run/credential-broker/admin.sock", "/run/credential-broker/credential.sock", "/home/own/broker.sock"}
}

func TestSELinux(t *testing.T) {
	const sock = "/run/credential-broker/broker.sock"
	for name, test := range map[string]struct {
		change map[string]string // files of the host; "-": not there
		labels map[string]string // of those that are not as the policy says; "-": the file is not there
		httpd  bool
		want   []string
	}{
		"well":               {httpd: true},
		"permissive":         {change: map[string]string{"/sys/fs/selinux/enforce": "0", "/sys/fs/selinux/booleans/" + httpdConnect: "-"}, httpd: true},
		"no SELinux":         {change: map[string]string{"/sys/fs/selinux/enforce": "-", "/sys/fs/selinux/booleans/" + httpdConnect: "-"}, httpd: true},
		"no module":          {change: map[string]string{"/sys/fs/selinux/booleans/" + httpdConnect: "-"}, labels: map[string]string{sock: "a:b:var_run_t:s0"}, want: []string{"module: the policy module credential_broker is not loaded: compile it from /usr/share/credential-broker/selinux, and run semodule -i credential_broker.pp"}},
		"boolean off":        {change: map[string]string{"/sys/fs/selinux/booleans/" + httpdConnect: "0 0"}, httpd: true, want: []string{httpdConnect + ": web servers and PHP (httpd_t) may not connect to the broker: run setsebool -P " + httpdConnect + " on"}},
		"boolean pending":    {change: map[string]string{"/sys/fs/selinux/booleans/" + httpdConnect: "0 1"}, httpd: true, want: []string{httpdConnect + ": web servers"}},
		"boolean not needed": {change: map[string]string{"/sys/fs/selinux/booleans/" + httpdConnect: "0 0"}},
		"other domain":       {change: map[string]string{"/proc/self/attr/current": "system_u:system_r:unconfined_service_t:s0\x00"}, want: []string{program + ": the daemon runs as unconfined_service_t instead of credential_broker_t: run restorecon -v " + program + " and systemctl restart credential-broker"}},
		"socket":             {labels: map[string]string{sock: "system_u:object_r:var_run_t:s0\x00"}, want: []string{sock + ": its label is var_run_t instead of credential_broker_socket_t: run restorecon -Rv " + sock}},
		"no label":           {labels: map[string]string{"/etc/credential-broker/broker.yaml": ""}, want: []string{"/etc/credential-broker/broker.yaml: its label is missing instead of credential_broker_conf_t"}},
		"no such socket":     {labels: map[string]string{"/run/credential-broker/credential.sock": "-"}},
		"denied":             {labels: map[string]string{"/var/lib/credential-broker": "!"}, want: []string{"/var/lib/credential-broker: its label cannot be read: permission denied"}},
	} {
		machine := well()
		for k, v := range test.change {
			if machine[k] = v; v == "-" {
				delete(machine, k)
			}
		}
		h := root(t, machine)
		h.Label = func(path string) (string, error) {
			switch l, ok := test.labels[path]; {
			case l == "-":
				return "", fs.ErrNotExist
			case l == "!":
				return "", fs.ErrPermission
			case ok:
				return l, nil
			}
			return "system_u:object_r:" + Type(path) + ":s0:c1,c2\x00", nil
		}
		got := h.SELinux(program, files(), test.httpd)
		if len(got) != len(test.want) {
			t.Errorf("%s: %v", name, got)
			continue
		}
		for i, c := range got {
			if !strings.HasPrefix(c.Target+": "+c.Detail, test.want[i]) {
				t.Errorf("%s: %s: %s", name, c.Target, c.Detail)
			}
		}
	}
}

// A daemon from elsewhere, as of a developer, is none of the policy's business.
func TestSELinuxElsewhere(t *testing.T) {
	machine := well()
	machine["/proc/self/attr/current"] = "unconfined_u:unconfined_r:unconfined_t:s0"
	h := root(t, machine)
	h.Label = func(string) (string, error) { return "unconfined_u:object_r:user_home_t:s0", nil }
	if got := h.SELinux("/home/own/brokerd", []string{"/home/own/broker.sock", "/home/own/broker.yaml"}, true); len(got) != 0 {
		t.Error(got)
	}
}

// The kernel is asked itself: a file without a label has none, one that is not
// there is not there.
func TestLabel(t *testing.T) {
	dir := t.TempDir()
	if _, err := (Host{Root: dir}).label("/none"); !os.IsNotExist(err) {
		t.Error(err)
	}
	if l, err := (Host{Root: dir}).label("/"); err != nil || l != "" && typeOf(l) == "" {
		t.Errorf("%q, %v", l, err)
	}
}

// TestTypes holds what we say of labels against the module.
func TestTypes(t *testing.T) {
	dir := filepath.Join("..", "..", "configs", "selinux")
	contexts, err := os.ReadFile(filepath.Join(dir, "credential_broker.fc"))
	if err != nil {
		t.Fatal(err)
	}
	policy, err := os.ReadFile(filepath.Join(dir, "credential_broker.te"))
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^(/\S+)\s.*object_r:(\w+),s0\)$`).FindAllStringSubmatch(string(contexts), -1)
	if len(lines) != 15 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, m := range lines {
		for _, tail := range []string{"", "/some.file"} {
			file := strings.NewReplacer("(/.*)?", tail, "/.*", "/some.file", `\.`, ".").Replace(m[1])
			if got := Type(file); got != m[2] {
				t.Errorf("%s is %q, not %s", file, got, m[2])
			}
		}
		if !strings.Contains(string(policy), "\ntype "+m[2]+";") {
			t.Errorf("%s is declared nowhere", m[2])
		}
	}
	for _, word := range []string{"type " + domain + ";", "gen_tunable(" + httpdConnect + ", false)"} {
		if !strings.Contains(string(policy), "\n"+word+"\n") {
			t.Errorf("the module has no %s", word)
		}
	}
}
