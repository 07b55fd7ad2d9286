package leak

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A store is a directory of small files, each of which is replaced whole. What
// its methods have returned nil for survives a loss of power.
type store struct {
	dir string
	// at is called before and after each step that a crash could part from the
	// next. nil outside of tests.
	at func(step string)
}

func (s store) step(name string) {
	if s.at != nil {
		s.at(name)
	}
}

// open makes the directory if need be. It has to be its owner's alone: what
// lies in it is believed.
func (s store) open() error {
	err := os.Mkdir(s.dir, 0o700)
	if err == nil {
		return explain(errors.Join(likeParent(s.dir), syncDir(filepath.Dir(s.dir))))
	}
	if !errors.Is(err, fs.ErrExist) {
		return explain(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(s.dir, &st); err != nil {
		return explain(&fs.PathError{Op: "stat", Path: s.dir, Err: err})
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o077 != 0 {
		return fmt.Errorf("incidents: %s is no directory of its owner alone (mode %04o): chmod 0700 it", s.dir, st.Mode&0o7777)
	}
	return nil
}

// likeParent gives a new file or directory to the owner of the directory that
// it lies in: root may write there for a daemon that is not root.
func likeParent(name string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Dir(name), &st); err != nil {
		return &fs.PathError{Op: "stat", Path: filepath.Dir(name), Err: err}
	}
	return os.Lchown(name, int(st.Uid), int(st.Gid))
}

// put writes or replaces a file.
func (s store) put(name string, data []byte) error {
	s.step("before write")
	tmp, err := os.CreateTemp(s.dir, ".new-*")
	if err != nil {
		return explain(err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	err = errors.Join(err, likeParent(tmp.Name()), tmp.Sync(), tmp.Close())
	s.step("before rename")
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(s.dir, name)) //nolint:gosec // the name was checked
	}
	s.step("before sync")
	if err == nil {
		err = syncDir(s.dir)
	}
	s.step("after sync")
	return explain(err)
}

// checked is how the last member of a record begins; a checksum, a line end and
// a brace follow.
const checked = ",\n  \"checksum\": \""

// seal is v as a JSON object, whose last member is a checksum of all before it:
// with a bit flipped, a name may still be a name, and another one.
func seal(v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	sum := checksum(data)
	data = bytes.TrimSuffix(data, []byte("\n}"))
	return fmt.Appendf(data, "%s%s\"\n}\n", checked, sum), nil
}

// unseal reads what seal wrote, strictly. A record without a checksum was
// written before there was one.
func unseal(data []byte, v any) error {
	const sum = 8 // digits
	if n := len(data) - len(checked) - sum - len("\"\n}\n"); n > 0 && bytes.HasPrefix(data[n:], []byte(checked)) {
		body := append(data[:n:n], "\n}"...)
		if string(data[n:]) != fmt.Sprintf("%s%s\"\n}\n", checked, checksum(body)) {
			return errors.New("its checksum is that of something else: it was damaged, or changed by hand")
		}
		data = body
	}
	return decode(data, v)
}

func checksum(data []byte) string {
	return fmt.Sprintf("%08x", crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
}

// reserve makes an empty file, and says whether it was this call that did.
func (s store) reserve(name string) (bool, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, explain(err)
	}
	return true, explain(errors.Join(likeParent(f.Name()), f.Close()))
}

// get reads a file, which has to be a plain one of at most mostBytes.
func (s store) get(name string) ([]byte, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) //nolint:gosec // the name was checked, or is from the directory
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > mostBytes {
		return nil, fmt.Errorf("%s is no file, or longer than %d bytes", f.Name(), mostBytes)
	}
	data := make([]byte, st.Size())
	n, err := f.ReadAt(data, 0)
	if n == len(data) {
		err = nil
	}
	return data[:n], err
}

// names are those of the records; other files are left alone.
func (s store) names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, explain(err)
	}
	var names []string
	for _, e := range entries {
		if n := e.Name(); strings.HasSuffix(n, ".json") && !strings.HasPrefix(n, ".") {
			names = append(names, n)
		}
	}
	return names, nil
}

// sweep removes what a crash has left half-written. What is of the last hour is
// left alone: another process may be writing it.
func (s store) sweep() {
	left, _ := filepath.Glob(filepath.Join(s.dir, ".new-*"))
	for _, name := range left {
		if st, err := os.Lstat(name); err == nil && time.Since(st.ModTime()) > time.Hour {
			_ = os.Remove(name) // it is tried again at the next start
		}
	}
}

func syncDir(name string) error {
	d, err := os.Open(name) //nolint:gosec // a directory of the state
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// explain says what to do about a disk that failed.
func explain(err error) error {
	if err == nil {
		return nil
	}
	hint := "look at the disk and the kernel's log"
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		hint = "free some space there"
	case errors.Is(err, fs.ErrNotExist):
		hint = "make the state directory again"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		hint = "check its owner, its mode and how it is mounted"
	}
	return fmt.Errorf("incidents: %w: %s", err, hint)
}
