package files

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"time"

	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/providers"
)

// A day under faults: whoever reads, whenever, finds nothing, or a whole token
// with min_ttl of life, in a file of the right mode and owner.
func TestADayOfReading(t *testing.T) {
	inWorld(t, func(w *world) {
		list := []Config{{Path: "vdab/token", Format: JSON, Mode: "0440"}, {Path: "headers", Content: Headers},
			{Path: "long", Format: JSON, MinTTL: clock.Duration(5 * time.Minute)}}
		w.preserve()
		w.files(list...)
		var jumped atomic.Int64 // when the clock did
		stop := make(chan struct{})
		var readers sync.WaitGroup
		for _, r := range []*reader{{"vdab/token", 2 * time.Minute, 0o440, 0}, {"long", 5 * time.Minute, 0o400, 0}} {
			readers.Go(func() {
				for {
					select {
					case <-stop:
						if r.found < 24*60*60/10 {
							t.Errorf("%s was found %d times", r.name, r.found)
						}
						return
					case <-time.After(time.Duration(rand.IntN(10_000)) * time.Millisecond):
						r.read(w, time.Since(time.Unix(0, jumped.Load())) < 2*look)
					}
				}
			})
		}
		for hour := range 24 {
			switch hour % 8 {
			case 1:
				w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
			case 2:
				w.issuer.Set(fake.Fault{Kind: fake.Hang})
			case 3:
				w.store.SetFault(providers.Unavailable)
			case 4:
				w.b.Contain(map[string]string{"vdab": "2026-0007"})
			case 5:
				w.stop()
				w.start()
			case 6:
				w.issuer.Set(fake.Fault{Kind: fake.Slow, Delay: 40 * time.Second})
			case 7:
				jumped.Store(time.Now().UnixNano())
				w.skew.Add(int64(time.Duration(hour-12) * 10 * time.Minute))
			}
			w.pass(20 * time.Minute)
			w.issuer.Set(fake.Fault{})
			w.store.SetFault("")
			w.b.Contain(nil)
			w.pass(10 * time.Minute)
			for _, c := range list {
				if w.read(c.Path) == "" {
					t.Errorf("hour %d: there is no %s, and nothing is wrong: %+v", hour, c.Path, w.w.Status())
				}
			}
			w.files(append([]Config{{Path: "sometimes"}}[:hour%2], list...)...)
			w.pass(30 * time.Minute)
		}
		close(stop)
		readers.Wait()
		if minted := w.issuer.Stats().Minted; minted > 24*60/7 {
			t.Errorf("%d tokens were fetched", minted)
		}
	})
}

// A reader is what a program does that knows a path and nothing else.
type reader struct {
	name  string
	left  time.Duration // that there has to be
	mode  os.FileMode
	found int
}

func (r *reader) read(w *world, unsure bool) {
	t, path := w.t, filepath.Join(w.run, r.name)
	info, err := os.Stat(path)
	b, err2 := os.ReadFile(path)
	if os.IsNotExist(err) || os.IsNotExist(err2) {
		return
	}
	r.found++
	var in struct {
		Token   string    `json:"access_token"`
		Expires time.Time `json:"expires_at"`
	}
	if err := errors.Join(err, err2, json.Unmarshal(b, &in)); err != nil || in.Token == "" {
		t.Errorf("%s: %v in %d bytes", r.name, err, len(b))
		return
	}
	// To the second, as it is written.
	if has := in.Expires.Sub(w.clock.Now().Wall); has < r.left-time.Second && !unsure {
		t.Errorf("%s: %v left", r.name, has)
	}
	if sys := info.Sys().(*syscall.Stat_t); info.Mode() != r.mode || int(sys.Uid) != os.Getuid() {
		t.Errorf("%s: %v of %d", r.name, info.Mode(), sys.Uid)
	}
}

// Each fault alone, and what is there when.
func TestOutage(t *testing.T) {
	inWorld(t, func(w *world) {
		w.files(Config{Path: "token"})
		w.is("first", "token", true, OK)
		first := w.read("token")
		w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
		w.pass(12*time.Minute + 40*time.Second)
		if w.is("while it has life", "token", true, OK); w.read("token") != first {
			t.Error("it is another token, from nowhere")
		}
		w.pass(30 * time.Second)
		w.is("min_ttl before the end", "token", false, Missing)
		w.issuer.Set(fake.Fault{})
		w.pass(5 * time.Minute)
		w.is("the issuer is back", "token", true, OK)
	})
}

