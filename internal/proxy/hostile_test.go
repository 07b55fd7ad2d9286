package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"credentialbroker/api/client"
)

const short = 300 * time.Millisecond // a route's timeout, where one is to pass

// liar is an API that answers each connection with what say writes.
func liar(t *testing.T, say func(c net.Conn)) string {
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
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					say(c)
				}
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

// TestLies: an API that lies costs one request an error, and nobody else
// anything.
func TestLies(t *testing.T) {
	text := func(s string) func(net.Conn) { return func(c net.Conn) { _, _ = io.WriteString(c, s) } }
	stay := func(s string) func(net.Conn) {
		return func(c net.Conn) {
			_, _ = io.WriteString(c, s)
			_, _ = io.Copy(io.Discard, c) // until the other side ends it
		}
	}
	for _, c := range []struct {
		name string
		say  func(net.Conn)
		code client.Code // the broker's answer; empty: the API's answer breaks off
	}{
		{"nothing", text(""), client.APIUnavailable},
		{"garbage", text("SSH-2.0-OpenSSH\r\n\r\n"), client.APIUnavailable},
		{"hangs", stay(""), client.APITimeout},
		{"hangs in the header", stay("HTTP/1.1 200 OK\r\nX:"), client.APITimeout},
		{"a megabyte of headers", text("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n"), client.APIUnavailable},
		{"many headers", text("HTTP/1.1 200 OK\r\n" + strings.Repeat("X: x\r\n", 1<<17) + "\r\n"), client.APIUnavailable},
		{"interim for ever", text(strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", 1<<14)), client.APIUnavailable},
		{"switches", stay("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nhello"), client.APIUnavailable},
		{"two lengths", text("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"), client.APIUnavailable},
		{"too short", text("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"), ""},
		{"bad chunk", text("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\nzz\r\n"), ""},
		{"no last chunk", text("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n"), ""},
		{"hangs in the body", stay("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"), ""},
		{"401 that hangs", stay("HTTP/1.1 401 Unauthorized\r\nContent-Length: 100\r\n\r\n{"), client.APITimeout},
	} {
		w := newWorld(t, http.HandlerFunc(ok), func(cfg *Config) { cfg.Upstream, cfg.Timeout = liar(t, c.say), clockDuration(short) })
		other := w.config()
		other.Name, other.Socket = "other", w.dir+"/other.sock"
		lying := w.config()
		lying.Upstream, lying.Timeout = liar(t, c.say), clockDuration(short)
		w.route(lying, other)

		resp, err := w.http.Get("http://localhost/")
		switch {
		case c.code != "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.code != "":
			body, _ := io.ReadAll(resp.Body)
			wantRefused(t, resp, string(body), c.code)
		case err == nil: // what is short may come, or not even begin
			if body, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("%s: %q passes for the whole", c.name, body)
			}
		}
		if err == nil {
			_ = resp.Body.Close()
		}
		if s := w.proxy.Status(); s[0].Failed != 1 || s[0].Error == "" {
			t.Errorf("%s: %+v", c.name, s[0])
		}
		if resp, err := via(other.Socket).Get("http://localhost/"); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: the other route: %v", c.name, err)
		}
	}
}

// An API that switches protocols unasked does not keep its connection: nobody
// else would close it.
func TestSwitchEnds(t *testing.T) {
	for _, header := range []string{"Upgrade: x\r\n", ""} {
		ended := make(chan struct{})
		upstream := liar(t, func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"+header+"\r\n")
			_, _ = io.Copy(io.Discard, c)
			close(ended)
		})
		w := newWorld(t, http.HandlerFunc(ok), func(c *Config) { c.Upstream = upstream })
		resp, body := w.do("GET", "/", "")
		wantRefused(t, resp, body, client.APIUnavailable)
		soon(t, "the end of the API's connection", ended)
	}
}

// What comes after the end of an answer is nobody's answer.
func TestTooMuch(t *testing.T) {
	upstream := liar(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
		_, _ = io.Copy(io.Discard, c)
	})
	w := newWorld(t, http.HandlerFunc(ok), func(c *Config) { c.Upstream = upstream })
	for range 5 {
		if resp, body := w.do("GET", "/", ""); resp.StatusCode != http.StatusOK || body != "ok" {
			t.Errorf("%s %q", resp.Status, body)
		}
	}
}

// A caller who sends or takes nothing is let go, and the API with it.
func TestSlowCallers(t *testing.T) {
	ended := make(chan struct{}, 8)
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/base/stream" {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					break
				}
			}
		} else {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		ended <- struct{}{}
	}), func(c *Config) { c.Timeout = clockDuration(short) })

	c, err := net.Dial("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if resp, _ := w.do("GET", "/x", ""); resp.StatusCode != http.StatusOK { // meanwhile
		t.Error(resp.Status)
	}
	<-ended
	<-ended

	for _, head := range []string{"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf", "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nhalf"} {
		if answer := w.raw(head); !strings.HasPrefix(answer, "HTTP/1.1 400 ") || !strings.Contains(answer, "body did not come") {
			t.Errorf("%.20s: %q", head, answer)
		}
	}
	// A half-sent header costs its connection, as everywhere.
	half, err := net.Dial("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	_, _ = io.WriteString(half, "GET / HT")
	if resp, _ := w.do("GET", "/x", ""); resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
	}
}

