package api

import (
	"context"
	"net/http"

	"credentialbroker/internal/gate"
)

// ServeLoopback serves consumers on l until ctx ends, as Run does on the
// socket. Its caps are its own.
func (s *Server) ServeLoopback(ctx context.Context, l *gate.Loopback) error {
	stopping := func() {} // streams of events end with the server, else after Drain
	return gate.Serve(ctx, stopping, gate.Server{Listener: l, Pool: gate.New(s.cfg.Limits.Loopback(), s.log), Handler: http.HandlerFunc(s.onLoopback), Times: s.times.Times})
}

func (s *Server) onLoopback(w http.ResponseWriter, r *http.Request) {
	w.Header()["X-Content-Type-Options"] = []string{"nosniff"}
	err := gate.From(r.Context()).Direct(r)
	if err == nil {
		s.consumer(w, r)
		return
	}
	defer s.recovered(r)
	if c := s.enter(w, r); s.admitted(w, r, c) {
		w.Header().Set("Connection", "close")
		s.refuse(w, r, invalid(err.Error()))
	}
}
