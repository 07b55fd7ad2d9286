package credential

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/gate"
)

func TestParsePeer(t *testing.T) {
	for _, test := range []struct{ address, unit, client, what string }{
		{"@517baa7d0884c2bd/unit/x-ok.service/vdab.token", "x-ok.service", "vdab", "token"},
		{`@0/unit/a\x2db@1.service/a_b-1.api-key`, `a\x2db@1.service`, "a_b-1", "api-key"},
		{"@0/unit/web.service/vdab.headers", "web.service", "vdab", "headers"},
		{"", "", "", ""}, {"@", "", "", ""}, {"/run/x", "", "", ""}, {"@0/unit/web.service", "", "", ""},
		{"/0/unit/web.service/vdab.token", "", "", ""}, {"@0/user/web.service/vdab.token", "", "", ""}, {"@0/unit//vdab.token", "", "", ""},
		{"@0/unit/web.service/vdab.token/x", "", "", ""}, {"@0/unit/web.service/vdab", "", "", ""}, {"@0/unit/web.service/vdab.jwt", "", "", ""},
		{"@0/unit/web.service/vdab.token.x", "", "", ""}, {"@0/unit/web.service/vdab.client_secret", "", "", ""},
	} {
		p, err := parsePeer(test.address)
		if test.unit == "" {
			if err == nil {
				t.Errorf("%s is taken: %+v", test.address, p)
			}
		} else if err != nil || p.Unit != test.unit || p.Client != test.client || string(p.What) != test.what {
			t.Errorf("%s: %+v, %v", test.address, p, err)
		}
	}
}

// What a unit gets, and who gets nothing: then systemd is sent more than it
// takes, and never nothing.
func TestServe(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		for _, test := range []struct {
			unit, name, want string // want is the beginning; or "refused: …", how it goes on
			change           func(*access.Caller)
		}{
			{"web.service", "vdab.token", "ey", nil},
			{"web.service", "vdab.headers", "Authorization: Bearer ey", nil},
			{"key.service", "vdab.api-key", theKey, nil},
			{"key.service", "vdab.token", "ey", nil},
			{"web.service", "vdab.api-key", "refused: not_allowed: no allow entry gives you this surface", nil},
			{"once.service", "vdab.token", "refused: not_allowed: a token ends while the unit runs", nil},
			{"once.service", "vdab.headers", "refused: not_allowed: a token ends while the unit runs", nil},
			{"user.service", "vdab.token", "refused: not_allowed: no allow entry gives you this surface", nil},
			{"stranger.service", "vdab.token", "refused: not_allowed: no allow entry gives you this surface", nil}, // root has the others
			{"web.service", "none.token", "refused: not_allowed: there is no such client", nil},
			{"web.service", "vdab.secret", "refused: invalid_request: the credential is called", nil},
			{"web.service", "vdab.token", "refused: not_allowed: pid", func(c *access.Caller) { c.UID = 1000 }},
			{"web.service", "vdab.token", "refused: not_allowed: pid", func(c *access.Caller) { c.Unit = "other.service" }},
			{"web.service", "vdab.token", "refused: not_allowed: pid", func(c *access.Caller) { c.Unit = "" }},
			{"web.service", "vdab.token", "refused: not_allowed: pid", func(c *access.Caller) { c.Container = true }},
			{"web.service", "nonsense", "refused: not_allowed: pid", func(c *access.Caller) { c.UID = 1000 }},
		} {
			got := w.ask(test.unit, test.name, test.change)
			refused := strings.HasPrefix(test.want, "refused")
			if !strings.HasPrefix(got, test.want) || refused != (len(got) > 1<<20+128<<10) || !refused && strings.HasSuffix(test.name, "key") && got != theKey {
				t.Errorf("%s of %s: %d bytes: %.120q", test.name, test.unit, len(got), got)
			}
			if refused && (strings.Contains(got, "ey.") || strings.Contains(got, theKey)) {
				t.Errorf("%s of %s: the refusal holds a value", test.name, test.unit)
			}
		}
		if !strings.Contains(w.said.String(), "a unit got no credential") || strings.Contains(w.said.String(), theKey) {
			t.Error(w.said.String())
		}
		synctest.Wait()
		w.sleep(2 * time.Second)
		denied, given := map[uint32]int{}, map[string]int{}
		for e, err := range audit.Read(filepath.Join(w.dir, "audit"), 0) {
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case e.Type == audit.AccessDenied:
				denied[e.Caller.UID]++
			case e.Caller != nil && e.Code == string(access.Credential):
				given[string(e.Type)+" "+e.Caller.Unit]++
			}
		}
		if denied[1000] != 2 || denied[0] < 5 || given["token.handover web.service"] != 1 || given["key.handover key.service"] != 1 {
			t.Errorf("denied %v, given %v", denied, given)
		}
		found := fmt.Sprint(w.room.Findings())
		if !strings.Contains(found, "once.service vdab.token") || strings.Contains(found, "uid 1000") {
			t.Error(found)
		}
		list := entries()
		list[0].Restart = true
		w.apply(list)
		if got := w.ask("once.service", "vdab.token", nil); !strings.HasPrefix(got, "ey") {
			t.Errorf("%.100s", got)
		}
		if found := fmt.Sprint(w.room.Findings()); strings.Contains(found, "once.service vdab.token") {
			t.Error("the refusal is still told of: " + found)
		}
		w.broker.Contain(map[string]string{"vdab": "2026-0001"})
		if got := w.ask("web.service", "vdab.token", nil); !strings.HasPrefix(got, "refused: quarantined") {
			t.Errorf("%.100s", got)
		}
	})
}