// A token whose writing was delayed until it has less than min_ttl is not
// written any more.
func TestLateWrite(t *testing.T) {
	inWorld(t, func(w *world) {
		if err := os.WriteFile(filepath.Join(w.run, "deep"), nil, 0o600); err != nil { // no directory
			t.Fatal(err)
		}
		w.files(Config{Path: "deep/token"})
		w.issuer.Set(fake.Fault{Kind: fake.Hang})
		w.pass(13*time.Minute + 500*time.Millisecond) // it is tried every 30 seconds, next in another half
		if err := os.Remove(filepath.Join(w.run, "deep")); err != nil {
			t.Fatal(err)
		}
		w.pass(2 * look)
		if n := w.handed("deep/token"); n != 0 || w.names() != "" {
			t.Errorf("%d hand-overs, and there is %q", n, w.names())
		}
	})
}

// What a quarantine has taken away is asked for anew: it may be over before the
// broker is asked for anything.
func TestAskedAnew(t *testing.T) {
	inWorld(t, func(w *world) {
		w.preserve()
		w.files(Config{Path: "token"})
		w.stop()
		f := w.w.running[filepath.Join(w.run, "token")]
		f.anew = false
		w.b.Contain(map[string]string{"vdab": "2026-0007"})
		f.tend(t.Context())
		if w.is("quarantined", "token", false, Missing); !f.anew {
			t.Error("nobody asks for it again")
		}
		w.b.Contain(nil)
		w.start()
	})
}

// The file goes in time even if the issuer keeps the broker waiting.
func TestHangingIssuer(t *testing.T) {
	inWorld(t, func(w *world) {
		w.files(Config{Path: "token"})
		w.issuer.Set(fake.Fault{Kind: fake.Hang})
		w.pass(12*time.Minute + 49*time.Second)
		w.is("still good", "token", true, OK)
		w.pass(12 * time.Second)
		w.is("too old", "token", false, Missing)
	})
}

func TestQuarantine(t *testing.T) {
	inWorld(t, func(w *world) {
		w.files(Config{Path: "token"}, Config{Path: "key", Content: APIKey})
		w.is("key", "key", true, OK, OK)
		for range 2 {
			w.b.Contain(map[string]string{"vdab": "2026-0007"})
			w.pass(0)
			w.is("token", "token", false, Missing, Missing)
			w.is("key", "key", false, Missing, Missing)
			w.b.Contain(nil)
			w.pass(0)
			w.is("token", "token", true, OK, OK)
			w.is("key", "key", true, OK, OK)
		}
		// While the broker waits for an issuer, it does not hear of it: the file
		// of an earlier run goes all the same.
		w.preserve()
		w.is("a restart", "token", true, OK, OK)
		w.issuer.Set(fake.Fault{Kind: fake.Hang})
		w.stop()
		w.start()
		w.is("a restart while the issuer hangs", "token", true, OK, Kept)
		w.b.Contain(map[string]string{"vdab": "2026-0007"})
		w.pass(look)
		w.is("token", "token", false, Missing, Missing)
	})
}

// After a jump of the clock there is a new token within seconds, or none; when
// it jumps back, the one that is still good.
func TestClockJump(t *testing.T) {
	inWorld(t, func(w *world) {
		w.files(Config{Path: "token"})
		first := w.read("token")
		w.skew.Store(int64(time.Hour))
		w.pass(look)
		w.is("forward", "token", true, OK)
		second := w.read("token")
		if second == first {
			t.Error("it is the old token")
		}
		w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
		w.skew.Store(int64(2 * time.Hour))
		w.pass(look)
		w.is("forward, in an outage", "token", false, Missing)
		w.skew.Store(int64(time.Hour))
		w.pass(2 * time.Minute)
		if w.is("and back", "token", true, OK); w.read("token") != second {
			t.Error("it is another token")
		}
	})
}

