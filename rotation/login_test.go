package rotation

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// portal is a client that a person logs in, at an issuer that replaces the
// refresh token each time, and whose host can be killed at any step.
type portal struct {
	t      testing.TB
	issuer *fake.MijnKlantportaal
	store  *fake.Store
	clock  *clock.Bubble
	owner  string

	dir  string
	log  *audit.Log
	c    *Credential
	stop func()

	at   string        // the step at which the process dies; empty: it lives
	dead chan struct{} // closed at the end of the test: what was killed may return
	died chan string   // gets the directory as it was then
}

// The steps of a refresh.
const (
	beforeRequest = "before the request"
	afterAnswer   = "after the issuer's answer"
	beforePut     = "before the manager has it"
	afterPut      = "after the manager has it"
)

const redirect = "http://127.0.0.1/callback"

func inPortal(t *testing.T, f func(p *portal)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { newPortal(t, f) })
}

func newPortal(t testing.TB, f func(p *portal)) {
	dir, err := os.MkdirTemp("", "portal-") // not the test's: rapid runs many in one
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	p := &portal{t: t, issuer: &fake.MijnKlantportaal{RotateRefresh: true}, store: fake.NewStore(), clock: clock.NewBubble(), owner: "app1",
		dir: filepath.Join(dir, "0"), dead: make(chan struct{}), died: make(chan string, 1)}
	if err := p.issuer.Register(fake.Client{ID: "app", Secret: "s3cret", RedirectURIs: []string{redirect}}); err != nil {
		t.Fatal(err)
	}
	p.store.Set("app", map[string]string{"client_id": "app", "client_secret": "s3cret"})
	p.start()
	defer func() { close(p.dead); p.stop(); synctest.Wait() }()
	f(p)
}

func (p *portal) start() {
	p.t.Helper()
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	log, err := audit.Open(audit.Config{Anchor: "none"}, audit.Options{Dir: filepath.Join(p.dir, "audit"), Clock: p.clock})
	if err != nil {
		p.t.Fatal(err)
	}
	issuer, err := oidc.Open(oidc.Profile{Grant: oidc.AuthorizationCode, TokenEndpoint: "https://portal.example/oauth/tokens", RequestFormat: "json", TokenType: "optional",
		AuthorizationEndpoint: "https://portal.example/oauth/authorize", RedirectURI: redirect}, mortalIssuer{p}, p.clock)
	if err != nil {
		p.t.Fatal(err)
	}
	ledger, err := OpenLedger(p.dir, "app")
	if err != nil {
		p.t.Fatal(err)
	}
	p.log = log
	p.c, err = New(Config{Client: "app", Spec: providers.Spec{Ref: providers.Ref{Path: "app"}}, Prove: ProveRefresh,
		Refresh: &Refresh{Provider: "m", Ref: providers.Ref{Path: "login"}, Owner: p.owner}},
		Deps{Provider: p.store, RefreshProvider: mortalStore{p.store, p}, Issuer: issuer, IssuerName: "https://portal.example/oauth/tokens", Audit: log, Clock: p.clock, Ledger: ledger, Uses: new(atomic.Uint64)})
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = log.Run(ctx) }()
	p.stop = func() { cancel(); <-done }
}

// step is where a process may die: its directory is copied as it is, and it
// does nothing any more.
func (p *portal) step(name string) error {
	if p.at != name {
		return nil
	}
	p.at = ""
	next := filepath.Join(filepath.Dir(p.dir), rand.Text())
	if err := os.CopyFS(next, os.DirFS(p.dir)); err != nil {
		p.t.Error(err)
	}
	p.died <- next
	<-p.dead
	return errors.New("killed")
}

type mortalIssuer struct{ p *portal }

func (m mortalIssuer) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := m.p.step(beforeRequest); err != nil {
		return nil, err
	}
	resp, err := m.p.issuer.RoundTripper().RoundTrip(r)
	if err == nil {
		err = m.p.step(afterAnswer)
	}
	return resp, err
}

type mortalStore struct {
	*fake.Store
	p *portal
}

func (m mortalStore) Put(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret, expect providers.Version) (providers.Version, error) {
	if err := m.p.step(beforePut); err != nil {
		return "", err
	}
	v, err := m.Store.Put(ctx, ref, fields, expect)
	if err == nil {
		err = m.p.step(afterPut)
	}
	return v, err
}

