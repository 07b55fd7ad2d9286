package vault

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
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

// ticker is a clock that a test moves.
type ticker struct {
	mu  sync.Mutex
	now clock.Reading
}

func newTicker() *ticker { return &ticker{now: clock.System{}.Now()} }

func (c *ticker) Now() clock.Reading {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *ticker) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// fake speaks Vault's HTTP API as far as the adapter uses it, after Vault
// 1.21's own answers (the integration suite asks the real one).
type fake struct {
	srv *httptest.Server
	clk *ticker

	mu        sync.Mutex
	fault     providertest.Case // applies to every request
	namespace string            // every request must name it
	engines   map[string]*engine
	tokens    map[string]*token
	wraps     map[string]wrap
	logins    map[string]func(body map[string]string, r *http.Request) bool // by mount
	grant     token                                                         // what a login gives
	denied    map[string]bool                                               // paths that no policy allows
	broken    map[string]bool                                               // paths that answer 500
	hold      chan struct{}                                                 // logins wait for it
	calls     []string                                                      // METHOD path
	n         int

	secretIDEnd time.Time // zero: it never ends

	secretIDGone bool   // whoever is logged in stays so
	afterWrite   string // what another writer stores after each write to KV 1
}

type engine struct {
	v1      bool
	secrets map[string][]*version
}

type version struct {
	data      json.RawMessage
	created   time.Time
	deletion  time.Time
	destroyed bool
}

type token struct {
	ttl, max  time.Duration // max: of its whole life, 0: none
	renewable bool
	kind      string
	noDefault bool // may not look itself up
	from, end time.Time
}

type wrap struct{ path, secretID string }

const (
	roleID   = "role-7d1c"
	secretID = providertest.Canary + "-secret-id"
)

func newFake(t *testing.T) *fake {
	f := &fake{clk: newTicker(), engines: map[string]*engine{"secret": {secrets: map[string][]*version{}}},
		tokens: map[string]*token{}, wraps: map[string]wrap{}, denied: map[string]bool{}, broken: map[string]bool{},
		grant: token{ttl: time.Hour, renewable: true, kind: "service"}}
	f.logins = map[string]func(map[string]string, *http.Request) bool{
		"approle": func(b map[string]string, _ *http.Request) bool {
			return b["role_id"] == roleID && b["secret_id"] == secretID
		},
	}
	f.srv = httptest.NewUnstartedServer(f)
	f.srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	f.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.srv.StartTLS()
	t.Cleanup(f.srv.Close)
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	f.mu.Lock()
	f.calls = append(f.calls, r.Method+" "+path)
	fault, hold := f.fault, f.hold
	f.mu.Unlock()
	switch fault {
	case providertest.Hangs:
		_, _ = io.Copy(io.Discard, r.Body) // else the server does not see the end
		<-r.Context().Done()
		return
	case providertest.Garbage:
		_, _ = io.WriteString(w, "<html>"+providertest.Canary+"</html>")
		return
	case providertest.Throttled:
		w.Header().Set("Retry-After", "7")
		reply(w, 429, "request path \"x\": rate limit quota exceeded")
		return
	case providertest.ServerError:
		reply(w, 503, "Vault is sealed")
		return
	default:
	}
	var body map[string]any
	if r.Method == http.MethodPut {
		raw, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(raw, &body) != nil {
			reply(w, 400, "failed to parse JSON input")
			return
		}
	}
	if hold != nil && strings.HasSuffix(path, "/login") {
		<-hold
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.broken[path]:
		reply(w, 500, "internal error")
	case r.Header.Get("X-Vault-Request") != "true":
		reply(w, 412, "missing 'X-Vault-Request' header")
	case r.Header.Get("X-Vault-Namespace") != f.namespace || r.Header.Get("X-Vault-Wrap-TTL") != "" || r.Header.Get("X-Test") != "":
		reply(w, 404, "no handler for route")
	case strings.HasPrefix(path, "auth/") && strings.HasSuffix(path, "/login"):
		f.login(w, r, strings.TrimSuffix(strings.TrimPrefix(path, "auth/"), "/login"), body)
	case path == "sys/wrapping/lookup":
		f.wrapping(w, str(body["token"]), false)
	case path == "sys/wrapping/unwrap":
		f.wrapping(w, r.Header.Get("X-Vault-Token"), true)
	default:
		f.authenticated(w, r, path, body)
	}
}

