package configs

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestTrust makes the ways in which somebody else could have written a
// configuration.
func TestTrust(t *testing.T) {
	i := strings.Index(minimal, "clients:")
	files := map[string]string{"conf/broker.yaml": minimal[:i], "conf/clients.d/b.yaml": minimal[i:]}
	chmod := func(name string, mode os.FileMode) func(string) error {
		return func(dir string) error { return os.Chmod(dir+name, mode) }
	}
	for name, c := range map[string]struct {
		change func(dir string) error
		want   string
	}{
		"all is well":      {func(string) error { return nil }, ""},
		"file of everyone": {chmod("/conf/broker.yaml", 0o602), "everybody may write it"},
		"file of a group":  {chmod("/conf/broker.yaml", 0o620), "chmod go-w "},
		"its directory":    {chmod("/conf", 0o770), "/conf is not safe: its group may write it"},
		"one above":        {chmod("", 0o707), "is not safe: everybody may write it"},
		"a client's file":  {chmod("/conf/clients.d/b.yaml", 0o622), "b.yaml: everybody may write it"},
		"clients.d":        {chmod("/conf/clients.d", 0o777), "clients.d is not safe"},
		"a link elsewhere": {func(dir string) error {
			return errors.Join(os.Mkdir(dir+"/open", 0o700), os.Rename(dir+"/conf/broker.yaml", dir+"/open/real.yaml"),
				os.Symlink("../open/real.yaml", dir+"/conf/broker.yaml"), os.Chmod(dir+"/open", 0o770))
		}, "/open is not safe"},
		"a folder of links": {func(dir string) error {
			return errors.Join(os.Rename(dir+"/conf/broker.yaml", dir+"/real.yaml"), os.Symlink("../real.yaml", dir+"/conf/broker.yaml"), os.Chmod(dir+"/conf", 0o720))
		}, "/conf is not safe"},
		"a link that is fine": {func(dir string) error {
			return errors.Join(os.Rename(dir+"/conf/broker.yaml", dir+"/real.yaml"), os.Symlink("../real.yaml", dir+"/conf/broker.yaml"))
		}, ""},
		"missing": {func(dir string) error { return os.Remove(dir + "/conf/broker.yaml") }, "no such file"},
		"a pipe": {func(dir string) error {
			return errors.Join(os.Remove(dir+"/conf/broker.yaml"), syscall.Mkfifo(dir+"/conf/broker.yaml", 0o600))
		}, "no regular file"},
		"a directory": {func(dir string) error {
			return errors.Join(os.Remove(dir+"/conf/broker.yaml"), os.Mkdir(dir+"/conf/broker.yaml", 0o700))
		}, "no regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, files)
			if err := c.change(dir); err != nil {
				t.Fatal(err)
			}
			_, err := Load(dir+"/conf/broker.yaml", Options{})
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// fileInfo is a file of anybody's, which not everybody can make.
type fileInfo struct {
	os.FileInfo
	uid uint32
}

func (f fileInfo) Sys() any          { return &syscall.Stat_t{Uid: f.uid} }
func (f fileInfo) Mode() os.FileMode { return 0o644 }

func TestOwner(t *testing.T) {
	self := uint32(os.Geteuid())
	for uid, ok := range map[uint32]bool{0: true, self: true, self + 1: false, 65534: false} {
		if p := trusted("/x", fileInfo{uid: uid}); (p == nil) != ok {
			t.Errorf("a file of uid %d: %+v", uid, p)
		}
	}
}
