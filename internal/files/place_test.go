package files

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func put(file, text string) error {
	p, err := openPlace(file, true)
	if err != nil {
		return err
	}
	defer p.close()
	return putAt(p, text, who{-1, -1})
}

func putAt(p *place, text string, w who) error {
	if err := p.prepare([]byte(text), w); err != nil {
		return err
	}
	return p.replace(0o440)
}

// Whoever reads while a file is replaced has the one or the other, whole.
func TestWhole(t *testing.T) {
	file := filepath.Join(tmpfs(t), "token")
	old, young := strings.Repeat("o", 200_000), strings.Repeat("y", 100_000)
	if err := put(file, old); err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	written := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < 500 && err == nil; i++ {
			err = put(file, []string{old, young}[i%2])
		}
		done.Store(true)
		written <- err
	}()
	reads := 0
	for ; !done.Load() || reads == 0; reads++ {
		b, err := os.ReadFile(file)
		info, err2 := os.Stat(file)
		if err := errors.Join(err, err2); err != nil || string(b) != old && string(b) != young || info.Mode() != 0o440 {
			t.Fatalf("%d bytes, %v, %v", len(b), info.Mode(), err)
		}
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
}

// What others could have planted, and what is no place for a token.
func TestRefusedPlaces(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(dir string) error // in which file is ./d/token
		want string
	}{
		{"a link for the directory", func(dir string) error {
			return errors.Join(os.Mkdir(dir+"/real", 0o700), os.Symlink("real", dir+"/d"))
		}, "is a symbolic link"},
		{"a file for the directory", func(dir string) error { return os.WriteFile(dir+"/d", nil, 0o600) }, "is a symbolic link or no directory"},
		{"others may write", func(dir string) error {
			return errors.Join(os.Mkdir(dir+"/d", 0o700), os.Chmod(dir+"/d", 0o777)) // #nosec G302 -- that is the case
		}, "others may write the directory"},
		{"the group may write", func(dir string) error {
			return errors.Join(os.Mkdir(dir+"/d", 0o700), os.Chmod(dir+"/d", 0o770)) // #nosec G302 -- that is the case
		}, "others may write the directory"},
		{"everybody's directory, with the sticky bit", func(dir string) error {
			return errors.Join(os.Mkdir(dir+"/d", 0o700), os.Chmod(dir+"/d", 0o777|os.ModeSticky)) // #nosec G302 -- that is the case
		}, "make a directory of its own"},
		{"a directory above that others may write", func(dir string) error {
			return errors.Join(os.Mkdir(dir+"/d", 0o700), os.Chmod(dir, 0o777)) // #nosec G302 -- that is the case
		}, "others may write the directory"},
		{"a directory in its place", func(dir string) error { return os.MkdirAll(dir+"/d/token", 0o700) }, "is no file: remove it"},
		{"a link in its place", func(dir string) error {
			return errors.Join(os.Mkdir(dir+"/d", 0o700), os.WriteFile(dir+"/victim", []byte("v"), 0o600), os.Symlink(dir+"/victim", dir+"/d/token"))
		}, "is no file: remove it"},
	} {
		dir := tmpfs(t)
		if err := c.make(dir); err != nil {
			t.Fatal(err)
		}
		if err := put(dir+"/d/token", "secret"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if b, err := os.ReadFile(dir + "/victim"); err == nil && string(b) != "v" {
			t.Errorf("%s: it was written through", c.name)
		}
	}
	if os.Geteuid() == 0 { // who else could make it?
		dir := tmpfs(t)
		if err := errors.Join(os.Mkdir(dir+"/d", 0o700), os.Chown(dir+"/d", 4711, 4711)); err != nil {
			t.Fatal(err)
		}
		if err := put(dir+"/d/token", "x"); err == nil || !strings.Contains(err.Error(), "belongs to the user 4711") {
			t.Errorf("a foreign directory: %v", err)
		}
		if err := errors.Join(os.Mkdir(dir+"/e", 0o700), os.WriteFile(dir+"/e/token", []byte("v"), 0o600), os.Chown(dir+"/e/token", 4711, 4711)); err != nil {
			t.Fatal(err)
		}
		if err := put(dir+"/e/token", "x"); err == nil || !strings.Contains(err.Error(), "belongs to the user 4711: remove it") {
			t.Errorf("a foreign file: %v", err)
		}
	}
	for file, want := range map[string]string{
		"/sys/kernel/token":  "must not come to a disk",
		"/no/such/dir/token": "make /no",
	} {
		if err := put(file, "x"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// A link under the name of a moment is removed, not followed.
func TestPlantedMoment(t *testing.T) {
	dir := tmpfs(t)
	if err := errors.Join(os.WriteFile(dir+"/victim", []byte("v"), 0o600), os.Symlink(dir+"/victim", dir+"/.token.new"), put(dir+"/token", "new")); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(dir + "/victim"); string(b) != "v" {
		t.Errorf("it was written through: %q", b)
	}
	if b, _ := os.ReadFile(dir + "/token"); string(b) != "new" {
		t.Errorf("%q", b)
	}
}

// The directory is swapped for a link after it was looked at: what was looked
// at is what is used.
func TestSwappedDirectory(t *testing.T) {
	dir := tmpfs(t)
	if err := errors.Join(os.Mkdir(dir+"/d", 0o700), os.Mkdir(dir+"/evil", 0o700)); err != nil {
		t.Fatal(err)
	}
	p, err := openPlace(dir+"/d/token", true)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := errors.Join(os.Rename(dir+"/d", dir+"/was"), os.Symlink("evil", dir+"/d"), putAt(p, "x", who{-1, -1})); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir + "/evil/token"); err == nil {
		t.Error("it went through the link")
	}
	if _, err := os.Lstat(dir + "/was/token"); err != nil {
		t.Error(err)
	}
}

// A daemon that is not root says what it cannot do. A process of a namespace
// of its own plays it: there is one user in it, and no right to others.
func TestOwner(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		for w, want := range map[who]string{{4711, -1}: "owner: ", {-1, 4711}: "group: "} {
			p, err := openPlace(dir+"/token", true)
			if err != nil {
				t.Fatal(err)
			}
			err = putAt(p, "x", w)
			p.close()
			// In such a namespace the kernel knows no user 4711 at all.
			if err == nil || !strings.Contains(err.Error(), want) && !errors.Is(err, unix.EINVAL) {
				t.Errorf("%v: %v", w, err)
			}
		}
		if list, _ := os.ReadDir(dir); len(list) != 0 {
			t.Errorf("something is left: %v", list)
		}
	})
}

