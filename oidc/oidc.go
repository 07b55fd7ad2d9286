// Package oidc speaks to one authorization server.
//
// A [Profile] is an issuer as data; a [Client] asks it for tokens. It keeps
// nothing but the issuer's metadata, public keys and clock, and retries
// nothing: whoever calls owns the one budget and decides when to ask again. It
// has no cookie jar, follows no redirect and never tries a second way of
// authentication.
package oidc

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
)

// A Client asks one issuer. Its methods may be called from many
// goroutines.
type Client struct {
	profile    Profile
	rt         http.RoundTripper
	clock      clock.Clock
	algorithms []jose.SignatureAlgorithm     // that tokens may be signed with
	metadata   *cached[metadata]             // fetched if an endpoint is needed that is not configured
	keys       *cached[[]jose.JSONWebKey]    // nil: JWTs are not checked
	ahead      atomic.Pointer[time.Duration] // the issuer's clock, by its last Date; nil: not known
}

// A Profile is an issuer as data.
type Profile struct {
	// Grant is how a token is had. Empty: client_credentials.
	Grant Grant `yaml:"grant,omitempty" json:"grant,omitempty" check:"client_credentials|authorization_code|jwt_bearer|self_signed|none"`
	// TokenEndpoint is the URL that token requests go to (RFC 6749 §3.2):
	// https, or http on loopback. Empty: the issuer's metadata name it.
	TokenEndpoint string `yaml:"token_endpoint,omitempty" json:"token_endpoint,omitempty"`
	// ClientAuth says how the client authenticates. Empty: client_secret_post.
	ClientAuth ClientAuth `yaml:"client_auth,omitempty" json:"client_auth,omitempty" check:"client_secret_post|client_secret_basic|client_secret_jwt|private_key_jwt|tls_client_auth|self_signed_tls_client_auth|none"`
	// Assertion is for the methods and grants that sign a JWT.
	Assertion Assertion `yaml:"assertion,omitempty" json:"assertion,omitzero"`
	// JWT is for the grant self_signed.
	JWT JWT `yaml:"jwt,omitempty" json:"jwt,omitzero"`
	// Params are further parameters of every token request, never credentials.
	// Empty: none.
	Params map[string]string `yaml:"params,omitempty" json:"params,omitempty"`
	// RequestFormat is how token requests are written: form (RFC 6749 §4), or
	// json for servers that want it so. Empty: form.
	RequestFormat string `yaml:"request_format,omitempty" json:"request_format,omitempty" check:"form|json"`
	// TokenType is optional for servers whose answers have no token_type; their
	// tokens count as bearer tokens. Empty, or required: RFC 6749 §5.1.
	TokenType string `yaml:"token_type,omitempty" json:"token_type,omitempty" check:"required|optional"`
	// AuthorizationEndpoint is where a person gives consent (RFC 6749 §3.1).
	// Empty: the issuer's metadata name it.
	AuthorizationEndpoint string `yaml:"authorization_endpoint,omitempty" json:"authorization_endpoint,omitempty"`
	// AuthorizationParams are further parameters there, prompt for example.
	// Empty: none.
	AuthorizationParams map[string]string `yaml:"authorization_params,omitempty" json:"authorization_params,omitempty"`
	// RedirectURI is the registered one. On loopback, without a port, any port
	// will do (RFC 8252 §7.3). Empty: http://127.0.0.1/callback.
	RedirectURI string `yaml:"redirect_uri,omitempty" json:"redirect_uri,omitempty"`
	// RevocationEndpoint takes tokens back (RFC 7009). Empty: the metadata's,
	// else there is none.
	RevocationEndpoint string `yaml:"revocation_endpoint,omitempty" json:"revocation_endpoint,omitempty"`
	// IntrospectionEndpoint tells whether a token is active (RFC 7662). Empty:
	// the metadata's, else there is none.
	IntrospectionEndpoint string `yaml:"introspection_endpoint,omitempty" json:"introspection_endpoint,omitempty"`
	// IntrospectionParams are further parameters there. Empty: none.
	IntrospectionParams map[string]string `yaml:"introspection_params,omitempty" json:"introspection_params,omitempty"`
	// Issuer is the exact iss of the tokens (RFC 7519 §4.1.1). It is
	// configured, never derived: the token endpoint's host may differ.
	// Without a token endpoint it is also where the metadata are found.
	// Empty: unknown.
	Issuer string `yaml:"issuer,omitempty" json:"issuer,omitempty"`
	// MetadataURI is the URL of the issuer's metadata (RFC 8414, OpenID Connect
	// Discovery), which must name Issuer. Empty: the two well-known places
	// below Issuer, if token_endpoint is empty, or authorization_endpoint where
	// it is needed.
	MetadataURI string `yaml:"metadata_uri,omitempty" json:"metadata_uri,omitempty"`
	// JWKSURI is the URL of the issuer's public keys (RFC 7517 §5). With it,
	// and Issuer, every access token that is a JWT is checked. Empty: that of
	// the metadata, if these are used; else tokens are passed on as they come.
	JWKSURI string `yaml:"jwks_uri,omitempty" json:"jwks_uri,omitempty"`
	// Algorithms are the signature algorithms that are accepted (RFC 8725
	// §3.1). Empty: all of RS, PS, ES and EdDSA. "none" and HS are never.
	Algorithms []string `yaml:"algorithms,omitempty" json:"algorithms,omitempty"`
	// CertificateBound presents the bundle's certificate in every token request,
	// whatever ClientAuth is, and wants tokens that are bound to it (RFC 8705
	// §3). The tls methods do so anyhow.
	CertificateBound bool `yaml:"certificate_bound_access_tokens,omitempty" json:"certificate_bound_access_tokens,omitempty"`
	// DefaultLifetime is taken for a token that does not say how long it
	// lives. Zero: 5 minutes.
	DefaultLifetime clock.Duration `yaml:"default_lifetime,omitempty" json:"default_lifetime,omitempty"`
	// MaxLifetime is the longest that is believed; a longer one is cut to it.
	// Zero: 24 hours.
	MaxLifetime     clock.Duration `yaml:"max_lifetime,omitempty" json:"max_lifetime,omitempty"`
	outbound.Config `yaml:",inline"`
}

