package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"

	"credentialbroker/api/client"
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// The PEM holds the very key that the JWK holds.
func TestExportPEM(t *testing.T) {
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := e.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	o, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		jwk  map[string]string
		want interface{ Equal(any) bool }
	}{
		{map[string]string{"kty": "RSA", "n": b64(r.N.Bytes()), "e": b64(big.NewInt(int64(r.E)).Bytes())}, equalTo{&r.PublicKey}},
		{map[string]string{"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:])}, equalTo{&e.PublicKey}},
		{map[string]string{"kty": "OKP", "crv": "Ed25519", "x": b64(o)}, equalTo{o}},
	} {
		jwk, _ := json.Marshal(x.jwk)
		var out bytes.Buffer
		if err := export(&out, &client.Key{Client: "acm", JWK: jwk}, "pem"); err != nil {
			t.Errorf("%s: %v", jwk, err)
			continue
		}
		block, rest := pem.Decode(out.Bytes())
		if block == nil || block.Type != "PUBLIC KEY" || len(rest) > 0 {
			t.Fatalf("%s", out.String())
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil || !x.want.Equal(key) {
			t.Errorf("%s: %v", jwk, err)
		}
	}
}

type equalTo struct{ key any }

func (e equalTo) Equal(other any) bool {
	switch k := e.key.(type) {
	case *rsa.PublicKey:
		o, ok := other.(*rsa.PublicKey)
		return ok && k.Equal(o)
	case *ecdsa.PublicKey:
		o, ok := other.(*ecdsa.PublicKey)
		return ok && k.Equal(o)
	case ed25519.PublicKey:
		o, ok := other.(ed25519.PublicKey)
		return ok && k.Equal(o)
	}
	return false
}

func TestExport(t *testing.T) {
	key := &client.Key{Client: "acm", JWK: json.RawMessage(`{"kty":"EC","crv":"P-521","kid":"k"}`)}
	for format, want := range map[string]string{
		"jwk":         "{\n  \"kty\": \"EC\",\n  \"crv\": \"P-521\",\n  \"kid\": \"k\"\n}\n",
		"jwks":        "{\n  \"keys\": [\n    {\n      \"kty\": \"EC\",\n      \"crv\": \"P-521\",\n      \"kid\": \"k\"\n    }\n  ]\n}\n",
		"pem":         "export the key as jwk",
		"certificate": "broker keys new acm --certificate",
	} {
		var out bytes.Buffer
		err := export(&out, key, format)
		if err != nil {
			if exitCode(err) != exitData || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", format, err)
			}
			continue
		}
		if out.String() != want {
			t.Errorf("%s: %s", format, out.String())
		}
	}
	key.Certificate = "-----BEGIN CERTIFICATE-----\n"
	var out bytes.Buffer
	if err := export(&out, key, "certificate"); err != nil || out.String() != key.Certificate {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestPublicKeyRefuses(t *testing.T) {
	zeros := b64(make([]byte, 32))
	for _, jwk := range []string{
		`x`, `{}`, `{"kty":"oct","k":"c2VjcmV0"}`,
		`{"kty":"RSA","n":"AQAB","e":"AQAB"}`,
		`{"kty":"RSA","n":"` + b64(make([]byte, 256)) + `","e":"` + b64(make([]byte, 9)) + `"}`,
		`{"kty":"EC","crv":"P-256","x":"` + zeros + `","y":"` + zeros + `"}`, // not on the curve
		`{"kty":"EC","crv":"P-256","x":"` + zeros + `"}`,
		`{"kty":"OKP","crv":"X25519","x":"` + zeros + `"}`,
		`{"kty":"OKP","crv":"Ed25519","x":"!"}`,
	} {
		if k, err := publicKey([]byte(jwk)); err == nil {
			t.Errorf("%s is read as %v", jwk, k)
		}
	}
}
