package oidc

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
)

func FuzzTokenAnswer(f *testing.F) {
	for _, s := range []string{good, "", "null", `{"error":"invalid_client"}`, `{"access_token":"a\u0000b","token_type":"bearer","expires_in":"9e9"}`,
		`{"access_token":"` + b64(`{"alg":"none"}`) + "." + b64(`{"exp":1,"iat":-1e308,"jti":"\n"}`) + `.","token_type":"BEARER","scope":"a b"}`,
		`{"access_token":"\ud800","token_type":"bearer"}`, "<html>", strings.Repeat("[", 20000)} {
		f.Add(200, "application/json", []byte(s))
	}
	f.Add(401, "application/json;charset=\"", []byte(`{"error":"invalid_client"}`))
	f.Add(403, "text/html", []byte("<html>"))
	f.Fuzz(func(t *testing.T, status int, ctype string, body []byte) {
		tok, err := mint(t, Profile{}, reply{status: status, ctype: ctype, body: string(body)}, Request{Scope: "asked"})
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Kind == "" || e.Message == "" {
				t.Fatalf("%#v", err)
			}
			if e.Kind == InvalidClient && (status != 400 && status != 401 || !strings.Contains(strings.ToLower(ctype), "json")) {
				t.Errorf("status %d, %q: the secret is judged", status, ctype)
			}
			if text := string(body); len(text) > 30 && strings.Contains(e.Error(), text) {
				t.Errorf("the answer shows in %q", e)
			}
			return
		}
		access := reveal(t, tok.Access)
		if !printable([]byte(access), maxToken) || len(tok.Fingerprint) != 43 || status != 200 {
			t.Errorf("a token of %q", access)
		}
		if life := tok.Expires.Sub(tok.Sent); life < time.Second || life > 24*time.Hour {
			t.Errorf("lives %v", life)
		}
		if tok.JTI != "" && !printable([]byte(tok.JTI), maxJTI) || strings.ContainsAny(tok.Scope, "\r\n\x00\"\\") {
			t.Errorf("jti %q, scope %q", tok.JTI, tok.Scope)
		}
	})
}

func FuzzMetadata(f *testing.F) {
	f.Add("application/json", []byte(document(nil)))
	f.Add("application/json", []byte(document(map[string]any{"issuer": op + "/", "mtls_endpoint_aliases": []int{1}, "jwks_uri": "http://127.0.0.1/"})))
	f.Add("text/html", []byte("<html>"))
	f.Add("application/json", []byte(`{"issuer":"https://op.example/tenant","token_endpoint":"https://user:password@x/#y","jwks_uri":"\ud800"}`))
	f.Fuzz(func(t *testing.T, ctype string, body []byte) {
		c := discover(t, Profile{}, reply{status: 200, ctype: ctype, body: string(body)}, clock.System{})
		for _, name := range []string{tokenEndpoint, authorizationEndpoint, revocationEndpoint, introspectionEndpoint, keysEndpoint} {
			for _, certificate := range []bool{false, true} {
				u, err := c.find(t.Context(), name, certificate)
				if err != nil {
					var e *Error
					if !errors.As(err, &e) || e.Kind != Protocol || e.Message == "" {
						t.Fatalf("%#v", err)
					}
					continue
				}
				if u != nil && (u.Scheme != "https" || u.Host == "" || u.User != nil) {
					t.Errorf("%s: %s", name, u)
				}
			}
		}
		if _, err := c.metadata.get(t.Context(), nil); err == nil {
			var m map[string]any
			if json.Unmarshal(body, &m) != nil || m["issuer"] != op {
				t.Errorf("taken: %s", body)
			}
		}
	})
}

func FuzzIntrospection(f *testing.F) {
	f.Add([]byte(`{"active":true,"scope":"a b","exp":1700000000,"client_id":"x","token_type":"Bearer"}`))
	f.Add([]byte(`{"active":false}`))
	f.Add([]byte(`{"active":true,"exp":"9e999","scope":null}`))
	f.Add([]byte(`{"active":true,"active":false}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := open(t, Profile{IntrospectionEndpoint: introspect}, reply{status: 200, body: string(body)}, clock.System{}).
			Introspect(t.Context(), material(), secret.FromString("tok"))
		switch {
		case err != nil && (got != Introspection{} || KindOf(err) != Protocol):
			t.Errorf("%+v, %v", got, err)
		case !got.Active && (got != Introspection{}):
			t.Errorf("%+v", got)
		case strings.ContainsAny(got.Scope, "\r\n\x00\"\\") || got.Expires.Year() > 9999:
			t.Errorf("%+v", got)
		}
	})
}

// A token of others is looked at without its key.
func FuzzInspect(f *testing.F) {
	for _, s := range []string{`{"iss":"x","exp":1,"iat":-1e308,"jti":"\n"}`, `{"cnf":{"x5t#S256":"` + strings.Repeat("x", 43) + `"},"exp":99999999999}`,
		`{"cnf":{"x5t#S256":["x"]}}`, `{"cnf":"x"}`, `null`, ``} {
		f.Add([]byte(b64(`{"alg":"none"}`) + "." + b64(s) + "."))
	}
	f.Add([]byte("opaque"))
	f.Fuzz(func(t *testing.T, token []byte) {
		r := clock.Reading{Boot: time.Hour, Wall: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
		a := &answer{host: "issuer.example", header: http.Header{}, sent: r, received: r}
		for _, p := range []Profile{{}, checked(Profile{}), {CertificateBound: true}} {
			c := open(t, p, reply{status: 200, body: jwks(t, listed()...)}, clock.System{})
			cl, lives, err := c.inspect(t.Context(), a, token)
			if err == nil && p.JWKSURI != "" && cl.jwt {
				t.Fatalf("%s is signed by nobody", token)
			}
			if err == nil && (lives != 0 && lives < 1 || cl.jti != "" && !printable([]byte(cl.jti), maxJTI)) {
				t.Errorf("lives %v, jti %q", lives, cl.jti)
			}
			bound, err := c.bound(a, &request{bound: pair().thumbprint}, cl)
			if err == nil && bound != "" && bound != pair().thumbprint {
				t.Errorf("bound to %q", bound)
			}
		}
	})
}

func FuzzJWKS(f *testing.F) {
	f.Add([]byte(jwks(f, listed()...)))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"","e":"AQAB"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},{"kty":"OKP","crv":"Ed25519","x":""}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		list := parseJWKS(body)
		if len(list) > maxKeys {
			t.Errorf("%d keys", len(list))
		}
		for _, k := range list {
			if _, symmetric := k.Key.([]byte); symmetric || !k.IsPublic() {
				t.Errorf("a key that is not public: %T", k.Key)
			}
		}
	})
}

func FuzzTimes(f *testing.F) {
	f.Add("Fri, 02 Jan 2026 03:04:05 GMT", "30")
	f.Add("Friday, 02-Jan-26 03:04:05 GMT", "Fri, 31 Dec 9999 23:59:59 GMT")
	f.Add("Fri Jan  2 03:04:05 2026", "-1")
	f.Fuzz(func(t *testing.T, date, after string) {
		r := clock.Reading{Boot: time.Hour, Wall: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
		a := answer{header: http.Header{"Date": {date}, "Retry-After": {after}}, sent: r, received: r}
		if d := a.retryAfter(); d < 0 || d > time.Hour {
			t.Errorf("%q: %v", after, d)
		}
		_ = a.clockHint() // must not panic, however far apart the clocks
	})
}
