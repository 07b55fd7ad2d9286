package platform

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// With WITHOUT set the test binary is a daemon on a machine that lacks
// something: a seccomp filter stands for the older kernel, as a sandbox would.
func TestMain(m *testing.M) {
	without, ok := os.LookupEnv("WITHOUT")
	if !ok {
		os.Exit(m.Run())
	}
	runtime.LockOSThread()
	if err := deny(without); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	list := Host{}.Look()
	fmt.Println(String(list))
	for _, f := range list {
		if f.Lost != "" {
			fmt.Printf("%s %v %s\n", f.Name, f.Severe, f.Lost)
		}
	}
}

// deny makes a system call fail as on a kernel that does not have it.
func deny(what string) error {
	const none = ^uint32(0)
	filter := map[string][]struct {
		call, arg, value uint32 // arg: which argument has to be value; none: no matter
		errno            unix.Errno
	}{
		"":             {},
		"SO_PEERPIDFD": {{unix.SYS_GETSOCKOPT, 2, unix.SO_PEERPIDFD, unix.ENOPROTOOPT}},
		"pidfs":        {{unix.SYS_FSTATFS, none, 0, unix.ENOSYS}},
		"memfd_secret": {{unix.SYS_MEMFD_SECRET, none, 0, unix.ENOSYS}},
		"mlock":        {{unix.SYS_MEMFD_SECRET, none, 0, unix.ENOSYS}, {unix.SYS_MLOCK, none, 0, unix.EPERM}},
		"AF_NETLINK":   {{unix.SYS_SOCKET, 0, unix.AF_NETLINK, unix.EAFNOSUPPORT}},
		"pidfd_open":   {{unix.SYS_GETSOCKOPT, 2, unix.SO_PEERPIDFD, unix.ENOPROTOOPT}, {unix.SYS_PIDFD_OPEN, none, 0, unix.ENOSYS}},
		"getsockopt":   {{unix.SYS_GETSOCKOPT, none, 0, unix.EPERM}},
	}[what]
	if filter == nil {
		return errors.New("unknown: " + what)
	}
	load := func(offset uint32) unix.SockFilter { // of struct seccomp_data
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	unless := func(k uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: skip}
	}
	var p []unix.SockFilter
	for _, f := range filter {
		ret := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(f.errno)}
		if f.arg == none {
			p = append(p, load(0), unless(f.call, 1), ret)
			continue
		}
		p = append(p, load(0), unless(f.call, 3), load(16+8*f.arg), unless(f.value, 1), ret)
	}
	p = append(p, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	program := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	return errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
		unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0))
}

// look is what a daemon finds that lacks something.
func look(t *testing.T, without string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "WITHOUT="+without)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return " " + strings.ReplaceAll(string(out), "\n", " \n ")
}

// Whatever this machine has, taking a thing away shows, and only that.
func TestForcedAbsent(t *testing.T) {
	whole := look(t, "")
	names := []string{"caller", "process_number", "secret_memory", "units", "loopback_caller", "credentials", "service_manager", "selinux"}
	first, _, _ := strings.Cut(whole, "\n")
	for i, word := range strings.Fields(first) {
		if name, used, _ := strings.Cut(word, "="); i >= len(names) || name != names[i] || used == "" {
			t.Errorf("feature %d is %q", i, word)
		}
	}
	for _, test := range []struct{ without, want, not string }{
		{"SO_PEERPIDFD", " caller=pidfd_open ", "SO_PEERPIDFD"},
		{"pidfd_open", " caller=none ", "pidfs"},
		{"pidfd_open", "caller true no caller can be identified, so nobody gets a token (pidfd_open: function not implemented)", "pidfs"},
		{"getsockopt", "caller true ", "pidfd_open:"},
		{"pidfs", " process_number=none ", "pidfs"},
		{"memfd_secret", " secret_memory=", "memfd_secret"},
		{"mlock", "secret_memory=unlocked ", "=mlock"},
		{"mlock", "secret_memory false some secrets are in memory that may be swapped", "=mlock"},
		{"AF_NETLINK", " loopback_caller=none ", "sock_diag"},
	} {
		got := look(t, test.without)
		if !strings.Contains(got, test.want) || strings.Contains(got, test.not) {
			t.Errorf("without %s: %s", test.without, got)
		}
	}
}

// root makes a machine of files, as /proc and /sys show them.
func root(t *testing.T, files map[string]string) Host {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return Host{Root: dir}
}

func TestUnits(t *testing.T) {
	const lost = "allow entries with unit: match nobody"
	for name, test := range map[string]struct{ cgroup, used, lost string }{
		"version 2":          {"0::/system.slice/credential-broker.service\n", "cgroup2", ""},
		"both":               {"12:pids:/x\n1:name=systemd:/system.slice/credential-broker.service\n0::/system.slice/credential-broker.service\n", "hybrid", ""},
		"version 1 (RHEL 8)": {"12:pids:/x\n1:name=systemd:/system.slice/credential-broker.service\n", "none", lost},
		"none":               {"", "none", lost},
	} {
		f := root(t, map[string]string{"/proc/self/cgroup": test.cgroup}).units()
		if f.Used != test.used || !strings.HasPrefix(f.Lost, test.lost) || (test.lost == "") != (f.Lost == "") {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if f := (Host{Root: t.TempDir()}).units(); f.Used != "none" || f.Lost == "" {
		t.Errorf("no /proc: %+v", f)
	}
}

func TestService(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct{ credentials, notify, watchdog, want string }{
		{"", "", "", "credentials=none service_manager=none"},
		{dir, "/run/systemd/notify", "", "credentials=systemd service_manager=sd_notify"},
		{dir, "/run/systemd/notify", "60000000", "credentials=systemd service_manager=sd_notify+watchdog"},
		{dir + "/gone", "", "", "credentials=none service_manager=none"},
	} {
		t.Setenv("CREDENTIALS_DIRECTORY", test.credentials)
		t.Setenv("NOTIFY_SOCKET", test.notify)
		t.Setenv("WATCHDOG_USEC", test.watchdog)
		c := credentials()
		if got := String([]Feature{c, manager()}); got != test.want || (c.Lost != "") != strings.HasSuffix(test.credentials, "gone") {
			t.Errorf("%q, %q", got, c.Lost)
		}
	}
}
