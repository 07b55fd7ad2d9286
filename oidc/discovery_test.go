package oidc

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/internal/clock"
)

const (
	op      = "https://op.example/tenant"
	at8414  = "https://op.example/.well-known/oauth-authorization-server/tenant"
	atOIDC  = "https://op.example/tenant/.well-known/openid-configuration"
	opToken = "https://tokens.example/t"
	opKeys  = "https://op.example/jwks"
)

// document is metadata of op; change is written over it, nil removes.
func document(change map[string]any) string {
	m := map[string]any{
		"issuer": op, "token_endpoint": opToken, "authorization_endpoint": "https://op.example/authorize?tenant=1",
		"revocation_endpoint": "https://op.example/revoke", "introspection_endpoint": "https://op.example/introspect",
		"grant_types_supported": []string{"client_credentials"}, "mtls_endpoint_aliases": map[string]any{"token_endpoint": "https://mtls.example/t"},
	}
	maps.Copy(m, change)
	for k, v := range change {
		if v == nil {
			delete(m, k)
		}
	}
	b, _ := json.Marshal(m)
	return string(b)
}

// discover opens a client that knows the issuer alone.
func discover(t testing.TB, p Profile, rt http.RoundTripper, c clock.Clock) *Client {
	t.Helper()
	if p.Issuer == "" {
		p.Issuer = op
	}
	client, err := Open(p, rt, c)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestWhereMetadataAre(t *testing.T) {
	for issuer, want := range map[string][2]string{
		op:                         {at8414, atOIDC},
		op + "/":                   {at8414, atOIDC},
		"https://op.example":       {"https://op.example/.well-known/oauth-authorization-server", "https://op.example/.well-known/openid-configuration"},
		"https://op.example/":      {"https://op.example/.well-known/oauth-authorization-server", "https://op.example/.well-known/openid-configuration"},
		"https://op.example/a%2Fb": {"https://op.example/.well-known/oauth-authorization-server/a%2Fb", "https://op.example/a%2Fb/.well-known/openid-configuration"},
		"http://127.0.0.1:8/x/y":   {"http://127.0.0.1:8/.well-known/oauth-authorization-server/x/y", "http://127.0.0.1:8/x/y/.well-known/openid-configuration"},
	} {
		got, err := Profile{Issuer: issuer}.places()
		if err != nil || len(got) != 2 || got[0].String() != want[0] || got[1].String() != want[1] {
			t.Errorf("%s: %v, %v", issuer, got, err)
		}
	}
}

func TestDiscovery(t *testing.T) {
	broken := reply{status: 200, body: document(nil)[1:]}
	for _, c := range []struct {
		name    string
		p       Profile
		r, oidc reply // at the two places
		want    Kind  // "" means a token from opToken
		says    string
	}{
		{"RFC 8414", Profile{}, reply{status: 200, body: document(nil)}, broken, "", ""},
		{"OpenID Connect", Profile{}, reply{status: 404}, reply{status: 200, body: document(nil)}, "", ""},
		{"405", Profile{}, reply{status: 405}, reply{status: 200, body: document(nil)}, "", ""},
		{"410", Profile{}, reply{status: 410}, reply{status: 200, body: document(nil)}, "", ""},
		{"a page", Profile{}, reply{status: 200, ctype: "text/html", body: "<html>"}, reply{status: 200, body: document(nil)}, "", ""},
		{"a page, 403", Profile{}, reply{status: 403, ctype: "text/html", body: "<html>"}, reply{status: 200, body: document(nil)}, "", ""},
		{"metadata_uri", Profile{MetadataURI: atOIDC}, broken, reply{status: 200, body: document(nil)}, "", ""},
		{"another host's endpoint, written otherwise", Profile{}, reply{status: 200, body: strings.Replace(document(nil), `"token_endpoint"`, `"token\u005fendpoint"`, 1)}, broken, "", ""},

		{"nowhere", Profile{}, reply{status: 404}, reply{status: 404, body: marker}, Protocol, "metadata"},
		{"down", Profile{}, reply{status: 503, header: map[string]string{"Retry-After": "60"}}, reply{status: 200, body: document(nil)}, Unavailable, "now"},
		{"down, a page", Profile{}, reply{status: 503, ctype: "text/html", body: "<html>"}, reply{status: 200, body: document(nil)}, Unavailable, "now"},
		{"a document as a page", Profile{MetadataURI: atOIDC}, broken, reply{status: 200, ctype: "text/html", body: document(nil)}, Protocol, "text/html"},
		{"throttled", Profile{}, reply{status: 429}, reply{status: 200, body: document(nil)}, Unavailable, "now"},
		{"foreign issuer", Profile{}, reply{status: 200, body: document(map[string]any{"issuer": "https://evil.example/" + marker})}, reply{status: 200, body: document(nil)}, Protocol, "evil.example op.example"},
		{"a letter more", Profile{}, reply{status: 200, body: document(map[string]any{"issuer": op + "/"})}, broken, Protocol, "to the letter"},
		{"another case", Profile{}, reply{status: 200, body: document(map[string]any{"issuer": strings.ToUpper(op)})}, broken, Protocol, "to the letter"},
		{"no issuer", Profile{}, reply{status: 200, body: document(map[string]any{"issuer": nil})}, broken, Protocol, "no known host"},
		{"issuer as a list", Profile{}, reply{status: 200, body: document(map[string]any{"issuer": []string{op}})}, broken, Protocol, "no known host"},
		{"issuer in another case", Profile{}, reply{status: 200, body: strings.Replace(document(nil), `"issuer"`, `"Issuer"`, 1)}, broken, Protocol, "no known host"},
		{"unspeakable issuer", Profile{}, reply{status: 200, body: document(map[string]any{"issuer": "https://" + marker + "%0a<x>/"})}, broken, Protocol, "no known host"},
		{"no JSON", Profile{}, broken, reply{status: 200, body: document(nil)}, Protocol, "JSON"},
		{"null", Profile{}, reply{status: 200, body: "null"}, broken, Protocol, "JSON"},
		{"oversized", Profile{}, reply{status: 200, body: document(nil) + strings.Repeat(" ", maxDocument)}, broken, Protocol, "larger"},
		{"redirect", Profile{MetadataURI: atOIDC}, broken, reply{status: 302, header: map[string]string{"Location": "https://" + marker}}, Protocol, "302"},
		{"no token endpoint", Profile{}, reply{status: 200, body: document(map[string]any{"token_endpoint": nil})}, broken, Protocol, "token_endpoint"},
		{"token endpoint without TLS", Profile{}, reply{status: 200, body: document(map[string]any{"token_endpoint": "http://" + marker + ".example/"})}, broken, Protocol, "token_endpoint"},
		{"token endpoint on loopback", Profile{}, reply{status: 200, body: document(map[string]any{"token_endpoint": "http://127.0.0.1/t"})}, broken, Protocol, "without TLS"},
		{"token endpoint with a password", Profile{}, reply{status: 200, body: document(map[string]any{"token_endpoint": "https://u:p@tokens.example/"})}, broken, Protocol, "token_endpoint"},
		{"token endpoint no text", Profile{}, reply{status: 200, body: document(map[string]any{"token_endpoint": 7})}, broken, Protocol, "token_endpoint"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &site{pages: map[string]func(asked) reply{at8414: func(asked) reply { return c.r }, atOIDC: func(asked) reply { return c.oidc }, opToken: page(200, good)}}
			_, err := discover(t, c.p, s, clock.System{}).Mint(t.Context(), material(), Request{})
			if c.want == "" {
				if err != nil || s.last().at != opToken {
					t.Errorf("%v, asked %s", err, s.last().at)
				}
				return
			}
			e := wantKind(t, err, c.want)
			for _, w := range strings.Fields(c.says) {
				if !strings.Contains(e.Error(), w) {
					t.Errorf("%q does not say %q", e, w)
				}
			}
			if strings.Contains(e.Error(), marker) || c.name == "down" && e.RetryAfter != time.Minute {
				t.Errorf("%+v", *e)
			}
			for _, q := range s.seen {
				if q.raw != "" {
					t.Errorf("a secret was shown to %s", q.at)
				}
			}
		})
	}
}

