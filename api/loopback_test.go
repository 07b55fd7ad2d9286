package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/gate"
)

// onLoopback serves vdab on a port of host, until the test ends or stop.
func (h *house) onLoopback(host string) (addr string, stop func()) {
	h.t.Helper()
	diag, err := access.OpenSockDiag()
	if err != nil {
		h.t.Fatal(err)
	}
	var l *gate.Loopback
	for l == nil { // somebody may take the port in between
		free, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			h.t.Fatal(err)
		}
		addr = free.Addr().String()
		_ = free.Close()
		l, _ = gate.ListenLoopback(h.t.Context(), addr, "vdab", diag)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.server.ServeLoopback(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
		_ = diag.Close()
	})
	h.t.Cleanup(stop)
	return addr, stop
}

func dialTCP(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// overTCP sends a request, in which HOST stands for the address, and reads one
// answer.
func overTCP(t *testing.T, addr, request string) (answer, error) {
	t.Helper()
	c := dialTCP(t, addr)
	if _, err := io.WriteString(c, strings.ReplaceAll(request, "HOST", addr)); err != nil {
		return answer{}, err
	}
	return readAnswer(c)
}

const loopbackForm = "POST /oauth2/token HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/x-www-form-urlencoded\r\nConnection: close\r\n"

// What the socket gives, the port gives, to whom an entry of user or group
// alone is for; of one client.
func TestLoopback(t *testing.T) {
	h := newHouse(t, nil)
	all := []access.Surface{access.Token, access.Headers, access.APIKey, access.Events}
	entry := access.Entry{User: itoa(os.Getuid()), Surfaces: all}
	if err := h.broker.Apply([]broker.Client{h.client("vdab", entry), h.client("other", entry)}); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		addr, _ := h.onLoopback(host)
		c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableCompression: true}}
		get := func(method, path, body string, header ...string) answer {
			t.Helper()
			req, err := http.NewRequest(method, "http://"+addr+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i+1 < len(header); i += 2 {
				req.Header.Set(header[i], header[i+1])
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			return answer{resp.StatusCode, resp.Header, string(b)}
		}
		var token client.Token
		a := get("GET", "/v1/clients/vdab/token", "")
		if strict(t, a.body, &token); a.status != 200 || token.AccessToken == "" || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%+v", a)
		}
		if a := get("GET", "/v1/clients/vdab/headers", ""); a.status != 200 || !strings.Contains(a.body, "X-IBM-Client-Id: "+theKey) {
			t.Errorf("%+v", a)
		}
		if a := get("GET", "/v1/clients/vdab/api-key", ""); a.status != 200 || a.body != theKey {
			t.Errorf("%+v", a)
		}
		if a := get("POST", oauthPath, "grant_type=client_credentials&client_id=vdab", "Content-Type", formType); a.status != 200 || !strings.Contains(a.body, token.AccessToken) {
			t.Errorf("%+v", a)
		}
		if a := get("POST", oauthPath, "grant_type=client_credentials&client_id=other", "Content-Type", formType); a.status != 401 || !strings.Contains(a.body, "invalid_client") {
			t.Errorf("%+v", a)
		}
		if a := get("GET", "/v1/whoami", ""); a.status != 200 || strings.Contains(a.body, "pid") || !strings.Contains(a.body, ", over loopback") || strings.Contains(a.body, `"other"`) {
			t.Errorf("%+v", a)
		}
		if a := get("GET", "/readyz", ""); a.status != 200 || strings.Contains(a.body, `"other"`) || !strings.Contains(a.body, `"others":1`) {
			t.Errorf("%+v", a)
		}
		// The other client is allowed to us on the socket; here it is as one that does
		// not exist.
		other, none := get("GET", "/v1/clients/other/token", ""), get("GET", "/v1/clients/nosuch/token", "")
		if other.status != 403 || other.body != none.body || !strings.Contains(other.body, "serves the client vdab alone") || !strings.Contains(other.body, `"clients":["vdab"]`) {
			t.Errorf("%+v\n%+v", other, none)
		}
		if a := get("POST", "/v1/clients/other/reject", `{"status":401,"access_token":"x"}`, "Content-Type", "application/json"); a.status != 403 {
			t.Errorf("%+v", a)
		}
		if a := get("POST", "/v1/clients/vdab/reject", `{"status":429,"access_token":"x"}`, "Content-Type", "application/json"); a.status != 200 {
			t.Errorf("%+v", a)
		}
	}
	if a := ask(t, h.http, "GET", "/v1/clients/other/token", ""); a.status != 200 {
		t.Errorf("by the socket: %+v", a)
	}
}

