package keys

import (
	"crypto"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // RFC 7515 §4.1.7 wants it: it names a certificate and proves nothing
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"credentialbroker/internal/secret"
)

// Certificate makes a self-signed certificate around the key, for issuers that
// want the key in one (RFC 8705 §2.2 among them), as PEM. commonName is its
// subject: 1 to 64 characters (RFC 5280 appendix A.1).
func (p *Private) Certificate(commonName string, from, until time.Time) ([]byte, error) {
	switch n := utf8.RuneCountInString(commonName); {
	case n == 0 || n > 64 || !utf8.ValidString(commonName) || strings.ContainsFunc(commonName, unicode.IsControl):
		return nil, errors.New("a certificate's name has 1 to 64 characters, none of them a control character")
	case !until.After(from):
		return nil, errors.New("a certificate has to end after it starts")
	}
	t := &x509.Certificate{ // without a serial number it gets a random one (RFC 5280 §4.1.2.2)
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             from,
		NotAfter:              until,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, // no authority
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, p.key.Public(), p.key.Signer)
	if err != nil {
		return nil, errSign
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// CertificateOf reads a certificate in PEM. Of a chain, whose order is that of
// TLS, it gives the first. Whether it is valid now is not looked at.
func CertificateOf(certificate secret.Secret) (*x509.Certificate, error) {
	chain, err := Certificates(certificate)
	if err != nil {
		return nil, err
	}
	return chain[0], nil
}

// Certificates is CertificateOf for the whole chain, which has one certificate
// at least.
func Certificates(certificate secret.Secret) (chain []*x509.Certificate, err error) {
	err = certificate.Use(func(b []byte) error {
		switch {
		case len(b) == 0:
			return errEmpty
		case len(b) > maxCertificate:
			return errors.New("it is too large for a certificate and its chain")
		}
		blocks, err := decode(b)
		defer func() {
			for _, k := range blocks { // a private key may stand where it does not belong; a certificate's bytes are kept
				if k.Type != "CERTIFICATE" {
					clear(k.Bytes[:cap(k.Bytes)])
				}
			}
		}()
		switch {
		case errors.Is(err, errNeither):
			return errors.New("it is no PEM: a certificate starts with -----BEGIN CERTIFICATE-----")
		case err != nil:
			return err
		}
		for _, k := range blocks {
			if strings.HasSuffix(k.Type, "PRIVATE KEY") {
				return errors.New("it holds a private key, which belongs into private_key: store the certificate alone")
			}
			if k.Type != "CERTIFICATE" {
				return errors.New("it holds something else than certificates: store the certificate, and its chain if there is one")
			}
			c, err := x509.ParseCertificate(k.Bytes)
			if err != nil {
				return errors.New("the certificate in the PEM is damaged: store it again")
			}
			chain = append(chain, c)
		}
		return nil
	})
	return chain, err
}

// Thumbprints are the names of c: base64url of its SHA-1 (x5t, RFC 7515
// §4.1.7) and of its SHA-256 (x5t#S256, §4.1.8 and RFC 8705 §3.1).
func Thumbprints(c *x509.Certificate) (x5t, x5tS256 string) {
	short := sha1.Sum(c.Raw) //nolint:gosec // see the import
	long := sha256.Sum256(c.Raw)
	return base64.RawURLEncoding.EncodeToString(short[:]), base64.RawURLEncoding.EncodeToString(long[:])
}

// Pair joins a private key with the certificate around it, and the chain
// behind that, for TLS. Leaf is set. Its errors name the field they are about.
func Pair(private, certificate secret.Secret) (tls.Certificate, error) {
	key, err := Parse(private)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("private_key: %w", err)
	}
	chain, err := Certificates(certificate)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	public, ok := key.Signer().Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(chain[0].PublicKey) {
		return tls.Certificate{}, errors.New("certificate: it is not for private_key: store the two that belong together, the client's own certificate first")
	}
	pair := tls.Certificate{PrivateKey: key.Signer(), Leaf: chain[0]}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return pair, nil
}
