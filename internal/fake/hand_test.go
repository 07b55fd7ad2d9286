package fake

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// What the tests of the servers send is made by hand here: with the standard
// library, not with the code that the servers use.

// send posts a form; header pairs follow.
func send(t testing.TB, rt http.RoundTripper, to string, form url.Values, header ...string) (int, map[string]any, http.Header) {
	t.Helper()
	return request(t, rt, http.MethodPost, to, []byte(form.Encode()), append([]string{"Content-Type", "application/x-www-form-urlencoded"}, header...)...)
}

func request(t testing.TB, rt http.RoundTripper, method, to string, body []byte, header ...string) (int, map[string]any, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, to, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return 0, map[string]any{"error": err.Error()}, nil
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if strings.Contains(resp.Header.Get("Content-Type"), "json") {
		if err := json.Unmarshal(raw, &doc); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
	}
	return resp.StatusCode, doc, resp.Header
}

func form(namesAndValues ...string) url.Values {
	v := url.Values{}
	for i := 0; i < len(namesAndValues); i += 2 {
		v.Add(namesAndValues[i], namesAndValues[i+1])
	}
	return v
}

func with(v url.Values, namesAndValues ...string) url.Values {
	out := maps.Clone(v)
	for i := 0; i < len(namesAndValues); i += 2 {
		out.Set(namesAndValues[i], namesAndValues[i+1])
	}
	return out
}

type claims = map[string]any

// but gives c with changes; nil takes a member out.
func but(c claims, changes claims) claims {
	out := maps.Clone(c)
	for name, v := range changes {
		if out[name] = v; v == nil {
			delete(out, name)
		}
	}
	return out
}

func part(t testing.TB, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// jws signs by header["alg"], with a key of any kind.
func jws(t testing.TB, key any, header, payload claims) string {
	t.Helper()
	input := part(t, header) + "." + part(t, payload)
	sum := sha256.Sum256([]byte(input))
	var sig []byte
	var err error
	switch k := key.(type) {
	case *rsa.PrivateKey:
		sig, err = rsa.SignPKCS1v15(nil, k, crypto.SHA256, sum[:])
	case ed25519.PrivateKey:
		sig = ed25519.Sign(k, []byte(input))
	case *ecdsa.PrivateKey:
		var r, s *big.Int
		if r, s, err = ecdsa.Sign(rand.Reader, k, sum[:]); err == nil {
			sig = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		}
	case string:
		h := hmac.New(sha256.New, []byte(k))
		h.Write([]byte(input))
		sig = h.Sum(nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func rsaKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	k, err := signer() // one key for all: making one takes longer than a test
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaJWK(t testing.TB, extra claims) string {
	t.Helper()
	k := rsaKey(t)
	raw, err := json.Marshal(but(claims{"kty": "RSA", "n": base64.RawURLEncoding.EncodeToString(k.N.Bytes()), "e": "AQAB"}, extra))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func ecJWK(t testing.TB, k *ecdsa.PrivateKey, extra claims) string {
	t.Helper()
	pub, err := k.PublicKey.Bytes() // 4, x, y
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(but(claims{"kty": "EC", "crv": "P-256", "x": base64.RawURLEncoding.EncodeToString(pub[1:33]), "y": base64.RawURLEncoding.EncodeToString(pub[33:])}, extra))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// certify makes a certificate for key, by itself if by is nil.
func certify(t testing.TB, name string, key *ecdsa.PrivateKey, by *x509.Certificate, byKey *ecdsa.PrivateKey) (*x509.Certificate, string) {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name, Organization: []string{"Example"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		IsCA: by == nil, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if by == nil {
		by, byKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by, &key.PublicKey, byKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func register(t testing.TB, s interface{ Register(Client) error }, clients ...Client) {
	t.Helper()
	for _, c := range clients {
		if err := s.Register(c); err != nil {
			t.Fatal(err)
		}
	}
}

// expect compares an answer: its status, and the error code unless that is "".
func expect(t testing.TB, what string, status int, doc map[string]any, wantStatus int, wantError string) {
	t.Helper()
	if code, _ := doc["error"].(string); status != wantStatus || code != wantError {
		t.Errorf("%s: %d %v, want %d %q", what, status, doc, wantStatus, wantError)
	}
}

// jti makes a new one each time.
func jti() string { return uuid() }
