package files

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"credentialbroker/internal/broker"
)

// Rules of this file:
//   - a path is walked from the root, one directory at a time, and no symbolic
//     link is followed: whoever could plant one would choose where tokens go;
//   - every directory on the way is root's or our own, and nobody else may
//     rename what is in it; into the last one nobody else may put anything;
//   - all is done relative to that last directory, so that what was looked at
//     is what is used, whatever is renamed meanwhile;
//   - a file appears whole, by one rename, out of a directory of a moment that
//     only the daemon can enter: an owner could give a file any mode.

// A place is where a file goes. The directory is open.
type place struct {
	dir  int
	nest int // the directory of a moment; -1: none
	made int // the file in it that is to replace the one in place; -1: none
	base string
	path string
}

// errGone says that the directory is not there, and so no file in it.
var errGone = errors.New("the directory is not there")

// openPlace opens the directory of a file. Missing directories are made, if
// makeDirs says so, below a directory on a tmpfs that is our own.
func openPlace(file string, makeDirs bool) (*place, error) {
	self := uint32(os.Geteuid()) // #nosec G115 -- a uid
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /: %w", err)
	}
	at := "/"
	own, err := judge(fd, at, self)
	names := strings.Split(strings.Trim(path.Dir(file), "/"), "/")
	for _, name := range names {
		if err != nil || name == "" {
			break
		}
		at = path.Join(at, name)
		var next int
		next, err = step(fd, name, at, own && makeDirs)
		_ = unix.Close(fd)
		if fd = next; err != nil {
			return nil, err
		}
		own, err = judge(fd, at, self)
	}
	if err == nil {
		err = closed(fd, at)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &place{dir: fd, nest: -1, made: -1, base: path.Base(file), path: file}, nil
}

// step opens the directory name in dir, or makes it; at is its path.
func step(dir int, name, at string, mayMake bool) (int, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags, 0)
	if errors.Is(err, unix.ENOENT) && mayMake {
		if err = unix.Mkdirat(dir, name, 0o711); err == nil {
			err = unix.Fchmodat(dir, name, 0o711, 0) // here the umask has no say
		}
		if err == nil {
			fd, err = unix.Openat(dir, name, flags, 0)
		}
	}
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ENOENT):
		return -1, fmt.Errorf("%w: make %s, with an owner that is root or the daemon's user", errGone, at)
	case errors.Is(err, unix.ENOTDIR):
		return -1, fmt.Errorf("%s is a symbolic link or no directory: write the path with the real directories", at)
	}
	return -1, fmt.Errorf("open the directory %s: %w", at, err)
}

// judge says whether a directory is our own to make others in, and refuses one
// in which somebody else may rename what is there.
func judge(fd int, at string, self uint32) (own bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, fmt.Errorf("look at %s: %w", at, err)
	}
	switch {
	case st.Uid != 0 && st.Uid != self:
		return false, fmt.Errorf("the directory %s belongs to the user %d, who could put something else there: it has to be root's or the daemon's", at, st.Uid)
	case st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0:
		return false, fmt.Errorf("others may write the directory %s (mode %o): run chmod go-w %[1]s", at, st.Mode&0o7777)
	}
	return st.Uid == self && st.Mode&0o022 == 0 && volatile(fd), nil
}

// volatile says whether a directory is on no disk.
func volatile(fd int) bool {
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil {
		return false
	}
	kind := uint32(fs.Type) // #nosec G115 -- 32 bits on every machine
	return kind == unix.TMPFS_MAGIC || kind == unix.RAMFS_MAGIC
}

// closed refuses the last directory if others may put something into it, or if
// it is on a disk.
func closed(fd int, at string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("look at %s: %w", at, err)
	}
	switch {
	case st.Mode&0o022 != 0:
		return fmt.Errorf("others may write the directory %s (mode %o): make a directory of its own in it", at, st.Mode&0o7777)
	case !volatile(fd):
		return fmt.Errorf("%s is not on a tmpfs: a token must not come to a disk; write a path under /run", at)
	}
	return nil
}

// close takes back what was made and is not in place.
func (p *place) close() {
	if p.nest >= 0 {
		p.leave()
		_ = p.sweep()
	}
	_ = unix.Close(p.dir)
}

// leave closes what is open in the directory of a moment.
func (p *place) leave() {
	if p.made >= 0 {
		_ = unix.Close(p.made)
	}
	_ = unix.Close(p.nest)
	p.nest, p.made = -1, -1
}

// moment is the name of the directory in which a file is made: always the same,
// so that what a killed daemon leaves is found.
func (p *place) moment() string { return "." + p.base + ".new" }