// A Grant is how a token is had.
type Grant string

// The grants.
const (
	ClientCredentials Grant = "client_credentials" // RFC 6749 §4.4
	AuthorizationCode Grant = "authorization_code" // RFC 6749 §4.1: a person logs in once, then refresh tokens (§6)
	JWTBearer         Grant = "jwt_bearer"         // RFC 7523 §2.1: a signed assertion is the grant
	SelfSigned        Grant = "self_signed"        // no server: the broker signs the JWT itself (VNG ZGW)
	NoGrant           Grant = "none"               // no tokens: the client has an API key alone
)

// A ClientAuth is a method of client authentication, by its registered name.
type ClientAuth string

// The methods (RFC 6749 §2.3.1, OpenID Connect Core §9, RFC 8705 §2). One is
// chosen and used alone: trying a second would show the secret twice and count
// as a second failure.
const (
	SecretPost    ClientAuth = "client_secret_post"          // id and secret in the form
	SecretBasic   ClientAuth = "client_secret_basic"         // id and secret in the Authorization header
	SecretJWT     ClientAuth = "client_secret_jwt"           // an assertion signed with the secret (HS256)
	PrivateKeyJWT ClientAuth = "private_key_jwt"             // an assertion signed with private_key
	TLS           ClientAuth = "tls_client_auth"             // a client certificate of a known authority
	SelfSignedTLS ClientAuth = "self_signed_tls_client_auth" // a registered, self-signed client certificate
	NoAuth        ClientAuth = "none"                        // a public client: client_id alone
)

