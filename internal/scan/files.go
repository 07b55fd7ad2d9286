package scan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Rules of this file:
//   - symbolic links below a root are not followed; if somebody puts one in the
//     way meanwhile, os.Root keeps what is opened inside the root;
//   - only regular files are read, opened without blocking;
//   - each directory, and each file with several names, is visited once.

// root is one of the given paths.
type root struct {
	dir   *os.Root
	start string // in dir: "." or the name of a file
	real  string // of start
	shown string // of start: as it was given
	git   string // git's directory of the repository around it; empty: there is none, or it is below
}

type roots []root

// openRoots opens the paths, without those that lie below another.
func openRoots(paths []string) (list roots, err error) {
	for _, p := range paths {
		r := root{shown: filepath.Clean(p), start: "."}
		if r.real, err = filepath.Abs(p); err == nil {
			r.real, err = filepath.EvalSymlinks(r.real) // a link that was given by name is meant
		}
		var info os.FileInfo
		if err == nil {
			info, err = os.Lstat(r.real)
		}
		if err == nil {
			dir := r.real
			if !info.IsDir() {
				dir, r.start = filepath.Split(r.real)
			}
			r.dir, err = os.OpenRoot(dir)
		}
		if err != nil {
			list.close()
			return nil, fmt.Errorf("path %d of those to scan cannot be opened: %s: name files and directories that exist and that this user may read",
				slices.Index(paths, p)+1, reason(err))
		}
		if git := repository(r.real); !below(git, r.real) {
			r.git = git
		}
		list = append(list, r)
	}
	return list.distinct(), nil
}

// distinct closes and leaves out what lies below another root, or is the same.
func (l roots) distinct() (list roots) {
	for i, r := range l {
		covered := slices.ContainsFunc(l[:i], func(o root) bool { return o.real == r.real }) ||
			slices.ContainsFunc(l, func(o root) bool {
				return o.start == "." && o.real != r.real && below(r.real, o.real)
			})
		if covered {
			r.dir.Close()
			continue
		}
		list = append(list, r)
	}
	return list
}

// below says whether a path is dir, or below it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func (l roots) close() {
	for _, r := range l {
		r.dir.Close()
	}
}

// visitor is what a walk calls, from its own goroutine. An error ends the walk.
type visitor struct {
	unread func(path, reason string)
	name   func(path string) (shown string, err error)
	file   func(r *os.Root, rel, shown string, info os.FileInfo) error
	git    func(dir, shown string) (taken bool, err error) // a repository, whose objects need no visit if it is taken
	apart  func(shown string)                              // a work tree whose repository lies elsewhere
	alone  func(shown string)                              // a root that has no repository around or below it
}

type inode struct{ dev, ino uint64 }

type walk struct {
	visitor
	ctx  context.Context // of one call of walk
	all  roots
	seen map[inode]bool
	// repositories that were met, by git's directory
	repositories map[string]bool
}

func (l roots) walk(ctx context.Context, v visitor) error {
	w := &walk{visitor: v, ctx: ctx, all: l, seen: map[inode]bool{}, repositories: map[string]bool{}}
	for _, r := range l {
		before := len(w.repositories)
		if err := w.around(r); err != nil {
			return err
		}
		info, err := r.dir.Lstat(r.start)
		if err != nil {
			w.unread(r.shown, reason(err))
			continue
		}
		if err := w.entry(r, r.start, info); err != nil {
			return err
		}
		if r.git == "" && len(w.repositories) == before {
			shown, err := w.name(r.shown)
			if err != nil {
				return err
			}
			w.alone(shown)
		}
	}
	return nil
}

// around visits the repository in which a root lies, once.
func (w *walk) around(r root) error {
	if r.git == "" || w.repositories[r.git] || slices.ContainsFunc(w.all, func(o root) bool { return o.start == "." && below(r.git, o.real) }) {
		return nil
	}
	shown, err := w.name(r.git)
	if err != nil {
		return err
	}
	w.repositories[r.git] = true
	_, err = w.git(r.git, shown)
	return err
}

// entry visits one name.
func (w *walk) entry(r root, rel string, info os.FileInfo) error {
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return nil
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && (info.IsDir() || st.Nlink > 1) {
		id := inode{st.Dev, st.Ino}
		if w.seen[id] {
			return nil
		}
		w.seen[id] = true
	}
	shown := r.shown
	if rel != r.start {
		shown = path.Join(shown, rel)
	}
	shown, err := w.name(shown)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return w.directory(r, rel, shown)
	}
	return w.file(r.dir, rel, shown, info)
}

// directory visits what is in a directory. It holds no descriptor while it is
// further down.
func (w *walk) directory(r root, rel, shown string) error {
	names, err := w.list(r, rel)
	if err != nil {
		w.unread(shown, reason(err))
	}
	has := func(name string) bool { _, found := slices.BinarySearch(names, name); return found }
	taken := false
	dir := filepath.Join(r.real, rel)
	if has("HEAD") && has("objects") && has("refs") {
		w.repositories[dir] = true
		if taken, err = w.git(dir, shown); err != nil {
			return err
		}
	}
	if has(".git") {
		w.linked(r, elsewhere(filepath.Join(dir, ".git")), shown)
	}
	for _, name := range names {
		if taken && name == "objects" {
			continue
		}
		below := path.Join(rel, name)
		info, err := r.dir.Lstat(below)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			if p, fatal := w.name(path.Join(shown, name)); fatal == nil {
				w.unread(p, reason(err))
			}
			continue
		}
		if err := w.entry(r, below, info); err != nil {
			return err
		}
	}
	return nil
}

// linked notes a work tree below a root whose repository is not below one: a
// file that anybody can write does not lead us there.
func (w *walk) linked(r root, git, shown string) {
	if git == "" || git == r.git || slices.ContainsFunc(w.all, func(o root) bool { return below(git, o.real) }) {
		return
	}
	w.apart(shown)
}

// list returns the names in a directory, sorted; none in the file systems by
// which the kernel shows itself. What could be read comes beside an error.
func (w *walk) list(r root, rel string) ([]string, error) {
	f, err := r.dir.OpenFile(rel, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	switch st.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC,
		unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.BPF_FS_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.EFIVARFS_MAGIC:
		return nil, nil
	}
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// file scans one file, and what is packed in it.
func (w *worker) file(ctx context.Context, r *os.Root, rel, shown string) error {
	at := spot{source: SourceFile, path: shown}
	w.s.current.Store(&shown)
	defer w.s.files.Add(1)
	w.begin()
	defer w.end(at)
	f, err := r.OpenFile(rel, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		w.s.unread(at, reason(err))
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return err // it is another file meanwhile
	}
	// A log that grows while it is read is read as far as it went.
	size := info.Size()
	if err := w.packed(ctx, &at, f, size); err != nil {
		return err
	}
	return w.stream(ctx, at, &counted{r: io.NewSectionReader(f, 0, size), n: &w.s.bytes})
}

// reason says why something could not be read, without its name.
func reason(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return strings.TrimSpace(err.Error())
}
