package keys

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/internal/secret"
)

// Rules of this file:
//   - what a library says about a key is never passed on: it may repeat the key;
//   - each mistake that people make with keys has a sentence of its own, which
//     says what to do.

const (
	maxKey         = 16 << 10 // bytes of a stored key: RSA with 8192 bits has less than half
	maxCertificate = 64 << 10 // bytes of a stored certificate, with its chain
	maxKeyID       = 255      // bytes
)

var (
	errUnsupported = errors.New("the key is of an unknown kind: use RSA, P-256 or Ed25519")
	errEmpty       = errors.New("it is empty")
	errEncrypted   = errors.New("the key is encrypted: decrypt it with openssl pkey, and let the secrets manager protect it")
	errPublic      = errors.New("this is the public half: store the private key")
	errTrailing    = errors.New("something stands after the end: store one PEM block, or one JWK, alone")
	errSeveral     = errors.New("it holds several keys: store the one that the issuer knows")
	errDamaged     = errors.New("the PEM is damaged: store it again, with its line breaks")
	errDER         = errors.New("the key in the PEM is damaged: store it again")
	errJWK         = errors.New("the JWK is damaged or lacks a member of the private key: store it again")
	errNeither     = errors.New("it is neither PEM nor a JWK: PEM starts with -----BEGIN, a JWK with {")
)

// Parse reads a private key: PEM (PKCS #8, PKCS #1 or SEC 1), or a JWK as JSON
// (RFC 7517). Its errors say what is wrong with what is stored, and hold
// nothing of it; errors.Is finds secret.ErrWiped.
func Parse(s secret.Secret) (*Private, error) {
	var p *Private
	err := s.Use(func(b []byte) (err error) {
		b = bytes.TrimSpace(b)
		switch {
		case len(b) == 0:
			err = errEmpty
		case len(b) > maxKey:
			err = errors.New("it is too large for a key: store one private key alone")
		case b[0] == '{' || b[0] == '[':
			p, err = parseJWK(b)
		case bytes.Contains(b, []byte(begin)):
			p, err = parsePEM(b)
		default:
			err = errNeither
		}
		return err
	})
	return p, err
}

const begin = "-----BEGIN "

func parsePEM(b []byte) (*Private, error) {
	blocks, err := decode(b)
	defer func() {
		for _, k := range blocks {
			clear(k.Bytes[:cap(k.Bytes)])
		}
	}()
	if err != nil {
		return nil, err
	}
	if len(blocks) > 1 && blocks[0].Type == "EC PARAMETERS" { // openssl ecparam writes them before the key
		blocks = blocks[1:]
	}
	k := blocks[0]
	switch {
	case k.Type == "ENCRYPTED PRIVATE KEY", k.Headers["DEK-Info"] != "": // the latter of RFC 1421
		return nil, errEncrypted
	case strings.HasSuffix(k.Type, "PUBLIC KEY"):
		return nil, errPublic
	case k.Type == "CERTIFICATE" && len(blocks) == 1:
		return nil, errors.New("this is a certificate: store that as certificate, and its private key here")
	case k.Type == "OPENSSH PRIVATE KEY":
		return nil, errors.New("the key is in OpenSSH's format: convert it with ssh-keygen -p -m PKCS8")
	case len(blocks) > 1:
		return nil, errSeveral
	}
	return parseDER(k.Type, k.Bytes)
}

func parseDER(kind string, der []byte) (*Private, error) {
	// crypto/x509 does not mind what follows.
	if rest, err := asn1.Unmarshal(der, &asn1.RawValue{}); err != nil || len(rest) > 0 {
		return nil, errDER
	}
	var (
		key any
		err error
	)
	switch kind {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(der)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(der)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(der)
	default:
		return nil, errUnsupported
	}
	if err != nil {
		return nil, errDER
	}
	return private(key, "", "")
}

// decode gives all PEM blocks of b, at least one, which the caller wipes. Text
// before a block is a comment, as OpenSSL writes it.
func decode(b []byte) (blocks []*pem.Block, err error) {
	n := bytes.Count(b, []byte(begin))
	for range n {
		block, rest := pem.Decode(b)
		if block == nil {
			return blocks, errDamaged
		}
		blocks, b = append(blocks, block), rest
	}
	switch {
	case n == 0:
		return nil, errNeither
	case len(bytes.TrimSpace(b)) > 0:
		return blocks, errTrailing
	}
	return blocks, nil
}

func parseJWK(b []byte) (*Private, error) {
	var outer struct {
		Keys    json.RawMessage `json:"keys"`
		Modulus string          `json:"n"`
	}
	err := json.Unmarshal(b, &outer)
	clear(outer.Keys)
	var syntax *json.SyntaxError
	switch {
	case b[0] == '[', outer.Keys != nil:
		return nil, errSeveral
	case errors.As(err, &syntax) && json.Valid(b[:syntax.Offset-1]):
		return nil, errTrailing
	case err != nil:
		return nil, errJWK
	case base64.RawURLEncoding.DecodedLen(len(outer.Modulus)) > (jose.MaxRSAModulusBits+7)/8:
		return nil, fmt.Errorf("the RSA key has more than %d bits, which is too large for a JWK here: store it as PEM", jose.MaxRSAModulusBits)
	}
	var k jose.JSONWebKey
	switch err := k.UnmarshalJSON(b); {
	case errors.Is(err, jose.ErrUnsupportedKeyType):
		return nil, errUnsupported
	case err != nil:
		return nil, errJWK
	case k.IsPublic():
		return nil, errPublic
	case k.Use != "" && k.Use != "sig":
		return nil, errors.New("the JWK is not for signatures (use)")
	case len(k.KeyID) > maxKeyID || !utf8.ValidString(k.KeyID) || strings.ContainsFunc(k.KeyID, unicode.IsControl):
		return nil, errors.New("the kid of the JWK is longer than 255 bytes or holds a control character")
	}
	return private(k.Key, k.KeyID, k.Algorithm)
}
