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
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/scan"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// A Broker serves the clients of one configuration. Apply gives it the first
// one; Run keeps everything fresh.
type Broker struct {
	o       Options
	clients atomic.Pointer[clientSet]
	// contained are the incidents of quarantined clients.
	contained atomic.Pointer[map[string]string]

	apply   sync.Mutex // one Apply at a time
	flying  sync.Mutex // starting flights, and ending that
	sched   schedule
	denials denials
	news    news
	metrics metrics
	retired struct { // what serves no more, and whose last counts are to be written
		sync.Mutex
		list []retiree
	}
	ledgers   map[string]*rotation.Ledger // by client; Apply's
	logins    logins                      // that are under way
	uses      atomic.Uint64               // of secrets
	sought    sought                      // by scans
	leaked    leaked
	restoring restoring // tokens of the process before this one

	started chan struct{}           // closed when Run has begun
	running atomic.Pointer[running] // nil before Run and after it
}

// Options are what a Broker works with.
type Options struct {
	Audit *audit.Log
	// ServeUnrecorded says that the log gives way when it cannot be written
	// (audit: on_failure: serve), so that it makes no client unready.
	ServeUnrecorded bool
	Clock           clock.Clock
	Dir             string // of durable state; it must exist
}

// A Client is one client's configuration.
type Client struct {
	Name         string
	Provider     providers.Provider
	ProviderName string
	Rotation     rotation.Config // Client and Delay are filled in by Apply
	// Writer is Provider with other credentials: it stores what an
	// administrator brings, and new keys. Nil: what Provider can is all.
	Writer providers.Provider
	// Keeper seals the bundle on this host, for a start while Provider is down.
	// Nil: nothing is kept.
	Keeper rotation.Keeper
	// Issuer is nil for a client that has an API key alone.
	Issuer *oidc.Profile
	// RefreshProvider holds Rotation.Refresh; nil if there is none.
	RefreshProvider providers.Provider
	// Probe is a harmless request that shows whether the API takes the client's
	// headers. Nil: none is known.
	Probe *Probe
	// KeyRejected are texts in an API's answer that mean the key, not the
	// token. Case does not matter. Empty: none are known.
	KeyRejected []string
	// Headers that a call to the API needs, in order: values are templates
	// such as "Bearer {access_token}" or "{api_key}".
	Headers []Header
	Allow   []access.Entry
	Limits  access.Limits
	// Default is the token asked for when the caller does not say.
	Default oidc.Request
	// KeepWarm renews the token even if nobody reads it.
	KeepWarm bool
	Owner    Owner
	// Proxied says that a reverse proxy has a route for the client.
	Proxied bool

	// Transport carries the token requests. Nil: the issuer's own.
	Transport http.RoundTripper
	// Trust changes with the certificate authorities that Transport trusts.
	Trust string
}

// A Probe is a request to an API that changes nothing there.
type Probe struct {
	Method, URL string
	// Transport carries it. Nil: the issuer's, else a new one.
	Transport http.RoundTripper
}

// An Owner is who answers for a client.
type Owner struct{ Contact, Purpose string }

// A Header is the name of a header and the template of its value.
type Header struct{ Name, Value string }