// A reload adds, changes and removes files, and touches no other.
func TestReload(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	inWorld(t, func(w *world) {
		w.files(Config{Path: "a"}, Config{Path: "b"}, Config{Path: "c", Mode: "0440"})
		before, err := os.Stat(filepath.Join(w.run, "a"))
		if err != nil {
			t.Fatal(err)
		}
		w.files(Config{Path: "a"}, Config{Path: "c"}, Config{Path: "deep/er/d"})
		if got := w.names(); got != "a c deep" {
			t.Errorf("there is %s", got)
		}
		w.is("d", "deep/er/d", true, OK, OK, OK)
		if d, _ := os.Stat(filepath.Join(w.run, "deep/er")); d.Mode().Perm() != 0o711 {
			t.Errorf("readers cannot pass: %v", d.Mode())
		}
		after, _ := os.Stat(filepath.Join(w.run, "a"))
		if !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
			t.Error("a was written anew")
		}
		if c, _ := os.Stat(filepath.Join(w.run, "c")); c.Mode() != 0o400 {
			t.Errorf("c is %v", c.Mode())
		}
		// Another issuer, which does not answer: what came from the one before
		// does not stay.
		w.files(Config{Path: "a"})
		other := func(host string, kind fake.FaultKind) {
			t.Helper()
			w.issuer.Set(fake.Fault{Kind: kind})
			clients := w.clients()
			clients[0].Issuer.TokenEndpoint = "https://" + host + fake.TokenPath
			if err := w.b.Apply(clients); err != nil {
				t.Fatal(err)
			}
			w.pass(0)
		}
		other("other.example", fake.Unavailable)
		w.is("the broker has let go of it", "a", false, Missing)
		other("third.example", fake.None)
		w.pass(5 * time.Minute)
		w.is("again", "a", true, OK)
		w.origin = "another"
		other("fourth.example", fake.Hang)
		w.files(Config{Path: "a"})
		w.pass(grace)
		w.is("of the other issuer", "a", false, Missing)
	})
}

