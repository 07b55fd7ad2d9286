package gate

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

// Whoever was let in before the server goes down is answered, though it asks
// afterwards.
func TestServeAnswersWhomItLetIn(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	pool := New(Limits{}, slog.New(slog.DiscardHandler))
	times := NewTimes()
	times.Quiet, times.Drain = time.Minute, time.Minute
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	stopping, served := make(chan struct{}), make(chan error, 1)
	go func() {
		served <- Serve(ctx, func() { close(stopping) }, Server{Listener: l, Pool: pool, Times: times,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "answer") })})
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for pool.Traffic().Connections == 0 {
		time.Sleep(time.Millisecond)
	}
	stop()
	<-stopping
	for { // it accepts nobody else
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			break
		}
		_ = c.Close()
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "answer" || !resp.Close {
		t.Errorf("%v: %q, close %v", err, body, resp.Close)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
