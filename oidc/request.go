package oidc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"credentialbroker/internal/secret"
)

// The grant types (RFC 6749 §4.1.3, §4.4.2, §6, RFC 7523 §2.1).
const (
	grantClient  = "client_credentials"
	grantCode    = "authorization_code"
	grantRefresh = "refresh_token"
	grantJWT     = "urn:ietf:params:oauth:grant-type:jwt-bearer"
)

const (
	userAgent     = "credential-broker"
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" // RFC 7523 §2.2
)

// A request is one POST that authenticates the client.
type request struct {
	endpoint string // its name
	grant    string // the grant_type; empty: this asks for no token
	scope    string // asked for
	params   []parameter

	signed bool          // it holds an assertion
	ahead  time.Duration // the issuer's clock, as it was believed when that was made
	bound  string        // x5t#S256 of the certificate that was presented
}

// A parameter has a value that is text, or a secret. One without is not sent.
type parameter struct {
	name, text string
	value      secret.Secret
	made       bool // value was made for this request, and is wiped after it
}

// asks makes q a token request.
func (q *request) asks(grant string) {
	q.grant = grant
	q.text("grant_type", grant)
}

func (q *request) text(name, value string) {
	q.params = append(q.params, parameter{name: name, text: value})
}

func (q *request) secret(name string, value secret.Secret) {
	q.params = append(q.params, parameter{name: name, value: value})
}

func (q *request) jwt(name string, value []byte) {
	q.params = append(q.params, parameter{name: name, value: secret.New(value), made: true})
	q.signed = true
}

// certified is a RoundTripper that can present a client certificate.
type certified interface {
	WithCertificate(tls.Certificate) http.RoundTripper
}

// post sends q and reads the answer, whatever it is. The caller wipes it.
// Everything public is fetched before a secret is shown: a token that nobody
// can check would be asked for again and again.
func (c *Client) post(ctx context.Context, m Material, q *request) (*answer, error) {
	if err := c.complete(m); err != nil {
		return nil, err
	}
	at, err := c.find(ctx, q.endpoint, c.profile.presents(q))
	if err != nil {
		return nil, err
	}
	if at == nil {
		e := &Error{Kind: Refused, Message: c.host() + ": no " + q.endpoint + " is known", Hint: "set " + q.endpoint + ", if this issuer has one"}
		if q.endpoint == tokenEndpoint { // there must be one: the metadata are wrong
			e.Kind = Protocol
		}
		return nil, e
	}
	if q.grant != "" && c.keys != nil {
		if _, err := c.keys.get(ctx, nil); err != nil {
			return nil, err
		}
	}
	rt, err := c.transport(m, q)
	if err != nil {
		return nil, err
	}
	body, err := c.encode(m, q, at)
	if err != nil {
		return nil, err
	}
	defer body.wipe()
	req := (&http.Request{
		Method:        http.MethodPost,
		URL:           at,
		Host:          at.Host,
		Header:        http.Header{},
		Body:          body,
		ContentLength: int64(len(body.all)),
	}).WithContext(ctx)
	req.Header.Set("Content-Type", body.mediaType())
	if body.auth != nil {
		req.Header.Set("Authorization", view(body.auth))
	}
	a, err := send(rt, c.clock, req, maxAnswer)
	if err != nil {
		c.metadata.expire() // the endpoint may have moved
		return nil, err
	}
	c.remember(a)
	if a.elsewhere() {
		c.metadata.expire()
	}
	return a, nil
}

// presents says whether the client's certificate is shown: by the methods that
// authenticate with it, and where a token is to be bound to it (RFC 8705).
func (p Profile) presents(q *request) bool {
	return p.ClientAuth == TLS || p.ClientAuth == SelfSignedTLS || p.CertificateBound && q.grant != ""
}

// transport is the way to the issuer, with the client's certificate if the
// request needs it.
func (c *Client) transport(m Material, q *request) (http.RoundTripper, error) {
	if !c.profile.presents(q) {
		return c.rt, nil
	}
	rt, ok := c.rt.(certified)
	if !ok {
		return nil, &Error{Kind: Refused, Message: c.host() + ": this transport cannot present a client certificate"}
	}
	pair, thumbprint, err := bundleCertificate(m)
	if err != nil {
		return nil, err
	}
	q.bound = thumbprint
	return rt.WithCertificate(pair), nil
}

// complete says which field of the bundle is missing.
func (c *Client) complete(m Material) error {
	for _, name := range c.profile.Fields() {
		if m[name].Empty() {
			return &Error{Kind: Refused, Message: fmt.Sprintf("%s: the client's secret has no %s", c.host(), name),
				Hint: "add the field in the secrets manager, or map it under fields"}
		}
	}
	return nil
}

// encode writes the body, and the Authorization header, if there is one.
func (c *Client) encode(m Material, q *request, at *url.URL) (*form, error) {
	defer q.wipe()
	if err := c.authenticate(m, q, at); err != nil {
		return nil, err
	}
	f := &form{all: make([]byte, 0, q.size()), json: c.profile.RequestFormat == formatJSON && q.grant != ""}
	var err error
	for _, p := range q.params {
		if err == nil {
			err = f.add(p)
		}
	}
	if err == nil && c.profile.ClientAuth == SecretBasic {
		err = f.basic(m)
	}
	switch {
	case errors.Is(err, errNotText):
		f.wipe()
		return nil, &Error{Kind: Refused, Message: c.host() + ": the client's secret cannot be written as JSON: it is not UTF-8", Hint: "request_format: form takes any bytes"}
	case err != nil:
		f.wipe()
		return nil, &Error{Kind: Unavailable, Message: c.host() + ": the client's secret was replaced meanwhile", Err: err}
	}
	f.end()
	return f, nil
}

// size is as large as the body can become: growing would leave a copy.
func (q *request) size() int {
	n := len("{}")
	for _, p := range q.params {
		n += 6*(len(p.name)+len(p.text)+p.value.Len()) + len(`,"":""`) // a byte may become \u0000
	}
	return n
}

// authenticate adds what the client's method puts into the body, and the
// assertion that is a grant.
func (c *Client) authenticate(m Material, q *request, at *url.URL) error {
	if ahead := c.ahead.Load(); ahead != nil {
		q.ahead = max(-maxSkew, min(*ahead, maxSkew)) // nobody's Date dates an assertion to next year
	}
	now := c.clock.Now().Wall.Add(q.ahead)
	if q.grant == grantJWT {
		b, err := c.grantAssertion(m, at.String(), now)
		if err != nil {
			return err
		}
		q.jwt("assertion", b)
	}
	if c.profile.ClientAuth == SecretBasic {
		return nil
	}
	q.secret("client_id", m["client_id"])
	switch c.profile.ClientAuth {
	case "", SecretPost:
		q.secret("client_secret", m["client_secret"])
	case SecretJWT, PrivateKeyJWT:
		b, err := c.assertion(m, "", at.String(), now)
		if err != nil {
			return err
		}
		q.text("client_assertion_type", assertionType)
		q.jwt("client_assertion", b)
	default: // the certificate, or nothing
	}
	return nil
}

// wipe ends the assertions.
func (q *request) wipe() {
	for _, p := range q.params {
		if p.made {
			p.value.Wipe()
		}
	}
}