// restart kills the process at the step of the next refresh, or now, and
// starts another on what it left.
func (p *portal) restart(at string) {
	p.t.Helper()
	if at == "" {
		next := filepath.Join(filepath.Dir(p.dir), rand.Text())
		if err := os.CopyFS(next, os.DirFS(p.dir)); err != nil {
			p.t.Fatal(err)
		}
		p.stop()
		p.dir = next
	} else {
		p.at = at
		c := p.c
		go func() { _, _ = c.Mint(context.Background(), oidc.Request{}) }()
		p.dir = <-p.died
		p.stop()
	}
	p.start()
}

// login does what broker login does, with a browser that consents.
func (p *portal) login() error {
	p.t.Helper()
	a := oidc.Authorization{RedirectURI: redirect, State: rand.Text(), Verifier: secret.FromString(rand.Text() + rand.Text())}
	live, err := p.c.Bundle(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	page, err := p.c.deps.Issuer.AuthorizeURL(p.t.Context(), oidc.Material(live.Fields), a)
	if err != nil {
		p.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, page, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := p.issuer.RoundTripper().RoundTrip(req)
	if err != nil {
		p.t.Fatal(err)
	}
	back, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || back.Query().Get("state") != a.State {
		p.t.Fatalf("%s: %v", resp.Status, err)
	}
	_, err = p.c.Login(p.t.Context(), a, secret.FromString(back.Query().Get("code")))
	return err
}

func (p *portal) mustLogin() {
	p.t.Helper()
	if err := p.login(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *portal) mint() error {
	_, err := p.c.Mint(p.t.Context(), oidc.Request{})
	return err
}

func (p *portal) mustMint() {
	p.t.Helper()
	if err := p.mint(); err != nil {
		p.t.Fatal(err)
	}
}

// sealed says whether a seal is on the disk, and looks that it tells nothing.
func (p *portal) sealed() bool {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, "app."+strings.TrimSuffix(p.c.login.place, ":")+".login"))
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	if err != nil {
		p.t.Fatal(err)
	}
	_ = p.c.login.token.Use(func(b []byte) error {
		if strings.Contains(string(data), string(b)) {
			p.t.Error("the seal holds the token in the clear")
		}
		return nil
	})
	return true
}

// generation is what the manager has.
func (p *portal) generation() string {
	p.t.Helper()
	b, err := p.store.Fetch(context.Background(), providers.Ref{Path: "login"}, "")
	if err != nil {
		p.t.Fatal(err)
	}
	return text(b, fieldGeneration)
}

func TestLogin(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		e := wantKind(t, p.mint(), LoginRequired)
		if !strings.Contains(e.Detail, "broker login app") || p.issuer.Stats().Requests != 0 {
			t.Errorf("%q after %d requests", e.Detail, p.issuer.Stats().Requests)
		}
		p.mustLogin()
		for range 3 {
			p.mustMint()
		}
		if s := p.c.Status(); s.Login.Required || s.Login.Pending || s.Login.Generation != 4 || p.generation() != "4" || p.sealed() {
			t.Errorf("%+v, the manager has %s, sealed %t", s.Login, p.generation(), p.sealed())
		}
		p.restart("")
		p.mustMint()
		if p.generation() != "5" {
			t.Errorf("the manager has %s", p.generation())
		}
		// What this host writes is no new version of the bundle.
		if s := p.c.Status(); s.Version != "1" || s.Candidate != "" {
			t.Errorf("%+v", s)
		}
	})
}

// SIGKILL at every step but one loses nothing; there the old token is tried
// once, and then a person is asked for.
func TestKillAtEveryStep(t *testing.T) {
	for at, lost := range map[string]bool{beforeRequest: false, afterAnswer: true, beforePut: false, afterPut: false} {
		t.Run(at, func(t *testing.T) {
			inPortal(t, func(p *portal) {
				t := p.t
				p.mustLogin()
				p.mustMint()
				p.restart(at)
				before := p.issuer.Stats().Requests
				err := p.mint()
				if !lost {
					if err != nil || p.generation() != map[string]string{beforeRequest: "3", beforePut: "4", afterPut: "4"}[at] || p.sealed() {
						t.Fatalf("%v, the manager has %s, sealed %t", err, p.generation(), p.sealed())
					}
					p.mustMint()
					return
				}
				wantKind(t, err, LoginRequired)
				p.restart("")
				wantKind(t, p.mint(), LoginRequired)
				if n := p.issuer.Stats().Requests - before; n != 1 {
					t.Errorf("the old token was tried %d times", n)
				}
				p.mustLogin()
				p.mustMint()
			})
		})
	}
}

