// Package gate lets connections in: each with its caller, as the kernel says,
// and each user within its caps, so that it costs the others nothing.
//
// Listen and Inherited give sockets that are what was asked for; a Pool counts
// what comes in by them; Serve is net/http over both.
package gate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
)

// Rules of a Pool:
//   - who asks is the process that opened the connection; the kernel is asked
//     once, before the first byte is read;
//   - a new connection is served before an idle one is kept: whoever leaks
//     connections loses old ones;
//   - a user at its cap displaces its own connections; at the total, the one
//     with most gives way, if need be in the middle of a request;
//   - a half-sent request counts as idle.

// Limits cap what one user may cost the others.
type Limits struct {
	// ConnectionsPerUser is how many connections one uid may hold. Zero: 256.
	ConnectionsPerUser int
	// Connections is how many there may be in all. Zero: 4096.
	Connections int
	// RequestsPerSecond is the rate of requests of one uid. Zero: 5000.
	RequestsPerSecond int
	// Burst is how many requests may come at once. Zero: 10000.
	Burst int
}

func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		value *int
		zero  int
	}{{&l.ConnectionsPerUser, 256}, {&l.Connections, 4096}, {&l.RequestsPerSecond, 5000}, {&l.Burst, 10000}} {
		if *d.value <= 0 {
			*d.value = d.zero
		}
	}
	return l
}

// Loopback are the limits of one port of this machine, which is for the
// applications of one client: at most 512 connections.
func (l Limits) Loopback() Limits {
	const most = 512
	if l.Connections <= 0 || l.Connections > most {
		l.Connections = most
	}
	return l
}

// surplus is how many connections beyond its cap a user may hold to be told
// so, when all of the others have a request in progress.
const surplus = 16

// A Pool holds the connections of one socket, or of several that share their
// caps. Make one with New; it starts nothing.
type Pool struct {
	limits Limits
	log    *slog.Logger
	start  time.Time
	open   sync.WaitGroup // connections that net/http has not finished with
	who    access.Identifier

	mu    sync.Mutex
	peers map[uint32]*peer
	total int

	displaced, unidentified atomic.Uint64
	logged                  atomic.Int64 // when complain last did, after start
}

// peer is one uid.
type peer struct {
	conns   map[*Conn]struct{}
	bucket  bucket
	scanned bucket // candidates of scans
	judged  bucket // tokens that nobody here knows
}

// Conn is a connection with its caller. net/http reads it.
type Conn struct {
	net.Conn // a *net.UnixConn or a *local

	pool   *Pool
	uid    uint32
	peer   *peer
	over   bool // beyond the cap: the answer is 429
	asked  bool // Identify was called; only net/http's goroutine uses it
	closed atomic.Bool
	caller atomic.Pointer[access.Caller]
	// idle is since when it has no request in progress, in nanoseconds after
	// the pool's start; 0: it has one.
	idle atomic.Int64
}

type connKey struct{}

// WithConn is http.Server's ConnContext; From finds what it put there.
func WithConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// From gives the connection of a request, or nil if it came by no gate.
func From(ctx context.Context) *Conn {
	c, _ := ctx.Value(connKey{}).(*Conn)
	return c
}

// New makes a Pool. log is for callers that cannot be identified.
func New(l Limits, log *slog.Logger) *Pool {
	return &Pool{limits: l.withDefaults(), log: log, start: time.Now().Add(-time.Second), peers: map[uint32]*peer{}}
}

// Gate is a listener that keeps to the caps of p.
func (p *Pool) Gate(l net.Listener) net.Listener { return &gate{l, p} }

type gate struct {
	net.Listener
	pool *Pool
}

// Accept returns the next connection that there is room for.
func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			g.pool.displaceGreediest() // net/http comes back in a moment
			g.pool.complain("no descriptors are left for new connections: raise LimitNOFILE=", "error", err)
		}
		if err != nil {
			return nil, err //nolint:wrapcheck // net/http looks at it
		}
		if admitted := g.pool.admit(c); admitted != nil {
			return admitted, nil
		}
		_ = c.Close()
	}
}

