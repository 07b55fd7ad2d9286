package leak

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/smallstep/pkcs7"

	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
)

// Rules of this file:
//   - what is kept stays readable; a mail is signed and encrypted when it
//     leaves, anew at each attempt, under the same Message-ID;
//   - a mail waits for no signature, and never leaves in the clear where it is
//     to be encrypted.

// A Sealing is how a mail has left.
type Sealing struct {
	Signed bool `json:"signed,omitempty"`
	// EncryptedTo is the recipient's key as [PublicKey.String] has it.
	EncryptedTo string `json:"encrypted_to,omitempty"`
	// Remarks are unsigned, signer_expired, recipient_expired: what was not as
	// it should be.
	Remarks []string `json:"remarks,omitempty"`
}

// Remark says it for people.
func Remark(code string) string {
	switch code {
	case "unsigned":
		return "it left without a signature: the private key of leak.sign could not be used"
	case "signer_expired":
		return "it was signed with a certificate that has expired: renew it"
	case "recipient_expired":
		return "it was encrypted to a key that has expired: ask for the new one"
	}
	return code
}

// seal gives m as it leaves. The error says that it cannot be encrypted.
func (p *protection) seal(m *Message, now time.Time) ([]byte, Sealing, error) {
	var s Sealing
	to := p.Recipients[strings.ToLower(m.Recipient)]
	if p.Signer == nil && to == nil {
		return m.Data, s, nil
	}
	header, part, err := split(m.Data)
	if err != nil { // never: it was composed here
		return nil, s, err
	}
	if p.Signer != nil {
		if signed, err := sign(part, p.Signer, p.key); err == nil {
			part, s.Signed = signed, true
		} else {
			s.Remarks = append(s.Remarks, "unsigned")
		}
		if s.Signed && p.Signer.expired(now) {
			s.Remarks = append(s.Remarks, "signer_expired")
		}
	}
	if to != nil {
		if part, err = to.encrypt(part, now); err != nil {
			return nil, s, err
		}
		header = withSubject(header, bareSubject(m.Subject))
		s.EncryptedTo = to.String()
		if to.expired(now) {
			s.Remarks = append(s.Remarks, "recipient_expired")
		}
	}
	return bytes.Join([][]byte{header, []byte("MIME-Version: 1.0\r\n"), part}, nil), s, nil
}

// bareSubject leaves the marks of a subject: who encrypts a mail wants its
// subject to say no more than what it belongs to.
func bareSubject(subject string) string {
	return subject[:strings.LastIndexByte(subject, ']')+1]
}

// split takes the header fields of the message from those of its content, which
// stay with the content (RFC 8551 §3.1).
func split(data []byte) (header, part []byte, err error) {
	top, body, ok := bytes.Cut(data, []byte("\r\n\r\n"))
	if !ok {
		return nil, nil, errors.New("the mail has no body")
	}
	to := &header
	for line := range bytes.Lines(append(bytes.Clone(top), "\r\n"...)) {
		if line[0] != ' ' && line[0] != '\t' {
			name, _, _ := bytes.Cut(bytes.ToLower(line), []byte(":"))
			switch to = &header; {
			case bytes.HasPrefix(name, []byte("content-")):
				to = &part
			case string(name) == "mime-version":
				to = new([]byte)
			}
		}
		*to = append(*to, line...)
	}
	return header, bytes.Join([][]byte{part, body}, []byte("\r\n")), nil
}

// withSubject replaces the field Subject.
func withSubject(header []byte, subject string) []byte {
	var out []byte
	dropped := false
	for line := range bytes.Lines(header) {
		if line[0] != ' ' && line[0] != '\t' {
			if dropped = bytes.HasPrefix(bytes.ToLower(line), []byte("subject:")); dropped {
				out = fmt.Appendf(out, "Subject: %s\r\n", subject)
			}
		}
		if !dropped {
			out = append(out, line...)
		}
	}
	return out
}

