package rotation

import (
	"context"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/fake"

	"credentialbroker/providers"
)

func (b *bench) restart(cfg Config) { b.stop(); b.start(cfg) }

func TestPin(t *testing.T) {
	inBench(t, Config{}, func(b *bench) {
		t := b.t
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		next := func(s string) {
			b.issuer.SetSecret("id", s, true)
			b.set(s)
			if err := b.c.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		next("two")
		b.wantVersion("2")
		if why, err := b.c.Pin(t.Context(), "1", false); err != nil || why != "" {
			t.Fatal(why, err)
		}
		b.wantVersion("1")
		if b.c.Current().Proof == nil {
			t.Error("the old version was not proved")
		}
		b.set("three")
		if err := b.c.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.wantVersion("1")
		b.restart(Config{})
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		if s := b.c.Status(); s.Version != "1" || s.Pinned != "1" {
			t.Errorf("%+v", s)
		}
		b.issuer.SetSecret("id", "three", true)
		if err := b.c.Unpin(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := b.c.Status(); s.Version != "3" || s.Pinned != "" {
			t.Errorf("%+v", s)
		}
	})
}

// What cannot serve is not pinned, and what serves goes on.
func TestPinToNothingGood(t *testing.T) {
	inBench(t, Config{}, func(b *bench) {
		t := b.t
		b.set("wrong")
		b.set("one")
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		why, err := b.c.Pin(t.Context(), "2", false)
		if err != nil || !strings.Contains(why, "refused") {
			t.Errorf("%q, %v", why, err)
		}
		for _, v := range []providers.Version{"9", "../1", "1+1"} {
			if _, err := b.c.Pin(t.Context(), v, false); providers.KindOf(err) != providers.NotFound {
				t.Errorf("%s: %v", v, err)
			}
		}
		if s := b.c.Status(); s.Version != "3" || s.Pinned != "" || s.Candidate != "" {
			t.Errorf("%+v", s)
		}
		if _, err := b.mint(); err != nil {
			t.Error(err)
		}
	})
}

// A process that starts while the newest version is bad goes back to the one
// that worked last; the bad one is presented once, whatever is restarted.
func TestFallsBack(t *testing.T) {
	inBench(t, Config{}, func(b *bench) {
		t := b.t
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		b.set("bad")
		for range 3 {
			b.restart(Config{})
			m, err := b.mint()
			if err != nil || m.Live.Version != "1" {
				t.Fatalf("%+v, %v", m.Live, err)
			}
			if s := b.c.Status(); s.Version != "1" || s.Candidate != "2" || !strings.Contains(s.Waiting, "refused") {
				t.Errorf("%+v", s)
			}
		}
		if n := b.issuer.Stats().PerSecret["bad"]; n != 1 {
			t.Errorf("the bad secret was presented %d times", n)
		}
		// The manager goes on to a good one.
		b.issuer.SetSecret("id", "three", true)
		b.set("three")
		if err := b.c.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.wantVersion("3")
	})
}

// A manager that has no old version is not asked for it at every request.
func TestNothingToFallBackTo(t *testing.T) {
	inBench(t, Config{}, func(b *bench) {
		t := b.t
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		b.set("bad")
		b.restart(Config{})
		b.c.deps.Provider = &forgetful{b.store, 0}
		p := b.c.deps.Provider.(*forgetful)
		for range 10 {
			_, err := b.mint()
			wantKind(t, err, Rejected)
		}
		if p.asked != 1 {
			t.Errorf("asked %d times", p.asked)
		}
	})
}

// forgetful has the newest version alone.
type forgetful struct {
	*fake.Store
	asked int
}

func TestHostsShareTheBudget(t *testing.T) {
	for _, x := range []struct {
		failures, hosts int
		want            budget
	}{
		{3, 0, budget{3, time.Hour}},
		{3, 1, budget{3, time.Hour}},
		{3, 2, budget{1, time.Hour}},
		{3, 3, budget{1, time.Hour}},
		{3, 6, budget{1, 2 * time.Hour}},
		{10, 3, budget{3, time.Hour}},
	} {
		if got := share(x.failures, x.hosts); got != x.want {
			t.Errorf("%d failures, %d hosts: %+v, want %+v", x.failures, x.hosts, got, x.want)
		}
	}
}

// Of many hosts, each proves a new version in its own turn, an administrator's
// at once, and all at once where the old secret is dead already.
func TestHostsTakeTurns(t *testing.T) {
	for _, x := range []struct {
		cfg  Config
		now  bool
		want providers.Version
	}{
		{Config{Hosts: 1000}, false, "1"},
		{Config{Hosts: 1000}, true, "2"},
		{Config{Hosts: 1000, OneSecret: true}, false, "2"},
		{Config{}, false, "2"},
	} {
		inBench(t, x.cfg, func(b *bench) {
			t := b.t
			if _, err := b.mint(); err != nil {
				t.Fatal(err)
			}
			b.issuer.SetSecret("id", "two", true)
			b.set("two")
			check := b.c.Check
			if x.now {
				check = b.c.CheckNow
			}
			if err := check(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.wantVersion(x.want)
			end := b.run()
			defer end()
			time.Sleep(11 * time.Minute)
			b.wantVersion("2")
		})
	}
}

func (f *forgetful) Fetch(ctx context.Context, r providers.Ref, have providers.Version) (providers.Bundle, error) {
	if r.Version != "" {
		f.asked++
		return providers.Bundle{}, &providers.Error{Kind: providers.NotFound, Ref: r}
	}
	return f.Store.Fetch(ctx, r, have)
}
