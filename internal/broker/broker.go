// Package broker decides: who gets which token, and that it is recorded.
//
// A consumer's request takes one way through it: Token decides by the client's
// rules, takes the token from the cache or waits for the one flight that is
// fetching it, makes sure that the caller is still there, records the
// hand-over, and returns a Grant.
package broker

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// A Broker serves the clients of one configuration. Apply gives it the first
// one; Run keeps everything fresh.
type Broker struct {
	o       Options
	clients atomic.Pointer[map[string]*cachedClient]

	apply   sync.Mutex // one Apply at a time
	flying  sync.Mutex // starting flights, and ending that
	sched   schedule
	denials denials
	metrics metrics
	retired struct { // tokens whose last counts are to be written
		sync.Mutex
		list []*held
	}

	running atomic.Pointer[running] // nil before Run and after it
}

// Options are what a Broker works with.
type Options struct {
	Audit *audit.Log
	Clock clock.Clock
	Dir   string // of durable state; it must exist
}

// A Client is one client's configuration.
type Client struct {
	Name         string
	Provider     providers.Provider
	ProviderName string
	Rotation     rotation.Config // Client and Delay are filled in by Apply
	// Issuer is nil for a client that has an API key alone.
	Issuer *oidc.Profile
	// Headers that a call to the API needs, in order: values are templates
	// such as "Bearer {access_token}" or "{api_key}".
	Headers []Header
	Allow   []access.Entry
	Limits  access.Limits
	// Default is the token asked for when the caller does not say.
	Default oidc.Request
	// KeepWarm renews the token even if nobody reads it.
	KeepWarm bool
	// KeyRejected recognises, by a part of its text, an API's answer that
	// means the key and not the token. Nil: API Connect's.
	KeyRejected []string
	Owner       Owner
	MaxAge      time.Duration // of the secret; zero: no limit
	Steps       string        // what a person does to rotate it at this issuer

	// Transport carries the token requests. Nil: the issuer's own.
	Transport http.RoundTripper
}

// An Owner is who answers for a client.
type Owner struct{ Contact, Purpose string }

// A Header is the name of a header and the template of its value.
type Header struct{ Name, Value string }

// New makes a Broker without clients. It starts nothing.
func New(o Options) *Broker {
	b := &Broker{o: o, metrics: newMetrics()}
	b.clients.Store(&map[string]*cachedClient{})
	b.sched.wake = make(chan struct{}, 1)
	b.denials.m = map[denial]*denied{}
	return b
}

// running is the part of the Broker that lives as long as Run.
type running struct {
	ctx context.Context
	wg  sync.WaitGroup
}

// Run watches secrets, renews tokens and flushes counts until ctx ends; then
// it waits for what is in flight, and writes what is still to be recorded.
func (b *Broker) Run(ctx context.Context) error {
	r := &running{ctx: ctx}
	b.apply.Lock()
	b.running.Store(r)
	for _, c := range *b.clients.Load() {
		r.start(c)
	}
	b.apply.Unlock()

	r.wg.Go(func() { b.watchClock(ctx) })
	flush := time.NewTicker(time.Minute)
	defer flush.Stop()
	for done := false; !done; {
		timer := time.NewTimer(b.sched.wait(b.o.Clock.Now()))
		select {
		case <-ctx.Done():
			done = true
		case <-flush.C:
			b.flush()
		case <-b.sched.wake:
		case <-timer.C:
		}
		timer.Stop()
		for _, e := range b.sched.due(b.o.Clock.Now()) {
			b.tend(e)
		}
	}
	b.apply.Lock()
	b.flying.Lock()
	b.running.Store(nil)
	b.flying.Unlock()
	b.apply.Unlock()
	r.wg.Wait()
	b.flush()
	return nil
}

// start runs the client's credential; the caller holds b.apply.
func (r *running) start(c *cachedClient) {
	ctx, cancel := context.WithCancel(r.ctx)
	c.stop = cancel
	r.wg.Go(func() {
		defer cancel()
		_ = c.cred.Run(ctx)
	})
}