// After a kill, the next daemon knows its files: those that serve on, those
// that have ended, those that nobody wants any more.
func TestRestart(t *testing.T) {
	inWorld(t, func(w *world) {
		w.preserve()
		w.files(Config{Path: "token"}, Config{Path: "gone"}, Config{Path: "sub/changed"})
		first := w.read("token")
		w.stop() // with keep it leaves all, as a kill does
		if got := w.names(); got != "gone sub token" {
			t.Fatalf("there is %s", got)
		}
		for _, name := range []string{".token.new", ".gone.new", "other"} {
			if err := os.WriteFile(filepath.Join(w.run, name), []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
		w.list = []Entry{{Client: "vdab", Config: Config{Path: w.run + "/token", MinTTL: clock.Duration(3 * time.Minute)}}, {Client: "vdab", Config: Config{Path: w.run + "/sub/changed", Mode: "0440"}}}
		w.start()
		w.pass(grace)
		if w.is("the one that serves on", "token", true, Missing, Kept); w.read("token") != first {
			t.Error("it is another token")
		}
		if got := w.names(); got != ".token.new other sub token" {
			t.Errorf("there is %s", got)
		}
		w.is("the one that is another now", "sub/changed", false, Missing, Kept)
		w.pass(13 * time.Minute)
		w.is("too old", "token", false, Missing, Missing)
		if got := w.names(); got != "other sub" {
			t.Errorf("there is %s", got)
		}
		w.issuer.Set(fake.Fault{})
		w.pass(5 * time.Minute)
		w.is("the issuer is back", "token", true, OK, OK)

		// If the record cannot be read, nothing is known of what is there.
		w.stop()
		w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
		if err := os.WriteFile(filepath.Join(w.state, "files.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		w.lost = true
		w.start()
		w.is("unknown", "token", false, Missing, Missing)
	})
}

// What somebody else has put at the path stays, until he takes it away.
func TestForeignFile(t *testing.T) {
	inWorld(t, func(w *world) {
		path, empty := filepath.Join(w.run, "token"), filepath.Join(w.run, "zempty")
		if err := errors.Join(os.WriteFile(path, []byte("precious"), 0o600), os.WriteFile(empty, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		w.files(Config{Path: "token"}, Config{Path: "zempty"})
		w.pass(time.Minute)
		if w.is("an empty one is taken", "zempty", true, Missing, OK); !strings.Contains(w.w.Status()[0].Reason, "was not made by the broker: remove it") {
			t.Errorf("%+v", w.w.Status()[0])
		}
		w.stop()
		w.start()
		w.b.Contain(map[string]string{"vdab": "2026-0007"})
		w.pass(look)
		w.b.Contain(nil)
		w.files(Config{Path: "zempty"})
		w.files(Config{Path: "token"}, Config{Path: "zempty"})
		if w.pass(longRetry); w.read("token") != "precious" || w.handed("token") != 0 {
			t.Errorf("it holds %d bytes", len(w.read("token")))
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		w.pass(longRetry)
		w.is("there is room", "token", true, OK, OK)
	})
}

// Without a record a daemon that was killed would not know its file.
func TestUnwritableRecord(t *testing.T) {
	inWorld(t, func(w *world) {
		file := filepath.Join(w.state, "files.json")
		if err := os.Mkdir(file, 0o700); err != nil {
			t.Fatal(err)
		}
		w.files(Config{Path: "token"})
		w.pass(time.Minute)
		w.is("no record", "token", false, Missing)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		w.pass(longRetry)
		w.is("on record", "token", true, OK)
	})
}

// A token that cannot be recorded is not written; the one before stays while
// it is good, and what was handed over is not taken away.
func TestNoRecord(t *testing.T) {
	inWorld(t, func(w *world) {
		w.files(Config{Path: "token"})
		first := w.read("token")
		log := filepath.Join(w.state, "audit")
		if err := errors.Join(os.RemoveAll(log), os.WriteFile(log, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		w.pass(12*time.Minute + 45*time.Second)
		if w.is("not recorded", "token", true, Kept); w.read("token") != first {
			t.Error("it is another token")
		}
		w.pass(20 * time.Second)
		w.is("and too old", "token", false, Missing)
		if err := errors.Join(os.Remove(log), os.Mkdir(log, 0o700)); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Minute)
		w.is("recorded again", "token", true, OK)
	})
}

// While the audit log keeps the next token waiting, a quarantine removes what
// is in place.
func TestSlowAudit(t *testing.T) {
	inWorld(t, func(w *world) {
		w.preserve()
		w.files(Config{Path: "token"})
		first := w.read("token")
		w.stop()
		w.stuck = true
		w.start()
		w.pass(slowRecord)
		if w.is("nothing is recorded", "token", true, Kept); w.read("token") != first || !strings.Contains(w.w.Status()[0].Reason, "is slow") {
			t.Errorf("%+v", w.w.Status()[0])
		}
		w.b.Contain(map[string]string{"vdab": "2026-0007"})
		w.pass(slowRecord)
		w.is("quarantined", "token", false, Missing)
		w.stop()
		w.b.Contain(nil)
		w.stuck = false
		w.start()
		w.is("recorded again", "token", true, OK)
	})
}

// A name service that is down takes no good file away, and is asked again.
func TestNamesLater(t *testing.T) {
	inWorld(t, func(w *world) {
		w.preserve()
		w.files(Config{Path: "token"})
		w.stop()
		// As if the file's owner could be resolved when it was written.
		e := Entry{Client: "vdab", Config: Config{Path: w.run + "/token", Owner: "nobody at all"}.filled()}
		b, err := os.ReadFile(filepath.Join(w.state, "files.json"))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(string(b), w.list[0].spec(), e.spec(), 1)
		if err := os.WriteFile(filepath.Join(w.state, "files.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w.list = []Entry{e}
		w.start()
		w.pass(10 * time.Minute)
		w.is("while it is good", "token", true, Kept)
		w.pass(4 * time.Minute)
		w.is("too old", "token", false, Missing)
	})
}

// A daemon that nobody restarts leaves nothing behind.
func TestStop(t *testing.T) {
	inWorld(t, func(w *world) {
		w.files(Config{Path: "token"}, Config{Path: "key", Content: APIKey})
		w.stop()
		if got := w.names(); got != "" {
			t.Errorf("there is %s", got)
		}
		w.start()
		w.is("token", "token", true, OK, OK)
	})
}

// A token that lives hardly longer than min_ttl would be fetched all the time.
func TestShortTokens(t *testing.T) {
	inWorld(t, func(w *world) {
		w.issuer.Set(fake.Fault{Lifetime: 3 * time.Minute})
		w.files(Config{Path: "token"}, Config{Path: "brief", MinTTL: clock.Duration(time.Minute)})
		w.is("brief", "brief", true, OK, Missing)
		if s := w.w.Status()[1]; !strings.Contains(s.Reason, "set min_ttl to 1m50s or less") {
			t.Error(s.Reason)
		}
		w.pass(time.Hour)
		if minted := w.issuer.Stats().Minted; minted > 60 {
			t.Errorf("%d tokens in an hour", minted)
		}
		w.issuer.Set(fake.Fault{})
		w.pass(20 * time.Minute)
		w.is("longer ones", "token", true, OK, OK)
	})
}

// What somebody removes is there again.
func TestRemovedByOthers(t *testing.T) {
	inWorld(t, func(w *world) {
		w.files(Config{Path: "token"})
		if err := os.Remove(filepath.Join(w.run, "token")); err != nil {
			t.Fatal(err)
		}
		w.pass(2 * look)
		w.is("again", "token", true, OK)
	})
}

// A hand-over is recorded under the file's name, an error alarms once.
func TestRecorded(t *testing.T) {
	inWorld(t, func(w *world) {
		if err := os.WriteFile(filepath.Join(w.run, "deep"), nil, 0o600); err != nil { // no directory
			t.Fatal(err)
		}
		if err := os.Symlink("token", filepath.Join(w.run, "zlink")); err != nil {
			t.Fatal(err)
		}
		w.files(Config{Path: "zlink"})
		if w.pass(time.Minute); w.w.Status()[0].State != Missing || !strings.Contains(w.names(), "zlink") {
			t.Errorf("what is not ours: %+v, %s", w.w.Status(), w.names())
		}
		w.files(Config{Path: "deep/token"}, Config{Path: "token"}, Config{Path: "nobody", Group: "no such group"})
		w.pass(3 * time.Minute) // with longRetry less than a token is kept
		w.is("token", "token", true, Missing, Missing, OK)
		if n := w.handed("deep/token"); n != 0 {
			t.Errorf("%d hand-overs by a file that cannot be written", n)
		}
		if err := os.Remove(filepath.Join(w.run, "deep")); err != nil {
			t.Fatal(err)
		}
		w.pass(longRetry)
		w.is("mended", "deep/token", true, OK, Missing, OK)
		w.stop()
		if a, b := w.handed("token"), w.handed("deep/token"); a != 1 || b != 1 {
			t.Errorf("%d and %d hand-overs", a, b)
		}
		if n := w.alarms(); n != 3 {
			t.Errorf("%d alarms:\n%s", n, w.log)
		}
		if strings.Count(w.log.String(), "a file is written again") != 1 {
			t.Error(w.log)
		}
		w.start()
	})
}

// On record is who can read the file, user and group.
func TestRecordedReaders(t *testing.T) {
	inWorld(t, func(w *world) {
		setgid := filepath.Join(w.run, "setgid")
		if err := errors.Join(os.Mkdir(setgid, 0o700), os.Chmod(setgid, 0o700|os.ModeSetgid)); err != nil { // #nosec G302 -- that is the case
			t.Fatal(err)
		}
		self := strconv.Itoa(os.Getegid())
		w.files(Config{Path: "alone"}, Config{Path: "own", Mode: "0440"}, Config{Path: "group", Group: self}, Config{Path: "setgid/token", Mode: "0440"})
		for name, gid := range map[string]uint32{"alone": broker.NoGroup, "own": uint32(os.Getegid()), "group": uint32(os.Getegid()), "setgid/token": uint32(os.Getegid())} { // #nosec G115 -- a gid
			if n := w.handed(name); n != 1 || w.reader.GID != gid || w.reader.UID != uint32(os.Geteuid()) { // #nosec G115 -- a uid
				t.Errorf("%s: %d hand-overs to %+v", name, n, w.reader)
			}
		}
		if os.Geteuid() != 0 { // who else could give it away?
			return
		}
		if err := os.Chown(setgid, 0, 4712); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(setgid, 0o700|os.ModeSetgid); err != nil { // #nosec G302 -- that is the case
			t.Fatal(err)
		}
		w.files(Config{Path: "given", Owner: "4711", Group: "4711", Mode: "0440"}, Config{Path: "setgid/other", Mode: "0440"})
		if n := w.handed("given"); n != 1 || w.reader.UID != 4711 || w.reader.GID != 4711 {
			t.Errorf("%d hand-overs to %+v", n, w.reader)
		}
		if n := w.handed("setgid/other"); n != 1 || w.reader.UID != 0 || w.reader.GID != 4712 {
			t.Errorf("%d hand-overs to %+v", n, w.reader)
		}
	})
}

// A slow disk keeps nobody from the record, and has the newest in the end.
func TestSlowRecord(t *testing.T) {
	dir := t.TempDir()
	r, err := openRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	r.disk.Lock()
	var writers sync.WaitGroup
	for _, path := range []string{"/a", "/b", "/c"} {
		writers.Go(func() {
			if err := r.set(path, placed{Spec: path}); err != nil {
				t.Error(err)
			}
		})
	}
	for len(r.paths()) < 3 {
		runtime.Gosched()
	}
	writers.Go(func() { _ = r.drop("/b") })
	for _, there := r.get("/b"); there; _, there = r.get("/b") {
		runtime.Gosched()
	}
	r.disk.Unlock()
	writers.Wait()
	if again, err := openRecord(dir); err != nil || !slices.Equal(again.paths(), []string{"/a", "/c"}) {
		t.Errorf("%v, %v", again.paths(), err)
	}
}

// The record may be of anything: what cannot be read is said, and is as none.
func TestRecordOfAnotherVersion(t *testing.T) {
	for _, text := range []string{"{", `{"format":2}`, "", `{"format":1,"files":{"/x":{"until":7}}}`} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "files.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := openRecord(dir); err == nil || len(r.m) != 0 {
			t.Errorf("%q: %v, %v", text, r.m, err)
		}
	}
}
