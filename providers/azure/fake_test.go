package azure

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

const (
	fakeTenant = "11111111-2222-3333-4444-555555555555"
	fakeClient = "broker-app"
	fakeSecret = "login-" + providertest.Canary
)

// fake is a Key Vault and Entra ID at the wire, over TLS.
type fake struct {
	t   *testing.T
	srv *httptest.Server
	ca  string
	// check accepts or refuses a token request; nil: the client secret.
	check func(r *http.Request) bool

	mu      sync.Mutex
	now     int64
	secrets map[string][]*fakeVersion // oldest first
	deleted map[string]bool
	tokens  map[string]bool
	issued  int
	fault   providertest.Case
	refuse  func(r *http.Request) *fakeError // nil result: goes on
	calls   providertest.Calls
	allowed []string // data actions of the role; nil: all
	lax     bool     // hands out disabled versions
	after   func()   // runs once, after the next PUT
}

type fakeVersion struct {
	id         string
	value      string
	enabled    bool
	created    int64
	nbf, exp   int64
	contentTyp string
}

type fakeError struct {
	status      int
	code, inner string
	header      http.Header
}

func newFake(t *testing.T) *fake {
	for _, kv := range os.Environ() {
		k, _, _ := strings.Cut(kv, "=")
		for _, p := range []string{"AZURE_", "IDENTITY_", "MSI_", "IMDS_"} {
			if strings.HasPrefix(k, p) {
				t.Setenv(k, "") // so that it is restored
				os.Unsetenv(k)
			}
		}
	}
	f := &fake{t: t, now: 1_700_000_000, secrets: map[string][]*fakeVersion{}, deleted: map[string]bool{}, tokens: map[string]bool{}}
	f.srv = httptest.NewTLSServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.srv.Close)
	f.ca = providertest.CAFileOf(t, f.srv)
	return f
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func (f *fake) config() Config {
	return Config{VaultURL: f.srv.URL, Authority: f.srv.URL, Config: outbound.Config{CAFile: f.ca}}
}