// admit takes a connection in, or returns nil if nothing idle could make room.
func (p *Pool) admit(nc net.Conn) *Conn {
	uid, err := userOf(nc)
	if err != nil {
		p.unknown(uid, err)
		return nil
	}
	c := &Conn{Conn: nc, pool: p, uid: uid}
	c.idle.Store(p.now())
	p.mu.Lock()
	own := p.peers[uid]
	if own == nil {
		p.prune()
		own = &peer{conns: map[*Conn]struct{}{}}
		p.peers[uid] = own
	}
	var victim *Conn
	switch {
	case len(own.conns) >= p.limits.ConnectionsPerUser:
		victim = own.oldestIdle()
		c.over = victim == nil
	case p.total >= p.limits.Connections:
		if victim = p.greediest(); victim == nil {
			// Everything has a request in progress, or pretends to: whoever holds
			// most gives way to whoever holds less.
			if victim = p.busiest(len(own.conns) + 1); victim == nil {
				p.mu.Unlock()
				return nil
			}
		}
	}
	if c.over && len(own.conns) >= p.limits.ConnectionsPerUser+surplus {
		p.mu.Unlock()
		return nil
	}
	c.peer = own
	own.conns[c] = struct{}{}
	p.total++
	p.open.Add(1)
	p.mu.Unlock()
	p.displace(victim)
	return c
}

func (p *Pool) displace(victim *Conn) {
	if victim != nil {
		p.displaced.Add(1)
		_ = victim.Close()
	}
}

func (p *Pool) displaceGreediest() {
	p.mu.Lock()
	victim := p.greediest()
	p.mu.Unlock()
	p.displace(victim)
}

// greediest is an old idle connection of the uid that holds most.
func (p *Pool) greediest() *Conn {
	var victim *Conn
	most := 0
	for _, peer := range p.peers {
		if len(peer.conns) > most {
			if c := peer.oldestIdle(); c != nil {
				victim, most = c, len(peer.conns)
			}
		}
	}
	return victim
}

// busiest is any connection of the uid that holds most, if that is more than
// fair.
func (p *Pool) busiest(fair int) (victim *Conn) {
	for _, peer := range p.peers {
		if len(peer.conns) > fair {
			fair = len(peer.conns)
			for victim = range peer.conns {
				break
			}
		}
	}
	return victim
}

// oldestIdle is the oldest of the few idle connections that it comes across
// first: in a flood there is no time to look at thousands for each new one.
func (p *peer) oldestIdle() *Conn {
	const few = 32
	var oldest *Conn
	var since int64
	seen := 0
	for c := range p.conns {
		if seen++; seen > few && oldest != nil {
			break
		}
		if idle := c.idle.Load(); idle != 0 && (oldest == nil || idle < since) {
			oldest, since = c, idle
		}
	}
	return oldest
}

// prune forgets uids that have no connection and used up no part of their
// rate.
func (p *Pool) prune() {
	now := p.now()
	for uid, peer := range p.peers {
		if len(peer.conns) == 0 && peer.bucket.full(now) && peer.scanned.full(now) && peer.judged.full(now) {
			delete(p.peers, uid)
		}
	}
}

func (p *Pool) now() int64 { return int64(time.Since(p.start)) }

// CloseIdle closes what has no request in progress.
func (p *Pool) CloseIdle() {
	p.mu.Lock()
	var idle []*Conn
	for _, peer := range p.peers {
		for c := range peer.conns {
			if c.idle.Load() != 0 {
				idle = append(idle, c)
			}
		}
	}
	p.mu.Unlock()
	for _, c := range idle {
		_ = c.Close()
	}
}

// Wait returns when net/http has finished with every connection.
func (p *Pool) Wait() { p.open.Wait() }

// Busy is how many connections have a request in progress.
func (p *Pool) Busy() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, peer := range p.peers {
		for c := range peer.conns {
			if c.idle.Load() == 0 {
				n++
			}
		}
	}
	return n
}

// Traffic counts what happened since New; RateLimited is not among it.
func (p *Pool) Traffic() client.SocketStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return client.SocketStatus{Connections: p.total, Displaced: p.displaced.Load(), Unidentified: p.unidentified.Load()}
}

// Changed is http.Server's ConnState: net/http's word on a connection. StateActive comes when the whole
// header was read, StateClosed last of all, once for each connection.
func (p *Pool) Changed(nc net.Conn, state http.ConnState) {
	c, ok := nc.(*Conn)
	if !ok {
		return
	}
	switch state {
	case http.StateActive:
		c.idle.Store(0)
	case http.StateIdle:
		c.idle.Store(p.now())
	case http.StateClosed:
		_ = c.Close()
		p.open.Done()
	default: // new ones are idle from the start; none is hijacked
	}
}

