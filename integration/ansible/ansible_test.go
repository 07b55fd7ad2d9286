//go:build real

// Package ansible runs the role of deploy/ansible on a directory of this
// machine.
package ansible

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"credentialbroker/integration/real"
)

const server = "ansible-core, ansible-lint"

func tool(name string) string { return real.Path("ansible", "venv", "bin", name) }

func deploy(elem ...string) string {
	return filepath.Join(append([]string{real.Root(), "deploy", "ansible"}, elem...)...)
}

// command runs one of Ansible's, which keeps what it keeps in dir.
func command(dir, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(tool(name), args...)
	cmd.Dir = deploy()
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+real.Path("ansible", "venv", "bin")+":"+filepath.Join(real.Root(), "dist")+":"+os.Getenv("PATH"),
		"HOME="+dir, "ANSIBLE_HOME="+filepath.Join(dir, "ansible"), "ANSIBLE_REMOTE_TMP="+filepath.Join(dir, "remote"),
		"ANSIBLE_ROLES_PATH="+deploy("roles"), "ANSIBLE_NOCOLOR=1", "ANSIBLE_LOCALHOST_WARNING=false", "LC_ALL=C.UTF-8")
	return cmd
}

func TestSyntax(t *testing.T) {
	real.Row(t, "Ansible role", server, "role and example are well formed, and pass the linter's production profile")
	real.Must(t, command(t.TempDir(), "ansible-playbook", "--syntax-check", "-i", "localhost,", "site.yml"))
	real.Must(t, command(t.TempDir(), "ansible-lint", "--offline", "--profile", "production", "--strict"))
}

// host is a directory that the role takes for a host.
type host struct {
	t    *testing.T
	dir  string
	vars map[string]any
}

// newHost gives it a systemd-creds that writes down its arguments, and then is
// systemd's.
func newHost(t *testing.T) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "ansible-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	theirs, err := exec.LookPath("systemd-creds")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, dir: dir, vars: map[string]any{
		"credential_broker_install": false, "credential_broker_service": false,
		"credential_broker_command":              filepath.Join(real.Root(), "dist", "broker"),
		"credential_broker_config_directory":     filepath.Join(dir, "etc"),
		"credential_broker_drop_in_directory":    filepath.Join(dir, "drop-ins"),
		"credential_broker_credential_directory": filepath.Join(dir, "sealed"),
		"credential_broker_seal_with":            "host",
	}}
	h.write("bin/systemd-creds", "#!/bin/sh\necho \"$@\" >>"+dir+"/arguments\nexec "+theirs+" \"$@\"\n", 0o700)
	h.write("site.yml", "- hosts: localhost\n  connection: local\n  roles: [credential_broker]\n", 0o600)
	return h
}