func TestConfiguredWins(t *testing.T) {
	s := &site{pages: map[string]func(asked) reply{at8414: page(200, document(nil)), endpoint: page(200, good)}}
	client := open(t, Profile{Issuer: op}, s, clock.System{})
	if _, err := client.Mint(t.Context(), material(), Request{}); err != nil || len(s.seen) != 1 || s.last().at != endpoint {
		t.Errorf("%v, asked %v", err, s.seen)
	}
	if client.keys != nil {
		t.Error("keys are looked for, without metadata or jwks_uri")
	}
	// A presented certificate changes a discovered endpoint alone.
	s.pages["https://mtls.example/t"] = page(200, good)
	if _, err := open(t, Profile{Issuer: op, ClientAuth: TLS}, s, clock.System{}).Mint(t.Context(), everything(), Request{}); err != nil || s.last().at != endpoint {
		t.Errorf("%v, asked %s", err, s.last().at)
	}
	if _, err := discover(t, Profile{ClientAuth: SelfSignedTLS}, s, clock.System{}).Mint(t.Context(), everything(), Request{}); err != nil || s.last().at != "https://mtls.example/t" {
		t.Errorf("%v, asked %s", err, s.last().at)
	}
	if s.last().cert == nil || s.seen[1].cert == nil {
		t.Error("no certificate was presented")
	}
	for _, q := range s.seen {
		if q.at == at8414 && q.cert != nil {
			t.Error("metadata were fetched with the client's certificate")
		}
	}
}

