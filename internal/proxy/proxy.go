// Package proxy passes requests on to an API, with the headers that a client's
// calls need: the application holds no credential at all, not even a token.
//
// A route is a socket and one upstream. Whoever connects is judged as on the
// consumer socket, by the surface proxy.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/gate"
	"credentialbroker/internal/outbound"
)

// Rules of this file:
//   - routes change as a whole or not at all: Prepare does all that can fail,
//     Commit and Discard cannot;
//   - a socket that stays configured stays open: its route is exchanged below
//     it, and what is in flight ends on the old one, but soon if the new one would
//     not take it;
//   - each socket has a pool of its own, so that one that goes waits for its own
//     connections alone.

// A Config is one route of a client.
type Config struct {
	// Name tells the routes of all clients apart: a-z 0-9 - _.
	Name string `yaml:"name" check:"required" hint:"a name of its own, such as the API's"`
	// Socket is the absolute path of the Unix socket. Missing: proxy/NAME.sock
	// beside the consumer socket.
	Socket string `yaml:"socket"`
	// Loopback is a TCP port of this machine, beside the socket. It is weaker.
	// Missing: there is none.
	Loopback *gate.Port `yaml:"loopback"`
	// Upstream is the base URL of the API: https, or http on 127.0.0.1 or [::1]
	// with upstream_user. A request for /x goes to Upstream/x.
	Upstream string `yaml:"upstream" check:"required" hint:"as in upstream: https://api.example.org/base"`
	// UpstreamUser is who runs an API that is reached over http, by name or
	// number: the kernel has to say so of the listener. Missing: it is https.
	UpstreamUser string `yaml:"upstream_user"`
	// Paths are the prefixes, below Upstream, that may be asked for; they end
	// where a segment does. Missing: all.
	Paths []string `yaml:"paths"`
	// Timeout is how long either side may be silent: the API before its answer
	// and within it, the application while it sends and takes. Missing: 60s.
	Timeout         clock.Duration `yaml:"timeout"`
	outbound.Config `yaml:",inline"`
}

// DefaultTimeout is that of a route that says nothing.
const DefaultTimeout = 60 * time.Second

// Validate says what is wrong with c; each error begins with its key.
func (c Config) Validate() error {
	var errs []error
	if err := c.upstreamProblems(); err != nil {
		errs = append(errs, err)
	}
	const longest = 107 // bytes of sockaddr_un
	switch {
	case c.Socket == "":
	case !filepath.IsAbs(c.Socket) || filepath.Clean(c.Socket) != c.Socket:
		errs = append(errs, errors.New("socket: not an absolute path without detours"))
	case len(c.Socket) > longest:
		errs = append(errs, fmt.Errorf("socket: longer than a socket's path can be, %d bytes", longest))
	}
	for _, p := range c.Paths {
		if _, ok := cleanPath(p); !ok || strings.ContainsAny(p, "?#") {
			errs = append(errs, fmt.Errorf("paths: %q is no path: it begins with / and has no empty, . or .. segment", p))
		}
	}
	const shortest, most = time.Second, time.Hour
	if t := c.Timeout.D(); t != 0 && (t < shortest || t > most) {
		errs = append(errs, errors.New("timeout: from 1s to 1h"))
	}
	if _, err := c.ProxyURL(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// A Route is a Config and whose it is.
type Route struct {
	Client string
	Config
}

// Options are what a Server works with.
type Options struct {
	Broker *broker.Broker
	Log    *slog.Logger
	// Limits are each socket's own.
	Limits gate.Limits
	// Dir holds the sockets of routes that name none.
	Dir string
	// Inherited are listeners of systemd's, by FileDescriptorName=: proxy-NAME.
	Inherited map[string]net.Listener
}

// A Server serves the routes of one configuration. Its methods may be called
// from many goroutines, but Prepare and what it returns one after the other.
type Server struct {
	o       Options
	metrics *metrics
	buffers buffers
	flight  flight
	drain   time.Duration // how long what is in flight may take when its route goes

	mu    sync.Mutex
	doors map[string]*door // by route's socket
	fresh []*door          // that Run does not serve yet
	news  chan struct{}
	diag  *access.SockDiag // nil: nobody needed it yet
}

// door is an open socket.
type door struct {
	listener net.Listener
	pool     *gate.Pool
	route    atomic.Pointer[route]
	gone     context.Context // ends when the door is configured no more
	close    context.CancelFunc
}

// New makes a Server without routes. It starts nothing.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Server{o: o, metrics: newMetrics(), doors: map[string]*door{}, news: make(chan struct{}, 1), drain: 10 * time.Second, flight: flight{calls: map[*call]struct{}{}}}
}

// A Change is a set of routes that could serve.
type Change struct {
	s      *Server
	routes map[string]*route // by socket
	opened map[string]*door
}

// Socket is where a route listens.
func (s *Server) Socket(c Config) string {
	if c.Socket != "" {
		return c.Socket
	}
	return filepath.Join(s.o.Dir, c.Name+".sock")
}

// Inherits is the FileDescriptorName= of a route's socket unit.
func Inherits(c Config) string { return "proxy-" + c.Name }

// Prepare makes ready to serve these routes and no others. Their sockets are
// open from then on; Commit serves them, Discard closes them.
func (s *Server) Prepare(routes []Route) (*Change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &Change{s: s, routes: map[string]*route{}, opened: map[string]*door{}}
	for _, r := range routes {
		at := s.Socket(r.Config)
		err := fmt.Errorf("the socket %s is another route's", at)
		if c.routes[at] == nil {
			err = c.add(at, r)
		}
		if err != nil {
			c.discard()
			return nil, fmt.Errorf("client %s: reverse_proxy %s: %w", r.Client, r.Name, err)
		}
	}
	return c, nil
}

func (c *Change) add(at string, r Route) (err error) {
	if c.routes[at], err = c.s.open(r, at); err != nil || c.s.doors[at] != nil {
		return err
	}
	d := &door{pool: gate.New(c.s.o.Limits, c.s.o.Log)}
	const anyone = 0o666 // the allow entries decide
	if l := c.s.o.Inherited[Inherits(r.Config)]; l != nil {
		d.listener = l
		delete(c.s.o.Inherited, Inherits(r.Config))
	} else if d.listener, err = gate.Listen(at, anyone); err != nil {
		return err
	}
	d.gone, d.close = context.WithCancel(context.Background())
	c.opened[at] = d
	return nil
}

// Discard forgets the change: everything is as before.
func (c *Change) Discard() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.discard()
}