func (h *host) write(name, text string, mode os.FileMode) {
	h.t.Helper()
	name = filepath.Join(h.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) read(name string) string {
	h.t.Helper()
	text, err := os.ReadFile(filepath.Join(h.dir, name))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(text)
}

var changes = regexp.MustCompile(`changed=(\d+)`)

// play runs the role, and gives its output and how much it has changed.
func (h *host) play(change map[string]any, args ...string) (out, changed string, err error) {
	h.t.Helper()
	vars := maps.Clone(h.vars)
	maps.Copy(vars, change)
	text, err := json.Marshal(vars)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write("vars.json", string(text), 0o600) // secrets are no arguments here either
	b, err := command(h.dir, "ansible-playbook", append([]string{"-vvv", "-i", "localhost,", "-e", "ansible_python_interpreter=" + tool("python3"), "-e", "@" + filepath.Join(h.dir, "vars.json"), filepath.Join(h.dir, "site.yml")}, args...)...).CombinedOutput()
	out = string(b)
	if m := changes.FindStringSubmatch(out); m != nil {
		changed = m[1]
	}
	return out, changed, err
}

func TestRole(t *testing.T) {
	real.Row(t, "Ansible role", server, "on a directory: written once and not again; what broker check refuses is not put in place; secrets are sealed, and neither arguments nor output")
	h := newHost(t)
	const secretID = "5f1c7a42-a-secret-id-of-a-test"
	client := func(provider string) map[string]any {
		return map[string]any{"vdab": map[string]any{"preset": "vdab-test", "secret": map[string]any{"provider": provider, "mount": "secret", "path": "vdab/test"},
			"owner": map[string]any{"contact": "integraties@corp.example", "purpose": "vacancies feed"},
			"allow": []map[string]any{{"unit": "php8.2-fpm.service", "user": "vacatures"}}}}
	}
	site := map[string]any{
		"credential_broker_config": map[string]any{"providers": map[string]any{"corp": map[string]any{"vault": map[string]any{"address": "https://vault.corp.example:8200",
			"auth": map[string]any{"approle": map[string]any{"role_id_file": "${CREDENTIALS_DIRECTORY}/role-id", "secret_id_file": "${CREDENTIALS_DIRECTORY}/secret-id"}}}}}},
		"credential_broker_clients":     client("corp"),
		"credential_broker_credentials": map[string]any{"role-id": "a-role-id", "secret-id": secretID},
		"credential_broker_drop_ins":    map[string]any{"local": "[Service]\nNice=5\n"},
	}
	all := ""
	play := func(change map[string]any, args ...string) (string, string, error) {
		t.Helper()
		vars := maps.Clone(site)
		maps.Copy(vars, change)
		out, changed, err := h.play(vars, args...)
		all += out
		return out, changed, err
	}
	written := func() []string {
		var list []string
		for _, dir := range []string{"etc", "etc/clients.d", "drop-ins", "sealed"} {
			files, err := filepath.Glob(filepath.Join(h.dir, dir, "*"))
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, files...)
		}
		return list
	}

	if out, _, err := play(nil, "--check"); err != nil || len(written()) != 0 {
		t.Fatalf("check mode: %v, %v\n%s", err, written(), out)
	}
	out, changed, err := play(nil)
	if err != nil || changed == "0" || changed == "" {
		t.Fatalf("first run: %v, %s changes\n%s", err, changed, out)
	}
	real.Must(t, exec.Command(filepath.Join(real.Root(), "dist", "broker"), "check", "--config", filepath.Join(h.dir, "etc/broker.yaml")))
	if got := h.read("drop-ins/50-credentials.conf"); !strings.Contains(got, "\nLoadCredentialEncrypted=role-id:"+h.dir+"/sealed/role-id\nLoadCredentialEncrypted=secret-id:"+h.dir+"/sealed/secret-id\n") {
		t.Error(got)
	}
	open := func() string {
		return real.Must(t, exec.Command("systemd-creds", "decrypt", "--name=secret-id", filepath.Join(h.dir, "sealed/secret-id"), "-"))
	}
	if got := open(); got != secretID {
		t.Errorf("sealed is %q", got)
	}
	before, sealed := h.read("etc/clients.d/vdab.yaml"), h.read("sealed/secret-id")

	if out, changed, err := play(nil); err != nil || changed != "0" || h.read("sealed/secret-id") != sealed {
		t.Errorf("second run: %v, %s changes\n%s", err, changed, out)
	}
	// A client of a secrets manager that is not there.
	out, _, err = play(map[string]any{"credential_broker_clients": client("other")})
	if err == nil || !strings.Contains(out, "other") || h.read("etc/clients.d/vdab.yaml") != before {
		t.Errorf("a wrong configuration: %v\n%s\n%s", err, out, h.read("etc/clients.d/vdab.yaml"))
	}
	// Another secret replaces one file.
	const next = secretID + "-2"
	if out, changed, err := play(map[string]any{"credential_broker_credentials": map[string]any{"role-id": "a-role-id", "secret-id": next}}); err != nil || changed != "2" || open() != next {
		t.Errorf("another secret: %v, %s changes\n%s", err, changed, out)
	}
	if out, changed, err := play(map[string]any{"credential_broker_clients": map[string]any{}, "credential_broker_clients_removed": []string{"vdab"},
		"credential_broker_credentials": map[string]any{}}); err != nil || changed != "1" || slices.Contains(written(), filepath.Join(h.dir, "etc/clients.d/vdab.yaml")) {
		t.Errorf("a client that goes: %v, %s changes\n%s", err, changed, out)
	}
	arguments := h.read("arguments")
	if !strings.Contains(arguments, "encrypt --with-key=host --name=secret-id - -\n") {
		t.Errorf("arguments: %s", arguments)
	}
	for what, text := range map[string]string{"the arguments": arguments, "the output": all} {
		if strings.Contains(text, secretID) {
			t.Errorf("the secret is in %s", what)
		}
	}
	// Nor is it in what Ansible puts on the host's disk for a moment: a task
	// that carries it has its module passed through a pipe.
	put := 0
	for task := range strings.SplitSeq(all, "\nTASK [") {
		name, text, _ := strings.Cut(task, "]")
		if n := strings.Count(text, "> PUT "); strings.HasSuffix(name, "Seal what is new") && n > 0 {
			t.Errorf("%s: its module lay on the disk", name)
		} else {
			put += n
		}
	}
	if put == 0 || strings.Count(all, "Seal what is new") < 5 {
		t.Error("Ansible does not say what it puts on the disk")
	}
}
