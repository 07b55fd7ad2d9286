// Package access says who is asking and whether they may: the first from the
// kernel alone, the second by pure rules.
//
// A consumer never says who it is. Identify asks the kernel, once a
// connection; Rules.Decide compares what it said with a client's allow list.
package access

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Caller is what the kernel says of the process that opened a connection, as
// it was then. A descriptor that is passed on keeps its connector's identity.
// The fields never change; all methods may be called at the same time.
type Caller struct {
	PID   int32
	Start uint64 // clock ticks since boot (/proc/PID/stat, field 22): with PID, unique until the next boot

	UID, GID uint32   // effective, at connect
	Groups   []uint32 // supplementary at connect (SO_PEERGROUPS) and GID; sorted, each once

	// Unit is the system manager's unit, as sd_pid_get_unit has it: the first
	// component below the slices on the whole cgroup-v2 path. It is empty below
	// a user manager, where a user could choose the name, and outside of units.
	Unit string
	// UserUnit is the unit of UID's own user manager, or empty.
	UserUnit string
	// Container: the process runs in a pid namespace below ours, in a user
	// namespace that renumbers its users, or in a container's cgroup.
	Container bool

	// Place is the listener of a caller over loopback, "loopback 127.0.0.1:8085";
	// empty: it came by a Unix socket. The kernel then knows the user alone: no
	// process, no unit, no container, and groups are the user database's.
	Place string
	// Client is the only one that there is for this caller; empty: all are.
	Client string

	Exe      Executable // zero when it may not be read (without CAP_SYS_PTRACE: all but our own user's)
	LoginUID uint32     // the audit system's login uid, ^uint32(0) if unset

	peer *Peer // over loopback: its socket, known to diag
	diag *SockDiag

	mu    sync.Mutex
	pidfd int         // -1 once closed; shared with the process's other connections if it has a number
	key   uint64      // that number
	held  *Identifier // whose holds it is among
}

// Executable names a file by what cannot be forged: device and inode.
type Executable struct{ Dev, Ino uint64 }

// ErrExited is returned by Identify for a connector that is gone. Its
// connection must get nothing, whoever else still holds it.
var ErrExited = errors.New("the process that opened the connection has exited")

// Alive says whether the connector still runs; over loopback, whether its socket
// is still connected. Once false it is false for ever, also if the pid or the
// port is in use again. It costs one system call, over loopback two.
func (c *Caller) Alive() bool {
	if c.peer != nil {
		return c.diag.connected(c.peer)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pidfd >= 0 && running(c.pidfd)
}

// Close frees the descriptor behind Alive, which is false from then on. The
// fields stay. More calls do nothing.
func (c *Caller) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd < 0 {
		return nil
	}
	fd := c.pidfd
	c.pidfd = -1
	return c.held.release(fd, c.key)
}

// Reaches says whether there is such a client for c.
func (c *Caller) Reaches(client string) bool { return c.Client == "" || c.Client == client }

// String describes the caller to a person. It looks the user's name up, so it
// is for errors and logs, not for every request.
func (c *Caller) String() string {
	var s strings.Builder
	if c.Place == "" {
		fmt.Fprintf(&s, "pid %d, ", c.PID)
	}
	fmt.Fprintf(&s, "uid %d", c.UID)
	if u, err := user.LookupId(strconv.FormatUint(uint64(c.UID), 10)); err == nil {
		fmt.Fprintf(&s, " (%s)", u.Username)
	}
	if c.Unit != "" {
		s.WriteString(", unit " + c.Unit)
	}
	if c.UserUnit != "" {
		s.WriteString(", user unit " + c.UserUnit)
	}
	if c.Container {
		s.WriteString(", in a container")
	}
	if c.Place != "" {
		s.WriteString(", over loopback")
	}
	return s.String()
}

// running says whether the process that pidfd holds has not exited. A zombie
// has.
func running(pidfd int) bool {
	fds := [1]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds[:], 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n == 0
		}
	}
}