// The caller's going away ends the request at the API.
func TestCallerLeaves(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		close(ended)
	}), nil, http2)
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-began; cancel() }()
	if _, err := w.http.Do(req); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-ended
}

// Each side may be silent for the timeout; a call may take longer.
func TestLongCall(t *testing.T) {
	const timeout, lines = time.Second, 8
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		tick := time.NewTicker(timeout / 6)
		defer tick.Stop()
		for range lines {
			fmt.Fprintln(w, "line")
			_ = http.NewResponseController(w).Flush()
			<-tick.C
		}
	}), func(c *Config) { c.Timeout = clockDuration(timeout) })
	for _, size := range []int{0, 1, maxReplay + 1} {
		if _, body := w.do("PUT", "/", strings.Repeat("x", size)); strings.Count(body, "line") != lines {
			t.Errorf("%d bytes: %q", size, body)
		}
	}
}

// An answer that begins before the body has come is passed on.
func TestEarlyAnswer(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}), nil)
	answer := w.raw("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
	if !strings.HasPrefix(answer, "HTTP/1.1 413 ") {
		t.Errorf("%q", answer)
	}
}

// It is so while the caller pauses, however long.
func TestEarlyAnswerInPause(t *testing.T) {
	for name, speaks := range protocols {
		began := make(chan struct{})
		w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.ReadFull(r.Body, make([]byte, 100)) // the proxy reads on
			close(began)
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			_, _ = io.WriteString(w, "too large")
		}), func(c *Config) { c.Timeout = clockDuration(5 * time.Minute) }, speaks...)
		c, err := net.Dial("unix", w.socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"+strings.Repeat("x", 100)); err != nil {
			t.Fatal(err)
		}
		<-began
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if answer, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 413 ") {
			t.Errorf("%s: %q, %v", name, answer, err)
		}
		_ = c.Close()
	}
}

// An API that begins its answer early and falls silent has its time, whatever
// the caller still sends.
func TestSilenceInUpload(t *testing.T) {
	for name, speaks := range protocols {
		w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c := http.NewResponseController(w)
			_ = c.EnableFullDuplex()
			fmt.Fprintln(w, "first")
			_ = c.Flush()
			_, _ = io.Copy(io.Discard, r.Body)
		}), func(c *Config) { c.Timeout = clockDuration(short) }, speaks...)
		in, out := io.Pipe()
		go func() {
			tick := time.NewTicker(short / 6)
			defer tick.Stop()
			for range 60 {
				if _, err := io.WriteString(out, "more"); err != nil {
					return
				}
				<-tick.C
			}
			_ = out.Close()
		}()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost/", in)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := w.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if answer, err := io.ReadAll(resp.Body); err == nil || string(answer) != "first\n" {
			t.Errorf("%s: %q, %v", name, answer, err)
		}
		_ = resp.Body.Close()
		_ = in.Close()
	}
}

// childTask is what a copy of the test binary does instead of tests.
const childTask = "PROXY_TEST_CHILD"

func TestMain(m *testing.M) {
	task := os.Getenv(childTask)
	if socket, ok := strings.CutPrefix(task, "lend "); ok {
		os.Exit(lend(socket))
	}
	if task != "" {
		os.Exit(leaveHeir(task))
	}
	os.Exit(m.Run())
}

// leaveHeir asks, leaves the connection to another process, and exits.
func leaveHeir(socket string) int {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return 1
	}
	f, err := c.(*net.UnixConn).File()
	if err != nil {
		return 1
	}
	if _, err := io.WriteString(f, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		return 1
	}
	heir := exec.Command("cat")
	heir.Stdin, heir.Stdout = f, os.Stdout
	if heir.Start() != nil {
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test says so
	return 0
}

// Who inherits a connection gets nothing more once its opener has exited.
func TestHeirGetsNothing(t *testing.T) {
	exited := make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "first")
		_ = http.NewResponseController(w).Flush()
		<-exited
		for range 1000 { // the first ones may only show the proxy that nobody takes them
			if _, err := fmt.Fprintln(w, "second"); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
		}
	}), nil)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childTask+"="+w.socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	leave, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	heard := bufio.NewReader(out)
	for line := ""; line != "first\n"; {
		if line, err = heard.ReadString('\n'); err != nil {
			t.Fatalf("%q, %v", line, err)
		}
	}
	_ = leave.Close()
	if _, err := cmd.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	close(exited)
	rest, _ := io.ReadAll(heard)
	if strings.Contains(string(rest), "second") {
		t.Errorf("the heir got %q", rest)
	}
}

func TestLimitsOfAUser(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(ok), nil)
	w.proxy.o.Limits.RequestsPerSecond, w.proxy.o.Limits.Burst = 1, 3
	cfg := w.config()
	cfg.Socket = w.dir + "/limited.sock"
	w.route(cfg)
	w.http = via(cfg.Socket)
	for range 3 {
		if resp, _ := w.do("GET", "/", ""); resp.StatusCode != http.StatusOK {
			t.Error(resp.Status)
		}
	}
	resp, body := w.do("GET", "/", "")
	wantRefused(t, resp, body, client.RateLimited)
	if resp.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if n := testutil.CollectAndCount(w.proxy.metrics.requests); n != 2 {
		t.Errorf("%d series", n)
	}
}
