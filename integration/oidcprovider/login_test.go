//go:build real

package oidcprovider

import (
	"crypto/rand"
	"testing"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
)

const redirect = "http://127.0.0.1:18080/callback" // nothing listens there: the person's browser is stopped before

// login is a whole one.
func (i issuer) login(t *testing.T, c *oidc.Client, r party) (oidc.Authorization, string) {
	t.Helper()
	a := oidc.Authorization{RedirectURI: redirect, State: rand.Text(), Verifier: secret.FromString(rand.Text() + rand.Text()), Scope: "read write"}
	start, err := c.AuthorizeURL(t.Context(), r.bundle(), a)
	if err != nil {
		t.Fatal(err)
	}
	back := i.Person(t, start, redirect).Query()
	if back.Get("state") != a.State || back.Get("iss") != i.URL || back.Get("error") != "" {
		t.Fatalf("came back with %v", back)
	}
	return a, back.Get("code")
}

func with(m oidc.Material, refresh secret.Secret) oidc.Material {
	m["refresh_token"] = refresh
	return m
}

func TestLogin(t *testing.T) {
	i := newIssuer(t)
	i.start(t)
	for name, what := range map[string]string{"login": "client_secret_basic", "public": "a public client (none)"} {
		t.Run(name, func(t *testing.T) {
			real.Row(t, area, server, "authorization code with PKCE, "+what+": refresh tokens rotate, reuse is told from an outage")
			r := i.clients[name]
			p := i.discovered(r, "")
			p.Grant, p.RedirectURI = oidc.AuthorizationCode, "http://127.0.0.1/callback"
			c := open(t, p, clock.System{})
			if _, err := c.Mint(t.Context(), r.bundle(), oidc.Request{}); oidc.KindOf(err) != oidc.InvalidGrant {
				t.Errorf("before the login: %v", err)
			}
			a, code := i.login(t, c, r)
			first, err := c.Redeem(t.Context(), r.bundle(), a, secret.FromString(code))
			if err != nil || first.Refresh.Len() == 0 || first.Scope != "read write" {
				t.Fatalf("%+v, %v", first, err)
			}
			second, err := c.Mint(t.Context(), with(r.bundle(), first.Refresh), oidc.Request{})
			if err != nil || second.Refresh.Len() == 0 || second.Refresh.Equal(first.Refresh) || second.Fingerprint == first.Fingerprint {
				t.Fatalf("%+v, %v", second, err)
			}
			narrow, err := c.Mint(t.Context(), with(r.bundle(), second.Refresh), oidc.Request{Scope: "read"})
			if err != nil || narrow.Scope != "read" {
				t.Fatalf("%+v, %v", narrow, err)
			}
			if said, err := c.Introspect(t.Context(), r.bundle(), narrow.Access); name == "login" && (err != nil || !said.Active) {
				t.Errorf("%+v, %v", said, err)
			}
			// A refresh token that comes twice ends the login, as the standard wants it.
			if _, err := c.Mint(t.Context(), with(r.bundle(), first.Refresh), oidc.Request{}); oidc.KindOf(err) != oidc.InvalidGrant {
				t.Errorf("reuse: %v", err)
			}
			if _, err := c.Mint(t.Context(), with(r.bundle(), narrow.Refresh), oidc.Request{}); oidc.KindOf(err) != oidc.InvalidGrant {
				t.Errorf("after the reuse: %v", err)
			}
		})
	}
}

func TestCodes(t *testing.T) {
	real.Row(t, area, server, "authorization code: used twice, with another verifier or redirect, by another client; revoked by its refresh token")
	i := newIssuer(t)
	i.start(t)
	r := i.clients["login"]
	p := i.discovered(r, "")
	p.Grant = oidc.AuthorizationCode
	c := open(t, p, clock.System{})
	for what, spoil := range map[string]func(*oidc.Authorization){
		"another verifier": func(a *oidc.Authorization) { a.Verifier = secret.FromString(rand.Text() + rand.Text()) },
		"another redirect": func(a *oidc.Authorization) { a.RedirectURI = "http://127.0.0.1:18081/callback" },
	} {
		a, code := i.login(t, c, r)
		spoil(&a)
		if _, err := c.Redeem(t.Context(), r.bundle(), a, secret.FromString(code)); oidc.KindOf(err) != oidc.InvalidGrant {
			t.Errorf("%s: %v", what, err)
		}
	}
	a, code := i.login(t, c, r)
	public := i.clients["public"]
	other := i.discovered(public, "")
	other.Grant = oidc.AuthorizationCode
	if _, err := open(t, other, clock.System{}).Redeem(t.Context(), public.bundle(), a, secret.FromString(code)); oidc.KindOf(err) != oidc.InvalidGrant {
		t.Errorf("another client: %v", err)
	}
	a, code = i.login(t, c, r)
	tok, err := c.Redeem(t.Context(), r.bundle(), a, secret.FromString(code))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Revoke(t.Context(), r.bundle(), tok.Refresh, "refresh_token"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Mint(t.Context(), with(r.bundle(), tok.Refresh), oidc.Request{}); oidc.KindOf(err) != oidc.InvalidGrant {
		t.Errorf("revoked: %v", err)
	}
	if said, err := c.Introspect(t.Context(), r.bundle(), tok.Access); err != nil || said.Active {
		t.Errorf("the access token of a revoked login: %+v, %v", said, err)
	}
	a, code = i.login(t, c, r)
	if tok, err = c.Redeem(t.Context(), r.bundle(), a, secret.FromString(code)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Redeem(t.Context(), r.bundle(), a, secret.FromString(code)); oidc.KindOf(err) != oidc.InvalidGrant {
		t.Errorf("twice: %v", err)
	}
	if _, err := c.Mint(t.Context(), with(r.bundle(), tok.Refresh), oidc.Request{}); oidc.KindOf(err) != oidc.InvalidGrant {
		t.Errorf("a code that came twice leaves its tokens: %v", err)
	}
}
