// Package fake has authorization servers that behave as their documents say, and
// a store, with fault switches, for tests and for the demonstration. Nothing
// here keeps a real secret.
//
// Time is the time package's, so that all of it works inside testing/synctest.
package fake

import (
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Where an Issuer answers, and what its tokens say of it. As with the original,
// the issuer's name is of another host than the token endpoint.
const (
	TokenPath    = "/isam/sps/oauth/oauth20/token"
	JWKSPath     = "/isam/sps/oauth/oauth20/jwks/OIDC-Derden"
	MetadataPath = "/isam/sps/oauth/oauth20/metadata/OIDC-Derden"
	APIPath      = "/services/openservices/"
	IssuerName   = "https://op-derden-ldv.ops.issuer.example/isam/sps/oauth/oauth20/metadata/OIDC-Derden"
)

// An Issuer answers as VDAB's ISAM does: its response, its error documents and
// pages, its cookies. It is an http.Handler.
type Issuer struct{ server }

// NewIssuer makes an issuer that knows clients.
func NewIssuer(clients ...Client) *Issuer {
	i := &Issuer{}
	for _, c := range clients {
		i.put(&registered{Client: c})
	}
	return i
}

// RoundTripper reaches the issuer without a network: see [Local].
func (i *Issuer) RoundTripper() http.RoundTripper { return Local(i) }

// ServeHTTP implements http.Handler.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setDate(w)
	switch r.URL.Path {
	case TokenPath:
		i.token(w, r)
	case JWKSPath:
		i.jwks(w)
	case MetadataPath:
		base := "https://" + r.Host + "/isam/sps/oauth/oauth20"
		writeJSON(w, http.StatusOK, map[string]any{"issuer": IssuerName, "token_endpoint": base + "/token",
			"jwks_uri": base + "/jwks/OIDC-Derden", "grant_types_supported": []string{"client_credentials"},
			"token_endpoint_auth_methods_supported": []string{"client_secret_post", "client_secret_basic"}})
	default:
		page(w, http.StatusNotFound, "HPDIA0131W", "The page was not found.")
	}
}

// token serves the token endpoint, its fault first.
func (i *Issuer) token(w http.ResponseWriter, r *http.Request) {
	f := i.enter()
	defer i.leave()
	if r.Method != http.MethodPost {
		page(w, http.StatusMethodNotAllowed, "HPDIA0100E", "The request was not a POST.")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if err := r.ParseForm(); err != nil {
		page(w, http.StatusBadRequest, "HPDIA0101E", "The request could not be read.")
		return
	}
	http.SetCookie(w, &http.Cookie{Name: "PD-S-FED-SESSION-ID", Value: "1_" + randomText(12), Path: "/", Secure: true, HttpOnly: true})
	http.SetCookie(w, &http.Cookie{Name: "AMWEBJCT!%2Fisam!JSESSIONID", Value: "0000" + randomText(12), Path: "/", Secure: true})
	if f.before(w, r) {
		return
	}
	if len(r.Cookies()) > 0 {
		refuse(w, http.StatusBadRequest, "invalid_request", "FBTOAU220E The authenticated client id does not match the client id in the request body.")
		return
	}
	i.grant(w, r, f)
}

// credentials reads what a request presents, by either method.
func credentials(r *http.Request) (id, secret string) {
	if u, p, ok := r.BasicAuth(); ok {
		id, _ = url.QueryUnescape(u)
		secret, _ = url.QueryUnescape(p)
		return id, secret
	}
	return r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
}

// grant answers a request as the original does.
func (i *Issuer) grant(w http.ResponseWriter, r *http.Request, f Fault) {
	id, secret := credentials(r)
	for name, v := range map[string]string{"grant_type": r.PostForm.Get("grant_type"), "client_id": id, "client_secret": secret} {
		if v == "" {
			refuse(w, http.StatusBadRequest, "invalid_request", "FBTOAU202E The required parameter: ["+name+"] was not found in the request.")
			return
		}
	}
	if r.PostForm.Get("grant_type") != "client_credentials" {
		refuse(w, http.StatusBadRequest, "unsupported_grant_type", "FBTOAU207E The grant type is not supported.")
		return
	}
	if !i.admit(id, secret, f) {
		status := http.StatusBadRequest // the documents do not say which of the two it is
		if f.Kind == InvalidClient {
			status = http.StatusUnauthorized
		}
		refuse(w, status, "invalid_client", "FBTOAU204E An invalid secret was provided by the client with identifier: '"+id+"'.")
		return
	}
	answer, err := i.mint(id, f)
	if err != nil {
		page(w, http.StatusInternalServerError, "HPDIA0200E", "Internal error.")
		return
	}
	f.send(w, answer)
}

// mint makes the answer with a token like the sample in the documents.
func (i *Issuer) mint(id string, f Fault) (map[string]any, error) {
	i.mu.Lock()
	i.stats.Minted++
	i.mu.Unlock()
	lifetime := f.lifetime(900 * time.Second)
	token := "opaque-" + randomText(32)
	if !f.Opaque {
		now := time.Now()
		var err error
		token, err = sign("jwt", map[string]any{"iss": IssuerName, "exp": now.Add(lifetime).Unix(), "aud": []string{id}, "sub": id, "client_id": id,
			"iat": now.Unix(), "nbf": now.Unix(), "jti": uuid(), "domain": "NULL", "scope": "", "filler": strings.Repeat("-", 250)})
		if err != nil {
			return nil, err
		}
	}
	return map[string]any{"access_token": token, "scope": "", "token_type": "bearer", "expires_in": int64(lifetime / time.Second)}, nil
}
