package access

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A connector that is gone before it is identified, still a zombie or not.
func TestExitedConnector(t *testing.T) {
	for _, h := range holders {
		for _, zombie := range []bool{true, false} {
			t.Run(h.name+map[bool]string{true: ", zombie", false: ", reaped"}[zombie], func(t *testing.T) {
				s, p := listen(t), listen(t)
				kid := start(t, nil, "pass", s.path, p.path)
				conn := s.accept()
				held := receive(t, p.accept()) // or the connection would just be closed
				defer held.Close()
				if zombie {
					die(t, kid)
				} else {
					kid.stop()
				}
				if c, err := new(Identifier).identify(conn, h.hold); !errors.Is(err, ErrExited) {
					t.Errorf("%v, %v", c, err)
				}
			})
		}
	}
}

// die ends the child without reaping it.
func die(t *testing.T, kid *child) {
	t.Helper()
	must(t, kid.cmd.Process.Kill())
	var info unix.Siginfo
	must(t, unix.Waitid(unix.P_PID, int(kid.pid()), &info, unix.WEXITED|unix.WNOWAIT, nil))
}

// receive takes the connection that a child passes.
func receive(t *testing.T, conn *net.UnixConn) net.Conn {
	t.Helper()
	oob := make([]byte, 64)
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), oob)
	must(t, err)
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	must(t, err)
	fds, err := unix.ParseUnixRights(&messages[0])
	must(t, err)
	f := os.NewFile(uintptr(fds[0]), "passed")
	defer f.Close()
	c, err := net.FileConn(f)
	must(t, err)
	return c
}

// A passed descriptor works, and stays the connector's.
func TestPassedDescriptor(t *testing.T) {
	for _, h := range holders {
		t.Run(h.name, func(t *testing.T) {
			s, p := listen(t), listen(t)
			kid := start(t, nil, "pass", s.path, p.path)
			conn := s.accept()
			passed := receive(t, p.accept())
			defer passed.Close()
			c := whoever(t, conn, h.hold)
			if c.PID != kid.pid() {
				t.Errorf("pid %d, the connector's is %d, ours %d", c.PID, kid.pid(), os.Getpid())
			}
			kid.stop()
			if _, err := passed.Write([]byte("?")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if c.Alive() {
				t.Error("whoever holds the passed descriptor counts as its connector")
			}
		})
	}
}

// recycle starts a process under a number that was just freed.
func recycle(t *testing.T, pid int32, attr *syscall.SysProcAttr, role ...string) *child {
	t.Helper()
	if role == nil {
		role = []string{"wait"}
	}
	for range 5000 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(int(pid)-1)), 0); err != nil {
			weaker(t, "no pid can be chosen: "+err.Error())
			return nil
		}
		kid := launch(t, attr, role[0], role[1:]...)
		if kid.pid() == pid {
			if l := kid.line(); l != "ready" {
				t.Fatal(l)
			}
			return kid
		}
		kid.stop() // somebody was faster
	}
	weaker(t, "no process got the number")
	return nil
}

func TestRecycledPID(t *testing.T) {
	s, p := listen(t), listen(t)
	first := start(t, nil, "pass", s.path, p.path)
	conn := s.accept()
	held := receive(t, p.accept())
	defer held.Close()
	caller := whoever(t, conn, peerPidfd)
	seen, err := glance(first.pid())
	must(t, err)
	dir, _, err := openProc(first.pid())
	must(t, err)
	defer dir.close()
	for now := seen; now.start == seen.start; { // no number comes round within one tick of the clock
		other := start(t, nil, "wait")
		now, err = glance(other.pid())
		must(t, err)
		other.stop()
	}
	first.stop()

	check := func(t *testing.T) {
		t.Helper()
		if caller.Alive() {
			t.Error("the caller lives on in another process")
		}
		if _, err := new(Identifier).identify(conn, peerPidfd); !errors.Is(err, ErrExited) {
			t.Errorf("pidfd of the connection: %v", err)
		}
		before := descriptors(t)
		if fd, err := open(first.pid(), seen); !errors.Is(err, ErrExited) {
			t.Errorf("pidfd by number: %d, %v", fd, err)
		}
		if after := descriptors(t); after != before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
		if text, err := dir.read("cgroup", make([]byte, 100)); !errors.Is(err, ErrExited) {
			t.Errorf("/proc: %q, %v", text, err)
		}
	}
	check(t)
	second := recycle(t, first.pid(), nil)
	if second == nil {
		// The check is made all the same: of this process under a wrong start.
		me, err := glance(int32(os.Getpid()))
		must(t, err)
		me.start--
		if _, err := open(int32(os.Getpid()), me); !errors.Is(err, ErrExited) {
			t.Error(err)
		}
		return
	}
	if now, err := glance(first.pid()); err != nil || now == seen {
		t.Fatalf("%v, %v: the second process cannot be told from the first", now, err)
	}
	check(t)
	second.stop()

	// By number, another user is told at once.
	if recycle(t, first.pid(), &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12345}}) != nil {
		if c, err := new(Identifier).identify(conn, openPidfd); !errors.Is(err, ErrExited) {
			t.Errorf("%v, %v", c, err)
		}
	}
}

func TestDescriptorsAreFreed(t *testing.T) {
	s := listen(t)
	p := listen(t)
	kid := start(t, nil, "pass", s.path, p.path)
	dead := s.accept()
	held := receive(t, p.accept())
	defer held.Close()
	kid.stop()
	before := descriptors(t)
	for i := range 10_000 {
		client, err := net.Dial("unix", s.path)
		must(t, err)
		conn, err := s.l.Accept()
		must(t, err)
		h := holders[i%2].hold
		c, err := new(Identifier).identify(conn.(*net.UnixConn), h)
		must(t, err)
		must(t, c.Close())
		must(t, c.Close())
		if c.Alive() {
			t.Fatal("alive after Close")
		}
		client.Close()
		conn.Close()
		if _, err := new(Identifier).identify(dead, h); !errors.Is(err, ErrExited) {
			t.Fatal(err)
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

func TestAliveAndCloseTogether(t *testing.T) {
	s := listen(t)
	start(t, nil, "connect", s.path)
	c := whoever(t, s.accept(), peerPidfd)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				c.Alive()
			}
			c.Close()
		})
	}
	all.Wait()
	if c.Alive() {
		t.Error("alive after Close")
	}
}
