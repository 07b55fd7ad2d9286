package rotation

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// bench is one credential with a real audit log; issuer and secrets manager
// obey the test at the wire.
type bench struct {
	t      *testing.T
	dir    string
	issuer *fake.Issuer
	store  *fake.Store
	clock  *clock.Bubble
	keeper Keeper // nil: none
	c      *Credential
	stop   func()
}

func inBench(t *testing.T, cfg Config, f func(b *bench)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, dir: dir, issuer: fake.NewIssuer(fake.Client{ID: "id", Secret: "one"}), store: fake.NewStore(), clock: clock.NewBubble()}
		b.set("one")
		b.start(cfg)
		defer func() { b.stop() }()
		f(b)
	})
}

func (b *bench) set(s string) {
	b.store.Set("app", map[string]string{"client_id": "id", "client_secret": s})
}

func (b *bench) start(cfg Config) {
	b.t.Helper()
	if cfg.Spec.Path == "" {
		cfg.Spec.Path = "app"
	}
	cfg.Client = "app"
	log, err := audit.Open(audit.Config{Anchor: "none"}, audit.Options{Dir: filepath.Join(b.dir, "audit"), Clock: b.clock})
	if err != nil {
		b.t.Fatal(err)
	}
	issuer, err := oidc.Open(oidc.Profile{TokenEndpoint: "https://issuer.example" + fake.TokenPath}, b.issuer.RoundTripper(), b.clock)
	if err != nil {
		b.t.Fatal(err)
	}
	ledger, err := OpenLedger(b.dir, "app")
	if err != nil {
		b.t.Fatal(err)
	}
	b.c, err = New(cfg, Deps{Provider: b.store, Issuer: issuer, Audit: log, Clock: b.clock, Ledger: ledger, Uses: new(atomic.Uint64), Keeper: b.keeper})
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = log.Run(ctx) }()
	b.stop = func() { cancel(); <-done }
}

// run lets the credential watch by itself until the returned function is called.
func (b *bench) run() (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = b.c.Run(ctx) }()
	return func() { cancel(); <-done }
}

func (b *bench) mint() (Minted, error) { return b.c.Mint(b.t.Context(), oidc.Request{}) }

func (b *bench) wantVersion(v providers.Version) {
	b.t.Helper()
	if got := b.c.Status().Version; got != v {
		b.t.Errorf("version %q serves, want %q (%+v)", got, v, b.c.Status())
	}
}

func wantKind(t testing.TB, err error, k Kind) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Kind != k || e.Detail == "" {
		t.Fatalf("error %v, want kind %s", err, k)
	}
	return e
}

// If the current version dies while a newer one exists, the newer is tried at
// once, by the same call.
func TestDeadVersionIsReplacedByTheSameMint(t *testing.T) {
	inBench(t, Config{}, func(b *bench) {
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		b.set("two")
		b.issuer.SetSecret("id", "two", false)
		m, err := b.mint()
		if err != nil || m.Live.Version != "2" {
			t.Fatalf("%+v, %v", m.Live, err)
		}
		if s := b.issuer.Stats(); s.Minted != 2 || s.Refused != 1 {
			t.Errorf("%+v, want one refusal and the token that proved version 2", s)
		}
	})
}

// An attempt whose outcome is unknown counts after a restart.
func TestIntentSurvivesADeath(t *testing.T) {
	inBench(t, Config{Failures: 2}, func(b *bench) {
		for range 2 {
			ctx, cancel := context.WithCancel(b.t.Context())
			b.issuer.Set(fake.Fault{Kind: fake.Hang})
			go func() { _, _ = b.c.Mint(ctx, oidc.Request{}) }()
			synctest.Wait() // in flight: this is where the process dies
			file, err := os.ReadFile(filepath.Join(b.dir, "app.json"))
			if err != nil || !strings.Contains(string(file), "intent") {
				t.Fatalf("the attempt is not on the disk: %s, %v", file, err)
			}
			cancel()
			synctest.Wait()
			b.stop()
			if err := os.WriteFile(filepath.Join(b.dir, "app.json"), file, 0o600); err != nil {
				t.Fatal(err)
			}
			b.start(Config{Failures: 2})
		}
		b.issuer.Set(fake.Fault{})
		before := b.issuer.Stats().Requests
		_, err := b.mint()
		if e := wantKind(t, err, Rejected); e.Code != "budget" || e.RetryAfter <= 0 || e.RetryAfter > time.Hour {
			t.Errorf("%+v", e)
		}
		if n := b.issuer.Stats().Requests; n != before {
			t.Errorf("%d requests beyond the budget", n-before)
		}
		time.Sleep(time.Hour)
		if _, err := b.mint(); err != nil {
			t.Error(err)
		}
	})
}

