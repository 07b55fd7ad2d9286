// Package keys holds a client's key pair: it makes one, reads one as people
// store it, signs with it, and shows its public half.
//
// A private key is read when it is used and dropped after. What this package
// copies of it (PEM, DER, JSON) is wiped. What cannot be wiped are the words of
// big numbers inside crypto/rsa and crypto/ecdsa, the cache of crypto/ed25519,
// and the strings that a JWK is decoded into: they are garbage as soon as the
// key is dropped, and the daemon's scrubber gives such memory back.
package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/internal/secret"
)

// Private is a client's private key: RSA of 2048 to 8192 bits, P-256 or
// Ed25519. Drop it after use.
type Private struct {
	key *held
	alg string
	kid string
}

// held is behind a pointer, so that even the printing of what holds a Private
// shows no more than an address.
type held struct {
	crypto.Signer // *rsa.PrivateKey, *ecdsa.PrivateKey or ed25519.PrivateKey
}

// The sizes of RSA keys that are taken: RFC 7518 §3.3 asks for the smaller;
// the larger keeps a signature within milliseconds.
const (
	minRSA = 2048
	maxRSA = 8192
)

// Generate makes a key: rsa-2048, rsa-3072, rsa-4096, p-256 or ed25519. Empty:
// rsa-3072, which every issuer takes and which serves beyond 2030 (NIST SP
// 800-57 part 1, table 2).
func Generate(kind string) (*Private, error) {
	var (
		key crypto.Signer
		err error
	)
	switch kind {
	case "rsa-2048":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "rsa-3072", "":
		key, err = rsa.GenerateKey(rand.Reader, 3072)
	case "rsa-4096":
		key, err = rsa.GenerateKey(rand.Reader, 4096)
	case "p-256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		return nil, fmt.Errorf("%.40q is no kind of key: use rsa-2048, rsa-3072, rsa-4096, p-256 or ed25519", kind)
	}
	if err != nil {
		return nil, errors.New("a key cannot be made: the machine's cryptography refuses")
	}
	return private(key, "", "")
}

// private checks a key. kid and alg are what its JWK says, or empty.
func private(key any, kid, alg string) (*Private, error) {
	p := &Private{kid: kid}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return nil, fmt.Errorf("the RSA key has %d bits, and %d to %d are taken: make another (broker keys new)", n, minRSA, maxRSA)
		}
		p.key = &held{k}
	case *ecdsa.PrivateKey:
		if k.Curve != elliptic.P256() {
			return nil, errors.New("the key is on another curve than P-256: make another (broker keys new --kind p-256)")
		}
		p.key = &held{k}
	case ed25519.PrivateKey:
		p.key = &held{k}
	case []byte:
		return nil, errors.New("the JWK is a shared secret (kty oct), not a private key: store that as client_secret")
	default:
		return nil, errUnsupported
	}
	p.alg = p.algorithms()[0]
	if alg != "" {
		if err := p.check(alg); err != nil {
			return nil, fmt.Errorf("the JWK contradicts itself: %w", err)
		}
		p.alg = alg
	}
	if kid == "" {
		thumb, err := (&jose.JSONWebKey{Key: p.key.Public()}).Thumbprint(crypto.SHA256)
		if err != nil {
			return nil, errUnsupported
		}
		p.kid = base64.RawURLEncoding.EncodeToString(thumb)
	}
	return p, nil
}

// algorithms are those that fit the key (RFC 7518 §3.1, RFC 8037 §3.1), its
// own first.
func (p *Private) algorithms() []string {
	switch p.key.Signer.(type) {
	case *rsa.PrivateKey:
		return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
	case *ecdsa.PrivateKey:
		return []string{"ES256"}
	}
	return []string{"EdDSA"}
}

func (p *Private) check(alg string) error {
	if fit := p.algorithms(); !slices.Contains(fit, alg) {
		return fmt.Errorf("the algorithm %.20q does not fit the key, which can do %s", alg, strings.Join(fit, ", "))
	}
	return nil
}

