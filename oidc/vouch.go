package oidc

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/internal/outbound"
)

// Rules of this file: here tokens are judged that somebody found. Anybody can
// write one, so nothing that it says counts before its signature is seen to be
// the issuer's; and an issuer signs more than access tokens.

// A Statement is what a token says of itself, and a signature vouches for.
type Statement struct {
	ClientID string // whom the token was issued to
	JTI      string // for records, as Token.JTI
	Scope    string
	Issued   time.Time // zero: it does not say
	Expires  time.Time // zero: it does not say
}

// Names says which client a token claims to be issued to, whoever may have
// written that: its client_id (RFC 9068 §2.2), else azp, else sub. Empty: none.
// jwt is false for a token that is opaque. An aud is not looked at: it names
// who the token is for.
func Names(token []byte) (clientID string, jwt bool) {
	payload, jwt := jwtPayload(token)
	defer clear(payload)
	return statementOf(token, payload).ClientID, jwt
}

// statementOf reads what a JWT says, which nobody has checked.
func statementOf(token, payload []byte) Statement {
	var m map[string]json.RawMessage
	if json.Unmarshal(payload, &m) != nil {
		return Statement{}
	}
	cl := parseClaims(payload)
	s := Statement{JTI: cl.jti, Issued: moment(cl.iat), Expires: moment(cl.exp)}
	for _, name := range []string{"client_id", "azp", "sub"} {
		if id, ok := text(m[name]); ok && printable(id, maxJTI) {
			s.ClientID = string(id)
			break
		}
	}
	if s.ClientID == "" { // VNG's form of 2018 has it in the header
		if id, ok := text(jwtHeader(token)["client_identifier"]); ok && printable(id, maxJTI) {
			s.ClientID = string(id)
		}
	}
	s.Scope, _, _ = granted("", m["scope"])
	return s
}

// moment is a numeric date (RFC 7519 §2); zero: none, or an absurd one.
func moment(seconds float64) time.Time {
	const end = 253402300799 // of the year 9999
	if seconds < 1 || seconds > end {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0).UTC()
}

func jwtHeader(token []byte) (m map[string]json.RawMessage) {
	part, _, _ := bytes.Cut(token, []byte{'.'})
	header, err := base64.RawURLEncoding.AppendDecode(nil, part)
	if err != nil || json.Unmarshal(header, &m) != nil {
		return nil
	}
	return m
}

// Vouch says what an access token of this issuer says, if the issuer, or who
// signs for itself with m, has signed it; whether it has expired is the
// caller's to look at. m is used for nothing else. Every error is an *Error, and
// says why there is no such word: of kind Refused if the issuer's keys are not
// known here, or the token is something else than a signed access token.
func (c *Client) Vouch(ctx context.Context, m Material, token []byte) (Statement, error) {
	refuse := func(what, hint string) (Statement, error) {
		return Statement{}, &Error{Kind: Refused, Message: c.host() + ": " + what, Hint: hint}
	}
	payload, jwt := jwtPayload(token)
	defer clear(payload)
	if !jwt {
		return refuse("the token is opaque: it has no signature", "")
	}
	if c.Local() {
		if err := signedWith(m, token); err != nil {
			return Statement{}, err
		}
		return statementOf(token, payload), nil
	}
	if c.keys == nil {
		return refuse("the issuer's public keys are not known", "set issuer and jwks_uri for the client")
	}
	ctx, cancel := context.WithTimeout(ctx, outbound.CallTimeout)
	defer cancel()
	s, err := c.signature(ctx, token)
	switch {
	case err != nil:
		return Statement{}, err
	case !s.known:
		return refuse("the issuer's metadata name no jwks_uri", "set jwks_uri for the client")
	case s.jws == nil:
		return refuse("the token is not signed with an allowed algorithm", "")
	case critical(s.jws):
		return refuse("the token's header has a critical extension", "")
	case !s.found || !s.signed:
		return refuse("the token's signature is not the issuer's", "")
	case parseClaims(payload).iss != c.profile.Issuer:
		return refuse("the token names another issuer", "")
	case !c.isAccess(token, payload):
		return refuse("the issuer has signed it, and it is no access token", "")
	}
	return statementOf(token, payload), nil
}

// Verifies says whether the issuer's keys are known here, or can be asked for.
func (c *Client) Verifies() bool { return c.keys != nil || c.Local() }

// isAccess says whether what the issuer has signed is an access token. Where
// people log in, there are ID tokens (OpenID Connect Core §2), which name the
// client too, and are dropped here unrecorded.
func (c *Client) isAccess(token, payload []byte) bool {
	var m map[string]json.RawMessage
	if json.Unmarshal(payload, &m) != nil {
		return false
	}
	for _, name := range []string{"nonce", "at_hash", "c_hash", "s_hash", "events"} {
		if m[name] != nil {
			return false
		}
	}
	if typ, ok := text(m["typ"]); ok && slices.Contains([]string{"ID", "Refresh", "Offline", "Logout"}, string(typ)) { // Keycloak's
		return false
	}
	typ, _ := text(jwtHeader(token)["typ"])
	return c.profile.Grant != AuthorizationCode || slices.Contains([]string{"at+jwt", "application/at+jwt"}, string(typ)) ||
		m["scope"] != nil || m["scp"] != nil || m["client_id"] != nil
}

// signedWith wants a JWT to be signed with m's client_secret, and HS256.
func signedWith(m Material, token []byte) error {
	n := bytes.LastIndexByte(token, '.')
	input, encoded := token[:n], token[n+1:]
	alg, _ := text(jwtHeader(token)["alg"])
	mac, err := base64.RawURLEncoding.AppendDecode(nil, encoded)
	if err != nil || string(alg) != "HS256" || m["client_secret"].Empty() {
		return &Error{Kind: Refused, Message: "the token is not signed with HS256, as the client's are"}
	}
	want, err := m["client_secret"].HMAC(sha256.New(), input)
	if err != nil {
		return unusable("client_secret", err)
	}
	if !hmac.Equal(mac, want) {
		return &Error{Kind: Refused, Message: "the token is not signed with the client_secret that serves now"}
	}
	return nil
}

// A signature is what is known of a JWT's.
type signature struct {
	known         bool                   // the issuer's keys are
	jws           *jose.JSONWebSignature // nil: there is none of an allowed algorithm
	found, signed bool                   // the key is among them; and it has signed
}

// signature looks for the issuer's key that has signed a JWT. The result holds
// strings into token, so it must not outlive it.
func (c *Client) signature(ctx context.Context, token []byte) (s signature, err error) {
	jws, parseErr := jose.ParseSignedCompact(view(token), c.algorithms)
	if parseErr == nil {
		s.jws = jws
	}
	keys, err := c.keys.get(ctx, func(list []jose.JSONWebKey) bool {
		if s.jws != nil {
			s.found, s.signed = signer(jws, list)
		}
		return s.jws == nil || s.found && s.signed
	})
	if err != nil {
		return s, err
	}
	s.known = keys != nil // else the metadata name no jwks_uri
	if s.jws != nil && s.known && !s.signed && !critical(jws) {
		s.found, s.signed = signer(jws, keys)
	}
	return s, nil
}
