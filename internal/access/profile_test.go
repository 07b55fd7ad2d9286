package access

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// remembered changes what i knows of the process behind c, so that its next
// answer shows where it comes from; false: this kernel gives nothing to know a
// process by.
func remembered(t *testing.T, i *Identifier, c *Caller, change func(*profile)) bool {
	t.Helper()
	key := c.key
	if key == 0 {
		weaker(t, "no unique numbers before Linux 6.9: nothing is remembered")
		if len(i.seen) != 0 {
			t.Error("something is remembered all the same")
		}
		return false
	}
	p, ok := i.seen[key]
	if !ok || len(i.seen) != 1 {
		t.Fatalf("remembered: %v", i.seen)
	}
	change(&p)
	i.seen[key] = p
	return true
}

func TestIdentifierRemembers(t *testing.T) {
	for _, h := range holders {
		t.Run(h.name, func(t *testing.T) {
			var i Identifier
			s := listen(t)
			ask := func() *Caller {
				t.Helper()
				client, err := net.Dial("unix", s.path)
				must(t, err)
				defer client.Close()
				c, err := i.identify(s.accept(), h.hold)
				must(t, err)
				t.Cleanup(func() { c.Close() })
				return c
			}
			first := ask()
			if !remembered(t, &i, first, func(p *profile) { p.unit = "remembered.service" }) {
				return
			}
			second := ask()
			if second.Unit != "remembered.service" || second.Start != first.Start || !second.Alive() {
				t.Errorf("read again at once: %s", second)
			}
			remembered(t, &i, first, func(p *profile) { p.read = p.read.Add(-fresh) })
			if third := ask(); third.Unit != first.Unit {
				t.Errorf("not read again after %v: %s", fresh, third)
			}
			remembered(t, &i, first, func(p *profile) { p.unit, p.place = "remembered.service", "0::/elsewhere\n" })
			if c := ask(); c.Unit != first.Unit {
				t.Errorf("not read again after a move to another unit: %s", c)
			}
			// A user unit belongs to the uid of this connection, not of the last.
			remembered(t, &i, first, func(p *profile) { p.userUnit, p.manager = "feed.service", uint32(os.Getuid())+1 })
			if c := ask(); c.UserUnit != "" {
				t.Errorf("user unit of another user: %s", c)
			}
			remembered(t, &i, first, func(p *profile) { p.manager = uint32(os.Getuid()) })
			if c := ask(); c.UserUnit != "feed.service" {
				t.Errorf("no user unit: %s", c)
			}
			// A profile is never another process's, whatever its number.
			remembered(t, &i, first, func(p *profile) { p.pid++ })
			if c := ask(); c.UserUnit != "" {
				t.Errorf("another process's: %s", c)
			}
		})
	}
}

// What is remembered gives an exited process nothing, nor the next one of its
// number.
func TestIdentifierForgets(t *testing.T) {
	var i Identifier
	s, p := listen(t), listen(t)
	first := start(t, nil, "pass", s.path, p.path)
	conn := s.accept()
	held := receive(t, p.accept())
	defer held.Close()
	c, err := i.Identify(conn)
	must(t, err)
	defer c.Close()
	remembered(t, &i, c, func(p *profile) { p.unit, p.read = "first.service", time.Now().Add(time.Hour) })
	first.stop()
	if c, err := i.Identify(conn); !errors.Is(err, ErrExited) {
		t.Errorf("%s, %v", c, err)
	}
	next := listen(t)
	second := recycle(t, first.pid(), nil, "connect", next.path)
	if second == nil {
		return
	}
	now, err := glance(second.pid())
	must(t, err)
	d, err := i.Identify(next.accept())
	for errors.Is(err, ErrExited) { // one that did not get the number
		d, err = i.Identify(next.accept())
	}
	must(t, err)
	defer d.Close()
	if d.PID != first.pid() || d.Start != now.start || d.Unit == "first.service" {
		t.Errorf("%s started at %d, and counts as started at %d", d, now.start, d.Start)
	}
}

