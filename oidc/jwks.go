package oidc

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"net/http"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxKeys = 64
	minRSA  = 2048 // bits, RFC 7518 §3.3
	maxRSA  = 8192 // bits; beyond it a check costs too much
)

// fetchKeys reads the issuer's public keys (RFC 7517 §5). Nil without an error:
// its metadata name none.
func (c *Client) fetchKeys(ctx context.Context) ([]jose.JSONWebKey, error) {
	at, err := c.find(ctx, keysEndpoint, false)
	if err != nil || at == nil {
		return nil, err
	}
	a, err := c.document(ctx, at, maxDocument)
	if err != nil {
		return nil, err
	}
	const hint = "check jwks_uri; without it, tokens are passed on unchecked"
	switch {
	case a.busy():
		return nil, &Error{Kind: Unavailable, Status: a.status, RetryAfter: a.retryAfter(), Message: a.host + ": the issuer's public keys cannot be had now"}
	case a.status != http.StatusOK:
		return nil, a.protocol(hint, "there are no public keys at jwks_uri (HTTP %d)", a.status)
	case a.truncated:
		return nil, a.protocol(hint, "the answer of jwks_uri is larger than %d bytes", maxDocument)
	}
	list := parseJWKS(a.body)
	if len(list) == 0 {
		return nil, a.protocol(hint, "the answer of jwks_uri lists no usable public key")
	}
	return list, nil
}

// parseJWKS gives the keys that may sign. Keys of types that are not known
// here do not spoil the others (RFC 7517 §5).
func parseJWKS(body []byte) []jose.JSONWebKey {
	var set struct{ Keys []json.RawMessage }
	if json.Unmarshal(body, &set) != nil {
		return nil
	}
	var list []jose.JSONWebKey
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if len(list) == maxKeys {
			break
		}
		if json.Unmarshal(raw, &k) != nil || !k.Valid() || !k.IsPublic() || k.Use != "" && k.Use != "sig" {
			continue
		}
		if r, ok := k.Key.(*rsa.PublicKey); ok && (r.N.BitLen() < minRSA || r.N.BitLen() > maxRSA) {
			continue
		}
		list = append(list, k)
	}
	return list
}
