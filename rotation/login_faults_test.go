package rotation

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// A candidate of another client is refused with the words that end a login; it
// ends itself alone.
func TestCandidateDoesNotEndTheLogin(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		if err := p.issuer.Register(fake.Client{ID: "other", Secret: "theirs"}); err != nil {
			t.Fatal(err)
		}
		p.store.Set("app", map[string]string{"client_id": "other", "client_secret": "theirs"})
		if err := p.c.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := p.c.Status(); s.Version != "1" || s.Candidate != "2" || s.Login.Required || len(s.Refused) != 1 {
			t.Errorf("%+v, %+v", s, s.Login)
		}
		p.mustMint()
	})
}

// A person who restores an old generation and logs in gets a login that works.
func TestLoginAfterGoingBack(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		p.mustMint() // generation 2
		p.issuer.Revoke("user")
		wantKind(t, p.mint(), LoginRequired)
		p.store.Set("login", map[string]string{fieldToken: "old", fieldGeneration: "1", fieldOwner: "app1"})
		p.mustLogin()
		p.mustMint()
		p.restart("")
		p.mustMint()
	})
}

func TestLoginWhileTheManagerIsDown(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		p.store.SetFault(providers.Unavailable)
		wantKind(t, p.login(), NoBundle)
		p.mustMint() // the login that there is goes on
	})
}

// The first login with a wrong client secret: the right one is taken as soon
// as it is there, although nothing can prove it but the login.
func TestWrongSecretAtTheFirstLogin(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.store.Set("app", map[string]string{"client_id": "app", "client_secret": "wrong"})
		wantKind(t, p.login(), Rejected)
		p.store.Set("app", map[string]string{"client_id": "app", "client_secret": "s3cret"})
		if err := p.c.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.mustLogin()
		p.mustMint()
	})
}

// A manager that has taken the seal's key, and whose answer was lost.
func TestLostAnswerToTheKey(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		b, err := p.store.Fetch(t.Context(), providers.Ref{Path: "login"}, "")
		if err != nil {
			t.Fatal(err)
		}
		p.store.Set("login", map[string]string{fieldToken: text(b, fieldToken)}) // as a person would move it in
		p.restart("")
		p.c.deps.RefreshProvider = &lossy{mortalStore{p.store, p}, 1}
		wantKind(t, p.mint(), NoBundle)
		time.Sleep(2 * longestWait)
		p.store.SetFault("")
		p.mustMint()
		// What is sealed now has to open with the key that the manager has.
		p.store.SetFault(providers.Unavailable)
		p.mustMint()
		p.store.SetFault("")
		p.restart("")
		p.mustMint()
	})
}

// lossy writes, and loses the answers of the first few times.
type lossy struct {
	mortalStore
	n int
}

func (l *lossy) Put(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret, expect providers.Version) (providers.Version, error) {
	v, err := l.mortalStore.Put(ctx, ref, fields, expect)
	if l.n > 0 {
		l.n--
		return "", &providers.Error{Kind: providers.Unavailable, Message: "the answer was lost"}
	}
	return v, err
}

func TestLogout(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		if ended, err := p.c.Logout(t.Context(), nil); ended || err != nil {
			t.Fatalf("nobody is logged in: %t, %v", ended, err)
		}
		p.mustLogin()
		out := func(err error) error {
			_, err = p.c.Logout(t.Context(), func(context.Context, oidc.Material, secret.Secret) error { return err })
			return err
		}
		// An issuer that does not answer has not revoked anything.
		down := &oidc.Error{Kind: oidc.Unavailable, Status: http.StatusServiceUnavailable, Message: "down"}
		if err := out(down); !errors.Is(err, down) {
			t.Fatal(err)
		}
		p.mustMint()
		// One that cannot revoke leaves a token that is not used any more,
		// whatever is retried.
		if err := out(&oidc.Error{Kind: oidc.Refused, Message: "no endpoint"}); err == nil {
			t.Fatal("no error")
		}
		asked := p.issuer.Stats().Requests
		wantKind(t, p.mint(), LoginRequired)
		if err := p.c.Retry(); err != nil {
			t.Fatal(err)
		}
		p.restart("")
		wantKind(t, p.mint(), LoginRequired)
		if b, err := p.store.Fetch(t.Context(), providers.Ref{Path: "login"}, ""); err != nil || !b.Fields[fieldToken].Empty() {
			t.Errorf("%v, the manager still has it", err)
		}
		if n := p.issuer.Stats().Requests - asked; n != 0 {
			t.Errorf("%d requests", n)
		}
		p.mustLogin()
		p.mustMint()
	})
}

// The same while the manager is down: what is recorded here holds.
func TestLogoutWhileTheManagerIsDown(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		p.store.SetFault(providers.Unavailable)
		if ended, err := p.c.Logout(t.Context(), func(context.Context, oidc.Material, secret.Secret) error { return nil }); !ended || err != nil {
			t.Fatal(ended, err)
		}
		p.store.SetFault("")
		p.restart("")
		if err := p.c.Retry(); err != nil {
			t.Fatal(err)
		}
		e := wantKind(t, p.mint(), LoginRequired)
		if !strings.Contains(e.Detail, "administrator") {
			t.Errorf("%q", e.Detail)
		}
	})
}

