package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/internal/clock"
)

// TestTornEnd: whatever lies at the end of the newest file when the daemon
// comes up, the log goes on after the last whole entry, and nothing is lost.
func TestTornEnd(t *testing.T) {
	whole := string(forged(Entry{Seq: 99, Event: Event{Type: TokenHandover}}))
	for name, c := range map[string]struct {
		change func(b []byte) []byte // to the newest file
		keep   int                   // lines that stay
		torn   bool
	}{
		"nothing":            {func(b []byte) []byte { return b }, 6, false},
		"half a line":        {func(b []byte) []byte { return append(b, whole[:50]...) }, 6, true},
		"no newline":         {func(b []byte) []byte { return append(b, whole[:len(whole)-1]...) }, 6, true},
		"zeros":              {func(b []byte) []byte { return append(b, make([]byte, 5000)...) }, 6, true},
		"text":               {func(b []byte) []byte { return append(b, "hello\nworld\n"...) }, 6, true},
		"a megabyte of text": {func(b []byte) []byte { return append(b, strings.Repeat("hello\n", 200000)...) }, 6, true},
		"a changed line":     {func(b []byte) []byte { return bytes.Replace(b, []byte(`"c4"`), []byte(`"c9"`), 1) }, 5, true},
		"cut in a line":      {func(b []byte) []byte { return b[:len(b)-10] }, 5, true},
		"cut in the head":    {func(b []byte) []byte { return b[:20] }, 0, true},
		"empty":              {func([]byte) []byte { return nil }, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := logDir(t)
			l, stop := start(t, quiet, Options{Dir: dir}, nil)
			for i := range 5 {
				record(t, l, Event{Type: TokenHandover, Client: fmt.Sprintf("c%d", i)})
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, segmentName(1))
			b, _ := os.ReadFile(path)
			lines := bytes.SplitAfter(b, []byte("\n"))
			b = c.change(b)
			kept := bytes.Join(lines[:c.keep], nil)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}

			l, stop = start(t, quiet, Options{Dir: dir}, nil)
			record(t, l, Event{Type: TokenHandover, Client: "after"})
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			r := verified(t, dir, nil)
			es := entries(t, dir)
			torn := ofType(es, LogTorn)
			if now, _ := os.ReadFile(path); !bytes.HasPrefix(now, kept) {
				t.Error("whole entries were changed")
			}
			if es[len(es)-1].Client != "after" || (len(torn) == 1) != c.torn || (r.Torn == 1) != c.torn {
				t.Fatalf("entries %+v", es)
			}
			if !c.torn {
				return
			}
			saved, err := os.ReadFile(filepath.Join(dir, torn[0].Detail["saved_as"]))
			if err != nil || !bytes.Equal(saved, b[len(kept):]) || torn[0].Detail["bytes"] != fmt.Sprint(len(saved)) {
				t.Errorf("%d bytes are set aside, want %d: %v; %+v", len(saved), len(b)-len(kept), err, torn[0].Detail)
			}
		})
	}
}

// TestTornHeadOfSecondFile: the daemon was killed as it began a file.
func TestTornHeadOfSecondFile(t *testing.T) {
	dir := logDir(t)
	l, stop := start(t, quiet, Options{Dir: dir}, nil)
	record(t, l, Event{Type: TokenHandover})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, segmentName(2)), []byte(`{"seq":3,"ti`), 0o600); err != nil {
		t.Fatal(err)
	}
	l, stop = start(t, quiet, Options{Dir: dir}, nil)
	record(t, l, Event{Type: TokenHandover})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if r := verified(t, dir, nil); r.Segments != 2 || r.Torn != 1 || r.Last != 5 {
		t.Errorf("%+v", r)
	}
}

// failing checks the promises about a disk that takes nothing: Record says so
// and what to do, Notes wait, and once it works again the log goes on by
// itself and says what is missing. It leaves a log that verifies.
func failing(t testing.TB, dir string, l *Log, stop func() error, code, hint string, breaks func() int, mends func()) {
	t.Helper()
	record(t, l, Event{Type: TokenHandover, Client: "before"})
	lost := int64(breaks()) + 3 // those that breaking it took
	for range 3 {
		err := l.Record(context.Background(), Event{Type: TokenHandover, Client: "refused"})
		if err == nil || !strings.Contains(err.Error(), hint) {
			t.Fatalf("Record: %v", err)
		}
	}
	l.Note(Event{Type: ProviderRead, Client: "waits"})
	if err := l.Healthy(); err == nil || l.Status().Error == "" {
		t.Errorf("healthy: %v, status %+v", err, l.Status())
	}
	mends()
	record(t, l, Event{Type: TokenHandover, Client: "after"})
	if err := errors.Join(l.Healthy(), stop()); err != nil {
		t.Error(err)
	}
	var seen []string
	for _, e := range entries(t, dir) {
		seen = append(seen, e.Client)
		if e.Type == LogLost && (e.Code != code || e.Count != lost || e.Detail["waited_for"] != fmt.Sprint(lost) || e.Detail["on_failure"] != "refuse" || e.First.IsZero()) {
			t.Errorf("lost: %+v", e.Event)
		}
	}
	all := strings.Join(seen, " ")
	if strings.Contains(all, "refused") || !strings.Contains(all, "waits") || !strings.HasSuffix(all, "after") {
		t.Errorf("entries of: %s", all)
	}
	if r, err := Verify(dir, nil); err != nil || r.Lost != lost {
		t.Errorf("report %+v, %v", r, err)
	}
}

