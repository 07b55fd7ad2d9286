//go:build real

// Package azure runs the conformance suite of the secrets managers against a
// Key Vault whose REST protocol is Microsoft's own (azsecrets/fake), served
// over TLS, and lets Microsoft's client for Node read and write what our
// adapter does.
package azure

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azfake "github.com/Azure/azure-sdk-for-go/sdk/azcore/fake"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets/fake"
	"github.com/goccy/go-yaml"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/azure"
	"credentialbroker/providers/providertest"
)

const (
	server   = "azsecrets/fake 1.5.1"
	tenant   = "11111111-2222-3333-4444-555555555555"
	clientID = "66666666-7777-8888-9999-000000000000"
	password = "login-" + providertest.Canary
)

func TestConformance(t *testing.T) {
	real.Row(t, "provider azure", server, "conformance suite over Microsoft's own wire format")
	providertest.Run(t, func(t *testing.T) providertest.Manager { return newManager(t) }, providertest.Lacks{
		providertest.AbsentMount: "a vault is a host name: an absent one cannot be reached",
		providertest.Binary:      "Key Vault holds text",
	})
}

// What the adapter and Microsoft's client for another language write, the
// other reads.
func TestSecondClient(t *testing.T) {
	real.Row(t, "provider azure", server, "cross-check by @azure/keyvault-secrets for Node")
	m := newManager(t)
	p := m.Open(t, providertest.Options{})
	node := func(stdin string, args ...string) string {
		cmd := exec.Command("node", append([]string{"client.mjs"}, args...)...)
		cmd.Env = append(os.Environ(), "CLIENT_MODULES="+real.Path("azure", "node_modules"), "NODE_EXTRA_CA_CERTS="+m.ca,
			"TENANT="+tenant, "CLIENT="+clientID, "CLIENT_SECRET="+password)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.Output() // Node warns on the other stream
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v: %v\n%s", args, err, exit.Stderr)
		}
		return string(out)
	}
	node(`{"client_id":"id","client_secret":"é\"\\😀"}`, "put", m.srv.URL, "theirs")
	b, err := p.Fetch(t.Context(), m.Ref("theirs"), "")
	if err != nil {
		t.Fatal(err)
	}
	if s, _ := b.Fields["client_secret"].AppendTo(nil); string(s) != "é\"\\😀" {
		t.Errorf("read %q", s)
	}
	v, err := p.(providers.Writer).Put(t.Context(), m.Ref("theirs"), map[string]secret.Secret{"client_secret": secret.FromString("ours \n<&>")}, b.Version)
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Value, Version string }
	if err := json.Unmarshal([]byte(node("", "get", m.srv.URL, "theirs")), &got); err != nil {
		t.Fatal(err)
	}
	var fields map[string]string
	if err := json.Unmarshal([]byte(got.Value), &fields); err != nil || fields["client_secret"] != "ours \n<&>" || got.Version != string(v) {
		t.Errorf("Node reads %q at %s, want version %s (%v)", fields, got.Version, v, err)
	}
	if n := node("", "list", m.srv.URL, "theirs"); n != "2" {
		t.Errorf("Node counts %s versions", n)
	}
}

// manager is what Microsoft's protocol code serves, and the Entra ID before it.
type manager struct {
	t    *testing.T
	srv  *httptest.Server
	ca   string
	wire *fake.ServerTransport

	mu      sync.Mutex
	now     time.Time
	secrets map[string][]*azsecrets.Secret // oldest first
	deleted map[string]bool
	tokens  map[string]bool
	issued  int
	refuse  bool // takes no login
	status  int  // what every call answers; 0: by itself
	code    string
	fault   providertest.Case
	calls   providertest.Calls
}

func newManager(t *testing.T) *manager {
	m := &manager{t: t, now: time.Unix(1_700_000_000, 0), secrets: map[string][]*azsecrets.Secret{}, deleted: map[string]bool{}, tokens: map[string]bool{}}
	m.wire = fake.NewServerTransport(&fake.Server{GetSecret: m.get, SetSecret: m.set, GetDeletedSecret: m.getDeleted,
		NewListSecretPropertiesVersionsPager: m.list})
	m.srv = httptest.NewTLSServer(http.HandlerFunc(m.serve))
	t.Cleanup(m.srv.Close)
	m.ca = providertest.CAFileOf(t, m.srv)
	return m
}

