package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/clock"
)

func TestMain(m *testing.M) {
	switch os.Getenv("AUDIT_TEST_CHILD") {
	case "writer":
		writerChild()
	case "limit":
		limitChild()
	}
	os.Exit(m.Run())
}

var quiet = Config{Anchor: "none"}

// start opens a log and runs it; change may alter it before. The function it
// gives ends the log, and says how Run ended.
func start(t testing.TB, c Config, o Options, change func(*Log)) (*Log, func() error) {
	t.Helper()
	l, err := Open(c, o)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(l)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	stop := sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { _ = stop() })
	return l, stop
}

// logDir is a place for a log that is not there yet.
func logDir(t testing.TB) string { return filepath.Join(t.TempDir(), "audit") }

func record(t testing.TB, l *Log, e Event) {
	t.Helper()
	if err := l.Record(context.Background(), e); err != nil {
		t.Fatal(err)
	}
}

// entries reads the whole log; every line has to be in order.
func entries(t testing.TB, dir string) []Entry {
	t.Helper()
	var all []Entry
	for e, err := range Read(dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

func ofType(es []Entry, typ Type) []Entry {
	var some []Entry
	for _, e := range es {
		if e.Type == typ {
			some = append(some, e)
		}
	}
	return some
}

func verified(t testing.TB, dir string, anchors []Anchor) Report {
	t.Helper()
	r, err := Verify(dir, anchors)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Problems {
		t.Errorf("verify: %v", p)
	}
	return r
}

func TestRecordedIsOnDisk(t *testing.T) {
	dir := logDir(t)
	l, stop := start(t, quiet, Options{Dir: dir}, nil)
	want := Event{
		Type: TokenHandover, Client: "vdab", Version: "7", Fingerprint: "abc", JTI: "j", Scope: "read write", Audience: "https://api.example/?a=1&b=2",
		Expires: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), Code: "ok", Count: 2,
		First: time.Unix(1, 0).UTC(), Last: time.Unix(2, 0).UTC(),
		Caller: &Caller{PID: 4711, Start: 99, UID: 33, GID: 33, Unit: "php8.2-fpm.service", UserUnit: "x.service", LoginUID: 1000, Container: true},
		Actor:  &Caller{UID: 0, LoginUID: 1000},
		Detail: map[string]string{"surface": "token"},
	}
	before := time.Now()
	record(t, l, want)
	// The daemon is still running: the record has to be there all the same.
	got := ofType(entries(t, dir), TokenHandover)
	if len(got) != 1 {
		t.Fatalf("%d entries", len(got))
	}
	if got[0].Caller == nil || *got[0].Caller != *want.Caller || got[0].Actor == nil || *got[0].Actor != *want.Actor {
		t.Errorf("caller %+v, actor %+v", got[0].Caller, got[0].Actor)
	}
	g, w := got[0].Event, want
	if g.Detail["surface"] != "token" {
		t.Errorf("detail %v", g.Detail)
	}
	g.Caller, g.Actor, g.Detail, w.Caller, w.Actor, w.Detail = nil, nil, nil, nil, nil, nil
	if fmt.Sprint(g) != fmt.Sprint(w) {
		t.Errorf("got  %v\nwant %v", g, w)
	}
	if got[0].Time.Before(before.Add(-time.Second)) || got[0].Boot <= 0 {
		t.Errorf("time %v, boot %v", got[0].Time, got[0].Boot)
	}
	if err := l.Healthy(); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	r := verified(t, dir, nil)
	if s := l.Status(); s.Seq != r.Last || s.Hash != r.Hash || s.Log != r.Log || s.Entries != r.Entries || s.Syncs == 0 {
		t.Errorf("status %+v, report %+v", s, r)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, segmentName(1)): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, %v", path, st.Mode(), err)
		}
	}
}

