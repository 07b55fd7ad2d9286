//go:build real

// Package oidcprovider asks oidc-provider, which nobody here wrote, for tokens.
package oidcprovider

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
)

const (
	area   = "issuer oidc-provider"
	server = "oidc-provider 9.13.3"
	api    = "https://api.example/" // followed by the algorithm that its tokens are signed with
)

// registration is a client as the server takes it. It allows visible ASCII and
// the space in both values (RFC 6749 appendix A).
type registration struct {
	ID        string   `json:"client_id"`
	Secret    string   `json:"client_secret"`
	Auth      string   `json:"token_endpoint_auth_method"`
	Grants    []string `json:"grant_types,omitempty"`
	Redirects []string `json:"redirect_uris,omitempty"`
	Responses []string `json:"response_types,omitempty"`
	Scope     string   `json:"scope,omitempty"` // all that it may have
}

func registrations() map[string]registration {
	return map[string]registration{
		"post":   {ID: "post +/:%&=~", Secret: `1 s+e/c:r%e&t= "~\'%41`, Auth: "client_secret_post"},
		"basic":  {ID: "basic +/:%&=~", Secret: `2 s+e/c:r%e&t= "~\'%41`, Auth: "client_secret_basic"},
		"reader": {ID: "reader", Secret: "secret", Auth: "client_secret_post", Scope: "read"},
		"other": {ID: "other", Secret: "secret", Auth: "client_secret_post", Grants: []string{"authorization_code"},
			Redirects: []string{"https://app.example/"}, Responses: []string{"code"}},
	}
}

// issuer is where servers with the same certificate run, one after another.
type issuer struct {
	addr, dir string
}

