//go:build real

// Package vault_test runs the conformance suite of the secrets managers, and
// every login method, against HashiCorp Vault's own core.
package vault_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
	"credentialbroker/providers/vault"
)

const (
	area   = "provider vault"
	server = "Vault 1.21.4"
)

func lacks(more providertest.Lacks) providertest.Lacks {
	all := providertest.Lacks{
		providertest.Disabled:    "a version of Vault's is there, deleted or destroyed",
		providertest.Expired:     "a version past delete_version_after is deleted",
		providertest.NotYetValid: "Vault knows no start of validity",
		providertest.Binary:      "a secret of Vault's is a JSON object",
		providertest.NotJSON:     "a secret of Vault's is a JSON object",
		providertest.Garbage:     "a real Vault answers as Vault does; the fake at the wire does not",
	}
	for c, why := range more {
		all[c] = why
	}
	return all
}

func TestConformance(t *testing.T) {
	real.Row(t, area, server, "conformance suite on KV 2, AppRole, least policy")
	providertest.Run(t, func(t *testing.T) providertest.Manager { return start(t, false) }, lacks(providertest.Lacks{
		providertest.BigNumbers: "KV version 2 keeps a number as a float",
	}))
}

func TestConformanceKV1(t *testing.T) {
	real.Row(t, area, server, "conformance suite on KV 1")
	providertest.Run(t, func(t *testing.T) providertest.Manager { return start(t, true) }, lacks(providertest.Lacks{
		providertest.SoftDeleted: "KV version 1 forgets what is deleted",
		providertest.Destroyed:   "KV version 1 forgets what is deleted",
		providertest.CheapCheck:  "KV version 1 has no metadata",
		providertest.Pinned:      "KV version 1 has no versions",
		providertest.Empty:       "KV version 1 takes no secret without fields",
	}))
}

// app is a core with one secret.
func app(t *testing.T) (*core, providers.Ref) {
	t.Helper()
	c := start(t, false)
	c.Set(t, "app", []byte(`{"client_secret":"`+providertest.Canary+`"}`))
	return c, c.Ref("app")
}

func wantRead(t *testing.T, p providers.Provider, ref providers.Ref) providers.Bundle {
	t.Helper()
	b, err := p.Fetch(t.Context(), ref, "")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantKind(t *testing.T, p providers.Provider, ref providers.Ref, kind providers.Kind, says string) {
	t.Helper()
	_, err := p.Fetch(t.Context(), ref, "")
	if providers.KindOf(err) != kind || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), providertest.Canary) {
		t.Errorf("error %v, want kind %q with %q", err, kind, says)
	}
}

func TestWrappedSecretID(t *testing.T) {
	real.Row(t, area, server, "AppRole with a wrapped secret-id: once, not twice, not exchanged")
	c, ref := app(t)
	wrapped := func(path string, body obj) vault.Config {
		_, answer := c.call(t, "POST", path, body, map[string]string{"X-Vault-Wrap-TTL": "60s"})
		auth := c.approle(t)
		auth.AppRole.Wrapped = true
		auth.AppRole.SecretIDFile = file(t, str(answer, "wrap_info", "token"))
		return c.config(auth)
	}
	conf := wrapped("auth/approle/role/broker/secret-id", obj{})
	p := open(t, conf, clock.System{})
	wantRead(t, p, ref)
	c.Fault(t, providertest.LoginExpired, "app")
	wantRead(t, p, ref) // by the secret-id in memory
	wantKind(t, open(t, conf, clock.System{}), ref, providers.LoginFailed, "intercepted")
	wantKind(t, open(t, wrapped("sys/wrapping/wrap", obj{"secret_id": c.secretID}), clock.System{}), ref, providers.LoginFailed, "exchanged")
}

func TestCert(t *testing.T) {
	real.Row(t, area, server, "login with a TLS client certificate, renewed")
	c, ref := app(t)
	certFile, keyFile := keyPair(t, "broker.host")
	certPEM, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	c.must(t, "POST", "sys/auth/cert", obj{"type": "cert"})
	c.must(t, "POST", "auth/cert/certs/hosts", obj{"certificate": string(certPEM), "token_policies": "broker", "token_ttl": "10m"})
	clk := &shifted{}
	p := open(t, c.config(vault.Auth{Cert: &vault.Cert{CertFile: certFile, KeyFile: keyFile, Role: "hosts"}}), clk)
	wantRead(t, p, ref)
	before := c.tokens(t)
	clk.pass(8 * time.Minute)
	wantRead(t, p, ref)
	if after := c.tokens(t); len(after) != len(before) {
		t.Errorf("%d tokens, then %d: not renewed", len(before), len(after))
	}
	otherCert, otherKey := keyPair(t, "another.host")
	other := open(t, c.config(vault.Auth{Cert: &vault.Cert{CertFile: otherCert, KeyFile: otherKey}}), clk)
	wantKind(t, other, ref, providers.LoginFailed, "certificate")
}

