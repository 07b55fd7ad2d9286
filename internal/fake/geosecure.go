package fake

import (
	"cmp"
	"net/http"
	"strings"
	"time"
)

const geosecureToken = "/authorization/ws/oauth/v2/token"

// A Geosecure answers as the older server of Digitaal Vlaanderen does:
// /authorization/ws/oauth/v2/token, and …/authorization/verify for its tokens.
// Client ids are integers. The zero Geosecure is ready for use.
type Geosecure struct {
	server
	// Base is the address that clients are told, https://host without a slash
	// at the end: an assertion's aud is that and the path, in lower case. Empty:
	// what the request was sent to. Not to be changed later.
	Base string
	// Lifetime is that of the tokens. Zero: an hour. Not to be changed later.
	Lifetime time.Duration
}

// RoundTripper reaches it without a network: see [Local].
func (g *Geosecure) RoundTripper() http.RoundTripper { return Local(g) }

// API is one that takes its tokens.
func (g *Geosecure) API() http.Handler { return g.guarded("") }

// ServeHTTP implements http.Handler.
func (g *Geosecure) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setDate(w)
	switch r.URL.Path {
	case geosecureToken:
		g.token(w, r)
	case "/authorization/ws/oauth/v2/authorization/verify":
		if r.Method != http.MethodGet {
			page(w, http.StatusMethodNotAllowed, "405", "Not a GET.")
			return
		}
		g.API().ServeHTTP(w, r)
	default:
		page(w, http.StatusNotFound, "404", "Not found.")
	}
}

func (g *Geosecure) token(w http.ResponseWriter, r *http.Request) {
	f := g.enter()
	defer g.leave()
	if f.before(w, r) {
		return
	}
	t, x := g.grant(w, r, f)
	if x != nil {
		refuse(w, http.StatusBadRequest, x.code, x.text) // 400 for all of them
		return
	}
	g.opaque(w, f, t)
}

func (g *Geosecure) grant(w http.ResponseWriter, r *http.Request, f Fault) (issued, *refusal) {
	form, x := readForm(w, r)
	if x != nil {
		return issued{}, x
	}
	endpoint := strings.ToLower(base(r) + geosecureToken)
	if g.Base != "" {
		endpoint = strings.ToLower(g.Base + geosecureToken)
	}
	c, x := g.authenticate(r, form, authRules{methods: []string{secretBasic, privateKeyJWT},
		assertion: assertionRules{audiences: []string{endpoint}, needKid: true, guid: true, fromIssue: true}}, f)
	switch {
	case x != nil:
		return issued{}, x
	case strings.Trim(c.ID, "0123456789") != "":
		return issued{}, refused("invalid_client", "a client id is an integer")
	case form.Get("grant_type") != "client_credentials":
		return issued{}, refused("unsupported_grant_type", "")
	}
	form.Del("audience") // it knows neither
	form.Del("resource")
	return c.credentials(form, f.lifetime(cmp.Or(g.Lifetime, time.Hour)))
}
