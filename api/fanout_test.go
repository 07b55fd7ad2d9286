package api

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/api/client"
	"credentialbroker/internal/gate"
)

// TestFanOut has one new token reach many streams of events, and prints how
// long that took beside a bare net/http handler that sends as many bytes to as
// many; it asserts what they get, never a time.
//
//	FANOUT_STREAMS=10000 go test -count=1 -v -run TestFanOut ./api
func TestFanOut(t *testing.T) {
	streams := 200
	if v := os.Getenv("FANOUT_STREAMS"); v != "" {
		var err error
		if streams, err = strconv.Atoi(v); err != nil || streams < 1 {
			t.Fatalf("FANOUT_STREAMS is %q: it is a number of streams", v)
		}
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// One descriptor a stream here, and one in the readers' process.
	if most := int(limit.Cur) - 300; streams > most {
		t.Logf("%d streams are all that this process has descriptors for (ulimit -n)", most)
		streams = most
	}
	t.Logf("%d streams, %d processors", streams, runtime.NumCPU())

	reference := newBareStream(t)
	took, memory := fanOut(t, reference.socket, streams, reference.send)
	t.Logf("bare net/http: %v to the last reader, %.1f µs a stream; %d KiB a stream here", took.Round(time.Millisecond), micro(took, streams), memory>>10)

	h := newHouse(t, func(s *Server) {
		s.pools.consumer = gate.New(gate.Limits{ConnectionsPerUser: 2 * streams, Connections: 2 * streams}, s.log)
	})
	withEvents(h)
	took, memory = fanOut(t, h.consumer, streams, h.rotate)
	t.Logf("the broker:    %v to the last reader, %.1f µs a stream; %d KiB a stream here", took.Round(time.Millisecond), micro(took, streams), memory>>10)
	if n := h.issuer.Stats().Minted; n != 2 {
		t.Errorf("%d tokens were fetched", n)
	}
}

func micro(d time.Duration, n int) float64 { return float64(d.Microseconds()) / float64(n) }

// fanOut has another process read streams of the client vdab, has the second
// token sent, and waits until all have it. each is the memory in bytes that a
// stream took in this process.
func fanOut(t *testing.T, socket string, streams int, send func()) (took time.Duration, each uint64) {
	t.Helper()
	before := memoryInUse()
	readers := exec.Command(os.Args[0])
	readers.Env = []string{childTask + "=streams", "API_TEST_SOCKET=" + socket, "FANOUT_STREAMS=" + strconv.Itoa(streams)}
	readers.Stderr = os.Stderr
	stop, err := readers.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := readers.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := readers.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = stop.Close()
		if err := readers.Wait(); err != nil {
			t.Errorf("the readers: %v", err)
		}
	}()
	got := bufio.NewScanner(out)
	next := func() string {
		if !got.Scan() {
			t.Fatalf("the readers have ended: %v", got.Err())
		}
		return got.Text()
	}
	first := next()
	for range streams - 1 {
		if next() != first {
			t.Fatal("the streams differ")
		}
	}
	each = (memoryInUse() - before) / uint64(streams)
	started := time.Now()
	send()
	for range streams {
		if next() == first {
			t.Fatal("the old token came once more")
		}
	}
	return time.Since(started), each
}

// childStreams prints the fingerprint of each token that one of its streams
// gets, until its standard input ends.
func childStreams() int {
	streams, err := strconv.Atoi(os.Getenv("FANOUT_STREAMS"))
	if err != nil {
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	var readers sync.WaitGroup
	c := client.Client{Socket: os.Getenv("API_TEST_SOCKET")}
	for range streams {
		readers.Go(func() {
			for token, err := range c.Events(ctx, "vdab", client.Options{}) {
				if err != nil {
					if ctx.Err() == nil {
						fmt.Fprintln(os.Stderr, err)
					}
					return
				}
				fmt.Println(token.Fingerprint) // one write, never half a line
			}
		})
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	readers.Wait()
	return 0
}

func memoryInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// bareStream sends two events to whoever asks, the second when it is told to.
type bareStream struct {
	socket string
	send   func()
}

func newBareStream(t *testing.T) bareStream {
	t.Helper()
	p := bareStream{socket: filepath.Join(t.TempDir(), "s")}
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	now := make(chan struct{})
	p.send = func() { close(now) }
	event := func(w http.ResponseWriter, n int) {
		fmt.Fprintf(w, "event: token\ndata: {\"access_token\":%q,\"fingerprint\":\"%d\"}\n\n", strings.Repeat("t", 1216), n)
		_ = http.NewResponseController(w).Flush()
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		event(w, 1)
		select {
		case <-now:
			event(w, 2)
		case <-r.Context().Done():
		}
		<-r.Context().Done()
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return p
}