func TestKilledTwiceInOneStep(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		p.restart(beforeRequest)
		p.restart(beforeRequest)
		before := p.issuer.Stats().Requests
		e := wantKind(t, p.mint(), LoginRequired)
		if p.issuer.Stats().Requests != before || !strings.Contains(e.Detail, "killed twice") {
			t.Errorf("%q", e.Detail)
		}
	})
}

func TestManagerDownDuringRefresh(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		p.store.SetFault(providers.Unavailable)
		p.mustMint()
		p.mustMint()
		if s := p.c.Status().Login; !s.Pending || s.Reason == "" || s.Generation != 3 || !p.sealed() {
			t.Errorf("%+v, sealed %t", s, p.sealed())
		}
		p.restart("")
		wantKind(t, p.mint(), NoBundle) // nothing can be read
		p.store.SetFault("")
		if p.generation() != "1" {
			t.Fatalf("the manager has %s", p.generation())
		}
		time.Sleep(longestWait)
		if err := p.c.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := p.c.Status().Login; s.Pending || p.generation() != "3" || p.sealed() {
			t.Errorf("%+v, the manager has %s, sealed %t", s, p.generation(), p.sealed())
		}
		p.mustMint()
	})
}

// A withdrawn consent is told apart from an outage, and is not asked about
// again and again.
func TestRevokedByTheUser(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		p.issuer.Set(fake.Fault{Kind: fake.Maintenance})
		wantKind(t, p.mint(), Unavailable)
		p.issuer.Set(fake.Fault{})
		time.Sleep(longestWait)
		p.mustMint()
		p.issuer.Revoke("user")
		wantKind(t, p.mint(), LoginRequired)
		before := p.issuer.Stats().Requests
		for range 5 {
			wantKind(t, p.mint(), LoginRequired)
			time.Sleep(time.Minute)
			_ = p.c.Check(t.Context())
		}
		if n := p.issuer.Stats().Requests - before; n != 0 {
			t.Errorf("%d requests with a dead refresh token", n)
		}
		if s := p.c.Status(); s.Dead || !s.Login.Required {
			t.Errorf("%+v %+v: the client's secret is not in doubt", s, s.Login)
		}
		p.mustLogin()
		p.mustMint()
	})
}

// An answer that is cut off may hold a new token: the old one is tried, as
// there is nothing else, and the outcome is clear.
func TestLostAnswer(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		p.issuer.Set(fake.Fault{Kind: fake.Lost, Times: 1})
		wantKind(t, p.mint(), Unavailable)
		time.Sleep(longestWait)
		wantKind(t, p.mint(), LoginRequired)
	})
}

func TestStopWaitsForTheAnswer(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		p.issuer.Set(fake.Fault{Kind: fake.Slow, Delay: 5 * time.Second})
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		if _, err := p.c.Mint(ctx, oidc.Request{}); err != nil {
			t.Fatal(err)
		}
		if p.generation() != "2" {
			t.Errorf("the manager has %s", p.generation())
		}
	})
}

func TestOneHostOwnsTheLogin(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		first := p.c
		p.stop()
		p.dir, p.owner = filepath.Join(filepath.Dir(p.dir), "other"), "app2"
		p.start()
		e := wantKind(t, p.mint(), LoginRequired)
		if !strings.Contains(e.Detail, "app1") || p.issuer.Stats().Refreshed != 0 {
			t.Errorf("%q", e.Detail)
		}
		p.mustLogin() // takes it over
		p.mustMint()
		// The first host finds out, and leaves the other's alone.
		_, err := first.Mint(t.Context(), oidc.Request{})
		if e := wantKind(t, err, LoginRequired); !strings.Contains(e.Detail, "app2") {
			t.Errorf("%q", e.Detail)
		}
		if p.generation() != "3" {
			t.Errorf("the manager has %s", p.generation())
		}
	})
}