func TestNothingIsAttemptedThatCannotBeRecorded(t *testing.T) {
	inBench(t, Config{}, func(b *bench) {
		b.c.ledger.file = filepath.Join(b.dir, "gone", "app.json")
		_, err := b.mint()
		wantKind(t, err, StateUnwritable)
		if n := b.issuer.Stats().Requests; n != 0 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestExpiredSecretIsNotUsed(t *testing.T) {
	inBench(t, Config{}, func(b *bench) {
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		live := *b.c.Current()
		live.Expires = b.clock.Now().Wall.Add(time.Minute)
		b.c.current.Store(&live)
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		_, err := b.mint()
		wantKind(t, err, NoBundle)
	})
}

// The manager goes back to the version that serves: what waited is forgotten.
func TestManagerGoesBack(t *testing.T) {
	inBench(t, Config{}, func(b *bench) {
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		b.set("bad")
		_ = b.c.Check(b.t.Context())
		if s := b.c.Status(); s.Candidate != "2" {
			t.Fatalf("%+v", s)
		}
		back := &pinned{b.store, "1"}
		b.c.deps.Provider = back
		if err := b.c.Check(b.t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := b.c.Status(); s.Candidate != "" || s.Version != "1" {
			t.Errorf("%+v", s)
		}
	})
}

// pinned reads one version of a store, as a manager whose label was moved.
type pinned struct {
	providers.Provider
	v providers.Version
}

func (p *pinned) Fetch(ctx context.Context, r providers.Ref, have providers.Version) (providers.Bundle, error) {
	r.Version = p.v
	return p.Provider.Fetch(ctx, r, have)
}

// A dead version is looked for a successor twice a minute, not at the poll.
func TestDeadVersionIsLookedAfter(t *testing.T) {
	inBench(t, Config{Poll: time.Hour}, func(b *bench) {
		defer b.run()()
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		b.issuer.SetSecret("id", "two", false)
		_, err := b.mint()
		wantKind(t, err, Rejected)
		b.c.Wake()
		time.Sleep(time.Second)
		b.set("two")
		time.Sleep(time.Minute)
		b.wantVersion("2")
	})
}

// A candidate that could not be proved is tried again when the issuer may be
// back, not at the next poll.
func TestCandidateOutlivesAnOutage(t *testing.T) {
	inBench(t, Config{Poll: time.Hour}, func(b *bench) {
		defer b.run()()
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		b.issuer.Set(fake.Fault{Kind: fake.Unavailable})
		b.set("two")
		b.c.Wake()
		time.Sleep(5 * time.Minute)
		if s := b.c.Status(); s.Candidate != "2" || s.Version != "1" || len(s.Refused) > 0 {
			t.Fatalf("%+v", s)
		}
		b.issuer.SetSecret("id", "two", true)
		b.issuer.Set(fake.Fault{})
		time.Sleep(70 * time.Second)
		b.wantVersion("2")
	})
}

// A bundle from several secrets counts once it has stayed the same.
func TestGatheredBundleSettles(t *testing.T) {
	spec := providers.Spec{Ref: providers.Ref{Path: "app"}, Fields: map[string]providers.Field{"api_key": {Key: "key", Ref: providers.Ref{Path: "other"}}}}
	cfg := Config{Spec: spec, Settle: 30 * time.Second, Poll: time.Hour}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, dir: dir, issuer: fake.NewIssuer(fake.Client{ID: "id", Secret: "one"}), store: fake.NewStore(), clock: clock.NewBubble()}
		b.set("one")
		b.store.Set("other", map[string]string{"key": "k1"})
		b.start(cfg)
		defer func() { b.stop() }()
		defer b.run()()
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		b.wantVersion("1+1")
		b.store.Set("other", map[string]string{"key": "k2"})
		b.c.Wake()
		time.Sleep(20 * time.Second)
		b.wantVersion("1+1")
		b.set("one") // the second half comes 20 s later
		b.c.Wake()
		time.Sleep(20 * time.Second)
		b.wantVersion("1+1") // a half-changed pair was never proved
		time.Sleep(20 * time.Second)
		b.wantVersion("2+2")
		if n := b.issuer.Stats().Minted; n != 2 {
			t.Errorf("%d tokens, want the first and the proof", n)
		}
	})
}

// What cannot be proved waits for an administrator.
func TestUnprovable(t *testing.T) {
	inBench(t, Config{Prove: ProveNone}, func(b *bench) {
		if err := b.c.Check(b.t.Context()); err != nil {
			t.Fatal(err)
		}
		b.wantVersion("1")
		b.set("two")
		if err := b.c.Check(b.t.Context()); err != nil {
			t.Fatal(err)
		}
		b.wantVersion("1")
		if ok, why, err := b.c.Accept(b.t.Context()); !ok || err != nil {
			t.Errorf("%v, %s, %v", ok, why, err)
		}
		b.wantVersion("2")
		if ok, _, _ := b.c.Accept(b.t.Context()); ok {
			t.Error("accepted what is not there")
		}
	})
	inBench(t, Config{Prove: ProveNone, AcceptUnproved: true}, func(b *bench) {
		_ = b.c.Check(b.t.Context())
		b.set("two")
		_ = b.c.Check(b.t.Context())
		b.wantVersion("2")
	})
}

func TestLedgerFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "x.json")
	l, err := OpenLedger(dir, "x")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for i := range 200 {
		if err := l.failed(versionID(strings.Repeat("v", i+1)), now.Add(time.Duration(i)*time.Second), "invalid_client"); err != nil {
			t.Fatal(err)
		}
	}
	if l, err = OpenLedger(dir, "x"); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.refusal(versionID(strings.Repeat("v", 200))); !ok || len(l.d.Refused) != keptRefusals || len(l.d.Failures) != keptRefusals {
		t.Errorf("%d refused, %d failures", len(l.d.Refused), len(l.d.Failures))
	}
	for _, bad := range []string{`{`, `{"format":2}`, `[]`} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenLedger(dir, "x"); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// A write that failed is made up for by the next, whatever that is about.
