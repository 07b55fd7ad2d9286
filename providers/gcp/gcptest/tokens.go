package gcptest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"credentialbroker/providers/providertest"
)

// Tokens issues access tokens in the three ways that Google does: to a service
// account's signed assertion (RFC 7523), to another identity provider's token
// (RFC 8693), and to the machine, by the metadata server.
type Tokens struct {
	// MetadataHost is the host:port of the metadata server.
	MetadataHost string

	https *httptest.Server
	key   *rsa.PrivateKey
	dir   string

	mu      sync.Mutex
	tokens  map[string]bool
	refused bool
	status  int
	issued  map[string]int // by way
}

const (
	email        = "broker@test-project.iam.gserviceaccount.com"
	audience     = "//iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/pool/providers/idp"
	subjectToken = "subject-" + providertest.Canary
	wantScope    = "https://www.googleapis.com/auth/cloud-platform"
)

func newTokens(t testing.TB, cert tls.Certificate) *Tokens {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s := &Tokens{key: key, dir: t.TempDir(), tokens: map[string]bool{}, issued: map[string]int{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", s.way("service account", s.assertion))
	mux.HandleFunc("POST /sts", s.way("workload identity", s.exchange))
	s.https = httptest.NewUnstartedServer(mux)
	s.https.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	s.https.StartTLS()
	t.Cleanup(s.https.Close)
	meta := http.NewServeMux()
	meta.HandleFunc("GET /computeMetadata/v1/instance/service-accounts/default/token", s.way("metadata", s.machine))
	plain := httptest.NewServer(meta)
	t.Cleanup(plain.Close)
	s.MetadataHost = strings.TrimPrefix(plain.URL, "http://")
	return s
}

// Addr is the host:port of the two token endpoints that speak TLS.
func (s *Tokens) Addr() string { return strings.TrimPrefix(s.https.URL, "https://") }

// Issued counts the tokens of one way: "service account", "workload identity",
// "metadata".
func (s *Tokens) Issued(way string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.issued[way]
}

// Issue gives a token to a client that logs in elsewhere.
func (s *Tokens) Issue() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	token := "ya29." + rand.Text()
	s.tokens[token] = true
	return token
}

// FailWith makes the endpoints answer with a status; 0: as usual.
func (s *Tokens) FailWith(status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = status
}

func (s *Tokens) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens = map[string]bool{}
}

func (s *Tokens) refuse() {
	s.expire()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = true
}

func (s *Tokens) valid(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[token]
}

// ServiceAccount writes the JSON key of a service account.
func (s *Tokens) ServiceAccount(t testing.TB) string {
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		t.Fatal(err)
	}
	return s.write(t, "key.json", map[string]any{"type": "service_account", "project_id": Project, "private_key_id": "k1",
		"private_key":  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"client_email": email, "client_id": "1", "token_uri": s.https.URL + "/token"})
}

// ExternalAccount writes a federation whose subject token is in a file.
func (s *Tokens) ExternalAccount(t testing.TB) string {
	subject := filepath.Join(s.dir, "subject")
	if err := os.WriteFile(subject, []byte(subjectToken), 0o600); err != nil {
		t.Fatal(err)
	}
	//nolint:gosec // names of RFC 8693, no credentials
	return s.write(t, "federation.json", map[string]any{"type": "external_account", "audience": audience,
		"subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": s.https.URL + "/sts",
		"credential_source": map[string]any{"file": subject}})
}

func (s *Tokens) write(t testing.TB, name string, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	file := filepath.Join(s.dir, name)
	if err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// way issues a token if proof finds the request in order.
func (s *Tokens) way(name string, proof func(*http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		refused, code := s.refused, s.status
		s.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Metadata-Flavor", "Google")
		err := proof(r)
		switch {
		case code != 0:
			w.WriteHeader(code)
			_, _ = io.WriteString(w, providertest.Canary)
			return
		case err != nil || refused:
			w.WriteHeader(http.StatusBadRequest)
			_, _ = fmt.Fprintf(w, `{"error":"invalid_grant","error_description":"%s %v"}`, providertest.Canary, err)
			return
		}
		token := s.Issue()
		s.mu.Lock()
		s.issued[name]++
		s.mu.Unlock()
		//nolint:gosec // names of RFC 8693, no credentials
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": token, "expires_in": 3599, "token_type": "Bearer",
			"issued_token_type": "urn:ietf:params:oauth:token-type:access_token"})
	}
}

// assertion checks a JWT as Google does (RFC 7523 §3).
func (s *Tokens) assertion(r *http.Request) error {
	if r.FormValue("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
		return errors.New("grant_type")
	}
	parts := strings.Split(r.FormValue("assertion"), ".")
	if len(parts) != 3 {
		return errors.New("not a JWT")
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(&s.key.PublicKey, crypto.SHA256, sum[:], sig); err != nil {
		return err
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return err
	}
	var c struct {
		Iss, Scope, Aud string
		Exp             int64
	}
	if err := json.Unmarshal(body, &c); err != nil {
		return err
	}
	if c.Iss != email || c.Scope != wantScope || c.Aud != s.https.URL+"/token" || c.Exp < time.Now().Unix() {
		return errors.New("claims")
	}
	return nil
}

// exchange checks a token exchange (RFC 8693 §2.1).
func (s *Tokens) exchange(r *http.Request) error {
	//nolint:gosec // names of RFC 8693, no credentials
	for name, want := range map[string]string{"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "audience": audience,
		"subject_token": subjectToken, "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "scope": wantScope} {
		if r.PostFormValue(name) != want {
			return errors.New(name)
		}
	}
	return nil
}

// machine checks the header that keeps browsers away from the metadata server.
func (s *Tokens) machine(r *http.Request) error {
	if r.Header.Get("Metadata-Flavor") != "Google" || r.Header.Get("X-Forwarded-For") != "" || r.FormValue("scopes") != wantScope {
		return errors.New("headers or scopes")
	}
	return nil
}

func webServer() *http.Server {
	return &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<html>"+providertest.Canary+"</html>")
	})}
}