// A host that loses the race for a write leaves the other's login alone.
func TestTakenOverDuringAWrite(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		p.store.Set("login", map[string]string{fieldToken: "theirs", fieldGeneration: "1", fieldOwner: "app2"})
		p.c.login.pending = true
		if err := p.c.pushLogin(t.Context(), p.c.login); providers.KindOf(err) != providers.Conflict {
			t.Fatal(err)
		}
		b, err := p.store.Fetch(t.Context(), providers.Ref{Path: "login"}, "")
		if err != nil || text(b, fieldOwner) != "app2" {
			t.Errorf("%v, %s", err, text(b, fieldOwner))
		}
		wantKind(t, p.mint(), LoginRequired)
	})
}

// Non-rotating refresh tokens: a takeover is noticed although nothing is
// written here.
func TestTakenOverWithoutRotation(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.issuer.RotateRefresh = false
		p.mustLogin()
		p.mustMint()
		first := p.c
		p.stop()
		p.dir, p.owner = filepath.Join(filepath.Dir(p.dir), "other"), "app2"
		p.start()
		p.mustLogin()
		_, err := first.Mint(t.Context(), oidc.Request{})
		if e := wantKind(t, err, LoginRequired); !strings.Contains(e.Detail, "app2") {
			t.Errorf("%q", e.Detail)
		}
	})
}

// Whoever can write the refresh secret cannot make the newest token vanish: a
// seal that was not opened, or that holds what the manager lacks, is kept.
func TestTamperedRefreshSecret(t *testing.T) {
	for name, change := range map[string]map[string]string{
		"a generation of the far future":  {fieldGeneration: "1099511627775"},
		"no generation that there can be": {fieldGeneration: "9223372036854775807"},
		"no key":                          {fieldKey: ""},
		"a key that is none":              {fieldKey: "not-a-key"},
		"another key":                     {fieldKey: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},
	} {
		t.Run(name, func(t *testing.T) {
			inPortal(t, func(p *portal) {
				t := p.t
				p.mustLogin()
				p.store.SetFault(providers.Unavailable)
				p.mustMint() // generation 2 is in the seal alone
				p.store.SetFault("")
				b, err := p.store.Fetch(t.Context(), providers.Ref{Path: "login"}, "")
				if err != nil {
					t.Fatal(err)
				}
				good, bad := map[string]string{}, map[string]string{}
				for f := range b.Fields {
					good[f], bad[f] = text(b, f), text(b, f)
				}
				for f, v := range change {
					if bad[f] = v; v == "" {
						delete(bad, f)
					}
				}
				p.store.Set("login", bad)
				p.restart("")
				if name != "no generation that there can be" { // which counts as none, so that the seal is newer
					wantKind(t, p.mint(), LoginRequired) // the issuer has replaced that token
				}
				p.mustHaveKept()
				if name == "a generation of the far future" { // the seal was left where it is
					p.store.Set("login", good)
					p.restart("")
					p.mustMint()
				}
			})
		})
	}
}

// mustHaveKept says that generation 2 is on this host, or in the manager.
func (p *portal) mustHaveKept() {
	p.t.Helper()
	files, _ := filepath.Glob(filepath.Join(p.dir, "app.*.login*"))
	if len(files) == 0 && p.generation() != "2" && p.generation() != "3" {
		p.t.Error("the newest token is nowhere")
	}
}

// Another issuer gets nothing of this one's.
func TestRefreshTokenOfAnotherIssuer(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		p.c.deps.IssuerName = "https://elsewhere.example/token"
		other, err := New(p.c.cfg, p.c.deps)
		if err != nil {
			t.Fatal(err)
		}
		asked := p.issuer.Stats().Requests
		_, err = other.Mint(t.Context(), oidc.Request{})
		if e := wantKind(t, err, LoginRequired); !strings.Contains(e.Detail, "another issuer") || p.issuer.Stats().Requests != asked {
			t.Errorf("%q after %d requests", e.Detail, p.issuer.Stats().Requests-asked)
		}
	})
}

// What a secret says of its owner is shown within bounds.
func TestOwnerIsBounded(t *testing.T) {
	inPortal(t, func(p *portal) {
		p.store.Set("login", map[string]string{fieldToken: "t", fieldOwner: "x\x1b[2J\n" + strings.Repeat("y", 10_000)})
		if e := wantKind(p.t, p.mint(), LoginRequired); len(e.Detail) > 400 || strings.ContainsAny(e.Detail, "\x1b\n") {
			p.t.Errorf("%q", e.Detail)
		}
	})
}

// Another secret, another login: a seal is of one place.
func TestSealOfAnotherPlace(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		p.store.SetFault(providers.Unavailable)
		p.mustMint()
		p.store.SetFault("")
		was := p.c.login
		l := p.c.ledger.loginOf("app", Refresh{Provider: "m", Ref: providers.Ref{Path: "elsewhere"}})
		if l == was || l.file == was.file {
			t.Fatal("two places share a login")
		}
		var err error
		if l.key, err = was.key.Clone(); err != nil {
			t.Fatal(err)
		}
		l.file = was.file
		if _, _, err := l.unseal(); err == nil {
			t.Error("the seal of another place was opened")
		}
	})
}

// A manager that is down is not asked at every refresh.
func TestManagerIsLeftAlone(t *testing.T) {
	inPortal(t, func(p *portal) {
		p.mustLogin()
		p.store.SetFault(providers.Unavailable)
		p.mustMint()
		before := p.store.Stats()
		for range 10 {
			p.mustMint()
		}
		if after := p.store.Stats(); after.Faults-before.Faults > 1 {
			p.t.Errorf("%+v, was %+v", after, before)
		}
	})
}
