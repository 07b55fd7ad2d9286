package fake

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestZGW(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &ZGW{}
		register(t, z, Client{ID: "zaakapp", Secret: "short"}, Client{ID: "empty"})
		now := time.Now().Unix()
		hs := claims{"typ": "JWT", "alg": "HS256"}
		good := claims{"iss": "zaakapp", "iat": now, "client_id": "zaakapp", "user_id": "u1", "user_representation": "Ann Peeters"}
		token := func(key any, header, changes claims) string {
			return "Bearer " + jws(t, key, header, but(good, changes))
		}
		none := strings.TrimRight(token("", claims{"alg": "none"}, nil), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
		for _, c := range []struct {
			name, header, code string
		}{
			{"good", token("short", hs, nil), ""},
			{"of an hour ago", token("short", hs, claims{"iat": now - 3599}), ""},
			{"with exp, nbf, jti", token("short", hs, claims{"exp": now + 1, "nbf": now, "jti": "1"}), ""},
			{"2018", token("short", claims{"alg": "HS256", "client_identifier": "zaakapp"}, claims{"client_id": nil, "user_id": nil, "zds": claims{"scopes": []string{"a"}}}), ""},
			{"no header", "", "not_authenticated"},
			{"no JWT", "Bearer abc", "jwt-decode-error"},
			{"no JSON", "Bearer YQ.YQ.YQ", "jwt-decode-error"},
			{"none", none, "jwt-decode-error"},
			{"RS256", token(rsaKey(t), claims{"alg": "RS256"}, nil), "jwt-decode-error"},
			{"no client", token("short", hs, claims{"client_id": nil}), "missing-client-identifier"},
			{"another client", token("short", hs, claims{"client_id": "x"}), "invalid-client-identifier"},
			{"a client without a secret", token("", hs, claims{"client_id": "empty"}), "invalid-client-identifier"},
			{"another secret", token("longer", hs, nil), "invalid-jwt-signature"},
			{"tampered", strings.Replace(token("short", hs, nil), part(t, good), part(t, but(good, claims{"user_id": "u2"})), 1), "invalid-jwt-signature"},
			{"no iat", token("short", hs, claims{"iat": nil}), "jwt-missing-iat-claim"},
			{"of the future", token("short", hs, claims{"iat": now + 1}), "jwt-decode-error"},
			{"too old", token("short", hs, claims{"iat": now - 3600}), "jwt-expired"},
			{"expired", token("short", hs, claims{"exp": now}), "jwt-expired"},
			{"not before", token("short", hs, claims{"nbf": now + 1}), "jwt-decode-error"},
		} {
			var header []string
			if c.header != "" {
				header = []string{"Authorization", c.header}
			}
			status, doc, h := request(t, z.RoundTripper(), http.MethodGet, "https://zaken.example/zaken/api/v1/zaken", nil, header...)
			code, _ := doc["code"].(string)
			want, kind := http.StatusOK, "application/json"
			if c.code != "" {
				want, kind = http.StatusForbidden, "application/problem+json"
			}
			if status != want || code != c.code || !strings.HasPrefix(h.Get("Content-Type"), kind) {
				t.Errorf("%s: %d %v %v, want %d %q", c.name, status, h, doc, want, c.code)
			}
			if id, name := z.User(); c.name == "good" && (id != "u1" || name != "Ann Peeters") {
				t.Errorf("%q, %q", id, name)
			}
		}
		if id, name := z.User(); id != "" || name != "Ann Peeters" {
			t.Errorf("the last one let in is that of 2018: %q, %q", id, name)
		}
		if st := z.Stats(); st.APICalls != 4 || st.Refused != 14 {
			t.Errorf("%+v", st)
		}
		get := func(header string) string {
			_, doc, _ := request(t, z.RoundTripper(), http.MethodGet, "https://zaken.example/zaken/api/v1/zaken", nil, "Authorization", header)
			code, _ := doc["code"].(string)
			return code
		}
		z.SetSecret("zaakapp", "next", true)
		if get(token("next", hs, nil)) != "" || get(token("short", hs, nil)) != "" {
			t.Error("with an overlap, both must work")
		}
		z.SetSecret("zaakapp", "next", false)
		if get(token("short", hs, nil)) != "invalid-jwt-signature" {
			t.Error("the old secret works")
		}
		z.NoAC = true
		if code := get(token("next", hs, nil)); code != "not_authenticated_for_ac" {
			t.Error(code)
		}
		if status, _, _ := request(t, z.RoundTripper(), http.MethodGet, "https://zaken.example/", nil); status != 404 {
			t.Error(status)
		}
		z.Set(Fault{Kind: Unavailable})
		if status, _, _ := request(t, z.RoundTripper(), http.MethodGet, "https://zaken.example/zaken/api/v1/zaken", nil); status != 503 {
			t.Error(status)
		}
	})
}
