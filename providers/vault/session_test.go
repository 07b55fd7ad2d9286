package vault

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

var app = providers.Ref{Path: "app"}

// started is a fake with one secret and an open provider on it.
func started(t *testing.T) (*fake, providers.Provider) {
	t.Helper()
	f := newFake(t)
	f.set("app", `{"client_secret":"`+providertest.Canary+`"}`)
	return f, open(t, f.config(t), f.clk)
}

func mustFetch(t *testing.T, p providers.Provider) {
	t.Helper()
	b, err := p.Fetch(t.Context(), app, "")
	if err != nil {
		t.Fatal(err)
	}
	b.Wipe()
}

func wantKind(t *testing.T, err error, kind providers.Kind, hint string) *providers.Error {
	t.Helper()
	var e *providers.Error
	if !errors.As(err, &e) || e.Kind != kind || !strings.Contains(err.Error(), hint) {
		t.Fatalf("error %v, want kind %q with %q", err, kind, hint)
	}
	if strings.Contains(err.Error(), providertest.Canary) {
		t.Errorf("the error shows a secret: %v", err)
	}
	return e
}

func (f *fake) want(t *testing.T, counts map[string]int) {
	t.Helper()
	for prefix, n := range counts {
		if got := f.count(prefix); got != n {
			t.Errorf("%d calls %s, want %d", got, prefix, n)
		}
	}
}

const (
	login  = "PUT auth/approle/login"
	renew  = "PUT auth/token/renew-self"
	lookup = "GET auth/token/lookup-self"
	revoke = "PUT auth/token/revoke-self"
	read   = "GET secret/data/app"
)

func TestOneLoginForAll(t *testing.T) {
	f, p := started(t)
	f.want(t, map[string]int{"": 0}) // Open does not connect
	f.hold = make(chan struct{})
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if _, err := p.Fetch(t.Context(), app, ""); err != nil {
				t.Error(err)
			}
		})
	}
	until(t, func() bool { return f.count(login) == 1 })
	// Another caller's patience ends, the login goes on.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := p.Fetch(ctx, app, "")
	wantKind(t, err, providers.Unavailable, "cancelled")
	close(f.hold)
	all.Wait()
	f.want(t, map[string]int{login: 1, read: 16})
}

// until polls; what it waits for happens in another goroutine, soon.
func until(t *testing.T, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatal("did not happen")
		case <-time.After(time.Millisecond):
		}
	}
}

func TestWaitingCallersShareAFailedLogin(t *testing.T) {
	f, p := started(t)
	f.hold = make(chan struct{})
	var all sync.WaitGroup
	fetch := func() {
		_, err := p.Fetch(t.Context(), app, "")
		wantKind(t, err, providers.Unavailable, "HTTP 500")
	}
	all.Go(fetch)
	until(t, func() bool { return f.count(login) == 1 })
	for range 8 {
		all.Go(fetch)
	}
	until(t, func() bool { return inFunction("(*provider).wait(") == 8 })
	f.change(func() { f.broken["auth/approle/login"] = true })
	close(f.hold)
	all.Wait()
	f.want(t, map[string]int{login: 1})
}

// inFunction counts the goroutines that are in a function.
func inFunction(name string) int {
	buf := make([]byte, 1<<20)
	return strings.Count(string(buf[:runtime.Stack(buf, true)]), name)
}

func TestNobodyWaitsWhileAToken(t *testing.T) {
	f, p := started(t)
	f.grant.renewable = false
	mustFetch(t, p)
	f.clk.pass(41 * time.Minute)
	f.change(func() { f.hold = make(chan struct{}) })
	first := make(chan error)
	go func() { _, err := p.Fetch(t.Context(), app, ""); first <- err }()
	until(t, func() bool { return f.count(login) == 2 })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := p.Fetch(ctx, app, ""); err != nil { // with the old token, at once
		t.Error(err)
	}
	close(f.hold)
	if err := <-first; err != nil {
		t.Error(err)
	}
	f.want(t, map[string]int{login: 2, read: 3})
}

func TestRenewsAtTwoThirds(t *testing.T) {
	f, p := started(t)
	mustFetch(t, p)
	f.clk.pass(39 * time.Minute)
	mustFetch(t, p)
	f.want(t, map[string]int{login: 1, renew: 0})
	f.clk.pass(2 * time.Minute)
	mustFetch(t, p)
	mustFetch(t, p)
	f.want(t, map[string]int{login: 1, renew: 1})
	f.clk.pass(2 * time.Hour) // and nobody asked: it is dead, and we know
	mustFetch(t, p)
	f.want(t, map[string]int{login: 2, renew: 1, lookup: 0})
}

