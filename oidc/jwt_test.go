package oidc

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/internal/clock"
)

const (
	iss     = "https://op.issuer.example/metadata"
	jwksURI = "https://keys.example/jwks"
)

// keyring holds one key a kind; making RSA keys is slow.
type keyring struct {
	rsa, other *rsa.PrivateKey
	small      *rsa.PrivateKey
	ec         *ecdsa.PrivateKey
	ed         ed25519.PrivateKey
}

var keysOnce = sync.OnceValue(func() *keyring {
	r, err1 := rsa.GenerateKey(rand.Reader, 2048)
	o, err2 := rsa.GenerateKey(rand.Reader, 2048)
	s, err3 := rsa.GenerateKey(rand.Reader, 1024)
	e, err4 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, d, err5 := ed25519.GenerateKey(rand.Reader)
	for _, err := range []error{err1, err2, err3, err4, err5} {
		if err != nil {
			panic(err)
		}
	}
	return &keyring{r, o, s, e, d}
})

func jwk(key any, kid, alg string) jose.JSONWebKey {
	return jose.JSONWebKey{Key: key, KeyID: kid, Algorithm: alg, Use: "sig"}
}

// listed is what the issuer of these tests publishes.
func listed() []jose.JSONWebKey {
	k := keysOnce()
	return []jose.JSONWebKey{jwk(&k.rsa.PublicKey, "r", ""), jwk(&k.small.PublicKey, "small", ""), jwk(&k.ec.PublicKey, "e", "ES256"), jwk(k.ed.Public(), "d", ""), jwk(&k.rsa.PublicKey, "rs", "RS256"),
		jwk(&rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 8192), big.NewInt(1)), E: 65537}, "huge", "")}
}

