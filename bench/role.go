package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/internal/fake"
)

// role is a process that the program starts of itself. It prints one line when
// it is ready, or its result.
type role func(ctx context.Context, args []string, out io.Writer) error

func roles() map[string]role {
	return map[string]role{"role-load": loadRole, "role-plain": plainRole, "role-issuer": issuerRole, "role-idle": idleRole, "role-upstream": upstreamRole}
}

// loadRole: SOCKET PATH CONSUMERS keep|each TIME.
func loadRole(_ context.Context, args []string, out io.Writer) error {
	if len(args) != 5 {
		return errors.New("role-load: five arguments")
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	d, err := time.ParseDuration(args[4])
	if err != nil {
		return err
	}
	r, err := load(args[0], args[1], n, args[3] == "keep", d)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(r)
}

type credKey struct{}

// plainRole: SOCKET SIZE. It is the least that could be done with net/http: the
// kernel is asked once a connection, and the answer is constant. /mallocs tells
// how often it has allocated.
func plainRole(ctx context.Context, args []string, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("role-plain: two arguments")
	}
	size, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	body := []byte(strings.Repeat("x", size))
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+plainPath, func(w http.ResponseWriter, r *http.Request) {
		if cred, ok := r.Context().Value(credKey{}).(*unix.Ucred); !ok || cred.Pid == 0 {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(body)
	})
	mux.HandleFunc("GET /mallocs", func(w http.ResponseWriter, _ *http.Request) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Fprintf(w, "%s %d\n", mallocsMetric, m.Mallocs)
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ConnContext: func(ctx context.Context, c net.Conn) context.Context {
		cred, err := peer(c)
		if err != nil {
			return ctx
		}
		return context.WithValue(ctx, credKey{}, cred)
	}}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", args[0])
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "ready")
	return srv.Serve(l)
}

func peer(c net.Conn) (cred *unix.Ucred, err error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("no Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(err, cerr)
}

// issuerRole: CAFILE. It prints where it listens.
func issuerRole(_ context.Context, args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("role-issuer: one argument")
	}
	l, ca, err := fakeIssuer()
	if err != nil {
		return err
	}
	if err := os.WriteFile(args[0], ca, 0o600); err != nil { //nolint:gosec // this program's own argument
		return err
	}
	fmt.Fprintln(out, l.Addr())
	srv := &http.Server{Handler: fake.NewIssuer(fake.Client{ID: clientID, Secret: clientSecret}), ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: log.New(io.Discard, "", 0)} // of ten thousand clients at once some are too slow, and come again
	return srv.Serve(l)
}

// idleRole: SOCKET PATH CONNECTIONS. It asks once on each, and holds them all
// until its standard input ends.
func idleRole(ctx context.Context, args []string, out io.Writer) error {
	if len(args) != 3 {
		return errors.New("role-idle: three arguments")
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	ended, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	conns := make([]net.Conn, n)
	for i := range conns {
		if conns[i], err = (&net.Dialer{}).DialContext(ended, "unix", args[0]); err != nil {
			return fmt.Errorf("connection %d: %w", i+1, err)
		}
		defer conns[i].Close()
		if _, err := get(conns[i], args[1]); err != nil {
			return fmt.Errorf("connection %d: %w", i+1, err)
		}
	}
	fmt.Fprintln(out, "ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	// Whoever was closed meanwhile does not count as held.
	held := 0
	for _, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			held++
		}
	}
	fmt.Fprintln(out, held)
	return nil
}