// Open implements providertest.Manager, from a configuration as people write it.
func (m *manager) Open(t *testing.T, o providertest.Options) providers.Provider {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(password), 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("vault_url: %s\nauthority: %s\nca_file: %q\nauth: { client_secret: { tenant_id: %s, client_id: %s, client_secret_file: %q } }\n",
		m.srv.URL, m.srv.URL, m.ca, tenant, clientID, file)
	var c azure.Config
	if err := yaml.UnmarshalWithOptions([]byte(text), &c, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	if o.Outbound != nil {
		c.Config = *o.Outbound
	}
	p, err := azure.Open(c, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func (m *manager) Ref(name string) providers.Ref { return providers.Ref{Path: name} }
func (m *manager) CA() string                    { return m.ca }
func (m *manager) Addr() string                  { return providertest.HostPort(m.t, m.srv.URL) }

func (m *manager) Calls() providertest.Calls {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls
}

func (m *manager) Set(_ *testing.T, name string, payload []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.store(name, string(payload))
}

func (m *manager) store(name, value string) *azsecrets.Secret {
	m.now = m.now.Add(time.Second)
	id := azsecrets.ID(fmt.Sprintf("%s/secrets/%s/%032x", m.srv.URL, name, len(m.secrets[name])+1))
	s := &azsecrets.Secret{ID: &id, Value: &value, Attributes: &azsecrets.SecretAttributes{Enabled: new(true), Created: new(m.now), Updated: new(m.now)}}
	m.secrets[name] = append(m.secrets[name], s)
	return s
}

// Fault implements providertest.Manager.
func (m *manager) Fault(_ *testing.T, c providertest.Case, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	newest := m.secrets[name][len(m.secrets[name])-1].Attributes
	switch c {
	case providertest.Absent, providertest.Destroyed:
		delete(m.secrets, name)
	case providertest.SoftDeleted:
		m.deleted[name] = true
	case providertest.Disabled:
		newest.Enabled = new(false)
	case providertest.Expired:
		newest.Expires = new(time.Now().Add(-time.Second))
	case providertest.NotYetValid:
		newest.NotBefore = new(time.Now().Add(time.Hour))
	case providertest.Denied:
		m.status, m.code = http.StatusForbidden, "Forbidden"
	case providertest.Throttled:
		m.status, m.code = http.StatusTooManyRequests, "Throttled"
	case providertest.ServerError:
		m.status, m.code = http.StatusServiceUnavailable, "ServiceUnavailable"
	case providertest.LoginExpired:
		clear(m.tokens)
	case providertest.LoginRefused:
		clear(m.tokens)
		m.refuse = true
	case providertest.Down:
		m.srv.Listener.Close()
		m.srv.CloseClientConnections()
	default:
		m.fault = c
	}
}

func (m *manager) serve(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	fault, authorised := m.fault, m.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	m.mu.Unlock()
	entra := strings.HasPrefix(r.URL.Path, "/"+tenant)
	switch {
	case fault == providertest.Hangs:
		_, _ = io.Copy(io.Discard, r.Body) // only then does the server see its client leave
		<-r.Context().Done()
	case fault == providertest.Garbage:
		_, _ = io.WriteString(w, "<html>not here</html>")
	case entra:
		m.serveEntra(w, r)
	case !authorised:
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer authorization="%s/%s", resource="https://vault.azure.net"`, m.srv.URL, tenant))
		w.WriteHeader(http.StatusUnauthorized)
	default:
		m.serveVault(w, r)
	}
}

func (m *manager) serveEntra(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	base := m.srv.URL + "/" + tenant
	w.Header().Set("Content-Type", "application/json")
	if strings.HasSuffix(r.URL.Path, "/openid-configuration") {
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": base + "/v2.0", "jwks_uri": base + "/keys",
			"authorization_endpoint": base + "/oauth2/v2.0/authorize", "token_endpoint": base + "/oauth2/v2.0/token"})
		return
	}
	if m.refuse || r.PostFormValue("client_secret") != password || r.PostFormValue("client_id") != clientID {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"error":"invalid_client","error_codes":[7000215]}`)
		return
	}
	m.issued++
	token := fmt.Sprintf("token-%d", m.issued)
	m.tokens[token] = true
	_ = json.NewEncoder(w).Encode(map[string]any{"token_type": "Bearer", "expires_in": 3600, "ext_expires_in": 3600, "access_token": token})
}

// serveVault hands the request to Microsoft's code, which decodes it, calls
// us, and encodes what we return.
func (m *manager) serveVault(w http.ResponseWriter, r *http.Request) {
	api := "Client.GetSecret"
	switch {
	case r.Method == http.MethodPut:
		api = "Client.SetSecret"
	case strings.HasPrefix(r.URL.Path, "/deletedsecrets/"):
		api = "Client.GetDeletedSecret"
	case strings.Contains(r.URL.Path, "/versions"):
		api = "Client.NewListSecretPropertiesVersionsPager"
		// A pager that begins with a refusal would repeat it for ever.
		if status, code := m.mayList(strings.Split(r.URL.Path, "/")[2]); status != 0 {
			refuse(w, status, code)
			return
		}
	}
	in := r.Clone(context.WithValue(r.Context(), runtime.CtxAPINameKey{}, api))
	in.URL.Scheme, in.URL.Host = "https", r.Host
	resp, err := m.wire.Do(in)
	var refusal *azcore.ResponseError
	switch {
	case errors.As(err, &refusal):
		refuse(w, refusal.StatusCode, refusal.ErrorCode)
		return
	case err != nil:
		m.t.Error(err)
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": code, "message": providertest.Canary}})
}

func (m *manager) mayList(name string) (status int, code string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.status != 0:
		return m.status, m.code
	case m.secrets[name] == nil || m.deleted[name]:
		return http.StatusNotFound, "SecretNotFound"
	}
	return 0, ""
}

func (m *manager) find(name, version string) (*azsecrets.Secret, int, string) {
	all := m.secrets[name]
	switch {
	case m.status != 0:
		return nil, m.status, m.code
	case len(all) == 0 || m.deleted[name]:
		return nil, http.StatusNotFound, "SecretNotFound"
	case version == "":
		version = all[len(all)-1].ID.Version()
	}
	for _, s := range all {
		if s.ID.Version() != version {
			continue
		}
		if !*s.Attributes.Enabled {
			return nil, http.StatusForbidden, "SecretDisabled"
		}
		return s, 0, ""
	}
	return nil, http.StatusNotFound, "SecretNotFound"
}

func (m *manager) get(_ context.Context, name, version string, _ *azsecrets.GetSecretOptions) (resp azfake.Responder[azsecrets.GetSecretResponse], refusal azfake.ErrorResponder) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls.Values++
	s, status, code := m.find(name, version)
	if status != 0 {
		refusal.SetResponseError(status, code)
		return resp, refusal
	}
	resp.SetResponse(http.StatusOK, azsecrets.GetSecretResponse{Secret: *s}, nil)
	return resp, refusal
}

func (m *manager) set(_ context.Context, name string, in azsecrets.SetSecretParameters, _ *azsecrets.SetSecretOptions) (resp azfake.Responder[azsecrets.SetSecretResponse], refusal azfake.ErrorResponder) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.status != 0 {
		refusal.SetResponseError(m.status, m.code)
		return resp, refusal
	}
	resp.SetResponse(http.StatusOK, azsecrets.SetSecretResponse{Secret: *m.store(name, *in.Value)}, nil)
	return resp, refusal
}

