package proxy

import (
	"context"
	"net/http"
	"time"

	"credentialbroker/internal/gate"
)

// ServeLoopback serves the route of that name on l until ctx ends. Its caps are
// its own.
func (s *Server) ServeLoopback(ctx context.Context, l *gate.Loopback, name string) error {
	serve := func(w http.ResponseWriter, r *http.Request) {
		d := s.named(name)
		if d == nil { // it was configured away meanwhile
			panic(http.ErrAbortHandler)
		}
		d.ServeHTTP(w, r)
	}
	times := gate.NewTimes()
	times.Write, times.Drain = 0, 10*time.Second // as on a socket
	return gate.Serve(ctx, func() {}, gate.Server{Listener: l, Pool: gate.New(s.o.Limits.Loopback(), s.o.Log), Handler: http.HandlerFunc(serve), Times: times})
}

func (s *Server) named(name string) *door {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.doors {
		if d.route.Load().Name == name {
			return d
		}
	}
	return nil
}
