package fake

import (
	"net/http"
	"net/url"
	"testing"
	"testing/synctest"
	"time"
)

const geoHost = "https://Beta.OAuth.example"

func TestGeosecureAssertions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Geosecure{}
		key := ecKey(t)
		cert, certPEM := certify(t, "6595", key, nil, nil)
		register(t, g, Client{ID: "6594", Keys: []string{rsaJWK(t, nil)}, Scopes: []string{"vo_info"}}, Client{ID: "6595", Keys: []string{certPEM}}, Client{ID: "abc", Keys: []string{rsaJWK(t, nil)}})
		thumb := keyID(&rsaKey(t).PublicKey)
		aud := "https://beta.oauth.example/authorization/ws/oauth/v2/token"
		now := time.Now().Unix()
		rs := claims{"alg": "RS256", "kid": thumb}
		for _, c := range []struct {
			name   string
			key    any
			header claims
			claims claims
			code   string
		}{
			{"good", rsaKey(t), rs, nil, ""},
			{"made ten minutes ago", rsaKey(t), rs, claims{"iat": now - 590, "exp": now + 10}, ""},
			{"a certificate", key, claims{"alg": "ES256", "kid": x5t(cert)}, claims{"iss": "6595", "sub": "6595"}, ""},
			{"a certificate's key by its other thumbprint", key, claims{"alg": "ES256", "kid": x5tS256(cert)}, claims{"iss": "6595", "sub": "6595"}, "invalid_client"},
			{"no kid", rsaKey(t), claims{"alg": "RS256"}, nil, "invalid_client"},
			{"another kid", rsaKey(t), claims{"alg": "RS256", "kid": "x"}, nil, "invalid_client"},
			{"aud as it is written", rsaKey(t), rs, claims{"aud": geoHost + "/authorization/ws/oauth/v2/token"}, "invalid_client"},
			{"aud with a slash", rsaKey(t), rs, claims{"aud": aud + "/"}, "invalid_client"},
			{"aud is no issuer", rsaKey(t), rs, claims{"aud": "https://beta.oauth.example"}, "invalid_client"},
			{"a jti that is no GUID", rsaKey(t), rs, claims{"jti": "1234567890123456789012345678901234-6"}, "invalid_client"},
			{"a short GUID", rsaKey(t), rs, claims{"jti": "6f1c1a52-0c8e-4e0f-9d55"}, "invalid_client"},
			{"eleven minutes from iat", rsaKey(t), rs, claims{"iat": now - 600, "exp": now + 60}, "invalid_client"},
			{"no integer", rsaKey(t), rs, claims{"iss": "abc", "sub": "abc"}, "invalid_client"},
		} {
			good := claims{"iss": "6594", "sub": "6594", "aud": aud, "iat": now, "exp": now + 600, "jti": jti()}
			f := form("grant_type", "client_credentials", "client_assertion_type", assertionType, "client_assertion", jws(t, c.key, c.header, but(good, c.claims)))
			status, doc, _ := send(t, g.RoundTripper(), geoHost+geosecureToken, f)
			if c.code != "" {
				expect(t, c.name, status, doc, 400, c.code)
				continue
			}
			expect(t, c.name, status, doc, 200, "")
			status, doc, _ = send(t, g.RoundTripper(), geoHost+geosecureToken, f)
			expect(t, c.name+", once more", status, doc, 400, "invalid_client")
		}
		if st := g.Stats(); st.Minted != 3 || st.Replayed != 3 {
			t.Errorf("%+v", st)
		}
		g.Base = "https://Public.example"
		good := claims{"iss": "6594", "sub": "6594", "aud": "https://public.example" + geosecureToken, "iat": now, "exp": now + 600, "jti": jti()}
		status, doc, _ := send(t, g.RoundTripper(), "https://inside.example"+geosecureToken, form("grant_type", "client_credentials",
			"client_assertion_type", assertionType, "client_assertion", jws(t, rsaKey(t), rs, good)))
		expect(t, "the address that clients are told", status, doc, 200, "")
	})
}

func TestGeosecureErrorsAreAll400(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Geosecure{}
		register(t, g, Client{ID: "6594", Secret: "s+", Scopes: []string{"a", "b"}})
		mine := basicHeader("6594", url.QueryEscape("s+"))
		for _, c := range []struct {
			name, header string
			form         url.Values
			code         string
		}{
			{"basic", mine, form("grant_type", "client_credentials", "scope", "b c"), ""},
			{"raw", basicHeader("6594", "s+"), form("grant_type", "client_credentials"), "invalid_client"},
			{"no secret in the form", "", form("grant_type", "client_credentials", "client_id", "6594", "client_secret", "s+"), "invalid_client"},
			{"scope", mine, form("grant_type", "client_credentials", "scope", "c"), "invalid_scope"},
			{"grant", mine, form("grant_type", "x"), "unsupported_grant_type"},
		} {
			var header []string
			if c.header != "" {
				header = []string{"Authorization", c.header}
			}
			status, doc, _ := send(t, g.RoundTripper(), geoHost+geosecureToken, c.form, header...)
			if c.code != "" {
				expect(t, c.name, status, doc, 400, c.code)
				continue
			}
			expect(t, c.name, status, doc, 200, "")
			if doc["scope"] != "b" || doc["expires_in"] != 3600.0 {
				t.Errorf("%v", doc)
			}
			verify := func() int {
				status, _, _ := request(t, g.RoundTripper(), http.MethodGet, geoHost+"/authorization/ws/oauth/v2/authorization/verify", nil, "Authorization", "Bearer "+doc["access_token"].(string))
				return status
			}
			if verify() != 200 {
				t.Error("its own token does not verify")
			}
			time.Sleep(time.Hour)
			if verify() != 401 {
				t.Error("an expired token verifies")
			}
		}
		status, doc, _ := request(t, g.RoundTripper(), http.MethodGet, geoHost+geosecureToken, nil)
		expect(t, "a GET", status, doc, 400, "invalid_request")
	})
}
