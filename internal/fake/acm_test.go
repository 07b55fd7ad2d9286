package fake

import (
	"crypto/ed25519"
	"crypto/tls"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"testing/synctest"
	"time"
)

const (
	acmID     = "6f1c1a52-0c8e-4e0f-9d55-2f6f3c0b7a11"
	oddID     = "a+b/c:d%é"
	oddSecret = "p+q/r:s%41é ~*"
	host      = "https://acm.example"
)

func basicHeader(id, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))
}

func TestACMSecrets(t *testing.T) {
	a := &ACM{}
	register(t, a, Client{ID: acmID, Secret: "s1"}, Client{ID: oddID, Secret: oddSecret}, Client{ID: "only-basic", Secret: "s", Auth: "client_secret_basic"})
	grant := form("grant_type", "client_credentials")
	e := url.QueryEscape
	for _, c := range []struct {
		name   string
		path   string
		form   url.Values
		header string
		status int
		code   string
	}{
		{"post", "", with(grant, "client_id", acmID, "client_secret", "s1"), "", 200, ""},
		{"post, odd characters", "", with(grant, "client_id", oddID, "client_secret", oddSecret), "", 200, ""},
		{"post, wrong", "", with(grant, "client_id", acmID, "client_secret", "s2"), "", 401, "invalid_client"},
		{"post, no such client", "", with(grant, "client_id", "x", "client_secret", ""), "", 401, "invalid_client"},
		{"basic", "", grant, basicHeader(acmID, "s1"), 200, ""},
		{"basic, encoded", "", grant, basicHeader(e(oddID), e(oddSecret)), 200, ""},
		{"basic, encoded as in an address", "", grant, basicHeader(url.PathEscape("a+b"), "x"), 401, "invalid_client"},
		{"basic, raw", "", grant, basicHeader(oddID, oddSecret), 401, "invalid_client"},
		{"basic, raw +", "", grant, basicHeader(e(oddID), "p+q%2Fr%3As%2541%C3%A9+~*"), 401, "invalid_client"},
		{"basic, raw %", "", grant, basicHeader(e(oddID), "p%2Bq%2Fr%3As%41%C3%A9+~*"), 401, "invalid_client"},
		{"basic, % alone", "", grant, basicHeader(acmID, "s1%"), 401, "invalid_client"},
		{"basic, raw é", "", grant, basicHeader("a%2Bb%2Fc%3Ad%25é", e(oddSecret)), 401, "invalid_client"},
		{"basic, no base64", "", grant, "Basic !", 401, "invalid_client"},
		{"another scheme", "", grant, "Digest a", 401, "invalid_client"},
		{"two methods", "", with(grant, "client_id", acmID, "client_secret", "s1"), basicHeader(acmID, "s1"), 400, "invalid_request"},
		{"basic, with another client_id", "", with(grant, "client_id", oddID), basicHeader(acmID, "s1"), 401, "invalid_client"},
		{"in the address", "?client_secret=s1&client_id=" + acmID, grant, "", 400, "invalid_request"},
		{"not the registered method", "", with(grant, "client_id", "only-basic", "client_secret", "s"), "", 401, "invalid_client"},
		{"no authentication", "", with(grant, "client_id", acmID), "", 401, "invalid_client"},
		{"twice", "", url.Values{"grant_type": {"client_credentials"}, "client_id": {acmID}, "client_secret": {"s1", "s1"}}, "", 400, "invalid_request"},
		{"another grant", "", form("grant_type", "password", "client_id", acmID, "client_secret", "s1"), "", 400, "unsupported_grant_type"},
	} {
		var header []string
		if c.header != "" {
			header = []string{"Authorization", c.header}
		}
		status, doc, h := send(t, a.RoundTripper(), host+"/op/v1/token"+c.path, c.form, header...)
		expect(t, c.name, status, doc, c.status, c.code)
		if (h.Get("WWW-Authenticate") != "") != (c.status == 401 && c.header != "") {
			t.Errorf("%s: WWW-Authenticate %q", c.name, h.Get("WWW-Authenticate"))
		}
	}
	if st := a.Stats(); st.PerMethod[secretBasic] != 2 || st.PerMethod[secretPost] != 3 || st.Minted != 4 || st.PerSecret["s2"] != 1 || st.Refused != 13 {
		t.Errorf("%+v", st)
	}
	a.SetSecret(acmID, "s9", false)
	status, doc, _ := send(t, a.RoundTripper(), host+"/op/v1/token", with(grant, "client_id", acmID, "client_secret", "s1"))
	expect(t, "an old secret", status, doc, 401, "invalid_client")
	status, doc, _ = request(t, a.RoundTripper(), http.MethodPost, host+"/op/v1/token", []byte(`{}`), "Content-Type", "application/json")
	expect(t, "JSON", status, doc, 400, "invalid_request")
}

