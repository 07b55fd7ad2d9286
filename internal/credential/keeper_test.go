package credential

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
)

func decoded(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A rotated API key reaches the unit within the minute; a reload changes
// nothing; without restart: true nothing is restarted.
func TestRotation(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		one := w.boot("key.service", "vdab.api-key")
		w.sleep(time.Hour)
		w.apply(entries())
		if n := w.restarted(); n != 0 || w.holds(one, "vdab.api-key") != theKey {
			t.Fatalf("%d restarts, %s", n, w.holds(one, "vdab.api-key"))
		}
		w.key("api-key-2-9c0d1")
		w.sleep(7 * time.Minute) // the manager is asked every five
		if n := w.restarted(); n != 1 || w.holds(one, "vdab.api-key") != "api-key-2-9c0d1" {
			t.Errorf("%d restarts, %s", n, w.holds(one, "vdab.api-key"))
		}
		list := entries()
		list[2].Restart = false
		w.apply(list)
		w.key("api-key-3-77aa0")
		w.sleep(time.Hour)
		if n := w.restarted(); n != 1 || w.holds(one, "vdab.api-key") != "api-key-2-9c0d1" {
			t.Errorf("without the permission: %d restarts", n)
		}
	})
}

// A unit that was stopped is not started, and is looked after when it starts
// again.
func TestStopped(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		stopped := w.boot("web.service", "vdab.token")
		w.mu.Lock()
		stopped.state = "inactive"
		w.mu.Unlock()
		w.sleep(time.Hour)
		if n := w.restarted(); n != 0 || len(w.alarms()) > 0 {
			t.Errorf("%d restarts of a unit that was stopped: %v", n, w.alarms())
		}
		if minted := w.issuer.Stats().Minted; minted > 4 {
			t.Errorf("%d tokens for nobody", minted)
		}
		w.boot("web.service", "vdab.token")
		w.sleep(time.Hour)
		if n := w.restarted(); n < 3 {
			t.Errorf("%d restarts after its start", n)
		}
	})
}

// A unit that is being stopped is not running; if it starts again meanwhile, it
// is looked after.
func TestStopping(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		web := w.boot("web.service", "vdab.token")
		w.mu.Lock()
		web.state = "deactivating"
		w.mu.Unlock()
		w.sleep(14 * time.Minute)
		if n := w.restarted(); n != 0 || len(w.alarms()) > 0 {
			t.Errorf("%d restarts of a unit that was being stopped: %v", n, w.alarms())
		}
		web = w.boot("web.service", "vdab.token")
		w.mu.Lock()
		web.state = "inactive" // for whom asks, before it starts by itself
		w.asked = func() {
			w.asked = nil
			w.mu.Unlock()
			w.begin("web.service", web)
			w.mu.Lock()
		}
		w.mu.Unlock()
		w.sleep(time.Hour)
		if n := w.restarted(); n < 3 || life(t, w.holds(web, "vdab.token")) < 0 {
			t.Errorf("%d restarts after its start", n)
		}
	})
}

// A slow disk under the state holds up nobody but who writes it.
func TestSlowState(t *testing.T) {
	file := filepath.Join(t.TempDir(), "units.json")
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(Config{Clock: clock.NewBubble(), State: file})
		k.disk <- struct{}{} // as a write that takes long
		var reads sync.WaitGroup
		for _, unit := range []string{"web.service", "key.service", "once.service"} {
			p, err := parsePeer("@0/unit/" + unit + "/vdab.api-key")
			if err != nil {
				t.Fatal(err)
			}
			reads.Go(func() { k.read(p, broker.Sight{Name: "1", Version: "1"}) })
		}
		synctest.Wait()
		if !k.mu.TryLock() {
			t.Fatal("what is known cannot be looked at")
		}
		n := len(k.known)
		k.mu.Unlock()
		<-k.disk
		reads.Wait()
		if b, err := os.ReadFile(file); err != nil || n != 3 || strings.Count(string(b), ".service") != 3 {
			t.Errorf("%d, %s, %v", n, b, err)
		}
	})
}

// A unit that does not come back is left alone.
func TestLost(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		web := w.boot("web.service", "vdab.token")
		w.mu.Lock()
		web.broken = true
		w.mu.Unlock()
		w.sleep(5 * time.Hour)
		a := w.alarms()
		if n := w.restarted(); n != 1 || len(a) != 1 || !strings.HasPrefix(a[0], "lost: web.service was restarted") || !strings.Contains(a[0], "(it is failed)") {
			t.Errorf("%d restarts, %v", n, a)
		}
		if f := w.room.Findings(); len(f) != 1 || f[0].Target != "web.service vdab.token" {
			t.Error(f)
		}
		w.boot("web.service", "vdab.token")
		if f := w.room.Findings(); len(f) != 0 {
			t.Error(f)
		}
	})
}