// An Assertion says how a JWT is made that authenticates the client, or is its
// grant (RFC 7523 §3).
type Assertion struct {
	// Audience is the aud. Empty: Issuer if it is set, else TokenEndpoint.
	Audience string `yaml:"audience,omitempty" json:"audience,omitempty"`
	// Lifetime is exp less iat: at most 10 minutes. Zero: 1 minute.
	Lifetime clock.Duration `yaml:"lifetime,omitempty" json:"lifetime,omitempty"`
	// Algorithm is the JWS algorithm. Empty: HS256 with a secret; RS256, ES256
	// or EdDSA, as the key is.
	Algorithm string `yaml:"algorithm,omitempty" json:"algorithm,omitempty"`
	// KeyID is what kid says: thumbprint (RFC 7638, or the bundle's key_id, or
	// the kid of a key that is a JWK), certificate (base64url of SHA-1 of the
	// bundle's certificate), or none. Empty: thumbprint.
	KeyID string `yaml:"key_id,omitempty" json:"key_id,omitempty"`
	// Subject is the sub of a jwt_bearer grant. Empty: client_id.
	Subject string `yaml:"subject,omitempty" json:"subject,omitempty"`
}

// A JWT says what the broker signs itself, with client_secret and HS256, for
// VNG's ZGW APIs.
type JWT struct {
	// Issuer is the iss. Empty: client_id.
	Issuer string `yaml:"issuer,omitempty" json:"issuer,omitempty"`
	// BackDate is how far iat lies in the past: servers refuse the future.
	// Zero: 5 seconds.
	BackDate clock.Duration `yaml:"back_date,omitempty" json:"back_date,omitempty"`
	// Lifetime counts from iat; servers take an hour at most. Zero: 15 minutes.
	Lifetime clock.Duration `yaml:"lifetime,omitempty" json:"lifetime,omitempty"`
	// Claims are the optional ones to write, of exp, nbf and jti. Empty: none.
	Claims []string `yaml:"claims,omitempty" json:"claims,omitempty"`
	// UserID and UserRepresentation are the claims of that name where the
	// caller gives none. Empty: left empty.
	UserID             string `yaml:"user_id,omitempty" json:"user_id,omitempty"`
	UserRepresentation string `yaml:"user_representation,omitempty" json:"user_representation,omitempty"`
	// Form is 2018 for servers of that time: client_identifier in the header,
	// and zds with Scopes and Zaaktypes. Empty, or current: today's.
	Form      string   `yaml:"form,omitempty" json:"form,omitempty"`
	Scopes    []string `yaml:"scopes,omitempty" json:"scopes,omitempty"`       // of the form of 2018
	Zaaktypes []string `yaml:"zaaktypes,omitempty" json:"zaaktypes,omitempty"` // of the form of 2018
}

// Material is what a request is authenticated with: the fields of one bundle,
// client_id, client_secret, private_key, certificate, key_id, and the
// refresh_token; others are not used here.
type Material map[string]secret.Secret

// A Request is what a token is asked for. Empty fields are not sent.
type Request struct {
	Scope    string // space-separated (RFC 6749 §3.3)
	Audience string // the API's name, where the issuer knows this parameter
	Resource string // the API's absolute URI (RFC 8707 §2)
}

// A User is whom a self-signed JWT names: personal data, never recorded.
type User struct {
	ID             string // at most 255 bytes
	Representation string // at most 255 bytes
}

// An Authorization is one person's login that is under way.
type Authorization struct {
	RedirectURI string
	State       string        // RFC 6749 §10.12
	Verifier    secret.Secret // PKCE (RFC 7636 §4.1)
	Scope       string
}

// A Token is an access token and what is known of it.
type Token struct {
	Access      secret.Secret
	Refresh     secret.Secret // a new refresh token (RFC 6749 §6); empty: the old one stays
	Type        string        // as to be written in a header: "Bearer"
	Scope       string        // granted; as requested if the issuer does not say (RFC 6749 §5.1)
	Sent        clock.Reading // when the request was sent: the lifetime counts from here
	Expires     clock.Reading // Sent plus the lifetime, without any margin
	Fingerprint string        // base64url(SHA-256(access token)), as ath in RFC 9449 §4.2
	JTI         string        // of a JWT, for records: printable, at most 128 bytes, may be empty
	Skew        time.Duration // how far the issuer's clock is ahead of ours by its Date; 0: not at all, or unknown
	Narrowed    bool          // some of the requested scope was not granted
	Bound       string        // x5t#S256 of the certificate that it is bound to (RFC 8705 §3.1); empty: it is not
}

