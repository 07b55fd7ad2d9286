package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/outbound"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

const (
	theID     = "kCVy8fpVSU50zFzi8TIC"
	theSecret = "client-secret-7f3a9"
	theKey    = "api-key-51c07"
)

// world is a broker with one client, an API behind TLS, and a proxy between an
// application and that API.
type world struct {
	t      *testing.T
	dir    string
	issuer *fake.Issuer
	store  *fake.Store
	broker *broker.Broker
	clock  *laterClock
	proxy  *Server
	api    *httptest.Server
	ca     string // file
	socket string
	http   *http.Client // of an application, on the socket
	stop   func() error
}

// laterClock is the system's, moved on by as much as a test says.
type laterClock struct{ by atomic.Int64 }

func (c *laterClock) Now() clock.Reading {
	return clock.System{}.Now().Add(time.Duration(c.by.Load()))
}

// newWorld serves h as the API; change may alter the route, speaks the API.
func newWorld(t *testing.T, h http.Handler, change func(*Config), speaks ...func(*httptest.Server)) *world {
	t.Helper()
	return newDrainingWorld(t, 10*time.Second, h, change, speaks...)
}

// newDrainingWorld has another time for what is in flight when a route goes.
func newDrainingWorld(t *testing.T, drain time.Duration, h http.Handler, change func(*Config), speaks ...func(*httptest.Server)) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "proxy") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, ca: filepath.Join(dir, "ca.pem"), socket: filepath.Join(dir, "api.sock"), clock: &laterClock{},
		issuer: fake.NewIssuer(fake.Client{ID: theID, Secret: theSecret, APIKey: theKey})}
	w.api = w.startAPI(h, speaks...)
	w.store = fake.NewStore()
	w.store.Set("vdab", map[string]string{"client_id": theID, "client_secret": theSecret, "api_key": theKey})
	if err := os.MkdirAll(filepath.Join(dir, "state", "credentials"), 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := audit.Open(audit.Config{Anchor: "none"}, audit.Options{Dir: filepath.Join(dir, "audit")})
	if err != nil {
		t.Fatal(err)
	}
	w.broker = broker.New(broker.Options{Audit: log, Clock: w.clock, Dir: filepath.Join(dir, "state")})
	if err := w.broker.Apply([]broker.Client{w.client(w.store, access.Entry{User: strconv.Itoa(os.Getuid()), Surfaces: []access.Surface{access.Proxy}})}); err != nil {
		t.Fatal(err)
	}
	w.proxy = New(Options{Broker: w.broker, Log: slog.New(slog.DiscardHandler), Dir: dir})
	w.proxy.drain = drain
	cfg := w.config()
	if change != nil {
		change(&cfg)
	}
	w.route(cfg)
	w.http = via(w.socket)
	w.run(log)
	return w
}

func (w *world) client(store *fake.Store, e access.Entry) broker.Client {
	return broker.Client{Name: "vdab", Provider: store, ProviderName: "store", Allow: []access.Entry{e}, Proxied: true,
		Headers: []broker.Header{{Name: "Authorization", Value: "Bearer {access_token}"}, {Name: "X-IBM-Client-Id", Value: "{api_key}"}},
		Issuer:  &oidc.Profile{TokenEndpoint: "https://issuer.example" + fake.TokenPath}, Transport: w.issuer.RoundTripper(),
		KeyRejected: []string{"invalid client id or secret"},
		Rotation: rotation.Config{Spec: providers.Spec{Ref: providers.Ref{Path: "vdab"}},
			Required: []string{"client_id", "client_secret", "api_key"}}}
}

func (w *world) startAPI(h http.Handler, speaks ...func(*httptest.Server)) *httptest.Server {
	cert, ca, err := fake.TLS()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.ca, ca, 0o600); err != nil {
		w.t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	for _, change := range speaks {
		change(s)
	}
	s.StartTLS()
	w.t.Cleanup(s.Close)
	return s
}

func http2(s *httptest.Server) { s.EnableHTTP2 = true }

// protocols are what an API may speak.
var protocols = map[string][]func(*httptest.Server){"HTTP/1.1": nil, "HTTP/2": {http2}}

func (w *world) config() Config {
	return Config{Name: "api", Socket: w.socket, Upstream: w.api.URL + "/base", UpstreamUser: strconv.Itoa(os.Getuid()), Config: outbound.Config{CAFile: w.ca}}
}

// route configures these routes.
func (w *world) route(list ...Config) {
	w.t.Helper()
	var routes []Route
	for _, c := range list {
		routes = append(routes, Route{Client: "vdab", Config: c})
	}
	change, err := w.proxy.Prepare(routes)
	if err != nil {
		w.t.Fatal(err)
	}
	change.Commit()
}

func (w *world) run(log *audit.Log) {
	ctx, cancel := context.WithCancel(context.Background())
	logCtx, endLog := context.WithCancel(context.Background())
	var serving, logging sync.WaitGroup
	var err error
	logging.Go(func() { _ = log.Run(logCtx) })
	serving.Go(func() { _ = w.broker.Run(ctx) })
	serving.Go(func() { err = w.proxy.Run(ctx) })
	w.stop = sync.OnceValue(func() error {
		cancel()
		serving.Wait()
		endLog()
		logging.Wait()
		return err
	})
	w.t.Cleanup(func() {
		if err := w.stop(); err != nil {
			w.t.Error(err)
		}
	})
}

// via is an application's HTTP client.
func via(socket string) *http.Client {
	return &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
}

// do makes a request and reads the answer whole.
func (w *world) do(method, path, body string, headers ...string) (*http.Response, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if body == "" {
		req.Body = nil
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header[headers[i]] = append(req.Header[headers[i]], headers[i+1])
	}
	resp, err := w.http.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp, string(b)
}

// raw sends text as it is, and gives what comes until the connection ends.
func (w *world) raw(text string) string {
	w.t.Helper()
	c, err := net.Dial("unix", w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		w.t.Fatal(err)
	}
	b, _ := io.ReadAll(c)
	return string(b)
}

// wantRefused sees that an answer is the broker's own.
func wantRefused(t *testing.T, resp *http.Response, body string, code client.Code) {
	t.Helper()
	var p client.Problem
	if err := json.Unmarshal([]byte(body), &p); err != nil || p.Code != code || resp.StatusCode != code.Status() ||
		resp.Header.Get(errorHeader) != string(code) || resp.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%s, %q: %s, want %s", resp.Status, resp.Header.Get(errorHeader), body, code)
	}
}

// logged is the audit log as text.
func (w *world) logged() string {
	w.t.Helper()
	files, err := filepath.Glob(filepath.Join(w.dir, "audit", "*"))
	if err != nil || len(files) == 0 {
		w.t.Fatal("no audit log", err)
	}
	var all bytes.Buffer
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			w.t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}

func clockDuration(d time.Duration) clock.Duration { return clock.Duration(d) }
