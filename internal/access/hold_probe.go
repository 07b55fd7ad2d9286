package access

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Holding is how the process behind a connection is held while it is looked at.
type Holding struct {
	// By is "SO_PEERPIDFD" or "pidfd_open", as Identify prefers them; empty:
	// Err says why no process can be held, and nobody is identified.
	By  string
	Err error
	// Numbered: the kernel gives a process a number that no other gets until
	// the next boot (pidfs), by which it is known again.
	Numbered bool
}

// ProbeHolding finds out by holding ourselves through a socket of our own.
func ProbeHolding() Holding {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Holding{Err: err}
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	h := Holding{By: "SO_PEERPIDFD"}
	fd, err := peerPidfd(pair[0], nil)
	if errors.Is(err, unix.ENOPROTOOPT) {
		h.By = "pidfd_open"
		fd, err = openPidfd(pair[0], &unix.Ucred{Pid: int32(os.Getpid()), Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())})
	}
	if err != nil {
		return Holding{Err: err}
	}
	defer unix.Close(fd)
	h.Numbered = unique(fd) != 0
	return h
}