// A group that nobody knows yet is looked for again.
func TestGroupLater(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		inWorldAt(t, t.TempDir(), dir, func(w *world) {
			w.files(Config{Path: "token", Group: "later"})
			w.is("no such group", "token", false, Missing)
			if err := errors.Join(os.Mkdir("/etc", 0o700), os.WriteFile("/etc/group", []byte("later:x:0:\n"), 0o600)); err != nil {
				t.Fatal(err)
			}
			w.pass(time.Minute)
			w.is("there it is", "token", true, OK)
		})
	})
}

// While the tmpfs is full, the old file stays whole as long as it is good, one
// alarm is raised, and the next token is there once there is room.
func TestFullTmpfs(t *testing.T) {
	inNamespace(t, func(t *testing.T, dir string) {
		inWorldAt(t, t.TempDir(), dir, func(w *world) {
			w.files(Config{Path: "token"})
			w.is("with room", "token", true, OK)
			first := w.read("token")
			ballast, err := os.Create(dir + "/ballast")
			if err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, err = ballast.Write(make([]byte, 4096))
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			w.pass(12*time.Minute + 45*time.Second)
			if w.is("full", "token", true, Kept); w.read("token") != first {
				t.Error("it is another token")
			}
			if n := w.handed("token"); n != 1 {
				t.Errorf("%d hand-overs, and one token was in place", n)
			}
			w.pass(15*time.Second + longRetry)
			// What is too old goes, and that makes room for its successor.
			if second := w.read("token"); second == first || second == "" {
				t.Errorf("full, and too old: %+v", w.w.Status())
			}
			if n := w.handed("token"); n != 2 {
				t.Errorf("%d hand-overs, and two tokens were in place", n)
			}
			if got := w.names(); got != "ballast token" {
				t.Errorf("there is %s", got)
			}
			if err := errors.Join(ballast.Close(), os.Remove(dir+"/ballast")); err != nil {
				t.Fatal(err)
			}
			w.pass(longRetry)
			w.is("with room again", "token", true, OK)
			w.stop()
			if n := w.alarms(); n != 1 || !bytes.Contains([]byte(w.log.String()), []byte("is full")) {
				t.Errorf("%d alarms:\n%s", n, w.log)
			}
			w.start()
		})
	})
}

// Whom the file will belong to could give it any mode: before it is in place,
// nobody gets to it.
func TestOwnerBeforeTheRecord(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("only root gives files away")
		return
	}
	dir := tmpfs(t)
	p, err := openPlace(dir+"/token", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.prepare([]byte("x"), who{4711, -1}); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err == nil && (!d.IsDir() || info.Mode().Perm() != 0o700 || info.Sys().(*syscall.Stat_t).Uid != 0) {
			t.Errorf("%s: %v", path, info.Mode())
		}
		if err == nil && d.IsDir() {
			err = filepath.SkipDir // nobody else can enter it
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.replace(0o400); err != nil {
		t.Fatal(err)
	}
	p.close()
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != "token" {
		t.Errorf("%v, %v", left, err)
	}
}