// Events stream, and end with the listener.
func TestLoopbackEvents(t *testing.T) {
	h := newHouse(t, func(s *Server) { s.times.Drain = 50 * time.Millisecond })
	withEvents(h)
	addr, stop := h.onLoopback("127.0.0.1")
	c := dialTCP(t, addr)
	if _, err := io.WriteString(c, "GET /v1/clients/vdab/events HTTP/1.1\r\nHost: "+addr+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%+v, %v", resp, err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() || lines.Text() != "event: token" {
		t.Errorf("%q, %v", lines.Text(), lines.Err())
	}
	stop()
	for lines.Scan() {
	}
	if errors.Is(lines.Err(), os.ErrDeadlineExceeded) {
		t.Error("the stream goes on")
	}
}

// A record names the user and the port, once for all of a user's connections.
func TestLoopbackIsRecorded(t *testing.T) {
	h := newHouse(t, nil)
	addr, _ := h.onLoopback("127.0.0.1")
	for range 3 {
		if a, err := overTCP(t, addr, "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: HOST\r\n\r\n"); err != nil || a.status != 200 {
			t.Fatalf("%+v, %v", a, err)
		}
	}
	if a, err := overTCP(t, addr, "GET /v1/clients/other/token HTTP/1.1\r\nHost: HOST\r\n\r\n"); err != nil || a.status != 403 {
		t.Fatalf("%+v, %v", a, err)
	}
	if a := ask(t, h.http, "GET", "/v1/clients/vdab/token", ""); a.status != 200 {
		t.Fatalf("%+v", a)
	}
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	seen := map[audit.Type]int{}
	for e, err := range audit.Read(filepath.Join(h.dir, "audit"), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if c := e.Caller; c != nil && c.Place != "" {
			seen[e.Type]++
			if c.Place != "loopback "+addr || c.PID != 0 || c.UID != uint32(os.Getuid()) {
				t.Errorf("%+v", c)
			}
		} else if c != nil && c.PID != 0 {
			seen["by the socket"]++
		}
	}
	if seen[audit.TokenHandover] != 1 || seen[audit.AccessDenied] != 1 || seen["by the socket"] != 1 {
		t.Errorf("%v", seen)
	}
}

// Another user of this machine may connect, and gets what is theirs: nothing.
func TestLoopbackOfAnotherUser(t *testing.T) {
	h := newHouse(t, nil)
	addr, _ := h.onLoopback("127.0.0.1")
	request := "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: HOST\r\n\r\n"
	if !as(t, 4711, 4711, func() {
		a, err := overTCP(t, addr, request)
		if err != nil || a.status != 403 || !strings.Contains(a.body, "uid 4711, over loopback") || strings.Contains(a.body, `"vdab"`) {
			t.Errorf("%+v, %v", a, err)
		}
	}) {
		return
	}
	h.apply(access.Entry{User: "4711"})
	if !as(t, 4711, 4711, func() {
		if a, err := overTCP(t, addr, request); err != nil || a.status != 200 {
			t.Errorf("%+v, %v", a, err)
		}
	}) {
		return
	}
	if a, err := overTCP(t, addr, request); err != nil || a.status != 403 {
		t.Errorf("it is theirs alone: %+v, %v", a, err)
	}
	// An entry that says more than the user is not for this way in.
	for _, e := range []access.Entry{
		{User: "4711", Unit: "cron.service"},
		{User: "4711", UserUnit: "x.service"},
		{User: "4711", Executable: "/bin/sh"},
	} {
		h.apply(e)
		as(t, 4711, 4711, func() {
			if a, err := overTCP(t, addr, request); err != nil || a.status != 403 {
				t.Errorf("%+v: %+v, %v", e, a, err)
			}
		})
	}
}

