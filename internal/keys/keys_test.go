package keys_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
)

func parse(t testing.TB, s string) *keys.Private {
	t.Helper()
	p, err := keys.Parse(secret.FromString(s))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func generate(t testing.TB, kind string) *keys.Private {
	t.Helper()
	p, err := keys.Generate(kind)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func reveal(t testing.TB, p *keys.Private) string {
	t.Helper()
	s, err := p.PEM()
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// pemOf is the standard library's own PEM.
func pemOf(t testing.TB, kind string, der []byte, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func pkcs8(t testing.TB, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pemOf(t, "PRIVATE KEY", der, err)
}

// verify checks a JWS with the standard library alone.
func verify(t *testing.T, public crypto.PublicKey, jws []byte) (header map[string]any) {
	t.Helper()
	parts := strings.Split(string(jws), ".")
	if len(parts) != 3 {
		t.Fatalf("%q is no compact JWS", jws)
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil || json.Unmarshal(raw, &header) != nil {
		t.Fatalf("header %q", raw)
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	input := []byte(parts[0] + "." + parts[1])
	sum := sha256.Sum256(input)
	ok := false
	switch k := public.(type) {
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], sig) == nil
	case *ecdsa.PublicKey:
		ok = len(sig) == 64 && ecdsa.Verify(k, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, input, sig)
	}
	if !ok {
		t.Errorf("the signature of %s is wrong", jws)
	}
	return header
}

func TestKinds(t *testing.T) {
	for _, c := range []struct {
		kind, alg string
		bits      int
	}{
		{"rsa-2048", "RS256", 2048}, {"", "RS256", 3072}, {"rsa-3072", "RS256", 3072}, {"rsa-4096", "RS256", 4096},
		{"p-256", "ES256", 0}, {"ed25519", "EdDSA", 0},
	} {
		t.Run(c.kind, func(t *testing.T) {
			p := generate(t, c.kind)
			public := p.Signer().Public()
			if k, ok := public.(*rsa.PublicKey); ok != (c.bits > 0) || ok && k.N.BitLen() != c.bits {
				t.Errorf("a key of another kind: %T", public)
			}
			if p.Algorithm() != c.alg || len(p.KeyID()) != 43 {
				t.Errorf("alg %q, kid %q", p.Algorithm(), p.KeyID())
			}
			again := parse(t, reveal(t, p))
			if again.KeyID() != p.KeyID() || again.Algorithm() != c.alg {
				t.Errorf("read again: kid %q, alg %q", again.KeyID(), again.Algorithm())
			}
			claims := []byte(`{"iss":"me"}`)
			jws, err := again.Sign("", map[string]any{"typ": "JWT", "kid": "k1"}, claims)
			if err != nil {
				t.Fatal(err)
			}
			header := verify(t, public, jws)
			if len(header) != 3 || header["alg"] != c.alg || header["typ"] != "JWT" || header["kid"] != "k1" {
				t.Errorf("header %v", header)
			}
			testPublic(t, p, c.alg, jws, claims)
		})
	}
	if _, err := keys.Generate("rsa-1024"); err == nil || !strings.Contains(err.Error(), "rsa-2048") {
		t.Errorf("rsa-1024: %v", err)
	}
}

// testPublic reads the public JWK with go-jose, and checks jws with it.
func testPublic(t *testing.T, p *keys.Private, alg string, jws, claims []byte) {
	t.Helper()
	raw, err := p.Public("mine")
	if err != nil {
		t.Fatal(err)
	}
	var members map[string]any
	if err := json.Unmarshal(raw, &members); err != nil {
		t.Fatal(err)
	}
	for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "k"} {
		if members[private] != nil {
			t.Errorf("the public JWK has %q", private)
		}
	}
	if members["kid"] != "mine" || members["use"] != "sig" || members["alg"] != alg {
		t.Errorf("JWK %s", raw)
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(raw); err != nil || !jwk.IsPublic() {
		t.Fatal(err)
	}
	parsed, err := jose.ParseSignedCompact(string(jws), []jose.SignatureAlgorithm{jose.SignatureAlgorithm(alg)})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parsed.Verify(jwk); err != nil || !bytes.Equal(got, claims) {
		t.Errorf("%q, %v", got, err)
	}
	raw, err = p.Public("")
	if err != nil || !strings.Contains(string(raw), `"kid":"`+p.KeyID()+`"`) {
		t.Errorf("%s, %v", raw, err)
	}
}

// The examples of the standards, byte for byte.
func TestStandards(t *testing.T) {
	for _, c := range []struct{ key, claims, want string }{
		{rfc7515Key, rfc7515Claims, rfc7515JWS},
		{rfc8037Key, rfc8037Claims, rfc8037JWS},
	} {
		got, err := parse(t, c.key).Sign("", nil, []byte(c.claims))
		if err != nil || string(got) != c.want {
			t.Errorf("%s, %v, want %s", got, err, c.want)
		}
	}
	if got := parse(t, rfc8037Key).KeyID(); got != rfc8037Thumbprint {
		t.Errorf("thumbprint %s, want %s", got, rfc8037Thumbprint)
	}
	if got := parse(t, strings.Replace(rfc7517Key, `"kid":"2011-04-29"`, `"z":"y"`, 1)).KeyID(); got != rfc7638Thumbprint {
		t.Errorf("thumbprint %s, want %s", got, rfc7638Thumbprint)
	}
	if got := parse(t, rfc7517Key).KeyID(); got != "2011-04-29" {
		t.Errorf("kid %s, want the JWK's own", got)
	}
	if got := parse(t, strings.Replace(rfc7517Key, "RS256", "PS384", 1)).Algorithm(); got != "PS384" {
		t.Errorf("alg %s, want the JWK's own", got)
	}
}

func TestForms(t *testing.T) {
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(e)
	ec := pemOf(t, "EC PRIVATE KEY", sec1, err)
	jwk, err := jose.JSONWebKey{Key: e}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text string
		want crypto.PublicKey
	}{
		"PKCS #8 RSA":         {pkcs8(t, r), &r.PublicKey},
		"PKCS #8 EC":          {pkcs8(t, e), &e.PublicKey},
		"PKCS #1":             {pemOf(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(r), nil), &r.PublicKey},
		"SEC 1":               {ec, &e.PublicKey},
		"with EC PARAMETERS":  {pemOf(t, "EC PARAMETERS", []byte{6, 1, 0}, nil) + ec, &e.PublicKey},
		"with a comment":      {"Bag Attributes\n    friendlyName: x\n" + ec, &e.PublicKey},
		"line breaks of DOS":  {strings.ReplaceAll(ec, "\n", "\r\n"), &e.PublicKey},
		"space around":        {"\n  " + ec + "\n\n", &e.PublicKey},
		"without the last \n": {strings.TrimSpace(ec), &e.PublicKey},
		"JWK":                 {string(jwk), &e.PublicKey},
	} {
		p, err := keys.Parse(secret.FromString(c.text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !p.Signer().Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(c.want) {
			t.Errorf("%s: another key", name)
		}
	}
}

// PEM is what the standard library writes.
func TestPEM(t *testing.T) {
	for _, kind := range []string{"rsa-2048", "p-256", "ed25519"} {
		p := generate(t, kind)
		if got, want := reveal(t, p), pkcs8(t, p.Signer()); got != want {
			t.Errorf("%s: PEM of %d bytes differs from the standard library's %d", kind, len(got), len(want))
		}
	}
}

func TestAlgorithmsFitTheKey(t *testing.T) {
	all := []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS512", "none", "None", "rs256"}
	for _, c := range []struct {
		kind string
		fit  string
	}{
		{"rsa-2048", "RS256 RS384 RS512 PS256 PS384 PS512"}, {"p-256", "ES256"}, {"ed25519", "EdDSA"},
	} {
		p := generate(t, c.kind)
		for _, alg := range all {
			jws, err := p.Sign(alg, nil, []byte("{}"))
			if want := strings.Contains(" "+c.fit+" ", " "+alg+" "); (err == nil) != want {
				t.Errorf("%s with a key %s: %v", alg, c.kind, err)
			}
			if err == nil {
				parsed, err := jose.ParseSignedCompact(string(jws), []jose.SignatureAlgorithm{jose.SignatureAlgorithm(alg)})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := parsed.Verify(p.Signer().Public()); err != nil {
					t.Errorf("%s with a key %s: %v", alg, c.kind, err)
				}
			}
		}
		for _, name := range []string{"alg", "b64", "crit", "jwk"} {
			if _, err := p.Sign("", map[string]any{name: "none"}, []byte("{}")); err == nil {
				t.Errorf("the header %q was taken", name)
			}
		}
	}
}

func TestSignLeavesItsArguments(t *testing.T) {
	claims, header := []byte(`{"a":1}`), map[string]any{"typ": "JWT"}
	if _, err := generate(t, "ed25519").Sign("", header, claims); err != nil || string(claims) != `{"a":1}` || len(header) != 1 {
		t.Errorf("%q %v, %v", claims, header, err)
	}
}

func TestNoPrintingShowsTheKey(t *testing.T) {
	p := parse(t, rfc8037Key)
	seed, err := base64.RawURLEncoding.DecodeString("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
	if err != nil {
		t.Fatal(err)
	}
	nested := struct {
		Public  *keys.Private
		private *keys.Private
	}{p, p}
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	log.Info("x", "key", p, "nested", nested)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "key", p, "nested", nested)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb+"\n", p, nested)
	}
	for _, form := range []string{string(seed), fmt.Sprintf("%x", seed), fmt.Sprintf("%d %d %d", seed[0], seed[1], seed[2]), fmt.Sprintf("%#v", seed)[7:40]} {
		if strings.Contains(strings.ToLower(out.String()), strings.ToLower(form)) {
			t.Errorf("the key shows in %q", out.String())
		}
	}
}

func TestKind(t *testing.T) {
	for _, kind := range []string{"rsa-2048", "rsa-3072", "rsa-4096", "p-256", "ed25519"} {
		k, err := keys.Generate(kind)
		if err != nil || k.Kind() != kind {
			t.Errorf("%s, %v, want %s", k.Kind(), err, kind)
		}
	}
}