// A refusal is told of until the unit reads, for a day at most: the newest, and
// however many others there are.
func TestRefusals(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		w.ask("once.service", "vdab.token", nil)
		for i := range manyRefused {
			w.ask(fmt.Sprintf("stranger@%d.service", i), "vdab.token", nil)
		}
		w.sleep(23 * time.Hour)
		w.broker.Contain(map[string]string{"vdab": "2026-0001"})
		list := entries()
		list[0].Restart = true
		w.apply(list)
		w.ask("once.service", "vdab.token", nil)
		if found := fmt.Sprint(w.room.Findings()); !strings.Contains(found, "once.service vdab.token") || strings.Contains(found, "lacks restart") || !strings.Contains(found, "quarantined") {
			t.Error("the newest refusal is not told of: " + found)
		}
		w.sleep(2 * time.Hour)
		w.ask("late.service", "vdab.token", nil) // there is room
		if f := w.room.Findings(); len(f) != 2 || !strings.Contains(fmt.Sprint(f), "late.service vdab.token") {
			t.Errorf("%d refusals, most of them of yesterday: %v", len(f), f)
		}
		w.sleep(25 * time.Hour)
		if f := w.room.Findings(); len(f) != 0 {
			t.Error(f)
		}
	})
}

// A unit that starts too early waits; not for ever, and not if nobody can help.
func TestWaits(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
		begin := time.Now()
		if got, took := w.ask("web.service", "vdab.token", nil), time.Since(begin); !strings.HasPrefix(got, "refused: issuer_unavailable") || took < 70*time.Second || took > 89*time.Second {
			t.Errorf("after %v: %.100s", took, got)
		}
		go func() {
			time.Sleep(30 * time.Second)
			w.issuer.Set(fake.Fault{})
		}()
		begin = time.Now()
		if got, took := w.ask("web.service", "vdab.token", nil), time.Since(begin); !strings.HasPrefix(got, "ey") || took < 20*time.Second {
			t.Errorf("after %v: %.100s", took, got)
		}
	})
}

// Who gives up, as systemd does when somebody stops the unit, is not held.
func TestWaitsForNobody(t *testing.T) {
	inWorld(t, func(w *world) {
		w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
		begin := time.Now()
		leave := func(c *access.Caller) { time.AfterFunc(10*time.Second, func() { _ = c.Close() }) }
		if got, took := w.ask("web.service", "vdab.token", leave), time.Since(begin); !strings.HasPrefix(got, "refused: issuer_unavailable") || took < 10*time.Second || took > 20*time.Second {
			t.Errorf("after %v: %.100s", took, got)
		}
	})
}

