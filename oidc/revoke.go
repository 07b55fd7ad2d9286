package oidc

import (
	"context"
	"net/http"

	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
)

// Revoke takes a token back (RFC 7009). hint is access_token, refresh_token or
// empty. A token that the issuer does not know counts as revoked (§2.2). Every
// error is an *Error, of kind Refused if the issuer has no such endpoint.
func (c *Client) Revoke(ctx context.Context, m Material, token secret.Secret, hint string) error {
	q := &request{endpoint: revocationEndpoint}
	q.text("token_type_hint", hint)
	a, err := c.present(ctx, m, q, token)
	if err != nil {
		return err
	}
	defer a.wipe()
	if a.mediaType() == "text/html" { // and not empty
		return a.protocol("a firewall or proxy may have answered in the issuer's place, or revocation_endpoint is wrong", "the answer is a page: the token may live on")
	}
	return nil
}

// Introspect asks whether a token is active (RFC 7662). Every error is an
// *Error, of kind Refused if the issuer has no such endpoint.
func (c *Client) Introspect(ctx context.Context, m Material, token secret.Secret) (Introspection, error) {
	q := &request{endpoint: introspectionEndpoint}
	for _, k := range paramNames(c.profile.IntrospectionParams) {
		q.text(k, c.profile.IntrospectionParams[k])
	}
	a, err := c.present(ctx, m, q, token)
	if err != nil {
		return Introspection{}, err
	}
	defer a.wipe()
	members, err := a.object(introspectionEndpoint)
	if err != nil {
		return Introspection{}, err
	}
	defer wipeMembers(members)
	var i Introspection
	switch string(members["active"]) {
	case "true":
		i.Active = true
	case "false":
		return i, nil // whatever else it says (RFC 7662 §2.2)
	default:
		return i, a.protocol("check introspection_endpoint", "the answer does not say whether the token is active")
	}
	if i.Scope, _, err = granted("", members["scope"]); err != nil {
		return Introspection{}, a.protocol("", "the answer's scope is no list of scopes")
	}
	if id, ok := text(members["client_id"]); ok && printable(id, maxJTI) {
		i.ClientID = string(id)
	}
	exp, _ := number(members["exp"])
	iat, _ := number(members["iat"])
	i.Expires, i.Issued = moment(exp), moment(iat)
	return i, nil
}

// present shows a token to an endpoint that takes one, and wants a 200.
func (c *Client) present(ctx context.Context, m Material, q *request, token secret.Secret) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, outbound.CallTimeout)
	defer cancel()
	q.secret("token", token)
	a, err := c.post(ctx, m, q)
	if err != nil {
		return nil, err
	}
	if a.status != http.StatusOK {
		defer a.wipe()
		return nil, c.refusal(a, q)
	}
	return a, nil
}
