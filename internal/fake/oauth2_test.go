package fake

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"testing/synctest"
	"time"
)

const asHost = "https://as.example"

func certified(rt http.RoundTripper, cert *x509.Certificate, key *ecdsa.PrivateKey) http.RoundTripper {
	return rt.(interface {
		WithCertificate(tls.Certificate) http.RoundTripper
	}).WithCertificate(tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key})
}

func TestOAuth2Methods(t *testing.T) {
	caKey, key, ownKey := ecKey(t), ecKey(t), ecKey(t)
	ca, _ := certify(t, "Authority", caKey, nil, nil)
	known, _ := certify(t, "app", key, ca, caKey)
	impostor, _ := certify(t, "app", ownKey, nil, nil) // the right name, by itself
	colleague, _ := certify(t, "app2", key, ca, caKey)
	own, ownPEM := certify(t, "self", ownKey, nil, nil)
	ed := ed25519.NewKeyFromSeed(make([]byte, 32))
	o := &OAuth2{ClientCAs: x509.NewCertPool()}
	o.ClientCAs.AddCert(ca)
	secret := "a secret of no less than 32 bytes"
	register(t, o, Client{ID: "post", Secret: secret}, Client{ID: "pk", Keys: []string{rsaJWK(t, nil), edJWK(ed)}}, Client{ID: "weak", Secret: "short"},
		Client{ID: "ca", Subject: "CN=app,O=Example"}, Client{ID: "self", Keys: []string{ownPEM}}, Client{ID: "public", Auth: "none"})
	now := time.Now().Unix()
	assert := func(key any, alg, id, aud string) url.Values {
		return form("grant_type", "client_credentials", "client_id", id, "client_assertion_type", assertionType,
			"client_assertion", jws(t, key, claims{"alg": alg}, claims{"iss": id, "sub": id, "aud": aud, "iat": now, "exp": now + 60, "jti": jti()}))
	}
	bare := func(id string) url.Values { return form("grant_type", "client_credentials", "client_id", id) }
	plain := o.RoundTripper()
	for _, c := range []struct {
		name string
		rt   http.RoundTripper
		form url.Values
		code string
	}{
		{"post", plain, with(bare("post"), "client_secret", secret), ""},
		{"client_secret_jwt", plain, assert(secret, "HS256", "post", asHost+"/as"), ""},
		{"private_key_jwt, the token endpoint", plain, assert(rsaKey(t), "RS256", "pk", asHost+"/as/token"), ""},
		{"private_key_jwt, EdDSA", plain, assert(ed, "EdDSA", "pk", asHost+"/as"), ""},
		{"private_key_jwt, another server", plain, assert(rsaKey(t), "RS256", "pk", asHost), "invalid_client"},
		{"another secret", plain, assert("another secret of at least 32 bytes", "HS256", "post", asHost+"/as"), "invalid_client"},
		{"a short secret", plain, assert("short", "HS256", "weak", asHost+"/as"), "invalid_client"},
		{"a public key as secret", plain, assert(rsaJWK(t, nil), "HS256", "pk", asHost+"/as"), "invalid_client"},
		{"tls", certified(plain, known, key), bare("ca"), ""},
		{"tls, unknown authority", certified(plain, impostor, ownKey), bare("ca"), "invalid_client"},
		{"tls, another name", certified(plain, colleague, key), bare("ca"), "invalid_client"},
		{"tls, no certificate", plain, bare("ca"), "invalid_client"},
		{"self-signed", certified(plain, own, ownKey), bare("self"), ""},
		{"self-signed, another", certified(plain, impostor, ownKey), bare("self"), "invalid_client"},
		{"a public client", plain, bare("public"), "unauthorized_client"},
		{"none", plain, bare("post"), "invalid_client"},
		{"no grant", plain, form("client_id", "post"), "unsupported_grant_type"},
	} {
		status, doc, _ := send(t, c.rt, asHost+"/as/token", c.form)
		want := map[string]int{"": 200, "invalid_client": 401, "unauthorized_client": 400, "unsupported_grant_type": 400}[c.code]
		expect(t, c.name, status, doc, want, c.code)
	}
	st := o.Stats()
	for method, want := range map[string]int{secretPost: 1, secretJWT: 1, privateKeyJWT: 2, tlsAuth: 1, selfSignedTLS: 1, noAuth: 1, secretBasic: 0} {
		if st.PerMethod[method] != want {
			t.Errorf("%s: %d", method, st.PerMethod[method])
		}
	}
}