func str(v any) string { s, _ := v.(string); return s }

func reply(w http.ResponseWriter, status int, errs ...string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if errs == nil {
		errs = []string{}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": errs})
}

func give(w http.ResponseWriter, status int, key string, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"request_id": "b1", "lease_id": "", "renewable": false,
		"lease_duration": 0, "data": nil, "wrap_info": nil, "warnings": nil, "auth": nil, key: v})
}

func (f *fake) login(w http.ResponseWriter, r *http.Request, mount string, body map[string]any) {
	fields := map[string]string{}
	for k, v := range body {
		fields[k] = str(v)
	}
	method, ok := f.logins[mount]
	switch {
	case !ok || r.Header.Get("X-Vault-Token") != "":
		reply(w, 403, "permission denied")
	case f.fault == providertest.LoginRefused || !method(fields, r):
		reply(w, 400, "invalid role or secret ID "+fields["secret_id"])
	default:
		f.n++
		id := fmt.Sprintf("hvs.%s-%d", providertest.Canary, f.n)
		f.tokens[id] = f.newToken()
		f.auth(w, id)
	}
}

func (f *fake) newToken() *token {
	k, now := f.grant, f.clk.Now().Wall
	k.from = now
	if k.ttl != 0 {
		k.end = now.Add(k.ttl)
	}
	return &k
}

func (f *fake) auth(w http.ResponseWriter, id string) {
	k := f.tokens[id]
	left := time.Duration(0)
	if !k.end.IsZero() {
		left = k.end.Sub(f.clk.Now().Wall)
	}
	give(w, 200, "auth", map[string]any{"client_token": id, "accessor": "acc", "policies": []string{"default"},
		"lease_duration": int(left.Seconds()), "renewable": k.renewable, "token_type": k.kind})
}

func (f *fake) wrapping(w http.ResponseWriter, id string, use bool) {
	k, ok := f.wraps[id]
	switch {
	case !ok:
		reply(w, 400, "wrapping token is not valid or does not exist")
	case use:
		delete(f.wraps, id)
		give(w, 200, "data", map[string]any{"secret_id": k.secretID, "secret_id_accessor": "x"})
	default:
		give(w, 200, "data", map[string]any{"creation_path": k.path, "creation_ttl": 120})
	}
}

