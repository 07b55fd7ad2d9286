// Package oidc speaks to one token endpoint.
//
// A [Profile] is an issuer as data; a [Client] asks it for tokens. It keeps
// nothing but the issuer's public keys and retries nothing: whoever calls owns
// the one budget and decides when to ask again. It has no cookie jar, follows
// no redirect and never tries a second way of authentication.
package oidc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
)

// A Client asks one token endpoint. Its methods may be called from many
// goroutines.
type Client struct {
	profile  Profile
	endpoint *url.URL
	rt       http.RoundTripper
	clock    clock.Clock
	keys     *keySet // nil: JWTs are not checked
}

// A Profile is an issuer as data.
type Profile struct {
	// TokenEndpoint is the URL that token requests go to (RFC 6749 §3.2):
	// https, or http on loopback. Required.
	TokenEndpoint string `yaml:"token_endpoint,omitempty" json:"token_endpoint,omitempty"`
	// ClientAuth says how the client shows its secret. Empty: client_secret_post.
	ClientAuth ClientAuth `yaml:"client_auth,omitempty" json:"client_auth,omitempty"`
	// Params are further form parameters of every request, never credentials.
	// Empty: none.
	Params map[string]string `yaml:"params,omitempty" json:"params,omitempty"`
	// Issuer is the exact iss of the tokens (RFC 7519 §4.1.1). It is
	// configured, never derived: the token endpoint's host may differ.
	// Empty: unknown.
	Issuer string `yaml:"issuer,omitempty" json:"issuer,omitempty"`
	// JWKSURI is the URL of the issuer's public keys (RFC 7517 §5). With it,
	// and Issuer, every access token that is a JWT is checked. Empty: tokens
	// are passed on as they come.
	JWKSURI string `yaml:"jwks_uri,omitempty" json:"jwks_uri,omitempty"`
	// Algorithms are the signature algorithms that are accepted (RFC 8725
	// §3.1). Empty: all of RS, PS, ES and EdDSA. "none" and HS are never.
	Algorithms []string `yaml:"algorithms,omitempty" json:"algorithms,omitempty"`
	// DefaultLifetime is taken for a token that does not say how long it
	// lives. Zero: 5 minutes.
	DefaultLifetime clock.Duration `yaml:"default_lifetime,omitempty" json:"default_lifetime,omitempty"`
	// MaxLifetime is the longest that is believed; a longer one is cut to it.
	// Zero: 24 hours.
	MaxLifetime     clock.Duration `yaml:"max_lifetime,omitempty" json:"max_lifetime,omitempty"`
	outbound.Config `yaml:",inline"`
}

// A ClientAuth is a method of client authentication, by its registered name.
type ClientAuth string

// The methods (RFC 6749 §2.3.1). One is chosen and used alone: trying a second
// would show the secret twice and count as a second failure.
const (
	SecretPost  ClientAuth = "client_secret_post"  // id and secret in the form
	SecretBasic ClientAuth = "client_secret_basic" // id and secret in the Authorization header
)

// Material is what a request is authenticated with: the fields of one bundle,
// client_id, client_secret and others, which are not used here.
type Material map[string]secret.Secret

// A Request is what a token is asked for. Empty fields are not sent.
type Request struct {
	Scope    string // space-separated (RFC 6749 §3.3)
	Audience string // the API's name, where the issuer knows this parameter
	Resource string // the API's absolute URI (RFC 8707 §2)
}

// A Token is an access token and what is known of it. It holds no refresh
// token: the client credentials grant gives none (RFC 6749 §4.4.3).
type Token struct {
	Access      secret.Secret
	Type        string        // as to be written in a header: "Bearer"
	Scope       string        // granted; as requested if the issuer does not say (RFC 6749 §5.1)
	Sent        clock.Reading // when the request was sent: the lifetime counts from here
	Expires     clock.Reading // Sent plus the lifetime, without any margin
	Fingerprint string        // base64url(SHA-256(access token)), as ath in RFC 9449 §4.2
	JTI         string        // of a JWT, for records: printable, at most 128 bytes, may be empty
	Skew        time.Duration // how far the issuer's clock is ahead of ours by its Date; 0: not at all, or unknown
	Narrowed    bool          // some of the requested scope was not granted
}