// TestFullDisk: on a real full file system where this user may mount one, and
// in a process that may write no more, which any user can have.
func TestFullDisk(t *testing.T) {
	t.Run("tmpfs", func(t *testing.T) {
		mount := t.TempDir()
		if err := unix.Mount("tmpfs", mount, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=64k"); err != nil {
			t.Logf("only the limited process is tested: this user cannot mount a tmpfs: %v", err)
			return
		}
		t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) })
		dir := filepath.Join(mount, "audit")
		l, stop := start(t, quiet, Options{Dir: dir}, nil)
		filler := filepath.Join(mount, "filler")
		failing(t, dir, l, stop, "ENOSPC", "free some space", func() int {
			if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			// What is left of the log's last page is used up too.
			for l.Record(context.Background(), Event{Type: TokenHandover, Client: "fill"}) == nil {
			}
			return 1
		}, func() {
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
		})
		verified(t, dir, nil)
	})
	t.Run("limit", func(t *testing.T) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "AUDIT_TEST_CHILD=limit")
		cmd.Dir = t.TempDir()
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// limitChild runs the same with RLIMIT_FSIZE, which holds for a whole process.
func limitChild() {
	signal.Ignore(syscall.SIGXFSZ)
	const dir = "audit"
	ok := testing.RunTests(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{{Name: "limit", F: func(t *testing.T) {
		l, stop := start(t, quiet, Options{Dir: dir}, nil)
		var was unix.Rlimit
		limit := func(n uint64) {
			if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: n, Max: was.Max}); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
			t.Fatal(err)
		}
		failing(t, dir, l, stop, "EFBIG", "free some space", func() int {
			st, err := os.Stat(filepath.Join(dir, segmentName(1)))
			if err != nil {
				t.Fatal(err)
			}
			limit(uint64(st.Size()) + 100) // a part of the line fits
			return 0
		}, func() { limit(was.Cur) })
		verified(t, dir, nil)
	}}})
	if !ok {
		os.Exit(1)
	}
	fmt.Println("PASS")
	os.Exit(0)
}

// TestDiskError: the disk takes the bytes and then says EIO. What it took must
// not be in the log afterwards: whoever waited was told that it is not.
func TestDiskError(t *testing.T) {
	dir := logDir(t)
	var bad atomic.Bool
	l, stop := start(t, quiet, Options{Dir: dir}, func(l *Log) {
		l.disk.sync = func(f *os.File) error {
			if bad.Load() {
				return os.NewSyscallError("fdatasync", unix.EIO)
			}
			return datasync(f)
		}
	})
	failing(t, dir, l, stop, "EIO", "look at the disk", func() int { bad.Store(true); return 0 }, func() { bad.Store(false) })
	verified(t, dir, nil)
}

// TestDirectoryRemoved: with its parent there, the log begins again by itself,
// in a directory of its own, and Verify says what is gone.
func TestDirectoryRemoved(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "state", "audit")
	if err := os.Mkdir(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	l, stop := start(t, quiet, Options{Dir: dir}, nil)
	failing(t, dir, l, stop, "ENOENT", "restore the directory above it", func() int {
		if err := os.RemoveAll(filepath.Dir(dir)); err != nil {
			t.Fatal(err)
		}
		return 0
	}, func() {
		if err := os.Mkdir(filepath.Dir(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	})
	wants(t, dir, nil, "entries 1 to 2 are missing")
	wants(t, dir, nil, "00000001.jsonl changed under it (segment_removed)")
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st, err)
	}
	// The new directory was locked too, until the end.
	_, stop = start(t, quiet, Options{Dir: dir}, nil)
	if _, err := Open(quiet, Options{Dir: dir}); err == nil {
		t.Error("a second writer was let in")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestLockOfNewDirectory: the lock moves with the directory.
func TestLockOfNewDirectory(t *testing.T) {
	dir := logDir(t)
	l, _ := start(t, quiet, Options{Dir: dir}, nil)
	record(t, l, Event{Type: DaemonStart})
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	record(t, l, Event{Type: TokenHandover})
	if _, err := Open(quiet, Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("a second writer: %v", err)
	}
}

// TestChangedUnderTheDaemon: it notices at the next write, goes on in a new
// file, and leaves the evidence alone.
func TestChangedUnderTheDaemon(t *testing.T) {
	for name, c := range map[string]struct {
		change func(path string) error
		code   string
		says   string
	}{
		"removed":  {os.Remove, "segment_removed", "entries 1 to 4 are missing"},
		"replaced": {func(p string) error { return errors.Join(os.Rename(p, p+".old"), os.WriteFile(p, nil, 0o600)) }, "segment_removed", "entries 1 to 4 are missing"},
		"cut":      {func(p string) error { return os.Truncate(p, 500) }, "segment_cut", "are missing before this line"},
		"appended": {func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
			if err == nil {
				_, err = f.WriteString("hello\n")
			}
			return err
		}, "segment_appended", "no audit entry"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := logDir(t)
			l, stop := start(t, quiet, Options{Dir: dir}, nil)
			for range 3 {
				record(t, l, Event{Type: TokenHandover})
			}
			path := filepath.Join(dir, segmentName(1))
			if err := c.change(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadFile(path)
			record(t, l, Event{Type: TokenHandover, Client: "after"})
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("the changed file was touched")
			}
			wants(t, dir, nil, "("+c.code+")")
			wants(t, dir, nil, c.says)
			var last Entry
			for e, err := range Read(dir, 5) {
				if err == nil {
					last = e
				}
			}
			if last.Client != "after" || last.Seq != 7 || last.File != segmentName(2) {
				t.Errorf("last entry %+v", last)
			}
		})
	}
}

