package configs

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// A distrust says why a file is not read.
type distrust struct{ message, hint string }

// readTrusted reads a file that nobody but root and the process's own user can
// have written or replaced: the file itself and every directory above it, as
// it was named and where links lead, have to be theirs. A sticky directory
// (/tmp) lets others add files and not replace ours.
func readTrusted(name string) ([]byte, *distrust) {
	// Not blocking: a pipe must not hang a daemon.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, &distrust{message: "the file cannot be read: " + reason(err)}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, &distrust{message: "the file cannot be read: " + reason(err)}
	}
	if !info.Mode().IsRegular() {
		return nil, &distrust{"it is no regular file", "a configuration is a file, or a link to one"}
	}
	if p := trusted(name, info); p != nil {
		return nil, p
	}
	target, err := filepath.EvalSymlinks(name)
	if err != nil {
		return nil, &distrust{message: "the file cannot be read: " + reason(err)}
	}
	for _, n := range []string{name, target} {
		if p := trustedAbove(n); p != nil {
			return nil, p
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, &distrust{message: "the file cannot be read: " + reason(err)}
	}
	return data, nil
}

func trustedAbove(name string) *distrust {
	name, err := filepath.Abs(name)
	if err != nil {
		return &distrust{message: "the file cannot be read: " + reason(err)}
	}
	for dir := filepath.Dir(name); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return &distrust{message: fmt.Sprintf("the directory %s cannot be read: %s", dir, reason(err))}
		}
		if info.Mode()&fs.ModeSticky != 0 && owner(info) == 0 {
			info = nil
		}
		if info != nil {
			if p := trusted(dir, info); p != nil {
				p.message = fmt.Sprintf("the directory %s is not safe: %s", dir, p.message)
				return p
			}
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func trusted(name string, info fs.FileInfo) *distrust {
	self := os.Geteuid()
	if uid := owner(info); uid != 0 && uid != self {
		return &distrust{fmt.Sprintf("it belongs to uid %d, who could grant access by changing it", uid), "chown root " + name}
	}
	switch mode := info.Mode().Perm() & 0o022; {
	case mode&0o002 != 0:
		return &distrust{"everybody may write it, and so grant access", "chmod go-w " + name}
	case mode != 0:
		return &distrust{"its group may write it, and so grant access", "chmod go-w " + name}
	}
	return nil
}

func owner(info fs.FileInfo) int {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1
	}
	return int(st.Uid)
}
