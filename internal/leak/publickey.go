package leak

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
)

// A PublicKey is what a mail is signed or encrypted with: a certificate
// (S/MIME, RFC 8551) or an OpenPGP key (RFC 9580). It holds nothing secret, and
// does not change.
type PublicKey struct {
	chain []*x509.Certificate // its own first; nil: it is an OpenPGP key
	pgp   *openpgp.Entity
	last  time.Time // the last moment at which the key can be encrypted to
}

const smallestRSA = 2048 // bits

// ReadSigner reads the sender's certificate in PEM, and after it the
// certificates between it and its authority, which go along with each mail. An
// expired one is taken: see [PublicKey.Expires].
func ReadSigner(data []byte) (*PublicKey, error) {
	chain, err := keys.Certificates(secret.New(bytes.Clone(data)))
	if err != nil {
		return nil, err
	}
	c := chain[0]
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < smallestRSA {
			return nil, fmt.Errorf("its RSA key has %d bits, and %d or more are expected", k.N.BitLen(), smallestRSA)
		}
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return nil, errors.New("its key is on another curve: RSA, or ECDSA on P-256, is expected")
		}
	default:
		return nil, errors.New("its key is of another kind: RSA, or ECDSA on P-256, is expected")
	}
	if c.KeyUsage != 0 && c.KeyUsage&(x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment) == 0 {
		return nil, errors.New("its key usage does not allow signatures: digitalSignature is expected")
	}
	if err := forMail(c); err != nil {
		return nil, err
	}
	for n, above := range chain[1:] {
		if chain[n].CheckSignatureFrom(above) != nil {
			return nil, fmt.Errorf("certificate %d in it did not sign the one before: the own certificate is expected first, then the one that signed it, and so on", n+2)
		}
	}
	return &PublicKey{chain: chain}, nil
}

// ReadCertificate reads a recipient's certificate in PEM.
func ReadCertificate(data []byte) (*PublicKey, error) {
	chain, err := keys.Certificates(secret.New(bytes.Clone(data)))
	if err != nil {
		return nil, err
	}
	c := chain[0]
	k, ok := c.PublicKey.(*rsa.PublicKey)
	switch {
	case !ok:
		return nil, errors.New("its key is of another kind: RSA is expected, to encrypt to")
	case k.N.BitLen() < smallestRSA:
		return nil, fmt.Errorf("its RSA key has %d bits, and %d or more are expected", k.N.BitLen(), smallestRSA)
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageKeyEncipherment == 0:
		return nil, errors.New("its key usage does not allow encryption: keyEncipherment is expected")
	}
	if err := forMail(c); err != nil {
		return nil, err
	}
	return &PublicKey{chain: chain[:1]}, nil
}

// forMail: RFC 8550 §4.4.4.
func forMail(c *x509.Certificate) error {
	if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageEmailProtection) && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return errors.New("it is not for mail: the extended key usage emailProtection is expected")
	}
	return nil
}

// ReadOpenPGP reads a recipient's public key, armored or not.
func ReadOpenPGP(data []byte) (*PublicKey, error) {
	read := openpgp.ReadKeyRing
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN PGP")) {
		read = openpgp.ReadArmoredKeyRing
	}
	list, err := read(bytes.NewReader(data))
	switch {
	case err != nil || len(list) == 0:
		return nil, errors.New("it holds no OpenPGP key: an export of one public key is expected (gpg --export --armor ADDRESS)")
	case len(list) > 1:
		return nil, fmt.Errorf("it holds %d keys: one is expected", len(list))
	}
	e := list[0]
	if e.PrivateKey != nil || slices.ContainsFunc(e.Subkeys, func(k openpgp.Subkey) bool { return k.PrivateKey != nil }) {
		return nil, errors.New("it holds a private key, which is its owner's alone: the public key is expected")
	}
	if len(e.Revocations) > 0 {
		return nil, errors.New("its owner has revoked it: ask for the new one")
	}
	e.Subkeys = slices.DeleteFunc(e.Subkeys, func(k openpgp.Subkey) bool { return len(k.Revocations) > 0 })
	k := &PublicKey{pgp: e}
	for _, end := range ends(e) {
		if _, ok := e.EncryptionKey(end); ok {
			k.last = end
			return k, nil
		}
	}
	return nil, errors.New("nothing can be encrypted to it: a subkey for encryption, which is not revoked, is expected")
}

// never is after the last moment that a key can name.
func never() time.Time { return time.Unix(1<<34, 0) }

// ends are the moments at which e, or a part of it, may expire, latest first.
func ends(e *openpgp.Entity) []time.Time {
	list := []time.Time{never()}
	add := func(k *packet.PublicKey, s *packet.Signature) {
		if s == nil {
			return
		}
		for _, end := range []struct {
			from time.Time
			life *uint32 // in seconds
		}{{k.CreationTime, s.KeyLifetimeSecs}, {s.CreationTime, s.SigLifetimeSecs}} {
			if end.life != nil && *end.life != 0 {
				list = append(list, end.from.Add(time.Duration(*end.life)*time.Second-time.Second))
			}
		}
	}
	primary, _ := e.PrimarySelfSignature()
	add(e.PrimaryKey, primary)
	for _, k := range e.Subkeys {
		add(k.PublicKey, k.Sig)
	}
	slices.SortFunc(list, func(a, b time.Time) int { return b.Compare(a) })
	return list
}

// String is the kind and the fingerprint, written as gpg --fingerprint and
// openssl x509 -fingerprint -sha256 do.
func (k *PublicKey) String() string {
	if k.pgp == nil {
		sum := sha256.Sum256(k.chain[0].Raw)
		return "certificate " + strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":")
	}
	var groups []string
	for pair := range slices.Chunk(k.pgp.PrimaryKey.Fingerprint, 2) {
		groups = append(groups, fmt.Sprintf("%X", pair))
	}
	return "OpenPGP key " + strings.Join(groups, " ")
}

// Expires is when it ends, or ended; zero: never. It is used all the same: a
// report does not wait for a certificate.
func (k *PublicKey) Expires() time.Time {
	switch {
	case k.pgp == nil:
		return k.chain[0].NotAfter
	case k.last.Equal(never()):
		return time.Time{}
	}
	return k.last
}

// expired says whether it has at now.
func (k *PublicKey) expired(now time.Time) bool {
	end := k.Expires()
	return !end.IsZero() && now.After(end)
}

// Addresses are those that it names as its owner's.
func (k *PublicKey) Addresses() (list []string) {
	if k.pgp != nil {
		for _, i := range k.pgp.Identities {
			if i.UserId != nil && i.UserId.Email != "" {
				list = append(list, i.UserId.Email)
			}
		}
		slices.Sort(list)
		return list
	}
	list = slices.Clone(k.chain[0].EmailAddresses)
	for _, name := range k.chain[0].Subject.Names {
		if text, ok := name.Value.(string); ok && name.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}) { // emailAddress, RFC 2985 §5.2.1
			list = append(list, text)
		}
	}
	return list
}

// Of says whether it names address as its owner's.
func (k *PublicKey) Of(address string) bool {
	return slices.ContainsFunc(k.Addresses(), func(a string) bool { return strings.EqualFold(a, address) })
}
