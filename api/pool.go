package api

import (
	"context"
	"errors"
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

// Rules of this file:
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

func adminLimits() Limits {
	return Limits{ConnectionsPerUser: 32, Connections: 256, RequestsPerSecond: 50, Burst: 500}
}

// surplus is how many connections beyond its cap a user may hold to be told
// so, when all of the others have a request in progress.
const surplus = 16

// pool holds the connections of one socket.
type pool struct {
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
	conns   map[*conn]struct{}
	bucket  bucket
	scanned bucket // candidates of scans
}

// conn is a connection with its caller. net/http reads it.
type conn struct {
	*net.UnixConn
	pool   *pool
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

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

func newPool(l Limits, log *slog.Logger) *pool {
	return &pool{limits: l.withDefaults(), log: log, start: time.Now().Add(-time.Second), peers: map[uint32]*peer{}}
}

// A gate is a listener that keeps to the caps.
type gate struct {
	net.Listener
	pool *pool
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
		u, ok := c.(*net.UnixConn)
		if !ok {
			_ = c.Close()
			continue
		}
		if admitted := g.pool.admit(u); admitted != nil {
			return admitted, nil
		}
		_ = u.Close()
	}
}

// admit takes a connection in, or returns nil if nothing idle could make room.
func (p *pool) admit(u *net.UnixConn) *conn {
	uid, err := peerUID(u)
	if err != nil {
		return nil
	}
	c := &conn{UnixConn: u, pool: p, uid: uid}
	c.idle.Store(p.now())
	p.mu.Lock()
	own := p.peers[uid]
	if own == nil {
		p.prune()
		own = &peer{conns: map[*conn]struct{}{}}
		p.peers[uid] = own
	}
	var victim *conn
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

func (p *pool) displace(victim *conn) {
	if victim != nil {
		p.displaced.Add(1)
		_ = victim.Close()
	}
}

func (p *pool) displaceGreediest() {
	p.mu.Lock()
	victim := p.greediest()
	p.mu.Unlock()
	p.displace(victim)
}

// greediest is an old idle connection of the uid that holds most.
func (p *pool) greediest() *conn {
	var victim *conn
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
func (p *pool) busiest(fair int) (victim *conn) {
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
func (p *peer) oldestIdle() *conn {
	const few = 32
	var oldest *conn
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
func (p *pool) prune() {
	now := p.now()
	for uid, peer := range p.peers {
		if len(peer.conns) == 0 && peer.bucket.full(now) && peer.scanned.full(now) {
			delete(p.peers, uid)
		}
	}
}

func (p *pool) now() int64 { return int64(time.Since(p.start)) }

// closeIdle closes what has no request in progress.
func (p *pool) closeIdle() {
	p.mu.Lock()
	var idle []*conn
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

// wait returns when net/http has finished with every connection.
func (p *pool) wait() { p.open.Wait() }

func (p *pool) traffic() client.SocketStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return client.SocketStatus{Connections: p.total, Displaced: p.displaced.Load(), Unidentified: p.unidentified.Load()}
}

// changed is net/http's word on a connection. StateActive comes when the whole
// header was read, StateClosed last of all, once for each connection.
func (p *pool) changed(nc net.Conn, state http.ConnState) {
	c, ok := nc.(*conn)
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
func (c *conn) Read(b []byte) (int, error) {
	if !c.asked {
		c.asked = true
		if err := c.identify(); err != nil {
			return 0, &net.OpError{Op: "read", Net: "unix", Err: err}
		}
	}
	return c.UnixConn.Read(b)
}

func (c *conn) identify() error {
	caller, err := c.pool.who.Identify(c.UnixConn)
	if err != nil {
		if !errors.Is(err, access.ErrExited) && !c.closed.Load() {
			c.pool.unidentified.Add(1)
			c.pool.complain("a connection was closed: its caller cannot be identified", "uid", c.uid, "error", err)
		}
		return err
	}
	c.caller.Store(caller)
	if c.closed.Load() { // it was displaced meanwhile
		_ = caller.Close()
	}
	return nil
}

// complain logs at most once a minute, since whoever is the cause can repeat it
// at will.
func (p *pool) complain(message string, args ...any) {
	last, now := p.logged.Load(), p.now()
	if (last == 0 || now-last > int64(time.Minute)) && p.logged.CompareAndSwap(last, now) {
		p.log.Warn(message, args...)
	}
}

// mustLive ends the request without an answer if whoever opened the connection
// has exited: what holds it now is somebody else.
func (c *conn) mustLive() {
	if !c.caller.Load().Alive() {
		panic(http.ErrAbortHandler) // net/http closes the connection
	}
}

// Close gives the place back. It may be called more than once.
func (c *conn) Close() error {
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
	return c.UnixConn.Close()
}

func peerUID(c *net.UnixConn) (uint32, error) {
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
