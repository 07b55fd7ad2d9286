package access

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// procDir is an open /proc/PID. It stays with its process: once that is gone,
// reads fail, also if the number is in use again.
type procDir int

// openProc also returns the start time.
func openProc(pid int32) (procDir, uint64, error) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(int(pid)), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		dir := procDir(fd)
		var start uint64
		if start, err = dir.start(); err == nil {
			return dir, start, nil
		}
		dir.close()
	}
	// How a process is hidden depends on the value of hidepid.
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		if errors.Is(unix.Kill(int(pid), 0), unix.ESRCH) {
			return -1, 0, ErrExited
		}
		return -1, 0, errors.New("/proc hides it from the daemon: set ProtectProc=default in the daemon's unit, and mount /proc without hidepid")
	}
	return -1, 0, fmt.Errorf("read /proc/%d: %w", pid, err)
}

func (d procDir) close() { _ = unix.Close(int(d)) }

// read returns the whole file, in buf if it fits. An error is ErrExited or an
// errno.
func (d procDir) read(name string, buf []byte) ([]byte, error) {
	fd, err := unix.Openat(int(d), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, gone(err)
	}
	defer procDir(fd).close()
	n := 0
	for {
		m, err := unix.Read(fd, buf[n:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, gone(err)
		case m == 0:
			return buf[:n], nil
		}
		if n += m; n == len(buf) {
			if n >= 1<<20 {
				return nil, unix.EFBIG
			}
			buf = append(buf, make([]byte, len(buf))...)
		}
	}
}

func gone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return ErrExited
	}
	return err
}

// start is field 22 of stat. The second field is the program's own choice and
// may hold anything, so it counts from the last parenthesis.
func (d procDir) start() (uint64, error) {
	var buf [1024]byte
	stat, err := d.read("stat", buf[:])
	if err != nil {
		return 0, err
	}
	return parseStart(stat)
}

func parseStart(stat []byte) (uint64, error) {
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 20 {
		return 0, errors.New("/proc/PID/stat has too few fields")
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

func (d procDir) exe() Executable {
	var st unix.Stat_t
	if unix.Fstatat(int(d), "exe", &st, 0) != nil {
		return Executable{}
	}
	return Executable{Dev: st.Dev, Ino: st.Ino}
}
