//go:build real

// Package oidcprovider runs npm's oidc-provider, an authorization server that
// nobody here wrote. Its tests ask it for tokens, with package oidc alone.
package oidcprovider

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/integration/real"
	"credentialbroker/internal/fake"
)

// Version is what integration/install.d/oidc-provider.sh installs.
const Version = "oidc-provider 9.13.3"

// Server is where servers with the same certificates run, one after another:
// server.mjs says what they do.
type Server struct {
	URL    string // of the issuer
	MTLS   string // URL of the same server, where it asks for client certificates
	CAFile string // of the server's certificate

	dir  string
	ca   *x509.Certificate // of client certificates
	caBy *ecdsa.PrivateKey
}

// Registration is a client as the server takes it. It allows visible ASCII and
// the space in id and secret (RFC 6749 appendix A).
type Registration struct {
	ID        string   `json:"client_id"`
	Secret    string   `json:"client_secret,omitempty"`
	Auth      string   `json:"token_endpoint_auth_method"`
	Alg       string   `json:"token_endpoint_auth_signing_alg,omitempty"` // of assertions; empty: any
	Grants    []string `json:"grant_types,omitempty"`                     // empty: client_credentials
	Redirects []string `json:"redirect_uris,omitempty"`
	Responses []string `json:"response_types,omitempty"`
	Type      string   `json:"application_type,omitempty"`
	Scope     string   `json:"scope,omitempty"` // all that it may have; empty: read and write
	Keys      *JWKS    `json:"jwks,omitempty"`
	KeysAt    string   `json:"jwks_uri,omitempty"` // in place of Keys; read again after a minute
	Subject   string   `json:"tls_client_auth_subject_dn,omitempty"`
	Bound     bool     `json:"tls_client_certificate_bound_access_tokens,omitempty"`
}

// JWKS holds a client's public keys, x5c with them for
// self_signed_tls_client_auth.
type JWKS struct {
	Keys []map[string]any `json:"keys"`
}

// ForPeople is a client that people log in to, on any port of loopback
// (RFC 8252 §7.3).
func ForPeople(id, auth, secret string) Registration {
	return Registration{ID: id, Auth: auth, Secret: secret, Grants: []string{"authorization_code", "refresh_token"}, Type: "native",
		Redirects: []string{"http://127.0.0.1/callback"}, Responses: []string{"code"}}
}

// New finds places for a server and makes its certificates.
func New(t testing.TB) *Server {
	t.Helper()
	cert, ca, err := fake.TLS()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{URL: "https://" + real.FreeAddr(t), MTLS: "https://" + real.FreeAddr(t), dir: t.TempDir()}
	s.CAFile = filepath.Join(s.dir, "ca.pem")
	s.newAuthority(t)
	for name, content := range map[string][]byte{
		"ca.pem":        ca,
		"cert.pem":      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		"key.pem":       pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		"client-ca.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.Raw}),
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *Server) newAuthority(t testing.TB) {
	t.Helper()
	var err1, err2, err3 error
	s.caBy, err1 = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Clients"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true}
	der, err2 := x509.CreateCertificate(rand.Reader, template, template, s.caBy.Public(), s.caBy)
	s.ca, err3 = x509.ParseCertificate(der)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
}

// Start runs a server with signing keys of its own, and gives what ends it.
func (s *Server) Start(t testing.TB, clients ...Registration) (stop func()) {
	t.Helper()
	setup, err := json.Marshal(map[string]any{"clients": clients, "keys": signingKeys(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "setup.json"), setup, 0o600); err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimPrefix(s.URL, "https://")
	cmd := exec.Command("node", filepath.Join(real.Root(), "integration", "oidcprovider", "server.mjs"), addr, strings.TrimPrefix(s.MTLS, "https://"), s.dir)
	cmd.Env = append(os.Environ(), "OIDC_MODULES="+real.Path("oidc-provider", "node_modules"))
	p := real.Start(t, addr, cmd)
	return func() {
		_ = p.Cmd.Process.Kill()
		<-p.Exited
	}
}

func signingKeys(t testing.TB) []jose.JSONWebKey {
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

// Certificate makes one in PEM that tls_client_auth takes, for a public key.
// Its subject is CN=name,O=Example,C=BE.
func (s *Server) Certificate(t testing.TB, public any, name string) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{Country: []string{"BE"}, Organization: []string{"Example"}, CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, s.ca, public, s.caBy)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Transport is how a test reaches the server without the broker.
func (s *Server) Transport(t testing.TB) *http.Transport {
	t.Helper()
	ca, err := os.ReadFile(s.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	rt := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	t.Cleanup(rt.CloseIdleConnections)
	return rt
}

// Person logs in and consents, as the server's own pages want it, and gives
// where the browser is sent in the end, without going there.
func (s *Server) Person(t testing.TB, start, redirect string) *url.URL {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar, Transport: s.Transport(t), CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), redirect) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	resp, err := browser.Get(start)
	for _, prompt := range []string{"login", "consent"} {
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !strings.Contains(resp.Request.URL.Path, "/interaction/") {
			t.Fatalf("%s: no page for %s: %s", resp.Request.URL.Path, prompt, resp.Status)
		}
		resp, err = browser.PostForm(resp.Request.URL.String(), url.Values{"prompt": {prompt}, "login": {"person"}, "password": {"any"}})
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	to, err := resp.Location()
	if err != nil {
		t.Fatalf("%s: %v", resp.Status, err)
	}
	return to
}
