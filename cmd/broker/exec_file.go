package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// memoryFile is a file that is nowhere but in this process: memory that others
// open by /proc/PID/fd/N, which the kernel allows to the same user and root. A
// new content is another file at the same number: whoever opens the path gets
// the old or the new one, whole. It ends with this process, however that ends.
type memoryFile struct {
	path string
	fd   int
}

// newMemoryFile makes a file; name is what ls shows of it.
func newMemoryFile(name string, content []byte) (*memoryFile, error) {
	self, err := os.Readlink("/proc/self") // the number that /proc has, which a namespace may change
	if err != nil {
		return nil, fmt.Errorf("broker exec hands its values over in /proc, which is not mounted here: %w", err)
	}
	fd, err := sealedMemory(name, content)
	if err != nil {
		return nil, err
	}
	return &memoryFile{fmt.Sprintf("/proc/%s/fd/%d", self, fd), fd}, nil
}

// put replaces the content.
func (f *memoryFile) put(name string, content []byte) error {
	fd, err := sealedMemory(name, content)
	if err != nil {
		return err
	}
	return errors.Join(unix.Dup3(fd, f.fd, unix.O_CLOEXEC), unix.Close(fd))
}

// remove takes the content away until the next put. The number stays taken, or
// another file would get it: by a socket, which cannot be opened (ENXIO).
func (f *memoryFile) remove() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Dup3(fd, f.fd, unix.O_CLOEXEC), unix.Close(fd))
}

// sealedMemory makes memory that nobody changes any more.
func sealedMemory(name string, content []byte) (int, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return -1, fmt.Errorf("make a file in memory: %w", err)
	}
	for rest := content; len(rest) > 0 && err == nil; {
		var n int
		n, err = unix.Write(fd, rest)
		rest = rest[max(n, 0):]
	}
	if err == nil {
		err = unix.Fchmod(fd, 0o400)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("write a file in memory: %w", err)
	}
	return fd, nil
}
