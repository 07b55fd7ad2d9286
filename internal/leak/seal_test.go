package leak

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"mime"
	"mime/multipart"
	"net/mail"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/smallstep/pkcs7"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
)

// A holder has a certificate and its private key.
type holder struct {
	key     crypto.Signer
	cert    *x509.Certificate
	pem     []byte
	private secret.Secret
}

// newHolder makes a certificate, which change may change, from that authority;
// nil: its own.
func newHolder(t testing.TB, kind string, by *holder, change func(*x509.Certificate)) *holder {
	t.Helper()
	made, err := keys.Generate(kind)
	if err != nil {
		t.Fatal(err)
	}
	h := &holder{key: made.Signer()}
	if h.private, err = made.PEM(); err != nil {
		t.Fatal(err)
	}
	h.certify(t, h.key.Public(), by, change)
	return h
}

func (h *holder) certify(t testing.TB, public crypto.PublicKey, by *holder, change func(*x509.Certificate)) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "holder"}, NotBefore: at.AddDate(-1, 0, 0), NotAfter: at.AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}, EmailAddresses: []string{"security@issuer.example"}}
	if change != nil {
		change(template)
	}
	parent, signer := template, h.key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	if h.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	h.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func authority(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	c.Subject.CommonName = "authority " + c.SerialNumber.String()
}

