package oidc

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strings"

	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
)

const minVerifier = 43 // characters, RFC 7636 §4.1

// AuthorizeURL is where a person gives consent (RFC 6749 §4.1.1), with PKCE
// (RFC 7636). It may read the issuer's metadata, and sends nothing of m; the
// URL holds m's client_id. Every error is an *Error.
func (c *Client) AuthorizeURL(ctx context.Context, m Material, a Authorization) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, outbound.CallTimeout)
	defer cancel()
	refuse := func(what, hint string) (string, error) {
		return "", &Error{Kind: Refused, Message: c.host() + ": " + what, Hint: hint}
	}
	if c.profile.Grant != AuthorizationCode {
		return refuse("this client needs no login", "only the grant authorization_code has one")
	}
	redirect, ok := c.profile.redirect(a.RedirectURI)
	if !ok {
		return refuse("the redirect is not the registered one", "compare it with redirect_uri; on loopback, the port alone may differ, if redirect_uri has none")
	}
	if a.State == "" || a.Verifier.Len() < minVerifier {
		return refuse("a login needs a state and a verifier", "begin again")
	}
	if err := c.complete(m); err != nil {
		return "", err
	}
	at, err := c.find(ctx, authorizationEndpoint, false)
	if err != nil {
		return "", err
	}
	if at == nil {
		return refuse("the issuer's metadata name no authorization_endpoint", "set authorization_endpoint")
	}
	q := at.Query() // parameters of the endpoint's own stay (RFC 6749 §3.1)
	for k, v := range c.profile.AuthorizationParams {
		q.Set(k, v)
	}
	q.Set("response_type", "code")
	q.Set("redirect_uri", redirect)
	q.Set("state", a.State)
	if a.Scope != "" {
		q.Set("scope", a.Scope)
	}
	err = m["client_id"].Use(func(b []byte) error { q.Set("client_id", string(b)); return nil })
	if err == nil {
		err = a.Verifier.Use(func(b []byte) error {
			hash := sha256.Sum256(b)
			q.Set("code_challenge", base64.RawURLEncoding.EncodeToString(hash[:]))
			return nil
		})
	}
	if err != nil {
		return "", &Error{Kind: Unavailable, Message: c.host() + ": the client's secret was replaced meanwhile", Err: err}
	}
	q.Set("code_challenge_method", "S256")
	there := *at
	there.RawQuery = q.Encode()
	return there.String(), nil
}

// Redeem exchanges the code that a login brought back (RFC 6749 §4.1.3). Token
// and errors are as of Mint.
func (c *Client) Redeem(ctx context.Context, m Material, a Authorization, code secret.Secret) (Token, error) {
	redirect, ok := c.profile.redirect(a.RedirectURI)
	if c.profile.Grant != AuthorizationCode || !ok || code.Empty() {
		return Token{}, &Error{Kind: Refused, Message: c.host() + ": there is no code of this login to exchange", Hint: "run broker login CLIENT again"}
	}
	q := &request{endpoint: tokenEndpoint, scope: a.Scope}
	q.asks(grantCode)
	q.secret("code", code)
	q.text("redirect_uri", redirect)
	q.secret("code_verifier", a.Verifier)
	return c.ask(ctx, m, q)
}

// Redirect gives the redirect URI of a login that asked for one; empty: the
// registered one.
func (c *Client) Redirect(asked string) (string, bool) { return c.profile.redirect(asked) }

// redirect gives the redirect URI of a login: the registered one, or, where
// that is on loopback and without a port, the same on any port (RFC 8252 §7.3).
func (p Profile) redirect(asked string) (string, bool) {
	registered := cmp.Or(p.RedirectURI, defaultRedirect)
	if asked == "" || asked == registered {
		return registered, true
	}
	have, err1 := url.Parse(registered)
	want, err2 := url.Parse(asked)
	if err1 != nil || err2 != nil || have.Scheme != "http" || want.Port() == "" { // Validate takes http on loopback alone
		return "", false
	}
	without := *want
	without.Host = strings.TrimSuffix(want.Host, ":"+want.Port())
	return asked, without.String() == registered
}