// The format is a promise to auditors: these bytes do not change without a new
// format version.
func TestFormat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := logDir(t)
		l, stop := start(t, quiet, Options{Dir: dir, Clock: clock.NewBubble()}, func(l *Log) { l.disk.log = "NAME" })
		record(t, l, Event{Type: AccessDenied, Client: "vdab", Code: "not_allowed", Scope: "a<b&c", Caller: &Caller{PID: 1, UID: 33, GID: 33, LoginUID: 7}})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, segmentName(1)))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(b), "\n")
		var head Entry
		if head, err = parseLine([]byte(lines[0])); err != nil || head.Seq != 1 || head.Type != LogSegment || head.Prev != "" ||
			head.Detail["format"] != "1" || head.Detail["log"] != "NAME" {
			t.Fatalf("first line %s: %v", lines[0], err)
		}
		line := lines[1]
		want := `{"seq":2,"time":"2000-01-01T00:00:00Z","boot":3600000,"type":"access.denied","client":"vdab","scope":"a<b&c",` +
			`"caller":{"pid":1,"uid":33,"gid":33,"loginuid":7},"code":"not_allowed","prev":"` + head.Hash + `","hash":"`
		if !strings.HasPrefix(line, want) {
			t.Errorf("got  %s\nwant %s…", line, want)
		}
		id, err := os.ReadFile(machineID)
		if err == nil && (strings.Contains(string(b), strings.TrimSpace(string(id))) || len(head.Detail["host"]) != 32) {
			t.Error("the machine's id has to be hashed")
		}
	})
}

// TestGroupCommit: whoever waits shares the write.
func TestGroupCommit(t *testing.T) {
	dir := logDir(t)
	l, stop := start(t, quiet, Options{Dir: dir}, nil)
	const callers, each = 64, 100
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				if err := l.Record(t.Context(), Event{Type: TokenHandover, Client: strconv.Itoa(c), Count: int64(i + 1)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	verified(t, dir, nil)
	next := make(map[string]int64)
	for _, e := range ofType(entries(t, dir), TokenHandover) {
		if next[e.Client]++; next[e.Client] != e.Count {
			t.Fatalf("caller %s: %d follows %d", e.Client, e.Count, next[e.Client]-1)
		}
	}
	for c := range callers {
		if next[strconv.Itoa(c)] != each {
			t.Errorf("caller %d: %d entries", c, next[strconv.Itoa(c)])
		}
	}
	s := l.Status()
	t.Logf("%d entries of %d callers in %d syncs: %.1f entries a sync", s.Entries, callers, s.Syncs, float64(s.Entries)/float64(s.Syncs))
	if s.Syncs*4 > s.Entries {
		t.Errorf("%d syncs for %d entries", s.Syncs, s.Entries)
	}
}

func TestNoteIsOnDiskAfterASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := logDir(t)
		l, _ := start(t, quiet, Options{Dir: dir, Clock: clock.NewBubble()}, nil)
		time.Sleep(time.Minute)
		l.Note(Event{Type: ProviderRead})
		time.Sleep(900 * time.Millisecond)
		l.Note(Event{Type: ProviderRead})
		synctest.Wait()
		if n := len(ofType(entries(t, dir), ProviderRead)); n != 0 {
			t.Errorf("%d entries at once: Notes are to share a write", n)
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if n := len(ofType(entries(t, dir), ProviderRead)); n != 2 {
			t.Errorf("%d entries after a second, want 2", n)
		}
	})
}

