package fake

import (
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// The methods of client authentication, by their registered names.
const (
	secretPost    = "client_secret_post"
	secretBasic   = "client_secret_basic"
	secretJWT     = "client_secret_jwt"
	privateKeyJWT = "private_key_jwt"
	tlsAuth       = "tls_client_auth"
	selfSignedTLS = "self_signed_tls_client_auth"
	noAuth        = "none"
)

// authRules are what a server takes as authentication.
type authRules struct {
	methods   []string
	assertion assertionRules
	roots     *x509.CertPool // of tls_client_auth; nil: any authority will do
}

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// authenticate finds out which client sent a request, by the one method that
// it uses (RFC 6749 §2.3, RFC 7521 §4.2, RFC 8705 §2).
func (s *server) authenticate(r *http.Request, form url.Values, rules authRules, f Fault) (*registered, *refusal) {
	c, method, x := s.identify(r, form, rules, f)
	switch {
	case x != nil:
	case c == nil || f.Kind == InvalidClient:
		x = refused("invalid_client", "there is no such client")
	case !slices.Contains(rules.methods, method) || c.Auth != "" && c.Auth != method || method == noAuth && c.Auth != noAuth:
		x = refused("invalid_client", method+" is not what this client is to use")
	case form.Has("client_id") && form.Get("client_id") != c.ID:
		x = refused("invalid_client", "client_id is another client's than was authenticated")
	}
	s.count(func(st *Stats) {
		switch {
		case x == nil:
			st.PerMethod[method]++
		case x.code == "invalid_client":
			st.Refused++
		}
	})
	return c, x
}

func (s *server) identify(r *http.Request, form url.Values, rules authRules, f Fault) (c *registered, method string, x *refusal) {
	byHeader, bySecret := r.Header.Get("Authorization") != "", form.Has("client_secret")
	byAssertion := form.Has("client_assertion") || form.Has("client_assertion_type")
	switch {
	case byHeader && (bySecret || byAssertion), bySecret && byAssertion:
		return nil, "", refused("invalid_request", "there are two methods of authentication")
	case byHeader, bySecret:
		method, id, secret := secretPost, form.Get("client_id"), form.Get("client_secret")
		if byHeader {
			method = secretBasic
			if id, secret, x = basic(r); x != nil {
				return nil, method, x
			}
		}
		if !s.accepts(id, secret, f) {
			return nil, method, refused("invalid_client", "the client or its secret is not known")
		}
		return s.client(id), method, nil
	case byAssertion:
		if form.Get("client_assertion_type") != assertionType {
			return nil, privateKeyJWT, refused("invalid_client", "client_assertion_type is not the one of RFC 7523")
		}
		p, err := s.assertion(form.Get("client_assertion"), rules.assertion)
		if err != nil {
			return nil, privateKeyJWT, refused("invalid_client", "the assertion "+err.Error())
		}
		return p.client, p.method, nil
	}
	c = s.client(form.Get("client_id"))
	if c == nil || r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || c.Auth == noAuth {
		return c, noAuth, nil
	}
	method, ok := c.certificate(r.TLS.PeerCertificates, rules.roots)
	if !ok {
		return nil, method, refused("invalid_client", "the certificate is not this client's")
	}
	return c, method, nil
}

// basic reads id and secret, each form-urlencoded before base64 (RFC 6749
// §2.3.1, appendix B); what is not so written is refused.
func basic(r *http.Request) (id, secret string, x *refusal) {
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	raw, err := base64.StdEncoding.DecodeString(rest)
	id, secret, ok := strings.Cut(string(raw), ":")
	if !strings.EqualFold(scheme, "Basic") || err != nil || !ok {
		return "", "", refused("invalid_client", "the Authorization header is no Basic one")
	}
	for _, part := range []*string{&id, &secret} {
		if strings.Trim(*part, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789*-._~+%") != "" {
			return "", "", refused("invalid_client", "id and secret are not form-urlencoded")
		}
		if *part, err = url.QueryUnescape(*part); err != nil {
			return "", "", refused("invalid_client", "id and secret are not form-urlencoded")
		}
	}
	return id, secret, nil
}

// certificate says by which method the certificate authenticates the client.
func (c *registered) certificate(chain []*x509.Certificate, roots *x509.CertPool) (method string, ok bool) {
	for _, k := range c.keys {
		if k.cert != nil && k.cert.Equal(chain[0]) {
			return selfSignedTLS, true
		}
	}
	if c.Subject == "" || c.Subject != chain[0].Subject.String() {
		return tlsAuth, false
	}
	if roots == nil {
		return tlsAuth, true
	}
	middle := x509.NewCertPool()
	for _, cert := range chain[1:] {
		middle.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: middle, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return tlsAuth, err == nil
}
