package rotation

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// shelf is a bench with a place for copies.
type shelf struct {
	*bench
	copies *fake.Store
	skew   atomic.Int64 // of the wall clock
	cfg    Config
}

func inShelf(t *testing.T, cfg Config, f func(s *shelf)) {
	t.Helper()
	inBench(t, cfg, func(b *bench) {
		s := &shelf{bench: b, copies: fake.NewStore(), cfg: cfg}
		b.stop()
		b.clock.Skew = func() time.Duration { return time.Duration(s.skew.Load()) }
		b.keeper = s.copies
		b.start(cfg)
		f(s)
	})
}

// filled is a shelf with a copy that was made an hour ago, and a manager that
// is down, in front of a new process.
func filled(t *testing.T, cfg Config, f func(s *shelf)) {
	t.Helper()
	inShelf(t, cfg, func(s *shelf) {
		s.use()
		time.Sleep(time.Hour)
		s.store.SetFault(providers.Unavailable)
		s.restart(cfg)
		f(s)
	})
}

// use gets a token, and lets the copy be made.
func (s *shelf) use() {
	s.t.Helper()
	if _, err := s.mint(); err != nil {
		s.t.Fatal(err)
	}
	s.c.keep(s.t.Context())
}

func (s *shelf) puts() int { return s.copies.Stats().Puts }

// copied gives the copy's fields; nil: there is none.
func (s *shelf) copied() map[string]secret.Secret {
	b, err := s.copies.Fetch(context.Background(), providers.Ref{Path: "app.copy"}, "")
	if err != nil {
		return nil
	}
	return b.Fields
}

// alter changes a field of the copy.
func (s *shelf) alter(field, value string) {
	s.t.Helper()
	fields := s.copied()
	if fields[field] = secret.FromString(value); value == "" {
		delete(fields, field)
	}
	if err := s.copies.Replace(s.t.Context(), providers.Ref{Path: "app.copy"}, fields); err != nil {
		s.t.Fatal(err)
	}
}

// kept gives the codes of the events about copies, in order.
func (s *shelf) kept() (codes string) {
	s.stop()
	for e, err := range audit.Read(filepath.Join(s.dir, "audit"), 0) {
		if err != nil {
			s.t.Fatal(err)
		}
		if e.Type == audit.BundleKept {
			codes += " " + e.Code
		}
	}
	s.stop = func() {}
	return strings.TrimSpace(codes)
}

func (s *shelf) wantServed() {
	s.t.Helper()
	if _, err := s.mint(); err != nil {
		s.t.Error(err)
	}
	if s.c.Status().Degraded.IsZero() {
		s.t.Error("it is not marked")
	}
}

func (s *shelf) wantWithheld(say string) {
	s.t.Helper()
	for _, f := range []func() error{
		func() error { _, err := s.mint(); return err },
		func() error { _, err := s.c.Bundle(s.t.Context()); return err },
	} {
		if e := wantKind(s.t, f(), NoBundle); e.RetryAfter <= 0 || !strings.Contains(e.Detail, say) {
			s.t.Errorf("%+v, want %q", e, say)
		}
	}
}

// A copy bridges an outage: it is marked until the manager answers again, and
// then made anew at once.
func TestCopyBridgesAnOutage(t *testing.T) {
	filled(t, Config{}, func(s *shelf) {
		begin := time.Now()
		s.wantServed()
		st := s.c.Status()
		if want := begin.Add(23 * time.Hour); !st.Degraded.Equal(want) || !st.Confirmed.Equal(begin.Add(-time.Hour)) || st.Withheld != nil {
			t.Errorf("degraded until %s of %s, want %s: %v", st.Degraded, st.Confirmed, want, st.Withheld)
		}
		s.wantVersion("1")
		before := s.puts()
		s.c.keep(s.t.Context())
		if s.puts() != before {
			t.Error("a copy was made of a copy")
		}
		s.store.SetFault("")
		end := s.run()
		time.Sleep(time.Second)
		end()
		st = s.c.Status()
		if !st.Degraded.IsZero() || st.Kept.Before(begin) || s.puts() != before+1 || !s.c.Degraded().IsZero() {
			t.Errorf("after the outage: %+v, %d copies made", st, s.puts()-before)
		}
		if got := s.kept(); got != "brown_out recovered" {
			t.Errorf("events: %s", got)
		}
	})
}