func TestACMAssertions(t *testing.T) {
	ec, ed := ecKey(t), ed25519.NewKeyFromSeed(make([]byte, 32))
	a := &ACM{}
	register(t, a, Client{ID: acmID, Secret: "a secret that is longer than 32 bytes", Keys: []string{rsaJWK(t, claims{"kid": "mine"}), ecJWK(t, ec, nil), edJWK(ed)}}, Client{ID: "other"})
	kid := keyID(&rsaKey(t).PublicKey)
	now := time.Now().Unix()
	good := claims{"iss": acmID, "sub": acmID, "aud": host + "/op", "iat": now, "exp": now + 60}
	rs := claims{"alg": "RS256"}
	for _, c := range []struct {
		name   string
		key    any
		header claims
		claims claims
		ok     bool
	}{
		{"RS256, no kid", rsaKey(t), rs, nil, true},
		{"RS256, the thumbprint", rsaKey(t), claims{"alg": "RS256", "kid": kid}, nil, true},
		{"RS256, its own kid", rsaKey(t), claims{"alg": "RS256", "kid": "mine"}, nil, true},
		{"ES256", ec, claims{"alg": "ES256"}, nil, true},
		{"aud in a list", rsaKey(t), rs, claims{"aud": []string{host + "/op"}}, true},
		{"iat 5 s ahead", rsaKey(t), rs, claims{"iat": now + 4}, true},
		{"ten minutes", rsaKey(t), rs, claims{"exp": now + 600}, true},
		{"another key's kid", rsaKey(t), claims{"alg": "RS256", "kid": "x"}, nil, false},
		{"another key", ecKey(t), claims{"alg": "ES256"}, nil, false},
		{"EdDSA", ed, claims{"alg": "EdDSA"}, nil, false},
		{"a secret", "a secret that is longer than 32 bytes", claims{"alg": "HS256"}, nil, false},
		{"none", "", claims{"alg": "none"}, nil, false},
		{"another algorithm's name", rsaKey(t), claims{"alg": "PS256"}, nil, false},
		{"the token endpoint as aud", rsaKey(t), rs, claims{"aud": host + "/op/v1/token"}, false},
		{"a slash more", rsaKey(t), rs, claims{"aud": host + "/op/"}, false},
		{"two in aud", rsaKey(t), rs, claims{"aud": []string{host + "/op", "x"}}, false},
		{"no aud", rsaKey(t), rs, claims{"aud": nil}, false},
		{"another sub", rsaKey(t), rs, claims{"sub": "other"}, false},
		{"another client", rsaKey(t), rs, claims{"iss": "other", "sub": "other"}, false},
		{"no such client", rsaKey(t), rs, claims{"iss": "x", "sub": "x"}, false},
		{"no jti", rsaKey(t), rs, claims{"jti": ""}, false},
		{"no iat", rsaKey(t), rs, claims{"iat": nil}, false},
		{"no exp", rsaKey(t), rs, claims{"exp": nil}, false},
		{"expired", rsaKey(t), rs, claims{"exp": now - 1}, false},
		{"eleven minutes", rsaKey(t), rs, claims{"exp": now + 660}, false},
		{"of the future", rsaKey(t), rs, claims{"iat": now + 30}, false},
		{"not before the future", rsaKey(t), rs, claims{"nbf": now + 30}, false},
	} {
		f := form("grant_type", "client_credentials", "client_assertion_type", assertionType,
			"client_assertion", jws(t, c.key, c.header, but(but(good, claims{"jti": jti()}), c.claims)))
		status, doc, _ := send(t, a.RoundTripper(), host+"/op/v1/token", f)
		if c.ok {
			expect(t, c.name, status, doc, 200, "")
			status, doc, _ = send(t, a.RoundTripper(), host+"/op/v1/token", f)
			expect(t, c.name+", once more", status, doc, 401, "invalid_client")
			continue
		}
		expect(t, c.name, status, doc, 401, "invalid_client")
	}
	if st := a.Stats(); st.Replayed != 7 || st.PerMethod[privateKeyJWT] != 7 || st.Minted != 7 || st.Refused != 27 {
		t.Errorf("%+v", st)
	}
	f := form("grant_type", "client_credentials", "client_assertion", jws(t, rsaKey(t), rs, but(good, claims{"jti": jti()})))
	status, doc, _ := send(t, a.RoundTripper(), host+"/op/v1/token", f)
	expect(t, "no type", status, doc, 401, "invalid_client")
	status, doc, _ = send(t, a.RoundTripper(), host+"/op/v1/token", with(f, "client_assertion_type", assertionType, "client_secret", "x"))
	expect(t, "with a secret", status, doc, 400, "invalid_request")
	status, doc, _ = send(t, a.RoundTripper(), host+"/op/v1/token", with(f, "client_assertion_type", assertionType, "client_id", "other"))
	expect(t, "with another client_id", status, doc, 401, "invalid_client")
}

