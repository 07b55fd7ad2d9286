package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/fake"
)

// echo answers with the request that arrived, but for Authorization.
func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	auth := r.Header["Authorization"]
	w.Header().Set("Seen-Bearer", fmt.Sprint(len(auth) == 1 && strings.HasPrefix(auth[0], "Bearer ")))
	r.Header.Del("Authorization")
	fmt.Fprintf(w, "%s %s %s %s\n", r.Method, r.RequestURI, r.Host, body)
	for name, values := range r.Header {
		fmt.Fprintf(w, "%s: %q\n", name, values)
	}
}

func TestAddsHeaders(t *testing.T) {
	for name, speaks := range map[string][]func(*httptest.Server){"HTTP/1.1": nil, "HTTP/2.0": {http2}} {
		w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Seen-Proto", r.Proto)
			echo(w, r)
		}), nil, speaks...)
		resp, body := w.do("GET", "/vacatures/1?q=a;b&%41=", "",
			"Authorization", "Basic stolen", "Authorization", "Bearer stolen", "X-Ibm-Client-Id", "stolen", "X-IBM-CLIENT-ID", "stolen", "x_ibm_client_id", "stolen",
			"Cookie", "session=stolen", "Connection", "Authorization, X-IBM-Client-Id, X-Hop", "X-Hop", "hop", "X-Original-Url", "/stolen",
			"Proxy-Authorization", "stolen", "Credential-Broker-Error", "stolen", "X-Own", "own")
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Seen-Bearer") != "true" || resp.Header.Get("Seen-Proto") != name {
			t.Errorf("%s: %s %v", name, resp.Status, resp.Header)
		}
		first := "GET /base/vacatures/1?q=a;b&%41= " + strings.TrimPrefix(w.api.URL, "https://") + " \n"
		if !strings.HasPrefix(body, first) || strings.Contains(body, "stolen") || strings.Contains(body, "hop") ||
			!strings.Contains(body, "X-Ibm-Client-Id: [\""+theKey+"\"]") || !strings.Contains(body, "X-Own: [\"own\"]") || strings.Contains(body, "Forwarded") {
			t.Errorf("%s: the API saw\n%s", name, body)
		}
	}
}

// On record is the route that a token was handed to.
func TestRecordedRoute(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(echo), nil)
	w.do("GET", "/", "")
	via := map[string]int{}
	for e, err := range audit.Read(filepath.Join(w.dir, "audit"), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Type == audit.TokenHandover {
			via[e.Code+" "+e.Detail["via"]]++
		}
	}
	if len(via) != 1 || via["proxy route api"] != 1 {
		t.Errorf("%v", via)
	}
}

// The broker's own errors are told from the API's.
func TestErrorsAreTold(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(errorHeader, "forged")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "the API's own words")
	}), func(c *Config) { c.Paths = []string{"/vacatures", "/v2/jobs/"} })
	resp, body := w.do("GET", "/vacatures", "")
	if resp.StatusCode != http.StatusServiceUnavailable || body != "the API's own words" || resp.Header[errorHeader] != nil {
		t.Errorf("%s %v %s", resp.Status, resp.Header, body)
	}
	for _, path := range []string{"/", "/vacaturesx", "/v2", "/v2/job", "/vacature"} {
		resp, body := w.do("GET", path, "")
		wantRefused(t, resp, body, client.NotAllowed)
	}
	for _, path := range []string{"/vacatures/", "/vacatures/x", "/v2/jobs", "/v2/jobs/x", "/%76acatures", "/vacatures?x=/../"} {
		if resp, _ := w.do("GET", path, ""); resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	w.api.Close()
	resp, body = w.do("GET", "/vacatures", "")
	wantRefused(t, resp, body, client.APIUnavailable)
	if s := w.proxy.Status(); len(s) != 1 || s[0].Requests != 13 || s[0].Failed != 1 || !strings.Contains(s[0].Error, "refused") || s[0].ErrorAt.IsZero() {
		t.Errorf("%+v", s)
	}
	if err := testutil.CollectAndCompare(w.proxy, strings.NewReader(`
# HELP credential_broker_proxy_requests_total Requests to the reverse proxy, by the class of the API's status, or by the broker's own error code; broken: the answer broke off, aborted: the caller did.
# TYPE credential_broker_proxy_requests_total counter
credential_broker_proxy_requests_total{client="vdab",code="5xx",route="api"} 7
credential_broker_proxy_requests_total{client="vdab",code="api_unavailable",route="api"} 1
credential_broker_proxy_requests_total{client="vdab",code="not_allowed",route="api"} 5
`), "credential_broker_proxy_requests_total"); err != nil {
		t.Error(err)
	}
}

