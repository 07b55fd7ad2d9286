//go:build real

package oidcprovider

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
)

const (
	area   = "issuer oidc-provider"
	server = Version
	api    = "https://api.example/" // followed by the algorithm that its tokens are signed with
)

// party is a client, and what its secret holds besides id and secret.
type party struct {
	Registration
	material oidc.Material
}

func parties() map[string]party {
	all := map[string]party{}
	for name, r := range map[string]Registration{
		"post":   {ID: "post +/:%&=~", Secret: `1 s+e/c:r%e&t= "~\'%41`, Auth: "client_secret_post"},
		"basic":  {ID: "basic +/:%&=~", Secret: `2 s+e/c:r%e&t= "~\'%41`, Auth: "client_secret_basic"},
		"jwt":    {ID: "jwt +/:%&=~", Secret: `3 s+e/c:r%e&t= "~\'%41 of 32 bytes`, Auth: "client_secret_jwt"},
		"reader": {ID: "reader", Secret: "secret", Auth: "client_secret_post", Scope: "read"},
		"other": {ID: "other", Secret: "secret", Auth: "client_secret_post", Grants: []string{"authorization_code"},
			Redirects: []string{"https://app.example/"}, Responses: []string{"code"}},
		"login":  ForPeople("login", "client_secret_basic", "secret"),
		"public": ForPeople("public", "none", ""),
	} {
		all[name] = party{Registration: r}
	}
	return all
}

// issuer is a server and all its clients.
type issuer struct {
	*Server
	clients map[string]party
}

func newIssuer(t *testing.T) issuer {
	t.Helper()
	i := issuer{New(t), parties()}
	i.addKeyHolders(t)
	return i
}

func (i issuer) start(t *testing.T) (stop func()) {
	t.Helper()
	var all []Registration
	for _, name := range slices.Sorted(maps.Keys(i.clients)) {
		all = append(all, i.clients[name].Registration)
	}
	return i.Start(t, all...)
}

// profile says how r uses the issuer, with every endpoint that it needs.
func (i issuer) profile(r party) oidc.Profile {
	p := oidc.Profile{TokenEndpoint: i.URL + "/token", ClientAuth: oidc.ClientAuth(r.Auth), Issuer: i.URL, JWKSURI: i.URL + "/jwks", CertificateBound: r.Bound,
		Config: outbound.Config{CAFile: i.CAFile}}
	if r.Bound {
		p.TokenEndpoint = i.MTLS + "/token"
	}
	return p
}

// discovered is the profile of somebody who knows the issuer's name alone.
func (i issuer) discovered(r party, path string) oidc.Profile {
	return oidc.Profile{ClientAuth: oidc.ClientAuth(r.Auth), Issuer: i.URL + path, CertificateBound: r.Bound, Config: outbound.Config{CAFile: i.CAFile}}
}

