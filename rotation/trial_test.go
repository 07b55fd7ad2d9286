package rotation

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

func pair(s string) map[string]secret.Secret {
	return map[string]secret.Secret{"client_id": secret.FromString("id"), "client_secret": secret.FromString(s)}
}

// What was proved before it was stored is installed with that proof, and only
// that.
func TestTry(t *testing.T) {
	inBench(t, Config{Failures: 3}, func(b *bench) {
		t := b.t
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		b.issuer.SetSecret("id", "two", true)
		how, err := b.c.Try(t.Context(), "intake", pair("two"))
		if err != nil || how != ProveMint {
			t.Fatal(how, err)
		}
		b.wantVersion("1") // nothing is stored, and nothing changed
		minted := b.issuer.Stats().Minted
		b.set("two")
		if err := b.c.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.wantVersion("2")
		if n := b.issuer.Stats().Minted; n != minted {
			t.Errorf("%d tokens more, want the one that proved it", n-minted)
		}
		if b.c.Current().Proof == nil {
			t.Error("installed without the token that proved it")
		}
		// Somebody stores another one than what was proved.
		if _, err := b.c.Try(t.Context(), "intake", pair("two")); err != nil {
			t.Fatal(err)
		}
		b.set("wrong")
		if err := b.c.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.wantVersion("2")
	})
}

// A trial counts against the budget, waits a minute, and leaves no refused
// version behind; what serves is not touched.
func TestTryRefused(t *testing.T) {
	inBench(t, Config{Failures: 2}, func(b *bench) {
		t := b.t
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		_, err := b.c.Try(t.Context(), "intake", pair("wrong"))
		if e := wantKind(t, err, Rejected); e.Code != "invalid_client" {
			t.Errorf("code %s", e.Code)
		}
		_, err = b.c.Try(t.Context(), "intake", pair("wrong"))
		if e := wantKind(t, err, Rejected); e.Code != "pace" || e.RetryAfter <= 0 || e.RetryAfter > time.Minute {
			t.Errorf("the next attempt: %s after %s, want a pause", e.Code, e.RetryAfter)
		}
		time.Sleep(time.Minute)
		_, err = b.c.Try(t.Context(), "intake", pair("wrong"))
		wantKind(t, err, Rejected)
		time.Sleep(time.Minute)
		_, err = b.c.Try(t.Context(), "intake", pair("two"))
		if e := wantKind(t, err, Rejected); e.Code != "budget" {
			t.Errorf("code %s, want the budget", e.Code)
		}
		if n := b.issuer.Stats().Refused; n != 2 {
			t.Errorf("the issuer refused %d times, want 2", n)
		}
		if s := b.c.Status(); len(s.Refused) > 0 || s.Dead || s.Left != 2 {
			t.Errorf("refused %v, dead %v, %d left for what serves", s.Refused, s.Dead, s.Left)
		}
		if _, err := b.mint(); err != nil {
			t.Errorf("what serves: %v", err)
		}
	})
}

// unasked is an API of which nothing may be asked.
type unasked struct{ t testing.TB }

func (u unasked) Probe(context.Context, *Live, *oidc.Token) error {
	u.t.Error("the API was asked")
	return nil
}

// A pair is tried while the API key is still missing: the issuer judges it, and
// the API is not asked.
func TestTryIncomplete(t *testing.T) {
	inBench(t, Config{Required: []string{"api_key", "client_id", "client_secret"}, Proving: []string{"client_id", "client_secret"}}, func(b *bench) {
		t := b.t
		b.c.deps.Prober = unasked{t}
		if how, err := b.c.Try(t.Context(), "intake", pair("one")); err != nil || how != ProveMint {
			t.Errorf("the pair alone: %q, %v", how, err)
		}
		minted := b.issuer.Stats().Minted
		_, err := b.c.Try(t.Context(), "intake", map[string]secret.Secret{"client_secret": secret.FromString("one"), "api_key": secret.FromString("k")})
		wantKind(t, err, RequestRefused)
		b.c.cfg.Prove = ProveProbe
		_, err = b.c.Try(t.Context(), "intake", pair("one"))
		wantKind(t, err, RequestRefused)
		if n := b.issuer.Stats().Minted; n != minted || minted == 0 {
			t.Errorf("%d tokens for what cannot be proved", n-minted)
		}
	})
}

// A proof does not wait for ever, nor does a bundle that lacks something count.
func TestTryIsBounded(t *testing.T) {
	inBench(t, Config{Required: []string{"client_id", "client_secret"}}, func(b *bench) {
		t := b.t
		_, err := b.c.Try(t.Context(), "intake", map[string]secret.Secret{"client_id": secret.FromString("id")})
		wantKind(t, err, RequestRefused)
		if _, err := b.c.Try(t.Context(), "intake", pair("one")); err != nil {
			t.Fatal(err)
		}
		kept := b.c.proven.fields["client_secret"]
		time.Sleep(trialLife + time.Second)
		if err := b.c.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := kept.Use(func([]byte) error { return nil }); err == nil || b.c.proven != nil {
			t.Error("the values are still in memory")
		}
		if b.c.Current().Proof != nil {
			t.Error("a proof of long ago was used")
		}
	})
}

// dated is a manager that says when a version was made.
type dated struct {
	*fake.Store
	made time.Time
}

func (d dated) Fetch(ctx context.Context, r providers.Ref, have providers.Version) (providers.Bundle, error) {
	b, err := d.Store.Fetch(ctx, r, have)
	b.Created = d.made
	return b, err
}

// Each step of a version's age is recorded once, also over restarts.
func TestAgeIsRecordedOnce(t *testing.T) {
	cfg := Config{MaxAge: 100 * time.Hour}
	inBench(t, cfg, func(b *bench) {
		t := b.t
		made := b.clock.Now().Wall
		for _, want := range []struct {
			after time.Duration
			steps string
		}{{79 * time.Hour, ""}, {81 * time.Hour, "due "}, {99 * time.Hour, "due "}, {101 * time.Hour, "due overdue "}, {200 * time.Hour, "due overdue "}} {
			time.Sleep(time.Until(made.Add(want.after)))
			b.restart(cfg)
			b.c.deps.Provider = dated{b.store, made}
			for range 2 {
				if err := b.c.Check(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := b.ages(); got != want.steps {
				t.Errorf("after %s: %q is recorded, want %q", want.after, got, want.steps)
			}
		}
	})
}

// ages are the steps of age in the audit log; what is overdue is an alarm.
func (b *bench) ages() (steps string) {
	b.t.Helper()
	time.Sleep(time.Minute) // until they are written
	for e, err := range audit.Read(filepath.Join(b.dir, "audit"), 0) {
		if err != nil {
			b.t.Fatal(err)
		}
		if e.Type != audit.SecretAge {
			continue
		}
		if (e.Detail["alarm"] != "") != (e.Code == "overdue") {
			b.t.Errorf("%s: alarm %q", e.Code, e.Detail["alarm"])
		}
		steps += e.Code + " "
	}
	return steps
}