// What has no entry for the surface gets nothing, and the hand-over is on record.
func TestAllowEntriesDecide(t *testing.T) {
	called := 0
	w := newWorld(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called++ }), nil)
	w.do("GET", "/", "")
	w.do("GET", "/", "")
	me := strconv.Itoa(os.Getuid())
	for _, entry := range []access.Entry{{User: "54321"}, {User: me, Surfaces: []access.Surface{access.Token, access.Headers}}} {
		if err := w.broker.Apply([]broker.Client{w.client(w.store, entry)}); err != nil {
			t.Fatal(err)
		}
		resp, body := w.do("GET", "/", "")
		wantRefused(t, resp, body, client.NotAllowed)
	}
	if called != 2 {
		t.Errorf("the API was called %d times", called)
	}
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	if log := w.logged(); strings.Count(log, `"code":"proxy"`) == 0 || !strings.Contains(log, "token.handover") {
		t.Errorf("the record:\n%s", log)
	}
}

// A path outside of those of the route is a denial on record; who may not use
// the client learns of no path.
func TestPathsAreDecidedLast(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(ok), func(c *Config) { c.Paths = []string{"/public"} })
	resp, body := w.do("GET", "/secret", "")
	if wantRefused(t, resp, body, client.NotAllowed); !strings.Contains(body, "takes /public") {
		t.Error(body)
	}
	if err := w.broker.Apply([]broker.Client{w.client(w.store, access.Entry{User: "54321"})}); err != nil {
		t.Fatal(err)
	}
	resp, body = w.do("GET", "/secret", "")
	if wantRefused(t, resp, body, client.NotAllowed); strings.Contains(body, "/public") || strings.Contains(body, "route") {
		t.Error(body)
	}
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	log := w.logged()
	for _, code := range []string{`"code":"path"`, `"code":"identity"`} {
		if strings.Count(log, code) != 1 {
			t.Errorf("%s: the record:\n%s", code, log)
		}
	}
	if strings.Contains(log, "token.handover") {
		t.Errorf("a hand-over is on record:\n%s", log)
	}
}

func TestUncleanRequests(t *testing.T) {
	called := false
	w := newWorld(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called = true }), func(c *Config) { c.Paths = []string{"/a"} })
	for _, target := range []string{
		"/a/../b", "/a/..", "/a/./b", "/a//b", "//a", "/a/%2e%2e/b", "/a/%2E./b", "/a/..%2fb", "/a/%2f", "/a/%5c..", `/a/..\b`,
		"/a/%252e%252e/b", "/a/%25252e%25252e/b", "/a/%252f", "/a/..;x=1/b", "/a/%2e%2e;/b", "/a/;x", "/a/%00", "/a/%0d%0a", "/a/%c0%ae%c0%ae/b", "/a/.%20/b", "/a/x#y",
		"/a/%252e%252e%252fb%253f%25", "/a/%252e%252e%253f%25", "/a/%252e%252e;%25/b", "/a/%25u002e%25u002e/b", "/a/%25%25u002e", "/a/..%3f/b", "/a/..%23", "/a/%3f", "/a/%25%32e",
		"http://api.example/a", "https://127.0.0.1/a", "*",
	} {
		answer := w.raw("GET " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(answer, "HTTP/1.1 400 ") {
			t.Errorf("%s: %.200q", target, answer)
		}
	}
	for _, head := range []string{
		"CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\n", "TRACE /a HTTP/1.1\r\nHost: x\r\n", "TRACK /a HTTP/1.1\r\nHost: x\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\n", "GET /a HTTP/1.1\r\nHost: x\r\nOrigin: null\r\n", "GET /a HTTP/1.1\r\nHost: x\r\nSec-Fetch-Mode: cors\r\n",
		"GET /a HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 1.2.3.4\r\n", "GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
		"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked, x\r\n",
	} {
		answer := w.raw(head + "Connection: close\r\n\r\n")
		if !strings.HasPrefix(answer, "HTTP/1.1 400 ") && !strings.HasPrefix(answer, "HTTP/1.1 501 ") {
			t.Errorf("%s: %.200q", head, answer)
		}
	}
	if answer := w.raw("GET /a HTTP/1.1\r\nHost: x\r\nLong: " + strings.Repeat("x", 64<<10) + "\r\n\r\n"); !strings.HasPrefix(answer, "HTTP/1.1 431 ") {
		t.Errorf("a long header: %.200q", answer)
	}
	if called {
		t.Error("the API was called")
	}
	// What could be an upgrade to HTTP/2, as Java asks for it, is not one.
	if answer := w.raw("GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"); !strings.HasPrefix(answer, "HTTP/1.1 200 ") || !called {
		t.Errorf("h2c: %.200q", answer)
	}
}