func TestJWT(t *testing.T) {
	real.Row(t, area, server, "login with a JWT")
	c, ref := app(t)
	key, public := signingKey(t)
	c.must(t, "POST", "sys/auth/jwt", obj{"type": "jwt"})
	c.must(t, "POST", "auth/jwt/config", obj{"jwt_validation_pubkeys": []string{public}})
	c.must(t, "POST", "auth/jwt/role/broker", obj{"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{"vault"}, "token_policies": "broker"})
	now := time.Now().Unix()
	good := signed(t, key, obj{"sub": "broker", "aud": "vault", "iat": now, "exp": now + 300})
	wantRead(t, open(t, c.config(vault.Auth{JWT: &vault.JWT{Role: "broker", TokenFile: file(t, good)}}), clock.System{}), ref)
	old := signed(t, key, obj{"sub": "broker", "aud": "vault", "iat": now - 7200, "exp": now - 3600})
	wantKind(t, open(t, c.config(vault.Auth{JWT: &vault.JWT{Role: "broker", TokenFile: file(t, old)}}), clock.System{}), ref, providers.LoginFailed, "expired")
}

func TestKubernetes(t *testing.T) {
	real.Row(t, area, server, "login with a Kubernetes service account, TokenReview by a stand-in")
	c, ref := app(t)
	key, _ := signingKey(t)
	now := time.Now().Unix()
	pod := signed(t, key, obj{"sub": "system:serviceaccount:apps:broker", "aud": []string{"vault"}, "iat": now, "exp": now + 300,
		"kubernetes.io": obj{"namespace": "apps", "serviceaccount": obj{"name": "broker", "uid": "u-1"}}})
	review := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var asked struct{ Spec struct{ Token string } }
		_ = json.NewDecoder(r.Body).Decode(&asked)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(obj{"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": obj{
			"authenticated": asked.Spec.Token == pod, "audiences": []string{"vault"},
			"user": obj{"username": "system:serviceaccount:apps:broker", "uid": "u-1", "groups": []string{"system:serviceaccounts"}}}})
	}))
	defer review.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: review.Certificate().Raw})
	c.must(t, "POST", "sys/auth/kubernetes", obj{"type": "kubernetes"})
	c.must(t, "POST", "auth/kubernetes/config", obj{"kubernetes_host": review.URL, "kubernetes_ca_cert": string(ca), "disable_local_ca_jwt": true})
	c.must(t, "POST", "auth/kubernetes/role/broker", obj{"bound_service_account_names": "broker", "bound_service_account_namespaces": "apps",
		"audience": "vault", "token_policies": "broker"})
	login := func(role string) providers.Provider {
		return open(t, c.config(vault.Auth{Kubernetes: &vault.JWT{Role: role, TokenFile: file(t, pod)}}), clock.System{})
	}
	wantRead(t, login("broker"), ref)
	wantKind(t, login("nobody"), ref, providers.LoginFailed, "service account")
}

