package oidc

import (
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strings"
	"testing"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
)

const verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk" // RFC 7636 appendix B

func login() Authorization {
	return Authorization{RedirectURI: "http://127.0.0.1:4711/callback", State: "st&te", Verifier: secret.FromString(verifier), Scope: "a b"}
}

func TestAuthorizeURL(t *testing.T) {
	s := &site{pages: map[string]func(asked) reply{at8414: page(200, document(nil))}}
	p := Profile{Grant: AuthorizationCode, AuthorizationParams: map[string]string{"prompt": "consent", "audience": "x"}}
	raw, err := discover(t, p, s, clock.System{}).AuthorizeURL(t.Context(), material(), login())
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host != "op.example" || u.Path != "/authorize" || u.Fragment != "" {
		t.Errorf("%s, %v", raw, err)
	}
	want := url.Values{"tenant": {"1"}, "response_type": {"code"}, "client_id": {clientID}, "redirect_uri": {"http://127.0.0.1:4711/callback"}, "scope": {"a b"},
		"state": {"st&te"}, "code_challenge": {"E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"}, "code_challenge_method": {"S256"}, "prompt": {"consent"}, "audience": {"x"}}
	if got := u.Query(); got.Encode() != want.Encode() {
		t.Errorf("%v\nwant %v", got, want)
	}
	if strings.Contains(raw, verifier) || strings.Contains(raw, url.QueryEscape(clientSecret)) || s.count(at8414) != len(s.seen) {
		t.Errorf("too much is told: %s, %v", raw, s.seen)
	}
	// Beside a token endpoint, the issuer's metadata may name this one alone.
	p.TokenEndpoint, p.Issuer = endpoint, op
	client, err := Open(p, s, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = client.AuthorizeURL(t.Context(), material(), login()); err != nil || !strings.HasPrefix(raw, "https://op.example/authorize?") {
		t.Errorf("%s, %v", raw, err)
	}
}

func TestAuthorizeURLRefuses(t *testing.T) {
	without := func(change func(*Authorization)) Authorization {
		a := login()
		change(&a)
		return a
	}
	gone := secret.FromString(verifier)
	gone.Wipe()
	for _, c := range []struct {
		name string
		p    Profile
		m    Material
		a    Authorization
		want Kind
		says string
	}{
		{"another grant", Profile{}, material(), login(), Refused, "authorization_code"},
		{"foreign redirect", Profile{Grant: AuthorizationCode}, material(), without(func(a *Authorization) { a.RedirectURI = "https://evil.example/callback" }), Refused, "redirect"},
		{"no state", Profile{Grant: AuthorizationCode}, material(), without(func(a *Authorization) { a.State = "" }), Refused, "state"},
		{"short verifier", Profile{Grant: AuthorizationCode}, material(), without(func(a *Authorization) { a.Verifier = secret.FromString(verifier[1:]) }), Refused, "verifier"},
		{"verifier gone", Profile{Grant: AuthorizationCode}, material(), without(func(a *Authorization) { a.Verifier = gone }), Unavailable, ""},
		{"no id", Profile{Grant: AuthorizationCode}, nil, login(), Refused, "client_id"},
	} {
		_, err := open(t, c.p, &site{}, clock.System{}).AuthorizeURL(t.Context(), c.m, c.a)
		if e := wantKind(t, err, c.want); !strings.Contains(e.Error(), c.says) {
			t.Errorf("%s: %v", c.name, e)
		}
	}
	s := &site{pages: map[string]func(asked) reply{at8414: page(200, document(map[string]any{"authorization_endpoint": nil}))}}
	_, err := discover(t, Profile{Grant: AuthorizationCode}, s, clock.System{}).AuthorizeURL(t.Context(), material(), login())
	wantKind(t, err, Refused)
}

func TestRedirect(t *testing.T) {
	for _, c := range []struct {
		registered, asked, want string // want "": refused
	}{
		{"", "", defaultRedirect},
		{"", "http://127.0.0.1:4711/callback", "http://127.0.0.1:4711/callback"},
		{"", "http://127.0.0.1:4711/other", ""},
		{"", "http://127.0.0.1:/callback", ""},
		{"", "http://localhost:4711/callback", ""},
		{"", "https://127.0.0.1:4711/callback", ""},
		{"", "http://127.0.0.1:4711/callback?a=b", ""},
		{"", "http://127.0.0.1:4711/callback#f", ""},
		{"", "http://u@127.0.0.1:4711/callback", ""},
		{"", "http://127.0.0.1.evil.example:4711/callback", ""},
		{"http://[::1]/", "http://[::1]:9/", "http://[::1]:9/"},
		{"http://127.0.0.1:80/callback", "http://127.0.0.1:81/callback", ""},
		{"https://127.0.0.1/cb", "https://127.0.0.1:4711/cb", ""},
		{"https://app.example/cb", "", "https://app.example/cb"},
		{"https://app.example/cb", "https://app.example/cb", "https://app.example/cb"},
		{"https://app.example/cb", "https://app.example:444/cb", ""},
	} {
		got, ok := Profile{RedirectURI: c.registered}.redirect(c.asked)
		if ok != (c.want != "") || ok && got != c.want {
			t.Errorf("%q, asked %q: %q, %v", c.registered, c.asked, got, ok)
		}
	}
}

func TestRedeem(t *testing.T) {
	code := secret.FromString("c&de=")
	for _, format := range []string{"", formatJSON} {
		s := &site{pages: map[string]func(asked) reply{endpoint: page(200, `{"access_token":"tok","token_type":"bearer","scope":"a","refresh_token":"new","expires_in":60}`)}}
		p := Profile{Grant: AuthorizationCode, RequestFormat: format, Params: map[string]string{"x": "y"}}
		tok, err := open(t, p, s, clock.System{}).Redeem(t.Context(), material(), login(), code)
		if err != nil || reveal(t, tok.Access) != "tok" || reveal(t, tok.Refresh) != "new" || !tok.Narrowed || tok.Scope != "a" {
			t.Errorf("%+v, %v", tok, err)
		}
		want := url.Values{"grant_type": {"authorization_code"}, "code": {"c&de="}, "redirect_uri": {"http://127.0.0.1:4711/callback"}, "code_verifier": {verifier},
			"client_id": {clientID}, "client_secret": {clientSecret}, "x": {"y"}}
		if got := s.last().form; got.Encode() != want.Encode() {
			t.Errorf("%v\nwant %v", got, want)
		}
	}
	s := &site{pages: map[string]func(asked) reply{endpoint: page(400, `{"error":"invalid_grant"}`)}}
	client := open(t, Profile{Grant: AuthorizationCode}, s, clock.System{})
	_, err := client.Redeem(t.Context(), material(), login(), code)
	if e := wantKind(t, err, InvalidGrant); !strings.Contains(e.Error(), "code") {
		t.Error(e)
	}
	for _, c := range []struct {
		p    Profile
		a    Authorization
		code secret.Secret
	}{
		{Profile{}, login(), code},
		{Profile{Grant: AuthorizationCode}, Authorization{RedirectURI: "https://evil.example/"}, code},
		{Profile{Grant: AuthorizationCode}, login(), secret.Secret{}},
	} {
		_, err := open(t, c.p, s, clock.System{}).Redeem(t.Context(), material(), c.a, c.code)
		wantKind(t, err, Refused)
	}
	if len(s.seen) != 1 {
		t.Errorf("%d requests", len(s.seen))
	}
}

// The challenge is the verifier's, whatever the verifier is.
func TestChallenge(t *testing.T) {
	a := login()
	a.Verifier = secret.FromString(strings.Repeat("v", 128))
	raw, err := open(t, Profile{Grant: AuthorizationCode}, &site{}, clock.System{}).AuthorizeURL(t.Context(), material(), a)
	sum := sha256.Sum256([]byte(strings.Repeat("v", 128)))
	if err != nil || !strings.Contains(raw, "code_challenge="+base64.RawURLEncoding.EncodeToString(sum[:])+"&") {
		t.Errorf("%s, %v", raw, err)
	}
}