// A write whose answer was lost is found again, not repeated.
func TestConflictWithOneself(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		p.mustMint()
		p.c.login.version = "1" // as if the last answer had been lost
		p.c.login.pending = true
		if err := p.c.pushLogin(t.Context(), p.c.login); err != nil {
			t.Fatal(err)
		}
		if n := p.store.Stats().Puts; n != 3 { // the key, the login, the refresh
			t.Errorf("%d writes", n)
		}
		p.store.Set("login", map[string]string{fieldToken: "an old one", fieldGeneration: "1", fieldOwner: "app1"}) // a person restores
		p.mustMint()
		if p.generation() != "3" {
			t.Errorf("the manager has %s", p.generation())
		}
	})
}

func TestManagerThatCannotBeWritten(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.c.deps.RefreshProvider = struct{ providers.Provider }{p.store}
		err := p.login()
		if e := wantKind(t, err, NoBundle); !strings.Contains(e.Detail, "only be read") || p.issuer.Stats().Requests != 0 {
			t.Errorf("%q: the code was spent for nothing", e.Detail)
		}
	})
}

func TestNoRefreshToken(t *testing.T) {
	inPortal(t, func(p *portal) {
		t := p.t
		p.mustLogin()
		a := oidc.Authorization{RedirectURI: redirect, Verifier: secret.FromString(rand.Text())}
		_, err := p.c.Login(t.Context(), a, secret.FromString("wrong"))
		if e := wantKind(t, err, RequestRefused); !strings.Contains(e.Detail, "begin again") {
			t.Errorf("%q", e.Detail)
		}
		p.mustMint() // the login that there is stays
	})
}

// Whatever happens in whatever order, a login is lost only by a kill between
// the issuer's answer and the seal, and by the user's own word.
func TestLoginSurvives(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		steps := rapid.SliceOfN(rapid.SampledFrom([]string{"mint", "mint", "check", "restart", beforeRequest, beforePut, afterPut, afterAnswer,
			"manager down", "manager up", "issuer down", "issuer up", "wait"}), 1, 25).Draw(r, "steps")
		synctest.Test(t, func(t *testing.T) {
			newPortal(t, func(p *portal) { p.walk(steps) })
		})
	})
}

func (p *portal) walk(steps []string) {
	p.mustLogin()
	lost, managerDown, issuerDown := false, false, false
	for i, step := range steps {
		switch step {
		case "mint":
			_ = p.mint()
		case "check":
			_ = p.c.Check(context.Background())
		case "restart":
			p.restart("")
		case "manager down", "manager up":
			managerDown = step == "manager down"
			p.store.SetFault(map[bool]providers.Kind{true: providers.Unavailable}[managerDown])
		case "issuer down", "issuer up":
			issuerDown = step == "issuer down"
			p.issuer.Set(fake.Fault{Kind: map[bool]fake.FaultKind{true: fake.Maintenance}[issuerDown]})
		case "wait":
			time.Sleep(2 * longestWait)
		default:
			if lost || managerDown || issuerDown {
				continue // the step might not be reached
			}
			time.Sleep(2 * longestWait)
			if p.mint() != nil {
				p.t.Fatalf("step %d of %q: nothing is down, and there is no token", i, steps)
			}
			p.restart(step)
			lost = step == afterAnswer
			// Dying twice in one use is another rule, with its own test.
			time.Sleep(2 * longestWait)
			_ = p.mint()
		}
	}
	p.store.SetFault("")
	p.issuer.Set(fake.Fault{})
	time.Sleep(2 * longestWait)
	_ = p.c.Check(context.Background())
	var e *Error
	switch err := p.mint(); {
	case lost && (!errors.As(err, &e) || e.Kind != LoginRequired):
		p.t.Errorf("%q: %v, want that a login is required", steps, err)
	case !lost && err != nil:
		p.t.Errorf("%q: %v", steps, err)
	}
	if !lost && p.generation() != fmt.Sprint(p.c.Status().Login.Generation) {
		p.t.Errorf("%q: the manager has %s, this host %d", steps, p.generation(), p.c.Status().Login.Generation)
	}
}