// What systemd does not let the broker do is told once, and tried again, ever
// less often.
func TestRefusedRestart(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		w.boot("web.service", "vdab.token")
		w.mu.Lock()
		w.refusal = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
		w.mu.Unlock()
		w.sleep(2 * time.Hour)
		a := w.alarms()
		if len(a) != 1 || !strings.Contains(a[0], "web.service cannot be restarted") || !strings.Contains(a[0], "50-credential-broker.rules") {
			t.Error(a)
		}
		if n := strings.Count(w.said.String(), "cannot be restarted"); n > 12 {
			t.Errorf("told %d times in two hours", n)
		}
		w.mu.Lock()
		w.refusal = ""
		w.mu.Unlock()
		w.sleep(20 * time.Minute)
		if w.restarted() == 0 || len(w.room.Findings()) != 0 {
			t.Errorf("%d restarts, %v", w.restarted(), w.room.Findings())
		}
	})
}

// A quarantine stops nothing and restarts nothing, and says what is out there.
func TestQuarantine(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		w.boot("web.service", "vdab.token")
		w.sleep(time.Minute)
		w.broker.Contain(map[string]string{"vdab": "2026-0001"})
		w.sleep(time.Hour)
		a := w.alarms()
		if n := w.restarted(); n != 0 || len(a) != 1 || !strings.HasPrefix(a[0], "quarantined: web.service holds token") || !strings.Contains(a[0], "systemctl stop web.service") {
			t.Errorf("%d restarts, %v", n, a)
		}
		w.broker.Contain(nil)
		w.sleep(time.Minute)
		if n := w.restarted(); n != 1 {
			t.Errorf("%d restarts after the release", n)
		}
	})
}

// The token itself comes over a planned restart: then a rejection of it counts
// as if there had been none.
func TestCarriedToken(t *testing.T) {
	inWorld(t, func(w *world) {
		w.boot("web.service", "vdab.token")
		w.sleep(2 * time.Minute)
		w.stop()
		data, n, err := w.broker.Carry()
		if err != nil || n != 1 {
			w.t.Fatalf("%d tokens, %v", n, err)
		}
		w.start()
		if err := w.broker.Restore(data); err != nil {
			w.t.Fatal(err)
		}
		w.sleep(time.Minute)
		before, minted := w.restarted(), w.issuer.Stats().Minted
		if _, err := w.broker.Revoke(w.t.Context(), "vdab", false); err != nil {
			w.t.Fatal(err)
		}
		w.sleep(3 * time.Minute)
		if n := w.restarted() - before; n != 1 || minted != 1 {
			w.t.Errorf("%d restarts for a token that was revoked; %d minted before", n, minted)
		}
	})
}

// The daemon's own restart forgets no unit, and restarts none whose token is
// good; an outage of the issuer restarts none.
func TestDaemonRestart(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		web := w.boot("web.service", "vdab.token")
		w.sleep(time.Minute)
		w.stop()
		w.start()
		before := w.restarted()
		w.sleep(7 * time.Minute) // its first token of its own is another one
		if n := w.restarted() - before; n != 0 || w.holds(web, "vdab.token") == "" {
			t.Errorf("%d restarts", n)
		}
		w.sleep(6 * time.Minute)
		if n := w.restarted() - before; n == 0 || n > 2 || life(t, w.holds(web, "vdab.token")) < time.Minute {
			t.Errorf("%d restarts, %v left", n, life(t, w.holds(web, "vdab.token")))
		}
		before = w.restarted()
		w.stop()
		w.key("api-key-2-9c0d1")
		w.start()
		w.sleep(2 * time.Minute)
		if n := w.restarted() - before; n != 1 {
			t.Errorf("%d restarts for a version that came meanwhile", n)
		}
		w.stop()
		w.start()
		w.sleep(time.Minute)
		before = w.restarted()
		w.broker.Contain(map[string]string{"vdab": "2026-0001"})
		w.sleep(time.Minute)
		w.broker.Contain(nil)
		w.sleep(2 * time.Minute)
		if n := w.restarted() - before; n != 1 {
			t.Errorf("%d restarts after a quarantine, which may have ended the unit's token", n)
		}
		w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
		before = w.restarted()
		w.sleep(3 * time.Hour)
		if n := w.restarted() - before; n != 0 {
			t.Errorf("%d restarts without a token to read", n)
		}
		w.issuer.Set(fake.Fault{})
		w.sleep(20 * time.Minute)
		if life(t, w.holds(web, "vdab.token")) < 0 {
			t.Error("it was not restarted when there was a token again")
		}
	})
}

