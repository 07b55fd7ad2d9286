// Package api serves the broker's two Unix sockets over HTTP/1.1: one for
// consumers, one for administrators. openapi.yaml describes both.
//
// Rules of the package:
//   - who asks is the process that opened the connection, as the kernel says;
//     it is asked once, before the first byte is read, and once that process is
//     gone its connection gets nothing more;
//   - one user's connections and requests are capped, so that they cost the
//     others nothing;
//   - what may hold a token is built in a buffer that is wiped, never in a
//     string;
//   - an administrative act is recorded before it is done.
package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/gate"
)

// A Server answers on both sockets. Make one with New; Run serves.
type Server struct {
	cfg    Config
	log    *slog.Logger
	routes struct{ consumer, admin []route }
	pools  struct{ consumer, admin *gate.Pool }

	times       times
	fixed       fixed
	buffers     buffers
	reading     sync.Mutex      // the whole audit log
	stopping    context.Context // ends when Run goes down: streams end with it
	stop        context.CancelFunc
	rateLimited atomic.Uint64
}

// Config is what a Server works with.
type Config struct {
	// Consumer and Admin are the sockets, from gate.Listen or gate.Inherited. Run closes
	// them. nil: this one is not served.
	Consumer, Admin net.Listener
	Broker          Broker
	Administration  Administration
	Limits          gate.Limits
	// Log is for what is wrong on the broker's side. nil: slog.Default().
	Log *slog.Logger
}

// Broker decides what a consumer gets. Its errors are *broker.Error; another
// one is answered as internal, without its text.
type Broker interface {
	dispenser
	viewer
}

type dispenser interface {
	Token(context.Context, *access.Caller, broker.Request) (*broker.Grant, error)
	APIKey(ctx context.Context, c *access.Caller, client string) (*broker.Grant, error)
	JWT(context.Context, *access.Caller, broker.UserRequest) (*broker.Grant, error)
	Reject(context.Context, *access.Caller, broker.Rejection) (broker.Rejected, error)
	Watch(*access.Caller, broker.Request) *broker.Watch
}

type viewer interface {
	Whoami(*access.Caller) broker.Identity
	Ready(*access.Caller) broker.Readiness
}

// times are the time limits of a connection; only tests have others.
type times struct {
	gate.Times
	body time.Duration // to send the body
	line time.Duration // to take one line of a stream
	// quietStream is how long a stream of events is silent.
	quietStream time.Duration
}

func newTimes() times {
	return times{Times: gate.NewTimes(), body: 10 * time.Second, line: 30 * time.Second, quietStream: 15 * time.Second}
}

const (
	maxHeader = gate.MaxHeader
	maxBody   = 64 << 10 // bytes
)

func adminLimits() gate.Limits {
	return gate.Limits{ConnectionsPerUser: 32, Connections: 256, RequestsPerSecond: 50, Burst: 500}
}

// New makes a Server; it starts nothing.
func New(c Config) *Server {
	s := &Server{cfg: c, log: c.Log, fixed: newFixed(), times: newTimes()}
	s.stopping, s.stop = context.WithCancel(context.Background())
	if s.log == nil {
		s.log = slog.Default()
	}
	s.routes.consumer = prepare(consumerRoutes())
	s.routes.admin = prepare(adminRoutes())
	s.pools.consumer = gate.New(c.Limits, s.log)
	s.pools.admin = gate.New(adminLimits(), s.log)
	return s
}

// Run serves until ctx ends; then it answers what is in flight, for at most
// five seconds, and returns nil. It returns earlier, with the error, when a
// socket fails. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	var servers []gate.Server
	for _, one := range []gate.Server{
		{Listener: s.cfg.Consumer, Pool: s.pools.consumer, Handler: http.HandlerFunc(s.consumer), Times: s.times.Times},
		{Listener: s.cfg.Admin, Pool: s.pools.admin, Handler: http.HandlerFunc(s.admin), Times: s.times.Times},
	} {
		if one.Listener != nil {
			servers = append(servers, one)
		}
	}
	return gate.Serve(ctx, s.stop, servers...)
}

// Traffic counts what happened on the consumer socket since the start.
func (s *Server) Traffic() client.SocketStatus {
	t := s.pools.consumer.Traffic()
	t.RateLimited = s.rateLimited.Load()
	return t
}

func (s *Server) consumer(w http.ResponseWriter, r *http.Request) {
	defer s.recovered(r)
	c := s.enter(w, r)
	if !s.admitted(w, r, c) {
		return
	}
	rt, name, err := match(s.routes.consumer, w, r)
	if err == nil {
		if !rt.dispenses {
			c.MustLive()
		}
		err = rt.serve(s, w, r, c.Caller(), name)
	}
	if err != nil {
		s.refuse(w, r, err)
	}
}

// enter returns the connection of a request.
func (s *Server) enter(w http.ResponseWriter, r *http.Request) *gate.Conn {
	c := gate.From(r.Context())
	if c == nil {
		panic("api: a connection that no gate let in")
	}
	w.Header()["Cache-Control"] = s.fixed.noStore
	if r.ContentLength != 0 {
		// net/http reads what is left of a body before it answers, and would
		// wait for it as long as the caller likes.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.times.body))
	}
	return c
}

// admitted says whether the caller is within its caps; if not, it has been
// told so.
func (s *Server) admitted(w http.ResponseWriter, r *http.Request, c *gate.Conn) bool {
	wait, over := c.Admit()
	if wait == 0 && !over {
		return true
	}
	s.rateLimited.Add(1)
	detail := "this user asks too often: ask once per call to the API, and wait for Retry-After"
	if over {
		detail = "this user has too many connections with a request in progress: share connections, or let requests end first"
		w.Header().Set("Connection", "close")
	}
	s.refuse(w, r, &broker.Error{Code: client.RateLimited, Detail: detail, RetryAfter: max(wait, time.Second)})
	return false
}

// recovered turns a panic into a closed connection. The value of the panic is
// not logged: it may hold what must not be.
func (s *Server) recovered(r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
		s.log.Error("a request failed inside the broker; please report this", "method", r.Method, "stack", string(frames(debug.Stack())))
	}
	panic(http.ErrAbortHandler)
}

// frames leaves the functions and lines of a stack, without the arguments.
func frames(stack []byte) []byte {
	var out []byte
	for line := range strings.Lines(string(stack)) {
		if i := strings.LastIndexByte(line, '('); i > 0 && line[0] != '\t' {
			line = line[:i] + "\n"
		}
		out = append(out, line...)
	}
	return out
}
