//go:build real

// Package selinux compiles the policy module and asks SELinux's own tools what
// it allows.
package selinux

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"credentialbroker/integration/real"
)

// compile runs the commands of docs/selinux.md, on the sources in their place.
func compile(t *testing.T, dir string) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(real.Root(), "docs", "selinux.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindSubmatch(page)
	if block == nil {
		t.Fatal("docs/selinux.md has no commands")
	}
	const installed = "/usr/share/credential-broker/selinux/"
	commands := string(block[1])
	if !strings.Contains(commands, installed) {
		t.Fatalf("these are not the commands that compile: %s", commands)
	}
	cmd := exec.Command("sh", "-euxc", strings.ReplaceAll(commands, installed, filepath.Join(real.Root(), "configs", "selinux")+"/"))
	cmd.Dir = dir
	if out := real.Must(t, cmd); strings.Contains(strings.ToLower(out), "warning") || strings.Contains(strings.ToLower(out), "deprecated") {
		t.Error(out)
	}
}

// policy links the module with Debian's and makes what a kernel would load.
func policy(t *testing.T, dir string) string {
	t.Helper()
	run := func(args ...string) {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		real.Must(t, cmd)
	}
	run("semodule_link", "-o", "linked", real.Path("selinux", "base.pp"), "credential_broker.pp", real.Path("selinux", "apache.pp"), real.Path("selinux", "unconfined.pp"))
	run("semodule_expand", "linked", "policy")
	return filepath.Join(dir, "policy")
}

// search gives the rules that sesearch finds, without their sources' aliases.
func search(t *testing.T, policy string, args ...string) []string {
	t.Helper()
	out := strings.TrimSpace(real.Must(t, exec.Command("sesearch", append(args, policy)...)))
	if out == "" {
		return nil
	}
	return strings.Split(out, "\n")
}

func TestModule(t *testing.T) {
	real.Row(t, "SELinux", "checkmodule, sesearch (Debian)", "the module compiles; web servers reach the consumers' socket by the boolean alone, the administrators' never; the daemon reaches web and mail ports alone")
	dir := t.TempDir()
	compile(t, dir)
	p := policy(t, dir)
	const httpd = "[ credential_broker_httpd_connect ]:True"
	for _, test := range []struct {
		what string
		args string
		want []string // beginnings or ends of the rules; none: nothing may be allowed
	}{
		{"web server: socket", "-s httpd_t -t credential_broker_socket_t -c sock_file -p write", []string{httpd}},
		{"web server: daemon", "-s httpd_t -t credential_broker_t -c unix_stream_socket -p connectto", []string{httpd}},
		{"web server: administrators", "-s httpd_t -t credential_broker_admin_socket_t -c sock_file -p write", nil},
		{"web server: systemd's socket", "-s httpd_t -t credential_broker_credential_socket_t -c sock_file -p write", nil},
		{"web server: configuration", "-s httpd_t -t credential_broker_conf_t -c file -p read", nil},
		{"web server: state", "-s httpd_t -t credential_broker_var_lib_t -c file -p read", nil},
		{"web server: files with tokens", "-s httpd_t -t credential_broker_token_t -c file -p read", nil},
		{"another daemon", "-s udev_t -t credential_broker_t -c unix_stream_socket -p connectto", nil},
		{"administrator", "-s unconfined_t -t credential_broker_admin_socket_t -c sock_file -p write", []string{"allow files_unconfined_type file_type:sock_file "}},
		{"administrator: daemon", "-s unconfined_t -t credential_broker_t -c unix_stream_socket -p connectto", []string{"allow unconfined_domain_type domain:unix_stream_socket "}},
		{"systemd: a unit's credentials", "-s init_t -t credential_broker_credential_socket_t -c sock_file -p write", []string{"allow init_t credential_broker_credential_socket_t:sock_file ", "allow files_unconfined_type "}},
		{"systemd: starts it without new privileges", "-s init_t -t credential_broker_t -c process2 -p nnp_transition", []string{"allow init_t credential_broker_t:process2 "}},
		{"daemon: TCP", "-s credential_broker_t -c tcp_socket -p name_connect", []string{
			"allow credential_broker_t dns_port_t:", "allow credential_broker_t http_port_t:", "[ credential_broker_connect_any ]:True",
			"allow credential_broker_t smtp_port_t:", "allow nsswitch_domain dns_port_t:", "[ authlogin_nsswitch_use_ldap ]:True"}},
		{"daemon: listens", "-s credential_broker_t -c tcp_socket -p name_bind", []string{"[ credential_broker_listen ]:True"}},
		{"daemon: units", "-s credential_broker_t -c service -p start", []string{"[ credential_broker_restart_units ]:True"}},
		{"daemon: configuration", "-s credential_broker_t -t credential_broker_conf_t -c file -p write", nil},
		{"daemon: program", "-s credential_broker_t -t credential_broker_exec_t -c file -p write", nil},
		{"daemon: passwords", "-s credential_broker_t -t shadow_t -c file -p read", nil},
		{"daemon: homes", "-s credential_broker_t -t user_home_t -c file -p open", nil},
	} {
		got := search(t, p, append([]string{"--allow"}, strings.Fields(test.args)...)...)
		if len(got) != len(test.want) {
			t.Errorf("%s: %q", test.what, got)
			continue
		}
		for _, want := range test.want {
			if !slices.ContainsFunc(got, func(rule string) bool { return strings.HasPrefix(rule, want) || strings.HasSuffix(rule, want) }) {
				t.Errorf("%s: %q is not among %q", test.what, want, got)
			}
		}
	}
	if got := search(t, p, "-T", "-s", "init_t", "-t", "credential_broker_exec_t", "-c", "process"); !slices.Equal(got, []string{"type_transition init_t credential_broker_exec_t:process credential_broker_t;"}) {
		t.Errorf("systemd starts it as %q", got)
	}
}

func TestLabels(t *testing.T) {
	real.Row(t, "SELinux", "selabel_lookup (Debian)", "the program, configuration, state and each socket get the type of their own, by both names of /run")
	dir := t.TempDir()
	compile(t, dir)
	contexts := filepath.Join(dir, "contexts")
	real.Must(t, exec.Command("semodule_unpackage", filepath.Join(dir, "credential_broker.pp"), filepath.Join(dir, "module"), contexts))
	for _, test := range []struct{ file, kind, want string }{
		{"/usr/libexec/credential-broker/brokerd", "file", "credential_broker_exec_t"},
		{"/etc/credential-broker/clients.d/vdab.yaml", "file", "credential_broker_conf_t"},
		{"/var/lib/credential-broker/audit", "dir", "credential_broker_var_lib_t"},
		{"/run/credential-broker", "dir", "credential_broker_runtime_t"},
		{"/run/credential-broker/broker.sock", "socket", "credential_broker_socket_t"},
		{"/run/credential-broker/admin.sock", "socket", "credential_broker_admin_socket_t"},
		{"/run/credential-broker/credential.sock", "socket", "credential_broker_credential_socket_t"},
		{"/run/credential-broker/proxy/vdab/api.sock", "socket", "credential_broker_socket_t"},
		{"/run/credential-broker/files/vdab/token", "file", "credential_broker_token_t"},
		{"/var/run/credential-broker/admin.sock", "socket", "credential_broker_admin_socket_t"},
	} {
		got := real.Must(t, exec.Command("selabel_lookup", "-b", "file", "-f", contexts, "-k", test.file, "-t", test.kind))
		if !strings.Contains(got, ":"+test.want+":") {
			t.Errorf("%s: %s", test.file, got)
		}
	}
}
