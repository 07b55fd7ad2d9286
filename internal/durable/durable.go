// Package durable changes small files so that a power loss leaves the old or
// the new content, never a part.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// Replace writes a file so that either the old or the new content survives a
// power loss. The file gets mode 0600.
func Replace(file string, data []byte) error { return ReplaceMode(file, data, 0o600) }

// ReplaceMode is Replace with another mode, whatever the umask.
func ReplaceMode(file string, data []byte, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(file))
}

// Remove deletes a file, if it is there, for good.
func Remove(file string) error {
	if err := os.Remove(file); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	return syncDir(filepath.Dir(file))
}

func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
