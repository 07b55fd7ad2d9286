package oidc

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
)

// Rules of this file:
//   - a signature is made of what the bundle holds now, and the key is dropped;
//   - what cannot be signed is refused here, and nothing is sent;
//   - an error names the field and what to do, never a value.

const (
	// An issuer whose clock is a little behind refuses an iat in its future.
	assertionBackDate = 5 * time.Second
	assertionLifetime = time.Minute
	minAssertion      = 15 * time.Second // with less, a slow network is a refusal
	maxAssertion      = 10 * time.Minute // what the strictest of the known issuers takes

	keyIDThumbprint  = "thumbprint"
	keyIDCertificate = "certificate"
	keyIDNone        = "none"

	maxClaim = 255 // bytes of a text in a claim or header
)

// assertion makes the JWT of RFC 7523 §3 that authenticates the client, if
// subject is empty, or is the grant of that subject: then it is signed with
// private_key whatever ClientAuth is. audience is the token endpoint, for
// profiles that name neither Assertion.Audience nor Issuer; now is the time on
// the issuer's clock. The caller wipes the result. Every error is an *Error.
func (c *Client) assertion(m Material, subject, audience string, now time.Time) ([]byte, error) {
	a := c.profile.Assertion
	id, err := plain(m, "client_id")
	if err != nil {
		return nil, err
	}
	shared := subject == "" && c.profile.ClientAuth == SecretJWT
	if subject == "" {
		subject = id
	}
	issued := now.Add(-assertionBackDate).Truncate(time.Second)
	lifetime := cmp.Or(a.Lifetime.D(), assertionLifetime)
	// Strings cannot fail to be JSON.
	claims, _ := json.Marshal(struct {
		Issuer   string `json:"iss"`
		Subject  string `json:"sub"`
		Audience string `json:"aud"`
		ID       string `json:"jti"`
		Issued   int64  `json:"iat"`
		Expires  int64  `json:"exp"`
	}{id, subject, cmp.Or(a.Audience, c.profile.Issuer, audience), newID(), issued.Unix(), issued.Add(lifetime).Unix()})
	if shared {
		return signShared(m, a, claims)
	}
	return signPrivate(m, a, claims)
}

// grantAssertion makes the assertion of a jwt_bearer grant, whose subject is
// Assertion.Subject, else client_id. The rest is as for assertion.
func (c *Client) grantAssertion(m Material, audience string, now time.Time) ([]byte, error) {
	subject := c.profile.Assertion.Subject
	if subject == "" {
		id, err := plain(m, "client_id")
		if err != nil {
			return nil, err
		}
		subject = id
	}
	return c.assertion(m, subject, audience, now)
}

// signPrivate signs with private_key.
func signPrivate(m Material, a Assertion, claims []byte) ([]byte, error) {
	key, err := keys.Parse(m["private_key"])
	if err != nil {
		return nil, unusable("private_key", err)
	}
	header := map[string]any{"typ": "JWT"}
	switch a.KeyID {
	case keyIDNone:
	case keyIDCertificate:
		pair, err := keys.Pair(m["private_key"], m["certificate"])
		if err != nil {
			return nil, unusable("", err)
		}
		header["kid"], _ = keys.Thumbprints(pair.Leaf)
	default:
		header["kid"] = key.KeyID()
		if !m["key_id"].Empty() {
			if header["kid"], err = plain(m, "key_id"); err != nil {
				return nil, err
			}
		}
	}
	alg := a.Algorithm
	if isShared(alg) { // it is meant for the other assertion
		alg = ""
	}
	jwt, err := key.Sign(alg, header, claims)
	if err != nil {
		return nil, unusable("private_key", err)
	}
	return jwt, nil
}

// signShared signs with client_secret.
func signShared(m Material, a Assertion, claims []byte) ([]byte, error) {
	alg := a.Algorithm
	if !isShared(alg) {
		alg = "HS256"
	}
	newHash := map[string]func() hash.Hash{"HS256": sha256.New, "HS384": sha512.New384, "HS512": sha512.New}[alg]
	key := m["client_secret"]
	if least := newHash().Size(); key.Len() < least { // RFC 7518 §3.2
		return nil, &Error{Kind: Refused, Message: fmt.Sprintf("client_secret is too short for %s, which wants %d bytes", alg, least),
			Hint: "ask the issuer for a longer secret, or for another way of authentication, and set client_auth"}
	}
	pem := false
	// Whoever has its public half could sign too (RFC 8725 §2.1).
	_ = key.Use(func(b []byte) error { pem = bytes.Contains(b, []byte("-----BEGIN ")); return nil })
	if pem {
		return nil, &Error{Kind: Refused, Message: "client_secret holds a key in PEM, which is no shared secret",
			Hint: "store a private key as private_key, and set client_auth: private_key_jwt"}
	}
	jwt, err := hmacJWS(newHash, key, []byte(`{"typ":"JWT","alg":"`+alg+`"}`), claims)
	if err != nil {
		return nil, unusable("client_secret", err)
	}
	return jwt, nil
}