func jwks(t testing.TB, keys ...jose.JSONWebKey) string {
	t.Helper()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func claimsNow(change map[string]any) map[string]any {
	now := time.Now().Unix()
	m := map[string]any{"iss": iss, "iat": now, "nbf": now, "exp": now + 900, "jti": "j-1"}
	for k, v := range change {
		if m[k] = v; v == nil {
			delete(m, k)
		}
	}
	return m
}

func signJWT(t testing.TB, alg jose.SignatureAlgorithm, key any, kid string, claims map[string]any) string {
	t.Helper()
	o := (&jose.SignerOptions{}).WithType("JWT")
	if kid != "" {
		o = o.WithHeader("kid", kid)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, o)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	obj, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := obj.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// server is an issuer with keys: a RoundTripper that gives token for POST and
// jwks for GET.
type server struct {
	token  func() string
	jwks   func() reply
	date   time.Duration // its clock, ahead of ours
	noDate bool
	minted int
	asked  int // for keys
	mu     sync.Mutex
}

func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rep := reply{status: 200, header: map[string]string{}}
	if r.Method == http.MethodGet {
		s.asked++
		rep = s.jwks()
	} else {
		s.minted++
		rep.body = `{"access_token":"` + s.token() + `","token_type":"bearer","expires_in":900}`
	}
	if !s.noDate {
		if rep.header == nil {
			rep.header = map[string]string{}
		}
		rep.header["Date"] = time.Now().Add(s.date).UTC().Format(http.TimeFormat)
	}
	return rep.RoundTrip(r)
}

func checked(p Profile) Profile {
	p.Issuer, p.JWKSURI = iss, jwksURI
	return p
}

func TestVerification(t *testing.T) {
	k := keysOnce()
	rs := func(change map[string]any) string { return signJWT(t, jose.RS256, k.rsa, "r", claimsNow(change)) }
	good := rs(nil)
	parts := strings.Split(good, ".")
	der, err := x509.MarshalPKIXPublicKey(&k.rsa.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	embedded, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: k.other}, &jose.SignerOptions{EmbedJWK: true})
	if err != nil {
		t.Fatal(err)
	}
	payload, _ := json.Marshal(claimsNow(nil))
	obj, err := embedded.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	self, _ := obj.CompactSerialize()
	// RFC 7797: the issuer's own signature, over the payload as it is.
	raw := (&jose.SignerOptions{}).WithBase64(false).WithHeader("kid", "r")
	rawSigner, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: k.rsa}, raw)
	if err != nil {
		t.Fatal(err)
	}
	if obj, err = rawSigner.Sign(payload); err != nil {
		t.Fatal(err)
	}
	unencoded, err := obj.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()

	for _, c := range []struct {
		name  string
		p     Profile
		token string
		says  string // "" means accepted
	}{
		{"RS256", Profile{}, good, ""},
		{"no kid", Profile{}, signJWT(t, jose.RS256, k.rsa, "", claimsNow(nil)), ""},
		{"PS256", Profile{}, signJWT(t, jose.PS256, k.rsa, "r", claimsNow(nil)), ""},
		{"ES256", Profile{}, signJWT(t, jose.ES256, k.ec, "e", claimsNow(nil)), ""},
		{"EdDSA", Profile{}, signJWT(t, jose.EdDSA, k.ed, "d", claimsNow(nil)), ""},
		{"pinned", Profile{Algorithms: []string{"RS256"}}, good, ""},
		{"opaque", Profile{}, "opaque.with.dots", ""},
		{"fractions", Profile{}, rs(map[string]any{"exp": float64(now) + 900.5, "iat": float64(now) + .5}), ""},

		{"not pinned", Profile{Algorithms: []string{"ES256"}}, good, "allowed algorithm"},
		{"alg none", Profile{}, b64(`{"alg":"none"}`) + "." + parts[1] + ".", "allowed algorithm"},
		{"alg None with a signature", Profile{}, b64(`{"alg":"None","kid":"r"}`) + "." + parts[1] + "." + parts[2], "allowed algorithm"},
		{"no alg", Profile{}, b64(`{"kid":"r"}`) + "." + parts[1] + "." + parts[2], "allowed algorithm"},
		{"alg twice", Profile{}, b64(`{"alg":"RS256","alg":"none"}`) + "." + parts[1] + ".", "allowed algorithm"},
		{"HMAC with the public key, PEM", Profile{}, signJWT(t, jose.HS256, public, "r", claimsNow(nil)), "allowed algorithm"},
		{"HMAC with the public key, DER", Profile{}, signJWT(t, jose.HS256, der, "r", claimsNow(nil)), "allowed algorithm"},
		{"signature of another algorithm", Profile{}, b64(`{"alg":"PS256","kid":"r"}`) + "." + parts[1] + "." + parts[2], "signature"},
		{"PS256 where RS256 alone is allowed", Profile{Algorithms: []string{"RS256"}}, signJWT(t, jose.PS256, k.rsa, "r", claimsNow(nil)), "allowed algorithm"},
		{"PS256 with a key for RS256", Profile{}, signJWT(t, jose.PS256, k.rsa, "rs", claimsNow(nil)), "does not list"},
		{"kid of another key", Profile{}, signJWT(t, jose.ES256, k.ec, "r", claimsNow(nil)), "signature"},
		{"RSA too large", Profile{}, b64(`{"alg":"RS256","kid":"huge"}`) + "." + parts[1] + "." + parts[2], "does not list"},
		{"key for another algorithm", Profile{}, b64(`{"alg":"ES256","kid":"r"}`) + "." + parts[1] + "." + parts[2], "signature"},
		{"another payload", Profile{}, parts[0] + "." + b64(`{"iss":"`+iss+`","exp":9999999999}`) + "." + parts[2], "signature"},
		{"signature cut", Profile{}, parts[0] + "." + parts[1] + "." + parts[2][:20], "signature"},
		{"signature empty", Profile{}, parts[0] + "." + parts[1] + ".", "signature"},
		{"foreign key, known kid", Profile{}, signJWT(t, jose.RS256, k.other, "r", claimsNow(nil)), "signature"},
		{"foreign key, no kid", Profile{}, signJWT(t, jose.RS256, k.other, "", claimsNow(nil)), "signature"},
		{"unknown kid", Profile{}, signJWT(t, jose.RS256, k.other, "x", claimsNow(nil)), "does not list"},
		{"key of its own", Profile{}, self, "signature"},
		{"RSA too small", Profile{}, signJWT(t, jose.RS256, k.small, "small", claimsNow(nil)), "does not list"},
		{"critical extension", Profile{}, b64(`{"alg":"RS256","kid":"r","crit":["x"],"x":1}`) + "." + parts[1] + "." + parts[2], "critical"},
		{"unencoded payload", Profile{}, unencoded, "critical"},
		{"foreign issuer", Profile{}, rs(map[string]any{"iss": iss + "/"}), "another issuer"},
		{"no issuer", Profile{}, rs(map[string]any{"iss": nil}), "another issuer"},
		{"issuer as a list", Profile{}, rs(map[string]any{"iss": []string{iss}}), "another issuer"},
		{"expired", Profile{}, rs(map[string]any{"iat": now - 1000, "exp": now - 100}), "expired"},
		{"not yet", Profile{}, rs(map[string]any{"nbf": now + 100}), "not valid yet"},
		{"no exp", Profile{}, rs(map[string]any{"exp": nil}), "without exp"},
		{"exp as text", Profile{}, rs(map[string]any{"exp": "tomorrow"}), "without exp"},
		{"ends before it starts", Profile{}, rs(map[string]any{"iat": now + 1000}), "ends before it starts"},
		{"payload no JSON", Profile{}, parts[0] + "." + b64("hello") + "." + parts[2], "signature"},
		{"payload no base64", Profile{}, parts[0] + ".!." + parts[2], "allowed algorithm"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &server{token: func() string { return c.token }, jwks: func() reply { return reply{status: 200, body: jwks(t, listed()...)} }}
			tok, err := mint(t, checked(c.p), s, Request{})
			if c.says == "" {
				if err != nil || reveal(t, tok.Access) != c.token {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if e := wantKind(t, err, Protocol); !strings.Contains(e.Error(), c.says) || strings.Contains(e.Error(), parts[1]) {
				t.Errorf("%q does not say %q", e, c.says)
			}
		})
	}
}

