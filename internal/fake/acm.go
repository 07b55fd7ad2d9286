package fake

import (
	"cmp"
	"net/http"
	"time"
)

// An ACM answers as Digitaal Vlaanderen's ACM does, below /op, which is its
// issuer: /op/v1/token, /op/v1/introspect, /op/v1/keys and the metadata at
// /op/.well-known/openid-configuration. It offers no revocation. The zero ACM
// is ready for use.
type ACM struct {
	server
	// Lifetime is that of the tokens. Zero: 8 hours. Not to be changed later.
	Lifetime time.Duration
}

// RoundTripper reaches it without a network: see [Local].
func (a *ACM) RoundTripper() http.RoundTripper { return Local(a) }

// API is one that takes its tokens, those for audience alone unless that is empty.
func (a *ACM) API(audience string) http.Handler { return a.guarded(audience) }

// ServeHTTP implements http.Handler.
func (a *ACM) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setDate(w)
	issuer := base(r) + "/op"
	switch r.URL.Path {
	case "/op/v1/token":
		a.serveToken(w, r, issuer)
	case "/op/v1/introspect":
		form, x := readForm(w, r)
		if x == nil {
			_, x = a.authenticate(r, form, a.rules(issuer), Fault{})
		}
		if x != nil {
			x.write(w, r)
			return
		}
		a.introspect(w, form)
	case "/op/v1/keys":
		a.jwks(w)
	case "/op/.well-known/openid-configuration":
		a.count(func(st *Stats) { st.Metadata++ })
		// It says nothing of private_key_jwt, which it takes.
		writeJSON(w, http.StatusOK, map[string]any{"issuer": issuer, "authorization_endpoint": issuer + "/v1/auth", "token_endpoint": issuer + "/v1/token",
			"jwks_uri": issuer + "/v1/keys", "introspection_endpoint": issuer + "/v1/introspect", "end_session_endpoint": issuer + "/v1/logout",
			"grant_types_supported":                 []string{"authorization_code", "client_credentials"},
			"token_endpoint_auth_methods_supported": []string{secretBasic, secretPost}, "id_token_signing_alg_values_supported": []string{"RS256"}})
	default:
		page(w, http.StatusNotFound, "404", "Not found.")
	}
}

func (a *ACM) rules(issuer string) authRules {
	return authRules{methods: []string{secretPost, secretBasic, privateKeyJWT}, assertion: assertionRules{audiences: []string{issuer}}}
}

func (a *ACM) serveToken(w http.ResponseWriter, r *http.Request, issuer string) {
	f := a.enter()
	defer a.leave()
	if f.before(w, r) {
		return
	}
	form, x := readForm(w, r)
	if x != nil {
		x.write(w, r)
		return
	}
	c, x := a.authenticate(r, form, a.rules(issuer), f)
	if x == nil && form.Get("grant_type") != "client_credentials" {
		x = refused("unsupported_grant_type", "")
	}
	var t issued
	if x == nil {
		t, x = c.credentials(form, f.lifetime(cmp.Or(a.Lifetime, 8*time.Hour)))
	}
	if x != nil {
		x.write(w, r)
		return
	}
	a.opaque(w, f, t)
}