func TestCleanPath(t *testing.T) {
	for path, want := range map[string]string{"/": "/", "/a/b": "/a/b", "/a/": "/a/", "/a%20b": "/a b", "/100%25": "/100%", "/caf%C3%A9": "/café", "/a;v=1/b": "/a;v=1/b",
		"/a.b..c": "/a.b..c", "/...": "/...", "/a%3Fb": "/a?b", "/5%25-10%25%25x%25": "/5%-10%%x%"} {
		if got, ok := cleanPath(path); got != want || !ok {
			t.Errorf("%s: %q, %v", path, got, ok)
		}
	}
}

func FuzzCleanPath(f *testing.F) {
	for _, s := range []string{"/a/b", "/%2e%2e/", "/a;b/%252e", "/%25%32%65"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		path, ok := cleanPath(s)
		if ok && filepath.Clean(path) != strings.TrimSuffix(path, "/") && path != "/" {
			t.Errorf("%q became %q", s, path)
		}
	})
}

// The API refuses a token: one new one, and one more request.
func TestRefusedToken(t *testing.T) {
	const said = `{"httpCode":"401","httpMessage":"Unauthorized","moreInformation":"Cannot pass the security checks."}`
	refuse := func(w http.ResponseWriter, challenge, body string) {
		if challenge != "" {
			w.Header().Set("WWW-Authenticate", challenge)
		}
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, body)
	}
	for _, c := range []struct {
		name, method, body, challenge, answer string
		always                                bool // refused for ever
		calls, minted, status                 int
	}{
		{"more information", "GET", "", "", said, false, 2, 2, 200},
		{"challenge", "GET", "", `Bearer realm="x", error="invalid_token"`, "", false, 2, 2, 200},
		{"bare challenge", "GET", "", `Bearer realm="x"`, "", false, 2, 2, 200},
		{"more information beside another scheme", "GET", "", `Basic realm="x"`, said, false, 2, 2, 200},
		{"nothing said", "DELETE", "", "", "", false, 2, 2, 200},
		{"breaks off", "GET", "", "", "{", false, 2, 2, 200},
		{"small body", "PUT", "hello", "", said, false, 2, 2, 200},
		{"large body", "PUT", strings.Repeat("x", maxReplay+1), "", said, false, 1, 2, 401},
		{"not idempotent", "POST", "", "", said, false, 1, 2, 401},
		{"for ever", "GET", "", "", said, true, 2, 2, 401},
		{"scope", "GET", "", `Bearer error="insufficient_scope"`, "", true, 1, 1, 401},
		{"another scheme", "GET", "", `Basic realm="x"`, "", true, 1, 1, 401},
		{"the key", "GET", "", "", `{"moreInformation":"Invalid client id or secret."}`, true, 1, 1, 401},
	} {
		var calls int
		var spoiled atomic.Bool // the API refuses the tokens that it has seen until now
		var bodies []string
		tokens := map[string]bool{}
		w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls++
			b, _ := io.ReadAll(r.Body)
			bodies = append(bodies, string(b))
			if !spoiled.Load() {
				tokens[r.Header.Get("Authorization")] = true
			} else if c.always || tokens[r.Header.Get("Authorization")] {
				if c.name == "breaks off" {
					w.Header().Set("Content-Length", "20000")
					defer func() {
						_ = http.NewResponseController(w).Flush()
						panic(http.ErrAbortHandler)
					}()
				}
				refuse(w, c.challenge, c.answer)
			}
		}), nil)
		w.do(c.method, "/", c.body)
		calls = 0
		spoiled.Store(true)
		w.clock.by.Store(int64(2 * time.Minute)) // the token is no longer young
		resp, body := w.do(c.method, "/", c.body)
		if resp.StatusCode != c.status || calls != c.calls || w.issuer.Stats().Minted != c.minted || resp.Header.Get(errorHeader) != "" {
			t.Errorf("%s: %s, %d calls, %d minted", c.name, resp.Status, calls, w.issuer.Stats().Minted)
		}
		if c.status == 401 && body != c.answer {
			t.Errorf("%s: the API's answer became %q", c.name, body)
		}
		if slices.ContainsFunc(bodies, func(b string) bool { return b != c.body }) {
			t.Errorf("%s: bodies %.100q", c.name, bodies)
		}
		if c.name == "for ever" { // the new token is young: it is kept, and the API's answer passed on
			for range 5 {
				w.do("GET", "/", "")
			}
			if n := w.issuer.Stats().Minted; n > 2 || calls > 2+2*5 {
				t.Errorf("%d tokens for an API that refuses all, %d calls", n, calls)
			}
		}
	}
}

