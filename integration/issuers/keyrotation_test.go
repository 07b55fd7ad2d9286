//go:build real

package issuers

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/integration/oidcprovider"
	"credentialbroker/integration/real"
	"credentialbroker/internal/fake"
)

// begin makes the pending key of a client.
func (w *world) begin(t *testing.T, name string) (step client.RotatedKey) {
	t.Helper()
	out := w.broker(t, "keys", "rotate", name, "--start", "--json")
	if err := json.Unmarshal([]byte(out), &step); err != nil || step.State != client.KeyPending || strings.Contains(out, "PRIVATE") {
		t.Fatalf("%v: %s", err, out)
	}
	return step
}

// At a portal that keeps one key the tokens in hand bridge the time in between.
func TestKeyRotation(t *testing.T) {
	real.Row(t, "keys", "fake ACM", "broker keys rotate by the preset's steps, at a portal that keeps one key; nobody waits")
	w := newWorld(t)
	acm := &fake.ACM{}
	mux := http.NewServeMux()
	mux.Handle("/", acm)
	mux.Handle("/api/", acm.API(""))
	site := w.site(mux)
	yaml := fmt.Sprintf("ca_file: %s\ntoken_endpoint: %[2]s/op/v1/token\nissuer: %[2]s/op\nassertion: { audience: %[2]s/op }", w.caFile, site)
	register := func(k client.Key) {
		if err := acm.Register(fake.Client{ID: "acm-id", Keys: []string{string(k.JWK)}}); err != nil {
			t.Fatal(err)
		}
	}
	usable := func() {
		t.Helper()
		w.usable(t, site+"/api/", w.headers(t, "acm", client.Options{}))
	}
	w.client("acm", "digitaal-vlaanderen", yaml, map[string]string{"client_id": "acm-id"})
	w.configure("")
	w.serve()
	register(w.newKey(t, "acm", "rsa-2048", false))
	w.accept(t, "acm")
	usable()
	first := w.status(t, "acm")

	next := w.begin(t, "acm")
	if len(next.Steps) == 0 || next.Old == "" || next.Key.Algorithm != "RS256" {
		t.Errorf("%+v", next)
	}
	block, _ := pem.Decode([]byte(w.fields("acm")["pending_private_key"]))
	if block == nil {
		t.Fatal("there is no pending key")
	}
	w.hide("the pending key", string(block.Bytes))
	usable()
	register(next.Key) // and the old one is gone
	usable()
	w.broker(t, "keys", "rotate", "acm", "--resume")
	if s := w.status(t, "acm"); s.Version == first.Version || !s.Ready || s.PendingKey != "" || s.Proved != "mint" {
		t.Errorf("the new key does not serve: %+v", s)
	}
	if f := w.fields("acm"); f["pending_private_key"] != "" || len(f) != 2 {
		t.Errorf("the secret has %d fields", len(f))
	}
	usable()
	w.broker(t, "keys", "rotate", "acm", "--resume") // it is complete
	w.leaks(t)
}

// rotating is a client of oidc-provider, which reads the client's keys from
// where the client publishes them.
type rotating struct {
	oidcprovider.Registration
	kind, yaml, method string

	mu   sync.Mutex
	keys []map[string]any
}

// publish adds a key to those that the issuer finds.
func (r *rotating) publish(t *testing.T, k client.Key) {
	t.Helper()
	var jwk map[string]any
	if err := json.Unmarshal(k.JWK, &jwk); err != nil {
		t.Fatal(err)
	}
	if r.Bound {
		block, _ := pem.Decode([]byte(k.Certificate))
		jwk["x5c"] = []string{base64.StdEncoding.EncodeToString(block.Bytes)}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys = append(r.keys, jwk)
}

func (r *rotating) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w.Header().Set("Content-Type", "application/jwk-set+json")
	_ = json.NewEncoder(w).Encode(map[string]any{"keys": r.keys})
}

