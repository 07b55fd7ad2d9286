package api

import (
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"credentialbroker/api/client"
	"credentialbroker/internal/gate"
)

// A user at its cap loses its own oldest idle connection, not somebody else's.
func TestConnectionsPerUser(t *testing.T) {
	h := newHouse(t, func(s *Server) { s.pools.consumer = gate.New(gate.Limits{ConnectionsPerUser: 4}, s.log) })
	var theirs net.Conn
	other := as(t, 4711, 4711, func() { theirs = dial(t, h.consumer) })
	if other {
		defer theirs.Close()
		wantAnswer(t, theirs, 403)
	}
	conns := make([]net.Conn, 0, 6)
	for range 6 {
		c := dial(t, h.consumer)
		defer c.Close()
		wantAnswer(t, c, 200)
		until(t, "it is idle", func() bool { return h.server.pools.consumer.Busy() == 0 })
		conns = append(conns, c)
	}
	for i, c := range conns {
		if closed := isClosed(c); closed != (i < 2) {
			t.Errorf("connection %d closed: %v", i, closed)
		}
	}
	if other {
		wantAnswer(t, theirs, 403)
	}
	if got := h.server.Traffic(); got.Displaced != 2 || got.RateLimited != 0 {
		t.Errorf("%+v", got)
	}
}

// With every connection busy, there is nothing to displace: the answer is 429.
func TestBusyConnectionsPerUser(t *testing.T) {
	h := newHouse(t, func(s *Server) {
		s.pools.consumer = gate.New(gate.Limits{ConnectionsPerUser: 3}, s.log)
		behind(nil)(s)
	})
	var busy []net.Conn
	for range 3 {
		c := dial(t, h.consumer)
		defer c.Close()
		if _, err := io.WriteString(c, get); err != nil {
			t.Fatal(err)
		}
		busy = append(busy, c)
	}
	until(t, "all are busy", func() bool { return h.server.pools.consumer.Busy() == 3 })
	over := dial(t, h.consumer)
	defer over.Close()
	if _, err := io.WriteString(over, get); err != nil {
		t.Fatal(err)
	}
	a, err := readAnswer(over)
	if err != nil || a.status != 429 || a.header.Get("Retry-After") != "1" || !strings.Contains(a.body, "connections") || !isClosed(over) {
		t.Errorf("%+v, %v", a, err)
	}
	_ = busy[0].Close()
	until(t, "one is gone", func() bool { return h.server.Traffic().Connections == 2 })
	if a, err := raw(t, h.consumer, "GET /healthz HTTP/1.1\r\nHost: b\r\n\r\n"); err != nil || a.status != 200 {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestRequestsPerUser(t *testing.T) {
	h := newHouse(t, func(s *Server) { s.pools.consumer = gate.New(gate.Limits{RequestsPerSecond: 1, Burst: 3}, s.log) })
	var last answer
	for range 4 {
		last = ask(t, h.http, "GET", "/healthz", "")
	}
	var p client.Problem
	strict(t, last.body, &p)
	if last.status != 429 || p.Code != client.RateLimited || last.header.Get("Retry-After") != "1" || last.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %s", last.status, last.body)
	}
	as(t, 4711, 4711, func() {
		if a, err := raw(t, h.consumer, "GET /healthz HTTP/1.1\r\nHost: b\r\n\r\n"); err != nil || a.status != 200 {
			t.Errorf("another user: %+v, %v", a, err)
		}
	})
	if got := h.server.Traffic(); got.RateLimited != 1 {
		t.Errorf("%+v", got)
	}
}

// Thousands of idle connections cost bounded memory, and nobody else notices.
func TestIdleFlood(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	flood := min(10_000, int(limit.Cur)/2-2000)
	h := newHouse(t, func(s *Server) {
		s.pools.consumer = gate.New(gate.Limits{ConnectionsPerUser: 1 << 20, Connections: 1000}, s.log)
	})
	victim := h.http
	if a := ask(t, victim, "GET", "/v1/clients/vdab/token", ""); a.status != 200 {
		t.Fatalf("%+v", a)
	}
	t.Logf("%d connections", flood)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	hold := func() {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				for i := worker; i < flood; i += 8 {
					c, err := connect(h.consumer)
					if err != nil {
						t.Errorf("connection %d: %v", i, err)
						return
					}
					if i%2 == 0 { // half a request
						_, _ = io.WriteString(c, "GET /v1/clients/vdab/token HTTP/1.1\r\nHost:")
					}
					mu.Lock()
					t.Cleanup(func() { _ = c.Close() })
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	hold()
	for range 20 {
		if a := ask(t, victim, "GET", "/v1/clients/vdab/token", ""); a.status != 200 {
			t.Fatalf("%+v", a)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	traffic := h.server.Traffic()
	t.Logf("%+v; heap and stacks grew by %d KiB", traffic, (int64(after.HeapInuse+after.StackInuse)-int64(before.HeapInuse+before.StackInuse))>>10)
	// On a slow machine a few half requests run out of their own time first.
	if traffic.Connections > 1000 || traffic.Displaced < uint64(flood-1000)/2 {
		t.Errorf("%+v", traffic)
	}
}

// At the total, whoever holds most gives way.
func TestGreediestGivesWay(t *testing.T) {
	h := newHouse(t, func(s *Server) {
		s.pools.consumer = gate.New(gate.Limits{ConnectionsPerUser: 100, Connections: 5}, s.log)
	})
	var modest net.Conn
	if !as(t, 4711, 4711, func() { modest = dial(t, h.consumer) }) {
		return
	}
	defer modest.Close()
	wantAnswer(t, modest, 403)
	var first net.Conn
	for i := range 8 {
		c := dial(t, h.consumer)
		defer c.Close()
		wantAnswer(t, c, 200)
		until(t, "it is idle", func() bool { return h.server.pools.consumer.Busy() == 0 })
		if i == 0 {
			first = c
		}
	}
	if !isClosed(first) {
		t.Error("the greedy one kept its oldest connection")
	}
	wantAnswer(t, modest, 403)
}
