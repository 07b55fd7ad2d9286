package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// shredLimits is what overwriting a file cannot promise.
const shredLimits = "copies elsewhere may stay: on an SSD, in snapshots and backups, on the mail server and with others who got the mail"

// mayShred says why the file that was read cannot be shredded; nil: it can.
func mayShred(info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !info.Mode().IsRegular():
		return errors.New("it is no ordinary file")
	case stat.Nlink != 1:
		return errors.New("it has another name too (a hard link)")
	case stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
		return errors.New("it belongs to somebody else")
	}
	return nil
}

// shred overwrites and removes name, if it still is the file that was read.
func shred(name string, was fs.FileInfo) error {
	dir, err := os.OpenRoot(filepath.Dir(name))
	if err != nil {
		return reasonOf(err)
	}
	defer dir.Close()
	base := filepath.Base(name)
	named, err := dir.Lstat(base)
	switch {
	case err != nil:
		return reasonOf(err)
	case named.Mode()&fs.ModeSymlink != 0:
		return errors.New("it is a symbolic link: shred what it leads to")
	}
	f, err := dir.OpenFile(base, os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return reasonOf(err)
	}
	defer f.Close()
	now, err := f.Stat()
	if err != nil {
		return reasonOf(err)
	}
	if !os.SameFile(now, was) {
		return errors.New("another file has this name now")
	}
	if err := mayShred(now); err != nil {
		return err
	}
	// All that the file has, also what was appended meanwhile.
	if err := overwrite(f, now.Size()); err != nil {
		return fmt.Errorf("it cannot be overwritten: %w", reasonOf(err))
	}
	if err := errors.Join(f.Truncate(0), f.Sync(), dir.Remove(base)); err != nil {
		return fmt.Errorf("it is overwritten, and cannot be removed: %w", reasonOf(err))
	}
	d, err := dir.Open(".")
	if err != nil {
		return reasonOf(err)
	}
	defer d.Close()
	return d.Sync()
}

// overwrite puts random bytes in place of the first n, on the disk.
func overwrite(f *os.File, n int64) error {
	_, err := io.CopyN(f, rand.Reader, n)
	return errors.Join(err, f.Sync())
}

// reasonOf is an error of the file system without the name that is said before.
func reasonOf(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
