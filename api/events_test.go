package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
)

func withEvents(h *house) {
	entry := me()
	entry.Surfaces = append(entry.Surfaces, access.Events)
	h.apply(entry)
}

// rotate has the broker take a new version, which comes with a new token.
func (h *house) rotate() {
	h.t.Helper()
	h.store.Set("vdab", map[string]string{"client_id": theID, "client_secret": theSecret, "api_key": theKey})
	if _, err := h.broker.Rotate(h.t.Context(), "vdab", broker.Rotation{}); err != nil {
		h.t.Fatal(err)
	}
}

// The token now, as an ordinary request gives it; each new one at once; a
// quarantine ends the stream.
func TestEvents(t *testing.T) {
	h := newHouse(t, nil)
	withEvents(h)
	c := client.Client{Socket: h.consumer}
	var got []string
	for token, err := range c.Events(t.Context(), "vdab", client.Options{}) {
		if err != nil {
			var p *client.Problem
			if !errors.As(err, &p) || p.Code != client.Quarantined || len(got) != 2 {
				t.Fatalf("%v after %d tokens", err, len(got))
			}
			got = append(got, "quarantined")
			continue
		}
		got = append(got, token.Fingerprint)
		now, err := c.Token(t.Context(), "vdab", client.Options{})
		if err != nil || now.AccessToken != token.AccessToken || token.ExpiresIn < 800 {
			t.Fatalf("%+v, %v", token, err)
		}
		if len(got) == 1 {
			h.rotate()
			continue
		}
		h.broker.Contain(map[string]string{"vdab": "2026-0007"})
	}
	if len(got) != 3 || got[0] == got[1] || got[2] != "quarantined" {
		t.Errorf("%q", got)
	}
}

// With surface=exec a request is one of broker exec, for an entry that names it
// and for none that does not.
func TestSurfaceExec(t *testing.T) {
	h := newHouse(t, nil)
	entry := me()
	entry.Surfaces = []access.Surface{access.Exec}
	h.apply(entry)
	for path, want := range map[string]int{"token": 403, "headers": 403, "token?surface=exec": 200, "headers?surface=exec": 200,
		"token?surface=token": 400, "headers?surface=": 400, "token?surface=exec&surface=exec": 400, "api-key?surface=exec": 400} {
		if a := ask(t, h.http, "GET", "/v1/clients/vdab/"+path, ""); a.status != want {
			t.Errorf("%s: %d, want %d", path, a.status, want)
		}
	}
	entry.Surfaces = []access.Surface{access.Token, access.Headers, access.Events, access.APIKey}
	h.apply(entry)
	for _, path := range []string{"token", "headers", "events"} {
		if a := ask(t, h.http, "GET", "/v1/clients/vdab/"+path+"?surface=exec", ""); a.status != 403 {
			t.Errorf("%s: %d", path, a.status)
		}
	}
}

// What refuses the first look is an ordinary answer.
func TestEventsRefused(t *testing.T) {
	h := newHouse(t, nil)
	for path, want := range map[string]int{"/v1/clients/vdab/events": 403, "/v1/clients/none/events": 403, "/v1/clients/vdab/events?x=1": 400} {
		if a := ask(t, h.http, "GET", path, ""); a.status != want || a.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %v", path, a.status, a.header)
		}
	}
}

// The stream as it is on the wire, with signs of life while nothing happens.
func TestEventsOnTheWire(t *testing.T) {
	h := newHouse(t, func(s *Server) { s.times.quietStream = 20 * time.Millisecond })
	withEvents(h)
	conn := dial(t, h.consumer)
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /v1/clients/vdab/events HTTP/1.1\r\nHost: b\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for in := bufio.NewScanner(conn); in.Scan() && len(lines) < 40; {
		if l := strings.TrimSpace(in.Text()); l != "" {
			lines = append(lines, l)
		}
		if strings.Count(strings.Join(lines, "\n"), ": alive") == 2 {
			break
		}
	}
	text := strings.Join(lines, "\n")
	for _, want := range []string{"Content-Type: text/event-stream", "Cache-Control: no-store", "\nevent: token\nid: ", "\ndata: {\"access_token\":\"", ": alive"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

// A reader that takes nothing is let go, whatever it holds; a restart ends the
// streams and is not held up by them.
func TestEventsOfADeafReader(t *testing.T) {
	h := newHouse(t, func(s *Server) { s.times.quietStream, s.times.line = time.Millisecond, 50*time.Millisecond })
	withEvents(h)
	conn := dial(t, h.consumer)
	defer conn.Close()
	if u, ok := conn.(*net.UnixConn); ok {
		_ = u.SetReadBuffer(1)
	}
	if _, err := io.WriteString(conn, "GET /v1/clients/vdab/events HTTP/1.1\r\nHost: b\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	until(t, "the stream runs", func() bool { return h.server.pools.consumer.Busy() == 1 })
	until(t, "it is ended", func() bool { return h.server.Traffic().Connections == 0 })

	h = newHouse(t, func(s *Server) { s.times.quietStream = time.Millisecond })
	withEvents(h)
	patient := client.Client{Socket: h.consumer}
	ended := make(chan error, 1)
	go func() {
		var last error
		for _, err := range patient.Events(context.Background(), "vdab", client.Options{}) {
			last = err
		}
		ended <- last
	}()
	until(t, "another one runs", func() bool { return h.server.pools.consumer.Busy() == 1 })
	if err := h.stop(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("a restart is an ordinary end: %v", err)
	}
}
