package access

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An Identifier remembers for a second what /proc says of a process, so that
// one that connects for every request is read once a second. That gives nobody
// anything: whoever was identified a second ago could have kept that
// connection, and its identity with it. Who the user is, which program it runs
// in which unit, and whether it runs, is asked of the kernel each time.
//
// The zero value is ready for use by many goroutines at a time.
type Identifier struct {
	mu   sync.Mutex
	seen map[uint64]profile // by the number of the process's pidfd
	held map[uint64]*hold   // by the same
}

// Identify asks the kernel who opened c. Call it right after accepting, and
// Close the Caller with the connection.
//
// The process is held by a pidfd before anything about it is read, and must
// still run after the last read: what /proc said was then about this process
// and no other. The pidfd comes with the connection where the kernel has that
// (SO_PEERPIDFD, Linux 6.5). Before, it is opened by number, with start time,
// uid and gid compared before and after; there, a connector that exits while
// its connection still waits to be accepted, and whose number is given in that
// time to a process of the same uid and gid, cannot be told from it.
//
// The error is ErrExited, or says what is wrong with the machine.
func (i *Identifier) Identify(c *net.UnixConn) (*Caller, error) {
	caller, err := i.identify(c, peerPidfd)
	if errors.Is(err, unix.ENOPROTOOPT) {
		caller, err = i.identify(c, openPidfd)
	}
	return caller, err
}

// Identify is an Identifier's, without a memory.
func Identify(c *net.UnixConn) (*Caller, error) { return new(Identifier).Identify(c) }

// A holder returns a pidfd of the process behind a socket.
type holder func(socket int, peer *unix.Ucred) (pidfd int, err error)

func (i *Identifier) identify(conn *net.UnixConn, hold holder) (*Caller, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("identify the caller: %w", err)
	}
	var caller *Caller
	var failed error
	err = raw.Control(func(fd uintptr) { caller, failed = i.fromSocket(int(fd), hold) })
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("identify the caller: %w", err)
	}
	return caller, nil
}

func (i *Identifier) fromSocket(socket int, hold holder) (*Caller, error) {
	peer, err := unix.GetsockoptUcred(socket, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	if peer.Pid <= 0 {
		return nil, errors.New("it runs in a pid namespace that is not below the daemon's: run the daemon outside of the container, or the consumer inside")
	}
	groups, err := peerGroups(socket, peer.Gid)
	if err != nil {
		return nil, err
	}
	pidfd, err := hold(socket, peer)
	if err != nil {
		return nil, err
	}
	key := unique(pidfd)
	pidfd = i.share(pidfd, key)
	c := &Caller{PID: peer.Pid, UID: peer.Uid, GID: peer.Gid, Groups: groups, pidfd: pidfd, key: key, held: i}
	p, err := i.profile(peer.Pid, pidfd, key)
	if err == nil && !running(pidfd) {
		err = ErrExited
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	c.Start, c.Unit, c.Container, c.Exe, c.LoginUID = p.start, p.unit, p.container, p.exe, p.loginUID
	if p.manager == c.UID {
		c.UserUnit = p.userUnit
	}
	return c, nil
}

// peerPidfd is the kernel's own answer, bound to the connection.
func peerPidfd(socket int, _ *unix.Ucred) (int, error) {
	fd, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil {
		return peerError(err)
	}
	return fd, nil
}

func peerError(err error) (int, error) {
	for _, gone := range []error{unix.EINVAL, unix.ESRCH, unix.ENODATA} { // which one depends on the kernel's version
		if errors.Is(err, gone) {
			return -1, ErrExited
		}
	}
	return -1, fmt.Errorf("SO_PEERPIDFD: %w", err)
}

// openPidfd is for kernels without peerPidfd.
func openPidfd(_ int, peer *unix.Ucred) (int, error) {
	seen, err := glance(peer.Pid)
	if err != nil {
		return -1, err
	}
	if seen.uid != peer.Uid || seen.gid != peer.Gid {
		return -1, fmt.Errorf("%w, or has changed its user since", ErrExited)
	}
	return open(peer.Pid, seen)
}

// open holds the process pid if it is still the one that was seen.
func open(pid int32, seen glimpse) (int, error) {
	fd, err := unix.PidfdOpen(int(pid), 0)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL):
		return -1, ErrExited
	case err != nil:
		return -1, fmt.Errorf("pidfd_open: %w", err)
	}
	now, err := glance(pid)
	if err == nil && now != seen {
		err = ErrExited
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// A glimpse tells one process from the next of the same number.
type glimpse struct {
	start    uint64
	uid, gid uint32
}

func glance(pid int32) (g glimpse, err error) {
	dir, start, err := openProc(pid)
	if err != nil {
		return g, err
	}
	defer dir.close()
	g.start = start
	var buf [4096]byte
	status, err := dir.read("status", buf[:])
	if err != nil {
		return g, err
	}
	g.uid, err = effective(status, "Uid:")
	if err == nil {
		g.gid, err = effective(status, "Gid:")
	}
	return g, err
}

// effective is the second number of a line "Uid: real effective saved fs".
func effective(status []byte, key string) (uint32, error) {
	if f := bytes.Fields(line(status, key)); len(f) >= 2 {
		n, err := strconv.ParseUint(string(f[1]), 10, 32)
		return uint32(n), err
	}
	return 0, fmt.Errorf("/proc/PID/status has no %q line", key)
}

// peerGroups is the connector's groups at connect, gid included.
func peerGroups(socket int, gid uint32) ([]uint32, error) {
	var few [32]uint32
	groups := few[:]
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(socket), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			groups = append(slices.Clone(groups[:size/4]), gid)
			slices.Sort(groups)
			return slices.Compact(groups), nil
		case unix.ERANGE: // size is now what it takes; at most 65,536 groups
			groups = make([]uint32, size/4)
		default:
			return nil, fmt.Errorf("SO_PEERGROUPS: %w", errno)
		}
	}
}