// newPGP makes an OpenPGP key, and its public half in armor.
func newPGP(t testing.TB, lifetime time.Duration, change func(*openpgp.Entity)) (*openpgp.Entity, []byte) {
	t.Helper()
	e, err := openpgp.NewEntity("Security", "", "security@issuer.example", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, KeyLifetimeSecs: uint32(lifetime / time.Second), // #nosec G115 -- of a test
		Time: func() time.Time { return at.AddDate(-1, 0, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(e)
	}
	return e, armored(t, openpgp.PublicKeyType, e.Serialize)
}

func armored(t testing.TB, kind string, write func(io.Writer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := armor.Encode(&b, kind, nil)
	if err = errors.Join(err, write(w), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func must(t testing.TB, read func([]byte) (*PublicKey, error), data []byte) *PublicKey {
	t.Helper()
	k, err := read(data)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// An opener takes a sealed mail apart.
type opener struct {
	t      *testing.T
	signer *x509.Certificate // in a pool of its own
	smime  *holder
	pgp    *openpgp.Entity
	layers []string
}

// open gives the content that is in part, layer by layer.
func (o *opener) open(part []byte) []byte {
	o.t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(part))
	if err != nil {
		o.t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		o.t.Fatal(err)
	}
	o.layers = append(o.layers, kind)
	switch kind {
	case "application/pkcs7-mime":
		der, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, m.Body))
		p7, err2 := pkcs7.Parse(der)
		if err = errors.Join(err, err2); err != nil || params["smime-type"] != "enveloped-data" {
			o.t.Fatal(err, params)
		}
		if aes256CBC, _ := hex.DecodeString("060960864801650304012a"); !bytes.Contains(der, aes256CBC) {
			o.t.Error("the cipher is not AES-256-CBC")
		}
		inner, err := p7.Decrypt(o.smime.cert, o.smime.key)
		if err != nil {
			o.t.Fatal(err)
		}
		return o.open(inner)
	case "multipart/encrypted":
		return o.open(o.openPGP(m, params))
	case "multipart/signed":
		return o.open(o.verify(part, params))
	}
	return part
}

func (o *opener) openPGP(m *mail.Message, params map[string]string) []byte {
	o.t.Helper()
	r := multipart.NewReader(m.Body, params["boundary"])
	control, err := r.NextRawPart()
	if err != nil || params["protocol"] != "application/pgp-encrypted" || control.Header.Get("Content-Type") != params["protocol"] {
		o.t.Fatal(err, params)
	}
	version, _ := io.ReadAll(control)
	data, err := r.NextRawPart()
	if err != nil || strings.TrimSpace(string(version)) != "Version: 1" || !strings.HasPrefix(data.Header.Get("Content-Type"), "application/octet-stream") {
		o.t.Fatal(err)
	}
	block, err := armor.Decode(data)
	if err != nil {
		o.t.Fatal(err)
	}
	message, err := openpgp.ReadMessage(block.Body, openpgp.EntityList{o.pgp}, nil, &packet.Config{Time: func() time.Time { return at }})
	if err != nil {
		o.t.Fatal(err)
	}
	inner, err := io.ReadAll(message.UnverifiedBody)
	if err != nil {
		o.t.Fatal(err)
	}
	return inner
}

// verify takes the first part byte for byte, as it was signed.
func (o *opener) verify(part []byte, params map[string]string) []byte {
	o.t.Helper()
	mark := "--" + params["boundary"] + "\r\n"
	pieces := strings.Split(string(part), mark)
	if len(pieces) != 3 || params["protocol"] != "application/pkcs7-signature" || params["micalg"] != "sha-256" {
		o.t.Fatalf("%d pieces, %v", len(pieces), params)
	}
	inner := []byte(strings.TrimSuffix(pieces[1], "\r\n"))
	_, text, _ := strings.Cut(pieces[2], "\r\n\r\n")
	der, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(text[:strings.Index(text, "--")], "\r\n", ""))
	p7, err2 := pkcs7.Parse(der)
	if err = errors.Join(err, err2); err != nil {
		o.t.Fatal(err)
	}
	p7.Content = inner
	pool := x509.NewCertPool()
	pool.AddCert(o.signer)
	if err := p7.VerifyWithChainAtTime(pool, at); err != nil {
		o.t.Error(err)
	}
	if sha256 := pkcs7.OIDDigestAlgorithmSHA256; !p7.Signers[0].DigestAlgorithm.Algorithm.Equal(sha256) {
		o.t.Error("the digest is not SHA-256")
	}
	return inner
}

func TestSealed(t *testing.T) {
	strongCipher()
	root := newHolder(t, "p-256", nil, authority)
	between := newHolder(t, "p-256", root, authority)
	smime := newHolder(t, "rsa-2048", nil, nil)
	pgp, public := newPGP(t, 0, nil)
	messages, err := Compose(stage(Confirmed, "by-request", "drill"), sender(), []Language{Dutch, English})
	if err != nil {
		t.Fatal(err)
	}
	m := messages[0]
	m.Recipient = "Security@issuer.example"
	header, want, err := split(m.Data)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"", "p-256", "rsa-2048"} {
		for name, to := range map[string]*PublicKey{"": nil, "application/pkcs7-mime": must(t, ReadCertificate, smime.pem), "multipart/encrypted": must(t, ReadOpenPGP, public)} {
			p := protection{Protection: Protection{Recipients: map[string]*PublicKey{}}}
			var layers []string
			if to != nil {
				p.Recipients["security@issuer.example"] = to
				layers = append(layers, name)
			}
			if kind != "" {
				own := newHolder(t, kind, between, nil)
				p.Signer, p.key = must(t, ReadSigner, append(own.pem, between.pem...)), own.private
				layers = append(layers, "multipart/signed")
			}
			data, s, err := p.seal(&m, at)
			if err != nil {
				t.Fatal(err)
			}
			o := opener{t: t, signer: root.cert, smime: smime, pgp: pgp}
			if got := o.open(data); len(layers) == 0 && !bytes.Equal(got, m.Data) || len(layers) > 0 && !bytes.Equal(got, want) {
				t.Errorf("%s, %s: another content:\n%s", kind, name, got)
			}
			if layers = append(layers, "multipart/mixed"); !slices.Equal(o.layers, layers) {
				t.Errorf("%s, %s: layers %s", kind, name, o.layers)
			}
			sealing, subject := p.For(m)
			if s.Signed != (kind != "") || (s.EncryptedTo != "") != (to != nil) || s.Remarks != nil || sealing.Signed != s.Signed || sealing.EncryptedTo != s.EncryptedTo {
				t.Errorf("%s, %s: %+v, %+v", kind, name, s, sealing)
			}
			sealedHeader(t, data, string(header), subject, m.Subject, to != nil)
		}
	}
}

// sealedHeader is the one of before; an encrypted mail's says no more than what
// it belongs to.
func sealedHeader(t *testing.T, data []byte, before, subject, full string, encrypted bool) {
	t.Helper()
	if encrypted {
		if subject != "[OEFENING / DRILL] [incident 2026-0007]" {
			t.Errorf("subject %q", subject)
		}
		for _, word := range []string{"vdab", "kCVy8fpVSU50zFzi8TIC", "Beveiligingsmelding", "application/json"} {
			if bytes.Contains(data, []byte(word)) {
				t.Errorf("%q is in the clear", word)
			}
		}
	} else if subject != full {
		t.Errorf("subject %q", subject)
	}
	old, err := mail.ReadMessage(strings.NewReader(before + "\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := mail.ReadMessage(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	old.Header["Subject"] = []string{subject}
	old.Header["Mime-Version"] = []string{"1.0"}
	for name := range m.Header {
		if !strings.HasPrefix(name, "Content-") && !slices.Equal(m.Header[name], old.Header[name]) {
			t.Errorf("%s: %q, want %q", name, m.Header[name], old.Header[name])
		}
	}
	for _, name := range []string{"Message-Id", "Auto-Submitted", "Reply-To", "Date", "From", "To"} {
		if len(m.Header[name]) != 1 {
			t.Errorf("%s: %q", name, m.Header[name])
		}
	}
	for line := range bytes.Lines(data) {
		if len(line) > 100 || !bytes.HasSuffix(line, []byte("\r\n")) {
			t.Errorf("the line %q", line)
		}
	}
}

// The library's own choice is DES.
func TestWeakCipherIsRefused(t *testing.T) {
	defer strongCipher()
	k := must(t, ReadCertificate, newHolder(t, "rsa-2048", nil, nil).pem)
	pkcs7.ContentEncryptionAlgorithm = pkcs7.EncryptionAlgorithmDESCBC
	if _, err := k.encrypt([]byte("x"), at); err == nil {
		t.Error("it is encrypted with DES")
	}
}

// What has expired serves on, and that is said.
func TestSealedWithWhatHasExpired(t *testing.T) {
	strongCipher()
	later := at.AddDate(2, 0, 0)
	own, smime := newHolder(t, "p-256", nil, nil), newHolder(t, "rsa-2048", nil, nil)
	pgp, public := newPGP(t, 730*24*time.Hour, nil)
	_, lasting := newPGP(t, 0, nil)
	m := Message{Subject: "[incident 2026-0007] x", Recipient: "security@issuer.example", Data: []byte("Subject: x\r\nContent-Type: text/plain\r\n\r\nx\r\n")}
	if end := must(t, ReadOpenPGP, lasting).Expires(); !end.IsZero() {
		t.Errorf("a key that does not expire ends on %s", end)
	}
	for name, to := range map[string]*PublicKey{"S/MIME": must(t, ReadCertificate, smime.pem), "OpenPGP": must(t, ReadOpenPGP, public)} {
		if end := to.Expires(); end.Sub(at.AddDate(1, 0, 0)).Abs() > 48*time.Hour {
			t.Errorf("%s ends on %s", name, end)
		}
		p := protection{Protection{must(t, ReadSigner, own.pem), map[string]*PublicKey{"security@issuer.example": to}}, own.private, clock.Reading{}}
		for when, want := range map[time.Time][]string{at: nil, later: {"signer_expired", "recipient_expired"}} {
			data, s, err := p.seal(&m, when)
			if err != nil || !slices.Equal(s.Remarks, want) || !s.Signed {
				t.Fatalf("%s: %+v, %v", name, s, err)
			}
			o := opener{t: t, signer: own.cert, smime: smime, pgp: pgp}
			if got := o.open(data); string(got) != "Content-Type: text/plain\r\n\r\nx\r\n" {
				t.Errorf("%s: %q", name, got)
			}
		}
	}
	for _, code := range []string{"unsigned", "signer_expired", "recipient_expired"} {
		if Remark(code) == code {
			t.Errorf("%s has no words", code)
		}
	}
}

func TestPublicKeyMistakes(t *testing.T) {
	root, good := newHolder(t, "p-256", nil, authority), newHolder(t, "rsa-2048", nil, nil)
	p256, ed := newHolder(t, "p-256", nil, nil), newHolder(t, "ed25519", nil, nil)
	with := func(h *holder, change func(*x509.Certificate)) []byte {
		other := *h
		other.certify(t, h.key.Public(), nil, change)
		return other.pem
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	short := *root
	short.certify(t, &weak.PublicKey, nil, nil)
	curve, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384 := *root
	p384.certify(t, &curve.PublicKey, nil, nil)
	entity, public := newPGP(t, 0, nil)
	_, signsOnly := newPGP(t, 0, func(e *openpgp.Entity) { e.Subkeys = nil })
	_, revoked := newPGP(t, 0, func(e *openpgp.Entity) {
		if err := e.RevokeKey(packet.KeySuperseded, "", nil); err != nil {
			t.Fatal(err)
		}
	})
	_, revokedSubkey := newPGP(t, 0, func(e *openpgp.Entity) {
		if err := e.RevokeSubkey(&e.Subkeys[0], packet.KeySuperseded, "", nil); err != nil {
			t.Fatal(err)
		}
	})
	private := armored(t, openpgp.PrivateKeyType, func(w io.Writer) error { return entity.SerializePrivate(w, nil) })
	var two bytes.Buffer
	if err := errors.Join(entity.Serialize(&two), entity.Serialize(&two)); err != nil {
		t.Fatal(err)
	}
	var key []byte
	_ = good.private.Use(func(b []byte) error { key = bytes.Clone(b); return nil })
	for _, c := range []struct {
		name string
		read func([]byte) (*PublicKey, error)
		data []byte
		want string
	}{
		{"no PEM", ReadSigner, []byte("hello"), "a certificate starts with -----BEGIN CERTIFICATE-----"},
		{"a private key", ReadCertificate, append(bytes.Clone(good.pem), key...), "it holds a private key"},
		{"Ed25519", ReadSigner, ed.pem, "RSA, or ECDSA on P-256, is expected"},
		{"P-384", ReadSigner, p384.pem, "RSA, or ECDSA on P-256, is expected"},
		{"1024 bits", ReadSigner, short.pem, "1024 bits, and 2048 or more are expected"},
		{"cannot sign", ReadSigner, with(p256, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), "digitalSignature is expected"},
		{"a server's", ReadSigner, with(p256, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "emailProtection is expected"},
		{"no chain", ReadSigner, append(bytes.Clone(p256.pem), root.pem...), "certificate 2 in it did not sign the one before"},
		{"ECDSA", ReadCertificate, p256.pem, "RSA is expected"},
		{"1024 bits", ReadCertificate, short.pem, "1024 bits, and 2048 or more are expected"},
		{"cannot encrypt", ReadCertificate, with(good, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), "keyEncipherment is expected"},
		{"a server's", ReadCertificate, with(good, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "emailProtection is expected"},
		{"nothing", ReadOpenPGP, nil, "it holds no OpenPGP key"},
		{"a certificate", ReadOpenPGP, good.pem, "it holds no OpenPGP key"},
		{"private", ReadOpenPGP, private, "it holds a private key"},
		{"two", ReadOpenPGP, two.Bytes(), "it holds 2 keys"},
		{"cannot encrypt", ReadOpenPGP, signsOnly, "a subkey for encryption"},
		{"revoked", ReadOpenPGP, revoked, "its owner has revoked it"},
		{"revoked subkey", ReadOpenPGP, revokedSubkey, "a subkey for encryption"},
	} {
		if _, err := c.read(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	var binary bytes.Buffer
	if err := entity.Serialize(&binary); err != nil {
		t.Fatal(err)
	}
	for _, k := range []*PublicKey{must(t, ReadOpenPGP, binary.Bytes()), must(t, ReadOpenPGP, public), must(t, ReadCertificate, good.pem), must(t, ReadSigner, with(p256, func(c *x509.Certificate) {
		c.EmailAddresses, c.KeyUsage, c.ExtKeyUsage = nil, 0, nil
		c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: []int{1, 2, 840, 113549, 1, 9, 1}, Value: "security@issuer.example"}}
	}))} {
		if !k.Of("Security@issuer.example") || k.Of("other@issuer.example") {
			t.Errorf("%s is of %q", k, k.Addresses())
		}
	}
}

// A mail waits a moment for the key that signs it, and no longer.
func TestSigningKey(t *testing.T) {
	own, other := newHolder(t, "p-256", nil, nil), newHolder(t, "p-256", nil, nil)
	for name, c := range map[string]struct {
		after  time.Duration // until the key comes
		signed bool
	}{"in time": {5 * time.Second, true}, "too late": {15 * time.Second, false}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &server{tls: "none"}
				w := newWorld(t, s)
				if err := w.o.SetSigningKey(own.private); err == nil {
					t.Error("a key without a certificate")
				}
				w.o.SetProtection(Protection{Signer: must(t, ReadSigner, own.pem)})
				w.enqueue(1)
				w.after(c.after - time.Second)
				if d := w.only(); (d.State == Sent) == c.signed || w.o.Signs() {
					t.Errorf("%+v", d)
				}
				if err := w.o.SetSigningKey(other.private); err == nil || !strings.Contains(err.Error(), "not the key of the certificate") {
					t.Errorf("another's key: %v", err)
				}
				if err := w.o.SetSigningKey(own.private); err != nil || !w.o.Signs() {
					t.Error(err)
				}
				w.after(time.Second)
				w.restart()
				d := w.only()
				if d.State != Sent || d.Signed != c.signed || slices.Equal(d.Remarks, []string{"unsigned"}) == c.signed || d.Attempts != 1 {
					t.Errorf("%+v", d)
				}
				if bytes.Contains(s.mails[0], []byte("multipart/signed")) != c.signed {
					t.Errorf("%s", s.mails[0])
				}
			})
		})
	}
}

// A certificate that is renewed keeps the key that is its own, and drops
// another.
func TestRenewedCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &server{tls: "none"})
		own, other := newHolder(t, "p-256", nil, nil), newHolder(t, "p-256", nil, nil)
		w.o.SetProtection(Protection{Signer: must(t, ReadSigner, own.pem)})
		if err := w.o.SetSigningKey(own.private); err != nil {
			t.Fatal(err)
		}
		own.certify(t, own.key.Public(), nil, nil)
		w.o.SetProtection(Protection{Signer: must(t, ReadSigner, own.pem)})
		if !w.o.Signs() {
			t.Error("the key was dropped with the certificate of before")
		}
		w.o.SetProtection(Protection{Signer: must(t, ReadSigner, other.pem)})
		if w.o.Signs() {
			t.Error("a certificate with another's key")
		}
		// To load the configuration again makes no mail wait longer.
		for range 3 {
			w.after(4 * time.Second)
			w.o.SetProtection(Protection{Signer: must(t, ReadSigner, other.pem)})
		}
		w.enqueue(1)
		w.after(time.Second)
		if d := w.only(); d.State != Sent || !slices.Equal(d.Remarks, []string{"unsigned"}) {
			t.Errorf("%+v", d)
		}
		w.o.SetProtection(Protection{})
		w.enqueue(2)
		w.after(time.Second)
		if d := w.o.Deliveries("")[1]; d.State != Sent || d.Remarks != nil {
			t.Errorf("%+v", d)
		}
	})
}