func TestClockDifferenceIsAllowedFor(t *testing.T) {
	for _, c := range []struct {
		ahead  time.Duration // the issuer's clock
		noDate bool
		says   string
	}{
		{0, false, ""}, {30 * time.Second, false, ""}, {10 * time.Minute, false, ""}, {-10 * time.Minute, false, ""}, {15 * time.Minute, false, ""},
		{16 * time.Minute, false, "behind the issuer's"},
		{-31 * time.Minute, false, "ahead of the issuer's"},
		{30 * time.Second, true, "not valid yet"}, // not measured, so not allowed for
		{time.Second, true, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &server{date: c.ahead, noDate: c.noDate, jwks: func() reply { return reply{status: 200, body: jwks(t, listed()...)} }}
			s.token = func() string {
				at := time.Now().Add(c.ahead).Unix()
				return signJWT(t, jose.RS256, keysOnce().rsa, "r", claimsNow(map[string]any{"iat": at, "nbf": at, "exp": at + 900}))
			}
			tok, err := open(t, checked(Profile{}), s, clock.NewBubble()).Mint(t.Context(), material(), Request{})
			switch {
			case c.says == "" && err != nil:
				t.Errorf("%v ahead: %v", c.ahead, err)
			case c.says == "" && tok.Expires.Sub(tok.Sent) != 900*time.Second:
				t.Errorf("%v ahead: lives %v", c.ahead, tok.Expires.Sub(tok.Sent))
			case c.says != "":
				if e := wantKind(t, err, Protocol); !strings.Contains(e.Error(), c.says) {
					t.Errorf("%v ahead: %v", c.ahead, e)
				}
			}
		})
	}
}

// Without keys, a JWT's claims may shorten a life and name a token, no more.
func TestClaimsOfAnUncheckedJWT(t *testing.T) {
	token := func(claims string) string { return b64(`{"alg":"none"}`) + "." + b64(claims) + ".sig" }
	now := time.Now().Unix()
	for _, c := range []struct {
		claims, expiresIn string
		life              time.Duration // 0: refused
		jti               string
	}{
		{`{"iat":1000,"exp":1600,"jti":"a-b"}`, `900`, 10 * time.Minute, "a-b"},
		{`{"iat":1000,"exp":4600}`, `900`, 15 * time.Minute, ""},
		{`{"iat":1000,"exp":1600}`, `null`, 10 * time.Minute, ""},
		{`{"iat":1000,"exp":1600}`, `-1`, 10 * time.Minute, ""},
		{`{"iat":1000,"exp":1600.9}`, `900`, 10 * time.Minute, ""},
		{`{"iat":1000,"exp":1e300}`, `null`, 24 * time.Hour, ""},
		{`{"iat":1000}`, `900`, 15 * time.Minute, ""},
		{`{"iat":1000,"exp":1000}`, `900`, 0, ""},
		{`{"iat":1000,"exp":"x","jti":"a b"}`, `900`, 15 * time.Minute, ""},
		{`{"jti":"a\nb"}`, `900`, 15 * time.Minute, ""},
		{`{"jti":7}`, `900`, 15 * time.Minute, ""},
		{`{"jti":"` + strings.Repeat("j", 129) + `"}`, `900`, 15 * time.Minute, ""},
		{`[]`, `900`, 15 * time.Minute, ""},
		{`nothing`, `900`, 15 * time.Minute, ""},
		{fmt.Sprintf(`{"exp":%d}`, now+330), `900`, -1, ""},
	} {
		r := reply{status: 200, body: `{"access_token":"` + token(c.claims) + `","token_type":"bearer","expires_in":` + c.expiresIn + `}`}
		tok, err := mint(t, Profile{}, r, Request{})
		life := tok.Expires.Sub(tok.Sent)
		switch {
		case c.life == 0:
			wantKind(t, err, Protocol)
		case err != nil || tok.JTI != c.jti:
			t.Errorf("%s: jti %q, %v", c.claims, tok.JTI, err)
		case c.life < 0 && (life < 5*time.Minute || life > 330*time.Second):
			t.Errorf("%s: lives %v", c.claims, life)
		case c.life > 0 && life != c.life:
			t.Errorf("%s: lives %v, want %v", c.claims, life, c.life)
		}
	}
}