// A token is bound to the certificate that was presented, whatever the method.
func TestOAuth2BoundTokens(t *testing.T) {
	key := ecKey(t)
	cert, _ := certify(t, "app", key, nil, nil)
	o := &OAuth2{}
	register(t, o, Client{ID: "a", Secret: "s"})
	mine := form("grant_type", "client_credentials", "client_id", "a", "client_secret", "s")
	claimsOf := func(rt http.RoundTripper) (string, claims) {
		_, doc, _ := send(t, rt, asHost+"/as/token", mine)
		token, _ := doc["access_token"].(string)
		raw, err := jsonPart(token, 1)
		if err != nil {
			t.Fatal(err)
		}
		var c claims
		if err := json.Unmarshal(raw, &c); err != nil {
			t.Fatal(err)
		}
		return token, c
	}
	with := certified(o.RoundTripper(), cert, key)
	bound, c := claimsOf(with)
	cnf, _ := c["cnf"].(claims)
	if cnf["x5t#S256"] != x5tS256(cert) || check(bound) != nil {
		t.Errorf("%v", c)
	}
	free, c := claimsOf(o.RoundTripper())
	if c["cnf"] != nil || c["iss"] != asHost+"/as" || c["aud"] != "a" || c["sub"] != "a" {
		t.Errorf("%v", c)
	}
	api, other := Local(o.API("")), ecKey(t)
	otherCert, _ := certify(t, "app", other, nil, nil)
	for name, c := range map[string]struct {
		rt    http.RoundTripper
		token string
		want  int
	}{
		"bound, with it": {certified(api, cert, key), bound, 200}, "bound, without": {api, bound, 401}, "bound, with another": {certified(api, otherCert, other), bound, 401}, "free": {api, free, 200},
	} {
		if status, _, _ := request(t, c.rt, http.MethodGet, "https://api.example/", nil, "Authorization", "Bearer "+c.token); status != c.want {
			t.Errorf("%s: %d", name, status)
		}
	}
	_, doc, _ := send(t, o.RoundTripper(), asHost+"/as/introspect", form("client_id", "a", "client_secret", "s", "token", bound))
	if cnf, _ := doc["cnf"].(claims); cnf["x5t#S256"] != x5tS256(cert) {
		t.Errorf("%v", doc)
	}
	o.Set(Fault{Opaque: true})
	if _, doc, _ = send(t, o.RoundTripper(), asHost+"/as/token", mine); len(doc["access_token"].(string)) > 100 {
		t.Errorf("%v", doc)
	}
}

func TestJWTBearer(t *testing.T) {
	o := &OAuth2{}
	register(t, o, Client{ID: "a", Keys: []string{rsaJWK(t, nil)}}, Client{ID: "auth", Secret: "a secret of no less than 32 bytes", Auth: "client_secret_post", Keys: []string{rsaJWK(t, nil)}}, Client{ID: "b", Keys: []string{ecJWK(t, ecKey(t), nil)}})
	now := time.Now().Unix()
	grant := func(id string, key any, alg string, changes claims, more ...string) url.Values {
		return with(form("grant_type", jwtBearer, "client_id", id, "assertion",
			jws(t, key, claims{"alg": alg}, but(claims{"iss": id, "sub": "somebody", "aud": asHost + "/as", "iat": now, "exp": now + 60, "jti": jti()}, changes))), more...)
	}
	k := rsaKey(t)
	for _, c := range []struct {
		name   string
		form   url.Values
		status int
		code   string
	}{
		{"good", grant("a", k, "RS256", nil), 200, ""},
		{"with authentication", grant("auth", k, "RS256", nil, "client_secret", "a secret of no less than 32 bytes"), 200, ""},
		{"without its authentication", grant("auth", k, "RS256", nil), 401, "invalid_client"},
		{"with a wrong one", grant("auth", k, "RS256", nil, "client_secret", "x"), 401, "invalid_client"},
		{"signed with the secret", grant("auth", "a secret of no less than 32 bytes", "HS256", nil, "client_secret", "a secret of no less than 32 bytes"), 400, "invalid_grant"},
		{"another client's", grant("a", k, "RS256", nil, "client_id", "b"), 400, "invalid_grant"},
		{"another key", grant("b", k, "RS256", nil), 400, "invalid_grant"},
		{"another audience", grant("a", k, "RS256", claims{"aud": "x"}), 400, "invalid_grant"},
		{"no subject", grant("a", k, "RS256", claims{"sub": nil}), 400, "invalid_grant"},
		{"expired", grant("a", k, "RS256", claims{"exp": now}), 400, "invalid_grant"},
		{"no client", grant("x", k, "RS256", nil), 401, "invalid_client"},
	} {
		status, doc, _ := send(t, o.RoundTripper(), asHost+"/as/token", c.form)
		expect(t, c.name, status, doc, c.status, c.code)
		if c.status != 200 {
			continue
		}
		raw, _ := jsonPart(doc["access_token"].(string), 1)
		var got claims
		if err := json.Unmarshal(raw, &got); err != nil || got["sub"] != "somebody" {
			t.Errorf("%v, %v", got, err)
		}
		status, doc, _ = send(t, o.RoundTripper(), asHost+"/as/token", c.form)
		expect(t, c.name+", once more", status, doc, 400, "invalid_grant")
	}
}

