package oidc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxSkew = 15 * time.Minute // how much of the measured skew is allowed for: TLS vouches for it
	grace   = 2 * time.Second  // times in a JWT and in Date are whole seconds
)

// unreadable is a thumbprint that is none.
const unreadable = "?"

// claims are the few members of a JWT that are looked at (RFC 7519 §4.1).
// Times are seconds since 1970; 0 means absent.
type claims struct {
	jwt           bool // else the token is opaque
	iss, jti      string
	exp, iat, nbf float64
	bound         string // cnf's x5t#S256 (RFC 8705 §3.1); unreadable if it is no such thing
}

// inspect looks at an access token. One that is no JWT says nothing. The
// claims of one that is are believed as far as they shorten its life, name it
// in records or bind it; where the issuer's keys are known, it is checked as a
// whole. lives is the token's lifetime in seconds, 0 if it does not say.
func (c *Client) inspect(ctx context.Context, a *answer, token []byte) (cl claims, lives float64, err error) {
	payload, ok := jwtPayload(token)
	if !ok {
		return claims{}, 0, nil
	}
	cl = parseClaims(payload)
	clear(payload)
	if err := c.verify(ctx, a, token, cl); err != nil {
		return claims{}, 0, err
	}
	if cl.exp == 0 {
		return cl, 0, nil
	}
	from := cl.iat
	if from == 0 {
		from = float64(a.sent.Wall.Add(a.skew()).Unix())
	}
	if lives = cl.exp - from; lives < 1 {
		return claims{}, 0, a.protocol(a.clockHint(), "the token ends before it starts")
	}
	return cl, lives, nil
}

// bound says which certificate the token is bound to. One that is bound to
// another than was presented could not be used (RFC 8705 §3); of an opaque one
// the issuer's word is taken.
func (c *Client) bound(a *answer, q *request, cl claims) (string, error) {
	switch {
	case cl.bound == unreadable, cl.bound != "" && q.bound != "" && cl.bound != q.bound:
		return "", a.protocol("ask the issuer: a proxy between it and this machine may present a certificate of its own",
			"the token is bound to another certificate than the client's")
	case cl.bound != "":
		return cl.bound, nil
	case q.bound == "" || !c.profile.CertificateBound:
		return "", nil
	case cl.jwt:
		return "", a.protocol("ask the issuer to bind this client's tokens (RFC 8705), or remove certificate_bound_access_tokens",
			"the token is not bound to the client's certificate")
	}
	return q.bound, nil
}

// jwtPayload says whether token is a JWS in compact form (RFC 7515 §7.1) and
// gives its payload, which is empty if it cannot be read.
func jwtPayload(token []byte) ([]byte, bool) {
	parts := bytes.Split(token, []byte{'.'})
	if len(parts) != 3 {
		return nil, false
	}
	header, err := base64.RawURLEncoding.AppendDecode(nil, parts[0])
	if err != nil || !bytes.HasPrefix(bytes.TrimSpace(header), []byte{'{'}) {
		return nil, false
	}
	payload, err := base64.RawURLEncoding.AppendDecode(nil, parts[1])
	if err != nil {
		return nil, true
	}
	return payload, true
}

func parseClaims(payload []byte) claims {
	cl := claims{jwt: true}
	var m map[string]json.RawMessage
	if json.Unmarshal(payload, &m) != nil {
		return cl
	}
	iss, _ := text(m["iss"])
	cl.iss = string(iss)
	if jti, ok := text(m["jti"]); ok && printable(jti, maxJTI) {
		cl.jti = string(jti)
	}
	cl.exp, _ = number(m["exp"])
	cl.iat, _ = number(m["iat"])
	cl.nbf, _ = number(m["nbf"])
	var cnf map[string]json.RawMessage
	_ = json.Unmarshal(m["cnf"], &cnf) // what is no object confirms nothing
	if raw := cnf["x5t#S256"]; raw != nil {
		cl.bound = unreadable
		if b, ok := text(raw); ok && len(b) == base64.RawURLEncoding.EncodedLen(sha256.Size) && printable(b, len(b)) {
			cl.bound = string(b)
		}
	}
	return cl
}

