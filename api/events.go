package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
)

// Rules of this file:
//   - the first look is an ordinary request: what refuses it is an ordinary
//     error, before the stream begins;
//   - in the stream, an error that waiting may mend is an event, and the stream
//     goes on; after one that needs a person it ends;
//   - a reader that takes nothing is let go: each event has its own time.

// events streams the token now, and each new one (server-sent events, WHATWG
// HTML §9.2).
func (s *Server) events(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	req, err := tokenRequest(r.URL.RawQuery, name, access.Events)
	if err != nil {
		return err
	}
	watch := s.cfg.Broker.Watch(c, req)
	grant, err := watch.Next(r.Context()) // as an ordinary request, it outlives the stop for a while
	if err != nil {
		return err
	}
	ctx, end := s.untilStop(r.Context())
	defer end()
	w.Header()["Content-Type"] = s.fixed.events
	out := &eventStream{patient{w, http.NewResponseController(w), s.times.line}, &s.buffers}
	for {
		if err == nil {
			err = out.token(grant)
		} else if err = out.problem(err); err == nil && ctx.Err() != nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil // whoever asked has gone, or is told to go
		}
		grant, err = s.next(ctx, watch, out)
	}
}

// next waits for what comes, and shows meanwhile that the connection lives.
func (s *Server) next(ctx context.Context, watch *broker.Watch, out *eventStream) (*broker.Grant, error) {
	for {
		quiet, cancel := context.WithTimeout(ctx, s.times.quietStream)
		grant, err := watch.Next(quiet)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return grant, err
		}
		if err := out.comment(); err != nil {
			return nil, err
		}
	}
}

// eventStream writes server-sent events, each flushed.
type eventStream struct {
	patient
	buffers *buffers
}

// token sends a token event; its data is the answer of the token surface.
func (e *eventStream) token(g *broker.Grant) error {
	b := e.buffers.get()
	defer e.buffers.put(b)
	b.text("event: token\nid: ")
	b.text(g.Token.Fingerprint)
	b.text("\ndata: ")
	if err := b.token(g); err != nil { // it ends with a line end
		return err
	}
	b.text("\n")
	return e.send(b.b)
}

// errLast ends a stream after its last event.
var errLast = errors.New("the stream ends here")

// problem sends an error event; its data is the error document.
func (e *eventStream) problem(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, errUnsent) {
		return err
	}
	p := broker.Problem(err)
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := e.send(append(append([]byte("event: error\ndata: "), data...), "\n\n"...)); err != nil {
		return err
	}
	if p.Status < 500 && p.Code != client.RateLimited {
		return errLast
	}
	return nil
}

// comment keeps connections open that somebody between might end.
func (e *eventStream) comment() error { return e.send([]byte(": alive\n\n")) }

// errUnsent is that the reader took nothing in time, or is gone.
var errUnsent = errors.New("the reader of the stream is gone")

func (e *eventStream) send(b []byte) error {
	if _, err := e.Write(b); err != nil {
		return errUnsent
	}
	if e.control.Flush() != nil {
		return errUnsent
	}
	return nil
}
