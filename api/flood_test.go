package api

import (
	"io"
	"net"
	"testing"
	"time"

	"credentialbroker/internal/gate"
)

// A body that is promised and never sent, to a path that wants none: it is
// waited for as long as a body may take, and no longer.
func TestPromisedBodies(t *testing.T) {
	h := newHouse(t, func(s *Server) { s.times.body = 50 * time.Millisecond })
	for name, request := range map[string]string{
		"GET":                "GET /healthz HTTP/1.1\r\nHost: b\r\nContent-Length: 1000\r\n\r\n",
		"no such path":       "POST /nothing HTTP/1.1\r\nHost: b\r\nContent-Length: 1000\r\n\r\n",
		"another method":     "POST /healthz HTTP/1.1\r\nHost: b\r\nContent-Length: 1000\r\n\r\nx",
		"wrong type":         "POST /v1/clients/vdab/reject HTTP/1.1\r\nHost: b\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\n",
		"chunks without end": "POST /nothing HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
	} {
		c := dial(t, h.consumer)
		defer c.Close()
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); err != nil { // until the server closes it
			t.Errorf("%s: %v", name, err)
		}
	}
}

// When every connection is busy, or pretends to be, whoever holds most gives
// way to whoever holds less: nobody can lock the others out.
func TestBusyConnectionsGiveWay(t *testing.T) {
	h := newHouse(t, func(s *Server) {
		s.pools.consumer = gate.New(gate.Limits{ConnectionsPerUser: 100, Connections: 6}, s.log)
		behind(nil)(s)
	})
	var busy []net.Conn
	for range 6 {
		c := dial(t, h.consumer)
		defer c.Close()
		if _, err := io.WriteString(c, get); err != nil {
			t.Fatal(err)
		}
		busy = append(busy, c)
	}
	until(t, "all are busy", func() bool { return h.server.pools.consumer.Busy() == 6 })
	var theirs net.Conn
	if !as(t, 4711, 4711, func() { theirs = dial(t, h.consumer) }) {
		t.Log("WEAKER: without root there is no second user to give way to")
		return
	}
	defer theirs.Close()
	if _, err := io.WriteString(theirs, "GET /healthz HTTP/1.1\r\nHost: b\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if a, err := readAnswer(theirs); err != nil || a.status != 200 {
		t.Errorf("another user was locked out: %+v, %v", a, err)
	}
	_ = busy
}
