package access

import (
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Both ways to hold the process are tested alike.
var holders = []struct {
	name string
	hold holder
}{{"pidfd of the connection", peerPidfd}, {"pidfd by number", openPidfd}}

func rootUser() bool { return os.Getuid() == 0 }

// whoever starts an ordinary caller.
func whoever(t *testing.T, conn *net.UnixConn, hold holder) *Caller {
	t.Helper()
	c, err := new(Identifier).identify(conn, hold)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestIdentify(t *testing.T) {
	for _, h := range holders {
		t.Run(h.name, func(t *testing.T) {
			s := listen(t)
			kid := start(t, nil, "connect", s.path)
			c := whoever(t, s.accept(), h.hold)
			if c.PID != kid.pid() || c.UID != uint32(os.Getuid()) || c.GID != uint32(os.Getgid()) {
				t.Errorf("pid %d uid %d gid %d", c.PID, c.UID, c.GID)
			}
			stat, err := os.ReadFile("/proc/" + strconv.Itoa(int(kid.pid())) + "/stat")
			must(t, err)
			if want := strings.Fields(string(stat))[21]; strconv.FormatUint(c.Start, 10) != want {
				t.Errorf("start %d, want %s", c.Start, want)
			}
			var st unix.Stat_t
			must(t, unix.Stat(os.Getenv("CHILD"), &st))
			if want := (Executable{st.Dev, st.Ino}); c.Exe != want {
				t.Errorf("executable %v, want %v", c.Exe, want)
			}
			if c.Container {
				t.Error("an ordinary child counts as a container")
			}
			own, err := os.ReadFile("/proc/self/loginuid")
			if err != nil {
				own = []byte("4294967295")
			}
			if strconv.FormatUint(uint64(c.LoginUID), 10) != string(own) {
				t.Errorf("login uid %d, want %s", c.LoginUID, own)
			}
			if !strings.HasPrefix(c.String(), "pid "+strconv.Itoa(int(c.PID))+", uid ") {
				t.Errorf("String: %s", c)
			}
			if !c.Alive() {
				t.Error("not alive")
			}
			kid.stop()
			if c.Alive() {
				t.Error("alive after its end")
			}
		})
	}
}

// Identify itself takes one of the two ways.
func TestIdentifyChooses(t *testing.T) {
	s := listen(t)
	kid := start(t, nil, "connect", s.path)
	c, err := Identify(s.accept())
	must(t, err)
	defer c.Close()
	if c.PID != kid.pid() || !c.Alive() {
		t.Errorf("%s, alive %v", c, c.Alive())
	}
}

// A kernel before 6.5 does not know SO_PEERPIDFD; this one plays one for the
// daemon.
func TestOldKernel(t *testing.T) {
	got, kid := ask(t, nil, []string{itoa(uint32(os.Getuid())), "", "old"}, nil)
	if got.Caller == nil || got.Caller.PID != kid.pid() {
		t.Errorf("%+v", got)
	}
}

func TestPeerError(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EINVAL, unix.ESRCH, unix.ENODATA} {
		if _, err := peerError(errno); !errors.Is(err, ErrExited) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	if _, err := peerError(unix.EPERM); errors.Is(err, ErrExited) || !errors.Is(err, unix.EPERM) {
		t.Error(err)
	}
}

func TestChangedUser(t *testing.T) {
	if !rootUser() {
		weaker(t, "only root can change its user")
		return
	}
	s := listen(t)
	start(t, nil, "drop", s.path)
	conn := s.accept()
	if c := whoever(t, conn, peerPidfd); c.UID != 0 {
		t.Errorf("uid %d is not the one at connect", c.UID)
	}
	if c, err := new(Identifier).identify(conn, openPidfd); !errors.Is(err, ErrExited) {
		t.Errorf("by number: %v, %v", c, err)
	}
}

func TestGroups(t *testing.T) {
	many := make([]uint32, 0, 100)
	for g := range uint32(100) {
		many = append(many, 1000+g)
	}
	for _, given := range [][]uint32{nil, {33}, {70001, 5, 70001, 12346}, many} {
		var attr *syscall.SysProcAttr
		want := []uint32{uint32(os.Getgid())}
		if rootUser() {
			attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12346, Groups: given}}
			want = append([]uint32{12346}, given...)
		} else {
			weaker(t, "only root can choose groups")
			own, err := os.Getgroups()
			must(t, err)
			for _, g := range own {
				want = append(want, uint32(g))
			}
		}
		slices.Sort(want)
		want = slices.Compact(want)
		s := listen(t)
		start(t, attr, "connect", s.path)
		conn := s.accept()
		for _, h := range holders {
			if c := whoever(t, conn, h.hold); !slices.Equal(c.Groups, want) {
				t.Errorf("%s: groups %v, want %v", h.name, c.Groups, want)
			}
		}
	}
}

func TestLoginUID(t *testing.T) {
	before, err := os.ReadFile("/proc/self/loginuid")
	if !rootUser() || err != nil || string(before) != "4294967295" {
		weaker(t, "the login uid cannot be set here")
		return
	}
	s := listen(t)
	start(t, nil, "login", s.path)
	if c := whoever(t, s.accept(), peerPidfd); c.LoginUID != 4242 {
		t.Errorf("login uid %d", c.LoginUID)
	}
}

func BenchmarkAlive(b *testing.B) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		b.Fatal(err)
	}
	c := &Caller{pidfd: fd, held: &Identifier{}}
	defer c.Close()
	b.ReportAllocs()
	for b.Loop() {
		if !c.Alive() {
			b.Fatal("dead")
		}
	}
}
