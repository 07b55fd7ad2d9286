package outbound_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"credentialbroker/internal/outbound"
	"credentialbroker/providers/providertest"
)

func server(t *testing.T, h http.HandlerFunc) (*httptest.Server, outbound.Config) {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	return s, outbound.Config{CAFile: providertest.CAFileOf(t, s)}
}

func exchange(t *testing.T, c outbound.Config) *outbound.Exchange {
	t.Helper()
	x, err := c.Exchange()
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func post(t *testing.T, rt http.RoundTripper, target, body string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Test", "yes")
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return fmt.Sprint(resp.StatusCode, " ", string(b)), err
}

func echo(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s %s %s %d %s", r.Method, r.Host, r.URL.RequestURI(), r.Header.Get("X-Test"), r.ContentLength, b)
}

func TestExchange(t *testing.T) {
	s, c := server(t, echo)
	x := exchange(t, c)
	for range 3 {
		got, err := post(t, x, s.URL+"/a/b?c=d", "hello")
		want := "200 POST " + strings.TrimPrefix(s.URL, "https://") + " /a/b?c=d yes 5 hello"
		if err != nil || got != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	plain := httptest.NewServer(http.HandlerFunc(echo))
	defer plain.Close()
	if got, err := post(t, x, plain.URL+"/", "x"); err != nil || !strings.HasSuffix(got, "yes 1 x") {
		t.Errorf("%q, %v", got, err)
	}
}

// What both ways of connecting must do alike.
func TestConnections(t *testing.T) {
	var conns atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			conns.Add(1)
		}
	}
	s.StartTLS()
	defer s.Close()
	ca := providertest.CAFileOf(t, s)
	for name, open := range map[string]func(outbound.Config) (http.RoundTripper, error){
		"exchange":  func(c outbound.Config) (http.RoundTripper, error) { return c.Exchange() },
		"transport": func(c outbound.Config) (http.RoundTripper, error) { return c.Transport() },
	} {
		t.Run(name, func(t *testing.T) {
			conns.Store(0)
			rt, err := open(outbound.Config{CAFile: ca})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := post(t, rt, s.URL, "x"); err != nil {
					t.Fatal(err)
				}
			}
			if n := conns.Load(); n != 2 {
				t.Errorf("%d connections for two requests, want one each", n)
			}
			if rt, err = open(outbound.Config{}); err != nil {
				t.Fatal(err)
			}
			if _, err := post(t, rt, s.URL, "x"); err == nil {
				t.Error("a certificate of an unknown authority is accepted")
			}
			old := httptest.NewUnstartedServer(http.HandlerFunc(echo))
			old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
			old.StartTLS()
			defer old.Close()
			if rt, err = open(outbound.Config{CAFile: providertest.CAFileOf(t, old)}); err != nil {
				t.Fatal(err)
			}
			if _, err := post(t, rt, old.URL, "x"); err == nil {
				t.Error("TLS 1.1 is accepted")
			}
			proxy := providertest.NewProxy(t)
			t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1") // is not looked at
			if rt, err = open(outbound.Config{CAFile: ca, Proxy: proxy.URL}); err != nil {
				t.Fatal(err)
			}
			if _, err := post(t, rt, s.URL, "x"); err != nil {
				t.Error(err)
			}
			if proxy.Tunnels(strings.TrimPrefix(s.URL, "https://")) != 1 {
				t.Error("the proxy was not used")
			}
		})
	}
}

// raw answers the next connections with text, byte for byte.
func raw(t *testing.T, text string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
					return
				}
				_, _ = io.WriteString(c, text)
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

func TestExchangeOfOddAnswers(t *testing.T) {
	x := exchange(t, outbound.Config{})
	for _, c := range []struct{ name, answer, want string }{
		{"interim", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "200 ok"},
		{"redirect", "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "302 "},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "200 ok"},
		{"until the end", "HTTP/1.1 200 OK\r\n\r\nok", "200 ok"},
		{"cut", "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok", "error"},
		{"nothing", "", "error"},
		{"interim without end", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 50), "error"},
		{"headers without end", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 1<<19), "error"},
		{"no HTTP", "canary-secret that the server repeats\r\n\r\n", "error"},
	} {
		got, err := post(t, x, raw(t, c.answer), "x")
		if err != nil {
			if strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: the error repeats the answer: %v", c.name, err)
			}
			got = "error"
		}
		if got != c.want {
			t.Errorf("%s: %.80q, want %q", c.name, got, c.want)
		}
	}
}