// verify checks signature, iss, exp and nbf (RFC 9068 §4, RFC 8725 §3), where
// the issuer's keys are known.
func (c *Client) verify(ctx context.Context, a *answer, token []byte, cl claims) error {
	if c.keys == nil {
		return nil
	}
	s, err := c.signature(ctx, token)
	switch {
	case err != nil:
		return err
	case !s.known:
		return nil // the metadata name no jwks_uri
	case s.jws == nil:
		return a.protocol("the broker takes "+algorithmNames(c.algorithms), "the token is a JWT that is not signed with an allowed algorithm")
	case critical(s.jws):
		return a.protocol("ask the issuer for tokens without crit and b64", "the token's header has a critical extension")
	case !s.found:
		return a.protocol("check that jwks_uri is the one that the issuer's metadata names", "the token is signed with a key that jwks_uri does not list")
	case !s.signed:
		return a.protocol("if this lasts, ask the issuer: somebody else may be answering in its place", "the token's signature is wrong")
	case cl.iss != c.profile.Issuer:
		return a.protocol("compare issuer with the issuer in its metadata document, to the letter", "the token is from another issuer")
	case cl.exp == 0:
		return a.protocol("", "the token is a JWT without exp")
	}
	now := a.received.Wall.Add(max(-maxSkew, min(a.skew(), maxSkew)))
	if float64(now.Add(-grace).Unix()) >= cl.exp {
		return a.protocol(a.clockHint(), "the token has already expired")
	}
	if float64(now.Add(grace).Unix()) < cl.nbf {
		return a.protocol(a.clockHint(), "the token is not valid yet")
	}
	return nil
}

// signer says whether the token may be signed by one of keys, and whether it
// is.
func signer(jws *jose.JSONWebSignature, keys []jose.JSONWebKey) (found, signed bool) {
	header := jws.Signatures[0].Header
	for _, k := range keys {
		if header.KeyID != "" && k.KeyID != "" && k.KeyID != header.KeyID || k.Algorithm != "" && k.Algorithm != header.Algorithm {
			continue
		}
		found = true
		if _, err := jws.Verify(k.Key); err == nil {
			return true, true
		}
	}
	return found, false
}

// critical says whether the header changes how the token is to be read: no
// such extension is known to all consumers (RFC 7515 §4.1.11, RFC 7797 §7).
func critical(jws *jose.JSONWebSignature) bool {
	h := jws.Signatures[0].Protected.ExtraHeaders
	return h["crit"] != nil || h["b64"] != nil
}

func (a *answer) clockHint() string {
	switch s := a.skew().Truncate(time.Second); {
	case s > 0:
		return fmt.Sprintf("this machine's clock is %s behind the issuer's: check time synchronisation", s)
	case s < 0:
		return fmt.Sprintf("this machine's clock is %s ahead of the issuer's: check time synchronisation", -s)
	}
	return "the clocks agree: ask the issuer"
}

// allAlgorithms are those with a public key. With HMAC, whoever knows the
// public key could sign (RFC 8725 §2.1).
func allAlgorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
		jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}
}

func algorithms(names []string) ([]jose.SignatureAlgorithm, error) {
	all := allAlgorithms()
	if len(names) == 0 {
		return all, nil
	}
	var out []jose.SignatureAlgorithm
	for _, n := range names {
		if !slices.Contains(all, jose.SignatureAlgorithm(n)) {
			return nil, fmt.Errorf("%q is not possible: use %s", n, algorithmNames(all))
		}
		out = append(out, jose.SignatureAlgorithm(n))
	}
	return out, nil
}

func algorithmNames(algs []jose.SignatureAlgorithm) string {
	s := ""
	for i, a := range algs {
		if i > 0 {
			s += ", "
		}
		s += string(a)
	}
	return s
}
