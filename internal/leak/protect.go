package leak

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/smallstep/pkcs7"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
)

// A Protection says how mails are signed and encrypted when they leave. Zero:
// they are not.
type Protection struct {
	// Signer is the sender's certificate; its private key comes with
	// [Outbox.SetSigningKey]. Nil: mails are not signed.
	Signer *PublicKey
	// Recipients are keys to encrypt to, by address in lower case. To anybody
	// else a mail leaves in the clear.
	Recipients map[string]*PublicKey
}

// For says how m will leave, and under which subject.
func (p Protection) For(m Message) (s Sealing, subject string) {
	s.Signed, subject = p.Signer != nil, m.Subject
	if to := p.Recipients[strings.ToLower(m.Recipient)]; to != nil {
		s.EncryptedTo, subject = to.String(), bareSubject(m.Subject)
	}
	return s, subject
}

// protection is a Protection with the key that signs.
type protection struct {
	Protection
	key   secret.Secret // empty: it was not fetched yet
	until clock.Reading // until when mails wait for it
}

// keyWait is how long mails wait, after a start, for the key that signs them.
const keyWait = 10 * time.Second

// strongCipher sets what the library has as a variable, whose default is DES.
// encrypt refuses any other than this.
func strongCipher() {
	if pkcs7.ContentEncryptionAlgorithm != pkcs7.EncryptionAlgorithmAES256CBC {
		pkcs7.ContentEncryptionAlgorithm = pkcs7.EncryptionAlgorithmAES256CBC
	}
}

// SetProtection replaces how mails are signed and encrypted from now on. A key
// that belongs to the new certificate too is kept.
func (o *Outbox) SetProtection(p Protection) {
	next := protection{Protection: p}
	o.mu.Lock()
	switch old := o.protection; {
	case p.Signer == nil:
	case !old.key.Empty() && belongs(old.key, p.Signer) == nil:
		next.key = old.key
	case old.Signer != nil && old.Signer.String() == p.Signer.String():
		next.until = old.until
	default:
		next.until = o.clock.Now().Add(keyWait)
	}
	o.protection = next // an attempt under way keeps the old one; the collector wipes its key
	o.mu.Unlock()
	o.hurry(func(it *item) bool {
		return slices.ContainsFunc(it.Last, func(a Attempt) bool { return a.Cause == "encryption" })
	})
}

// SetSigningKey gives the private key of the signer's certificate. The outbox
// keeps its own copy, in protected memory. One that does not belong to the
// certificate is refused, and what was there before is kept.
func (o *Outbox) SetSigningKey(private secret.Secret) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.protection.Signer == nil {
		return errors.New("outbox: no certificate is configured to sign with")
	}
	if o.protection.key.Equal(private) {
		return nil
	}
	if err := belongs(private, o.protection.Signer); err != nil {
		return err
	}
	kept, err := private.Clone()
	if err != nil {
		return err
	}
	o.protection.key, o.protection.until = kept, clock.Reading{}
	o.signal()
	return nil
}

// Signs says whether mails leave signed now.
func (o *Outbox) Signs() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.protection.key.Empty()
}

// keyless is how long mails have to wait for the key that signs them. The
// caller holds mu.
func (o *Outbox) keyless(now clock.Reading) time.Duration {
	if p := &o.protection; p.Signer == nil || !p.key.Empty() || p.until.IsZero() {
		return 0
	}
	return max(0, o.protection.until.Until(now))
}
