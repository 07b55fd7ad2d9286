package access

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openSockDiag(t *testing.T) *SockDiag {
	t.Helper()
	d, err := OpenSockDiag()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// thread runs f on a thread that may change what it is: it ends with f. It is
// not the first one, whose user is the process's.
func thread(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			elsewhere := make(chan struct{}) // this thread is taken meanwhile
			go func() { defer close(elsewhere); run() }()
			<-elsewhere
			return
		}
		done <- f() // and never unlocked
	}
	go run()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// asUser makes f run as another user, if we are root.
func asUser(t *testing.T, uid int, f func() error) bool {
	t.Helper()
	if os.Getuid() != 0 {
		t.Logf("WEAKER: not root, so uid %d is not tried", uid)
		return false
	}
	thread(t, func() error {
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			return e
		}
		return f()
	})
	return true
}

// pair is a listener, and what connects to it by a socket of family and
// protocol from the port near (0: any). Accepted connections are ours.
func pair(t *testing.T, network, addr string, family, protocol, near int) (ours *net.TCPConn, theirs int, err error) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	theirs, err = connectTo(l.Addr().(*net.TCPAddr), family, protocol, near)
	if err != nil {
		return nil, -1, err
	}
	return accept(t, l), theirs, nil
}

func accept(t *testing.T, l net.Listener) *net.TCPConn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

