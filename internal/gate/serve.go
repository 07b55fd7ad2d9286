package gate

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// A Server is net/http on one socket: what comes in by Listener, within the
// caps of Pool.
type Server struct {
	Listener net.Listener
	Pool     *Pool
	Handler  http.Handler
	Times    Times
}

// Times are the time limits of a connection. A request's own time is its
// handler's to bound.
type Times struct {
	Header time.Duration // to send the request line and headers
	Idle   time.Duration // between requests
	Write  time.Duration // from the request to the end of the answer; 0: no limit
	Drain  time.Duration // for requests in flight when the server goes down
	Quiet  time.Duration // until connections without a request are closed then
}

// NewTimes are those of a local socket.
func NewTimes() Times {
	return Times{Header: 10 * time.Second, Idle: 5 * time.Minute, Write: 2 * time.Minute, Drain: 5 * time.Second, Quiet: 300 * time.Millisecond}
}

// MaxHeader is how long a request line with its headers may be, in bytes.
const MaxHeader = 16 << 10

// Serve serves until ctx ends; then it calls stopping, answers what is in
// flight, for as long as the longest Drain, and returns nil. It returns
// earlier, with the error, when a socket fails. It closes the listeners.
func Serve(ctx context.Context, stopping func(), servers ...Server) error {
	base := context.WithoutCancel(ctx) // what is in flight when ctx ends is still answered
	running := make([]*http.Server, len(servers))
	failed := make(chan error, len(servers))
	var accepting sync.WaitGroup
	for i, one := range servers {
		srv := one.http(base)
		running[i] = srv
		accepting.Go(func() {
			failed <- srv.Serve(one.Pool.Gate(one.Listener))
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stopping()
	for _, one := range servers {
		_ = one.Listener.Close()
	}
	accepting.Wait()
	var draining sync.WaitGroup
	for i, one := range servers {
		draining.Go(func() { one.drain(base, running[i]) })
	}
	draining.Wait()
	return err
}

// drain ends when every connection has. net/http's Shutdown is no help: it closes
// connections whose request it has read, but not begun to answer.
func (s *Server) drain(base context.Context, srv *http.Server) {
	ctx, stop := context.WithTimeout(base, s.Times.Drain)
	defer stop()
	srv.SetKeepAlivesEnabled(false)
	// What never asks would be waited for.
	quiet := time.AfterFunc(s.Times.Quiet, s.Pool.CloseIdle)
	defer quiet.Stop()
	ended := make(chan struct{})
	go func() { s.Pool.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	_ = srv.Close() // ends the context of the requests that are left, too
	<-ended
}

func (s *Server) http(base context.Context) *http.Server {
	return &http.Server{
		Handler:                      s.Handler,
		BaseContext:                  func(net.Listener) context.Context { return base },
		ConnContext:                  WithConn,
		ConnState:                    s.Pool.Changed,
		ReadHeaderTimeout:            s.Times.Header,
		IdleTimeout:                  s.Times.Idle,
		WriteTimeout:                 s.Times.Write,
		MaxHeaderBytes:               MaxHeader - 4096, // net/http adds 4096 itself
		DisableGeneralOptionsHandler: true,
		// What net/http logs is about connections that sent nonsense.
		ErrorLog: log.New(io.Discard, "", 0),
	}
}