// The way as a process goes it: Run alone makes the copies, about once an hour.
func TestCopiesAreMadeAboutHourly(t *testing.T) {
	for keepFor, want := range map[time.Duration][2]int{0: {9, 11}, 4 * time.Hour: {45, 65}} {
		inShelf(t, Config{KeepFor: keepFor}, func(s *shelf) {
			end := s.run()
			for range 40 {
				if _, err := s.mint(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(15 * time.Minute)
			}
			end()
			if n := s.puts(); n < want[0] || n > want[1] {
				t.Errorf("%v: %d copies in 10 hours, want %v", keepFor, n, want)
			}
			if age := time.Since(s.c.Status().Kept); age > 70*time.Minute {
				t.Errorf("%v: the copy is of %v ago", keepFor, age)
			}
		})
	}
}

func TestOnlyWhatHasWorkedIsCopied(t *testing.T) {
	inShelf(t, Config{}, func(s *shelf) {
		_ = s.c.Check(s.t.Context())
		s.c.keep(s.t.Context())
		if s.puts() != 0 {
			t.Error("a copy of what has not worked")
		}
		s.use()
		if s.puts() != 1 {
			t.Fatal("no copy of what has")
		}
		// A new version that is refused, while the old one serves on.
		s.set("bad")
		_ = s.c.Check(s.t.Context())
		s.c.keep(s.t.Context())
		// Then the old one dies too.
		s.issuer.SetSecret("id", "three", false)
		_, err := s.mint()
		wantKind(t, err, Rejected)
		time.Sleep(2 * time.Hour)
		_ = s.c.Check(s.t.Context())
		s.c.keep(s.t.Context())
		if s.puts() != 1 || text(providers.Bundle{Fields: s.copied()}, keptVersion) != "1" {
			t.Errorf("%d copies, of version %s", s.puts(), text(providers.Bundle{Fields: s.copied()}, keptVersion))
		}
		// Nor one that was revoked, whatever it did before.
		_ = s.c.ledger.pardon()
		s.issuer.SetSecret("id", "one", false)
		s.use()
		before := s.puts()
		_ = s.c.ledger.change(func(d *entries) { d.refuse(s.c.id("1"), s.clock.Now().Wall, codeRevoked) })
		time.Sleep(2 * time.Hour)
		_ = s.c.Check(s.t.Context())
		if s.c.keep(s.t.Context()); s.puts() != before {
			t.Error("a copy of what was revoked")
		}
		// What has worked before a restart has worked.
		s.issuer.SetSecret("id", "three", false)
		s.set("three")
		if err := s.c.Check(s.t.Context()); err != nil {
			t.Fatal(err)
		}
		s.restart(Config{})
		if err := s.c.Check(s.t.Context()); err != nil {
			t.Fatal(err)
		}
		s.c.keep(s.t.Context())
		if got := text(providers.Bundle{Fields: s.copied()}, keptVersion); got != "3" {
			t.Errorf("the copy is of version %s, want 3", got)
		}
	})
	inShelf(t, Config{Prove: ProveNone}, func(s *shelf) {
		_ = s.c.Check(s.t.Context())
		s.c.keep(s.t.Context())
		if s.puts() != 1 {
			t.Error("no copy of what nothing can prove")
		}
	})
}

// A manager that says no is obeyed; one that says that the secret is gone takes
// the copy with it.
func TestOnlyAnOutageUsesTheCopy(t *testing.T) {
	for _, x := range []struct {
		kind         providers.Kind
		served, gone bool
	}{
		{providers.Unavailable, true, false}, {providers.Throttled, true, false}, {fake.HangStore, true, false},
		{providers.Denied, false, false}, {providers.LoginFailed, false, false}, {providers.Malformed, false, false},
		{providers.NotYetValid, false, false}, {providers.Unsupported, false, false}, {providers.Conflict, false, false},
		{providers.NotFound, false, true}, {providers.Deleted, false, true}, {providers.Disabled, false, true}, {providers.Expired, false, true},
	} {
		filled(t, Config{}, func(s *shelf) {
			s.store.SetFault(x.kind)
			begin := time.Now()
			_, err := s.mint()
			if took := time.Since(begin); (err == nil) != x.served || took > startPatience {
				t.Errorf("at the start, %s: %v, after %v", x.kind, err, took)
			}
			if marked := !s.c.Status().Degraded.IsZero(); marked != x.served {
				t.Errorf("at the start, %s: marked: %v", x.kind, marked)
			}
			if gone := s.copied() == nil; gone != x.gone {
				t.Errorf("at the start, %s: the copy is gone: %v", x.kind, gone)
			}
		})
		// The same while the copy serves: nothing is served that a start would not serve.
		filled(t, Config{}, func(s *shelf) {
			s.wantServed()
			s.store.SetFault(x.kind)
			_ = s.c.Check(s.t.Context())
			if x.served {
				s.wantServed()
				return
			}
			s.wantWithheld("sealed copy serves no longer")
			if st := s.c.Status(); st.Withheld == nil {
				t.Error("the status does not say so")
			}
			s.store.SetFault(providers.Unavailable)
			_ = s.c.Check(s.t.Context())
			if x.gone {
				s.wantWithheld("serves no longer")
			} else {
				s.wantServed()
			}
			s.store.SetFault("")
			if err := s.c.Check(s.t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := s.mint(); err != nil || !s.c.Status().Degraded.IsZero() {
				t.Errorf("%s: it does not recover: %v", x.kind, err)
			}
		})
		// And a process that has its bundle from the manager serves on.
		inShelf(t, Config{}, func(s *shelf) {
			s.use()
			s.store.SetFault(x.kind)
			for range 3 {
				_ = s.c.Check(s.t.Context())
			}
			if _, err := s.mint(); err != nil || !s.c.Status().Degraded.IsZero() {
				t.Errorf("in memory, %s: %v", x.kind, err)
			}
			if gone := s.copied() == nil; gone != x.gone {
				t.Errorf("in memory, %s: the copy is gone: %v", x.kind, gone)
			}
			s.c.keep(s.t.Context())
			if s.puts() != 1 {
				t.Error("a copy was made while the manager gave none")
			}
			if got := s.kept(); x.gone && got != "withdrawn" || !x.gone && got != "" {
				t.Errorf("%s: events: %s", x.kind, got)
			}
		})
	}
}

// A copy that was withdrawn is made again when the secret is there again.
func TestWithdrawnCopyComesBack(t *testing.T) {
	inShelf(t, Config{}, func(s *shelf) {
		s.use()
		s.store.SetFault(providers.NotFound)
		_ = s.c.Check(s.t.Context())
		s.store.SetFault("")
		_ = s.c.Check(s.t.Context())
		s.c.keep(s.t.Context())
		if s.copied() == nil {
			t.Error("there is no copy")
		}
	})
}

// Where there is no copy, a secret that is gone is no trouble with copies, and
// the keeper is asked once.
func TestNoCopyToWithdraw(t *testing.T) {
	inShelf(t, Config{}, func(s *shelf) {
		s.store.SetFault(providers.NotFound)
		_ = s.c.Check(s.t.Context())
		s.copies.SetFault(providers.Denied)
		_ = s.c.Check(s.t.Context())
		if st := s.c.Status(); st.KeepErr != nil {
			t.Error(st.KeepErr)
		}
		if got := s.kept(); got != "" {
			t.Errorf("events: %s", got)
		}
	})
}

// What the manager gives takes the mark away, whoever asked for it.
func TestPinEndsTheBrownOut(t *testing.T) {
	filled(t, Config{}, func(s *shelf) {
		s.wantServed()
		s.set("two")
		s.issuer.SetSecret("id", "two", true)
		s.store.SetFault("")
		if why, err := s.c.Pin(s.t.Context(), "2", false); err != nil || why != "" || !s.c.Degraded().IsZero() {
			t.Errorf("%s, %v, degraded until %s", why, err, s.c.Degraded())
		}
	})
}

// What a copy has to be, to serve.
func TestCopiesThatAreRefused(t *testing.T) {
	for _, x := range []struct {
		name  string
		cfg   Config
		spoil func(s *shelf)
		say   string // empty: it serves
	}{
		{"none spoilt", Config{}, func(*shelf) {}, ""},
		{"a second before its time", Config{}, func(*shelf) { time.Sleep(23*time.Hour - time.Second) }, ""},
		{"too old", Config{}, func(*shelf) { time.Sleep(23 * time.Hour) }, "too old, from"},
		{"too old for what is configured now", Config{KeepFor: time.Hour}, func(*shelf) {}, "too old, from"},
		{"a clock behind", Config{}, func(s *shelf) { s.skew.Store(int64(-time.Hour - 4*time.Minute)) }, ""},
		{"a clock far behind", Config{}, func(s *shelf) { s.skew.Store(int64(-time.Hour - 6*time.Minute)) }, "check the clock"},
		{"no date", Config{}, func(s *shelf) { s.alter(keptConfirmed, "") }, "too old"},
		{"another format", Config{}, func(s *shelf) { s.alter(keptFormat, "2") }, "another version of the broker"},
		{"another place", Config{Spec: providers.Spec{Ref: providers.Ref{Path: "other"}}}, func(*shelf) {}, "another configuration"},
		{"a field short", Config{Required: []string{"api_key"}}, func(*shelf) {}, "it lacks api_key"},
		{"refused since", Config{}, func(s *shelf) { _ = s.c.ledger.failed(s.c.id("1"), s.clock.Now().Wall, "invalid_client") }, "the issuer has refused its version, 1"},
		{"another is pinned", Config{}, func(s *shelf) { _ = s.c.ledger.pin(s.c.id("2")) }, "version 2 is pinned"},
		{"pinned", Config{}, func(s *shelf) { _ = s.c.ledger.pin(s.c.id("1")) }, ""},
		{"unreadable", Config{}, func(s *shelf) { s.copies.SetFault(providers.Malformed) }, "a fault was switched on"},
		{"a disk that hangs", Config{}, func(s *shelf) { s.copies.SetFault(fake.HangStore) }, "no answer in time"},
	} {
		t.Run(x.name, func(t *testing.T) {
			filled(t, Config{}, func(s *shelf) {
				s.restart(x.cfg)
				x.spoil(s)
				_, err := s.mint()
				st := s.c.Status()
				if x.say == "" {
					if err != nil || st.Degraded.IsZero() {
						t.Errorf("it does not serve: %v, %v", err, st.KeepErr)
					}
					return
				}
				wantKind(t, err, NoBundle)
				if st.KeepErr == nil || !strings.Contains(st.KeepErr.Error(), x.say) || !st.Degraded.IsZero() {
					t.Errorf("status: %v, want %q", st.KeepErr, x.say)
				}
				for range 3 {
					_ = s.c.Check(s.t.Context())
				}
				if got := s.kept(); got != "failed" {
					t.Errorf("events: %s", got)
				}
			})
		})
	}
}

// The bound holds while the copy serves, whatever the clock does.
func TestCopyRunsOut(t *testing.T) {
	for name, jump := range map[string]time.Duration{"steady": 0, "set back": -12 * time.Hour} {
		filled(t, Config{}, func(s *shelf) {
			end := s.run()
			defer func() { end() }()
			s.wantServed()
			s.skew.Store(int64(jump))
			time.Sleep(23*time.Hour - time.Minute)
			s.wantServed()
			time.Sleep(time.Minute)
			s.wantWithheld("could serve until")
			time.Sleep(longestWait + longestWait/10) // the next look was planned before
			s.store.SetFault("")
			time.Sleep(calm + calm/10 + time.Second) // people are waiting
			if _, err := s.mint(); err != nil {
				t.Errorf("%s: no recovery: %v", name, err)
			}
		})
	}
	filled(t, Config{}, func(s *shelf) {
		s.wantServed()
		s.skew.Store(int64(24 * time.Hour))
		s.wantWithheld("could serve until")
		s.skew.Store(int64(0))
		s.wantServed()
	})
}

// Whoever wants a token does not wait for a disk that hangs, and neither does
// whoever looks for a new version.
func TestNobodyWaitsForTheCopy(t *testing.T) {
	inShelf(t, Config{}, func(s *shelf) {
		s.copies.SetFault(fake.HangStore)
		end := s.run()
		begin := time.Now()
		for range 100 {
			if _, err := s.mint(); err != nil {
				t.Fatal(err)
			}
			if err := s.c.Check(s.t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("100 tokens took %v", took)
		}
		time.Sleep(sealTimeout + time.Second)
		if st := s.c.Status(); st.KeepErr == nil || !st.Kept.IsZero() {
			t.Errorf("status: %+v", st)
		}
		s.set("two")
		s.issuer.SetSecret("id", "two", true)
		for range 6 { // a disk that refuses does not put off the next look
			s.copies.SetFault(providers.Denied)
			time.Sleep(time.Minute)
			if _, err := s.mint(); err != nil {
				t.Fatal(err)
			}
		}
		s.wantVersion("2")
		s.copies.SetFault("")
		time.Sleep(10 * time.Minute)
		if st := s.c.Status(); st.KeepErr != nil || st.Kept.IsZero() {
			t.Errorf("status afterwards: %+v", st)
		}
		end()
		if got := s.kept(); got != "failed" {
			t.Errorf("events: %s", got)
		}
	})
}

// slowKeeper takes its time.
type slowKeeper struct{ *fake.Store }

func (k slowKeeper) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	time.Sleep(time.Second)
	return k.Store.Fetch(ctx, ref, have)
}

// With a manager that hangs, those who come while it is waited for wait for it
// once.
func TestStartWithAManagerThatHangs(t *testing.T) {
	filled(t, Config{}, func(s *shelf) {
		s.store.SetFault(fake.HangStore)
		end := s.run()
		synctest.Wait() // it has the turn
		begin := time.Now()
		s.wantServed()
		if took := time.Since(begin); took > startPatience {
			t.Errorf("the first token took %v", took)
		}
		end()
	})
	// Nor does anybody get an error while the copy is read.
	filled(t, Config{}, func(s *shelf) {
		s.keeper = slowKeeper{s.copies}
		s.restart(Config{})
		end := s.run()
		synctest.Wait()
		s.wantServed()
		end()
	})
}

// A process that ends begins no brown-out.
func TestEndIsNoOutage(t *testing.T) {
	filled(t, Config{}, func(s *shelf) {
		s.store.SetFault(fake.HangStore)
		end := s.run()
		time.Sleep(time.Second)
		end()
		if st := s.c.Status(); !st.Degraded.IsZero() {
			t.Error("a brown-out at the end")
		}
	})
	// And one that ends while the disk hangs ends at once, and complains of nothing.
	inShelf(t, Config{}, func(s *shelf) {
		s.copies.SetFault(fake.HangStore)
		end := s.run()
		if _, err := s.mint(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		begin := time.Now()
		end()
		if st := s.c.Status(); st.KeepErr != nil || time.Since(begin) > 0 {
			t.Errorf("%v, after %v", st.KeepErr, time.Since(begin))
		}
	})
	// That a caller has no time left is an outage all the same.
	filled(t, Config{}, func(s *shelf) {
		s.store.SetFault(fake.HangStore)
		ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
		defer cancel()
		_, _ = s.c.Mint(ctx, oidc.Request{})
		if s.c.Current() == nil {
			t.Error("the copy was not looked at")
		}
	})
}

// A changed configuration does not launder a copy.
func TestReloadKeepsTheMark(t *testing.T) {
	filled(t, Config{}, func(s *shelf) {
		s.wantServed()
		begin := time.Now()
		next := func(cfg Config) {
			old := s.c
			s.restart(cfg)
			s.c.Adopt(old)
		}
		until := func(want time.Duration) {
			t.Helper()
			s.wantServed()
			if got := s.c.Status().Degraded.Sub(begin); got != want {
				t.Errorf("degraded for another %v, want %v", got, want)
			}
		}
		next(Config{})
		until(23 * time.Hour)
		s.c.keep(s.t.Context())
		if s.puts() != 1 {
			t.Error("a copy was made of a copy")
		}
		next(Config{KeepFor: 48 * time.Hour})
		until(47 * time.Hour)
		next(Config{KeepFor: 2 * time.Hour})
		until(time.Hour)
		s.keeper = nil
		next(Config{})
		until(time.Hour)
		s.keeper = s.copies
		next(Config{KeepFor: time.Hour})
		s.wantWithheld("could serve until")
		next(Config{})
		until(23 * time.Hour)
		// What the manager has said stays said.
		s.store.SetFault(providers.NotFound)
		_ = s.c.Check(s.t.Context())
		s.store.SetFault(providers.Unavailable)
		next(Config{})
		s.wantWithheld("serves no longer")
	})
	// What serves from another place is no copy of this one.
	inShelf(t, Config{}, func(s *shelf) {
		s.use()
		s.store.Set("other", map[string]string{"client_id": "id", "client_secret": "bad"})
		old := s.c
		s.restart(Config{Spec: providers.Spec{Ref: providers.Ref{Path: "other"}}})
		s.c.Adopt(old)
		_ = s.c.Check(s.t.Context())
		s.use()
		if s.puts() != 1 {
			t.Error("a copy of what is elsewhere")
		}
	})
	// And what the manager has not confirmed to the new one is not sealed by it.
	inShelf(t, Config{}, func(s *shelf) {
		if _, err := s.mint(); err != nil {
			t.Fatal(err)
		}
		old := s.c
		s.restart(Config{})
		s.c.Adopt(old)
		if _, err := s.mint(); err != nil {
			t.Fatal(err)
		}
		s.c.keep(s.t.Context())
		if s.puts() != 0 {
			t.Error("a copy without a date")
		}
	})
}

// A copy of several secrets has their versions: they are not read again when
// the manager has the same ones.
func TestCopyOfSeveralSecrets(t *testing.T) {
	cfg := Config{Hosts: 3, Spec: providers.Spec{Ref: providers.Ref{Path: "app"}, Fields: map[string]providers.Field{"api_key": {Ref: providers.Ref{Path: "key"}, Key: "k"}}}}
	inShelf(t, cfg, func(s *shelf) {
		s.store.Set("key", map[string]string{"k": "key-1"})
		s.use()
		s.store.SetFault(providers.Unavailable)
		s.restart(cfg)
		s.wantServed()
		s.wantVersion("1+1")
		live := s.c.Current()
		if got := slices.Sorted(maps.Keys(live.Fields)); fmt.Sprint(got) != "[api_key client_id client_secret]" {
			t.Errorf("fields: %v", got)
		}
		s.store.SetFault("")
		if err := s.c.Check(s.t.Context()); err != nil || s.c.Current() != live || !s.c.Status().Degraded.IsZero() {
			t.Errorf("after the outage: %v, %+v", err, s.c.Status())
		}
	})
}

// The issuer refuses the copy's version while the manager is down; when it is
// back, its newest version is tried at once.
func TestDeadCopy(t *testing.T) {
	filled(t, Config{}, func(s *shelf) {
		s.issuer.SetSecret("id", "two", false)
		_, err := s.mint()
		wantKind(t, err, Rejected)
		for range 5 {
			_, err = s.c.Mint(s.t.Context(), oidc.Request{})
			wantKind(t, err, Rejected)
			time.Sleep(time.Minute)
		}
		if n := s.issuer.Stats().Refused; n != 1 {
			t.Errorf("a dead secret was presented %d times", n)
		}
		s.set("two")
		s.store.SetFault("")
		end := s.run()
		time.Sleep(time.Minute + 10*time.Second)
		if _, err := s.mint(); err != nil {
			t.Error(err)
		}
		s.wantVersion("2")
		end()
	})
}

// A process that began with a version that the issuer then refuses goes back to
// the copy, if the manager is down by then.
func TestFallBackToTheCopy(t *testing.T) {
	inShelf(t, Config{}, func(s *shelf) {
		s.use()
		s.set("bad")
		s.restart(Config{})
		if err := s.c.Check(s.t.Context()); err != nil {
			t.Fatal(err)
		}
		s.wantVersion("2")
		s.store.SetFault(fake.HangStore)
		s.wantServed()
		s.wantVersion("1")
		s.store.SetFault("")
		if err := s.c.Check(s.t.Context()); err != nil || !s.c.Degraded().IsZero() {
			t.Errorf("%v, degraded until %s", err, s.c.Degraded())
		}
		s.wantVersion("1")
		if n := s.issuer.Stats().Refused; n != 1 {
			t.Errorf("the bad secret was presented %d times", n)
		}
	})
}

// With one secret at the issuer, the copy of the version before is dead: the new
// one is sealed as soon as it has worked.
func TestNewVersionIsCopiedAtOnce(t *testing.T) {
	inShelf(t, Config{}, func(s *shelf) {
		s.use()
		s.issuer.SetSecret("id", "two", false)
		s.set("two")
		_ = s.c.Check(s.t.Context())
		s.wantVersion("2")
		s.c.keep(s.t.Context())
		if got := s.copied()["version"]; !got.Equal(secret.FromString("2")) || s.puts() != 2 {
			s.t.Errorf("%d copies", s.puts())
		}
	})
}

// A reload has put another credential in its place: the copy is not the old
// one's any more.
func TestOldConfigurationLeavesTheCopy(t *testing.T) {
	inShelf(t, Config{}, func(s *shelf) {
		s.use()
		old := s.c
		s.restart(Config{})
		old.ledger = s.c.ledger // of one process
		defer s.run()()
		time.Sleep(time.Second) // it may seal one of its own
		made := s.puts()
		old.withdraw(s.t.Context(), &providers.Error{Kind: providers.NotFound})
		old.mu.Lock()
		old.kept = kept{}
		old.mu.Unlock()
		old.keep(s.t.Context())
		if s.puts() != made || len(s.copied()) == 0 {
			s.t.Errorf("%d copies more, and %d fields of the last", s.puts()-made, len(s.copied()))
		}
	})
}