// enter makes the directory of a moment. It inherits what the one around it
// says of groups.
func (p *place) enter() (err error) {
	if err := p.sweep(); err != nil {
		return fmt.Errorf("remove what an earlier run left beside %s: %w", p.path, err)
	}
	if err := unix.Mkdirat(p.dir, p.moment(), 0o700); err != nil {
		return fmt.Errorf("make a directory beside %s: %w", p.path, err)
	}
	p.nest, err = unix.Openat(p.dir, p.moment(), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the directory beside %s: %w", p.path, err)
	}
	return nil
}

// sweep removes the directory of a moment, and what is in it.
func (p *place) sweep() error {
	nest, err := unix.Openat(p.dir, p.moment(), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil: // no directory
		return unix.Unlinkat(p.dir, p.moment(), 0)
	}
	err = unix.Unlinkat(nest, p.base, 0)
	_ = unix.Close(nest)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return unix.Unlinkat(p.dir, p.moment(), unix.AT_REMOVEDIR)
}

// prepare makes the file, beside the one that it is to replace. Nobody can read
// it yet.
func (p *place) prepare(data []byte, w who) error {
	if err := p.replaceable(w); err != nil {
		return err
	}
	return p.explain(p.make(data, w))
}

// readers are the user and the group that will be able to read what was
// prepared.
func (p *place) readers(mode uint32) (uid, gid uint32, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(p.made, &st); err != nil {
		return 0, 0, fmt.Errorf("look at the new %s: %w", p.path, err)
	}
	if mode&0o040 == 0 {
		return st.Uid, broker.NoGroup, nil
	}
	return st.Uid, st.Gid, nil
}

// replace puts what was prepared in place.
func (p *place) replace(mode uint32) error {
	if err := unix.Fchmod(p.made, mode); err != nil {
		return fmt.Errorf("give %s the mode %o: %w", p.path, mode, err)
	}
	if err := unix.Renameat(p.nest, p.base, p.dir, p.base); err != nil {
		return p.explain(fmt.Errorf("put %s in place: %w", p.path, err))
	}
	return nil
}

func (p *place) explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("the file system of %s is full: %w; free some room", p.path, err)
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s cannot be written: %w; give the daemon's user the directory and, under systemd, ReadWritePaths= or RuntimeDirectory=", p.path, err)
	}
	return err
}

func (p *place) make(data []byte, w who) error {
	if err := p.enter(); err != nil {
		return err
	}
	fd, err := unix.Openat(p.nest, p.base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a file beside %s: %w", p.path, err)
	}
	p.made = fd
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("write %s: %w", p.path, err)
		}
		data = data[max(n, 0):]
	}
	if err := own(fd, w); err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	if err := unix.Fchmod(fd, 0); err != nil { // as replace will
		return fmt.Errorf("change the mode of %s: %w", p.path, err)
	}
	return nil
}

// own gives the file to its owner and group, where it is not theirs already.
func own(fd int, w who) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if w.uid == int(st.Uid) {
		w.uid = -1
	}
	if w.gid == int(st.Gid) {
		w.gid = -1
	}
	if w.uid < 0 && w.gid < 0 {
		return nil
	}
	err := unix.Fchown(fd, w.uid, w.gid)
	if errors.Is(err, unix.EPERM) {
		if w.uid >= 0 {
			return fmt.Errorf("owner: the daemon is not root and cannot give a file to the user %d: use group: and mode 0440", w.uid)
		}
		return fmt.Errorf("group: the daemon is no member of the group %d, or its unit forbids chown: see the drop-in files.conf of the unit", w.gid)
	}
	return err
}

// replaceable refuses to replace what is not a file of ours.
func (p *place) replaceable(w who) error {
	var st unix.Stat_t
	err := unix.Fstatat(p.dir, p.base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("look at %s: %w", p.path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fmt.Errorf("%s is there and is no file: remove it", p.path)
	case int(st.Uid) != os.Geteuid() && int(st.Uid) != w.uid:
		return fmt.Errorf("%s is there and belongs to the user %d: remove it", p.path, st.Uid)
	}
	return nil
}

// vacant refuses a path at which somebody else has put something.
func (p *place) vacant() error {
	var st unix.Stat_t
	if err := unix.Fstatat(p.dir, p.base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Size > 0 {
		return fmt.Errorf("%s is there and was not made by the broker: remove it, or write another path", p.path)
	}
	return nil
}

// remove takes the file away, and what a killed daemon has left beside it.
func (p *place) remove() error {
	_ = p.sweep()
	err := unix.Unlinkat(p.dir, p.base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("remove %s: %w", p.path, err)
}

// removeFile is remove without a place at hand.
func removeFile(file string) error {
	p, err := openPlace(file, false)
	switch {
	case errors.Is(err, errGone):
		return nil
	case err != nil:
		return fmt.Errorf("remove %s: %w", file, err)
	}
	defer p.close()
	return p.remove()
}