// Use makes alg the key's algorithm, if it fits; empty: it stays as it is.
func (p *Private) Use(alg string) error {
	if alg == "" {
		return nil
	}
	if err := p.check(alg); err != nil {
		return err
	}
	p.alg = alg
	return nil
}

// Algorithm is the JWS algorithm to sign with: Use's, else the one that the
// key's JWK names, else RS256, ES256 or EdDSA.
func (p *Private) Algorithm() string { return p.alg }

// Kind is the kind for Generate that gives such a key. RSA of a size between
// those is the next larger one.
func (p *Private) Kind() string {
	switch k := p.key.Signer.(type) {
	case *rsa.PrivateKey:
		switch n := k.N.BitLen(); {
		case n <= 2048:
			return "rsa-2048"
		case n > 3072:
			return "rsa-4096"
		}
		return "rsa-3072"
	case *ecdsa.PrivateKey:
		return "p-256"
	}
	return "ed25519"
}

// KeyID is the kid of the JWK that the key was stored as, else the key's
// thumbprint: base64url of its SHA-256 (RFC 7638).
func (p *Private) KeyID() string { return p.kid }

// Public is the public half as a JWK in JSON, for signatures (RFC 7517 §4).
// An empty kid: KeyID.
func (p *Private) Public(kid string) ([]byte, error) {
	if kid == "" {
		kid = p.kid
	}
	b, err := jose.JSONWebKey{Key: p.key.Public(), KeyID: kid, Use: "sig", Algorithm: p.alg}.MarshalJSON()
	if err != nil {
		return nil, errUnsupported
	}
	return b, nil
}

// PEM is the private key in PKCS #8 (RFC 5958, RFC 7468 §10).
func (p *Private) PEM() (secret.Secret, error) {
	der, err := x509.MarshalPKCS8PrivateKey(p.key.Signer)
	if err != nil {
		return secret.Secret{}, errUnsupported
	}
	defer clear(der)
	// encoding/pem writes through a buffer that nobody can wipe.
	const begin, end, line = "-----BEGIN PRIVATE KEY-----\n", "-----END PRIVATE KEY-----\n", 48 // 64 characters
	out := make([]byte, 0, len(begin)+len(end)+base64.StdEncoding.EncodedLen(len(der))+len(der)/line+1)
	out = append(out, begin...)
	for part := range slices.Chunk(der, line) {
		out = append(base64.StdEncoding.AppendEncode(out, part), '\n')
	}
	return secret.New(append(out, end...)), nil
}

// Sign makes a JWS in compact form (RFC 7515 §7.1) of claims. header is
// written beside alg. An empty alg: Algorithm; one that does not fit the key is
// refused, and so is a header that would change how the JWS is verified.
func (p *Private) Sign(alg string, header map[string]any, claims []byte) ([]byte, error) {
	if alg == "" {
		alg = p.alg
	}
	if err := p.check(alg); err != nil {
		return nil, err
	}
	opts := &jose.SignerOptions{}
	for name, value := range header {
		switch name {
		case "alg", "b64", "crit", "jwk":
			return nil, fmt.Errorf("the header %q cannot be set", name)
		}
		opts.WithHeader(jose.HeaderKey(name), value)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(alg), Key: p.key.Signer}, opts)
	if err != nil {
		return nil, errSign
	}
	jws, err := signer.Sign(claims)
	if err != nil {
		return nil, errSign
	}
	compact, err := jws.CompactSerialize()
	if err != nil {
		return nil, errSign
	}
	return []byte(compact), nil
}

// errSign hides what the cause says: it may repeat parts of the key.
var errSign = errors.New("the key cannot sign: it is damaged; make another (broker keys new)")

// Signer is the key itself, for TLS.
func (p *Private) Signer() crypto.Signer { return p.key.Signer }

// Format prints that there is a secret, whatever the verb.
func (*Private) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, secret.Redacted) }
