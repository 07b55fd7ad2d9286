package broker

import (
	"context"
	"errors"
	"sync"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
)

// Rules of this file: news only wake; what is true is asked anew, by the way
// that a single request takes. A wake-up that is lost costs a lookEvery.

// A Place is where the configuration itself puts what a client's callers get:
// a file, the credential of a unit. That it is configured is the permission.
type Place struct {
	Client  string
	Surface access.Surface
	// Scope (space-separated) and Audience choose the token; empty: the
	// client's defaults.
	Scope, Audience string
	// MinTTL is how much life the token must have left. Zero: any.
	MinTTL time.Duration
	// Key: the API key alone is put there, and no token.
	Key bool
	// Name says which place it is, in the records: "file /run/x/token".
	Name string
	// UID is the user that can read it, GID the group; NoGroup: none can.
	UID, GID uint32
}

// NoGroup is the GID of what no group can read.
const NoGroup = ^uint32(0)

// taker is who gets something: a process, or a place.
type taker struct {
	caller *access.Caller
	place  *Place
	via    string
}

func (t taker) recipient(s access.Surface) recipient {
	if t.place != nil {
		return recipient{uid: t.place.UID, gid: t.place.GID, place: t.place.Name, surface: s}
	}
	if t.caller.Place != "" { // by user: there is no process, and a connection is none
		return recipient{uid: t.caller.UID, place: t.caller.Place, surface: s, via: t.via}
	}
	return recipient{pid: t.caller.PID, start: t.caller.Start, uid: t.caller.UID, surface: s, via: t.via}
}

func (t taker) audited() audit.Caller {
	if t.place != nil {
		return audit.Caller{UID: t.place.UID, GID: t.place.GID, LoginUID: ^uint32(0), Place: t.place.Name}
	}
	return auditCaller(t.caller)
}

// gone says whether the process has exited.
func (t taker) gone() bool { return t.caller != nil && !t.caller.Alive() }

const (
	// lookEvery is how often a Watch looks without news: so often is the token
	// kept as read, a new bundle noticed, and whether the caller is still there.
	lookEvery = 30 * time.Second
	// retryWatch is the pause after an error that names none.
	retryWatch = 5 * time.Second
)

// A Watch follows what one taker gets of one client: what there is now, and
// what replaces it. It is for one goroutine, and holds nothing that has to be
// closed.
type Watch struct {
	b       *Broker
	client  string
	find    func(context.Context) (found, error)
	taker   taker
	surface access.Surface
	minTTL  time.Duration

	last string    // what was handed over: fingerprint and version
	due  time.Time // the next look without news; it stands however short the contexts of Next are
	news <-chan struct{}
}

// Watch begins to follow a token for a process.
func (b *Broker) Watch(c *access.Caller, r Request) *Watch {
	return &Watch{b: b, client: r.Client, taker: taker{caller: c, via: r.Via}, surface: r.Surface, minTTL: r.MinTTL,
		find: func(ctx context.Context) (found, error) { return b.find(ctx, c, r) }}
}

// WatchPlace begins to follow what belongs into a place.
func (b *Broker) WatchPlace(p Place) *Watch {
	return &Watch{b: b, client: p.Client, taker: taker{place: &p}, surface: p.Surface, minTTL: p.MinTTL,
		find: func(ctx context.Context) (found, error) { return b.findFor(ctx, p) }}
}

// Next gives the grant at once when it is called first, and from then on as
// soon as it is another: the token was replaced, or the bundle was. It is
// recorded as handed over. Between the two it blocks.
//
// An error is a *Error, or ctx's. After one, Next waits as long as the error
// says, or for news, looks again, and gives what there is: an error ends
// nothing.
func (w *Watch) Next(ctx context.Context) (*Grant, error) {
	f, err := w.see(ctx)
	if err != nil {
		return nil, err
	}
	g, err := w.b.give(ctx, w.taker, w.surface, &f)
	if err != nil {
		w.last = ""
		w.lookIn(retryWatch)
		return nil, err
	}
	w.last = f.name()
	return g, nil
}

// Offer is Next without the hand-over: for a place, into which what is offered
// may not come before HandOver has it on record.
func (w *Watch) Offer(ctx context.Context) (*Grant, error) {
	f, err := w.see(ctx)
	if err != nil {
		return nil, err
	}
	w.last = f.name()
	return w.b.grant(&f), nil
}

// HandOver records that what was offered comes into the place now. An error is
// a *Error, or ctx's: then it may not.
func (b *Broker) HandOver(ctx context.Context, p Place, g *Grant) error {
	return b.handOver(ctx, taker{place: &p}, p.Surface, g.held, b.o.Clock.Now())
}

// see waits for what is not what was there last.
func (w *Watch) see(ctx context.Context) (found, error) {
	for {
		if err := w.wait(ctx); err != nil {
			return found{}, err
		}
		w.news = w.b.newsOf(w.client) // before looking: what happens from here on wakes
		f, err := w.find(ctx)
		if ctx.Err() != nil {
			return found{}, ctx.Err()
		}
		if err != nil {
			w.last = ""
			w.lookIn(retryWatch)
			var e *Error
			if errors.As(err, &e) && e.RetryAfter > 0 {
				w.lookIn(e.RetryAfter)
			}
			return found{}, err
		}
		w.lookIn(w.next(&f))
		if w.taker.gone() { // it may be the same token for days, and give is not called
			w.last = ""
			return found{}, exited(w.taker.caller)
		}
		if f.name() != w.last {
			return f, nil
		}
	}
}

// next is when to look again without news.
func (w *Watch) next(f *found) time.Duration {
	if f.held == nil {
		return lookEvery
	}
	return min(max(f.held.end.Until(f.now)-w.minTTL, shortestRenew), lookEvery)
}

func (w *Watch) lookIn(d time.Duration) { w.due = time.Now().Add(d) }

func (w *Watch) wait(ctx context.Context) error {
	if w.due.IsZero() {
		return ctx.Err()
	}
	timer := time.NewTimer(time.Until(w.due))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-w.news:
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// newsOf is closed when something happens to the client. A name that is not in
// the configuration has no news: anybody may ask for any.
func (b *Broker) newsOf(client string) <-chan struct{} {
	if b.clients.Load().byName[client] == nil {
		return nil
	}
	return b.news.of(client)
}

// May says whether a process may still have what it got by r: nil, or the
// *Error that is why not. It costs no I/O while the answer is yes.
func (b *Broker) May(c *access.Caller, r Request) error {
	_, _, err := b.decide(c, r)
	return err
}

// Changed is closed when the answers of May can be others: the configuration is
// another, or the quarantines are.
func (b *Broker) Changed() <-chan struct{} { return b.news.of(all) }

// all stands for no client: it is woken with all.
const all = ""

// news wakes whoever follows a client. The zero value is ready.
type news struct {
	mu sync.Mutex
	m  map[string]chan struct{} // by client; closed when something happens
}

func (n *news) of(name string) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.m == nil {
		n.m = map[string]chan struct{}{}
	}
	c := n.m[name]
	if c == nil {
		c = make(chan struct{})
		n.m[name] = c
	}
	return c
}

func (n *news) tell(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.m[name]; c != nil {
		close(c)
		delete(n.m, name)
	}
}

func (n *news) tellAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.m {
		close(c)
	}
	clear(n.m)
}
