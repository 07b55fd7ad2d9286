package platform

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Rules of this file: where SELinux does not enforce, it says nothing. Labels
// are compared by type alone; users, roles and ranges are the site's.

// A Complaint is what SELinux, as it is, keeps from working.
type Complaint struct {
	Target string // a path, a boolean, or the module
	Detail string // what is wrong, and the command that mends it
}

const (
	domain       = "credential_broker_t"
	httpdConnect = "credential_broker_httpd_connect"
)

func (h Host) selinux() Feature {
	f := Feature{Name: "selinux", Used: "none"}
	switch text, err := os.ReadFile(h.path("/sys/fs/selinux/enforce")); {
	case err != nil:
	case string(bytes.TrimSpace(text)) == "1":
		f.Used = "enforcing"
	default:
		f.Used = "permissive"
	}
	return f
}

// SELinux looks at the label of the daemon's program and of the files that it
// and its callers use, and, if web servers are among the callers, at the
// boolean that lets them connect. Files that the policy module does not know
// are the site's own.
func (h Host) SELinux(program string, files []string, httpd bool) (list []Complaint) {
	if h.selinux().Used != "enforcing" {
		return nil
	}
	on, err := os.ReadFile(h.path("/sys/fs/selinux/booleans/" + httpdConnect))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []Complaint{{"module", "the policy module credential_broker is not loaded: compile it from /usr/share/credential-broker/selinux, and run semodule -i credential_broker.pp"}}
	case err != nil:
		list = append(list, Complaint{httpdConnect, "the boolean cannot be read: " + err.Error()})
	case httpd && !bytes.HasPrefix(on, []byte("1")): // its value, then the one that is pending
		list = append(list, Complaint{httpdConnect, "web servers and PHP (httpd_t) may not connect to the broker: run setsebool -P " + httpdConnect + " on"})
	}
	if Type(program) != "" {
		now, err := os.ReadFile(h.path("/proc/self/attr/current"))
		if t := typeOf(string(now)); err == nil && t != domain {
			list = append(list, Complaint{program, fmt.Sprintf("the daemon runs as %s instead of %s: run restorecon -v %s and systemctl restart credential-broker", t, domain, program)})
		}
	}
	for _, name := range append([]string{program}, files...) {
		want := Type(name)
		if want == "" {
			continue
		}
		label, err := h.label(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			list = append(list, Complaint{name, "its label cannot be read: " + err.Error()})
		case typeOf(label) != want:
			list = append(list, Complaint{name, fmt.Sprintf("its label is %s instead of %s: run restorecon -Rv %s", orNone(typeOf(label)), want, name)})
		}
	}
	return list
}

// Type is the SELinux type that the policy module (configs/selinux) gives a
// file; empty: it knows nothing of the file.
func Type(file string) string {
	const run = "/run/credential-broker"
	file = filepath.Clean(file)
	if below(file, "/var/run") {
		file = strings.TrimPrefix(file, "/var")
	}
	switch {
	case file == "/usr/libexec/credential-broker/brokerd":
		return "credential_broker_exec_t"
	case file == run+"/broker.sock", strings.HasPrefix(file, run+"/proxy/"):
		return "credential_broker_socket_t"
	case file == run+"/admin.sock":
		return "credential_broker_admin_socket_t"
	case file == run+"/credential.sock":
		return "credential_broker_credential_socket_t"
	case below(file, run+"/files"):
		return "credential_broker_token_t"
	case below(file, run):
		return "credential_broker_runtime_t"
	case below(file, "/etc/credential-broker"):
		return "credential_broker_conf_t"
	case below(file, "/var/lib/credential-broker"):
		return "credential_broker_var_lib_t"
	}
	return ""
}

func below(file, dir string) bool { return file == dir || strings.HasPrefix(file, dir+"/") }

func (h Host) label(name string) (string, error) {
	if h.Label != nil {
		return h.Label(name)
	}
	var buf [4096]byte
	n, err := unix.Lgetxattr(h.path(name), "security.selinux", buf[:])
	if errors.Is(err, unix.ENODATA) {
		return "", nil
	}
	if err != nil {
		return "", &fs.PathError{Op: "getxattr", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}

// typeOf is the third part of user:role:type:range. The kernel ends it with a
// NUL.
func typeOf(context string) string {
	part := strings.SplitN(strings.TrimRight(context, "\x00\n"), ":", 4)
	if len(part) < 3 {
		return ""
	}
	return part[2]
}

func orNone(s string) string {
	if s == "" {
		return "missing"
	}
	return s
}
