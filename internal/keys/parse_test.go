package keys_test

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
)

// mersenne is the RSA key whose primes are 2^a-1 and 2^b-1.
func mersenne(a, b uint) *rsa.PrivateKey {
	one, e := big.NewInt(1), big.NewInt(65537)
	p, q := new(big.Int).Sub(new(big.Int).Lsh(one, a), one), new(big.Int).Sub(new(big.Int).Lsh(one, b), one)
	phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	return &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537}, D: new(big.Int).ModInverse(e, phi), Primes: []*big.Int{p, q}}
}

func TestRefused(t *testing.T) {
	ed := reveal(t, parse(t, rfc8037Key))
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&small.PublicKey)
	public := pemOf(t, "PUBLIC KEY", spki, err)
	publicJWK, err := parse(t, rfc8037Key).Public("")
	if err != nil {
		t.Fatal(err)
	}
	smallJWK, err := jose.JSONWebKey{Key: small}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	largeJWK, err := jose.JSONWebKey{Key: mersenne(2203, 2281)}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(ed))
	longer := pemOf(t, "PRIVATE KEY", append(block.Bytes, 0), nil)
	legacy := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, Bytes: []byte("x")}))
	replace := func(s, from, to string) string {
		out := strings.Replace(s, from, to, 1)
		if out == s {
			t.Fatalf("no %q to replace", from)
		}
		return out
	}
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "it is empty"},
		{"blank", " \n", "it is empty"},
		{"something else", "correct horse battery", "neither PEM nor a JWK"},
		{"DER", string(block.Bytes), "neither PEM nor a JWK"},
		{"base64 without PEM", strings.Split(ed, "\n")[1], "neither PEM nor a JWK"},
		{"too large", "-----BEGIN PRIVATE KEY-----" + strings.Repeat("A", 17<<10), "too large"},
		{"RSA 1024", pkcs8(t, small), "has 1024 bits"},
		{"RSA 1024 as JWK", string(smallJWK), "has 1024 bits"},
		{"RSA 8676", pkcs8(t, mersenne(4253, 4423)), "has 8676 bits"},
		{"RSA 4484 as JWK", string(largeJWK), "store it as PEM"},
		{"P-384", pkcs8(t, p384), "another curve than P-256"},
		{"X25519", pkcs8(t, x25519), "unknown kind"},
		{"DSA", pemOf(t, "DSA PRIVATE KEY", block.Bytes, nil), "unknown kind"},
		{"encrypted PKCS #8", pemOf(t, "ENCRYPTED PRIVATE KEY", block.Bytes, nil), "is encrypted"},
		{"encrypted of old", legacy, "is encrypted"},
		{"OpenSSH", pemOf(t, "OPENSSH PRIVATE KEY", block.Bytes, nil), "OpenSSH"},
		{"certificate", pemOf(t, "CERTIFICATE", block.Bytes, nil), "this is a certificate"},
		{"public", public, "public half"},
		{"public PKCS #1", pemOf(t, "RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&small.PublicKey), nil), "public half"},
		{"public JWK", string(publicJWK), "public half"},
		{"two keys", ed + ed, "several keys"},
		{"key and certificate", ed + pemOf(t, "CERTIFICATE", block.Bytes, nil), "several keys"},
		{"JWK Set", `{"keys":[` + rfc8037Key + `]}`, "several keys"},
		{"array", `[` + rfc8037Key + `]`, "several keys"},
		{"text after PEM", ed + "and more", "after the end"},
		{"text after JWK", rfc8037Key + "and more", "after the end"},
		{"two JWKs", rfc8037Key + rfc8037Key, "after the end"},
		{"line breaks lost", strings.ReplaceAll(ed, "\n", " "), "with its line breaks"},
		{"line breaks escaped", strings.ReplaceAll(ed, "\n", `\n`), "with its line breaks"},
		{"no end", ed[:60], "with its line breaks"},
		{"a damaged block first", ed[:60] + "\n" + ed, "with its line breaks"},
		{"DER with more", longer, "key in the PEM is damaged"},
		{"DER of another kind", pemOf(t, "RSA PRIVATE KEY", block.Bytes, nil), "key in the PEM is damaged"},
		{"no DER", pemOf(t, "PRIVATE KEY", []byte("nonsense"), nil), "key in the PEM is damaged"},
		{"nothing in it", pemOf(t, "PRIVATE KEY", nil, nil), "key in the PEM is damaged"},
		{"JWK cut", rfc8037Key[:60], "JWK is damaged"},
		{"JWK without kty", replace(rfc8037Key, "kty", "ktx"), "JWK is damaged"},
		{"JWK of another x", replace(rfc8037Key, "11qY", "11qZ"), "JWK is damaged"},
		{"JWK without primes", replace(replace(rfc7515Key, `"p"`, `"p2"`), `"q"`, `"q2"`), "JWK is damaged"},
		{"JWK with wrong primes", replace(rfc7515Key, "uQPEfg", "uQPEfh"), "JWK is damaged"},
		{"JWK of an unknown kty", `{"kty":"XYZ"}`, "unknown kind"},
		{"JWK of a shared secret", `{"kty":"oct","k":"AAAA"}`, "shared secret"},
		{"JWK for encryption", replace(rfc8037Key, "{", `{"use":"enc",`), "not for signatures"},
		{"JWK with a foreign alg", replace(rfc7517Key, "RS256", "ES256"), "contradicts itself"},
		{"JWK with HS256", replace(rfc7517Key, "RS256", "HS256"), "contradicts itself"},
		{"JWK with none", replace(rfc7517Key, "RS256", "none"), "contradicts itself"},
		{"kid with a line break", replace(rfc7517Key, "2011-04-29", `a\nb`), "control character"},
		{"kid without end", replace(rfc7517Key, "2011-04-29", strings.Repeat("k", 256)), "longer than 255"},
	} {
		p, err := keys.Parse(secret.FromString(c.text))
		if err == nil || p != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
			continue
		}
		showsNothing(t, c.name, c.text, err)
	}
}

