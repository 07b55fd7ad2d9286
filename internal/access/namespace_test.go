package access

import (
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNamespaces(t *testing.T) {
	mine := os.Getuid()
	ids := func(inside, outside int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: inside, HostID: outside, Size: 1}}
	}
	tests := []struct {
		name string
		attr syscall.SysProcAttr
		want bool
	}{
		{"user namespace, as PrivateUsers= makes it", syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids(mine, mine), GidMappings: ids(os.Getgid(), os.Getgid())}, false},
		{"user namespace that renumbers", syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids(7, mine), GidMappings: ids(7, os.Getgid())}, true},
		{"pid and user namespace", syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID, UidMappings: ids(mine, mine), GidMappings: ids(os.Getgid(), os.Getgid())}, true},
	}
	if rootUser() {
		tests = append(tests, struct {
			name string
			attr syscall.SysProcAttr
			want bool
		}{"pid namespace", syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}, true})
	} else {
		weaker(t, "a pid namespace alone takes root")
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := listen(t)
			kid := start(t, &test.attr, "connect", s.path)
			conn := s.accept()
			for _, h := range holders {
				c := whoever(t, conn, h.hold)
				if c.Container != test.want || c.PID != kid.pid() || c.UID != uint32(mine) {
					t.Errorf("%s: %s, want container %v, pid %d", h.name, c, test.want, kid.pid())
				}
			}
		})
	}
}

// ask has a daemon of another kind identify a caller of another kind.
func ask(t *testing.T, as *syscall.SysProcAttr, daemonArgs []string, caller *syscall.SysProcAttr) (identified, *child) {
	t.Helper()
	path := open755(t) + "/d"
	d := start(t, as, "identify", append([]string{path}, daemonArgs...)...)
	kid := start(t, caller, "connect", path)
	var got identified
	must(t, json.Unmarshal([]byte(d.line()), &got))
	return got, kid
}

// A daemon without any privilege sees all but the executable.
func TestUnprivilegedDaemon(t *testing.T) {
	if !rootUser() {
		weaker(t, "the other tests ran without privilege")
		return
	}
	for _, container := range []bool{false, true} {
		attr := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12346, Groups: []uint32{7}}}
		if container {
			attr.Cloneflags = unix.CLONE_NEWPID
		}
		got, kid := ask(t, nil, []string{"12399"}, attr)
		c := got.Caller
		if c == nil {
			t.Fatal(got.Error)
		}
		if c.PID != kid.pid() || c.UID != 12345 || c.Start == 0 || !slices.Equal(c.Groups, []uint32{7, 12346}) || c.Container != container {
			t.Errorf("%s %+v", got.Text, got.Caller.Groups)
		}
		if c.Exe != (Executable{}) {
			t.Errorf("executable %v read without CAP_SYS_PTRACE", c.Exe)
		}
	}
}

func TestHiddenProc(t *testing.T) {
	if !rootUser() {
		weaker(t, "only root can mount /proc")
		return
	}
	for _, hidepid := range []string{"1", "2", "4"} {
		got, _ := ask(t, &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}, []string{"12399", "hidepid=" + hidepid},
			&syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12346}})
		if got.Caller != nil || !strings.Contains(got.Error, "ProtectProc=default") {
			t.Errorf("hidepid=%s: %+v", hidepid, got)
		}
	}
}

// A daemon inside of a container cannot know who is outside.
func TestCallerOutside(t *testing.T) {
	uid := os.Getuid()
	attr := &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}},
	}
	got, _ := ask(t, attr, []string{strconv.Itoa(uid)}, nil)
	if got.Caller != nil || !strings.Contains(got.Error, "pid namespace") {
		t.Errorf("%+v", got)
	}
}