func newIssuer(t *testing.T) issuer {
	t.Helper()
	cert, ca, err := fake.TLS()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	i := issuer{real.FreeAddr(t), t.TempDir()}
	for name, content := range map[string][]byte{
		"ca.pem":   ca,
		"cert.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		"key.pem":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	} {
		if err := os.WriteFile(filepath.Join(i.dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

// start runs a server with signing keys of its own, and gives what ends it.
func (i issuer) start(t *testing.T) (stop func()) {
	t.Helper()
	setup, err := json.Marshal(map[string]any{"clients": slices.Collect(maps.Values(registrations())), "keys": signingKeys(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(i.dir, "setup.json"), setup, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("node", "server.mjs", i.addr, i.dir)
	cmd.Env = append(os.Environ(), "OIDC_MODULES="+real.Path("oidc-provider", "node_modules"))
	p := real.Start(t, i.addr, cmd)
	return func() {
		_ = p.Cmd.Process.Kill()
		for p.Cmd.Process.Signal(syscall.Signal(0)) == nil { // until it has been waited for
			<-time.After(10 * time.Millisecond)
		}
	}
}

func signingKeys(t *testing.T) []jose.JSONWebKey {
	t.Helper()
	r, err1 := rsa.GenerateKey(rand.Reader, 2048)
	p, err2 := rsa.GenerateKey(rand.Reader, 2048)
	e, err3 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, d, err4 := ed25519.GenerateKey(rand.Reader)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	var keys []jose.JSONWebKey
	for alg, key := range map[string]any{"RS256": r, "PS256": p, "ES256": e, "EdDSA": d} {
		keys = append(keys, jose.JSONWebKey{Key: key, KeyID: rand.Text(), Algorithm: alg, Use: "sig"})
	}
	return keys
}

func (i issuer) open(t *testing.T, r registration, c clock.Clock) *oidc.Client {
	t.Helper()
	url := "https://" + i.addr
	client, err := oidc.Open(oidc.Profile{TokenEndpoint: url + "/token", ClientAuth: oidc.ClientAuth(r.Auth), Issuer: url, JWKSURI: url + "/jwks",
		Config: outbound.Config{CAFile: filepath.Join(i.dir, "ca.pem")}}, nil, c)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func (r registration) material() oidc.Material {
	return oidc.Material{"client_id": secret.FromString(r.ID), "client_secret": secret.FromString(r.Secret)}
}

func TestTokens(t *testing.T) {
	i := newIssuer(t)
	i.start(t)
	for _, name := range []string{"post", "basic"} {
		t.Run(name, func(t *testing.T) {
			r := registrations()[name]
			real.Row(t, area, server, "client_secret_"+name+", opaque and JWT tokens of RS256, PS256, ES256, EdDSA checked by issuer and JWKS")
			c := i.open(t, r, clock.System{})
			tok, err := c.Mint(t.Context(), r.material(), oidc.Request{Scope: "read write"})
			if err != nil {
				t.Fatal(err)
			}
			if tok.Expires.Sub(tok.Sent) != 600*time.Second || tok.Scope != "read write" || tok.Narrowed || tok.JTI != "" || tok.Skew.Abs() > time.Second {
				t.Errorf("opaque: %+v", tok)
			}
			narrow, err := c.Mint(t.Context(), r.material(), oidc.Request{Scope: "read write", Resource: api + "RS256"})
			if err != nil || narrow.Scope != "read" || !narrow.Narrowed {
				t.Errorf("narrowed: %+v, %v", narrow, err)
			}
			for _, alg := range []string{"RS256", "PS256", "ES256", "EdDSA"} {
				tok, err := c.Mint(t.Context(), r.material(), oidc.Request{Scope: "read", Resource: api + alg})
				if err != nil {
					t.Errorf("%s: %v", alg, err)
					continue
				}
				if tok.Expires.Sub(tok.Sent) != 300*time.Second || tok.Scope != "read" || tok.JTI == "" || tok.Type != "Bearer" {
					t.Errorf("%s: %+v", alg, tok)
				}
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	real.Row(t, area, server, "refusals: wrong secret, unknown client, scope, resource, grant, path")
	i := newIssuer(t)
	i.start(t)
	all := registrations()
	post, basic := all["post"], all["basic"]
	wrong, unknown := post, post
	wrong.Secret += "x"
	unknown.ID += "x"
	wrongBasic := basic
	wrongBasic.Secret = "x"
	for name, c := range map[string]struct {
		r    registration
		q    oidc.Request
		kind oidc.Kind
		code string
	}{
		"wrong secret, post":        {wrong, oidc.Request{}, oidc.InvalidClient, "invalid_client"},
		"wrong secret, basic":       {wrongBasic, oidc.Request{}, oidc.InvalidClient, "invalid_client"},
		"unknown client":            {unknown, oidc.Request{}, oidc.InvalidClient, "invalid_client"},
		"unknown resource":          {post, oidc.Request{Resource: api + "none"}, oidc.Refused, "invalid_target"},
		"resource not absolute":     {post, oidc.Request{Resource: "api"}, oidc.Refused, "invalid_target"},
		"scope beyond the client's": {all["reader"], oidc.Request{Scope: "read write"}, oidc.Refused, "invalid_scope"},
		"grant not registered":      {all["other"], oidc.Request{}, oidc.Refused, "invalid_request"}, // so this server says; RFC 6749 has unauthorized_client
	} {
		_, err := i.open(t, c.r, clock.System{}).Mint(t.Context(), c.r.material(), c.q)
		e, ok := err.(*oidc.Error) //nolint:errorlint // Mint promises this very type
		if !ok || e.Kind != c.kind || e.Code != c.code {
			t.Errorf("%s: %v (%+v)", name, err, e)
			continue
		}
		if strings.Contains(e.Error(), c.r.Secret) || strings.Contains(e.Error(), c.r.ID) {
			t.Errorf("%s: %q names the client or its secret", name, e)
		}
	}
	c, err := oidc.Open(oidc.Profile{TokenEndpoint: "https://" + i.addr + "/absent", Config: outbound.Config{CAFile: filepath.Join(i.dir, "ca.pem")}}, nil, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Mint(t.Context(), post.material(), oidc.Request{}); oidc.KindOf(err) != oidc.Protocol {
		t.Errorf("wrong path: %v", err)
	}
}

// ahead is a clock that can be set forward.
type ahead struct{ by time.Duration }

func (a *ahead) Now() clock.Reading { return clock.System{}.Now().Add(a.by) }

func TestKeyRotation(t *testing.T) {
	real.Row(t, area, server, "new signing keys are fetched, at most once a minute; an outage is told apart")
	i := newIssuer(t)
	stop := i.start(t)
	r := registrations()["post"]
	now := &ahead{}
	c := i.open(t, r, now)
	mint := func(what string, want oidc.Kind) {
		t.Helper()
		if _, err := c.Mint(t.Context(), r.material(), oidc.Request{Resource: api + "RS256"}); oidc.KindOf(err) != want {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	mint("before", "")
	stop()
	mint("down", oidc.Unavailable)
	i.start(t)
	mint("other keys, too early to ask again", oidc.Protocol)
	now.by = 61 * time.Second
	mint("other keys", "")
}