// watchClock wakes everything after a suspend or a jump of the wall clock,
// which the timers of the runtime do not notice.
func (b *Broker) watchClock(ctx context.Context) {
	const every = 5 * time.Second
	tick := time.NewTicker(every)
	defer tick.Stop()
	last, mono := b.o.Clock.Now(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, m := b.o.Clock.Now(), time.Now()
		slept := now.Sub(last) - m.Sub(mono)
		if now.Jump(last) > Margin || slept > Margin {
			b.o.Audit.Note(audit.Event{Type: audit.ClockJumped, Detail: map[string]string{
				"wall": now.Wall.Sub(last.Wall).String(), "boot": now.Sub(last).String(), "monotonic": m.Sub(mono).String()}})
			for _, c := range *b.clients.Load() {
				c.cred.Wake()
				for _, e := range c.all() {
					b.sched.at(e, now)
				}
			}
		}
		last, mono = now, m
	}
}

// Apply replaces the configuration as a whole, or not at all. Tokens of a
// client whose issuer, secret and provider are the same stay; so does the
// bundle in memory when only its place has changed, until the new one is
// proved. The returned clients' providers are in use from then on; those that
// only the old configuration had are the caller's to close.
func (b *Broker) Apply(clients []Client) error {
	b.apply.Lock()
	defer b.apply.Unlock()
	old := *b.clients.Load()
	next := make(map[string]*cachedClient, len(clients))
	var spread time.Duration
	for _, cfg := range clients {
		if _, twice := next[cfg.Name]; twice {
			return fmt.Errorf("client %s is configured twice", cfg.Name)
		}
		if len(clients) > 100 { // one read every 3 ms, whatever their number
			spread = rand.N(time.Duration(len(clients))*3*time.Millisecond + 1) // #nosec G404 -- spreads load
		}
		c, err := b.client(cfg, old[cfg.Name], spread)
		if err != nil {
			return fmt.Errorf("client %s: %w", cfg.Name, err)
		}
		next[cfg.Name] = c
	}
	r := b.running.Load()
	for name, c := range old {
		if next[name] == nil || next[name].cred != c.cred {
			b.retire(c)
		}
	}
	for name, c := range next {
		c.state.client.Store(c)
		kept := old[name] != nil && old[name].cred == c.cred
		if kept {
			c.stop = old[name].stop
		} else if r != nil {
			r.start(c)
		}
		for _, e := range c.all() {
			b.sched.at(e, b.o.Clock.Now())
		}
		if c.cfg.KeepWarm {
			if e, err := c.entry(c.cfg.Default); err == nil {
				b.sched.at(e, b.o.Clock.Now())
			}
		}
	}
	b.clients.Store(&next)
	return nil
}

// client makes the client of cfg from what it was before.
func (b *Broker) client(cfg Client, old *cachedClient, delay time.Duration) (*cachedClient, error) {
	rules, problems := access.Compile(cfg.Allow, cfg.Limits, access.SystemNames())
	c := &cachedClient{cfg: cfg, rules: rules, problems: problems, state: &clientState{}}
	for _, h := range cfg.Headers {
		t, err := parseHeader(h)
		if err != nil {
			return nil, err
		}
		c.headers = append(c.headers, t)
	}
	sameIssuer := old != nil && reflect.DeepEqual(old.cfg.Issuer, cfg.Issuer)
	if sameIssuer {
		c.state = old.state // tokens, and what is known of the API key
	}
	if sameIssuer && old.cfg.Provider == cfg.Provider && reflect.DeepEqual(old.cfg.Rotation, cfg.Rotation) &&
		reflect.DeepEqual(old.cfg.Default, cfg.Default) {
		c.cred = old.cred
		return c, nil
	}
	deps := rotation.Deps{Provider: cfg.Provider, ProviderName: cfg.ProviderName, Audit: b.o.Audit, Clock: b.o.Clock,
		Dir: filepath.Join(b.o.Dir, "credentials")}
	if cfg.Issuer != nil {
		issuer, err := oidc.Open(*cfg.Issuer, cfg.Transport, b.o.Clock)
		if err != nil {
			return nil, err
		}
		deps.Issuer = issuer
	}
	rc := cfg.Rotation
	rc.Client, rc.Delay, rc.Default = cfg.Name, delay, cfg.Default
	cred, err := rotation.New(rc, deps)
	if err != nil {
		return nil, err
	}
	if sameIssuer && old.cred.Current() != nil {
		cred.Adopt(old.cred.Current())
	}
	c.cred = cred
	return c, nil
}

// retire stops the work for a client that is gone or replaced.
func (b *Broker) retire(c *cachedClient) {
	if c.stop != nil {
		c.stop()
	}
}

// names gives all clients' names in order.
func (b *Broker) names() []string { return slices.Sorted(maps.Keys(*b.clients.Load())) }