// Six hours of looks, one a minute: the calls about the token stay few, also
// where Vault renews for less and less.
func TestNoRenewalStorm(t *testing.T) {
	const looks = 6 * 60
	for _, c := range []struct {
		name          string
		grant         token
		logins, renew int // at most
	}{
		{"renewed", token{ttl: time.Hour, renewable: true}, 1, 9},
		{"longest life", token{ttl: time.Hour, max: 3 * time.Hour, renewable: true}, 3, 10},
		{"cannot be renewed", token{ttl: time.Hour}, 9, 0},
		{"batch", token{ttl: time.Hour, kind: "batch"}, 9, 0},
		{"no end", token{}, 1, 0},
		{"short", token{ttl: 90 * time.Second, renewable: true}, 1, looks},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, _ := started(t)
			f.grant = c.grant
			plain := httptest.NewServer(f) // thousands of handshakes take their time
			defer plain.Close()
			conf := f.config(t)
			conf.Address = plain.URL
			p := open(t, conf, f.clk)
			for range looks {
				mustFetch(t, p)
				f.clk.pass(time.Minute)
			}
			if l, r := f.count(login), f.count(renew); l > c.logins || r > c.renew || l == 0 {
				t.Errorf("%d logins, %d renewals; want at most %d and %d", l, r, c.logins, c.renew)
			}
			f.want(t, map[string]int{lookup: 0, read: looks}) // no look met a dead token
			_ = p.Close()
		})
	}
}

func TestRenewalRefusedLogsIn(t *testing.T) {
	f, p := started(t)
	mustFetch(t, p)
	f.change(func() {
		for _, k := range f.tokens {
			k.renewable = false
		}
	})
	f.clk.pass(41 * time.Minute)
	mustFetch(t, p)
	f.want(t, map[string]int{login: 2, renew: 1})
}