func (c *Change) discard() {
	for _, d := range c.opened {
		_ = d.listener.Close()
	}
}

// Commit makes the change.
func (c *Change) Commit() {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, d := range s.doors {
		if c.routes[at] == nil {
			d.close()
			d.route.Load().retire()
			delete(s.doors, at)
		}
	}
	for at, r := range c.routes {
		r.counts = s.metrics.of(&r.Route)
		d := s.doors[at]
		if d == nil {
			d = c.opened[at]
			s.doors[at] = d
			s.fresh = append(s.fresh, d)
		}
		if old := d.route.Load(); old != nil {
			r.goOn(old.status())
		}
		if old := d.route.Swap(r); old != nil {
			old.retire()
		}
	}
	s.metrics.keep(c.routes)
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// Run serves until ctx ends, answers what is in flight then, and returns nil;
// or the error of a socket that fails.
func (s *Server) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var serving sync.WaitGroup
	for ctx.Err() == nil {
		s.mu.Lock()
		fresh := s.fresh
		s.fresh = nil
		s.mu.Unlock()
		for _, d := range fresh {
			serving.Go(func() {
				if err := s.serve(ctx, d); err != nil {
					stop(err)
				}
			})
		}
		changed, later := s.review()
		select {
		case <-ctx.Done():
		case <-s.news:
		case <-changed:
		case <-later:
		}
	}
	serving.Wait()
	s.mu.Lock()
	if s.diag != nil {
		_ = s.diag.Close()
	}
	s.mu.Unlock()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// serve serves one door until ctx ends, or the door goes.
func (s *Server) serve(ctx context.Context, d *door) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(d.gone, stop)()
	times := gate.NewTimes()
	times.Write = 0 // an answer may take as long as it likes, while it moves
	times.Drain = s.drain
	return gate.Serve(ctx, func() {}, gate.Server{Listener: d.listener, Pool: d.pool, Handler: d, Times: times})
}

// Status is what one route does.
type Status struct {
	Client, Name, Socket, Upstream string
	Requests                       int64 // since the route leads there
	Failed                         int64 // of them, for want of the API's answer
	Error                          string
	ErrorAt                        time.Time // of Error, the last one; zero: none
}

// Status tells of every route, in the order of clients and names.
func (s *Server) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Status
	for _, d := range s.doors {
		all = append(all, d.route.Load().status())
	}
	slices.SortFunc(all, func(a, b Status) int {
		return slices.Compare([]string{a.Client, a.Name}, []string{b.Client, b.Name})
	})
	return all
}