func TestKeyRotationElsewhere(t *testing.T) {
	m := &mijn{world: newWorld(t), vaultDir: t.TempDir(), addr: real.FreeAddr(t)}
	m.startVault()
	op := oidcprovider.New(t)
	all := []*rotating{
		{Registration: oidcprovider.Registration{ID: "rs256", Auth: "private_key_jwt", Alg: "RS256"}, kind: "rsa-2048", method: "private_key_jwt RS256"},
		{Registration: oidcprovider.Registration{ID: "es256", Auth: "private_key_jwt", Alg: "ES256"}, kind: "p-256", method: "private_key_jwt ES256"},
		{Registration: oidcprovider.Registration{ID: "self", Auth: "self_signed_tls_client_auth", Bound: true}, kind: "p-256",
			yaml: "    certificate_bound_access_tokens: true\n", method: "self_signed_tls_client_auth, tokens bound to the certificate"},
	}
	var registrations []oidcprovider.Registration
	for _, r := range all {
		real.Row(t, "keys", oidcprovider.Version+", Vault 1.21.4", "broker keys rotate, "+r.method+": two keys at jwks_uri, the daemon killed in between; nobody waits")
		site := httptest.NewServer(r)
		t.Cleanup(site.Close)
		r.KeysAt = site.URL
		registrations = append(registrations, r.Registration)
		m.keep(t, r.ID)
		fmt.Fprintf(&m.clients, "  %s:\n    preset: oauth2\n    secret: { provider: vault, mount: secret, path: %[1]s }\n    owner: { contact: team@corp.example, purpose: keys }\n    allow: [{ user: %q }]\n"+
			"    issuer: %s\n    ca_file: %s\n    client_auth: %s\n%s", r.ID, fmt.Sprint(os.Getuid()), op.URL, op.CAFile, r.Auth, r.yaml)
	}
	op.Start(t, registrations...)
	m.configure(fmt.Sprintf("  vault:\n    vault: { address: %q, ca_file: %s, auth: { token_file: %s } }\n", "https://"+m.addr, filepath.Join(m.vaultDir, "ca.pem"), m.path("vault-token")))
	m.serve()
	versions := map[string]string{}
	for _, r := range all {
		var made client.Key
		if err := json.Unmarshal([]byte(m.broker(t, "keys", "new", r.ID, "--kind", r.kind, "--json")), &made); err != nil {
			t.Fatal(err)
		}
		r.publish(t, made)
		m.accept(t, r.ID)
		versions[r.ID] = m.token(t, r.ID, client.Options{}).Fingerprint
	}
	started := map[string]client.RotatedKey{}
	for _, r := range all {
		started[r.ID] = m.begin(t, r.ID)
	}
	m.end(syscall.SIGKILL)
	m.serve()
	stop := m.read(t, all)
	var wg sync.WaitGroup
	for _, r := range all {
		r.publish(t, started[r.ID].Key)
		wg.Go(func() { m.resume(t, r.ID, started[r.ID]) })
	}
	wg.Wait()
	stop()
	for _, r := range all {
		if now := m.token(t, r.ID, client.Options{}); now.Fingerprint == versions[r.ID] {
			t.Errorf("%s: the token by the old key still serves", r.ID)
		}
		if s := m.status(t, r.ID); s.Version != "4" || s.Proved != "mint" || s.PendingKey != "" || s.Candidate != "" {
			t.Errorf("%s: %+v", r.ID, s)
		}
	}
}

// keep puts a client id into Vault.
func (m *mijn) keep(t *testing.T, id string) {
	t.Helper()
	token, err1 := os.ReadFile(m.path("vault-token"))
	ca, err2 := os.ReadFile(filepath.Join(m.vaultDir, "ca.pem"))
	r, err3 := http.NewRequest(http.MethodPost, "https://"+m.addr+"/v1/secret/data/"+id, strings.NewReader(`{"data":{"client_id":"`+id+`"}}`))
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Vault-Token", string(token))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		t.Fatal(resp.Status)
	}
}

// read has consumers ask until stop, and fails if one gets no token.
func (m *mijn) read(t *testing.T, all []*rotating) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, r := range all {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := m.ask.Token(t.Context(), r.ID, client.Options{}); err != nil {
					t.Errorf("%s: %v", r.ID, err)
					return
				}
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

// resume waits for the issuer to look at the published keys again, as a script
// does, and looks at what it is told.
func (m *mijn) resume(t *testing.T, name string, begun client.RotatedKey) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := m.command(ctx, "keys", "rotate", name, "--resume", "--json")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil || errors.As(err, &exit) {
		t.Errorf("%s: %v\n%s%s", name, err, out.String(), said.String())
		return
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var last client.RotatedKey
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.State != client.KeyRotated || last.Key.KeyID != begun.Key.KeyID || last.Old != begun.Old {
		t.Errorf("%s: %v\n%s%s", name, err, out.String(), said.String())
	}
	if slices.ContainsFunc(lines[:len(lines)-1], func(l string) bool { return !strings.Contains(l, `"state":"pending"`) }) {
		t.Errorf("%s: %s", name, out.String())
	}
	t.Logf("%s: %d steps\n%s", name, len(lines), said.String())
}