// TestRemovedBeforeRun: the newest file is gone before it was written to again.
func TestRemovedBeforeRun(t *testing.T) {
	dir := logDir(t)
	l, stop := start(t, quiet, Options{Dir: dir}, nil)
	record(t, l, Event{Type: TokenHandover})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	l, stop = start(t, quiet, Options{Dir: dir}, func(*Log) {
		if err := os.Remove(filepath.Join(dir, segmentName(1))); err != nil {
			t.Fatal(err)
		}
	})
	record(t, l, Event{Type: TokenHandover})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	wants(t, dir, nil, "(segment_removed)")
}

// TestForeignFile: a file that has the next number already does not stop the
// log.
func TestForeignFile(t *testing.T) {
	dir := logDir(t)
	l, stop := start(t, quiet, Options{Dir: dir}, func(l *Log) { l.limits.segment = 1 })
	record(t, l, Event{Type: TokenHandover})
	if err := os.WriteFile(filepath.Join(dir, segmentName(7)), []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	record(t, l, Event{Type: TokenHandover})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, segmentName(8))); err != nil {
		t.Error(err)
	}
	wants(t, dir, nil, segmentName(7)+":1: the file does not begin")
}

// TestRecoversWithoutAnEvent: the gap is on record a second after the disk
// works again, also if nobody comes.
func TestRecoversWithoutAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := logDir(t)
		var bad atomic.Bool
		l, _ := start(t, quiet, Options{Dir: dir, Clock: clock.NewBubble()}, func(l *Log) {
			l.disk.sync = func(f *os.File) error {
				if bad.Load() {
					return unix.EIO
				}
				return datasync(f)
			}
		})
		time.Sleep(time.Minute)
		bad.Store(true)
		if err := l.Record(t.Context(), Event{Type: TokenHandover}); !errors.Is(err, unix.EIO) {
			t.Fatalf("got %v", err)
		}
		time.Sleep(time.Minute)
		bad.Store(false)
		time.Sleep(time.Second)
		synctest.Wait()
		if lost := ofType(entries(t, dir), LogLost); len(lost) != 1 || lost[0].Count != 1 || l.Healthy() != nil {
			t.Errorf("lost %+v, healthy %v", lost, l.Healthy())
		}
	})
}

// TestEndOnABadDisk: Run says that the last write failed.
func TestEndOnABadDisk(t *testing.T) {
	l, stop := start(t, quiet, Options{Dir: logDir(t)}, func(l *Log) {
		l.disk.sync = func(*os.File) error { return unix.EIO }
	})
	l.Note(Event{Type: DaemonStop})
	if err := stop(); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v", err)
	}
	if l.Status().Lost != 1 {
		t.Errorf("lost %d", l.Status().Lost)
	}
}

// TestServeOnABadDisk: with on_failure: serve, nobody is refused, and the log
// says later how many were served without a record.
func TestServeOnABadDisk(t *testing.T) {
	dir := logDir(t)
	var bad atomic.Bool
	bad.Store(true)
	l, stop := start(t, Config{Anchor: "none", OnFailure: "serve"}, Options{Dir: dir}, func(l *Log) {
		l.disk.sync = func(f *os.File) error {
			if bad.Load() {
				return unix.EIO
			}
			return datasync(f)
		}
	})
	for range 5 {
		record(t, l, Event{Type: TokenHandover})
	}
	if l.Healthy() == nil {
		t.Error("it should not be healthy")
	}
	bad.Store(false)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	lost := ofType(entries(t, dir), LogLost)
	if len(lost) != 1 || lost[0].Count != 5 || lost[0].Detail["on_failure"] != "serve" {
		t.Errorf("%+v", lost)
	}
}
