package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/gate"
)

// onLoopback serves the route api on a port of host.
func (w *world) onLoopback(host string) (addr string) {
	w.t.Helper()
	diag, err := access.OpenSockDiag()
	if err != nil {
		w.t.Fatal(err)
	}
	var l *gate.Loopback
	for l == nil { // somebody may take the port in between
		free, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			w.t.Fatal(err)
		}
		addr = free.Addr().String()
		_ = free.Close()
		l, _ = gate.ListenLoopback(w.t.Context(), addr, "vdab", diag)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := w.proxy.ServeLoopback(ctx, l, "api"); err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(func() {
		cancel()
		serving.Wait()
		_ = diag.Close()
	})
	return addr
}

// overTCP sends a request, in which HOST stands for the address, and reads one
// answer.
func overTCP(addr, request string) (*http.Response, string, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, strings.ReplaceAll(request, "HOST", addr)); err != nil {
		return nil, "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// as makes f run as another user, if we are root.
func as(t *testing.T, uid int, f func()) bool {
	if os.Getuid() != 0 {
		t.Logf("WEAKER: not root, so uid %d is not tried", uid)
		return false
	}
	done := make(chan error, 2)
	go func() {
		defer func() { done <- nil }()
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			done <- e
			return
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return true
}

const onPort = "GET /x HTTP/1.1\r\nHost: HOST\r\n\r\n"

// A port serves the route as it is now, to whom an entry of user or group alone
// is for.
func TestLoopback(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(out, r.URL.Path+" "+r.Header.Get("X-IBM-Client-Id"))
	}), nil)
	four, six := w.onLoopback("127.0.0.1"), w.onLoopback("::1")
	for _, addr := range []string{four, six} {
		resp, body, err := overTCP(addr, onPort)
		if err != nil || resp.StatusCode != http.StatusOK || body != "/base/x "+theKey || resp.Header.Get(errorHeader) != "" {
			t.Fatalf("%s: %+v %q, %v", addr, resp, body, err)
		}
	}
	cfg := w.config()
	cfg.Paths = []string{"/y"}
	w.route(cfg)
	refused := func(code client.Code, say string) {
		t.Helper()
		resp, body, err := overTCP(four, onPort)
		if err != nil {
			t.Fatal(err)
		}
		if wantRefused(t, resp, body, code); !strings.Contains(body, say) {
			t.Error(body)
		}
	}
	refused(client.NotAllowed, "the route api takes /y")
	w.route(w.config())
	me := strconv.Itoa(os.Getuid())
	for _, e := range []access.Entry{{User: me, Unit: "x.service"}, {User: me, UserUnit: "x.service"}, {User: me, Executable: "/bin/sh"}, {User: me, Surfaces: []access.Surface{access.Token}}} {
		w.allow(e)
		refused(client.NotAllowed, "over loopback")
	}
	w.allow(access.Entry{User: me})
	other := w.config()
	other.Name = "other"
	w.route(other)
	if resp, body, err := overTCP(four, onPort); err == nil {
		t.Errorf("a route that is gone: %s %s", resp.Status, body)
	}
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	if log := w.logged(); !strings.Contains(log, `"place":"loopback `+four+`"`) {
		t.Errorf("the record:\n%s", log)
	}
}

func (w *world) allow(e access.Entry) {
	w.t.Helper()
	if err := w.broker.Apply([]broker.Client{w.client(w.store, e)}); err != nil {
		w.t.Fatal(err)
	}
}

// Another user of this machine may connect, and gets what is theirs.
func TestLoopbackOfAnotherUser(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(ok), nil)
	addr := w.onLoopback("127.0.0.1")
	var resp *http.Response
	var body string
	var err error
	ask := func() { resp, body, err = overTCP(addr, onPort) }
	if !as(t, 4711, ask) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if wantRefused(t, resp, body, client.NotAllowed); !strings.Contains(body, "uid 4711, over loopback") || strings.Contains(body, `"vdab"`) {
		t.Error(body)
	}
	w.allow(access.Entry{User: "4711", Surfaces: []access.Surface{access.Proxy}})
	if as(t, 4711, ask); err != nil || resp.StatusCode != http.StatusOK || body != "ok" {
		t.Errorf("%+v %s, %v", resp, body, err)
	}
	if ask(); err != nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("it is theirs alone: %+v %s, %v", resp, body, err)
	}
}

// What shows a page in a browser, or something that fetches for others, gets
// the broker's own answer, and the API is not called.
func TestLoopbackHostile(t *testing.T) {
	called := false
	w := newWorld(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called = true }), nil)
	addr := w.onLoopback("127.0.0.1")
	_, port, _ := net.SplitHostPort(addr)
	for _, request := range []string{
		"GET /x HTTP/1.1\r\nHost: evil.example\r\n\r\n",
		"GET /x HTTP/1.1\r\nHost: evil.example:" + port + "\r\n\r\n",
		"GET /x HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n",
		"GET /x HTTP/1.0\r\n\r\n",
		"GET http://HOST/x HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"CONNECT HOST HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"GET /x HTTP/1.1\r\nHost: HOST\r\nOrigin: null\r\n\r\n",
		"GET /x HTTP/1.1\r\nHost: HOST\r\nSec-Fetch-Mode: no-cors\r\n\r\n",
		"GET /x HTTP/1.1\r\nHost: HOST\r\nReferer: http://evil.example/\r\n\r\n",
		"GET /x HTTP/1.1\r\nHost: HOST\r\nVia: 1.1 squid\r\n\r\n",
		"GET /x HTTP/1.1\r\nHost: HOST\r\nX-Forwarded-Host: app.example\r\n\r\n",
		"POST /x HTTP/1.1\r\nHost: HOST\r\nX-Real-IP: 192.0.2.7\r\nContent-Length: 0\r\n\r\n",
	} {
		resp, body, err := overTCP(addr, request)
		if err != nil {
			t.Errorf("%q: %v", request, err)
			continue
		}
		wantRefused(t, resp, body, client.InvalidRequest)
	}
	if called {
		t.Error("the API was called")
	}
	for _, host := range []string{"HOST", "localhost:" + port, "[::1]:" + port} {
		if resp, body, err := overTCP(addr, "GET /x HTTP/1.1\r\nHost: "+host+"\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %+v %s, %v", host, resp, body, err)
		}
	}
	// A half request costs its own connection.
	half, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	_, _ = io.WriteString(half, "GET /x HTTP/1.1\r\nHost:")
	if resp, _, err := overTCP(addr, onPort); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%+v, %v", resp, err)
	}
	if _, _, err := overTCP(addr, "GET /x HTTP/1.1\r\nHost: HOST\r\nX: "+strings.Repeat("x", 32<<10)+"\r\n\r\n"); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("an oversized header hangs")
	}
}
