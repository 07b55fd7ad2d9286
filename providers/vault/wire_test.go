package vault

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

func TestValidate(t *testing.T) {
	good := Config{Address: "https://vault.example:8200", Auth: Auth{TokenFile: "t"}}
	for _, c := range []struct {
		change func(*Config)
		want   string // empty: valid
	}{
		{func(*Config) {}, ""},
		{func(c *Config) { c.Address = "http://127.0.0.1:8100" }, ""},
		{func(c *Config) { c.Address = "http://[::1]:8100" }, ""},
		{func(c *Config) { c.Address = "http://localhost" }, ""},
		{func(c *Config) { c.Address, c.Auth = "unix:///run/agent.sock", Auth{Agent: true} }, ""},
		{func(c *Config) { c.KV, c.Namespace = 1, "team/a" }, ""},
		{func(c *Config) { c.Auth = Auth{Kubernetes: &JWT{Role: "r"}} }, ""},
		{func(c *Config) { c.Address = "" }, "address: missing"},
		{func(c *Config) { c.Address = "http://vault.example" }, "address: http://"},
		{func(c *Config) { c.Address = "https://user:pw@vault.example" }, "address: want https://host:port, without user"},
		{func(c *Config) { c.Address = "vault.example:8200" }, "address: "},
		{func(c *Config) { c.Address = "https://" }, "address: names no host"},
		{func(c *Config) { c.Address = "https://a b\x7f" }, "address: not a URL"},
		{func(c *Config) { c.Address = "ftp://vault.example" }, "address: want https"},
		{func(c *Config) { c.Address = "unix://agent.sock" }, "address: want unix:///"},
		{func(c *Config) { c.Address, c.Proxy = "unix:///s", "http://p:1" }, "do not apply to a Unix socket"},
		{func(c *Config) { c.KV = 3 }, "kv: want 1 or 2"},
		{func(c *Config) { c.Namespace = "a\nb" }, "namespace: "},
		{func(c *Config) { c.Proxy = "socks5://x" }, "proxy: want"},
		{func(c *Config) { c.Auth = Auth{} }, "auth: want exactly one"},
		{func(c *Config) { c.Auth.Agent = true }, "auth: want exactly one"},
		{func(c *Config) { c.Auth = Auth{AppRole: &AppRole{Wrapped: true}} }, "auth.approle.role_id_file: missing\nauth.approle.secret_id_file: missing"},
		{func(c *Config) { c.Auth = Auth{Kubernetes: &JWT{}} }, "auth.kubernetes.role: missing"},
		{func(c *Config) { c.Auth = Auth{JWT: &JWT{}} }, "auth.jwt.token_file: missing"},
		{func(c *Config) { c.Auth = Auth{Cert: &Cert{}} }, "auth.cert.cert_file: missing\nauth.cert.key_file: missing"},
		{func(c *Config) { c.Auth = Auth{JWT: &JWT{TokenFile: "t", Mount: "../sys"}} }, "auth: mount"},
		{func(c *Config) { c.Address, c.Auth = "unix:///s", Auth{Cert: &Cert{CertFile: "c", KeyFile: "k"}} }, "auth.cert: needs an https"},
	} {
		conf := good
		c.change(&conf)
		err := conf.Validate()
		if got := errText(err); c.want == "" && err != nil || !strings.Contains(got, c.want) || strings.Contains(got, "pw") {
			t.Errorf("%+v: %q, want %q", conf, got, c.want)
		}
		if _, openErr := Open(conf, clock.System{}); (openErr == nil) != (err == nil) {
			t.Errorf("Open: %v", openErr)
		}
	}
	files := Auth{Kubernetes: &JWT{Role: "r"}}.files()
	if !slices.Equal(files, []string{podToken}) {
		t.Errorf("a pod's token is looked for in %v", files)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestEnvironmentIsIgnored(t *testing.T) {
	f := newFake(t)
	f.set("app", "{}")
	var reached bool
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer other.Close()
	conf := f.config(t)
	conf.CAFile = ""
	for k, v := range map[string]string{"VAULT_ADDR": other.URL, "VAULT_AGENT_ADDR": other.URL, "VAULT_TOKEN": "env-token\x7f",
		"VAULT_NAMESPACE": "env", "VAULT_SKIP_VERIFY": "true", "VAULT_WRAP_TTL": "60s", "VAULT_PROXY_ADDR": other.URL,
		"VAULT_HTTP_PROXY": other.URL, "HTTPS_PROXY": other.URL, "VAULT_HEADERS": `{"X-Test":"env"}`, "VAULT_MAX_RETRIES": "5",
		"VAULT_SRV_LOOKUP": "true", "VAULT_RATE_LIMIT": "0.001:1", "VAULT_CLIENT_TIMEOUT": "1ns", "VAULT_CACERT": caFile(t, f)} {
		t.Setenv(k, v)
	}
	untrusting := open(t, conf, f.clk)
	_, err := untrusting.Fetch(t.Context(), app, "")
	wantKind(t, err, providers.Unavailable, "is not trusted (set ca_file")
	p := open(t, f.config(t), f.clk)
	mustFetch(t, p) // the fake refuses any foreign namespace, header or wrapping
	f.change(func() { f.fault = providertest.ServerError })
	n := f.count("")
	_, err = p.Fetch(t.Context(), app, "")
	wantKind(t, err, providers.Unavailable, "sealed")
	if got := f.count("") - n; got != 1 {
		t.Errorf("%d requests for one call", got)
	}
	if reached {
		t.Error("the environment's address or proxy was used")
	}
}

func caFile(t *testing.T, f *fake) string { return providertest.CAFileOf(t, f.srv) }

// The SDK reads its variables before it looks at what it is given.
func TestUnreadableEnvironment(t *testing.T) {
	f := newFake(t)
	for k, v := range map[string]string{"VAULT_SKIP_VERIFY": "perhaps", "VAULT_HEADERS": `{"a":` + providertest.Canary} {
		t.Setenv(k, v)
		_, err := Open(f.config(t), f.clk)
		if err == nil || !strings.Contains(err.Error(), k) || strings.Contains(err.Error(), providertest.Canary) || strings.Contains(err.Error(), "perhaps") {
			t.Errorf("%v", err)
		}
		if err := os.Unsetenv(k); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAgentSocket(t *testing.T) {
	f := newFake(t)
	f.set("app", `{"a":"b"}`)
	f.tokens["agent"] = f.newToken()
	c := Config{Address: f.unixProxy(t, "agent"), Auth: Auth{Agent: true}}
	p := open(t, c, f.clk)
	mustFetch(t, p)
	if got := p.(providers.Egress).Endpoints(); len(got) != 0 {
		t.Errorf("endpoints %v of a socket", got)
	}
	f.change(func() { f.denied["secret/data/app"] = true })
	_, err := p.Fetch(t.Context(), app, "")
	wantKind(t, err, providers.Denied, "policy of the token")
	_ = p.Close()
	f.want(t, map[string]int{read: 2, "": 2}) // nothing about tokens
	_, err = p.Fetch(t.Context(), app, "")
	wantKind(t, err, providers.Unavailable, "closed")

	f.change(func() { clear(f.denied) })
	passing := Config{Address: f.unixProxy(t, ""), Auth: f.config(t).Auth} // a Proxy that adds no token
	mustFetch(t, open(t, passing, f.clk))
	f.want(t, map[string]int{login: 1})

	gone := open(t, Config{Address: "unix:///nowhere/agent.sock", Auth: Auth{Agent: true}}, f.clk)
	_, err = gone.Fetch(t.Context(), app, "")
	wantKind(t, err, providers.Unavailable, "there is no socket /nowhere/agent.sock")
}

func TestNamespace(t *testing.T) {
	f := newFake(t)
	f.set("app", "{}")
	f.namespace = "team/a"
	c := f.config(t)
	c.Namespace = "/team/a/"
	mustFetch(t, open(t, c, f.clk)) // login included
	c.Namespace = ""
	_, err := open(t, c, f.clk).Fetch(t.Context(), app, "")
	wantKind(t, err, providers.LoginFailed, "")
}

// A standby node may send its callers elsewhere: the token does not go there.
func TestRedirectIsNotFollowed(t *testing.T) {
	f, p := started(t)
	mustFetch(t, p)
	var reached bool
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer other.Close()
	f.srv.Config.Handler = http.RedirectHandler(other.URL, http.StatusTemporaryRedirect)
	_, err := p.Fetch(t.Context(), app, "")
	wantKind(t, err, providers.Unavailable, "active node")
	if reached {
		t.Error("redirected")
	}
}

func TestEndpoints(t *testing.T) {
	for address, want := range map[string]string{"https://vault.example:8200": "vault.example:8200", "https://vault.example": "vault.example:443",
		"http://[::1]": "[::1]:80"} {
		p := open(t, Config{Address: address, Auth: Auth{TokenFile: "t"}}, newTicker())
		if got := p.(providers.Egress).Endpoints(); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v", address, got)
		}
	}
}

func TestUnreachable(t *testing.T) {
	f := newFake(t)
	c := f.config(t)
	for _, k := range []struct{ address, proxy, says string }{
		{"https://127.0.0.1:1", "", "nothing listens on 127.0.0.1:1"},
		{"https://vault.invalid:8200", "", "vault.invalid:8200"},
		{"https://localhost:" + strings.Split(f.srv.URL, ":")[2], "", "is for another name"},
		{f.srv.URL, "http://127.0.0.1:1", "through the proxy"},
	} {
		c.Address, c.Proxy = k.address, k.proxy
		_, err := open(t, c, f.clk).Fetch(t.Context(), app, "")
		wantKind(t, err, providers.Unavailable, k.says)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for v, want := range map[string]time.Duration{"": 0, "7": 7 * time.Second, "-1": 0, "x": 0, "65000": time.Hour,
		"Fri, 02 Jan 2026 03:04:35 GMT": 30 * time.Second, "Fri, 02 Jan 2026 03:04:00 GMT": 0} {
		if got := retryAfter(http.Header{"Retry-After": {v}}, now); got != want {
			t.Errorf("%q: %v, want %v", v, got, want)
		}
	}
	f, p := started(t)
	f.fault = providertest.Throttled
	_, err := p.Fetch(t.Context(), app, "")
	if e := wantKind(t, err, providers.Throttled, ""); e.RetryAfter != 7*time.Second {
		t.Errorf("retry after %v", e.RetryAfter)
	}
}

// A body that was sent can be wiped once its answer is closed, whatever
// net/http still does with it.
func TestSentBodyIsTakenBack(t *testing.T) {
	var sent io.ReadCloser
	w := wire{roundTrip(func(r *http.Request) (*http.Response, error) {
		sent = r.Body
		if r.GetBody != nil {
			t.Error("can be sent again")
		}
		return &http.Response{Body: io.NopCloser(strings.NewReader("x"))}, nil
	})}
	do := func() *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://x/", bytes.NewReader([]byte("secret")))
		if err != nil {
			t.Fatal(err)
		}
		resp, _ := w.RoundTrip(r)
		return resp
	}
	resp := do()
	if n, err := sent.Read(make([]byte, 3)); n != 3 || err != nil {
		t.Errorf("before: %d, %v", n, err)
	}
	resp.Body.Close()
	if n, err := sent.Read(make([]byte, 3)); n != 0 || !errors.Is(err, os.ErrClosed) {
		t.Errorf("after the answer: %d, %v", n, err)
	}
	w.next = roundTrip(func(r *http.Request) (*http.Response, error) { sent = r.Body; return nil, errors.New("reset") })
	do()
	if _, err := sent.Read(make([]byte, 3)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after a failure: %v", err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Answers longer than a buffer arrive whole, broken ones not at all.
func TestReadAll(t *testing.T) {
	r, w := io.Pipe()
	go func() {
		for range 20 {
			_, _ = w.Write(bytes.Repeat([]byte("s"), 1000))
		}
		_ = w.CloseWithError(errors.New("reset"))
	}()
	if got, err := readAll(r); err == nil || got != nil {
		t.Errorf("%d bytes of a broken answer", len(got))
	}
	if got, err := readAll(strings.NewReader(strings.Repeat("s", 20000))); err != nil || len(got) != 20000 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