// What cannot be encrypted does not leave in the clear: it waits, is an alarm,
// and goes as soon as it can.
func TestNothingLeavesInTheClear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{tls: "none"}
		w := newWorld(t, s)
		broken, _ := newPGP(t, 0, func(e *openpgp.Entity) { e.Subkeys = nil })
		w.o.SetProtection(Protection{Recipients: map[string]*PublicKey{"person0@corp.example": {pgp: broken, last: never()}}})
		messages := w.enqueue(2)
		w.after(11 * time.Minute)
		late := w.o.Undelivered(10 * time.Minute)
		if len(late) != 1 || late[0].Recipient != "person0@corp.example" || late[0].State != Queued || late[0].Attempts < 5 || len(s.mails) != 1 {
			t.Fatalf("%d mails, %+v", len(s.mails), late)
		}
		if a := late[0].Last[0]; a.Cause != "encryption" || a.Result != Temporary || !strings.Contains(a.String(), "does not leave in the clear") {
			t.Errorf("%+v", a)
		}
		pgp, public := newPGP(t, 0, nil)
		key := must(t, ReadOpenPGP, public)
		w.o.SetProtection(Protection{Recipients: map[string]*PublicKey{"person0@corp.example": key}})
		w.after(time.Second)
		d := w.o.Deliveries("")[0]
		if d.State != Sent || d.EncryptedTo != key.String() || len(s.mails) != 2 {
			t.Fatalf("%d mails, %+v", len(s.mails), d)
		}
		o := opener{t: t, pgp: pgp}
		if _, want, _ := split(messages[0].Data); !bytes.Equal(o.open(s.mails[1]), want) {
			t.Error("another content")
		}
		if !bytes.Contains(s.mails[1], []byte(messages[0].ID)) {
			t.Error("another Message-ID")
		}
	})
}

func FuzzPublicKey(f *testing.F) {
	h := newHolder(f, "rsa-2048", nil, nil)
	_, public := newPGP(f, time.Hour, nil)
	f.Add(h.pem)
	f.Add(public)
	m := Message{Subject: "[incident 2026-0007] x", Recipient: "a@b.example", Data: []byte("Subject: x\r\nContent-Type: text/plain\r\n\r\nhidden\r\n")}
	strongCipher()
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, read := range []func([]byte) (*PublicKey, error){ReadCertificate, ReadOpenPGP} {
			k, err := read(data)
			if (k == nil) == (err == nil) {
				t.Fatal("neither key nor error, or both")
			}
			if err != nil {
				continue
			}
			_, _ = k.Expires(), k.Of("a@b.example")
			p := protection{Protection: Protection{Recipients: map[string]*PublicKey{"a@b.example": k}}}
			if sealed, _, err := p.seal(&m, at); err == nil && bytes.Contains(sealed, []byte("hidden")) {
				t.Error("in the clear")
			}
		}
	})
}