// hmacJWS makes a JWS in compact form (RFC 7515 §7.1) with an HMAC of key (RFC
// 7518 §3.2), in one buffer, which the caller wipes.
func hmacJWS(newHash func() hash.Hash, key secret.Secret, header, claims []byte) ([]byte, error) {
	b64 := base64.RawURLEncoding
	out := make([]byte, 0, b64.EncodedLen(len(header))+b64.EncodedLen(len(claims))+b64.EncodedLen(newHash().Size())+2)
	out = b64.AppendEncode(out, header)
	out = b64.AppendEncode(append(out, '.'), claims)
	mac, err := key.HMAC(newHash(), out)
	if err != nil {
		clear(out)
		return nil, err
	}
	return b64.AppendEncode(append(out, '.'), mac), nil
}

// isShared says whether alg signs with a shared secret.
func isShared(alg string) bool { return strings.HasPrefix(alg, "HS") }

// bundleCertificate gives the bundle's client certificate with its private
// key, and its x5t#S256 (RFC 8705 §3.1). Every error is an *Error.
func bundleCertificate(m Material) (tls.Certificate, string, error) {
	pair, err := keys.Pair(m["private_key"], m["certificate"])
	if err != nil {
		return tls.Certificate{}, "", unusable("", err)
	}
	_, thumbprint := keys.Thumbprints(pair.Leaf)
	return pair, thumbprint, nil
}

// plain gives a field that is written as text: an identifier, no secret.
func plain(m Material, field string) (string, error) {
	b, err := m[field].AppendTo(nil)
	if err == nil {
		err = checkText(string(b))
	}
	if err == nil && len(b) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return "", unusable(field, err)
	}
	return string(b), nil
}

// checkText is for what goes into claims and headers.
func checkText(s string) error {
	switch {
	case len(s) > maxClaim:
		return fmt.Errorf("it is longer than %d bytes", maxClaim)
	case !utf8.ValidString(s):
		return errors.New("it is not UTF-8")
	case strings.ContainsFunc(s, unicode.IsControl):
		return errors.New("it holds a control character")
	}
	return nil
}

// unusable says that a field of the bundle cannot be used; err is of our own
// words, and names the field itself if field is empty.
func unusable(field string, err error) *Error {
	if errors.Is(err, secret.ErrWiped) {
		return &Error{Kind: Unavailable, Message: "the client's secret was replaced meanwhile", Err: err}
	}
	text := err.Error()
	if field != "" {
		text = field + ": " + text
	}
	return &Error{Kind: Refused, Message: "the client's secret cannot be used: " + text, Err: err}
}

// newID is a jti: a random UUID (RFC 9562 §5.4), which serves where a GUID is
// asked for.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (p Profile) validateAssertion() []error {
	var e problems
	a := p.Assertion
	word(&e, "assertion.key_id", a.KeyID, keyIDThumbprint, keyIDCertificate, keyIDNone)
	if l := a.Lifetime.D(); l != 0 && (l < minAssertion || l > maxAssertion) {
		e.bad("assertion.lifetime", "%s is not between %s and %s", a.Lifetime, minAssertion, maxAssertion)
	}
	shared, private := []string{"HS256", "HS384", "HS512"}, []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "EdDSA"}
	fit := slices.Concat(shared, private)
	switch {
	case p.Grant == JWTBearer && p.ClientAuth == SecretJWT: // each assertion takes what fits it
	case p.Grant == JWTBearer, p.ClientAuth == PrivateKeyJWT:
		fit = private
	case p.ClientAuth == SecretJWT:
		fit = shared
	}
	word(&e, "assertion.algorithm", a.Algorithm, fit...)
	if err := checkText(a.Subject); err != nil {
		e.bad("assertion.subject", "%w", err)
	}
	if strings.ContainsFunc(a.Audience, unicode.IsControl) || !utf8.ValidString(a.Audience) {
		e.bad("assertion.audience", "it holds a control character, or is not UTF-8")
	}
	return e
}

// Fields are those of the bundle that the profile's way of authentication
// needs, sorted. The refresh_token is not among them: it is a secret of its own.
func (p Profile) Fields() []string {
	need := map[string]bool{}
	add := func(names ...string) {
		for _, n := range names {
			need[n] = true
		}
	}
	switch p.Grant {
	case NoGrant:
		return nil
	case SelfSigned:
		return []string{"client_id", "client_secret"}
	case JWTBearer:
		add("private_key")
	case ClientCredentials, AuthorizationCode:
	}
	add("client_id")
	switch p.ClientAuth {
	case PrivateKeyJWT:
		add("private_key")
	case TLS, SelfSignedTLS:
		add("private_key", "certificate")
	case NoAuth:
	default:
		add("client_secret")
	}
	if p.CertificateBound {
		add("private_key", "certificate")
	}
	if p.Assertion.KeyID == keyIDCertificate && (p.Grant == JWTBearer || p.ClientAuth == PrivateKeyJWT) {
		add("certificate")
	}
	return slices.Sorted(maps.Keys(need))
}
