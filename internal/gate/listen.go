package gate

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Rules of this file:
//   - who may replace a socket is who owns its directory: a directory that
//     others may write is refused;
//   - a socket gets its mode before anybody can reach it: it is made in a
//     private directory and moved into place;
//   - a living daemon's socket is not taken over: it holds a lock, and answers
//     a connection. What is left of a dead one is replaced.

// Listen makes the Unix socket path with the given permissions and listens on
// it; the directory is made (0755) if only that is missing. It fails if a
// daemon serves the path, if the path is something else than a socket, or if
// what came of it is not what was asked for. Close removes the socket.
func Listen(path string, mode os.FileMode) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := MakeDir(dir); err != nil {
		return nil, err
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	lock, err := lockSocket(path)
	if err != nil {
		return nil, err
	}
	l, err := place(path, mode)
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	out := &listener{UnixListener: l, lock: lock, path: path}
	info, err := checkSocket(path, mode)
	if err != nil {
		_ = out.Close()
		return nil, err
	}
	out.info = info
	return out, nil
}

// MakeDir makes a directory for sockets (0755) if only that is missing.
func MakeDir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	switch {
	case err == nil, errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the socket's directory %s cannot be made, since %s is not there: create that one, or choose another --socket", dir, filepath.Dir(dir))
	}
	return fmt.Errorf("make the socket's directory: %w: create it, or choose another --socket", err)
}

// listener removes its socket when it is closed.
type listener struct {
	*net.UnixListener
	lock *os.File
	path string
	info os.FileInfo // of the socket; nil: not checked
}

// Close stops listening. A second call returns an error.
func (l *listener) Close() error {
	if now, err := os.Lstat(l.path); err == nil && l.info != nil && os.SameFile(now, l.info) {
		_ = os.Remove(l.path)
	}
	err := l.UnixListener.Close()
	_ = l.lock.Close()
	return err
}

// lockSocket keeps a second daemon away from the path.
func lockSocket(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the socket: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, inUse(path)
		}
		return nil, fmt.Errorf("lock the socket: %s: %w", path, err)
	}
	return f, nil
}

func inUse(path string) error {
	return fmt.Errorf("%s is in use by a running daemon: stop that one first, or choose another socket", path)
}

// place makes the socket and moves it to path.
func place(path string, mode os.FileMode) (*net.UnixListener, error) {
	if err := vacant(path); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return nil, fmt.Errorf("make the socket: %w", err)
	}
	defer os.RemoveAll(private)
	made := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make the socket: %w (a path may have about 90 bytes)", err)
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(made, mode); err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("put the socket in its place: %w", err)
	}
	return l, nil
}

// vacant says why path may not be taken.
func vacant(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at the socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is no socket: it is left alone; remove it, or choose another path", path)
	}
	// A daemon that does not keep the lock, or one of another kind.
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	switch {
	case err == nil:
		_ = c.Close()
		return inUse(path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil // nobody listens any more
	}
	return fmt.Errorf("whether %s is in use cannot be told: %w", path, err)
}

// checkDir refuses a directory whose entries somebody else could replace.
func checkDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look at the socket's directory: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !info.IsDir():
		return fmt.Errorf("%s is no directory", dir)
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("the socket's directory %s belongs to uid %d, who could put another socket in its place: make it root's or the daemon's own", dir, st.Uid)
	case info.Mode().Perm()&0o022 != 0 && info.Mode()&os.ModeSticky != 0: // the name is free while no daemon runs
		return fmt.Errorf("others may make files in the socket's directory %s, and put a socket there while the daemon is away: make a directory of its own in it", dir)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("others may write the socket's directory %s, and put another socket in its place: chmod go-w %s", dir, dir)
	}
	return nil
}

// checkSocket looks at what there really is.
func checkSocket(path string, mode os.FileMode) (os.FileInfo, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("look at the socket: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is no socket", path)
	case info.Mode().Perm() != mode.Perm():
		return nil, fmt.Errorf("the socket %s has mode %04o and should have %04o: correct SocketMode= of its unit, or the directory's default ACL",
			path, info.Mode().Perm(), mode.Perm())
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("the socket %s belongs to uid %d: it should be root's or the daemon's own", path, st.Uid)
	}
	return info, nil
}

// Inherited gives the sockets that systemd passed on (sd_listen_fds(3)), by
// FileDescriptorName=, after looking at each as Listen does. modes holds the
// names that are known, and the permissions that each should have. None is no
// error: then the daemon was started by hand. Close does not remove them.
//
// stored are the descriptors called store, which the daemon before this one
// left with systemd (FDSTORE in sd_notify(3)), as they are: the caller closes
// them.
func Inherited(modes map[string]os.FileMode, store string) (sockets map[string]net.Listener, stored []*os.File, err error) {
	passed := map[string][]net.Listener{}
	for _, f := range activation.Files(true) {
		if f.Name() == store {
			stored = append(stored, f)
			continue
		}
		if l, err := net.FileListener(f); err == nil {
			passed[f.Name()] = append(passed[f.Name()], l)
		}
		_ = f.Close()
	}
	if sockets, err = checkPassed(passed, modes); err != nil {
		for _, f := range stored {
			_ = f.Close()
		}
		return nil, nil, err
	}
	return sockets, stored, nil
}

func checkPassed(passed map[string][]net.Listener, modes map[string]os.FileMode) (map[string]net.Listener, error) {
	out := map[string]net.Listener{}
	for name, list := range passed {
		mode, known := modes[name]
		if !known || len(list) != 1 {
			return nil, fmt.Errorf("systemd passes %d sockets with FileDescriptorName=%s: one each is expected, with the names in the shipped .socket units", len(list), name)
		}
		l, ok := list[0].(*net.UnixListener)
		if !ok {
			return nil, fmt.Errorf("systemd passes a socket %s that is no Unix stream socket: correct ListenStream= of its unit", name)
		}
		path := l.Addr().String()
		if err := checkDir(filepath.Dir(path)); err != nil {
			return nil, err
		}
		if _, err := checkSocket(path, mode); err != nil {
			return nil, err
		}
		l.SetUnlinkOnClose(false)
		out[name] = l
	}
	return out, nil
}