func open(t *testing.T, p oidc.Profile, c clock.Clock) *oidc.Client {
	t.Helper()
	client, err := oidc.Open(p, nil, c)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func (i issuer) open(t *testing.T, r party, c clock.Clock) *oidc.Client {
	t.Helper()
	return open(t, i.profile(r), c)
}

// bundle is what the client's secret holds.
func (r party) bundle() oidc.Material {
	m := oidc.Material{"client_id": secret.FromString(r.ID)}
	if r.Secret != "" {
		m["client_secret"] = secret.FromString(r.Secret)
	}
	maps.Copy(m, r.material)
	return m
}

func TestTokens(t *testing.T) {
	i := newIssuer(t)
	i.start(t)
	for _, name := range []string{"post", "basic"} {
		t.Run(name, func(t *testing.T) {
			r := i.clients[name]
			real.Row(t, area, server, "client_secret_"+name+", opaque and JWT tokens of RS256, PS256, ES256, EdDSA checked by issuer and JWKS")
			c := i.open(t, r, clock.System{})
			tok, err := c.Mint(t.Context(), r.bundle(), oidc.Request{Scope: "read write"})
			if err != nil {
				t.Fatal(err)
			}
			if tok.Expires.Sub(tok.Sent) != 600*time.Second || tok.Scope != "read write" || tok.Narrowed || tok.JTI != "" || tok.Skew.Abs() > time.Second {
				t.Errorf("opaque: %+v", tok)
			}
			narrow, err := c.Mint(t.Context(), r.bundle(), oidc.Request{Scope: "read write", Resource: api + "RS256"})
			if err != nil || narrow.Scope != "read" || !narrow.Narrowed {
				t.Errorf("narrowed: %+v, %v", narrow, err)
			}
			for _, alg := range []string{"RS256", "PS256", "ES256", "EdDSA"} {
				tok, err := c.Mint(t.Context(), r.bundle(), oidc.Request{Scope: "read", Resource: api + alg})
				if err != nil {
					t.Errorf("%s: %v", alg, err)
					continue
				}
				if tok.Expires.Sub(tok.Sent) != 300*time.Second || tok.Scope != "read" || tok.JTI == "" || tok.Type != "Bearer" {
					t.Errorf("%s: %+v", alg, tok)
				}
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	real.Row(t, area, server, "refusals: wrong secret, unknown client, scope, resource, grant, path")
	i := newIssuer(t)
	i.start(t)
	all := i.clients
	post, basic := all["post"], all["basic"]
	wrong, unknown := post, post
	wrong.Secret += "x"
	unknown.ID += "x"
	wrongBasic := basic
	wrongBasic.Secret = "x"
	for name, c := range map[string]struct {
		r    party
		q    oidc.Request
		kind oidc.Kind
		code string
	}{
		"wrong secret, post":        {wrong, oidc.Request{}, oidc.InvalidClient, "invalid_client"},
		"wrong secret, basic":       {wrongBasic, oidc.Request{}, oidc.InvalidClient, "invalid_client"},
		"unknown client":            {unknown, oidc.Request{}, oidc.InvalidClient, "invalid_client"},
		"unknown resource":          {post, oidc.Request{Resource: api + "none"}, oidc.Refused, "invalid_target"},
		"resource not absolute":     {post, oidc.Request{Resource: "api"}, oidc.Refused, "invalid_target"},
		"scope beyond the client's": {all["reader"], oidc.Request{Scope: "read write"}, oidc.Refused, "invalid_scope"},
		"grant not registered":      {all["other"], oidc.Request{}, oidc.Refused, "invalid_request"}, // so this server says; RFC 6749 has unauthorized_client
	} {
		_, err := i.open(t, c.r, clock.System{}).Mint(t.Context(), c.r.bundle(), c.q)
		e, ok := err.(*oidc.Error) //nolint:errorlint // Mint promises this very type
		if !ok || e.Kind != c.kind || e.Code != c.code {
			t.Errorf("%s: %v (%+v)", name, err, e)
			continue
		}
		if strings.Contains(e.Error(), c.r.Secret) || strings.Contains(e.Error(), c.r.ID) {
			t.Errorf("%s: %q names the client or its secret", name, e)
		}
	}
	c := open(t, oidc.Profile{TokenEndpoint: i.URL + "/absent", Config: outbound.Config{CAFile: i.CAFile}}, clock.System{})
	if _, err := c.Mint(t.Context(), post.bundle(), oidc.Request{}); oidc.KindOf(err) != oidc.Protocol {
		t.Errorf("wrong path: %v", err)
	}
}

// ahead is a clock that can be set forward.
type ahead struct{ by time.Duration }

func (a *ahead) Now() clock.Reading { return clock.System{}.Now().Add(a.by) }

func TestKeyRotation(t *testing.T) {
	real.Row(t, area, server, "new signing keys are fetched, at most once a minute; an outage is told apart")
	i := newIssuer(t)
	stop := i.start(t)
	r := i.clients["post"]
	now := &ahead{}
	c := i.open(t, r, now)
	mint := func(what string, want oidc.Kind) {
		t.Helper()
		if _, err := c.Mint(t.Context(), r.bundle(), oidc.Request{Resource: api + "RS256"}); oidc.KindOf(err) != want {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	mint("before", "")
	stop()
	mint("down", oidc.Unavailable)
	i.start(t)
	mint("other keys, too early to ask again", oidc.Protocol)
	now.by = 61 * time.Second
	mint("other keys", "")
}
