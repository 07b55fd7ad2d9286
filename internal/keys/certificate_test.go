package keys_test

import (
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
)

func certificate(t testing.TB, p *keys.Private, name string) string {
	t.Helper()
	from := time.Now().Add(-time.Minute)
	b, err := p.Certificate(name, from, from.Add(24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestCertificate(t *testing.T) {
	from := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	until := from.AddDate(2, 0, 0)
	serials := map[string]bool{}
	for _, kind := range []string{"rsa-2048", "p-256", "ed25519"} {
		p := generate(t, kind)
		text, err := p.Certificate("vdab é", from, until)
		if err != nil {
			t.Fatal(err)
		}
		c, err := keys.CertificateOf(secret.FromString(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if c.Subject.CommonName != "vdab é" || c.Issuer.CommonName != "vdab é" || !c.NotBefore.Equal(from) || !c.NotAfter.Equal(until) || c.IsCA ||
			c.Version != 3 || c.KeyUsage != x509.KeyUsageDigitalSignature || len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || c.SerialNumber.Sign() <= 0 || c.SerialNumber.BitLen() < 64 {
			t.Errorf("%s: %+v", kind, c)
		}
		serials[c.SerialNumber.String()] = true
		short, long := sha1.Sum(c.Raw), sha256.Sum256(c.Raw)
		x5t, x5tS256 := keys.Thumbprints(c)
		if x5t != base64.RawURLEncoding.EncodeToString(short[:]) || x5tS256 != base64.RawURLEncoding.EncodeToString(long[:]) {
			t.Errorf("%s: thumbprints %s, %s", kind, x5t, x5tS256)
		}
	}
	if len(serials) != 3 {
		t.Error("a serial number came twice")
	}
	p := generate(t, "ed25519")
	for _, name := range []string{"", strings.Repeat("n", 65), "a\nb", "\xff"} {
		if _, err := p.Certificate(name, from, until); err == nil {
			t.Errorf("the name %q is taken", name)
		}
	}
	if _, err := p.Certificate("x", from, from); err == nil {
		t.Error("a certificate that ends when it starts")
	}
}

// A Pair serves as a client's in TLS, with its chain.
func TestPair(t *testing.T) {
	soon := time.Now().Add(10 * time.Second)
	for _, kind := range []string{"rsa-2048", "p-256", "ed25519"} {
		p := generate(t, kind)
		own := certificate(t, p, "client")
		next := certificate(t, generate(t, "p-256"), "above")
		pair, err := keys.Pair(secret.FromString(reveal(t, p)), secret.FromString(own+next))
		if err != nil {
			t.Fatal(err)
		}
		if len(pair.Certificate) != 2 || pair.Leaf == nil || pair.Leaf.Subject.CommonName != "client" {
			t.Errorf("%s: %d certificates, leaf %v", kind, len(pair.Certificate), pair.Leaf)
		}
		server, err := keys.Pair(secret.FromString(reveal(t, p)), secret.FromString(own))
		if err != nil {
			t.Fatal(err)
		}
		near, far := net.Pipe()
		_, _ = near.SetDeadline(soon), far.SetDeadline(soon) // in case that both write
		done := make(chan error, 1)
		go func() {
			s := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAnyClientCert})
			err := s.HandshakeContext(t.Context())
			if peers := s.ConnectionState().PeerCertificates; err == nil && (len(peers) != 2 || !peers[0].Equal(pair.Leaf)) {
				t.Errorf("%s: the server saw %d certificates", kind, len(peers))
			}
			done <- err
		}()
		c := tls.Client(near, &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, SessionTicketsDisabled: true})
		go func() { _, _ = c.Read(make([]byte, 1)) }() // what the server says last
		if err := <-done; err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		_ = near.Close()
		_ = far.Close()
	}
}

func TestPairMistakes(t *testing.T) {
	p := generate(t, "p-256")
	key, own := reveal(t, p), certificate(t, p, "client")
	other := certificate(t, generate(t, "p-256"), "other")
	rsa := certificate(t, generate(t, "rsa-2048"), "rsa")
	block, _ := pem.Decode([]byte(own))
	public, err := p.Public("")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, key, certificate, want string }{
		{"no key", "", own, "private_key: it is empty"},
		{"no certificate", key, "", "certificate: it is empty"},
		{"swapped", own, key, "private_key: this is a certificate"},
		{"another's", key, other, "certificate: it is not for private_key"},
		{"another kind's", key, rsa, "certificate: it is not for private_key"},
		{"own not first", key, other + own, "own certificate first"},
		{"key among certificates", key, own + key, "certificate: it holds a private key"},
		{"public key", key, pemOf(t, "PUBLIC KEY", block.Bytes, nil), "certificate: it holds something else"},
		{"JWK", key, string(public), "certificate: it is no PEM"},
		{"text after", key, own + "x", "certificate: something stands after the end"},
		{"cut", key, own[:100], "certificate: the PEM is damaged"},
		{"no DER", key, pemOf(t, "CERTIFICATE", []byte("nonsense"), nil), "certificate: the certificate in the PEM is damaged"},
		{"DER with more", key, pemOf(t, "CERTIFICATE", append(block.Bytes, 0), nil), "certificate: the certificate in the PEM is damaged"},
		{"too large", key, strings.Repeat(own, 200), "certificate: it is too large"},
	} {
		_, err := keys.Pair(secret.FromString(c.key), secret.FromString(c.certificate))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
			continue
		}
		showsNothing(t, c.name, c.key, err)
	}
	if _, err := keys.Pair(secret.FromString(key), secret.FromString(own)); err != nil {
		t.Error(err)
	}
}

func FuzzCertificateOf(f *testing.F) {
	p := generate(f, "ed25519")
	own := certificate(f, p, "client")
	f.Add(own)
	f.Add(own + certificate(f, generate(f, "p-256"), "above"))
	f.Add(own + reveal(f, p))
	t := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, p.Signer().Public(), p.Signer())
	f.Add(pemOf(f, "CERTIFICATE", der, err))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := keys.CertificateOf(secret.FromString(text))
		if (c == nil) == (err == nil) {
			t.Fatalf("%v, %v", c, err)
		}
		if err != nil && len(err.Error()) > 300 {
			t.Errorf("the error has %d bytes", len(err.Error()))
		}
	})
}