// An Introspection is what the issuer says of a token (RFC 7662 §2.2).
type Introspection struct {
	Active   bool
	ClientID string // whom the token was issued to; empty: it does not say
	Scope    string
	Issued   time.Time // zero: it does not say
	Expires  time.Time // zero: it does not say
}

// Open makes a client of p. It does no I/O beyond reading p's ca_file. rt is
// how requests travel; nil means p.Exchange(). A profile that presents a
// certificate needs one with a method WithCertificate(tls.Certificate)
// http.RoundTripper, as an outbound.Exchange has.
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
	p.Params, p.AuthorizationParams, p.IntrospectionParams = maps.Clone(p.Params), maps.Clone(p.AuthorizationParams), maps.Clone(p.IntrospectionParams)
	algs, err := algorithms(p.Algorithms)
	if err != nil {
		return nil, err
	}
	client := &Client{profile: p, rt: rt, clock: c, algorithms: algs}
	client.metadata = newCached(c, client.host(), client.fetchMetadata)
	if p.JWKSURI != "" || p.discovers() {
		client.keys = newCached(c, client.host(), client.fetchKeys)
	}
	return client, nil
}

// Mint asks for one token, as the profile's grant has it: one request that
// shows a secret, no second try. With authorization_code m needs the
// refresh_token. Every error is an *Error. ctx bounds the call, which takes
// outbound.CallTimeout at most.
//
// An error may come with a Token that holds Refresh and nothing else: the
// issuer has replaced the refresh token, and what it gave beside it cannot be
// used. Whoever drops it has ended the login.
func (c *Client) Mint(ctx context.Context, m Material, r Request) (Token, error) {
	q := &request{endpoint: tokenEndpoint, scope: r.Scope}
	switch c.profile.Grant {
	case SelfSigned:
		return c.Sign(m, User{})
	case NoGrant:
		return Token{}, &Error{Kind: Refused, Message: "this client has an API key and no tokens", Hint: "ask for headers or api-key"}
	case AuthorizationCode: // RFC 6749 §6
		if m["refresh_token"].Empty() {
			return Token{}, &Error{Kind: InvalidGrant, Message: c.host() + ": nobody has logged in yet", Hint: "run broker login CLIENT"}
		}
		q.asks(grantRefresh)
		q.secret("refresh_token", m["refresh_token"])
	case JWTBearer:
		q.asks(grantJWT) // the assertion comes with what authenticates the client
	default: // RFC 6749 §4.4.2
		q.asks(grantClient)
	}
	q.text("scope", r.Scope)
	q.text("audience", r.Audience)
	q.text("resource", r.Resource)
	return c.ask(ctx, m, q)
}

// ask makes a token request.
func (c *Client) ask(ctx context.Context, m Material, q *request) (Token, error) {
	ctx, cancel := context.WithTimeout(ctx, outbound.CallTimeout)
	defer cancel()
	for _, k := range paramNames(c.profile.Params) {
		q.text(k, c.profile.Params[k])
	}
	a, err := c.post(ctx, m, q)
	if err != nil {
		return Token{}, err
	}
	defer a.wipe()
	if a.status != http.StatusOK {
		return Token{}, c.refusal(a, q)
	}
	return c.token(ctx, a, q)
}

// Local says whether tokens are made here, without any server.
func (c *Client) Local() bool { return c.profile.Grant == SelfSigned }

// host names the issuer in errors.
func (c *Client) host() string {
	for _, raw := range []string{c.profile.TokenEndpoint, c.profile.MetadataURI, c.profile.Issuer} {
		if u, err := url.Parse(raw); err == nil && u.Host != "" {
			return u.Host
		}
	}
	return "the issuer"
}
