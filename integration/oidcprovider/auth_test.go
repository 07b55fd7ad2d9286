//go:build real

package oidcprovider

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
)

// addKeyHolders registers the clients that authenticate with a key, made and
// published as broker keys new does it.
func (i issuer) addKeyHolders(t *testing.T) {
	t.Helper()
	for kind, alg := range map[string]string{"rsa-2048": "RS256", "p-256": "ES256", "ed25519": "EdDSA"} {
		i.add(t, kind, Registration{ID: alg, Auth: "private_key_jwt", Alg: alg})
		i.add(t, kind, Registration{ID: "tls-" + alg, Auth: "tls_client_auth", Bound: true})
		i.add(t, kind, Registration{ID: "self-" + alg, Auth: "self_signed_tls_client_auth", Bound: true})
	}
	i.add(t, "p-256", Registration{ID: "bound", Auth: "private_key_jwt", Bound: true})
	i.add(t, "p-256", Registration{ID: "bearer", Auth: "private_key_jwt", Grants: []string{"urn:ietf:params:oauth:grant-type:jwt-bearer"}})
}

func (i issuer) add(t *testing.T, kind string, r Registration) {
	t.Helper()
	k, err := keys.Generate(kind)
	if err != nil {
		t.Fatal(err)
	}
	private, err1 := k.PEM()
	public, err2 := k.Public("")
	cert, err3 := k.Certificate(r.ID, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	var jwk map[string]any
	if err := errors.Join(err1, err2, err3, json.Unmarshal(public, &jwk)); err != nil {
		t.Fatal(err)
	}
	if r.Auth == "tls_client_auth" {
		cert = i.Certificate(t, k.Signer().Public(), r.ID)
		r.Subject = "CN=" + r.ID + ",O=Example,C=BE"
	} else {
		block, _ := pem.Decode(cert)
		jwk["x5c"] = []string{base64.StdEncoding.EncodeToString(block.Bytes)}
		r.Keys = &JWKS{[]map[string]any{jwk}}
	}
	m := oidc.Material{"private_key": private}
	if r.Bound {
		m["certificate"] = secret.New(cert)
	}
	i.clients[r.ID] = party{r, m}
}

// usable fails the test unless the issuer itself calls the token active.
func usable(t *testing.T, c *oidc.Client, r party, tok oidc.Token) {
	t.Helper()
	if tok.JTI != "" {
		return // a JWT, whose signature the client has checked; this issuer does not introspect them
	}
	said, err := c.Introspect(t.Context(), r.bundle(), tok.Access)
	if err != nil || !said.Active || said.Scope != tok.Scope || time.Until(said.Expires) < 9*time.Minute {
		t.Errorf("%s: %+v, %v", r.ID, said, err)
	}
}

func TestAssertions(t *testing.T) {
	i := newIssuer(t)
	i.start(t)
	for _, name := range []string{"jwt", "RS256", "ES256", "EdDSA"} {
		t.Run(name, func(t *testing.T) {
			r := i.clients[name]
			what := r.Auth
			if r.Alg != "" {
				what += " " + r.Alg
			}
			real.Row(t, area, server, what+": every request with a jti of its own; a wrong key is refused")
			p := i.profile(r)
			p.IntrospectionEndpoint = i.URL + "/token/introspection"
			c := open(t, p, clock.System{})
			for range 3 { // a jti that comes twice is refused, see TestReplay
				tok, err := c.Mint(t.Context(), r.bundle(), oidc.Request{Scope: "read write"})
				if err != nil {
					t.Fatal(err)
				}
				usable(t, c, r, tok)
			}
			wrong := r.bundle()
			if name == "jwt" {
				wrong["client_secret"] = secret.FromString(strings.Repeat("x", 32))
			} else {
				k, err := keys.Generate(map[string]string{"RS256": "rsa-2048", "ES256": "p-256", "EdDSA": "ed25519"}[name])
				if err != nil {
					t.Fatal(err)
				}
				if wrong["private_key"], err = k.PEM(); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := c.Mint(t.Context(), wrong, oidc.Request{}); oidc.KindOf(err) != oidc.InvalidClient {
				t.Errorf("wrong key: %v", err)
			}
		})
	}
}

// recorder keeps what was sent last.
type recorder struct {
	http.RoundTripper
	mu   sync.Mutex
	body []byte
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		r.mu.Lock()
		r.body = body
		r.mu.Unlock()
		req = req.Clone(req.Context())
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	return r.RoundTripper.RoundTrip(req)
}

func TestReplay(t *testing.T) {
	real.Row(t, area, server, "private_key_jwt: the server refuses a replayed assertion, and takes the next one")
	i := newIssuer(t)
	i.start(t)
	r := i.clients["ES256"]
	rec := &recorder{RoundTripper: i.Transport(t)}
	c, err := oidc.Open(i.profile(r), rec, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Mint(t.Context(), r.bundle(), oidc.Request{}); err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: rec.RoundTripper}).Post(i.URL+"/token", "application/x-www-form-urlencoded", bytes.NewReader(rec.body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !bytes.Contains(answer, []byte("invalid_client")) {
		t.Errorf("%s %s, %v", resp.Status, answer, err)
	}
	if _, err := c.Mint(t.Context(), r.bundle(), oidc.Request{}); err != nil {
		t.Error(err)
	}
}

// A clock that is wrong costs one request, not the client.
func TestWrongClock(t *testing.T) {
	real.Row(t, area, server, "private_key_jwt: a clock that is 10 minutes off costs one request at most")
	i := newIssuer(t)
	i.start(t)
	r := i.clients["ES256"]
	for _, by := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		p := i.profile(r)
		p.Issuer, p.JWKSURI = "", ""
		p.Assertion.Audience = i.URL
		c := open(t, p, &ahead{by})
		_, err := c.Mint(t.Context(), r.bundle(), oidc.Request{})
		if kind := oidc.KindOf(err); kind != "" && kind != oidc.Unavailable || by < 0 && kind == "" {
			t.Errorf("%s, first: %v", by, err)
		}
		if _, err := c.Mint(t.Context(), r.bundle(), oidc.Request{}); err != nil {
			t.Errorf("%s, second: %v", by, err)
		}
		c = i.open(t, r, &ahead{by}) // with the keys, whose Date does not count
		tok, err := c.Mint(t.Context(), r.bundle(), oidc.Request{Resource: api + "ES256", Scope: "read"})
		if oidc.KindOf(err) == oidc.Unavailable {
			tok, err = c.Mint(t.Context(), r.bundle(), oidc.Request{Resource: api + "ES256", Scope: "read"})
		}
		if err != nil || (tok.Skew+by).Abs() > 5*time.Second {
			t.Errorf("%s, JWT: %v, %v", by, tok.Skew, err)
		}
	}
}

// confirmation is cnf of a JWT (RFC 7800, RFC 8705 §3.1), read by hand.
func confirmation(t *testing.T, tok oidc.Token) (thumbprint string) {
	t.Helper()
	err := tok.Access.Use(func(b []byte) error {
		_, rest, _ := strings.Cut(string(b), ".")
		payload, _, _ := strings.Cut(rest, ".")
		raw, err := base64.RawURLEncoding.DecodeString(payload)
		if err != nil {
			return err
		}
		var claims struct {
			Cnf map[string]string `json:"cnf"`
		}
		err = json.Unmarshal(raw, &claims)
		thumbprint = claims.Cnf["x5t#S256"]
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return thumbprint
}

func TestClientCertificates(t *testing.T) {
	i := newIssuer(t)
	i.start(t)
	for name, method := range map[string]string{"tls-RS256": "tls_client_auth, RSA", "tls-ES256": "tls_client_auth, P-256", "tls-EdDSA": "tls_client_auth, Ed25519",
		"self-RS256": "self_signed_tls_client_auth, RSA", "self-ES256": "self_signed_tls_client_auth, P-256", "self-EdDSA": "self_signed_tls_client_auth, Ed25519",
		"bound": "private_key_jwt with certificate_bound_access_tokens"} {
		t.Run(name, func(t *testing.T) {
			real.Row(t, area, server, method+": bound tokens, cnf checked; another certificate is refused")
			r := i.clients[name]
			other := i.clients["self-ES256"]
			if name == "self-ES256" {
				other = i.clients["tls-ES256"]
			}
			for how, p := range map[string]oidc.Profile{"configured": i.profile(r), "mtls_endpoint_aliases of the metadata": i.discovered(r, "")} {
				c := open(t, p, clock.System{})
				tok, err := c.Mint(t.Context(), r.bundle(), oidc.Request{Scope: "read", Resource: api + "ES256"})
				if err != nil {
					t.Errorf("%s: %v", how, err)
					continue
				}
				if cnf := confirmation(t, tok); cnf == "" || tok.Bound != cnf {
					t.Errorf("%s: cnf %q, bound %q", how, cnf, tok.Bound)
				}
				wrong := r.bundle()
				wrong["private_key"], wrong["certificate"] = other.material["private_key"], other.material["certificate"]
				if _, err := c.Mint(t.Context(), wrong, oidc.Request{}); oidc.KindOf(err) != oidc.InvalidClient {
					t.Errorf("%s, another's certificate: %v", how, err)
				}
				torn := r.bundle()
				torn["certificate"] = other.material["certificate"]
				if _, err := c.Mint(t.Context(), torn, oidc.Request{}); oidc.KindOf(err) != oidc.Refused {
					t.Errorf("%s, key and certificate that do not belong together: %v", how, err)
				}
			}
		})
	}
}

func TestDiscovery(t *testing.T) {
	i := newIssuer(t)
	i.start(t)
	for path, what := range map[string]string{"": "RFC 8414", "/op": "OpenID Connect Discovery, for an issuer with a path"} {
		t.Run(what, func(t *testing.T) {
			real.Row(t, area, server, "discovery by "+what+": nothing but the issuer's name is configured; a foreign name is refused")
			for _, name := range []string{"basic", "ES256"} {
				r := i.clients[name]
				c := open(t, i.discovered(r, path), clock.System{})
				tok, err := c.Mint(t.Context(), r.bundle(), oidc.Request{Scope: "read"})
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				usable(t, c, r, tok)
				if _, err := c.Mint(t.Context(), r.bundle(), oidc.Request{Scope: "read", Resource: api + "PS256"}); err != nil {
					t.Errorf("%s, JWT with the keys of the metadata: %v", name, err)
				}
			}
			r := i.clients["basic"]
			foreign := i.discovered(r, path)
			foreign.Issuer, foreign.MetadataURI = "https://another.example", foreign.Issuer+"/.well-known/openid-configuration"
			if _, err := open(t, foreign, clock.System{}).Mint(t.Context(), r.bundle(), oidc.Request{}); oidc.KindOf(err) != oidc.Protocol {
				t.Errorf("a foreign issuer: %v", err)
			}
		})
	}
}

func TestJWTBearer(t *testing.T) {
	real.Row(t, area, server+" and its jose", "jwt_bearer grant beside private_key_jwt; a wrong audience is told from a wrong client")
	i := newIssuer(t)
	i.start(t)
	r := i.clients["bearer"]
	p := i.profile(r)
	p.Grant = oidc.JWTBearer
	p.IntrospectionEndpoint = i.URL + "/token/introspection"
	c := open(t, p, clock.System{})
	for range 2 {
		tok, err := c.Mint(t.Context(), r.bundle(), oidc.Request{Scope: "read"})
		if err != nil {
			t.Fatal(err)
		}
		usable(t, c, r, tok)
	}
	p.Assertion.Audience = p.TokenEndpoint // right for the client, which names any of three; not for the grant
	if _, err := open(t, p, clock.System{}).Mint(t.Context(), r.bundle(), oidc.Request{}); oidc.KindOf(err) != oidc.InvalidGrant {
		t.Errorf("wrong audience: %v", err)
	}
}

func TestRevocation(t *testing.T) {
	real.Row(t, area, server, "introspection (RFC 7662) and revocation (RFC 7009) with every kind of client authentication")
	i := newIssuer(t)
	i.start(t)
	for _, name := range []string{"post", "basic", "jwt", "RS256", "ES256", "EdDSA", "tls-ES256", "self-ES256"} {
		r := i.clients[name]
		c := open(t, i.discovered(r, ""), clock.System{})
		tok, err := c.Mint(t.Context(), r.bundle(), oidc.Request{Scope: "read"})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		usable(t, c, r, tok)
		for range 2 { // a token that is gone is no error (RFC 7009 §2.2)
			if err := c.Revoke(t.Context(), r.bundle(), tok.Access, "access_token"); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if said, err := c.Introspect(t.Context(), r.bundle(), tok.Access); err != nil || said.Active {
			t.Errorf("%s, revoked: %+v, %v", name, said, err)
		}
	}
}