// Read asks the kernel who the peer is before it reads the first byte. That is
// in the connection's own goroutine, so that looking at /proc holds up nobody
// else.
func (c *Conn) Read(b []byte) (int, error) {
	if !c.asked {
		c.asked = true
		if err := c.identify(); err != nil {
			return 0, &net.OpError{Op: "read", Net: c.LocalAddr().Network(), Err: err}
		}
	}
	return c.Conn.Read(b)
}

func (c *Conn) identify() error {
	var caller *access.Caller
	var err error
	switch nc := c.Conn.(type) {
	case *net.UnixConn:
		caller, err = c.pool.who.Identify(nc)
	case *local:
		caller = nc.caller()
	}
	if err != nil {
		if !c.closed.Load() {
			c.pool.unknown(c.uid, err)
		}
		return err
	}
	c.caller.Store(caller)
	if c.closed.Load() { // it was displaced meanwhile
		_ = caller.Close()
	}
	return nil
}

// unknown counts a caller that cannot be identified, unless it is gone.
func (p *Pool) unknown(uid uint32, err error) {
	if !errors.Is(err, access.ErrExited) {
		p.unidentified.Add(1)
		p.complain("a connection was closed: its caller cannot be identified", "uid", uid, "error", err)
	}
}

// complain logs at most once a minute, since whoever is the cause can repeat it
// at will.
func (p *Pool) complain(message string, args ...any) {
	last, now := p.logged.Load(), p.now()
	if (last == 0 || now-last > int64(time.Minute)) && p.logged.CompareAndSwap(last, now) {
		p.log.Warn(message, args...)
	}
}

// Caller is who opened the connection. It is not nil once a byte was read.
func (c *Conn) Caller() *access.Caller { return c.caller.Load() }

// Admit takes one request from its user's rate. It returns how long the user
// has to wait, and whether it holds more connections than it may.
func (c *Conn) Admit() (wait time.Duration, over bool) {
	return c.peer.bucket.take(c.pool.now(), &c.pool.limits), c.over
}

// AdmitScan takes n candidates of a scan from its user's rate for these, all
// or none, and returns how long to wait.
func (c *Conn) AdmitScan(l Limits, n int) time.Duration {
	return c.peer.scanned.takeMany(c.pool.now(), &l, int64(n))
}

// AdmitJudging is the same for one token that is to be judged.
func (c *Conn) AdmitJudging(l Limits) time.Duration {
	return c.peer.judged.take(c.pool.now(), &l)
}

// MustLive ends the request without an answer if whoever opened the connection
// has exited: what holds it now is somebody else.
func (c *Conn) MustLive() {
	if !c.caller.Load().Alive() {
		panic(http.ErrAbortHandler) // net/http closes the connection
	}
}

// Close gives the place back. It may be called more than once.
func (c *Conn) Close() error {
	if !c.closed.CompareAndSwap(false, true) {
		return nil
	}
	c.pool.mu.Lock()
	delete(c.peer.conns, c)
	c.pool.total--
	c.pool.mu.Unlock()
	if caller := c.caller.Load(); caller != nil {
		_ = caller.Close()
	}
	return c.Conn.Close()
}

// CloseWrite lets net/http end an answer to a request that it did not read
// whole: Close alone would take the answer back.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// userOf is who opened a connection. One of a kind that has no such user is
// refused.
func userOf(c net.Conn) (uint32, error) {
	switch c := c.(type) {
	case *net.UnixConn:
		return PeerUID(c)
	case *local:
		return c.peer.UID, c.err
	}
	return 0, fmt.Errorf("a connection by %s tells nobody's user", c.LocalAddr().Network())
}

// PeerUID is who opened a connection (SO_PEERCRED, unix(7)).
func PeerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, failed); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// bucket is a token bucket, kept as the time at which it will be full again
// (the generic cell rate algorithm): one word, no lock.
type bucket struct{ fullAt atomic.Int64 }

// take returns 0 if one more request fits now, else how long to wait. now is in
// nanoseconds, on a clock that nobody can set.
func (b *bucket) take(now int64, l *Limits) time.Duration { return b.takeMany(now, l, 1) }

// takeMany is take for n requests, of which all fit or none.
func (b *bucket) takeMany(now int64, l *Limits, n int64) time.Duration {
	each := int64(time.Second) / int64(l.RequestsPerSecond)
	size := each * int64(l.Burst)
	for {
		old := b.fullAt.Load()
		next := max(old, now) + n*each
		if next-now > size {
			return time.Duration(next - now - size)
		}
		if b.fullAt.CompareAndSwap(old, next) {
			return 0
		}
	}
}

func (b *bucket) full(now int64) bool { return b.fullAt.Load() <= now }
