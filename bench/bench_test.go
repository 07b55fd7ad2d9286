package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The roles are played by the test binary.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && roles()[os.Args[1]] != nil {
		if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// serve answers on a Unix socket.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return path
}

func TestLoad(t *testing.T) {
	for _, keep := range []bool{true, false} {
		for _, consumers := range []int{1, 5} {
			t.Run(fmt.Sprint(keep, consumers), func(t *testing.T) {
				var asked atomic.Int64
				socket := serve(t, func(w http.ResponseWriter, _ *http.Request) {
					asked.Add(1)
					w.Header().Set("Content-Length", "40960") // more than one read
					_, _ = w.Write(bytes.Repeat([]byte("x"), 40<<10))
				})
				r, err := load(socket, "/", consumers, keep, 50*time.Millisecond)
				if err != nil {
					t.Fatal(err)
				}
				n := int(asked.Load())
				if r.Requests < 1 || r.Measured < 1 || r.Measured > r.Requests || n < r.Requests || n > r.Requests+consumers {
					t.Errorf("%+v, the server counts %d", r, n)
				}
				if r.Time < 50*time.Millisecond || r.P50 <= 0 || r.P99 < r.P50 {
					t.Errorf("%+v", r)
				}
			})
		}
	}
}

// Whatever is no whole 200 ends the measurement: a server that refuses is fast.
func TestLoadRefuses(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"status": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "x")
		},
		"no length": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(bytes.Repeat([]byte("x"), 40<<10)) // too long for net/http to count
		},
		"closed": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		if r, err := load(serve(t, h), "/", 1, true, 50*time.Millisecond); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if _, err := load(filepath.Join(t.TempDir(), "nothing"), "/", 1, true, time.Millisecond); err == nil {
		t.Error("nobody listens, and it passes")
	}
}

func FuzzAnswerLength(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"))
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := answerLength(b)
		if n < 0 || err != nil && n != 0 || n > 0 && !bytes.HasPrefix(b, []byte("HTTP/1.1 200 ")) {
			t.Fatalf("%d, %v", n, err)
		}
	})
}

func TestAnswerLength(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nX: 1\r\nCONTENT-length:  5 \r\n\r\n"
	if n, err := answerLength([]byte(head + "hel")); err != nil || n != len(head)+5 {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := answerLength([]byte(head[:len(head)-1])); err != nil || n != 0 {
		t.Errorf("half a head: %d, %v", n, err)
	}
}

// The reference and the table, as processes.
func TestPlain(t *testing.T) {
	var out bytes.Buffer
	b := &bench{options: options{rounds: 1, time: 100 * time.Millisecond, consumers: []int{2}}, ctx: t.Context(), dir: t.TempDir(), out: &out}
	defer b.stop()
	s, err := b.startPlain("s", 1234)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := answerSize(s); err != nil || n != 1234 {
		t.Errorf("%d bytes, %v", n, err)
	}
	if err := b.throughput([]*server{s}); err != nil {
		t.Fatal(err)
	}
	if err := b.allocations([]*server{s}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2          kept alive   net/http", "2          one a request  net/http", "1.00", "allocations/request"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	m, err := b.measure(s, 2, true, 300*time.Millisecond)
	if err != nil || m.cpu <= 0 || m.rate <= 0 || m.requests < 10 {
		t.Errorf("%+v, %v", m, err)
	}
	if rss, _, err := size(s.pid()); err != nil || rss == "-" {
		t.Errorf("%s, %v", rss, err)
	}
}

func TestIdle(t *testing.T) {
	var out bytes.Buffer
	b := &bench{options: options{idle: 50}, ctx: t.Context(), dir: t.TempDir(), out: &out}
	defer b.stop()
	s, err := b.startPlain("s", 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.idling(newTable(&out, "server", "clients", "idle", "RSS", "PSS", "after"), s, "1"); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "net/http  1         50 ") {
		t.Errorf("50 connections are not held:\n%s", out.String())
	}
}

func TestServerThatEnds(t *testing.T) {
	b := &bench{ctx: t.Context(), dir: t.TempDir()}
	defer b.stop()
	s := &server{name: "it", socket: filepath.Join(b.dir, "s"), path: "/", cmd: b.command("/bin/sh", "-c", "exit 1")}
	if err := b.start(s.cmd); err != nil {
		t.Fatal(err)
	}
	if err := s.ready(t.Context(), time.Minute); err == nil || !strings.Contains(err.Error(), "it has ended") {
		t.Error(err)
	}
}

func TestIssuer(t *testing.T) {
	b := &bench{ctx: t.Context(), dir: t.TempDir()}
	defer b.stop()
	if err := b.startIssuer(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(b.ca()); err != nil || !strings.HasPrefix(b.issuer, "https://127.0.0.1:") {
		t.Errorf("%s, %v", b.issuer, err)
	}
}

func TestRatio(t *testing.T) {
	series := [][]sample{{{rate: 50}, {rate: 90}, {rate: 10}}, {{rate: 100}, {rate: 100}, {rate: 100}}}
	servers := []*server{{name: "broker"}, {name: "net/http"}}
	if got := ratio(series, 0, servers, "net/http"); got != "0.50" {
		t.Error(got)
	}
	if got := ratio(series, 0, servers, "nginx"); got != "-" {
		t.Error(got)
	}
	series[0][0].requests, series[0][0].cpu = 1000, 20*time.Millisecond
	if got := columns(series, 0, servers); got[3] != "20.0" || got[0] != "50" {
		t.Error(got)
	}
}

func TestPercentile(t *testing.T) {
	var list []time.Duration
	for i := range 100 {
		list = append(list, time.Duration(i))
	}
	if a, b := percentile(list, 50), percentile(list, 99); a != 50 || b != 99 {
		t.Error(a, b)
	}
	if percentile(nil, 50) != 0 || percentile(list[:1], 99) != 0 {
		t.Error("short lists")
	}
	if median([]int{5, 1, 4}) != 4 || median([]int{2, 1}) != 1 || median([]int(nil)) != 0 {
		t.Error("median")
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-consumers", "1,2", "-clients", "3", "-rounds", "2"})
	if err != nil || !slices.Equal(o.consumers, []int{1, 2}) || !slices.Equal(o.clients, []int{3}) || o.rounds != 2 || !filepath.IsAbs(o.dist) {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range [][]string{{"-consumers", "x"}, {"-clients", "0"}, {"-rounds", "0"}, {"more"}, {"-time", "0s"}} {
		if _, err := parse(bad); err == nil {
			t.Error(bad)
		}
	}
}
