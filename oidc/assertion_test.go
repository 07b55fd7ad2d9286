package oidc

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
)

const longSecret = "a-shared-secret-of-64-bytes-so-that-every-HMAC-takes-it.........."

// privateOf is a key as the bundle holds it.
func privateOf(t testing.TB, kind string) (*keys.Private, secret.Secret) {
	t.Helper()
	p, err := keys.Generate(kind)
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.PEM()
	if err != nil {
		t.Fatal(err)
	}
	return p, s
}

func certificateOf(t testing.TB, p *keys.Private) secret.Secret {
	t.Helper()
	c, err := p.Certificate("client", time.Now(), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return secret.New(c)
}

func bundle(fields map[string]string) Material {
	m := Material{"client_id": secret.FromString(clientID)}
	for k, v := range fields {
		m[k] = secret.FromString(v)
	}
	return m
}

// headerOf reads the header of a JWT.
func headerOf(t testing.TB, jwt string) (h map[string]any) {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(jwt[:strings.Index(jwt, ".")])
	if err != nil || json.Unmarshal(b, &h) != nil {
		t.Fatalf("%q is no JWT", jwt)
	}
	return h
}

// macOf is what the standard library makes of the JWT's first two parts.
func macOf(h func() hash.Hash, key, jwt string) string {
	m := hmac.New(h, []byte(key))
	m.Write([]byte(jwt[:strings.LastIndex(jwt, ".")]))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

func TestAssertionClaims(t *testing.T) {
	_, key := privateOf(t, "p-256")
	m := bundle(nil)
	m["private_key"] = key
	now := time.Date(2026, 11, 21, 8, 0, 5, 999e6, time.FixedZone("", 3600))
	iat := float64(now.Unix() - 5)
	const at = "https://issuer.example/token"
	for _, c := range []struct {
		name     string
		p        Profile
		grant    bool
		sub, aud string
		exp      float64
	}{
		{"plain", Profile{}, false, clientID, at, iat + 60},
		{"issuer", Profile{Issuer: iss}, false, clientID, iss, iat + 60},
		{"audience", Profile{Issuer: iss, Assertion: Assertion{Audience: "https://op.example/v2/token"}}, false, clientID, "https://op.example/v2/token", iat + 60},
		{"lifetime", Profile{Assertion: Assertion{Lifetime: clock.Duration(10 * time.Minute)}}, false, clientID, at, iat + 600},
		{"subject is the grant's", Profile{Assertion: Assertion{Subject: "user@corp.example"}}, false, clientID, at, iat + 60},
		{"grant", Profile{Grant: JWTBearer}, true, clientID, at, iat + 60},
		{"grant of a subject", Profile{Grant: JWTBearer, Issuer: iss, Assertion: Assertion{Subject: "user@corp.example"}}, true, "user@corp.example", iss, iat + 60},
	} {
		c.p.ClientAuth = PrivateKeyJWT
		client := open(t, c.p, reply{}, clock.System{})
		ids := map[any]bool{}
		for range 3 {
			jwt, err := client.assertion(m, "", at, now)
			if c.grant {
				jwt, err = client.grantAssertion(m, at, now)
			}
			if err != nil {
				t.Fatal(err)
			}
			got := claimsOf(t, string(jwt))
			id, _ := got["jti"].(string)
			if len(id) != 36 || id[14] != '4' || !strings.Contains("89ab", id[19:20]) {
				t.Errorf("%s: jti %q is no random GUID", c.name, id)
			}
			ids[id] = true
			delete(got, "jti")
			want := map[string]any{"iss": clientID, "sub": c.sub, "aud": c.aud, "iat": iat, "exp": c.exp}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: %v, want %v", c.name, got, want)
			}
		}
		if len(ids) != 3 {
			t.Errorf("%s: a jti came twice", c.name)
		}
	}
}

func TestAssertionIsSignedWithThePrivateKey(t *testing.T) {
	for _, c := range []struct{ kind, alg, want string }{
		{"rsa-2048", "", "RS256"}, {"rsa-2048", "PS256", "PS256"}, {"rsa-2048", "RS512", "RS512"},
		{"p-256", "", "ES256"}, {"p-256", "ES256", "ES256"}, {"ed25519", "", "EdDSA"},
	} {
		key, text := privateOf(t, c.kind)
		m := bundle(map[string]string{"client_secret": longSecret}) // is not used
		m["private_key"] = text
		client := open(t, Profile{ClientAuth: PrivateKeyJWT, Assertion: Assertion{Algorithm: c.alg}}, reply{}, clock.System{})
		jwt, err := client.assertion(m, "", endpoint, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if h := headerOf(t, string(jwt)); len(h) != 3 || h["alg"] != c.want || h["typ"] != "JWT" || h["kid"] != key.KeyID() {
			t.Errorf("header %v", h)
		}
		parsed, err := jose.ParseSignedCompact(string(jwt), []jose.SignatureAlgorithm{jose.SignatureAlgorithm(c.want)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parsed.Verify(key.Signer().Public()); err != nil {
			t.Errorf("%s %s: %v", c.kind, c.want, err)
		}
	}
}

func TestAssertionIsSignedWithTheSecret(t *testing.T) {
	for _, c := range []struct {
		alg, want string
		h         func() hash.Hash
		key       string
	}{
		{"", "HS256", sha256.New, longSecret[:32]}, {"HS256", "HS256", sha256.New, longSecret}, {"HS384", "HS384", sha512.New384, longSecret[:48]},
		{"HS512", "HS512", sha512.New, longSecret[:64]}, {"HS256", "HS256", sha256.New, strings.Repeat(longSecret, 5)},
	} {
		client := open(t, Profile{ClientAuth: SecretJWT, Assertion: Assertion{Algorithm: c.alg}}, reply{}, clock.System{})
		jwt, err := client.assertion(bundle(map[string]string{"client_secret": c.key}), "", endpoint, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if h := headerOf(t, string(jwt)); len(h) != 2 || h["alg"] != c.want || h["typ"] != "JWT" {
			t.Errorf("header %v", h)
		}
		if got := string(jwt[bytes.LastIndexByte(jwt, '.')+1:]); got != macOf(c.h, c.key, string(jwt)) {
			t.Errorf("%s: the signature is wrong", c.want)
		}
	}
}

// With a signed grant beside a signed client authentication, each takes its
// own key, and the algorithm that fits it.
func TestTwoAssertions(t *testing.T) {
	for _, c := range []struct{ alg, client, grant string }{{"", "HS256", "RS256"}, {"HS512", "HS512", "RS256"}, {"PS384", "HS256", "PS384"}} {
		_, key := privateOf(t, "rsa-2048")
		m := bundle(map[string]string{"client_secret": longSecret})
		m["private_key"] = key
		client := open(t, Profile{Grant: JWTBearer, ClientAuth: SecretJWT, Assertion: Assertion{Algorithm: c.alg}}, reply{}, clock.System{})
		one, err1 := client.assertion(m, "", endpoint, time.Now())
		two, err2 := client.grantAssertion(m, endpoint, time.Now())
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if got := headerOf(t, string(one))["alg"]; got != c.client {
			t.Errorf("%q: the client's is signed with %v", c.alg, got)
		}
		if got := headerOf(t, string(two))["alg"]; got != c.grant {
			t.Errorf("%q: the grant is signed with %v", c.alg, got)
		}
	}
}

func TestAssertionKeyID(t *testing.T) {
	key, text := privateOf(t, "p-256")
	jwk, err := jose.JSONWebKey{Key: key.Signer(), KeyID: "its own"}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	cert := certificateOf(t, key)
	parsed, err := keys.CertificateOf(cert)
	if err != nil {
		t.Fatal(err)
	}
	x5t, _ := keys.Thumbprints(parsed)
	for _, c := range []struct {
		name, how, keyID string
		key              secret.Secret
		want             any
	}{
		{"default", "", "", text, key.KeyID()},
		{"thumbprint", keyIDThumbprint, "", text, key.KeyID()},
		{"of the JWK", "", "", secret.New(jwk), "its own"},
		{"of the bundle", "", "portal-7", text, "portal-7"},
		{"certificate", keyIDCertificate, "portal-7", text, x5t},
		{"none", keyIDNone, "portal-7", text, nil},
	} {
		m := bundle(map[string]string{"key_id": c.keyID})
		m["private_key"], m["certificate"] = c.key, cert
		client := open(t, Profile{ClientAuth: PrivateKeyJWT, Assertion: Assertion{KeyID: c.how}}, reply{}, clock.System{})
		jwt, err := client.assertion(m, "", endpoint, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if got := headerOf(t, string(jwt))["kid"]; got != c.want {
			t.Errorf("%s: kid %v, want %v", c.name, got, c.want)
		}
	}
}

func TestAssertionsThatCannotBeMade(t *testing.T) {
	ec, ecText := privateOf(t, "p-256")
	other, _ := privateOf(t, "p-256")
	private := reveal(t, ecText)
	cert, foreign := reveal(t, certificateOf(t, ec)), reveal(t, certificateOf(t, other))
	jwk := Profile{ClientAuth: PrivateKeyJWT}
	shared := Profile{ClientAuth: SecretJWT}
	with := func(p Profile, a Assertion) Profile { p.Assertion = a; return p }
	for _, c := range []struct {
		name string
		p    Profile
		m    map[string]string
		want string
	}{
		{"no key", jwk, nil, "private_key"},
		{"no key, a secret", jwk, map[string]string{"client_secret": longSecret}, "private_key"},
		{"damaged", jwk, map[string]string{"private_key": private[:80]}, "private_key: the PEM is damaged"},
		{"public key", jwk, map[string]string{"private_key": `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`}, "public half"},
		{"RS256 with an EC key", with(jwk, Assertion{Algorithm: "RS256"}), map[string]string{"private_key": private}, "does not fit the key"},
		{"EdDSA with an EC key", with(jwk, Assertion{Algorithm: "EdDSA"}), map[string]string{"private_key": private}, "does not fit the key"},
		{"key_id with a line break", jwk, map[string]string{"private_key": private, "key_id": "a\nb"}, "key_id: it holds a control character"},
		{"key_id without end", jwk, map[string]string{"private_key": private, "key_id": strings.Repeat("k", 256)}, "key_id: it is longer"},
		{"no certificate", with(jwk, Assertion{KeyID: keyIDCertificate}), map[string]string{"private_key": private}, "certificate"},
		{"another's certificate", with(jwk, Assertion{KeyID: keyIDCertificate}), map[string]string{"private_key": private, "certificate": foreign}, "certificate: it is not for private_key"},
		{"no secret", shared, map[string]string{"private_key": private}, "client_secret"},
		{"short secret", shared, map[string]string{"client_secret": longSecret[:31]}, "too short for HS256, which wants 32 bytes"},
		{"short for HS512", with(shared, Assertion{Algorithm: "HS512"}), map[string]string{"client_secret": longSecret[:63]}, "too short for HS512, which wants 64 bytes"},
		{"a PEM as secret", shared, map[string]string{"client_secret": private}, "holds a key in PEM"},
		{"a certificate as secret", shared, map[string]string{"client_secret": cert}, "holds a key in PEM"},
		{"id with a control character", shared, map[string]string{"client_id": "a\x00b", "client_secret": longSecret}, "client_id: it holds a control character"},
		{"id not UTF-8", shared, map[string]string{"client_id": "\xff", "client_secret": longSecret}, "client_id: it is not UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			nothing := roundTrip(func(*http.Request) (*http.Response, error) {
				t.Error("something was sent")
				return nil, http.ErrAbortHandler
			})
			_, err := open(t, c.p, nothing, clock.System{}).Mint(t.Context(), bundle(c.m), Request{})
			e := wantKind(t, err, Refused)
			if !strings.Contains(e.Error(), c.want) {
				t.Errorf("%v, want %q", e, c.want)
			}
			for field, value := range c.m {
				if len(value) > 8 && strings.Contains(fmt.Sprintf("%v %v %+v", e, e.Err, *e), value[len(value)-8:]) {
					t.Errorf("the error shows %s: %v", field, e)
				}
			}
		})
	}
	m := bundle(map[string]string{"client_secret": longSecret, "private_key": private, "certificate": cert})
	for _, field := range []string{"client_secret", "private_key", "certificate"} {
		m[field].Wipe()
	}
	_, err := open(t, jwk, reply{}, clock.System{}).assertion(m, "", endpoint, time.Now())
	wantKind(t, err, Unavailable)
	_, err = open(t, shared, reply{}, clock.System{}).assertion(m, "", endpoint, time.Now())
	wantKind(t, err, Unavailable)
	_, _, err = bundleCertificate(m)
	wantKind(t, err, Unavailable)
}

func TestBundleCertificate(t *testing.T) {
	key, text := privateOf(t, "ed25519")
	cert := certificateOf(t, key)
	pair, thumbprint, err := bundleCertificate(Material{"private_key": text, "certificate": cert})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(pair.Certificate[0])
	if thumbprint != base64.RawURLEncoding.EncodeToString(sum[:]) {
		t.Errorf("x5t#S256 %s", thumbprint)
	}
	if !key.Signer().Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(pair.PrivateKey.(crypto.Signer).Public()) {
		t.Error("another key")
	}
	_, _, err = bundleCertificate(Material{"private_key": text})
	wantKind(t, err, Refused)
}

// RFC 7515 §A.1, and the standard library for every length of key.
func TestHMAC(t *testing.T) {
	key, err := base64.RawURLEncoding.DecodeString("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
	if err != nil {
		t.Fatal(err)
	}
	jws, err := hmacJWS(sha256.New, secret.New(key), []byte("{\"typ\":\"JWT\",\r\n \"alg\":\"HS256\"}"),
		[]byte("{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}"))
	const want = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ." +
		"dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
	if err != nil || string(jws) != want {
		t.Errorf("%s, %v, want %s", jws, err, want)
	}
	if cap(jws) != len(jws) {
		t.Errorf("a buffer of %d bytes for %d: it may have grown, and left a copy", cap(jws), len(jws))
	}
}

func TestFields(t *testing.T) {
	for _, c := range []struct {
		p    Profile
		want string
	}{
		{Profile{}, "client_id client_secret"},
		{Profile{ClientAuth: SecretPost}, "client_id client_secret"},
		{Profile{ClientAuth: SecretBasic}, "client_id client_secret"},
		{Profile{ClientAuth: SecretJWT}, "client_id client_secret"},
		{Profile{ClientAuth: PrivateKeyJWT}, "client_id private_key"},
		{Profile{ClientAuth: PrivateKeyJWT, Assertion: Assertion{KeyID: keyIDCertificate}}, "certificate client_id private_key"},
		{Profile{ClientAuth: SecretPost, Assertion: Assertion{KeyID: keyIDCertificate}}, "client_id client_secret"},
		{Profile{ClientAuth: TLS}, "certificate client_id private_key"},
		{Profile{ClientAuth: SelfSignedTLS}, "certificate client_id private_key"},
		{Profile{ClientAuth: SecretBasic, CertificateBound: true}, "certificate client_id client_secret private_key"},
		{Profile{Grant: AuthorizationCode}, "client_id client_secret"},
		{Profile{Grant: AuthorizationCode, ClientAuth: NoAuth}, "client_id"},
		{Profile{Grant: JWTBearer, ClientAuth: NoAuth}, "client_id private_key"},
		{Profile{Grant: JWTBearer}, "client_id client_secret private_key"},
		{Profile{Grant: JWTBearer, ClientAuth: NoAuth, Assertion: Assertion{KeyID: keyIDCertificate}}, "certificate client_id private_key"},
		{Profile{Grant: SelfSigned, ClientAuth: PrivateKeyJWT}, "client_id client_secret"},
		{Profile{Grant: NoGrant}, ""},
	} {
		if got := strings.Join(c.p.Fields(), " "); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.p.Grant, c.p.ClientAuth, got, c.want)
		}
	}
}

func TestValidateAssertion(t *testing.T) {
	lives := func(d time.Duration) Assertion { return Assertion{Lifetime: clock.Duration(d)} }
	alg := func(a string) Assertion { return Assertion{Algorithm: a} }
	for _, c := range []struct {
		p    Profile
		a    Assertion
		want string // how the error starts; "": none
	}{
		{Profile{}, Assertion{}, ""},
		{Profile{}, Assertion{KeyID: "certificate"}, ""},
		{Profile{}, Assertion{KeyID: "sha1"}, `assertion.key_id: "sha1" is not known`},
		{Profile{}, lives(10 * time.Minute), ""},
		{Profile{}, lives(10*time.Minute + 1), "assertion.lifetime: "},
		{Profile{}, lives(15 * time.Second), ""},
		{Profile{}, lives(14 * time.Second), "assertion.lifetime: "},
		{Profile{}, lives(-time.Second), "assertion.lifetime: "},
		{Profile{ClientAuth: PrivateKeyJWT}, alg("PS512"), ""},
		{Profile{ClientAuth: PrivateKeyJWT}, alg("HS256"), "assertion.algorithm: "},
		{Profile{ClientAuth: PrivateKeyJWT}, alg("none"), "assertion.algorithm: "},
		{Profile{ClientAuth: PrivateKeyJWT}, alg("ES384"), "assertion.algorithm: "},
		{Profile{ClientAuth: SecretJWT}, alg("HS512"), ""},
		{Profile{ClientAuth: SecretJWT}, alg("RS256"), "assertion.algorithm: "},
		{Profile{Grant: JWTBearer}, alg("EdDSA"), ""},
		{Profile{Grant: JWTBearer}, alg("HS256"), "assertion.algorithm: "},
		{Profile{Grant: JWTBearer, ClientAuth: SecretJWT}, alg("HS256"), ""},
		{Profile{}, alg("HS1"), "assertion.algorithm: "},
		{Profile{}, Assertion{Subject: "a\nb"}, "assertion.subject: "},
		{Profile{}, Assertion{Audience: "a\nb"}, "assertion.audience: "},
	} {
		c.p.Assertion = c.a
		wantProblem(t, c.p.validateAssertion(), c.want)
	}
}

func wantProblem(t *testing.T, errs []error, want string) {
	t.Helper()
	if want == "" && len(errs) > 0 || want != "" && (len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), want)) {
		t.Errorf("%v, want %q", errs, want)
	}
}
