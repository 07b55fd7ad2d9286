package proxy

import (
	"context"
	"errors"
	"sync"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
)

// Rules of this file: a request in progress is decided anew whenever the answer
// could be another. Who may not use the client any more, or not now, is cut off
// at once; what the route would not take any more has as long as at the
// daemon's end.

// flight is the requests in progress.
type flight struct {
	mu    sync.Mutex
	calls map[*call]struct{}
}

// begin takes the call in, with the route as it is now. It comes before the
// decision: what changes later is seen.
func (f *flight) begin(x *call) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x.rt = x.door.route.Load()
	f.calls[x] = struct{}{}
}

// end lets the call go: nobody stops it afterwards.
func (f *flight) end(x *call) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.calls, x)
}

func (f *flight) list() []*call {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]*call, 0, len(f.calls))
	for x := range f.calls {
		list = append(list, x)
	}
	return list
}

// stop ends a call that is still in progress: with an error document if the
// API's answer has not begun, else by breaking it off.
func (f *flight) stop(x *call, why *broker.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, on := f.calls[x]; on {
		x.cancel(why)
		_ = x.control.SetWriteDeadline(time.Now().Add(lastRead)) // the caller may take nothing
	}
}

// review stops what may not go on. It tells when to look again: when changed is
// closed, or after a time.
func (s *Server) review() (changed <-chan struct{}, later <-chan time.Time) {
	changed = s.o.Broker.Changed() // before looking
	var next time.Duration
	for _, x := range s.flight.list() {
		var refused *broker.Error
		if errors.As(s.o.Broker.May(x.caller, x.request()), &refused) {
			s.flight.stop(x, refused)
		} else if !x.door.route.Load().takes(x) {
			if x.outdated.IsZero() {
				x.outdated = time.Now()
			}
			left := s.drain - time.Since(x.outdated)
			if left <= 0 {
				s.flight.stop(x, &broker.Error{Code: client.NotAllowed, Detail: "the route " + x.rt.Name + " was changed, and does not lead there any more"})
			} else if next == 0 || left < next {
				next = left
			}
		}
	}
	if next > 0 {
		later = time.After(next)
	}
	return changed, later
}

// takes says whether rt would pass the call on as the route does on which it is.
func (rt *route) takes(x *call) bool {
	if rt == x.rt {
		return true
	}
	_, err := rt.target(x.in)
	return err == nil && rt.Client == x.rt.Client && rt.Upstream == x.rt.Upstream && rt.UpstreamUser == x.rt.UpstreamUser
}

// request is what the call asks the broker for.
func (x *call) request() broker.Request {
	return broker.Request{Client: x.rt.Client, Surface: access.Proxy, Via: "route " + x.rt.Name}
}

// stopped is why the flight has ended the call; nil: it has not.
func (x *call) stopped() *broker.Error {
	var e *broker.Error
	errors.As(context.Cause(x.ctx), &e)
	return e
}
