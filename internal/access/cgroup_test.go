package access

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseCgroup(t *testing.T) {
	const fpm = "php8.2-fpm.service"
	none := cgroup{manager: nobody}
	unit := func(u string) cgroup { return cgroup{unit: u, manager: nobody} }
	boxed := func(u string) cgroup { return cgroup{unit: u, manager: nobody, container: true} }
	user := func(uid uint32, u string) cgroup { return cgroup{userUnit: u, manager: uid} }
	tests := []struct {
		path string
		want cgroup
	}{
		// as systemd makes them
		{"/system.slice/" + fpm, unit(fpm)},
		{"/" + fpm, unit(fpm)},
		{"/system.slice/system-php.slice/" + fpm, unit(fpm)},
		{`/system.slice/system-serial\x2dgetty.slice/serial-getty@ttyS0.service`, unit("serial-getty@ttyS0.service")},
		{`/system.slice/dev-disk-by\x2duuid-1.swap`, unit(`dev-disk-by\x2duuid-1.swap`)},
		{"/system.slice/" + fpm + "/.control", unit(fpm)},
		{"/system.slice/" + fpm + "/sub", unit(fpm)},
		{"/system.slice/_cpu.service", unit("cpu.service")},
		{"/init.scope", unit("init.scope")},
		{"/user.slice/user-1000.slice/session-3.scope", unit("session-3.scope")},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/feed.service", user(1000, "feed.service")},
		{"/user.slice/user-1000.slice/user@1000.service/init.scope", user(1000, "init.scope")},
		{"/user.slice/user-1000.slice/user@1000.service", user(1000, "")},

		// forged, or not whole
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/" + fpm, user(1000, fpm)},
		{"/user.slice/user-1000.slice/user@1000.service/system.slice/" + fpm, user(1000, fpm)},
		{"/user.slice/user-1000.slice/user@1000.service/user@33.service/" + fpm, user(1000, "user@33.service")},
		{"/system.slice/evil.service/system.slice/" + fpm, unit("evil.service")},
		{"/system.slice/evil.service/" + fpm, unit("evil.service")},
		{"/system.slice/evil/" + fpm, none},
		{"/evil/system.slice/" + fpm, none},
		{"/user.slice/user-1000.slice/session-3.scope/system.slice/" + fpm, unit("session-3.scope")},
		{"/system.slice/evil.slice.scope/" + fpm, unit("evil.slice.scope")},
		{"/system.slice/user@x.service/" + fpm, unit("user@x.service")},
		{"/system.slice/user@4294967296.service/" + fpm, unit("user@4294967296.service")},
		{"/system.slice/" + fpm + " (deleted)", none},
		{"/system.slice", none},
		{"/system.slice/" + strings.TrimSuffix(fpm, ".service"), none},
		{"/system.slice/ " + fpm, none},
		{"/no such.slice/" + fpm, none},
		{"/system.slice//" + fpm, none},
		{"/system.slice/php@.service", none},
		{"/system.slice/@x.service", none},
		{"/system.slice/.service", none},
		{"/system.slice/" + strings.Repeat("a", 248) + ".service", none},
		{"/../system.slice/" + fpm, none}, // outside of our cgroup namespace
		{"/../../" + fpm, none},
		{"/", none},

		// containers
		{"/system.slice/docker-0a1b.scope", boxed("docker-0a1b.scope")},
		{"/system.slice/docker-0a1b.scope/system.slice/" + fpm, boxed("docker-0a1b.scope")},
		{"/machine.slice/machine-web.scope/payload/system.slice/" + fpm, boxed("machine-web.scope")},
		{"/machine.slice/libpod-0a1b.scope/container", boxed("libpod-0a1b.scope")},
		{"/machine.slice/systemd-nspawn@web.service/payload/system.slice/" + fpm, boxed("systemd-nspawn@web.service")},
		{"/kubepods.slice/kubepods-besteffort.slice/cri-containerd-0a1b.scope", boxed("cri-containerd-0a1b.scope")},
		{"/kubepods/besteffort/pod1/0a1b", boxed("")},
		{"/docker/0a1b", boxed("")},
		{"/lxc.payload.web/system.slice/" + fpm, boxed("")},
		{"/system.slice/docker.service", unit("docker.service")},
		{
			"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-0a1b.scope/container",
			cgroup{userUnit: "libpod-0a1b.scope", manager: 1000, container: true},
		},
	}
	for _, test := range tests {
		if got := parseCgroup("0::" + test.path + "\n"); got != test.want {
			t.Errorf("%s:\n got %+v\nwant %+v", test.path, got, test.want)
		}
	}
}