// With Vault's token endpoints out of order a living token serves on, and they
// are not asked at every look.
func TestLivingTokenServesOn(t *testing.T) {
	for _, c := range []struct {
		name      string
		renewable bool
		broken    string
		says      string // once the token is over
	}{
		{"renewal", true, "auth/token/renew-self", ""},
		{"login", false, "auth/approle/login", "HTTP 500"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, p := started(t)
			f.grant.renewable = c.renewable
			mustFetch(t, p)
			f.clk.pass(41 * time.Minute)
			f.change(func() { f.broken[c.broken] = true })
			n := f.count("PUT " + c.broken)
			for range 20 {
				mustFetch(t, p)
			}
			f.want(t, map[string]int{"PUT " + c.broken: n + 1, "PUT ": 2})
			f.clk.pass(20 * time.Minute)
			_, err := p.Fetch(t.Context(), app, "")
			if c.says != "" {
				wantKind(t, err, providers.Unavailable, c.says)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("refused login", func(t *testing.T) {
		f, p := started(t)
		f.grant.renewable = false
		mustFetch(t, p)
		f.clk.pass(41 * time.Minute)
		f.change(func() { f.logins["approle"] = func(map[string]string, *http.Request) bool { return false } })
		for range 20 {
			mustFetch(t, p)
		}
		f.want(t, map[string]int{login: 2})
		f.clk.pass(19 * time.Minute)
		_, err := p.Fetch(t.Context(), app, "")
		wantKind(t, err, providers.LoginFailed, "secret-id expired")
	})
}

// Who gives up leaves the others nothing of it.
func TestWaitingCallersDoNotShareACancellation(t *testing.T) {
	f, p := started(t)
	f.hold = make(chan struct{})
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	all.Go(func() {
		_, err := p.Fetch(ctx, app, "")
		wantKind(t, err, providers.Unavailable, "cancelled")
	})
	until(t, func() bool { return f.count(login) == 1 })
	all.Go(func() {
		if _, err := p.Fetch(t.Context(), app, ""); err != nil {
			t.Error(err)
		}
	})
	until(t, func() bool { return inFunction("(*provider).wait(") == 1 })
	cancel()
	until(t, func() bool { return f.count(login) == 2 })
	close(f.hold)
	all.Wait()
}

func TestDenialByPolicyCausesNoLogin(t *testing.T) {
	f, p := started(t)
	f.denied["secret/data/app"] = true
	for range 10 {
		_, err := p.Fetch(t.Context(), app, "")
		wantKind(t, err, providers.Denied, "read on secret/data/app and secret/metadata/app")
	}
	f.want(t, map[string]int{login: 1, read: 10})
}

// A token that may not look itself up cannot be told from a dead one.
func TestLoginsAfterDenialsAreFew(t *testing.T) {
	f, p := started(t)
	f.grant.noDefault = true
	f.denied["secret/data/app"] = true
	for range 60 {
		_, err := p.Fetch(t.Context(), app, "")
		wantKind(t, err, providers.Denied, "")
		f.clk.pass(5 * time.Second)
	}
	f.want(t, map[string]int{login: 1 + 5})
}

func TestDeadTokenIsReplacedOnceAMinute(t *testing.T) {
	f, p := started(t)
	mustFetch(t, p)
	f.change(func() { clear(f.tokens) })
	mustFetch(t, p)
	f.want(t, map[string]int{login: 2, lookup: 1})
	f.change(func() { clear(f.tokens) })
	_, err := p.Fetch(t.Context(), app, "")
	wantKind(t, err, providers.Denied, "")
	f.want(t, map[string]int{login: 2})
	f.clk.pass(61 * time.Second)
	mustFetch(t, p)
	f.want(t, map[string]int{login: 3})
}

func TestRefusedLoginIsNotRepeated(t *testing.T) {
	f := newFake(t)
	f.set("app", "{}")
	c := f.config(t)
	if err := os.WriteFile(c.Auth.AppRole.SecretIDFile, []byte("wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := open(t, c, f.clk)
	for range 5 {
		_, err := p.Fetch(t.Context(), app, "")
		wantKind(t, err, providers.LoginFailed, "auth/approle")
	}
	f.clk.pass(20 * time.Second)
	_, err := p.Fetch(t.Context(), app, "")
	if e := wantKind(t, err, providers.LoginFailed, ""); e.RetryAfter != 40*time.Second || e.Ref != app {
		t.Errorf("retry after %v, about %v", e.RetryAfter, e.Ref)
	}
	f.want(t, map[string]int{login: 1})
	f.clk.pass(41 * time.Second)
	_, err = p.Fetch(t.Context(), app, "")
	wantKind(t, err, providers.LoginFailed, "")
	f.want(t, map[string]int{login: 2})
	if err := os.WriteFile(c.Auth.AppRole.SecretIDFile, []byte(secretID), 0o600); err != nil {
		t.Fatal(err)
	}
	mustFetch(t, p) // at once, since the file has changed
}

func TestClose(t *testing.T) {
	t.Run("revokes its own token", func(t *testing.T) {
		f, p := started(t)
		mustFetch(t, p)
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if len(f.tokens) != 0 {
			t.Error("the token lives on")
		}
		_, err := p.Fetch(t.Context(), app, "")
		wantKind(t, err, providers.Unavailable, "closed")
	})
	t.Run("leaves others alone", func(t *testing.T) {
		f, p := tokenFile(t, "tok-1", token{})
		mustFetch(t, p)
		_ = p.Close()
		f.want(t, map[string]int{revoke: 0})
	})
	t.Run("before the first login", func(t *testing.T) {
		f, p := started(t)
		_ = p.Close()
		f.want(t, map[string]int{"": 0})
	})
	t.Run("batch tokens cannot be revoked", func(t *testing.T) {
		f, p := started(t)
		f.grant.kind = "batch"
		mustFetch(t, p)
		_ = p.Close()
		f.want(t, map[string]int{revoke: 0})
	})
}

func tokenFile(t *testing.T, id string, k token) (*fake, providers.Provider) {
	f := newFake(t)
	f.set("app", `{"a":"b"}`)
	f.grant = k
	f.tokens[id] = f.newToken()
	c := f.config(t)
	c.Auth = Auth{TokenFile: file(t, id+"\n")}
	return f, open(t, c, f.clk)
}

func TestTokenFile(t *testing.T) {
	write := func(p providers.Provider, id string) {
		if err := os.WriteFile(p.(*provider).conf.Auth.TokenFile, []byte(id), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("read again when it changes", func(t *testing.T) {
		f, p := tokenFile(t, "tok-1", token{})
		mustFetch(t, p)
		mustFetch(t, p)
		f.want(t, map[string]int{lookup: 1})
		f.change(func() { delete(f.tokens, "tok-1"); f.tokens["token-2"] = f.newToken() })
		write(p, "token-2")
		mustFetch(t, p)
		f.want(t, map[string]int{lookup: 2, read: 3})
	})
	t.Run("half written, the old one serves", func(t *testing.T) {
		_, p := tokenFile(t, "tok-1", token{ttl: time.Hour})
		mustFetch(t, p)
		write(p, "")
		mustFetch(t, p)
	})
	t.Run("renewed", func(t *testing.T) {
		f, p := tokenFile(t, "tok-1", token{ttl: time.Hour, renewable: true})
		for range 300 {
			mustFetch(t, p)
			f.clk.pass(time.Minute)
		}
		if n := f.count(renew); n < 5 || n > 8 {
			t.Errorf("%d renewals in five hours", n)
		}
	})
	t.Run("dead", func(t *testing.T) {
		f, p := tokenFile(t, "tok-1", token{})
		mustFetch(t, p)
		f.change(func() { clear(f.tokens) })
		for range 2 {
			_, err := p.Fetch(t.Context(), app, "")
			wantKind(t, err, providers.LoginFailed, "token_file")
		}
	})
	t.Run("without the default policy", func(t *testing.T) {
		_, p := tokenFile(t, "tok-1", token{ttl: time.Hour, noDefault: true})
		mustFetch(t, p)
	})
	t.Run("absent", func(t *testing.T) {
		_, p := tokenFile(t, "tok-1", token{})
		if err := os.Remove(p.(*provider).conf.Auth.TokenFile); err != nil {
			t.Fatal(err)
		}
		_, err := p.Fetch(t.Context(), app, "")
		wantKind(t, err, providers.LoginFailed, "does not exist")
	})
}
