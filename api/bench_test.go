package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/internal/gate"
)

type connKey struct{}

// The consumer socket against a bare net/http handler that returns as many
// bytes on a Unix socket; one process, one kept connection a goroutine.

func BenchmarkToken(b *testing.B) {
	h := newHouse(b, func(s *Server) {
		s.pools.consumer = gate.New(gate.Limits{RequestsPerSecond: 10_000_000, Burst: 10_000_000}, s.log)
	})
	hammer(b, h.consumer, "/v1/clients/vdab/token")
}

func BenchmarkHeaders(b *testing.B) {
	h := newHouse(b, func(s *Server) {
		s.pools.consumer = gate.New(gate.Limits{RequestsPerSecond: 10_000_000, Burst: 10_000_000}, s.log)
	})
	hammer(b, h.consumer, "/v1/clients/vdab/headers")
}

func BenchmarkBareNetHTTP(b *testing.B) {
	socket := filepath.Join(b.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	body := []byte(strings.Repeat("t", 1450))
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			uid, err := gate.PeerUID(c.(*net.UnixConn))
			return context.WithValue(ctx, connKey{}, answer{status: int(uid), body: errors.Join(err, io.EOF).Error()})
		}}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	b.Cleanup(func() { _ = srv.Close(); <-done })
	hammer(b, socket, "/")
}

func hammer(b *testing.B, socket, path string) {
	if a := ask(b, via(socket), http.MethodGet, path, ""); a.status != http.StatusOK { // the first one fetches
		b.Fatalf("%+v", a)
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := cpu(b)
	defer func() { b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op") }() // both ends
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.Dial("unix", socket)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Minute))
		request := []byte("GET " + path + " HTTP/1.1\r\nHost: broker\r\n\r\n")
		r := bufio.NewReaderSize(c, 16<<10)
		for pb.Next() {
			if _, err := c.Write(request); err != nil {
				b.Error(err)
				return
			}
			if err := skipAnswer(r); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// cpu is what the process has used so far, in nanoseconds: unlike the time of
// day, it does not depend on what else the machine does.
func cpu(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// skipAnswer reads a 200 with a Content-Length at little cost.
func skipAnswer(r *bufio.Reader) error {
	length := -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if first && !strings.HasPrefix(string(line), "HTTP/1.1 200") {
			return errors.New(string(line))
		}
		if len(line) == 2 {
			break
		}
		if strings.HasPrefix(string(line), "Content-Length: ") {
			length = 0
			for _, d := range line[16 : len(line)-2] {
				length = length*10 + int(d-'0')
			}
		}
	}
	_, err := r.Discard(length)
	return err
}