func TestParseCgroupTrees(t *testing.T) {
	const path = "/system.slice/a.service"
	tests := []struct {
		name, text string
		want       cgroup
	}{
		{"v1 alone", "12:pids:" + path + "\n1:name=systemd:" + path + "\n", cgroup{manager: nobody}},
		{"v1, v2 not in use", "1:name=systemd:" + path + "\n0::/\n", cgroup{manager: nobody}},
		{"hybrid", "12:pids:/\n1:name=systemd:/elsewhere.service\n0::" + path + "\n", cgroup{unit: "a.service", manager: nobody}},
		{"hybrid, container in v1", "12:pids:/docker/0a1b\n0::" + path + "\n", cgroup{unit: "a.service", manager: nobody, container: true}},
		{"looks like v2", "0:x:" + path + "\n10::" + path + "\n00::" + path + "\n", cgroup{manager: nobody}},
		{"colons", "0::/system.slice/a:b.service\n", cgroup{unit: "a:b.service", manager: nobody}},
		{"nothing", "", cgroup{manager: nobody}},
		{"half a line", "0::", cgroup{manager: nobody}},
		{"no slash", "0::system.slice/a.service\n", cgroup{manager: nobody}},
	}
	for _, test := range tests {
		if got := parseCgroup(test.text); got != test.want {
			t.Errorf("%s:\n got %+v\nwant %+v", test.name, got, test.want)
		}
	}
}

func FuzzParseCgroup(f *testing.F) {
	f.Add("0::/user.slice/user-1000.slice/user@1000.service/app.slice/php8.2-fpm.service\n")
	f.Add("1:name=systemd:/x\n0::/system.slice/_cpu.service/a\n")
	f.Fuzz(func(t *testing.T, text string) {
		g := parseCgroup(text)
		for _, u := range []string{g.unit, g.userUnit} {
			if u != "" && (!isUnit(u) || isSlice(u)) {
				t.Fatalf("%q is no unit", u)
			}
		}
		if g.unit != "" && (g.userUnit != "" || g.manager != nobody) {
			t.Fatalf("%+v is in both managers", g)
		}
		if _, manager := userManager(g.unit); manager {
			t.Fatalf("%+v: a user manager", g)
		}
		// What a process makes below its own cgroup changes nothing.
		line, ok := strings.CutSuffix(text, "\n")
		if !ok || strings.Contains(line, "\n") || g.unit == "" {
			return
		}
		if deeper := parseCgroup(line + "/system.slice/php8.2-fpm.service\n"); deeper.unit != g.unit {
			t.Fatalf("%q becomes %q further down", g.unit, deeper.unit)
		}
	})
}

func FuzzParseStart(f *testing.F) {
	f.Add([]byte("1 (a) b (c)) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 77 1 1"))
	f.Add([]byte(")"))
	f.Fuzz(func(_ *testing.T, stat []byte) {
		_, _ = parseStart(stat)
		renumbers(stat)
		_, _ = effective(stat, "Uid:")
	})
}

// A program chooses its own name, parentheses, spaces and all.
func TestParseStart(t *testing.T) {
	got, err := parseStart([]byte("7 (x) S 1 1 (y) R 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 1234567 1 1 18446744073709551615\n"))
	if err != nil || got != 1234567 {
		t.Errorf("%d, %v", got, err)
	}
	for _, bad := range []string{"", "7 (x", "7 (x) S 1 1", "7 (x) R 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 -1 1"} {
		if n, err := parseStart([]byte(bad)); err == nil {
			t.Errorf("%q: %d", bad, n)
		}
	}
}