// An API Connect gateway, with everything in its place.
func TestGateway(t *testing.T) {
	issuer := fake.NewIssuer(fake.Client{ID: theID, Secret: theSecret, APIKey: theKey})
	w := newWorld(t, issuer.Gateway(), func(c *Config) { c.Upstream = strings.TrimSuffix(c.Upstream, "/base") })
	resp, body := w.do("GET", fake.APIPath, "")
	if resp.StatusCode != http.StatusOK || !strings.Contains(body, "Software engineer") {
		t.Errorf("%s %s", resp.Status, body)
	}
	issuer.Set(fake.Fault{Kind: fake.GatewayToken, Times: 1})
	w.clock.by.Store(int64(2 * time.Minute))
	if resp, _ := w.do("GET", fake.APIPath, ""); resp.StatusCode != http.StatusOK {
		t.Errorf("after a refused token: %s", resp.Status)
	}
	if err := testutil.CollectAndCompare(w.proxy, strings.NewReader(`
# HELP credential_broker_api_rate_limit_remaining The API's X-RateLimit-Remaining, by the name of the limit, as the last answer had it.
# TYPE credential_broker_api_rate_limit_remaining gauge
credential_broker_api_rate_limit_remaining{client="vdab",limit="default",route="api"} 92
# HELP credential_broker_proxy_retries_total Requests that were sent again with a new token.
# TYPE credential_broker_proxy_retries_total counter
credential_broker_proxy_retries_total{client="vdab",route="api"} 1
`), "credential_broker_api_rate_limit_remaining", "credential_broker_proxy_retries_total"); err != nil {
		t.Error(err)
	}
}

func TestRateLimits(t *testing.T) {
	m := newMetrics()
	r := &Route{Client: "c", Config: Config{Name: "r"}}
	m.keep(map[string]*route{"s": {Route: *r}})
	for _, text := range []string{"7", "name=default,92;", "name=a,1; name=b,2;", "name=a,3", "nonsense", "name=,1", "name=x{},1", "name=neg,-1", "name=" + strings.Repeat("l", 99) + ",1",
		"name=3,1;name=4,1;name=5,1;name=6,1;name=7,1;name=8,1;name=9,1"} {
		m.take(r, http.Header{"X-Ratelimit-Remaining": {text}})
	}
	if n := testutil.CollectAndCount(m.limits["Remaining"]); n != 8 {
		t.Errorf("%d limits are kept", n)
	}
	if v := testutil.ToFloat64(m.limits["Remaining"].With(prometheus.Labels{"client": "c", "route": "r", "limit": "a"})); v != 3 {
		t.Errorf("a is %v", v)
	}
	m.keep(nil)
	for what, gauge := range m.limits {
		if n := testutil.CollectAndCount(gauge); n != 0 {
			t.Errorf("%d limits of a route that is gone: %s", n, what)
		}
	}
}

// The forms in which APIs write their limits.
func TestRateLimitHeaders(t *testing.T) {
	for _, c := range []struct {
		header, text, what, limit string
		want                      float64
	}{
		{"X-RateLimit-Limit", "name=burst,100;", "Limit", "burst", 100},
		{"X-RateLimit-Limit", "60", "Limit", "default", 60},
		{"X-RateLimit-Reset", "1795280000", "Reset", "default", 1795280000},
		{"RateLimit-Limit", "100, 100;w=60", "Limit", "default", 100},
		{"RateLimit-Remaining", "50", "Remaining", "default", 50},
		{"X-RateLimit-Remaining-Minute", "5", "Remaining", "minute", 5},
		{"X-RateLimit-Resource", "core", "Resource", "", 0},
		{"RateLimit", `"default";r=50;t=30`, "Remaining", "", 0},
	} {
		m := newMetrics()
		r := &Route{Client: "c", Config: Config{Name: "r"}}
		m.keep(map[string]*route{"s": {Route: *r}})
		h := http.Header{}
		h.Set(c.header, c.text)
		m.take(r, h)
		n := 0
		for _, gauge := range m.limits {
			n += testutil.CollectAndCount(gauge)
		}
		if c.limit == "" {
			if n != 0 {
				t.Errorf("%s: %s gave %d series", c.header, c.text, n)
			}
			continue
		}
		if v := testutil.ToFloat64(m.limits[c.what].WithLabelValues("c", "r", c.limit)); v != c.want || n != 1 {
			t.Errorf("%s: %s is %v in %d series", c.header, c.text, v, n)
		}
	}
	// Seconds from now become a time.
	m := newMetrics()
	r := &Route{Client: "c", Config: Config{Name: "r"}}
	m.keep(map[string]*route{"s": {Route: *r}})
	before := time.Now().Unix()
	m.take(r, http.Header{"Ratelimit-Reset": {"30"}})
	if v := testutil.ToFloat64(m.limits["Reset"].WithLabelValues("c", "r", "default")); v < float64(before+30) || v > float64(time.Now().Unix()+30) {
		t.Errorf("it begins anew at %v", v)
	}
}