// The socket itself: whoever is not root gets nothing, the room ends while
// somebody waits, and systemd is then refused.
func TestRoom(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"credentials", "audit"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	log, err := audit.Open(audit.Config{Anchor: "none"}, audit.Options{Dir: filepath.Join(dir, "audit")})
	if err != nil {
		t.Fatal(err)
	}
	b := broker.New(broker.Options{Audit: log, Clock: clock.System{}, Dir: dir})
	l, err := gate.Listen(filepath.Join(dir, "credential.sock"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	r := New(Config{Listener: l, Broker: b, Audit: log, Clock: clock.System{}, Log: slog.New(slog.DiscardHandler), State: filepath.Join(dir, "units.json")})
	r.who = func(c *net.UnixConn) (*access.Caller, error) {
		caller, err := access.Identify(c)
		if caller != nil {
			caller.UID, caller.Unit = 0, "web.service"
			if strings.Contains(c.RemoteAddr().String(), "other") {
				caller.UID = 1000
			}
		}
		return caller, err
	}
	if err := b.Apply([]broker.Client{{Name: "vdab", Provider: fake.NewStore(), ProviderName: "store", Allow: entries()}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	logEnded := make(chan error, 1)
	logCtx, endLog := context.WithCancel(t.Context())
	go func() { logEnded <- log.Run(logCtx) }()
	go func() { ended <- r.Run(ctx) }()
	dial := func(name string) net.Conn {
		c, err := net.DialUnix("unix", &net.UnixAddr{Name: name, Net: "unix"}, &net.UnixAddr{Name: filepath.Join(dir, "credential.sock"), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	id := filepath.Base(dir) + fmt.Sprint(os.Getpid())
	for _, name := range []string{"/unit/web.service/vdab.headers", "/nonsense"} { // which is recorded, too
		got, err := io.ReadAll(dial("@other" + id + name))
		if err != nil || !strings.HasPrefix(string(got), "refused: not_allowed") {
			t.Errorf("%.100s, %v", got, err)
		}
	}
	got, err := io.ReadAll(dial(""))
	if err != nil || !strings.HasPrefix(string(got), "refused: invalid_request") {
		t.Errorf("%.100s, %v", got, err)
	}
	held := dial("@" + id + "/unit/web.service/vdab.headers")
	_ = held.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if n, err := held.Read(make([]byte, 1)); n != 0 || !os.IsTimeout(err) {
		t.Errorf("it is not held: %d, %v", n, err)
	}
	_ = held.SetReadDeadline(time.Time{})
	cancel()
	if got, err = io.ReadAll(held); err != nil || !strings.HasPrefix(string(got), "refused: ") || len(got) < 1<<20 {
		t.Errorf("at the end: %d bytes, %v", len(got), err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	endLog()
	<-logEnded
}

// A day of tokens of a quarter of an hour: the unit never holds one that has
// ended, though it reads them at its starts alone.
func TestADay(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		web := w.boot("web.service", "vdab.token", "vdab.headers")
		first, changes, last := w.holds(web, "vdab.token"), 0, ""
		if !strings.HasPrefix(first, "ey") {
			t.Fatal(first)
		}
		for range 24 * 60 * 4 {
			w.sleep(15 * time.Second)
			now := w.holds(web, "vdab.token")
			if now != last {
				changes, last = changes+1, now
			}
			if left := life(t, now); left < 0 {
				t.Fatalf("it ended %v ago", -left)
			}
			if h := w.holds(web, "vdab.headers"); !strings.Contains(h, now) {
				t.Fatal("token and headers differ")
			}
		}
		minted := w.issuer.Stats().Minted
		if n := w.restarted(); n < 96 || n > minted || n != changes-1 || n > 150 {
			t.Errorf("%d restarts for %d tokens, %d changes", n, minted, changes)
		}
		if a := w.alarms(); len(a) > 0 {
			t.Error(a)
		}
	})
}

// life is how long a JWT lives from now.
func life(t *testing.T, token string) time.Duration {
	t.Helper()
	var claims struct{ Exp int64 }
	part := strings.Split(token, ".")
	if len(part) != 3 {
		t.Fatalf("%q is no JWT", token)
	}
	if err := json.Unmarshal(decoded(t, part[1]), &claims); err != nil {
		t.Fatal(err)
	}
	return time.Until(time.Unix(claims.Exp, 0))
}
