package fake

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"time"
)

// signer is the process's only signing key: making one takes longer than most
// tests. 2048 bits for speed; the original has 4096, so a token is filled up to
// the original's size.
var signer = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// keyID is the key's thumbprint (RFC 7638), the shape that the original's has.
func keyID(k *rsa.PublicKey) string {
	sum := sha256.Sum256([]byte(`{"e":"` + base64.RawURLEncoding.EncodeToString(big.NewInt(int64(k.E)).Bytes()) + `","kty":"RSA","n":"` + base64.RawURLEncoding.EncodeToString(k.N.Bytes()) + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// sign makes a JWT with the header of the sample, in which typ is "jwt".
func sign(typ string, claims map[string]any) (string, error) {
	key, err := signer()
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	input := base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"`+typ+`","kid":"`+keyID(&key.PublicKey)+`","alg":"RS256"}`)) + "." + base64.RawURLEncoding.EncodeToString(payload)
	sum := sha256.Sum256([]byte(input))
	sig, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
	if err != nil {
		return "", err
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// check verifies a token that sign has made, and its times.
func check(token string) error {
	key, err := signer()
	if err != nil {
		return err
	}
	input, sig := cutLast(token, ".")
	_, body, _ := strings.Cut(input, ".")
	raw, err := base64.RawURLEncoding.DecodeString(sig)
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(input))
	if err := rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, sum[:], raw); err != nil {
		return err
	}
	payload, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil {
		return err
	}
	var claims struct{ Nbf, Exp int64 }
	if err := json.Unmarshal(payload, &claims); err != nil {
		return err
	}
	if now := time.Now().Unix(); now < claims.Nbf || now >= claims.Exp {
		return errors.New("outside its time")
	}
	return nil
}

func cutLast(s, sep string) (before, after string) {
	n := strings.LastIndex(s, sep)
	if n < 0 {
		return s, ""
	}
	return s[:n], s[n+len(sep):]
}

// jwks serves the public key.
func (s *server) jwks(w http.ResponseWriter) {
	s.count(func(st *Stats) { st.JWKS++ })
	key, err := signer()
	if err != nil {
		page(w, http.StatusInternalServerError, "HPDIA0200E", "Internal error.")
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"keys": []map[string]string{{"kty": "RSA", "use": "sig", "alg": "RS256",
		"kid": keyID(&key.PublicKey), "n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()), "e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes())}}})
}

func randomText(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it does not fail
	return base64.RawURLEncoding.EncodeToString(b)
}

func uuid() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