func TestTokenFile(t *testing.T) {
	real.Row(t, area, server, "token file: renewed, replaced, revoked")
	c, ref := app(t)
	token := func() string {
		return str(c.must(t, "POST", "auth/token/create", obj{"policies": []string{"broker"}, "ttl": "10m", "renewable": true}), "auth", "client_token")
	}
	first, second := token(), token()
	name := file(t, first)
	clk := &shifted{}
	p := open(t, c.config(vault.Auth{TokenFile: name}), clk)
	wantRead(t, p, ref)
	clk.pass(8 * time.Minute)
	wantRead(t, p, ref)
	if str(c.must(t, "POST", "auth/token/lookup", obj{"token": first}), "data", "last_renewal") == "" {
		t.Error("not renewed")
	}
	c.must(t, "POST", "auth/token/revoke", obj{"token": first})
	wantKind(t, p, ref, providers.LoginFailed, "token_file")
	if err := os.WriteFile(name, []byte(second+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantRead(t, p, ref)
}

func TestLeastPolicy(t *testing.T) {
	real.Row(t, area, server, "least policy: other paths denied, no metadata, no default policy, no login storm")
	c, ref := app(t)
	c.must(t, "POST", "secret/data/other/app", obj{"data": obj{"a": "b"}})
	p := c.Open(t, providertest.Options{})
	other := providers.Ref{Path: "other/app"}
	before := len(c.tokens(t))
	for range 5 {
		wantKind(t, p, other, providers.Denied, "secret/data/other/app and secret/metadata/other/app")
	}
	if n := len(c.tokens(t)); n != before+1 {
		t.Errorf("%d logins for denials by policy", n-before)
	}
	c.must(t, "PUT", "sys/policies/acl/broker", obj{"policy": `path "secret/data/team/*" { capabilities = ["read"] }`})
	b := wantRead(t, p, ref)
	calls := c.Calls()
	for range 4 {
		if _, err := p.Fetch(t.Context(), ref, b.Version); !errors.Is(err, providers.ErrUnchanged) {
			t.Error(err)
		}
	}
	if now := c.Calls(); now.Checks != calls.Checks+1 || now.Values != calls.Values+4 {
		t.Errorf("%+v, then %+v", calls, now)
	}
	c.must(t, "POST", "auth/approle/role/broker", obj{"token_policies": "broker", "token_no_default_policy": true})
	bare := c.Open(t, providertest.Options{})
	wantRead(t, bare, ref)
	before = len(c.tokens(t))
	for range 5 {
		wantKind(t, bare, other, providers.Denied, "")
	}
	if n := len(c.tokens(t)); n > before+1 {
		t.Errorf("%d logins for denials by policy", n-before)
	}
}

func TestLeases(t *testing.T) {
	real.Row(t, area, server, "token life: renewed, longest life, expired in Vault, batch, revoked at the end")
	c, ref := app(t)
	clk := &shifted{}
	p := open(t, c.config(c.approle(t)), clk)
	wantRead(t, p, ref)
	before := c.tokens(t)
	clk.pass(8 * time.Minute)
	wantRead(t, p, ref)
	if n := len(c.tokens(t)); n != len(before) {
		t.Errorf("%d tokens, then %d: not renewed", len(before), n)
	}
	clk.pass(11 * time.Minute) // past the lease as the provider counts: a new login
	wantRead(t, p, ref)
	if n := len(c.tokens(t)); n != len(before)+1 {
		t.Errorf("%d tokens, then %d", len(before), n)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if n := len(c.tokens(t)); n != len(before) {
		t.Errorf("%d tokens after Close, want %d: the last is revoked", n, len(before))
	}

	// Vault renews for less, near the longest life: then a login, no storm.
	c.must(t, "POST", "auth/approle/role/broker", obj{"token_policies": "broker", "token_ttl": "10m", "token_explicit_max_ttl": "10m"})
	p = open(t, c.config(c.approle(t)), clk)
	for range 30 {
		wantRead(t, p, ref)
		clk.pass(time.Minute)
	}
	if n := len(c.tokens(t)) - len(before); n < 1 || n > 6 {
		t.Errorf("%d logins in half an hour of tokens of ten minutes", n)
	}

	// A token that is over in Vault, while the provider's clock stood still.
	c.must(t, "POST", "auth/approle/role/broker", obj{"token_policies": "broker", "token_ttl": "1s", "token_explicit_max_ttl": "1s"})
	still := &frozen{clock.System{}.Now()}
	p = open(t, c.config(c.approle(t)), still)
	living := len(c.tokens(t))
	wantRead(t, p, ref)
	eventually(t, "the end of the token", func() bool { return len(c.tokens(t)) == living })
	wantRead(t, p, ref)

	c.must(t, "POST", "auth/approle/role/broker", obj{"token_policies": "broker", "token_ttl": "10m", "token_type": "batch", "token_explicit_max_ttl": 0})
	p = open(t, c.config(c.approle(t)), clk)
	wantRead(t, p, ref)
	clk.pass(8 * time.Minute)
	wantRead(t, p, ref)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

type frozen struct{ at clock.Reading }

func (f *frozen) Now() clock.Reading { return f.at }

// tokens lists the accessors of the service tokens that Vault keeps.
func (c *core) tokens(t *testing.T) []any {
	t.Helper()
	data, _ := c.must(t, "LIST", "auth/token/accessors", nil)["data"].(map[string]any)
	keys, _ := data["keys"].([]any)
	return keys
}

func TestDeleteVersionAfter(t *testing.T) {
	real.Row(t, area, server, "delete_version_after is the version's expiry, a deleted version comes back")
	c, ref := app(t)
	c.must(t, "POST", "secret/metadata/team/app", obj{"delete_version_after": "2h"})
	c.Set(t, "app", []byte(`{"a":"2"}`))
	p := c.Open(t, providertest.Options{})
	b := wantRead(t, p, ref)
	if left := time.Until(b.Expires); left < time.Hour || left > 2*time.Hour || time.Since(b.Created) > time.Minute {
		t.Errorf("created %v, expires %v", b.Created, b.Expires)
	}
	c.Fault(t, providertest.SoftDeleted, "app")
	wantKind(t, p, ref, providers.Deleted, "undelete -versions=2")
	c.must(t, "POST", "secret/undelete/team/app", obj{"versions": []int{2}})
	wantRead(t, p, ref)
}

func signingKey(t *testing.T) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func signed(t *testing.T, key *ecdsa.PrivateKey, claims obj) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func keyPair(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, _ := signingKey(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	keyFile = filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return providertest.WritePEM(t, der), keyFile
}
