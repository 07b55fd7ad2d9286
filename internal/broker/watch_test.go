package broker

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/fake"
)

// follower is what a Watch has given.
type follower struct {
	mu     sync.Mutex
	grants []string // fingerprints
	at     []time.Time
	errs   []error
}

func (f *follower) take(g *Grant, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.errs = append(f.errs, err)
		return
	}
	f.grants, f.at = append(f.grants, g.Token.Fingerprint), append(f.at, time.Now())
}

// had is what it has when nothing more happens now.
func (f *follower) had() (grants []string, errs []error) {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.grants), slices.Clone(f.errs)
}

func (w *world) follow(watch *Watch) (*follower, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	f, done := &follower{}, make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if g, err := watch.Next(ctx); ctx.Err() == nil {
				f.take(g, err)
			}
		}
	}()
	return f, func() { cancel(); <-done }
}

func (w *world) watch() *Watch {
	return w.b.Watch(w.caller, Request{Client: "vdab", Surface: access.Events})
}

func withEvents(c *Client) { c.Allow[0].Surfaces = append(c.Allow[0].Surfaces, access.Events) }

// A day of tokens: each is given once, as soon as it is there, and fetched
// once, though nobody asks for it.
func TestWatch(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(withEvents)
		f, stop := w.follow(w.watch())
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		stop()
		minted := w.issuer.Stats().Minted
		if len(f.errs) > 0 || len(f.grants) != minted || minted < 24*60/15 {
			t.Errorf("%d tokens for %d fetched: %v", len(f.grants), minted, f.errs)
		}
		for i, one := range f.grants[1:] {
			if one == f.grants[i] {
				t.Fatalf("token %d was given twice", i)
			}
		}
	})
}

// A new bundle, a rejected token, a quarantine and a reload are seen at once;
// what a look every half minute finds is not meant.
func TestWatchIsWoken(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		w.with(withEvents)
		f, stop := w.follow(w.watch())
		defer stop()
		soon := func(what string, grants, errs int) {
			t.Helper()
			time.Sleep(time.Second)
			gave, failed := f.had()
			if len(gave) != grants || len(failed) != errs {
				t.Fatalf("%s: %d grants, %d errors: %v", what, len(gave), len(failed), failed)
			}
		}
		soon("the first", 1, 0)
		time.Sleep(2 * time.Minute)
		soon("nothing new", 1, 0)
		grants, _ := f.had()
		if r, err := w.b.Reject(t.Context(), w.caller, Rejection{Client: "vdab", Status: 401, Fingerprint: grants[0]}); err != nil || !r.Replaced {
			t.Fatal(r, err)
		}
		soon("rejected", 2, 0)
		w.b.Contain(map[string]string{"vdab": "2026-0007"})
		soon("quarantined", 2, 1)
		_, errs := f.had()
		wantCode(t, errs[0], client.Quarantined)
		w.b.Contain(nil)
		soon("released: the same token once more", 3, 1)
		if grants, _ = f.had(); grants[2] != grants[1] {
			t.Error("another token, for no reason")
		}
		list := w.config() // without the surface
		if err := w.b.Apply(list); err != nil {
			t.Fatal(err)
		}
		soon("not allowed any more", 3, 2)
		_, errs = f.had()
		wantCode(t, errs[1], client.NotAllowed)
	})
}

// While the issuer is down, a Watch says so when the token has ended, and goes
// on when it is back.
func TestWatchOutage(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(withEvents)
		f, stop := w.follow(w.watch())
		defer stop()
		time.Sleep(time.Second)
		w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
		time.Sleep(14 * time.Minute)
		grants, errs := f.had()
		if len(grants) != 1 || len(errs) != 0 {
			t.Fatalf("while the token lives: %d grants, %v", len(grants), errs)
		}
		time.Sleep(2 * time.Minute)
		if _, errs = f.had(); len(errs) == 0 || len(errs) > 30 {
			t.Fatalf("%d errors", len(errs))
		}
		wantCode(t, errs[0], client.IssuerUnavailable)
		w.issuer.Set(fake.Fault{})
		time.Sleep(5 * time.Minute)
		if grants, _ = f.had(); len(grants) != 2 {
			t.Errorf("%d grants when it is back", len(grants))
		}
	})
}