const (
	defaultLifetime = 5 * time.Minute
	maxLifetime     = 24 * time.Hour
)

// Open makes a client of p. It does no I/O beyond reading p's ca_file. rt is
// how requests travel; nil means p.Exchange().
func Open(p Profile, rt http.RoundTripper, c clock.Clock) (*Client, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if rt == nil {
		t, err := p.Exchange()
		if err != nil {
			return nil, err
		}
		rt = t
	}
	p.Params = maps.Clone(p.Params)
	endpoint, err := url.Parse(p.TokenEndpoint)
	if err != nil {
		return nil, errors.New("token_endpoint: not a URL")
	}
	client := &Client{profile: p, endpoint: endpoint, rt: rt, clock: c}
	if p.JWKSURI != "" {
		client.keys, err = newKeySet(p, rt, c)
	}
	return client, err
}

// Mint asks for one token with the client credentials grant (RFC 6749 §4.4):
// one request, no second try. Every error is an *Error. ctx bounds the call,
// which takes outbound.CallTimeout at most.
func (c *Client) Mint(ctx context.Context, m Material, r Request) (Token, error) {
	ctx, cancel := context.WithTimeout(ctx, outbound.CallTimeout)
	defer cancel()
	if c.keys != nil {
		// Before the secret is shown: a token that nobody can check would be
		// asked for again and again.
		if _, err := c.keys.get(ctx, ""); err != nil {
			return Token{}, err
		}
	}
	a, err := c.exchange(ctx, m, r)
	if err != nil {
		return Token{}, err
	}
	defer a.wipe()
	if a.status != http.StatusOK {
		return Token{}, a.refusal()
	}
	return c.token(ctx, a, r)
}

// lifetimes gives the default and the maximum.
func (p Profile) lifetimes() (def, most time.Duration) {
	def, most = p.DefaultLifetime.D(), p.MaxLifetime.D()
	if def == 0 {
		def = defaultLifetime
	}
	if most == 0 {
		most = maxLifetime
	}
	return min(def, most), most
}

// Validate says what is wrong with p, each error starting with the key it
// concerns.
func (p Profile) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf(key+": "+format, args...))
	}
	if p.TokenEndpoint == "" {
		bad("token_endpoint", "missing")
	} else if err := checkURL(p.TokenEndpoint); err != nil {
		bad("token_endpoint", "%w", err)
	}
	if p.JWKSURI != "" {
		if err := checkURL(p.JWKSURI); err != nil {
			bad("jwks_uri", "%w", err)
		}
		if p.Issuer == "" {
			bad("issuer", "missing: jwks_uri is of use only with the exact iss of the tokens")
		}
	}
	switch p.ClientAuth {
	case "", SecretPost, SecretBasic:
	default:
		bad("client_auth", "%q is not known: use client_secret_post or client_secret_basic", p.ClientAuth)
	}
	for _, name := range paramNames(p.Params) {
		if reason := reservedParam(name); reason != "" {
			bad("params", "%q %s", name, reason)
		}
	}
	if _, err := algorithms(p.Algorithms); err != nil {
		bad("algorithms", "%w", err)
	}
	if p.MaxLifetime < 0 || p.DefaultLifetime < 0 {
		bad("max_lifetime", "a lifetime cannot be negative")
	}
	if p.MaxLifetime > 0 && p.DefaultLifetime > p.MaxLifetime {
		bad("default_lifetime", "%s is longer than max_lifetime, %s", p.DefaultLifetime, p.MaxLifetime)
	}
	if _, err := p.ProxyURL(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