// hostile is what comes to a port of this machine and is no program that asks
// for itself.
func hostile() map[string]string {
	const (
		line   = "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: HOST\r\n"
		agent  = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: nl\r\n"
		grant  = "grant_type=client_credentials&client_id=vdab"
		length = "Content-Length: 44\r\n\r\n" + grant
	)
	return map[string]string{
		"fetch of a page":          line + agent + "Accept: */*\r\nOrigin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\nReferer: https://evil.example/\r\n\r\n",
		"fetch without CORS":       line + agent + "Accept: */*\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: empty\r\n\r\n",
		"image of a page":          line + agent + "Accept: image/avif,image/webp,*/*;q=0.8\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n\r\n",
		"image of an old browser":  line + "User-Agent: Mozilla/5.0 (Macintosh) Version/12.0 Safari/605\r\nReferer: http://evil.example/\r\n\r\n",
		"link of an old browser":   line + "User-Agent: Mozilla/5.0 (Windows NT 6.1) Firefox/60.0\r\nUpgrade-Insecure-Requests: 1\r\n\r\n",
		"address typed by hand":    line + agent + "Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\n\r\n",
		"form of a page":           loopbackForm + agent + "Origin: null\r\n" + length,
		"form of an old browser":   loopbackForm + "User-Agent: Mozilla/5.0 Firefox/60.0\r\nReferer: http://evil.example/\r\n" + length,
		"preflight":                "OPTIONS /v1/clients/vdab/token HTTP/1.1\r\nHost: HOST\r\nAccess-Control-Request-Method: GET\r\n\r\n",
		"cookies of another port":  line + "Cookie: session=1\r\n\r\n",
		"web socket":               line + "Connection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://evil.example\r\nSec-WebSocket-Version: 13\r\n\r\n",
		"rebound name":             "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: evil.example\r\n\r\n",
		"rebound name with port":   "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: evil.example:PORT\r\n\r\n",
		"name that resolves to us": "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: 127.0.0.1.nip.example:PORT\r\n\r\n",
		"name of localhost":        "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: localhost.evil.example:PORT\r\n\r\n",
		"without port":             "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
		"another port":             "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n",
		"any address":              "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: 0.0.0.0:PORT\r\n\r\n",
		"login in Host":            "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: evil.example@127.0.0.1:PORT\r\n\r\n",
		"two hosts":                "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: HOST\r\nHost: evil.example\r\n\r\n",
		"empty host":               "GET /v1/clients/vdab/token HTTP/1.1\r\nHost:\r\n\r\n",
		"no host":                  "GET /v1/clients/vdab/token HTTP/1.1\r\n\r\n",
		"HTTP/1.0 without host":    "GET /v1/clients/vdab/token HTTP/1.0\r\n\r\n",
		"absolute form":            "GET http://HOST/v1/clients/vdab/token HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"another's absolute form":  "GET http://evil.example/v1/clients/vdab/token HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"CONNECT":                  "CONNECT HOST HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"asterisk form":            "OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"X-Forwarded-For":          line + "X-Forwarded-For: 192.0.2.7\r\n\r\n",
		"X-Forwarded-Host":         line + "x-forwarded-host: app.example\r\n\r\n",
		"X-Forwarded":              line + "X-Forwarded: for=192.0.2.7\r\n\r\n",
		"Forwarded":                line + "Forwarded: for=192.0.2.7\r\n\r\n",
		"Via":                      line + "Via: 1.1 squid\r\n\r\n",
		"nginx":                    line + "X-Real-IP: 192.0.2.7\r\n\r\n",
		"Zeus":                     line + "X-Cluster-Client-Ip: 192.0.2.7\r\n\r\n",
		"Envoy":                    line + "x-envoy-external-address: 192.0.2.7\r\n\r\n",
		"Cloudflare":               line + "CF-Connecting-IP: 192.0.2.7\r\n\r\n",
		"IIS":                      line + "X-Original-Host: app.example\r\n\r\n",
		"old proxy client":         line + "Proxy-Connection: keep-alive\r\n\r\n",
		"form by a proxy":          loopbackForm + "Via: 1.1 squid\r\n" + length,
	}
}