func TestLedgerMakesUpForAFailedWrite(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenLedger(dir, "x")
	if err != nil {
		t.Fatal(err)
	}
	l.file = filepath.Join(dir, "gone", "x.json")
	if err := l.failed("v", time.Now(), "invalid_client"); err == nil {
		t.Fatal("written to nowhere")
	}
	l.file = filepath.Join(dir, "x.json")
	if err := l.forget(); err != nil {
		t.Fatal(err)
	}
	if l, err = OpenLedger(dir, "x"); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.refusal("v"); !ok {
		t.Error("the refusal was lost")
	}
}

func TestBudget(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	at := func(minutes ...int) (list []intent) {
		for _, m := range minutes {
			list = append(list, intent{Version: "bad", At: now.Add(time.Duration(m) * time.Minute)})
		}
		return list
	}
	for _, c := range []struct {
		name     string
		failures []intent
		proved   versionID
		wait     int // minutes
	}{
		{"none", nil, "", 0},
		{"two of three", at(-30, -20), "", 0},
		{"three", at(-30, -20, -10), "", 30},
		{"one of them long ago", at(-90, -20, -10), "", 0},
		{"five", at(-50, -40, -30, -20, -10), "", 30},
		{"others' failures, a version that works", at(-30, -20, -10), "good", 0},
		{"the clock was set back", at(30, 20, 10), "", 70},
		{"the clock was set back by days", at(3000, 2000, 1000), "", 0},
	} {
		d := entries{Failures: c.failures, Proved: c.proved}
		got := d.exhausted(now, share(3, 1), "good")
		want := time.Time{}
		if c.wait > 0 {
			want = now.Add(time.Duration(c.wait) * time.Minute)
		}
		if !got.Equal(want) {
			t.Errorf("%s: %v, want %v", c.name, got, want)
		}
	}
}