// A reload that takes a unit's entry away, by mistake perhaps, is told of while
// the unit holds what ends; when it is mended the unit is looked after again.
func TestUncovered(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		state := func() string {
			b, err := os.ReadFile(filepath.Join(w.dir, "units.json"))
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		without := entries()
		without[1].Restart, without[2].Restart = false, false
		web := w.boot("web.service", "vdab.token")
		w.boot("key.service", "vdab.api-key")
		w.sleep(time.Minute)
		w.apply(without)
		w.sleep(3 * time.Minute)
		a := w.alarms()
		if len(a) != 1 || !strings.HasPrefix(a[0], "not_allowed: web.service holds token of vdab (it ends at 20") || len(w.room.Findings()) != 1 {
			t.Errorf("%v, %v", a, w.room.Findings())
		}
		w.apply(entries())
		w.sleep(time.Minute)
		if f := w.room.Findings(); len(f) != 0 || w.restarted() != 0 {
			t.Errorf("%v, %d restarts", f, w.restarted())
		}
		w.sleep(15 * time.Minute)
		if life(t, w.holds(web, "vdab.token")) < 0 {
			t.Error("it is not looked after any more")
		}
		w.apply(without)
		w.sleep(2 * time.Hour)
		w.apply(entries())
		w.key("api-key-2-9c0d1")
		w.sleep(7 * time.Minute)
		if life(t, w.holds(web, "vdab.token")) < 0 || !slices.Contains(w.restarts, "key.service") || len(w.room.Findings()) != 0 {
			t.Errorf("it is not looked after any more: %v, %v", w.restarts, w.room.Findings())
		}
		w.boot("once.service", "vdab.api-key") // refused
		w.apply(append(without, access.Entry{Unit: "once.service", Surfaces: []access.Surface{access.Credential, access.APIKey}}))
		w.boot("once.service", "vdab.api-key")
		w.sleep(time.Minute)
		if s := state(); strings.Contains(s, "once.service") || !strings.Contains(s, "web.service") || !strings.Contains(s, "key.service") {
			t.Error("what needs no restart is kept, or what did is not: " + s)
		}
		w.sleep(25 * time.Hour)
		if s := state(); s != "[]" {
			t.Error("what has ended long ago is kept: " + s)
		}
		if a := w.alarms(); len(a) != 3 {
			t.Error(a)
		}
		// Whoever stops a unit first means it.
		w.apply(entries())
		web = w.boot("web.service", "vdab.token")
		w.sleep(time.Minute)
		w.mu.Lock()
		web.state = "inactive"
		w.mu.Unlock()
		w.apply(without)
		w.sleep(time.Minute)
		if a := w.alarms(); len(a) != 3 || strings.Contains(state(), "web.service") {
			t.Errorf("%v, %s", a, state())
		}
	})
}

// Whoever may use a client can have its tokens replaced, all the time: that is
// no way to restart other people's units.
func TestRejections(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		w.issuer.Set(fake.Fault{Lifetime: 12 * time.Hour})
		w.boot("web.service", "vdab.token", "vdab.headers")
		reject := func(d time.Duration) {
			for begin := time.Now(); time.Since(begin) < d; w.sleep(61 * time.Second) {
				c := w.caller()
				c.UID, c.Unit = 0, ""
				g, err := w.broker.Token(t.Context(), c, broker.Request{Client: "vdab", Surface: access.Token})
				if err == nil {
					_, err = w.broker.Reject(t.Context(), c, broker.Rejection{Client: "vdab", Fingerprint: g.Token.Fingerprint, Status: 401})
				}
				if err != nil {
					t.Fatal(err)
				}
				_ = c.Close()
			}
		}
		reject(2 * time.Minute)
		if n := w.restarted(); n != 1 || len(w.alarms()) > 0 {
			t.Errorf("%d restarts for one token that was refused: %v", n, w.alarms())
		}
		reject(10 * time.Hour)
		a := w.alarms()
		if n := w.restarted(); n < 4 || n > 7 {
			t.Errorf("%d restarts in ten hours", n)
		}
		if len(a) == 0 || len(a) > 7 || !strings.HasPrefix(a[0], "held: web.service") || !strings.Contains(a[0], "broker audit tail") {
			t.Errorf("%d alarms: %v", len(a), a)
		}
		before := w.restarted()
		w.key("api-key-2-9c0d1")
		w.sleep(7 * time.Minute)
		if n := w.restarted() - before; n != 1 {
			t.Errorf("%d restarts for a rotation meanwhile", n)
		}
	})
}

// Whatever is rotated how often: a unit is not restarted more than once a
// minute, and has the newest in the end.
func TestNotTooOften(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		one := w.boot("key.service", "vdab.api-key")
		w.sleep(time.Minute)
		last := ""
		for i := range 12 {
			last = "api-key-" + string(rune('a'+i)) + "-9c0d1"
			w.key(last)
			if _, err := w.broker.Rotate(t.Context(), "vdab", broker.Rotation{}); err != nil {
				t.Fatal(err)
			}
			w.sleep(25 * time.Second)
		}
		if n := w.restarted(); n < 3 || n > 5 {
			t.Errorf("%d restarts in five minutes", n)
		}
		w.sleep(3 * time.Minute)
		if got := w.holds(one, "vdab.api-key"); got != last {
			t.Errorf("%s, want %s", got, last)
		}
	})
}
