package oidc

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/internal/clock"
)

const (
	maxJWKS     = 256 << 10
	maxKeys     = 64
	minRSA      = 2048 // bits, RFC 7518 §3.3
	maxRSA      = 8192 // bits; beyond it a check costs too much
	jwksFresh   = time.Hour
	jwksPause   = time.Minute      // between fetches while there are keys
	jwksTimeout = 10 * time.Second // so that a mint's own time is left
)

// A keySet is an issuer's public keys: fetched when first needed, again after
// an hour, and at most once a minute for a key that is not among them. Once
// there are keys, a failing fetch keeps them.
type keySet struct {
	uri        *url.URL
	rt         http.RoundTripper
	clock      clock.Clock
	algorithms []jose.SignatureAlgorithm

	current atomic.Pointer[keys]
	turn    chan struct{} // holds one element; whoever takes it may fetch
	tried   clock.Reading // belongs to whoever has the turn
}

type keys struct {
	list    []jose.JSONWebKey
	fetched clock.Reading
}

func newKeySet(p Profile, rt http.RoundTripper, c clock.Clock) (*keySet, error) {
	uri, err := url.Parse(p.JWKSURI)
	if err != nil {
		return nil, errors.New("jwks_uri: not a URL")
	}
	algs, err := algorithms(p.Algorithms)
	if err != nil {
		return nil, err
	}
	return &keySet{uri: uri, rt: rt, clock: c, algorithms: algs, turn: make(chan struct{}, 1)}, nil
}

// get gives the keys, fresh ones if they are old or if kid is not among them.
// An empty kid is among any.
func (s *keySet) get(ctx context.Context, kid string) ([]jose.JSONWebKey, error) {
	if k := s.current.Load(); k.good(kid, s.clock.Now()) {
		return k.list, nil
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, transportError(s.uri.Host, ctx.Err())
	}
	defer func() { <-s.turn }()
	now, k := s.clock.Now(), s.current.Load()
	if k != nil && now.Sub(s.tried) < jwksPause {
		return k.list, nil // another caller's fetch, which has just ended, included
	}
	s.tried = now
	list, err := s.fetch(ctx)
	switch {
	case err == nil:
		s.current.Store(&keys{list, now})
		return list, nil
	case k != nil:
		return k.list, nil
	}
	return nil, err
}

func (k *keys) good(kid string, now clock.Reading) bool {
	if k == nil || now.Sub(k.fetched) >= jwksFresh {
		return false
	}
	return kid == "" || slices.ContainsFunc(k.list, func(j jose.JSONWebKey) bool { return j.KeyID == kid })
}

func (s *keySet) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	ctx, cancel := context.WithTimeout(ctx, jwksTimeout)
	defer cancel()
	req := (&http.Request{Method: http.MethodGet, URL: s.uri, Host: s.uri.Host, Header: http.Header{}}).WithContext(ctx)
	a, err := send(s.rt, s.clock, req, maxJWKS)
	if err != nil {
		return nil, err
	}
	const hint = "check jwks_uri; without it, tokens are passed on unchecked"
	switch {
	case a.status >= 500, a.status == 429, a.status == 408:
		return nil, &Error{Kind: Unavailable, Status: a.status, RetryAfter: a.retryAfter(), Message: a.host + ": the issuer's public keys cannot be had now"}
	case a.status != http.StatusOK:
		return nil, a.protocol(hint, "there are no public keys at jwks_uri (HTTP %d)", a.status)
	case a.truncated:
		return nil, a.protocol(hint, "the answer of jwks_uri is larger than %d bytes", maxJWKS)
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