// Whoever calls Next with contexts shorter than any pause, as a stream does
// that shows that it lives, sees the same.
func TestWatchInShortTurns(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(withEvents)
		watch := w.watch()
		grants, errs := 0, 0
		turns := func(whole time.Duration) {
			for end := time.Now().Add(whole); time.Now().Before(end); {
				turn, cancel := context.WithTimeout(w.t.Context(), lookEvery/2)
				_, err := watch.Next(turn)
				cancel()
				switch {
				case err == nil:
					grants++
				case !errors.Is(err, context.DeadlineExceeded):
					errs++
				}
			}
		}
		turns(time.Minute)
		w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
		turns(time.Hour)
		if grants != 1 || errs == 0 {
			w.t.Errorf("in the outage: %d grants, %d errors", grants, errs)
		}
		w.issuer.Set(fake.Fault{})
		turns(10 * time.Minute)
		if grants != 2 {
			w.t.Errorf("%d grants when it is back", grants)
		}
		_ = w.caller.Close()
		errs = 0
		if turns(time.Minute); errs == 0 {
			w.t.Error("a process that is gone gets no error")
		}
	})
}

// Names that nobody configured leave nothing behind.
func TestWatchOfUnknownClients(t *testing.T) {
	inWorld(t, func(w *world) {
		for i := range 1000 {
			_, err := w.b.Watch(w.caller, Request{Client: strconv.Itoa(i), Surface: access.Events}).Next(w.t.Context())
			wantCode(w.t, err, client.NotAllowed)
		}
		if n := len(w.b.news.m); n > 1 {
			w.t.Errorf("%d names are remembered", n)
		}
	})
}

// What a place gets has the life that it wants, and is recorded by its name.
func TestWatchPlace(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		const left = 2 * time.Minute
		watch := w.b.WatchPlace(Place{Client: "vdab", Surface: access.Files, MinTTL: left, Name: "file /run/x/token", UID: 33, GID: 34})
		f, stop := w.follow(watch)
		time.Sleep(time.Hour)
		synctest.Wait()
		stop()
		if len(f.errs) > 0 || len(f.grants) < 4 {
			t.Errorf("%d grants: %v", len(f.grants), f.errs)
		}
		for i := range f.at[1:] {
			if lived := f.at[i+1].Sub(f.at[i]); lived > 15*time.Minute-left {
				t.Errorf("token %d stood there for %v", i, lived)
			}
		}
		key, stop := w.follow(w.b.WatchPlace(Place{Client: "vdab", Surface: access.Credential, Key: true, Name: "unit x.service"}))
		time.Sleep(time.Minute)
		stop()
		if len(key.grants) != 1 || key.grants[0] != "" {
			t.Errorf("the key: %q, %v", key.grants, key.errs)
		}
		w.stop()
		places := map[string]int{}
		for e, err := range audit.Read(filepath.Join(w.dir, "audit"), 0) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Caller != nil && e.Caller.Place != "" {
				places[string(e.Type)+" "+e.Caller.Place]++
				if e.Caller.PID != 0 || e.Code != string(access.Files) && e.Code != string(access.Credential) || e.Code == string(access.Files) && (e.Caller.UID != 33 || e.Caller.GID != 34) {
					t.Errorf("%+v", e)
				}
			}
		}
		if places["token.handover file /run/x/token"] != len(f.grants) || places["key.handover unit x.service"] != 1 {
			t.Errorf("%v", places)
		}
		w.start()
	})
}

// Once the process has exited, its Watch gives nothing more.
func TestWatchEndsWithItsProcess(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(withEvents)
		f, stop := w.follow(w.watch())
		defer stop()
		time.Sleep(time.Second)
		_ = w.caller.Close()
		time.Sleep(lookEvery)
		grants, errs := f.had()
		if len(grants) != 1 || len(errs) == 0 {
			w.t.Fatalf("%d grants, %v", len(grants), errs)
		}
		wantCode(w.t, errs[0], client.NotAllowed)
	})
}