func TestRevocationAndIntrospection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &OAuth2{}
		register(t, o, Client{ID: "a", Secret: "s"}, Client{ID: "b", Secret: "s"})
		rt := o.RoundTripper()
		ask := func(path, id, token string) (int, map[string]any) {
			status, doc, _ := send(t, rt, asHost+"/as/"+path, form("client_id", id, "client_secret", "s", "token", token))
			return status, doc
		}
		mint := func() string {
			_, doc, _ := send(t, rt, asHost+"/as/token", form("grant_type", "client_credentials", "client_id", "a", "client_secret", "s"))
			token, _ := doc["access_token"].(string)
			return token
		}
		token, kept := mint(), mint()
		if _, doc := ask("introspect", "a", token); doc["active"] != true || doc["client_id"] != "a" || doc["exp"] != float64(time.Now().Unix()+600) {
			t.Errorf("%v", doc)
		}
		if status, doc := ask("revoke", "b", token); status != 400 || doc["error"] != "unauthorized_client" {
			t.Errorf("another client: %d %v", status, doc)
		}
		if status, _ := ask("revoke", "a", token); status != 200 {
			t.Errorf("revoke: %d", status)
		}
		if status, _ := ask("revoke", "a", "no such token"); status != 200 {
			t.Errorf("an unknown one: %d", status)
		}
		if _, doc := ask("introspect", "a", token); doc["active"] != false || len(doc) != 1 {
			t.Errorf("revoked: %v", doc)
		}
		if status, _, _ := request(t, Local(o.API("")), http.MethodGet, asHost+"/", nil, "Authorization", "Bearer "+token); status != 401 {
			t.Errorf("the API takes a revoked token: %d", status)
		}
		if _, doc := ask("introspect", "b", kept); doc["active"] != true {
			t.Errorf("the other token is gone: %v", doc)
		}
		time.Sleep(10 * time.Minute)
		if _, doc := ask("introspect", "a", kept); doc["active"] != false {
			t.Errorf("expired: %v", doc)
		}
		for _, path := range []string{"revoke", "introspect"} {
			status, doc, _ := send(t, rt, asHost+"/as/"+path, form("token", kept))
			expect(t, path+" by nobody", status, doc, 401, "invalid_client")
			if status, doc = ask(path, "a", ""); status != 400 {
				t.Errorf("%s of nothing: %d %v", path, status, doc)
			}
		}
		if st := o.Stats(); st.Revoked != 2 || st.Introspects != 4 || st.Minted != 2 {
			t.Errorf("%+v", st)
		}
	})
}

func TestOAuth2Metadata(t *testing.T) {
	o := &OAuth2{}
	_, doc, _ := request(t, o.RoundTripper(), http.MethodGet, asHost+"/.well-known/oauth-authorization-server/as", nil)
	if doc["issuer"] != asHost+"/as" || doc["token_endpoint"] != asHost+"/as/token" || doc["revocation_endpoint"] == nil || doc["introspection_endpoint"] == nil {
		t.Errorf("%v", doc)
	}
	for _, path := range []string{"/.well-known/oauth-authorization-server", "/as/.well-known/openid-configuration"} {
		if status, _, _ := request(t, o.RoundTripper(), http.MethodGet, asHost+path, nil); status != 404 {
			t.Errorf("%s: %d", path, status)
		}
	}
	if _, doc, _ = request(t, o.RoundTripper(), http.MethodGet, asHost+"/as/keys", nil); len(doc["keys"].([]any)) != 1 {
		t.Errorf("%v", doc)
	}
}

// A certificate arrives over a real connection as it does without one.
func TestCertificateBothWays(t *testing.T) {
	key := ecKey(t)
	cert, certPEM := certify(t, "self", key, nil, nil)
	o := &OAuth2{}
	register(t, o, Client{ID: "self", Keys: []string{certPEM}})
	srv := httptest.NewUnstartedServer(o)
	srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	srv.StartTLS()
	defer srv.Close()
	pair := tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
	network := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}, DisableKeepAlives: true}
	for base, rt := range map[string]http.RoundTripper{srv.URL: network, asHost: certified(o.RoundTripper(), cert, key)} {
		status, doc, _ := send(t, rt, base+"/as/token", form("grant_type", "client_credentials", "client_id", "self"))
		expect(t, base, status, doc, 200, "")
	}
	broken := certified(o.RoundTripper(), &x509.Certificate{Raw: []byte("x")}, key)
	if status, doc, _ := send(t, broken, asHost+"/as/token", form("client_id", "self")); status != 0 {
		t.Errorf("a certificate that is none: %d %v", status, doc)
	}
	plain, _, _ := send(t, certified(o.RoundTripper(), cert, key), "http://as.example/as/token", form("grant_type", "client_credentials", "client_id", "self"))
	if plain != 401 {
		t.Errorf("a certificate without TLS: %d", plain)
	}
}
