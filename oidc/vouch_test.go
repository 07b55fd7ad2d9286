package oidc

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/internal/clock"
)

func TestNames(t *testing.T) {
	for _, c := range []struct {
		header, payload, want string
	}{
		{`{"alg":"RS256"}`, `{"client_id":"a","azp":"b","sub":"c","aud":"d"}`, "a"},
		{`{"alg":"RS256"}`, `{"azp":"b","sub":"c","aud":["d"]}`, "b"},
		{`{"alg":"RS256"}`, `{"sub":"c","aud":["d"]}`, "c"},
		{`{"alg":"RS256"}`, `{"aud":["d"]}`, ""},
		{`{"alg":"RS256"}`, `{"client_id":7,"sub":"c"}`, "c"},
		{`{"alg":"RS256"}`, `{"client_id":"a\u0000"}`, ""},
		{`{"alg":"RS256"}`, `[]`, ""},
		{`{"alg":"HS256","client_identifier":"z"}`, `{"iss":"x"}`, "z"},
	} {
		if got, jwt := Names([]byte(b64(c.header) + "." + b64(c.payload) + ".c2ln")); got != c.want || !jwt {
			t.Errorf("%s: %q, %t", c.payload, got, jwt)
		}
	}
	for _, opaque := range []string{"", "opaque", "a.b.c", "..", b64(`{}`) + "." + b64(`{"client_id":"a"}`)} {
		if got, jwt := Names([]byte(opaque)); jwt || got != "" {
			t.Errorf("%q: %q is a JWT", opaque, got)
		}
	}
}

// Nothing that a found token says counts before its signature is the issuer's.
func TestVouch(t *testing.T) {
	k := keysOnce()
	of := func(change map[string]any) map[string]any {
		m := claimsNow(map[string]any{"client_id": clientID, "scope": "read"})
		for n, v := range change {
			if m[n] = v; v == nil {
				delete(m, n)
			}
		}
		return m
	}
	rs := func(change map[string]any) string { return signJWT(t, jose.RS256, k.rsa, "r", of(change)) }
	good := rs(nil)
	parts := strings.Split(good, ".")
	der, err := x509.MarshalPKIXPublicKey(&k.rsa.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	old := time.Now().Add(-time.Hour).Unix()
	people := Profile{Grant: AuthorizationCode}
	for _, c := range []struct {
		name  string
		p     Profile
		token string
		says  string // empty: vouched for
	}{
		{"good", checked(Profile{}), good, ""},
		{"expired", checked(Profile{}), rs(map[string]any{"iat": old, "nbf": old, "exp": old + 900}), ""},
		{"another key", checked(Profile{}), signJWT(t, jose.RS256, k.other, "r", of(nil)), "not the issuer's"},
		{"unlisted key", checked(Profile{}), signJWT(t, jose.RS256, k.other, "x", of(nil)), "not the issuer's"},
		{"changed", checked(Profile{}), parts[0] + "." + b64(`{"iss":"`+iss+`","client_id":"`+clientID+`"}`) + "." + parts[2], "not the issuer's"},
		{"alg none", checked(Profile{}), b64(`{"alg":"none"}`) + "." + parts[1] + ".", "allowed algorithm"},
		{"public key as secret", checked(Profile{}), signJWT(t, jose.HS256, public, "r", of(nil)), "allowed algorithm"},
		{"not pinned", checked(Profile{Algorithms: []string{"ES256"}}), good, "allowed algorithm"},
		{"another issuer", checked(Profile{}), rs(map[string]any{"iss": iss + "/"}), "another issuer"},
		{"no keys known", Profile{Issuer: iss}, good, "set issuer and jwks_uri"},
		{"opaque", checked(Profile{}), "opaque", "opaque"},
		{"ID token, nonce", checked(Profile{}), rs(map[string]any{"nonce": "n"}), "no access token"},
		{"ID token, at_hash", checked(Profile{}), rs(map[string]any{"at_hash": "n"}), "no access token"},
		{"logout", checked(Profile{}), rs(map[string]any{"events": map[string]any{}}), "no access token"},
		{"Keycloak's", checked(Profile{}), rs(map[string]any{"typ": "ID"}), "no access token"},
		{"of a login", checked(people), rs(nil), ""},
		{"of a login, by azp", checked(people), rs(map[string]any{"client_id": nil, "azp": clientID}), ""},
		{"bare ID token of a login", checked(people), rs(map[string]any{"client_id": nil, "azp": clientID, "scope": nil}), "no access token"},
	} {
		s := &server{jwks: func() reply { return reply{status: 200, body: jwks(t, listed()...)} }}
		got, err := open(t, c.p, s, clock.System{}).Vouch(t.Context(), material(), []byte(c.token))
		switch {
		case (err == nil) != (c.says == ""):
			t.Errorf("%s: %v", c.name, err)
		case err == nil && (got.ClientID != clientID || got.JTI != "j-1" || got.Issued.IsZero() || got.Expires.Sub(got.Issued) != 15*time.Minute):
			t.Errorf("%s: %+v", c.name, got)
		case err != nil && (!strings.Contains(err.Error(), c.says) || got != Statement{}):
			t.Errorf("%s: %v, %+v", c.name, err, got)
		}
		if s.minted != 0 {
			t.Errorf("%s: a secret was shown", c.name)
		}
	}
}

// A JWT that brokers sign themselves is vouched for by the client's secret.
func TestVouchSelfSigned(t *testing.T) {
	c := zgwClient(t, JWT{Claims: []string{"jti"}}, clock.System{})
	tok, err := c.Sign(zgw(), User{ID: "jan"})
	if err != nil {
		t.Fatal(err)
	}
	jwt := reveal(t, tok.Access)
	parts := strings.Split(jwt, ".")
	got, err := c.Vouch(t.Context(), zgw(), []byte(jwt))
	if err != nil || got.ClientID != clientID || got.JTI != tok.JTI || got.Issued.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	claimed := b64(`{"alg":"HS512"}`) + "." + parts[1] + "."
	for name, x := range map[string]struct {
		m     Material
		token string
	}{
		"another name for HS256": {zgw(), claimed + macOf(sha256.New, zgwSecret, claimed)},
		"another secret":         {bundle(map[string]string{"client_secret": "other"}), jwt},
		"no secret":              {bundle(nil), jwt},
		"HS512":                  {zgw(), b64(`{"alg":"HS512"}`) + "." + parts[1] + "." + parts[2]},
		"none":                   {zgw(), b64(`{"alg":"none"}`) + "." + parts[1] + "."},
		"changed":                {zgw(), parts[0] + "." + b64(`{"client_id":"x"}`) + "." + parts[2]},
		"no base64":              {zgw(), parts[0] + "." + parts[1] + ".?"},
		"opaque":                 {zgw(), "opaque"},
	} {
		if got, err := c.Vouch(t.Context(), x.m, []byte(x.token)); err == nil || (got != Statement{}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