func TestExchangeRefusesInjectedHeaders(t *testing.T) {
	s, c := server(t, echo)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
	req.Header["X-A"] = []string{"b\r\nEvil: 1"}
	if resp, err := exchange(t, c).RoundTrip(req); err == nil {
		_ = resp.Body.Close()
		t.Error("a line break in a header was sent")
	}
}

func TestExchangeEndsWithItsContext(t *testing.T) {
	reached := make(chan struct{}, 1)
	s, c := server(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		reached <- struct{}{}
		<-r.Context().Done()
		panic(http.ErrAbortHandler) // else an empty 200 may still be read after the close_notify
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-reached; cancel() }()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
	resp, err := exchange(t, c).RoundTrip(req)
	if err == nil {
		_ = resp.Body.Close()
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}

func TestExchangeLimitsConnections(t *testing.T) {
	var now, most atomic.Int64
	s, c := server(t, func(_ http.ResponseWriter, _ *http.Request) {
		most.Store(max(most.Load(), now.Add(1)))
		<-time.After(5 * time.Millisecond)
		now.Add(-1)
	})
	x := exchange(t, c)
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if _, err := post(t, x, s.URL, ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := most.Load(); n > 64 {
		t.Errorf("%d connections at a time, want 64 at most", n)
	}
}

// The buffers of an exchange are wiped: the request's as soon as it is sent.
func TestExchangeWipes(t *testing.T) {
	s, c := server(t, echo)
	secret := []byte("canary-in-the-body")
	seen := &watched{Reader: bytes.NewReader(secret)}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, seen)
	req.ContentLength = int64(len(secret))
	resp, err := exchange(t, c).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	for _, b := range seen.given {
		if bytes.Contains(b[:cap(b)], []byte("canary")) {
			t.Errorf("the request's buffer still holds %q", b)
		}
	}
	if len(seen.given) == 0 {
		t.Error("the body was not read")
	}
}

// watched remembers the buffers that it was read into.
type watched struct {
	io.Reader
	given [][]byte
}

func (w *watched) Read(p []byte) (int, error) {
	w.given = append(w.given, p)
	return w.Reader.Read(p)
}

func TestDialThroughProxy(t *testing.T) {
	s, _ := server(t, echo)
	addr := strings.TrimPrefix(s.URL, "https://")
	proxy := providertest.NewProxy(t)
	conn, err := outbound.Config{Proxy: proxy.URL}.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if proxy.Tunnels(addr) != 1 {
		t.Error("no tunnel")
	}
	if _, err = (outbound.Config{Proxy: "http://127.0.0.1:1"}).Dial(t.Context(), addr); !errors.Is(err, outbound.ErrProxy) {
		t.Errorf("%v, want ErrProxy", err)
	}
	refusing := httptest.NewServer(http.NotFoundHandler())
	defer refusing.Close()
	if _, err = (outbound.Config{Proxy: refusing.URL}).Dial(t.Context(), addr); err == nil || !strings.Contains(err.Error(), "refused the tunnel") {
		t.Error(err)
	}
	flood := raw(t, "HTTP/1.1 200 OK\r\n"+strings.Repeat("X: y\r\n", 1<<15)+"\r\n")
	if _, err = (outbound.Config{Proxy: flood}).Dial(t.Context(), addr); err == nil {
		t.Error("a proxy that talks without end is believed")
	}
	hang, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hang.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err = (outbound.Config{Proxy: "http://" + hang.Addr().String()}).Dial(ctx, addr); err == nil {
		t.Error("a proxy that hangs outlives the context")
	}
}

func TestProxyPassword(t *testing.T) {
	got := make(chan string, 1)
	p := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header.Get("Proxy-Authorization")
		w.WriteHeader(http.StatusForbidden)
	}))
	defer p.Close()
	u, _ := url.Parse(p.URL)
	u.User = url.UserPassword("me", "canary")
	_, err := outbound.Config{Proxy: u.String()}.Dial(t.Context(), "127.0.0.1:1")
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Error(err)
	}
	if a := <-got; a != "Basic bWU6Y2FuYXJ5" {
		t.Errorf("Proxy-Authorization: %q", a)
	}
}

func TestMistakes(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []outbound.Config{{CAFile: empty}, {CAFile: empty + ".not"}, {Proxy: "ftp://x"}, {Proxy: "proxy:3128"}, {Proxy: "http://u:canary@%"}} {
		_, e1 := c.Transport()
		_, e2 := c.Exchange()
		for _, err := range []error{e1, e2} {
			if err == nil || strings.Contains(err.Error(), "canary") || !strings.HasPrefix(err.Error(), "ca_file: ") && !strings.HasPrefix(err.Error(), "proxy: ") {
				t.Errorf("%+v: %v", c, err)
			}
		}
	}
}