func connectTo(to *net.TCPAddr, family, protocol, near int) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	var sa, own unix.Sockaddr = &unix.SockaddrInet6{Port: to.Port, Addr: [16]byte(to.IP.To16())}, nil
	if family == unix.AF_INET {
		sa = &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())}
		own = &unix.SockaddrInet4{Port: near, Addr: [4]byte{127, 0, 0, 1}}
	}
	if near != 0 {
		err = unix.Bind(fd, own)
	}
	if err == nil {
		err = unix.Connect(fd, sa)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

const mptcp = 262 // IPPROTO_MPTCP

func TestPeer(t *testing.T) {
	d := openSockDiag(t)
	for name, c := range map[string]struct {
		network, addr    string
		family, protocol int
	}{
		"IPv4":       {"tcp4", "127.0.0.1:0", unix.AF_INET, 0},
		"another v4": {"tcp4", "127.8.7.6:0", unix.AF_INET, 0},
		"IPv6":       {"tcp6", "[::1]:0", unix.AF_INET6, 0},
		"mapped":     {"tcp4", "127.0.0.1:0", unix.AF_INET6, 0},
		"multipath":  {"tcp4", "127.0.0.1:0", unix.AF_INET, mptcp},
	} {
		for _, uid := range []int{os.Getuid(), 4711} {
			var ours *net.TCPConn
			var theirs int
			var err error
			connect := func() error {
				ours, theirs, err = pair(t, c.network, c.addr, c.family, c.protocol, 0)
				return nil
			}
			if uid == os.Getuid() {
				_ = connect()
			} else if !asUser(t, uid, connect) {
				continue
			}
			if c.protocol == mptcp && err != nil {
				t.Logf("WEAKER: this kernel has no MPTCP: %v", err)
				continue
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			p, err := d.Peer(ours)
			if err != nil || p.UID != uint32(uid) {
				t.Errorf("%s: %+v, %v, want uid %d", name, p, err, uid)
			}
			caller := d.Caller(p, "loopback x", "vdab")
			if !caller.Alive() {
				t.Errorf("%s: it should be alive", name)
			}
			if caller.PID != 0 || caller.Unit != "" || caller.UID != uint32(uid) || !strings.HasSuffix(caller.String(), ", over loopback") || strings.Contains(caller.String(), "pid") {
				t.Errorf("%s: %s, %+v", name, caller, caller)
			}
			_ = unix.Close(theirs)
			if c.protocol != mptcp && caller.Alive() { // the kernel ends those in its own time, a minute
				t.Errorf("%s: it is alive after the end of its socket", name)
			}
		}
	}
}

// A connection that its maker has closed, or half closed, is nobody's.
func TestPeerOfAClosedConnection(t *testing.T) {
	d := openSockDiag(t)
	for name, end := range map[string]func(int) error{
		"closed":      unix.Close,
		"half closed": func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) },
	} {
		ours, theirs, err := pair(t, "tcp4", "127.0.0.1:0", unix.AF_INET, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := end(theirs); err != nil {
			t.Fatal(err)
		}
		if p, err := d.Peer(ours); !errors.Is(err, ErrExited) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
		// Whatever the other end says: ours waits to be closed.
		if err := established(ours); !errors.Is(err, ErrExited) {
			t.Errorf("%s: our own end: %v", name, err)
		}
	}
}

// What is left of a closed connection has uid 0: it is not root's.
func TestTimeWaitIsNobody(t *testing.T) {
	d := openSockDiag(t)
	ours, theirs, err := pair(t, "tcp4", "127.0.0.1:0", unix.AF_INET, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, _ := address(ours.RemoteAddr())
	far, _ := address(ours.LocalAddr())
	_ = unix.Close(theirs)
	if _, err := io.ReadAll(ours); err != nil {
		t.Fatal(err)
	}
	_ = ours.Close()
	for {
		p, err := d.ask(near, far, [8]byte{})
		if err != nil {
			t.Fatalf("there should be a remainder: %v", err)
		}
		if p.state == 6 { // TCP_TIME_WAIT
			if p.UID != 0 || p.inode != 0 {
				t.Errorf("this kernel tells of %+v", p)
			}
			break
		}
		runtime.Gosched()
	}
	if p, err := d.find(near, far, [8]byte{}); !errors.Is(err, ErrExited) {
		t.Errorf("%+v, %v", p, err)
	}
}

// The kernel's search falls back to who listens on a port: that is no peer.
func TestListenerIsNoPeer(t *testing.T) {
	d := openSockDiag(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at, _ := address(l.Addr())
	elsewhere := netip.MustParseAddrPort("127.0.0.1:9")
	if p, err := d.ask(at, elsewhere, [8]byte{}); err != nil || p.state != tcpListen {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := d.find(at, elsewhere, [8]byte{}); !errors.Is(err, ErrExited) {
		t.Errorf("%+v, %v", p, err)
	}
	if err := d.Knows(at); err != nil {
		t.Error(err)
	}
	if who := d.Listener(at); !strings.Contains(who, "user ") || !strings.Contains(who, fmt.Sprint("pid ", os.Getpid())) {
		t.Errorf("%q", who)
	}
	_ = l.Close()
	if err := d.Knows(at); err == nil {
		t.Error("nobody listens any more")
	}
	if who := d.Listener(at); who != "" {
		t.Errorf("%q", who)
	}
}

// Whoever gets the port next does not inherit, be it the same user.
func TestRecycledPort(t *testing.T) {
	d := openSockDiag(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := l.Addr().(*net.TCPAddr)
	first, err := connectTo(to, unix.AF_INET, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours := accept(t, l)
	p, err := d.Peer(ours)
	if err != nil {
		t.Fatal(err)
	}
	caller := d.Caller(p, "loopback x", "")
	// Reset, so that the port is free at once.
	_ = unix.SetsockoptLinger(first, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(first)
	again := func() error {
		fd, err := connectTo(to, unix.AF_INET, 0, int(p.near.Port()))
		if err == nil {
			t.Cleanup(func() { _ = unix.Close(fd) })
		}
		return err
	}
	uid := uint32(4711)
	if !asUser(t, 4711, again) {
		uid = uint32(os.Getuid())
		if err := again(); err != nil {
			t.Fatal(err)
		}
	}
	next, err := d.Peer(accept(t, l))
	if err != nil || next.near != p.near || next.UID != uid {
		t.Fatalf("%+v, %v", next, err)
	}
	if caller.Alive() {
		t.Error("the next socket on the port was taken for the first")
	}
	if !d.connected(&next) {
		t.Error("the next one is connected")
	}
	if _, err := d.Peer(ours); err == nil {
		t.Error("the old connection was given to the next socket")
	}
}

// A socket is whose who made it, whoever connects or holds it.
func TestSocketOfItsMaker(t *testing.T) {
	d := openSockDiag(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var fd int
	if !asUser(t, 4711, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	}) {
		return
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if p, err := d.Peer(accept(t, l)); err != nil || p.UID != 4711 {
		t.Errorf("%+v, %v", p, err)
	}
}

// Another network namespace has other sockets, with the same numbers.
func TestPeerInAnotherNamespace(t *testing.T) {
	d := openSockDiag(t)
	if os.Getuid() != 0 {
		t.Log("WEAKER: not root, so there is no other network namespace")
		return
	}
	thread(t, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Logf("WEAKER: no other network namespace: %v", err)
			return nil
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		up, _ := unix.NewIfreq("lo")
		up.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, up); err != nil {
			return err
		}
		ours, theirs, err := pair(t, "tcp4", "127.0.0.1:0", unix.AF_INET, 0, 0)
		if err != nil {
			return err
		}
		defer unix.Close(theirs)
		if p, err := d.Peer(ours); err == nil || errors.Is(err, ErrExited) || !strings.Contains(err.Error(), "namespace") {
			t.Errorf("%+v, %v", p, err)
		}
		return nil
	})
}

func TestClosedSockDiag(t *testing.T) {
	d := openSockDiag(t)
	ours, theirs, err := pair(t, "tcp4", "127.0.0.1:0", unix.AF_INET, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(theirs)
	p, err := d.Peer(ours)
	if err != nil {
		t.Fatal(err)
	}
	caller := d.Caller(p, "loopback x", "")
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	if caller.Alive() {
		t.Error("nobody can know that")
	}
	if _, err := d.Peer(ours); err == nil {
		t.Error("nobody can know who it is")
	}
}

func TestParseDiag(t *testing.T) {
	for n := range headerLen + answerLen {
		b := make([]byte, n)
		if n > 4 {
			b[4] = unix.SOCK_DIAG_BY_FAMILY
		}
		if p, _, err := parseDiag(b); err == nil {
			t.Errorf("%d bytes: %+v", n, p)
		}
	}
	refused := make([]byte, headerLen+4)
	refused[4] = unix.NLMSG_ERROR
	refused[16], refused[17], refused[18], refused[19] = 0xfe, 0xff, 0xff, 0xff // -2
	if _, _, err := parseDiag(refused); !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
}

func TestUserDatabase(t *testing.T) {
	var u userDatabase
	if gid, groups := u.groups(0); gid != 0 || !slices.Contains(groups, 0) || !slices.IsSorted(groups) || u.name(0) != "root" {
		t.Errorf("root: %d, %v, %s", gid, groups, u.name(0))
	}
	if gid, groups := u.groups(4000004711); gid != nobody || groups != nil || u.name(4000004711) != "4000004711" {
		t.Errorf("an unknown user: %d, %v", gid, groups)
	}
	u.known[0] = membership{name: "kept", gid: 7, read: time.Now()}
	if u.name(0) != "kept" {
		t.Error("it was asked for again at once")
	}
	u.known[0] = membership{name: "old", read: time.Now().Add(-membershipFresh)}
	if u.name(0) != "root" {
		t.Error("it is kept for ever")
	}
	if out := askDatabase("passwd", "--help"); out != "" {
		t.Errorf("a name was taken for an option: %q", out)
	}
}

// Over loopback nothing is known of a process: entries that name one are not
// for such a caller, and what it could be mistaken for is neither.
func TestRulesOverLoopback(t *testing.T) {
	entries := []Entry{
		{User: "1000", Unit: "a.service"},
		{User: "1000", UserUnit: "a.service"},
		{User: "1000", Executable: "/no/such/program"},
		{User: "1000", Executable: "/bin/sh"},
		{Unit: "a.service"},
		{User: "1000"},
		{Group: "7"},
		{User: "1001"},
	}
	r, errs := Compile(entries, Limits{}, SystemNames())
	if errs != nil {
		t.Fatal(errs)
	}
	c := &Caller{UID: 1000, Groups: []uint32{7}, Place: "loopback x"}
	if d := r.Decide(c, Want{Surface: Token}); !d.Allowed || !slices.Equal(d.Matched, []int{5, 6}) {
		t.Errorf("%+v", d)
	}
	// Were anything of a process known, it would not count either.
	c.Unit, c.Exe = "a.service", executableOf(t, "/bin/sh")
	if d := r.Decide(c, Want{Surface: Token}); !slices.Equal(d.Matched, []int{5, 6}) {
		t.Errorf("%+v", d)
	}
	c.Place = ""
	if d := r.Decide(c, Want{Surface: Token}); !slices.Equal(d.Matched, []int{0, 3, 4, 5, 6}) {
		t.Errorf("by the socket: %+v", d)
	}
}

func executableOf(t *testing.T, path string) Executable {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return Executable{st.Dev, st.Ino}
}

func BenchmarkLoopbackAlive(b *testing.B) {
	d, err := OpenSockDiag()
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	fd, err := connectTo(l.Addr().(*net.TCPAddr), unix.AF_INET, 0, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	c, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	p, err := d.Peer(c.(*net.TCPConn))
	if err != nil {
		b.Fatal(err)
	}
	caller := d.Caller(p, "loopback x", "")
	for b.Loop() {
		if !caller.Alive() {
			b.Fatal("it is gone")
		}
	}
}