// showsNothing looks for any eight bytes of what is stored in the error.
func showsNothing(t testing.TB, name, text string, err error) {
	t.Helper()
	const words = "-----BEGIN PRIVATE KEY CERTIFICATE EC RSA PUBLIC ENCRYPTED OPENSSH"
	for i := 0; i+8 <= len(text); i++ {
		if part := text[i : i+8]; !strings.Contains(words, strings.TrimSpace(part)) && strings.Contains(err.Error(), part) {
			t.Errorf("%s: the error shows %q: %v", name, part, err)
		}
	}
}

func TestWiped(t *testing.T) {
	s := secret.FromString(rfc8037Key)
	s.Wipe()
	if _, err := keys.Parse(s); !errors.Is(err, secret.ErrWiped) {
		t.Error(err)
	}
	if _, err := keys.CertificateOf(s); !errors.Is(err, secret.ErrWiped) {
		t.Error(err)
	}
	if _, err := keys.Pair(s, s); !errors.Is(err, secret.ErrWiped) {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(rfc7515Key)
	f.Add(rfc7517Key)
	f.Add(rfc8037Key)
	f.Add(reveal(f, parse(f, rfc8037Key)))
	f.Add(reveal(f, parse(f, rfc7515Key)))
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(e)
	f.Add(pemOf(f, "EC PRIVATE KEY", sec1, err))
	f.Add("-----BEGIN PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END PRIVATE KEY-----\n")
	f.Add(`{"kty":"RSA","n":"AQAB","e":"AQAB","d":"AQAB","p":"AQ","q":"AQ"}`)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := keys.Parse(secret.FromString(text))
		if err != nil {
			if len(err.Error()) > 300 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			return
		}
		// What is taken can be used, and read again as the same key.
		if _, err := p.Sign("", nil, []byte("{}")); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Public(""); err != nil {
			t.Fatal(err)
		}
		again := parse(t, reveal(t, p))
		if _, err := again.Sign("", nil, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	})
}