func TestRenumbers(t *testing.T) {
	for text, want := range map[string]bool{
		"         0          0 4294967295\n": false,
		"0 0 1\n33 33 1\n":                   false,
		"0 1000 1\n":                         true,
		"0 0 1\n1 100000 65536\n":            true,
		"":                                   true, // no map yet: all users are nobody
		"0 0\n":                              true,
	} {
		if got := renumbers([]byte(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// tree is where cgroup v2 is mounted and ours begins.
func tree(t *testing.T) string {
	t.Helper()
	f, err := os.Open("/proc/self/mountinfo")
	must(t, err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		mount, fs, _ := strings.Cut(lines.Text(), " - ")
		if strings.HasPrefix(fs, "cgroup2 ") {
			return strings.Fields(mount)[4]
		}
	}
	return ""
}

// The kernel moves real processes into cgroups that are called like units.
func TestUnits(t *testing.T) {
	root := tree(t)
	const slice = "brokertest.slice"
	if root == "" || os.Mkdir(filepath.Join(root, slice), 0o755) != nil {
		weaker(t, "no cgroup can be made here; TestParseCgroup has the same paths")
		return
	}
	t.Cleanup(func() { os.Remove(filepath.Join(root, slice)) })
	uid := uint32(os.Getuid())
	own := "user@" + itoa(uid) + ".service"
	tests := []struct {
		path, unit, userUnit string
		container            bool
	}{
		{"php8.2-fpm.service", "php8.2-fpm.service", "", false},
		{"php8.2-fpm.service/sub", "php8.2-fpm.service", "", false},
		{own + "/app.slice/php8.2-fpm.service", "", "php8.2-fpm.service", false},
		{"user@77777.service/app.slice/php8.2-fpm.service", "", "", false}, // not the caller's own manager
		{"evil.service/system.slice/php8.2-fpm.service", "evil.service", "", false},
		{"evil/php8.2-fpm.service", "", "", false},
		{"docker-0a1b.scope/system.slice/php8.2-fpm.service", "docker-0a1b.scope", "", true},
		{"machine.slice/machine-a.scope/php8.2-fpm.service", "machine-a.scope", "", true},
	}
	for _, test := range tests {
		t.Run(test.path, func(t *testing.T) {
			in := cgroupFD(t, filepath.Join(root, slice), test.path)
			s := listen(t)
			kid := start(t, &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: in}, "connect", s.path)
			conn := s.accept()
			for _, h := range holders {
				c := whoever(t, conn, h.hold)
				if c.Unit != test.unit || c.UserUnit != test.userUnit || c.Container != test.container {
					t.Errorf("%s: %s, want unit %q, user unit %q, container %v", h.name, c, test.unit, test.userUnit, test.container)
				}
			}
			kid.stop()
		})
	}
}

// cgroupFD makes the cgroups of path below dir and opens the last.
func cgroupFD(t *testing.T, dir, path string) int {
	t.Helper()
	for name := range strings.SplitSeq(path, "/") {
		dir = filepath.Join(dir, name)
		made := dir
		must(t, os.Mkdir(made, 0o755))
		t.Cleanup(func() { must(t, os.Remove(made)) })
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// A cgroup namespace of the caller's hides nothing from us.
func TestCgroupNamespace(t *testing.T) {
	root := tree(t)
	if !rootUser() || root == "" || os.Mkdir(filepath.Join(root, "brokertest.slice"), 0o755) != nil {
		weaker(t, "no cgroup can be made here")
		return
	}
	t.Cleanup(func() { os.Remove(filepath.Join(root, "brokertest.slice")) })
	in := cgroupFD(t, filepath.Join(root, "brokertest.slice"), "evil.service/php8.2-fpm.service")
	s := listen(t)
	kid := start(t, &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: in, Unshareflags: unix.CLONE_NEWCGROUP}, "connect", s.path)
	if c := whoever(t, s.accept(), peerPidfd); c.Unit != "evil.service" {
		t.Errorf("unit %q", c.Unit)
	}
	kid.stop()
}