// A header of the configuration's text alone is no credential: an answer may
// have one of that name, or those words in it.
func TestPlainHeaders(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{"Content-Type": r.Header.Get("Accept"), "X-Region": "flanders", "Link": "<" + r.Header.Get("X-Region") + ">", "Authorization": "x", "X-Ibm-Client-Id": "x"} {
			out.Header().Set(name, value)
		}
	}), nil)
	c := w.client(w.store, access.Entry{User: strconv.Itoa(os.Getuid())})
	c.Headers = append(c.Headers, broker.Header{Name: "accept", Value: "application/json"}, broker.Header{Name: "X-Region", Value: "in flanders"})
	if err := w.broker.Apply([]broker.Client{c}); err != nil {
		t.Fatal(err)
	}
	resp, _ := w.do("GET", "/", "", "Accept", "text/html", "x_region", "elsewhere")
	got := resp.Header
	if got.Get("Content-Type") != "application/json" || got.Get("X-Region") != "flanders" || got.Get("Link") != "<in flanders>" || got.Get("Authorization")+got.Get("X-Ibm-Client-Id") != "" {
		t.Errorf("%v", got)
	}
}

// Nothing that comes back shows what was sent.
func TestAnswersShowNoCredential(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		h := w.Header()
		h.Set("Authorization", r.Header.Get("Authorization"))
		h.Set("X-Debug", "token="+token+";")
		h.Set("X-IBM-Client-Id", "x")
		h.Set("X-Key", theKey)
		h.Set("Set-Cookie", "session=1")
		h.Set("X-Own", "own")
		h.Set("Trailer", "X-Sum, X-Echo")
		h["Early"] = []string{"103"}
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "body")
		h.Set("X-Sum", "12")
		h.Set("X-Echo", token)
	}), nil)
	text := w.raw("GET / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n")
	for _, bad := range []string{"opaque-", "eyJ", theKey, "Cookie", "X-Debug", " 103 ", "X-Ibm-Client-Id"} {
		if strings.Contains(text, bad) {
			t.Errorf("%q is in\n%s", bad, text)
		}
	}
	if !strings.Contains(text, "X-Own: own") || !strings.Contains(text, "X-Sum: 12") {
		t.Errorf("lost:\n%s", text)
	}
}

// A redirect is the application's to follow, or not.
func TestRedirectsPass(t *testing.T) {
	w := newWorld(t, http.RedirectHandler("https://elsewhere.example/", http.StatusFound), nil)
	resp, _ := w.do("GET", "/", "")
	if resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != "https://elsewhere.example/" {
		t.Errorf("%s %v", resp.Status, resp.Header)
	}
}

// A body is not held back: what one side has sent the other has, at once.
func TestFullDuplex(t *testing.T) {
	for name, speaks := range map[string][]func(*httptest.Server){"HTTP/1.1": nil, "HTTP/2": {http2}} {
		w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c := http.NewResponseController(w)
			_ = c.EnableFullDuplex()
			w.WriteHeader(http.StatusOK)
			_ = c.Flush()
			lines := bufio.NewScanner(r.Body)
			for lines.Scan() {
				fmt.Fprintf(w, "%s!\n", lines.Text())
				_ = c.Flush()
			}
		}), nil, speaks...)
		in, out := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost/", in)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := w.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		answers := bufio.NewReader(resp.Body)
		for _, word := range []string{"one", "two", "three"} {
			if _, err := io.WriteString(out, word+"\n"); err != nil {
				t.Fatal(err)
			}
			if got, err := answers.ReadString('\n'); got != word+"!\n" {
				t.Fatalf("%s: %q, %v", name, got, err)
			}
		}
		_ = out.Close()
		if rest, err := io.ReadAll(answers); len(rest) > 0 || err != nil {
			t.Errorf("%s: %q, %v", name, rest, err)
		}
		_ = resp.Body.Close()
	}
}
