package rotation

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// A trial counts against the budget, waits trialPause, and leaves no refused
// version behind; what serves is not touched.
func TestTryRefused(t *testing.T) {
	inBench(t, Config{Failures: 3}, func(b *bench) {
		t := b.t
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		_, err := b.c.Try(t.Context(), "intake", pair("wrong"))
		if e := wantKind(t, err, Rejected); e.Code != "invalid_client" {
			t.Errorf("code %s", e.Code)
		}
		_, err = b.c.Try(t.Context(), "intake", pair("wrong"))
		if e := wantKind(t, err, Rejected); e.Code != "pace" || e.RetryAfter <= 0 || e.RetryAfter > trialPause {
			t.Errorf("the next attempt: %s after %s, want a pause", e.Code, e.RetryAfter)
		}
		time.Sleep(trialPause)
		_, err = b.c.Try(t.Context(), "intake", pair("wrong"))
		wantKind(t, err, Rejected)
		time.Sleep(trialPause)
		_, err = b.c.Try(t.Context(), "intake", pair("two"))
		if e := wantKind(t, err, Rejected); e.Code != "pace" {
			t.Errorf("code %s, want a longer pause", e.Code)
		}
		time.Sleep(trialPause)
		_, err = b.c.Try(t.Context(), "intake", pair("two"))
		if e := wantKind(t, err, Rejected); e.Code != "budget" {
			t.Errorf("code %s, want the budget", e.Code)
		}
		// One is kept for what is stored.
		b.set("also wrong")
		if err := b.c.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := b.issuer.Stats().Refused; n != 3 {
			t.Errorf("the issuer refused %d times, want two trials and a version", n)
		}
		if s := b.c.Status(); len(s.Refused) != 1 || s.Dead || s.Left != 3 {
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

// What an issuer does not take of another bundle is no trouble of the one that
// serves.
func TestTrialsTroubleIsItsOwn(t *testing.T) {
	inBench(t, Config{}, func(b *bench) {
		t := b.t
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		b.issuer.Set(fake.Fault{Kind: fake.Unavailable, RetryAfter: time.Hour})
		_, err := b.c.Try(t.Context(), "intake", pair("two"))
		wantKind(t, err, Unavailable)
		b.issuer.Set(fake.Fault{})
		if _, err := b.mint(); err != nil {
			t.Errorf("what serves: %v", err)
		}
	})
}

// A candidate that may not do what the one before it might is refused once,
// and says so.
func TestUnfitCandidate(t *testing.T) {
	inBench(t, Config{}, func(b *bench) {
		t := b.t
		if _, err := b.mint(); err != nil {
			t.Fatal(err)
		}
		b.set("one")
		b.issuer.Set(fake.Fault{Kind: fake.Unauthorized})
		asked := b.issuer.Stats().Requests
		for range 5 {
			if err := b.c.Check(t.Context()); err != nil && !errors.Is(err, providers.ErrUnchanged) {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
		}
		if n := b.issuer.Stats().Requests - asked; n != 1 {
			t.Errorf("it was presented %d times", n)
		}
		if s := b.c.Status(); len(s.Refused) != 1 || s.Version != "1" || s.Waiting == "" {
			t.Errorf("%+v", s)
		}
	})
}

// A trial that was refused is no refused version, not even between two writes.
func TestTrialIsNoVersion(t *testing.T) {
	inBench(t, Config{}, func(b *bench) {
		t := b.t
		_, err := b.c.Try(t.Context(), "intake", pair("wrong"))
		wantKind(t, err, Rejected)
		data, err := os.ReadFile(filepath.Join(b.dir, "app.json"))
		if err != nil || strings.Contains(string(data), "refused") || !strings.Contains(string(data), "failures") {
			t.Errorf("%s, %v", data, err)
		}
	})
}