// New makes a Broker without clients. It starts nothing.
func New(o Options) *Broker {
	b := &Broker{o: o, metrics: newMetrics()}
	b.sched.wake = make(chan struct{}, 1)
	b.denials.m = map[denial]*denied{}
	b.ledgers = map[string]*rotation.Ledger{}
	b.sought = sought{index: scan.NewIndex(scan.IndexConfig{}), alarm: map[finding]time.Time{}}
	b.started = make(chan struct{})
	b.clients.Store(&clientSet{})
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
	for _, c := range b.clients.Load().byName {
		r.start(c)
	}
	b.apply.Unlock()
	close(b.started)

	r.wg.Go(func() { b.watchClock(ctx) })
	flush := time.NewTicker(time.Minute)
	defer flush.Stop()
	for done := false; !done; {
		timer := time.NewTimer(b.sched.wait(b.o.Clock.Now()))
		select {
		case <-ctx.Done():
			done = true
		case <-flush.C:
			b.Flush()
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
	b.Flush()
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
			all := b.clients.Load().byName
			for _, c := range all {
				c.cred.WakeWithin(spread(len(all)))
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
	old := b.clients.Load().byName
	next := make(map[string]*cachedClient, len(clients))
	for _, cfg := range clients {
		if _, twice := next[cfg.Name]; twice {
			return fmt.Errorf("client %s is configured twice", cfg.Name)
		}
		c, err := b.client(cfg, old[cfg.Name], rand.N(spread(len(clients))+1)) // #nosec G404 -- spreads load
		if err != nil {
			return fmt.Errorf("client %s: %w", cfg.Name, err)
		}
		next[cfg.Name] = c
	}
	for _, c := range next {
		c.state.client.Store(c)
	}
	b.clients.Store(newClientSet(next))
	r := b.running.Load()
	for name, c := range old {
		if next[name] == nil || next[name].cred != c.cred {
			b.retire(c, next[name])
		}
	}
	for name, c := range next {
		if old[name] != nil && old[name].cred == c.cred {
			c.stop = old[name].stop
		} else if r != nil {
			r.start(c)
		}
		if c.cfg.KeepWarm {
			_, _ = c.entry(c.cfg.Default, b.o.Clock.Now())
		}
		for _, e := range c.all() {
			b.sched.at(e, b.o.Clock.Now())
		}
	}
	b.news.tellAll()
	return nil
}

// spread is the time over which n clients go to their secrets managers: one
// every 3 ms, whatever their number, and few at once.
func spread(n int) time.Duration {
	if n <= 100 {
		return 0
	}
	return time.Duration(n) * 3 * time.Millisecond
}

// clientSet is the clients of one configuration.
type clientSet struct {
	byName map[string]*cachedClient
	names  []string // in order
}

func newClientSet(m map[string]*cachedClient) *clientSet {
	return &clientSet{m, slices.Sorted(maps.Keys(m))}
}

// client makes the client of cfg from what it was before.
func (b *Broker) client(cfg Client, old *cachedClient, delay time.Duration) (*cachedClient, error) {
	rules, problems := access.Compile(cfg.Allow, cfg.Limits, access.SystemNames())
	c := &cachedClient{cfg: cfg, rules: rules, problems: problems, places: places(cfg.ProviderName, cfg.Rotation.Spec), state: &clientState{revoking: make(chan struct{}, 1)}}
	for _, h := range cfg.Headers {
		t, err := parseHeader(h)
		if err != nil {
			return nil, err
		}
		c.headers = append(c.headers, t)
	}
	sameIssuer := old != nil && reflect.DeepEqual(identity(old.cfg.Issuer), identity(cfg.Issuer))
	if sameIssuer {
		c.state = old.state // tokens, and what is known of the API key
	}
	if sameIssuer && reflect.DeepEqual(old.cfg.Issuer, cfg.Issuer) && old.cfg.Provider == cfg.Provider &&
		old.cfg.RefreshProvider == cfg.RefreshProvider && old.cfg.Keeper == cfg.Keeper && old.cfg.Trust == cfg.Trust && sameProbe(old.cfg, cfg) &&
		reflect.DeepEqual(old.cfg.Rotation, cfg.Rotation) && old.cfg.Default == cfg.Default {
		c.cred, c.issuer = old.cred, old.issuer
		return c, nil
	}
	if b.ledgers[cfg.Name] == nil {
		l, err := rotation.OpenLedger(filepath.Join(b.o.Dir, "credentials"), cfg.Name)
		if err != nil {
			return nil, err
		}
		b.ledgers[cfg.Name] = l
	}
	deps := rotation.Deps{Provider: cfg.Provider, ProviderName: cfg.ProviderName, Audit: b.o.Audit, Clock: b.o.Clock,
		Ledger: b.ledgers[cfg.Name], Uses: &b.uses, RefreshProvider: cfg.RefreshProvider, Keeper: cfg.Keeper, Known: b.sought.index}
	if cfg.Probe != nil {
		deps.Prober = &prober{probe: *cfg.Probe, headers: c.headers, clock: b.o.Clock, keyRejected: cfg.KeyRejected}
	}
	if cfg.Issuer != nil {
		deps.IssuerName = issuerName(cfg.Issuer)
		issuer, err := oidc.Open(*cfg.Issuer, cfg.Transport, b.o.Clock)
		if err != nil {
			return nil, err
		}
		deps.Issuer, c.issuer = issuer, issuer
	}
	rc := cfg.Rotation
	if cfg.Issuer != nil {
		rc.Proving = cfg.Issuer.Fields()
	}
	rc.Client, rc.Delay, rc.Default = cfg.Name, delay, cfg.Default
	cred, err := rotation.New(rc, deps)
	if err != nil {
		return nil, err
	}
	if sameIssuer {
		cred.Adopt(old.cred)
	}
	c.cred = cred
	return c, nil
}

// sameProbe says whether two configurations ask the API the same thing. How
// the question travels is not compared: it is in use.
func sameProbe(a, b Client) bool {
	if a.Probe == nil || b.Probe == nil {
		return a.Probe == b.Probe
	}
	return a.Probe.Method == b.Probe.Method && a.Probe.URL == b.Probe.URL && slices.Equal(a.Headers, b.Headers) && slices.Equal(a.KeyRejected, b.KeyRejected)
}

// issuerName tells issuers apart in records that outlive a process.
func issuerName(p *oidc.Profile) string {
	switch {
	case p.TokenEndpoint != "":
		return p.TokenEndpoint
	case p.Grant == oidc.SelfSigned:
		return "self"
	}
	return p.Issuer
}

// identity is what makes two profiles the same issuer: how it is reached, and
// how long its tokens are believed to live, is not.
func identity(p *oidc.Profile) *oidc.Profile {
	if p == nil {
		return nil
	}
	same := *p
	same.Config, same.DefaultLifetime, same.MaxLifetime = outbound.Config{}, 0, 0
	return &same
}

// retire stops the work for a client that is gone, or whose place next takes.
func (b *Broker) retire(c, next *cachedClient) {
	if c.stop != nil {
		c.stop()
	}
	if next != nil && next.state == c.state {
		return
	}
	c.cred.Retire()
	for _, e := range c.all() {
		b.drop(e)
	}
	c.state.mu.Lock()
	defer c.state.mu.Unlock()
	for _, k := range []**keyHeld{&c.state.key, &c.state.jwt} {
		if *k != nil {
			b.retireLater(retiree{holding: &(*k).holding})
			*k = nil
		}
	}
}