// sign wraps part, whose lines end in CRLF and are 7bit, into multipart/signed
// (RFC 8551 §3.5.3).
func sign(part []byte, signer *PublicKey, private secret.Secret) ([]byte, error) {
	key, err := keys.Parse(private)
	if err != nil {
		return nil, err
	}
	data, err := pkcs7.NewSignedData(part)
	if err != nil {
		return nil, err
	}
	data.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	if err := data.AddSignerChain(signer.chain[0], key.Signer(), signer.chain[1:], pkcs7.SignerInfoConfig{}); err != nil {
		return nil, err
	}
	data.Detach()
	signature, err := data.Finish()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	mark := boundary("signed")
	fmt.Fprintf(&b, "Content-Type: multipart/signed; protocol=\"application/pkcs7-signature\";\r\n micalg=sha-256; boundary=\"%s\"\r\n\r\n--%[1]s\r\n%s\r\n--%[1]s\r\n", mark, part)
	b.WriteString("Content-Type: application/pkcs7-signature; name=\"smime.p7s\"\r\nContent-Transfer-Encoding: base64\r\nContent-Disposition: attachment; filename=\"smime.p7s\"\r\n\r\n")
	lines(&b, signature)
	fmt.Fprintf(&b, "--%s--\r\n", mark)
	return b.Bytes(), nil
}

// encrypt wraps part into what k's owner alone can read.
func (k *PublicKey) encrypt(part []byte, now time.Time) ([]byte, error) {
	if k.pgp != nil {
		return k.encryptPGP(part, now)
	}
	if pkcs7.ContentEncryptionAlgorithm != pkcs7.EncryptionAlgorithmAES256CBC {
		return nil, errors.New("the cipher is not the one that OpenOutbox has set")
	}
	enveloped, err := pkcs7.Encrypt(part, k.chain)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer // RFC 8551 §3.3
	b.WriteString("Content-Type: application/pkcs7-mime; smime-type=enveloped-data;\r\n name=\"smime.p7m\"\r\nContent-Transfer-Encoding: base64\r\nContent-Disposition: attachment; filename=\"smime.p7m\"\r\n\r\n")
	lines(&b, enveloped)
	return b.Bytes(), nil
}

// encryptPGP makes multipart/encrypted (RFC 3156 §4).
func (k *PublicKey) encryptPGP(part []byte, now time.Time) ([]byte, error) {
	if _, ok := k.pgp.EncryptionKey(now); !ok {
		now = k.last // it has expired
	}
	var text bytes.Buffer
	armored, err := armor.Encode(&text, "PGP MESSAGE", nil)
	if err != nil {
		return nil, err
	}
	w, err := openpgp.Encrypt(armored, []*openpgp.Entity{k.pgp}, nil, nil, &packet.Config{DefaultCipher: packet.CipherAES256, Time: func() time.Time { return now }})
	if err != nil {
		return nil, err
	}
	_, err = w.Write(part)
	if err := errors.Join(err, w.Close(), armored.Close()); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	mark := boundary("encrypted")
	fmt.Fprintf(&b, "Content-Type: multipart/encrypted; protocol=\"application/pgp-encrypted\";\r\n boundary=\"%s\"\r\n\r\n--%[1]s\r\n"+
		"Content-Type: application/pgp-encrypted\r\nContent-Description: PGP/MIME version identification\r\n\r\nVersion: 1\r\n\r\n--%[1]s\r\n"+
		"Content-Type: application/octet-stream; name=\"encrypted.asc\"\r\nContent-Disposition: inline; filename=\"encrypted.asc\"\r\n\r\n", mark)
	b.Write(bytes.ReplaceAll(text.Bytes(), []byte("\n"), []byte("\r\n")))
	fmt.Fprintf(&b, "\r\n--%s--\r\n", mark)
	return b.Bytes(), nil
}

// boundary is no line of any mail.
func boundary(kind string) string {
	random := make([]byte, 12)
	_, _ = rand.Read(random) // it never fails
	return kind + "-" + hex.EncodeToString(random)
}

// lines writes base64 as mail has it (RFC 2045 §6.8).
func lines(w io.Writer, data []byte) {
	text := base64.StdEncoding.EncodeToString(data)
	for len(text) > 0 {
		n := min(76, len(text))
		fmt.Fprintf(w, "%s\r\n", text[:n])
		text = text[n:]
	}
}

// belongs says whether private is the key of signer's certificate.
func belongs(private secret.Secret, signer *PublicKey) error {
	key, err := keys.Parse(private)
	if err != nil {
		return err
	}
	public, ok := key.Signer().Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(signer.chain[0].PublicKey) {
		return errors.New("it is not the key of the certificate: store the two that belong together")
	}
	return nil
}