func TestHostOf(t *testing.T) {
	for raw, want := range map[string]string{
		"https://op.example:8443/x": "op.example:8443", "http://[::1]/": "[::1]", "https://OP.example": "OP.example",
		"": "no known host", "op.example": "no known host", "https://it's!.example/": "no known host", "https://" + strings.Repeat("a", 254): "no known host",
	} {
		if got := hostOf(raw); got != want {
			t.Errorf("%q: %q", raw, got)
		}
	}
}

// The metadata's jwks_uri makes JWTs checked.
func TestKeysOfTheMetadata(t *testing.T) {
	token := signJWT(t, jose.RS256, keysOnce().rsa, "r", claimsNow(map[string]any{"iss": op}))
	forged := signJWT(t, jose.RS256, keysOnce().other, "r", claimsNow(map[string]any{"iss": op}))
	for _, c := range []struct {
		keys  any // in the metadata
		token string
		list  reply
		want  Kind
	}{
		{opKeys, token, reply{status: 200, body: jwks(t, listed()...)}, ""},
		{opKeys, forged, reply{status: 200, body: jwks(t, listed()...)}, Protocol},
		{opKeys, token, reply{status: 404}, Protocol},
		{opKeys, token, reply{status: 503}, Unavailable},
		{"http://" + marker + ".example/", token, reply{}, Protocol},
		{nil, forged, reply{}, ""}, // there is nothing to check with
	} {
		s := &site{pages: map[string]func(asked) reply{at8414: page(200, document(map[string]any{"jwks_uri": c.keys})), opKeys: func(asked) reply { return c.list },
			opToken: page(200, strings.Replace(good, `"tok"`, `"`+c.token+`"`, 1))}}
		_, err := discover(t, Profile{}, s, clock.System{}).Mint(t.Context(), material(), Request{})
		if KindOf(err) != c.want || err != nil && strings.Contains(err.Error(), marker) {
			t.Errorf("%v, %d: %v, want %q", c.keys, c.list.status, err, c.want)
		}
		if c.list.status > 200 && s.count(opToken) != 0 {
			t.Error("the secret was shown for a token that nobody can check")
		}
	}
}

func TestMetadataAreFetchedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{pages: map[string]func(asked) reply{at8414: page(200, document(nil)), opToken: page(200, good)}}
		c := discover(t, Profile{}, s, clock.NewBubble())
		round := func(what string, want Kind, fetches int) {
			t.Helper()
			if _, err := c.Mint(t.Context(), material(), Request{}); KindOf(err) != want {
				t.Errorf("%s: %v, want %q", what, err, want)
			}
			if n := s.count(at8414); n != fetches {
				t.Errorf("%s: %d fetches, want %d", what, n, fetches)
			}
		}
		if len(s.seen) != 0 {
			t.Error("Open fetched")
		}
		round("first", "", 1)
		round("second", "", 1)
		time.Sleep(time.Hour)
		round("after an hour", "", 2)
		delete(s.pages, at8414)
		time.Sleep(time.Hour)
		round("they vanish: the old ones serve", "", 3)
		round("no more than once a minute", "", 3)
		s.pages[at8414] = page(200, document(map[string]any{"issuer": "https://evil.example", "token_endpoint": "https://evil.example/t"}))
		time.Sleep(time.Minute)
		round("another issuer answers: the old ones serve", "", 4)
		if s.last().at != opToken {
			t.Errorf("the secret went to %s", s.last().at)
		}
		s.pages[at8414] = page(200, document(nil))
		time.Sleep(time.Minute)
		round("back", "", 5)

		// The endpoint moves: its 404 is reason to look again, within the hour.
		delete(s.pages, opToken)
		s.pages["https://op.example/t2"] = page(200, good)
		s.pages[at8414] = page(200, document(map[string]any{"token_endpoint": "https://op.example/t2"}))
		time.Sleep(time.Minute)
		round("moved", Protocol, 5)
		round("found", "", 6)
		round("kept", "", 6)

		// So is a host that does not answer.
		s.pages["https://op.example/t2"] = func(asked) reply { return reply{} }
		time.Sleep(time.Minute)
		round("gone", Unavailable, 6)
		s.pages[opToken] = page(200, good)
		s.pages[at8414] = page(200, document(nil))
		round("found again", "", 7)
	})
}

// Keys change between what is fetched first and the token that comes.
func TestKeysRotateWhileAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keysOnce()
		key, kid, published := k.rsa, "r", listed()
		s := &site{pages: map[string]func(asked) reply{at8414: page(200, document(map[string]any{"jwks_uri": opKeys}))}}
		s.pages[opKeys] = func(asked) reply { return reply{status: 200, body: jwks(t, published...)} }
		s.pages[opToken] = func(asked) reply {
			return reply{status: 200, body: strings.Replace(good, `"tok"`, `"`+signJWT(t, jose.RS256, key, kid, claimsNow(map[string]any{"iss": op}))+`"`, 1)}
		}
		c := discover(t, Profile{}, s, clock.NewBubble())
		round := func(what string, want Kind, fetches int) {
			t.Helper()
			if _, err := c.Mint(t.Context(), material(), Request{}); KindOf(err) != want {
				t.Errorf("%s: %v, want %q", what, err, want)
			}
			if n := s.count(opKeys) + s.count("https://op.example/moved"); n != fetches {
				t.Errorf("%s: %d fetches, want %d", what, n, fetches)
			}
		}
		round("first", "", 1)
		time.Sleep(10 * time.Minute)
		key, kid, published = k.other, "o", []jose.JSONWebKey{jwk(&k.other.PublicKey, "o", "")}
		round("a new key, at once", "", 2)
		time.Sleep(10 * time.Minute)
		key, kid, published = k.rsa, "", []jose.JSONWebKey{jwk(&k.rsa.PublicKey, "", "")}
		round("a new key without a name", "", 3)
		time.Sleep(10 * time.Minute)
		key, published = k.other, []jose.JSONWebKey{jwk(&k.other.PublicKey, "", "")}
		round("another one, without a name", "", 4)
		time.Sleep(10 * time.Minute)
		key, published = k.rsa, nil
		round("the list is empty: the token cannot be checked", Protocol, 5)
		key = k.other
		round("the old keys are kept", "", 5)
		// The list moves, as the metadata say.
		time.Sleep(time.Hour)
		s.pages["https://op.example/moved"] = func(asked) reply { return reply{status: 200, body: jwks(t, listed()...)} }
		s.pages[at8414] = page(200, document(map[string]any{"jwks_uri": "https://op.example/moved"}))
		key, kid = k.rsa, "r"
		round("moved", "", 6)
	})
}

// Metadata that hang leave the mint's own time, and hold nobody up beyond it.
func TestHangingMetadata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{pages: map[string]func(asked) reply{opToken: page(200, good)}}
		hang := roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.Method == http.MethodGet {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return s.RoundTrip(r)
		})
		start := time.Now()
		_, err := discover(t, Profile{}, hang, clock.NewBubble()).Mint(context.Background(), material(), Request{})
		if wantKind(t, err, Unavailable); time.Since(start) != cacheTimeout {
			t.Errorf("after %v", time.Since(start))
		}
	})
}