func (f *fake) authenticated(w http.ResponseWriter, r *http.Request, path string, body map[string]any) {
	id, now := r.Header.Get("X-Vault-Token"), f.clk.Now().Wall
	k := f.tokens[id]
	if k == nil || !k.end.IsZero() && !now.Before(k.end) {
		reply(w, 403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")
		return
	}
	own := strings.HasPrefix(path, "auth/token/")
	if f.denied[path] || own && k.noDefault {
		reply(w, 403, "1 error occurred:\n\t* permission denied\n\n")
		return
	}
	switch path {
	case "auth/token/lookup-self":
		me := map[string]any{"id": id, "ttl": int(max(0, k.end.Sub(now).Seconds())), "renewable": k.renewable, "creation_time": k.from.Unix(),
			"explicit_max_ttl": int(k.max.Seconds()), "expire_time": nil, "meta": map[string]any{"role_name": "hosts"}}
		if !k.end.IsZero() {
			me["expire_time"] = k.end.UTC().Format(time.RFC3339Nano)
		}
		give(w, 200, "data", me)
	case "auth/approle/role/hosts/secret-id/lookup":
		switch {
		case r.Method != http.MethodPut || str(body["secret_id"]) == "":
			reply(w, 400, "missing secret_id")
		case str(body["secret_id"]) != secretID || f.secretIDGone:
			w.WriteHeader(http.StatusNoContent)
		default:
			give(w, 200, "data", map[string]any{"expiration_time": f.secretIDEnd, "secret_id_num_uses": 0})
		}
	case "auth/token/renew-self":
		if !k.renewable {
			reply(w, 400, "lease is not renewable")
			return
		}
		if k.end = now.Add(k.ttl); k.max != 0 && k.end.After(k.from.Add(k.max)) {
			k.end = k.from.Add(k.max)
		}
		f.auth(w, id)
	case "auth/token/revoke-self":
		delete(f.tokens, id)
		w.WriteHeader(http.StatusNoContent)
	default:
		f.secret(w, r, path, body)
	}
}

func (f *fake) secret(w http.ResponseWriter, r *http.Request, path string, body map[string]any) {
	mount, rest, _ := strings.Cut(path, "/")
	e := f.engines[mount]
	kind, name, _ := strings.Cut(rest, "/")
	switch {
	case e == nil:
		reply(w, 404, fmt.Sprintf("no handler for route %q. route entry not found.", path))
	case e.v1 && r.Method == http.MethodGet:
		if vs := e.secrets[rest]; len(vs) > 0 {
			give(w, 200, "data", vs[len(vs)-1].data)
			return
		}
		reply(w, 404)
	case e.v1:
		raw, _ := json.Marshal(body)
		f.add(e, rest, raw)
		if f.afterWrite != "" {
			f.add(e, rest, json.RawMessage(f.afterWrite))
		}
		w.WriteHeader(http.StatusNoContent)
	case kind == "data" && r.Method == http.MethodGet:
		f.data(w, e.secrets[name], r.URL.Query().Get("version"))
	case kind == "data":
		f.write(w, e, name, body)
	case kind == "metadata":
		f.metadata(w, e.secrets[name])
	default:
		reply(w, 404)
	}
}

func (f *fake) add(e *engine, name string, raw json.RawMessage) int {
	e.secrets[name] = append(e.secrets[name], &version{data: raw, created: f.clk.Now().Wall})
	return len(e.secrets[name])
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func (f *fake) data(w http.ResponseWriter, vs []*version, want string) {
	n, _ := strconv.Atoi(want)
	if n == 0 {
		n = len(vs)
	}
	if n == 0 || n > len(vs) {
		reply(w, 404)
		return
	}
	v := vs[n-1]
	meta := map[string]any{"version": n, "created_time": stamp(v.created), "deletion_time": stamp(v.deletion),
		"destroyed": v.destroyed, "custom_metadata": nil}
	gone := v.destroyed || !v.deletion.IsZero() && !f.clk.Now().Wall.Before(v.deletion)
	if gone {
		give(w, 404, "data", map[string]any{"data": nil, "metadata": meta})
		return
	}
	give(w, 200, "data", map[string]any{"data": v.data, "metadata": meta})
}

func (f *fake) metadata(w http.ResponseWriter, vs []*version) {
	if len(vs) == 0 {
		reply(w, 404)
		return
	}
	all := map[string]any{}
	for i, v := range vs {
		all[strconv.Itoa(i+1)] = map[string]any{"created_time": stamp(v.created), "deletion_time": stamp(v.deletion), "destroyed": v.destroyed}
	}
	give(w, 200, "data", map[string]any{"current_version": len(vs), "oldest_version": 0, "versions": all})
}

func (f *fake) write(w http.ResponseWriter, e *engine, name string, body map[string]any) {
	options, _ := body["options"].(map[string]any)
	if cas, ok := options["cas"].(float64); ok && int(cas) != len(e.secrets[name]) {
		reply(w, 400, "check-and-set parameter did not match the current version")
		return
	}
	raw, _ := json.Marshal(body["data"])
	n := f.add(e, name, raw)
	give(w, 200, "data", map[string]any{"version": n, "created_time": stamp(f.clk.Now().Wall)})
}

// count says how many calls started with prefix since the last count of all.
func (f *fake) count(prefix string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.calls {
		if strings.HasPrefix(c, prefix) {
			n++
		}
	}
	return n
}

func (f *fake) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

func (f *fake) set(name, raw string) {
	f.change(func() {
		var compact bytes.Buffer
		if json.Compact(&compact, []byte(raw)) != nil {
			panic("the fake keeps JSON only")
		}
		f.add(f.engines["secret"], name, compact.Bytes())
	})
}

// manager lets the conformance suite have a fake.
type manager struct {
	*fake
	t *testing.T
}

func newManager(t *testing.T) *manager { return &manager{newFake(t), t} }

func (m *manager) Open(t *testing.T, o providertest.Options) providers.Provider {
	c := m.config(t)
	if o.Outbound != nil {
		c.Config = *o.Outbound
	}
	return open(t, c, m.clk)
}

// config is of a provider that logs in by AppRole.
func (f *fake) config(t *testing.T) Config {
	c := Config{Address: f.srv.URL, Config: outbound.Config{CAFile: providertest.CAFileOf(t, f.srv)}}
	c.Auth.AppRole = &AppRole{RoleIDFile: file(t, roleID), SecretIDFile: file(t, secretID+"\n")}
	if f.engines["secret"].v1 {
		c.KV = 1
	}
	return c
}

func file(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func open(t *testing.T, c Config, clk clock.Clock) providers.Provider {
	t.Helper()
	p, err := Open(c, clk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func (m *manager) Ref(name string) providers.Ref { return providers.Ref{Path: "team/" + name} }

func (m *manager) Set(_ *testing.T, name string, payload []byte) {
	m.set("team/"+name, string(payload))
}

func (m *manager) Fault(t *testing.T, c providertest.Case, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	secrets := m.engines["secret"].secrets
	name = "team/" + name
	switch c {
	case providertest.Absent:
		delete(secrets, name)
	case providertest.AbsentMount:
		delete(m.engines, "secret")
	case providertest.Denied:
		for _, p := range []string{"secret/" + name, "secret/data/" + name, "secret/metadata/" + name} {
			m.denied[p] = true
		}
	case providertest.SoftDeleted:
		secrets[name][len(secrets[name])-1].deletion = m.clk.Now().Wall
	case providertest.Destroyed:
		secrets[name][len(secrets[name])-1].destroyed = true
	case providertest.LoginExpired:
		clear(m.tokens)
	case providertest.LoginRefused:
		clear(m.tokens)
		m.fault = c
	case providertest.Down:
		go m.srv.Close()
		m.srv.Listener.Close()
	case providertest.Throttled, providertest.ServerError, providertest.Hangs, providertest.Garbage:
		m.fault = c
	default:
		t.Fatalf("no fault %q here", c)
	}
}

func (m *manager) Calls() providertest.Calls {
	if m.engines["secret"].v1 {
		return providertest.Calls{Values: m.count("GET secret/")}
	}
	return providertest.Calls{Values: m.count("GET secret/data/"), Checks: m.count("GET secret/metadata/")}
}

func (m *manager) CA() string   { return providertest.CAFileOf(m.t, m.srv) }
func (m *manager) Addr() string { return providertest.HostPort(m.t, m.srv.URL) }

var lacks = providertest.Lacks{
	providertest.Disabled:    "a version of Vault's is there, deleted or destroyed",
	providertest.Expired:     "a version past delete_version_after is deleted",
	providertest.NotYetValid: "Vault knows no start of validity",
	providertest.Binary:      "a secret of Vault's is a JSON object",
	providertest.NotJSON:     "a secret of Vault's is a JSON object",
}

func TestConformance(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Manager { return newManager(t) }, lacks)
}

func TestConformanceKV1(t *testing.T) {
	lacks1 := providertest.Lacks{
		providertest.SoftDeleted: "KV version 1 forgets what is deleted",
		providertest.Destroyed:   "KV version 1 forgets what is deleted",
		providertest.CheapCheck:  "KV version 1 has no metadata",
		providertest.Pinned:      "KV version 1 has no versions",
	}
	for c, why := range lacks {
		lacks1[c] = why
	}
	providertest.Run(t, func(t *testing.T) providertest.Manager {
		m := newManager(t)
		m.engines["secret"].v1 = true
		return m
	}, lacks1)
}

// unixProxy is an Agent's listener; it adds a token of its own, unless id is empty.
func (f *fake) unixProxy(t *testing.T, id string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "v") // short: a socket's path is limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id != "" && r.Header.Get("X-Vault-Token") == "" {
			r.Header.Set("X-Vault-Token", id)
		}
		f.ServeHTTP(w, r)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return "unix://" + l.Addr().String()
}