func TestLoopbackHostile(t *testing.T) {
	h := newHouse(t, nil)
	addr, _ := h.onLoopback("127.0.0.1")
	_, port, _ := net.SplitHostPort(addr)
	var token client.Token
	a, err := overTCP(t, addr, "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: HOST\r\n\r\n")
	if strict(t, a.body, &token); err != nil || a.status != 200 {
		t.Fatalf("%+v, %v", a, err)
	}
	before := h.broker.Status()[1].Tokens[0].Handovers
	for name, request := range hostile() {
		a, err := overTCP(t, addr, strings.ReplaceAll(request, "PORT", port))
		if err != nil || a.status != 400 || strings.Contains(a.body, token.AccessToken) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
		for header := range a.header {
			if strings.HasPrefix(header, "Access-Control-") {
				t.Errorf("%s: the answer says %s", name, header)
			}
		}
	}
	if after := h.broker.Status()[1].Tokens[0].Handovers; after != before {
		t.Errorf("%d hand-overs", after-before)
	}
	// What programs send, old ones among them.
	for name, request := range map[string]string{
		"curl":          "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: HOST\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n",
		"by name":       "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n",
		"as IPv6":       "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: [::1]:PORT\r\n\r\n",
		"PHP's streams": "GET /v1/clients/vdab/token HTTP/1.0\r\nHost: HOST\r\nConnection: close\r\n\r\n",
		"java.net.http": "GET /v1/clients/vdab/token HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 0\r\nHost: HOST\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAABgAGAAA\r\nUpgrade: h2c\r\nUser-Agent: Java-http-client/17.0.9\r\n\r\n",
		"a form":        loopbackForm + "Content-Length: 44\r\n\r\ngrant_type=client_credentials&client_id=vdab",
	} {
		a, err := overTCP(t, addr, strings.ReplaceAll(request, "PORT", port))
		if err != nil || a.status != 200 || !strings.Contains(a.body, token.AccessToken) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
}

// A connection whose client has closed its socket gets nothing more, nor does
// whoever has the port then.
func TestLoopbackOfAClosedSocket(t *testing.T) {
	gate := make(chan struct{})
	h := newHouse(t, behind(gate))
	addr, _ := h.onLoopback("127.0.0.1")
	if a, err := overTCP(t, addr, "GET /healthz HTTP/1.1\r\nHost: HOST\r\n\r\n"); err != nil || a.status != 200 {
		t.Fatalf("%+v, %v", a, err)
	}
	c := dialTCP(t, addr).(*net.TCPConn)
	if _, err := io.WriteString(c, "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: "+addr+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	// Half closed, it could still read; but its socket is about to go.
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	close(gate)
	if a, err := readAnswer(c); err == nil && a.status == 200 {
		t.Errorf("%+v", a)
	}
}

func TestLoopbackMalformed(t *testing.T) {
	h := newHouse(t, func(s *Server) { s.times.Header, s.times.body = 50*time.Millisecond, 50*time.Millisecond })
	addr, _ := h.onLoopback("127.0.0.1")
	for request, status := range map[string]int{
		"GET /v1/clients/vdab/token HTTP/1.1\r\nHost: HOST\r\nX: " + strings.Repeat("x", 32<<10) + "\r\n\r\n": 431,
		"GET /" + strings.Repeat("x", 32<<10) + " HTTP/1.1\r\nHost: HOST\r\n\r\n":                             431,
		"nonsense\r\n\r\n": 400,
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n":                                                                     400, // TLS
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":                                                                                         400,
		"GET /v1/clients/vdab/token HTTP/3.0\r\nHost: HOST\r\n\r\n":                                                                505,
		"POST /v1/clients/vdab/reject HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip\r\n\r\n":                                   501,
		"POST /v1/clients/vdab/reject HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nContent-Length: 9999999\r\n\r\n": 400,
		"POST /v1/clients/vdab/reject HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{":     400,
		"GET /v1/clients/vdab/token HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 50\r\n\r\n":                                  400,
		"GET /v1/status HTTP/1.1\r\nHost: HOST\r\n\r\n":                                                                            404,
	} {
		if a, err := overTCP(t, addr, request); err != nil || a.status != status {
			t.Errorf("%.60q: %d, %v, want %d", request, a.status, err, status)
		}
	}
	half := dialTCP(t, addr) // a header that never ends
	if _, err := io.WriteString(half, "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: "+addr+"\r\n"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(half); errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(string(b), "200 OK") {
		t.Errorf("%q, %v", b, err)
	}
	if a, err := overTCP(t, addr, "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: HOST\r\n\r\n"); err != nil || a.status != 200 {
		t.Errorf("afterwards: %+v, %v", a, err)
	}
}

// Who opens connections and says nothing loses its own, and the socket has
// other places.
func TestLoopbackFlood(t *testing.T) {
	h := newHouse(t, func(s *Server) { s.cfg.Limits = gate.Limits{ConnectionsPerUser: 4} })
	addr, _ := h.onLoopback("127.0.0.1")
	for range 50 {
		dialTCP(t, addr)
	}
	if a, err := overTCP(t, addr, "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: HOST\r\n\r\n"); err != nil || a.status != 200 {
		t.Errorf("%+v, %v", a, err)
	}
	if a := ask(t, h.http, "GET", "/v1/clients/vdab/token", ""); a.status != 200 {
		t.Errorf("%+v", a)
	}
}

func BenchmarkLoopbackToken(b *testing.B) {
	h := newHouse(b, func(s *Server) { s.cfg.Limits = gate.Limits{RequestsPerSecond: 10_000_000, Burst: 10_000_000} })
	addr, _ := h.onLoopback("127.0.0.1")
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReaderSize(c, 16<<10)
	request := []byte("GET /v1/clients/vdab/token HTTP/1.1\r\nHost: " + addr + "\r\n\r\n")
	for b.Loop() {
		if _, err := c.Write(request); err != nil {
			b.Fatal(err)
		}
		if err := skipAnswer(r); err != nil {
			b.Fatal(err)
		}
	}
}