// What a process runs now says nothing of what it ran when it was looked at.
func TestExecIsNotRemembered(t *testing.T) {
	var i Identifier
	s := listen(t)
	text, err := os.ReadFile(os.Getenv("CHILD"))
	must(t, err)
	other := t.TempDir() + "/other"
	must(t, os.WriteFile(other, text, 0o755))
	kid := start(t, nil, "exec", s.path, other)
	first, err := i.Identify(s.accept())
	must(t, err)
	defer first.Close()
	remembered(t, &i, first, func(p *profile) { p.read = time.Now().Add(time.Hour) })
	_, err = kid.stdin.Write([]byte("x"))
	must(t, err)
	second, err := i.Identify(s.accept())
	must(t, err)
	defer second.Close()
	var want unix.Stat_t
	must(t, unix.Stat(other, &want))
	if second.PID != first.PID || second.Start != first.Start || first.Exe == second.Exe || second.Exe != (Executable{Dev: want.Dev, Ino: want.Ino}) {
		t.Errorf("%s runs %v, and is %s, which ran %v", second, second.Exe, first, first.Exe)
	}
}

// A process that exits while it is looked at may be taken for the next of its
// number: that is not remembered.
func TestIdentifierDoubts(t *testing.T) {
	var i Identifier
	s := listen(t)
	kid := start(t, nil, "connect", s.path)
	c := whoever(t, s.accept(), peerPidfd)
	kid.stop()
	if p, err := i.profile(int32(os.Getpid()), c.pidfd, c.key); err != nil || len(i.seen) != 0 {
		t.Errorf("%+v, %v: remembered %v", p, err, i.seen)
	}
}

// Where pidfds have no numbers of their own, all have the same.
func TestUnique(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	must(t, err)
	defer unix.Close(fd)
	if n := unique(fd); n != 0 {
		t.Errorf("an event descriptor is process %d", n)
	}
}

// A thousand connections of a process take one descriptor to hold it; it goes
// with the last, in whatever order they end.
func TestConnectionsShareTheirProcess(t *testing.T) {
	var i Identifier
	s := listen(t)
	kid := start(t, nil, "connect", s.path)
	conn := s.accept()
	stranger, err := i.Identify(socketpair(t))
	must(t, err)
	defer stranger.Close()
	before := descriptors(t)
	var callers []*Caller
	for range 1000 {
		c, err := i.Identify(conn)
		must(t, err)
		callers = append(callers, c)
	}
	if callers[0].key == 0 {
		weaker(t, "no unique numbers before Linux 6.9: nothing is shared")
		return
	}
	if n := descriptors(t) - before; n != 1 {
		t.Errorf("%d descriptors for one process", n)
	}
	for _, n := range rand.Perm(len(callers))[1:] {
		must(t, callers[n].Close())
		must(t, callers[n].Close())
	}
	living := 0
	for _, c := range callers {
		if c.Alive() {
			living++
			defer c.Close()
		}
	}
	if living != 1 || !stranger.Alive() {
		t.Errorf("%d of the connections are alive, one was left", living)
	}
	kid.stop()
	before = descriptors(t)
	for _, c := range callers {
		if c.Alive() {
			t.Error("alive after its process")
		}
		must(t, c.Close())
	}
	if n := before - descriptors(t); n != 1 || len(i.held) != 1 {
		t.Errorf("%d descriptors were freed with the last, %d processes are held", n, len(i.held))
	}
}

func TestIdentifierIsBounded(t *testing.T) {
	i := Identifier{seen: map[uint64]profile{}}
	for n := range uint64(maxProfiles) {
		i.seen[n] = profile{}
	}
	c, err := i.Identify(socketpair(t))
	must(t, err)
	defer c.Close()
	if c.key != 0 && len(i.seen) != 1 {
		t.Errorf("%d profiles", len(i.seen))
	}
}

func socketpair(t testing.TB) *net.UnixConn {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	other := os.NewFile(uintptr(fds[1]), "")
	t.Cleanup(func() { other.Close() })
	f := os.NewFile(uintptr(fds[0]), "")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

func BenchmarkIdentify(b *testing.B) {
	conn := socketpair(b)
	for _, h := range holders {
		for name, i := range map[string]*Identifier{", again": {}, ", first": nil} {
			b.Run(h.name+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					who := i
					if who == nil {
						who = new(Identifier)
					}
					c, err := who.identify(conn, h.hold)
					if err != nil {
						b.Fatal(err)
					}
					c.Close()
				}
			})
		}
	}
}