func TestEndFlushes(t *testing.T) {
	dir := logDir(t)
	l, stop := start(t, quiet, Options{Dir: dir}, nil)
	for range 500 {
		l.Note(Event{Type: TokenMinted})
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if n := len(ofType(entries(t, dir), TokenMinted)); n != 500 {
		t.Errorf("%d of 500 notes", n)
	}
	if err := l.Record(t.Context(), Event{Type: TokenMinted}); !errors.Is(err, errEnded) {
		t.Errorf("after the end: %v", err)
	}
}

func TestRecordBeforeRun(t *testing.T) {
	l, err := Open(quiet, Options{Dir: logDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Record(ctx, Event{Type: DaemonStart}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	ended := make(chan error)
	run, stop := context.WithCancel(t.Context())
	go func() { ended <- l.Run(run) }()
	record(t, l, Event{Type: DaemonStart})
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// TestFloodIsCounted: beyond the bound Notes are lost, hand-overs are not
// stopped by them, and the log says how many.
func TestFloodIsCounted(t *testing.T) {
	dir := logDir(t)
	l, err := Open(quiet, Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	l.limits.queue = 100
	for range 60 {
		l.Note(Event{Type: AccessDenied})
	}
	ctx, cancel := context.WithCancel(t.Context())
	answer, ended := make(chan error, 1), make(chan error, 1)
	go func() { answer <- l.Record(ctx, Event{Type: TokenHandover}) }()
	go func() { ended <- l.Run(ctx) }()
	if err := <-answer; err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	es := entries(t, dir)
	lost := ofType(es, LogLost)
	if n := len(ofType(es, AccessDenied)); n != 50 || len(lost) != 1 || lost[0].Count != 10 || lost[0].Code != "queue_full" ||
		lost[0].Detail["queued"] != "10" || lost[0].First.IsZero() || lost[0].Last.Before(lost[0].First) {
		t.Errorf("%d denials, lost %+v", n, lost)
	}
	if r := verified(t, dir, nil); r.Lost != 10 || l.Status().Lost != 10 {
		t.Errorf("lost: report %d, status %d", r.Lost, l.Status().Lost)
	}
}

// TestQueueIsBounded: with a disk that hangs, memory does not grow.
func TestQueueIsBounded(t *testing.T) {
	l, err := Open(quiet, Options{Dir: logDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	l.limits.queue = 10
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 20 {
		err := l.Record(ctx, Event{Type: TokenHandover})
		if want := i >= 10; errors.Is(err, errFull) != want {
			t.Errorf("record %d: %v", i, err)
		}
	}
}

func TestServeGoesOnWithoutADisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := Open(Config{Anchor: "none", OnFailure: "serve"}, Options{Dir: logDir(t), Clock: clock.NewBubble()})
		if err != nil {
			t.Fatal(err)
		}
		// Run is not called: the disk hangs.
		before := time.Now()
		if err := l.Record(t.Context(), Event{Type: TokenHandover}); err != nil {
			t.Errorf("serve: %v", err)
		}
		if took := time.Since(before); took != 2*time.Second {
			t.Errorf("it took %v", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.Record(ctx, Event{Type: TokenHandover}); !errors.Is(err, context.Canceled) {
			t.Errorf("a caller that has gone: %v", err)
		}
	})
}

func TestTwoWriters(t *testing.T) {
	dir := logDir(t)
	_, stop := start(t, quiet, Options{Dir: dir}, nil)
	if _, err := Open(quiet, Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "another daemon writes to "+dir) {
		t.Errorf("the second: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	_, stop = start(t, quiet, Options{Dir: dir}, nil)
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  Config
		make func(dir string) error
		want string
	}{
		"a directory that others may write to": {quiet, func(d string) error { return errors.Join(os.Mkdir(d, 0o700), os.Chmod(d, 0o770)) }, "chmod go-w"},
		"a newer format": {quiet, func(d string) error {
			return errors.Join(os.Mkdir(d, 0o700), os.WriteFile(filepath.Join(d, segmentName(1)),
				forged(Entry{Seq: 1, Event: Event{Type: LogSegment, Detail: map[string]string{"format": "2"}}}), 0o600))
		}, `format "2" by a newer version`},
		"no parent":           {quiet, func(d string) error { return os.Remove(filepath.Dir(d)) }, "make its directory"},
		"a file":              {quiet, func(d string) error { return os.WriteFile(d, nil, 0o600) }, "not a directory"},
		"an unknown anchor":   {Config{Anchor: "syslog"}, nil, "journald or none"},
		"an unknown failure":  {Config{OnFailure: "ignore"}, nil, "refuse or serve"},
		"too short retention": {Config{Retention: clock.Duration(time.Hour)}, nil, "at least 1d"},
	} {
		dir := logDir(t)
		if c.make != nil {
			if err := c.make(dir); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(c.cfg, Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// forged makes a line as somebody would who knows the format.
func forged(e Entry) []byte {
	var d disk
	e.Hash = ""
	if _, err := appendLine(&d.buf, &e); err != nil {
		panic(err)
	}
	return d.buf.Bytes()
}

func appendFile(t testing.TB, path string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
}

// wants expects that Verify finds a problem that says so.
func wants(t testing.TB, dir string, anchors []Anchor, text string) {
	t.Helper()
	r, err := Verify(dir, anchors)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Problems {
		if strings.Contains(p.String(), text) {
			return
		}
	}
	t.Errorf("no problem says %q: %v", text, r.Problems)
}