func (f *fake) open(t *testing.T, c Config) *provider {
	t.Helper()
	p, err := Open(c, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p.(*provider)
}

// Open implements providertest.Manager.
func (f *fake) Open(t *testing.T, o providertest.Options) providers.Provider {
	c := f.config()
	c.Auth.ClientSecret = &clientSecret{TenantID: fakeTenant, ClientID: fakeClient, ClientSecretFile: write(t, "secret", fakeSecret+"\n")}
	if o.Outbound != nil {
		c.Config = *o.Outbound
	}
	return f.open(t, c)
}

func (f *fake) Ref(name string) providers.Ref { return providers.Ref{Path: name} }
func (f *fake) CA() string                    { return f.ca }
func (f *fake) Addr() string                  { return providertest.HostPort(f.t, f.srv.URL) }

func (f *fake) Calls() providertest.Calls {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

func (f *fake) Set(_ *testing.T, name string, payload []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now++
	f.store(name, string(payload))
}

func (f *fake) store(name, value string) *fakeVersion {
	v := &fakeVersion{id: fmt.Sprintf("%032x", len(f.secrets[name])+1), value: value, enabled: true, created: f.now}
	f.secrets[name] = append(f.secrets[name], v)
	return v
}

func (f *fake) newest(name string) *fakeVersion { return f.secrets[name][len(f.secrets[name])-1] }

func (f *fake) Fault(_ *testing.T, c providertest.Case, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	always := func(e fakeError) { f.refuse = func(*http.Request) *fakeError { return &e } }
	switch c {
	case providertest.Absent, providertest.Destroyed:
		delete(f.secrets, name)
	case providertest.SoftDeleted:
		f.deleted[name] = true
	case providertest.Disabled:
		f.newest(name).enabled = false
	case providertest.Expired:
		f.newest(name).exp = time.Now().Unix() - 1
	case providertest.NotYetValid:
		f.newest(name).nbf = time.Now().Unix() + 3600
	case providertest.Denied:
		always(fakeError{status: 403, code: "Forbidden", inner: "ForbiddenByRbac"})
	case providertest.Throttled:
		always(fakeError{status: 429, code: "Throttled", header: http.Header{"Retry-After": {"7"}}})
	case providertest.ServerError:
		always(fakeError{status: 503, code: "ServiceUnavailable"})
	case providertest.LoginExpired:
		clear(f.tokens)
	case providertest.LoginRefused:
		clear(f.tokens)
		f.check = func(*http.Request) bool { return false }
	case providertest.Down:
		f.srv.Listener.Close()
		f.srv.CloseClientConnections()
	default:
		f.fault = c
	}
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	f.mu.Lock()
	fault := f.fault
	f.mu.Unlock()
	switch fault {
	case providertest.Hangs:
		<-r.Context().Done()
		return
	case providertest.Garbage:
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<html>hello, I am a proxy</html>")
		return
	default:
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if parts[0] != "secrets" && parts[0] != "deletedsecrets" {
		f.serveEntra(w, r)
		return
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || !f.tokens[token] {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer authorization="%s/%s", resource="https://vault.azure.net"`, f.srv.URL, fakeTenant))
		reply(w, fakeError{status: 401, code: "Unauthorized"})
		if len(body) > 0 && !ok {
			f.t.Error("a body was sent without a token")
		}
		return
	}
	if r.URL.Query().Get("api-version") == "" || !r.Close {
		f.t.Errorf("%s: no api-version, or a connection that stays", r.URL)
	}
	if f.refuse != nil {
		if e := f.refuse(r); e != nil {
			reply(w, *e)
			return
		}
	}
	if f.allowed != nil && !slices.Contains(f.allowed, "Microsoft.KeyVault/vaults/secrets/"+action(r.Method, parts)) {
		reply(w, fakeError{status: 403, code: "Forbidden", inner: "ForbiddenByRbac"})
		return
	}
	f.serveVault(w, r, parts, body)
}

// action is the data action that a call takes, as Azure's page of operations
// of Microsoft.KeyVault has it.
func action(method string, parts []string) string {
	switch {
	case method == http.MethodPut:
		return "setSecret/action"
	case parts[0] == "deletedsecrets", len(parts) == 3 && parts[2] == "versions":
		return "readMetadata/action"
	}
	return "getSecret/action"
}

func (f *fake) serveEntra(w http.ResponseWriter, r *http.Request) {
	switch base := f.srv.URL + "/" + fakeTenant; r.URL.Path {
	case "/" + fakeTenant + "/v2.0/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": base + "/v2.0",
			"authorization_endpoint": base + "/oauth2/v2.0/authorize", "token_endpoint": base + "/oauth2/v2.0/token"})
	case "/" + fakeTenant + "/oauth2/v2.0/token":
		check := f.check
		if check == nil {
			check = func(r *http.Request) bool { return r.PostForm.Get("client_secret") == fakeSecret }
		}
		if err := r.ParseForm(); err != nil || !check(r) || r.PostForm.Get("scope") == "" || r.PostForm.Get("client_id") != fakeClient {
			w.WriteHeader(http.StatusUnauthorized)
			_ = json.NewEncoder(w).Encode(map[string]any{"error": "invalid_client", "error_codes": []int{7000215},
				"error_description": "AADSTS7000215: about " + providertest.Canary + "\r\nTrace"})
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"token_type": "Bearer", "expires_in": 3600, "access_token": f.newToken()})
	default:
		http.NotFound(w, r)
	}
}

func (f *fake) newToken() string {
	f.issued++
	token := fmt.Sprintf("token-%d-%s", f.issued, f.srv.Listener.Addr()) // managed identities are cached across tests
	f.tokens[token] = true
	return token
}

func reply(w http.ResponseWriter, e fakeError) {
	for k, v := range e.header {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(e.status)
	out := map[string]any{"code": e.code, "message": "about " + providertest.Canary}
	if e.inner != "" {
		out["innererror"] = map[string]string{"code": e.inner}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"error": out})
}

func (f *fake) serveVault(w http.ResponseWriter, r *http.Request, parts []string, body []byte) {
	name := parts[1]
	versions, there := f.secrets[name]
	switch {
	case parts[0] == "deletedsecrets" && f.deleted[name]:
		_ = json.NewEncoder(w).Encode(map[string]any{"recoveryId": "x", "id": f.srv.URL + "/secrets/" + name + "/1"})
	case parts[0] == "deletedsecrets":
		reply(w, fakeError{status: 404, code: "SecretNotFound"})
	case r.Method == http.MethodPut && f.deleted[name]:
		reply(w, fakeError{status: 409, code: "Conflict", inner: "ObjectIsDeletedButRecoverable"})
	case r.Method == http.MethodPut:
		f.put(w, name, body)
	case !there || f.deleted[name]:
		reply(w, fakeError{status: 404, code: "SecretNotFound"})
	case len(parts) == 3 && parts[2] == "versions":
		f.list(w, r, name, versions)
	default:
		f.get(w, name, parts, versions)
	}
}

func (f *fake) put(w http.ResponseWriter, name string, body []byte) {
	var in struct{ Value, ContentType string }
	if err := json.Unmarshal(body, &in); err != nil {
		f.t.Error(err)
	}
	f.now++
	v := f.store(name, in.Value)
	v.contentTyp = in.ContentType
	if a := f.after; a != nil {
		f.after = nil
		a()
	}
	f.write(w, name, v, true)
}

func (f *fake) write(w http.ResponseWriter, name string, v *fakeVersion, withValue bool) {
	out := f.item(name, v)
	if withValue {
		out["value"] = v.value
	}
	_ = json.NewEncoder(w).Encode(out)
}

func (f *fake) item(name string, v *fakeVersion) map[string]any {
	attr := map[string]any{"enabled": v.enabled, "created": v.created, "updated": v.created, "recoveryLevel": "Recoverable"}
	if v.nbf != 0 {
		attr["nbf"] = v.nbf
	}
	if v.exp != 0 {
		attr["exp"] = v.exp
	}
	return map[string]any{"id": f.srv.URL + "/secrets/" + name + "/" + v.id, "attributes": attr}
}

const pageSize = 2

// list gives a page, in an order that says nothing.
func (f *fake) list(w http.ResponseWriter, r *http.Request, name string, versions []*fakeVersion) {
	skip, _ := strconv.Atoi(r.URL.Query().Get("$skiptoken"))
	if skip == 0 {
		f.calls.Checks++
	}
	shuffled := slices.Clone(versions)
	slices.Reverse(shuffled)
	slices.SortStableFunc(shuffled, func(a, b *fakeVersion) int { return int(a.id[31]%3) - int(b.id[31]%3) })
	out := map[string]any{"nextLink": nil}
	var items []any
	for i := skip; i < min(skip+pageSize, len(shuffled)); i++ {
		items = append(items, f.item(name, shuffled[i]))
	}
	if skip+pageSize < len(shuffled) {
		out["nextLink"] = fmt.Sprintf("%s/secrets/%s/versions?api-version=7.5&$skiptoken=%d", f.srv.URL, name, skip+pageSize)
	}
	out["value"] = items
	_ = json.NewEncoder(w).Encode(out)
}

func (f *fake) get(w http.ResponseWriter, name string, parts []string, versions []*fakeVersion) {
	f.calls.Values++
	v := versions[len(versions)-1]
	if len(parts) == 3 {
		i := slices.IndexFunc(versions, func(v *fakeVersion) bool { return v.id == parts[2] })
		if i < 0 {
			reply(w, fakeError{status: 404, code: "SecretNotFound"})
			return
		}
		v = versions[i]
	}
	if !v.enabled && !f.lax {
		reply(w, fakeError{status: 403, code: "Forbidden", inner: "SecretDisabled"})
		return
	}
	f.write(w, name, v, true)
}