func (m *manager) getDeleted(_ context.Context, name string, _ *azsecrets.GetDeletedSecretOptions) (resp azfake.Responder[azsecrets.GetDeletedSecretResponse], refusal azfake.ErrorResponder) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.deleted[name] {
		refusal.SetResponseError(http.StatusNotFound, "SecretNotFound")
		return resp, refusal
	}
	resp.SetResponse(http.StatusOK, azsecrets.GetDeletedSecretResponse{}, nil)
	return resp, refusal
}

// list gives pages of three, in an order that says nothing.
func (m *manager) list(name string, _ *azsecrets.ListSecretPropertiesVersionsOptions) (resp azfake.PagerResponder[azsecrets.ListSecretPropertiesVersionsResponse]) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls.Checks++
	var all []*azsecrets.SecretProperties
	for _, s := range m.secrets[name] {
		all = append(all, &azsecrets.SecretProperties{ID: s.ID, Attributes: s.Attributes})
	}
	slices.SortFunc(all, func(a, b *azsecrets.SecretProperties) int { return -cmp.Compare(*a.ID, *b.ID) })
	for page := range slices.Chunk(all, 3) {
		resp.AddPage(http.StatusOK, azsecrets.ListSecretPropertiesVersionsResponse{SecretPropertiesListResult: azsecrets.SecretPropertiesListResult{Value: page}}, nil)
	}
	return resp
}
