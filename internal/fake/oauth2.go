package fake

import (
	"cmp"
	"crypto/x509"
	"net/http"
	"net/url"
	"time"
)

// An OAuth2 is a server of no particular make, whose issuer is /as: metadata
// (RFC 8414), /as/token with the grants client_credentials and jwt-bearer
// (RFC 7523), every method of client authentication, tokens that are JWTs
// (RFC 9068) and bound to the certificate that was presented (RFC 8705 §3),
// /as/revoke (RFC 7009), /as/introspect (RFC 7662) and /as/keys. The zero
// OAuth2 is ready for use.
type OAuth2 struct {
	server
	// Lifetime is that of the tokens. Zero: 10 minutes. Not to be changed later.
	Lifetime time.Duration
	// ClientCAs are the authorities of certificates for tls_client_auth. Nil:
	// all, since a connection without a network has shown no key. Not to be
	// changed later.
	ClientCAs *x509.CertPool
}

const jwtBearer = "urn:ietf:params:oauth:grant-type:jwt-bearer"

// RoundTripper reaches it without a network: see [Local].
func (o *OAuth2) RoundTripper() http.RoundTripper { return Local(o) }

// API is one that takes its tokens, those for audience alone unless that is empty.
func (o *OAuth2) API(audience string) http.Handler { return o.guarded(audience) }

// ServeHTTP implements http.Handler.
func (o *OAuth2) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setDate(w)
	switch r.URL.Path {
	case "/as/token":
		o.token(w, r)
	case "/as/revoke", "/as/introspect":
		form, x := readForm(w, r)
		var c *registered
		if x == nil {
			c, x = o.authenticate(r, form, o.rules(r), Fault{})
		}
		if x == nil && form.Get("token") == "" {
			x = refused("invalid_request", "token is missing")
		}
		if x == nil && r.URL.Path == "/as/revoke" {
			x = o.revoke(c, form.Get("token"))
		}
		switch {
		case x != nil:
			x.write(w, r)
		case r.URL.Path == "/as/introspect":
			o.introspect(w, form)
		}
	case "/as/keys":
		o.jwks(w)
	case "/.well-known/oauth-authorization-server/as":
		o.metadata(w, r)
	default:
		page(w, http.StatusNotFound, "404", "Not found.")
	}
}

func (o *OAuth2) metadata(w http.ResponseWriter, r *http.Request) {
	o.count(func(st *Stats) { st.Metadata++ })
	issuer, rules := base(r)+"/as", o.rules(r)
	writeJSON(w, http.StatusOK, map[string]any{"issuer": issuer, "token_endpoint": issuer + "/token", "jwks_uri": issuer + "/keys",
		"revocation_endpoint": issuer + "/revoke", "introspection_endpoint": issuer + "/introspect", "response_types_supported": []string{},
		"grant_types_supported": []string{"client_credentials", jwtBearer}, "token_endpoint_auth_methods_supported": rules.methods,
		"token_endpoint_auth_signing_alg_values_supported": rules.assertion.algorithms(),
		"tls_client_certificate_bound_access_tokens":       true})
}

// rules take the issuer as audience, and the address of the request (RFC 7523 §3).
func (o *OAuth2) rules(r *http.Request) authRules {
	issuer := base(r) + "/as"
	return authRules{methods: []string{secretBasic, secretPost, secretJWT, privateKeyJWT, tlsAuth, selfSignedTLS, noAuth}, roots: o.ClientCAs,
		assertion: assertionRules{any: true, audiences: []string{issuer, issuer + "/token", base(r) + r.URL.Path}}}
}

func (o *OAuth2) token(w http.ResponseWriter, r *http.Request) {
	f := o.enter()
	defer o.leave()
	if f.before(w, r) {
		return
	}
	form, x := readForm(w, r)
	var t issued
	if x == nil {
		t, x = o.grant(r, form, f)
	}
	if x != nil {
		x.write(w, r)
		return
	}
	t.bound = presented(r)
	if f.Opaque {
		o.opaque(w, f, t)
		return
	}
	claims := map[string]any{"iss": base(r) + "/as", "sub": cmp.Or(t.user, t.client), "aud": one(t.audience), "client_id": t.client, "scope": t.scope,
		"jti": uuid(), "iat": t.from.Unix(), "exp": t.until.Unix()}
	if t.bound != "" {
		claims["cnf"] = map[string]any{"x5t#S256": t.bound}
	}
	token, err := sign("at+jwt", claims)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "server_error", "")
		return
	}
	o.keep(token, t)
	f.send(w, map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": int64(t.until.Sub(t.from) / time.Second), "scope": t.scope})
}

func (o *OAuth2) grant(r *http.Request, form url.Values, f Fault) (t issued, x *refusal) {
	lifetime := f.lifetime(cmp.Or(o.Lifetime, 10*time.Minute))
	switch form.Get("grant_type") {
	case "client_credentials":
		c, x := o.authenticate(r, form, o.rules(r), f)
		switch {
		case x != nil:
			return t, x
		case c.Auth == noAuth: // RFC 6749 §4.4
			return t, refused("unauthorized_client", "the grant is for clients that authenticate")
		}
		return c.credentials(form, lifetime)
	case jwtBearer:
		return o.bearer(r, form, f, lifetime)
	}
	return t, refused("unsupported_grant_type", "")
}

// bearer is the jwt-bearer grant (RFC 7523 §2.1), whose client need not
// authenticate unless it is registered with a method.
func (o *OAuth2) bearer(r *http.Request, form url.Values, f Fault, lifetime time.Duration) (t issued, x *refusal) {
	c := o.client(form.Get("client_id"))
	if c == nil || c.Auth != "" || r.Header.Get("Authorization") != "" || form.Has("client_secret") || form.Has("client_assertion") {
		if c, x = o.authenticate(r, form, o.rules(r), f); x != nil {
			return t, x
		}
	}
	rules := o.rules(r).assertion
	rules.anyone = true
	p, err := o.assertion(form.Get("assertion"), rules)
	switch {
	case err != nil:
		return t, refused("invalid_grant", "the assertion "+err.Error())
	case p.client.ID != c.ID || p.method != privateKeyJWT:
		return t, refused("invalid_grant", "the assertion is not signed by this client's key")
	}
	if t, x = c.credentials(form, lifetime); x == nil {
		t.user = p.subject
	}
	return t, x
}

// revoke ends a token of the client's own (RFC 7009 §2.1). One that is not
// known is as good as ended.
func (o *OAuth2) revoke(c *registered, token string) *refusal {
	if t, ok := o.find(token); ok && t.client != c.ID {
		return refused("unauthorized_client", "the token is another client's")
	}
	o.drop(func(text string, _ issued) bool { return text == token })
	o.count(func(st *Stats) { st.Revoked++ })
	return nil
}
