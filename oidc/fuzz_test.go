package oidc

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/clock"
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
