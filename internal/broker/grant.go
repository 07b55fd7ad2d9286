package broker

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// A Request is what a consumer asks for.
type Request struct {
	Client  string
	Surface access.Surface
	// Via says more than the surface of the way in, for the records: "oauth2",
	// "route NAME". Empty: there is one way.
	Via string
	// NeedsToken refuses a client that has an API key alone. Token and Events
	// always do.
	NeedsToken bool
	// Scope (space-separated), Audience and Resource choose the token; empty
	// means what the caller's allow entry, or else the client, has as default.
	Scope, Audience, Resource string
	// MinTTL is how much life the token must have left. Zero: any.
	MinTTL time.Duration
}

// A UserRequest asks for a self-signed JWT that names a user. The user is
// personal data: it goes into the JWT and nowhere else.
type UserRequest struct {
	Client string
	User   oidc.User
}

// A LoginCode is what a person's login brought back.
type LoginCode struct {
	State  string
	Code   secret.Secret
	Issuer string // the parameter iss (RFC 9207); empty: there was none
}

// A Grant is what a consumer gets: a token and the bundle version that it
// belongs to. It is handed over, and recorded as such.
type Grant struct {
	Client  string
	Version providers.Version
	Token   oidc.Token
	// Expires is when the token ends; the broker stops to serve it Margin earlier.
	Expires clock.Reading
	// Now is when the grant was given: ExpiresIn counts from there.
	Now     clock.Reading
	renew   clock.Reading // as in Sight
	held    *holding      // of what it gives
	headers []headerTemplate
	fields  map[string]secret.Secret
}

// ExpiresIn is the token's usable life in whole seconds, at least 0.
func (g *Grant) ExpiresIn() int64 { return max(0, int64(g.Expires.Until(g.Now)/time.Second)) }

// ExpiresAt is the wall-clock time that ExpiresIn leads to.
func (g *Grant) ExpiresAt() time.Time { return g.Expires.Wall }

// AppendHeaders calls line for every header that a call to the API needs. The
// value must not be kept.
func (g *Grant) AppendHeaders(line func(name string, value []byte) error) error {
	for _, h := range g.headers {
		value, err := h.expand(nil, g)
		if err == nil {
			err = line(h.name, value)
		}
		clear(value)
		if err != nil {
			return err
		}
	}
	return nil
}

// Fills says whether that header holds the token or a field of the bundle, and
// not text of the configuration alone.
func (g *Grant) Fills(name string) bool {
	return slices.ContainsFunc(g.headers, func(h headerTemplate) bool { return h.name == name && len(h.parts) > 1 })
}

// APIKey is the key alone; empty if the bundle has none.
func (g *Grant) APIKey() secret.Secret { return g.fields["api_key"] }

// Certificate is the bundle's client certificate with its key, to which
// Token.Bound binds the token. Whoever has it drops it at once.
func (g *Grant) Certificate() (*tls.Certificate, error) {
	pair, err := keys.Pair(g.fields[fieldPrivateKey], g.fields[fieldCertificate])
	if err != nil {
		return nil, err
	}
	return &pair, nil
}

// A Rejection is a consumer's word that the API refused a token.
type Rejection struct {
	Client string
	// AccessToken or Fingerprint names the token.
	AccessToken secret.Secret
	Fingerprint string
	// Status is the API's HTTP status, MoreInformation its moreInformation
	// text (API Connect) or empty.
	Status          int
	MoreInformation string
}

// A Rejected is what came of a Rejection.
type Rejected struct {
	Replaced    bool   // a new token is there
	Fingerprint string // of the current token
	Reason      string // for a person
	// RetryAfter is when a further rejection may replace the token.
	RetryAfter time.Duration
}

// An Error is why a consumer gets nothing. Detail says what to do.
type Error struct {
	Code       client.Code
	Detail     string
	RetryAfter time.Duration
	Identity   string        // not_allowed: how the caller is seen
	Clients    []string      // not_allowed: what it may use
	Reason     access.Reason // not_allowed: why, as far as the caller may know
	Err        error         // the cause, for records; never sent to a consumer

	kind rotation.Kind // where it came from there
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Detail, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Detail)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Problem is the wire form of any error: an *Error as it is, another one as
// internal, without its text.
func Problem(err error) *client.Problem {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Code: client.Internal, Detail: "the broker failed; its journal says why"}
	}
	return &client.Problem{Type: "about:blank", Title: e.Code.Title(), Status: e.Code.Status(), Code: e.Code, Detail: e.Detail,
		RetryAfter: int((e.RetryAfter + time.Second - 1) / time.Second), Identity: e.Identity, Clients: e.Clients}
}

// An Identity is what the broker sees of a caller.
type Identity struct {
	Caller  string           // in words
	Clients []IdentityClient // what it may have
}

// IdentityClient is one client that a caller may use.
type IdentityClient struct {
	Client   string           `json:"client"`
	Entries  []int            `json:"entries"` // positions in allow:, from 0
	Surfaces []access.Surface `json:"surfaces"`
}

// A Readiness says whether a caller's clients can be served now.
type Readiness struct {
	Ready   bool
	Clients []ClientReadiness // the caller's own
	Others  int               // how many other clients there are
}

// ClientReadiness is one client's state.
type ClientReadiness struct {
	Client string      `json:"client"`
	Ready  bool        `json:"ready"`
	Code   client.Code `json:"code,omitempty"`   // why not
	Reason string      `json:"reason,omitempty"` // in words
	// Runway is for how many seconds tokens in hand will serve.
	Runway int64 `json:"runway_seconds"`
	// DegradedUntil is until when a sealed copy serves; zero: none does.
	DegradedUntil time.Time `json:"degraded_until,omitzero"`
}