func edJWK(k ed25519.PrivateKey) string {
	return `{"kty":"OKP","crv":"Ed25519","x":"` + base64.RawURLEncoding.EncodeToString(k[32:]) + `"}`
}

func TestRegisterTakesPublicKeysOnly(t *testing.T) {
	ec := ecKey(t)
	d, err := ec.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]string{
		"private": ecJWK(t, ec, claims{"d": base64.RawURLEncoding.EncodeToString(d)}), "symmetric": `{"kty":"oct","k":"c2VjcmV0"}`,
		"no key": `{}`, "nothing": "", "PEM of a key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "PEM of nothing": "-----BEGIN",
		"PEM of no certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
	} {
		if (&ACM{}).Register(Client{ID: "a", Keys: []string{key}}) == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
	if err := (&ACM{}).Register(Client{ID: "a", Keys: []string{`{"keys":[` + ecJWK(t, ec, nil) + `]}`}}); err != nil {
		t.Error(err)
	}
}

func TestACMScopesAndAudiences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &ACM{}
		rt := a.RoundTripper()
		register(t, a, Client{ID: acmID, Secret: "s", Scopes: []string{"vo_info", "awv"}, Audiences: []string{"api-1", "https://api.example/v1"}}, Client{ID: "bare", Secret: "s"})
		mine := form("grant_type", "client_credentials", "client_id", acmID, "client_secret", "s")
		for _, c := range []struct {
			name  string
			form  url.Values
			scope string
			aud   any
			code  string
		}{
			{"defaults", mine, "vo_info awv", acmID, ""},
			{"one", with(mine, "scope", "awv"), "awv", acmID, ""},
			{"narrower", with(mine, "scope", "awv x awv"), "awv", acmID, ""},
			{"none left", with(mine, "scope", "x"), "", nil, "invalid_scope"},
			{"none to give", with(mine, "client_id", "bare"), "", "bare", ""},
			{"audience", with(mine, "audience", "api-1"), "vo_info awv", "api-1", ""},
			{"resource", with(mine, "resource", "https://api.example/v1"), "vo_info awv", "https://api.example/v1", ""},
			{"not a valid audience", with(mine, "audience", "api-2"), "vo_info awv", acmID, ""},
			{"any audience", with(mine, "client_id", "bare", "audience", "api-2"), "", "api-2", ""},
			{"not a resource", with(mine, "resource", "api-1"), "", nil, "invalid_target"},
		} {
			status, doc, _ := send(t, rt, host+"/op/v1/token", c.form)
			if c.code != "" {
				expect(t, c.name, status, doc, 400, c.code)
				continue
			}
			expect(t, c.name, status, doc, 200, "")
			if doc["scope"] != c.scope || doc["token_type"] != "Bearer" || doc["expires_in"] != 28800.0 {
				t.Errorf("%s: %v", c.name, doc)
			}
			_, seen, _ := send(t, rt, host+"/op/v1/introspect", form("client_id", acmID, "client_secret", "s", "token", doc["access_token"].(string)))
			if seen["active"] != true || seen["aud"] != c.aud || seen["scope"] != c.scope || seen["exp"] != float64(time.Now().Unix()+28800) {
				t.Errorf("%s: %v", c.name, seen)
			}
		}
		status, doc, _ := send(t, rt, host+"/op/v1/introspect", form("token", "x"))
		expect(t, "introspection by nobody", status, doc, 401, "invalid_client")
		_, doc, _ = send(t, rt, host+"/op/v1/introspect", form("client_id", acmID, "client_secret", "s", "token", "x"))
		if len(doc) != 1 || doc["active"] != false {
			t.Errorf("no such token: %v", doc)
		}
	})
}

func TestACMAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &ACM{Lifetime: time.Minute}
		register(t, a, Client{ID: acmID, Secret: "s"})
		_, doc, _ := send(t, a.RoundTripper(), host+"/op/v1/token", form("grant_type", "client_credentials", "client_id", acmID, "client_secret", "s", "audience", "api-1"))
		token, _ := doc["access_token"].(string)
		if doc["expires_in"] != 60.0 {
			t.Errorf("%v", doc)
		}
		get := func(audience, header string) int {
			status, _, h := request(t, Local(a.API(audience)), http.MethodGet, "https://api.example/", nil, "Authorization", header)
			if (status == 401) != (h.Get("WWW-Authenticate") != "") {
				t.Errorf("%d without a reason", status)
			}
			return status
		}
		if get("", "Bearer "+token) != 200 || get("api-1", "Bearer "+token) != 200 || a.Stats().APICalls != 2 {
			t.Error("its own token is refused")
		}
		if get("api-2", "Bearer "+token) != 401 || get("", "Bearer x") != 401 || get("", token) != 401 || get("", "") != 401 {
			t.Error("a wrong token passes")
		}
		time.Sleep(time.Minute)
		if get("", "Bearer "+token) != 401 {
			t.Error("an expired token passes")
		}
	})
}

func TestACMMetadata(t *testing.T) {
	a := &ACM{}
	_, doc, _ := request(t, a.RoundTripper(), http.MethodGet, host+"/op/.well-known/openid-configuration", nil)
	methods, _ := doc["token_endpoint_auth_methods_supported"].([]any)
	if doc["issuer"] != host+"/op" || doc["token_endpoint"] != host+"/op/v1/token" || len(methods) != 2 || doc["revocation_endpoint"] != nil {
		t.Errorf("%v", doc)
	}
	if _, doc, _ = request(t, a.RoundTripper(), http.MethodGet, host+"/op/v1/keys", nil); len(doc["keys"].([]any)) != 1 {
		t.Errorf("%v", doc)
	}
	if status, _, _ := request(t, a.RoundTripper(), http.MethodGet, host+"/op/v1/revoke", nil); status != 404 {
		t.Errorf("there is a revocation: %d", status)
	}
	if st := a.Stats(); st.Metadata != 1 || st.JWKS != 1 || st.Requests != 0 {
		t.Errorf("%+v", st)
	}
}

// The issuer is what the client sees, over a real connection too.
func TestACMOverTheNetwork(t *testing.T) {
	a := &ACM{}
	srv := httptest.NewTLSServer(a)
	defer srv.Close()
	register(t, a, Client{ID: acmID, Keys: []string{rsaJWK(t, nil)}})
	rt := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	now := time.Now().Unix()
	for aud, want := range map[string]int{srv.URL + "/op": 200, host + "/op": 401} {
		a := jws(t, rsaKey(t), claims{"alg": "RS256"}, claims{"iss": acmID, "sub": acmID, "aud": aud, "iat": now, "exp": now + 60, "jti": jti()})
		status, doc, _ := send(t, rt, srv.URL+"/op/v1/token", form("grant_type", "client_credentials", "client_assertion_type", assertionType, "client_assertion", a))
		if status != want {
			t.Errorf("%s: %d %v", aud, status, doc)
		}
	}
}
