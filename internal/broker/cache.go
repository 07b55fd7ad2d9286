package broker

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/rotation"
)

// Rules of this file: a reader of a cached token takes atomics alone. What
// changes an entry holds its mutex, never over I/O. At most one flight an
// entry is under way, under the Broker's context and not its first caller's.

const (
	// Margin is the last part of a token's life, in which it is not served; a
	// token that lives less than twice as long keeps half of its life. A jump
	// of the wall clock by more is acted upon.
	Margin = 10 * time.Second
	// Combinations is how many different tokens (scope, audience, resource) a
	// client may have.
	Combinations = 16

	flightTimeout = 45 * time.Second
	youngToken    = 60 * time.Second
	firstPatience = time.Minute     // after a request that the issuer refused, or a token that an API refused
	oldPatience   = 5 * time.Minute // between tokens that were refused when they were not young
	longPatience  = 15 * time.Minute
	idleLifetime  = 15 * time.Minute // for how long an entry without a token counts as read
	retryIdle     = 30 * time.Second
	shortestRenew = time.Second
)

// cachedClient is a client of the current configuration. It does not change;
// what does is in its state, which outlives a reload.
type cachedClient struct {
	cfg      Client
	rules    access.Rules
	problems []error // entries that match nobody
	headers  []headerTemplate
	cred     *rotation.Credential
	issuer   *oidc.Client // nil: an API key alone
	places   []string     // of its secret
	stop     context.CancelFunc
	state    *clientState
}

type clientState struct {
	client  atomic.Pointer[cachedClient] // of the newest configuration
	entries atomic.Pointer[map[oidc.Request]*entry]

	revoking  chan struct{} // has one element while somebody has tokens revoked
	mu        sync.Mutex    // adding entries; key, jwt
	unrevoked []*held       // served no more, and not revoked yet
	key       *keyHeld
	jwt       *keyHeld // who has had self-signed JWTs that name a user
	bad       keyComplaints
}

// entry is the cache's place for one combination of scope and audience.
type entry struct {
	state    *clientState
	want     oidc.Request
	held     atomic.Pointer[held]
	carried  atomic.Pointer[carried] // of the process before this one, as long as it may serve; nil: none
	settling sync.Mutex              // deciding about it
	read     atomic.Int64            // boot time of the last read; 0: never
	// notBefore is the boot time before which no background flight starts.
	notBefore atomic.Int64

	mu       sync.Mutex
	flight   *flight
	refused  *Error // by the issuer, for this combination
	until    clock.Reading
	patience time.Duration
	reject   struct {
		last, until clock.Reading
		patience    time.Duration
		fingerprint string // of the token that was refused last
		young       bool   // it was, when it was refused first
		granted     bool   // it may be replaced
	}

	due   clock.Reading // the schedule's own
	index int
}

// held is a token in the cache and who has it. Only the recipients change.
type held struct {
	holding
	token oidc.Token
	live  *rotation.Live
	end   clock.Reading // the last moment at which it is served
	renew clock.Reading
	life  time.Duration
}

type flight struct {
	done chan struct{}
	err  error // valid once done is closed
}

func newHeld(e *entry, t oidc.Token, live *rotation.Live) *held {
	life := t.Expires.Sub(t.Sent)
	served := life - min(Margin, life/2)
	ahead := 0.75 + 0.1*rand.Float64() // #nosec G404 -- spreads load
	return &held{token: t, live: live, life: life,
		end:   t.Sent.Add(served),
		renew: t.Sent.Add(time.Duration(float64(served) * ahead)),
		holding: holding{repeats: audit.TokenRepeats, event: audit.Event{Type: audit.TokenHandover, Client: e.state.client.Load().cfg.Name,
			Version: string(live.Version), Fingerprint: t.Fingerprint, JTI: t.JTI, Scope: t.Scope, Audience: e.want.Audience, Expires: t.Expires.Wall}}}
}

// usable says whether the token may be served now, with minTTL left. A token
// that is as fresh as can be had satisfies any minTTL.
func (h *held) usable(now clock.Reading, minTTL time.Duration) bool {
	left := h.end.Until(now)
	if left <= 0 {
		return false
	}
	return left >= minTTL || now.Sub(h.token.Sent) < min(youngToken, h.life/10)
}

// stale says whether the token should be replaced in the background.
func (h *held) stale(now clock.Reading, live *rotation.Live) bool {
	return h.renew.Until(now) <= 0 || now.Jump(h.token.Sent) > Margin || live != nil && live != h.live
}

// all lists the entries.
func (c *cachedClient) all() []*entry {
	m := c.state.entries.Load()
	if m == nil {
		return nil
	}
	list := make([]*entry, 0, len(*m))
	for _, e := range *m {
		list = append(list, e)
	}
	return list
}

// entry finds or makes the place for a combination.
func (c *cachedClient) entry(want oidc.Request, now clock.Reading) (*entry, error) {
	if m := c.state.entries.Load(); m != nil {
		if e := (*m)[want]; e != nil {
			return e, nil
		}
	}
	s := c.state
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[oidc.Request]*entry{}
	if m := s.entries.Load(); m != nil {
		if e := (*m)[want]; e != nil {
			return e, nil
		}
		for k, e := range *m {
			next[k] = e
		}
	}
	if len(next) >= Combinations && want != c.cfg.Default && !makeRoom(next, now) {
		return nil, &Error{Code: client.InvalidRequest, RetryAfter: time.Minute,
			Detail: fmt.Sprintf("this client has %d combinations of scope and audience in use, which is the limit: ask for fewer different ones", Combinations)}
	}
	e := &entry{state: s, want: want, index: -1}
	next[want] = e
	s.entries.Store(&next)
	return e, nil
}

// makeRoom forgets a combination that has no token and that the issuer has
// not refused for a while: a refusal has to be remembered, or it would be
// asked for again. (The client's own default always has its place beside the
// others.)
func makeRoom(m map[oidc.Request]*entry, now clock.Reading) bool {
	for k, e := range m {
		e.mu.Lock()
		idle := e.held.Load() == nil && e.carried.Load() == nil && e.flight == nil && (e.refused == nil || now.Sub(e.until) > longPatience)
		e.mu.Unlock()
		if idle {
			delete(m, k)
			return true
		}
	}
	return false
}

// find gives the entry whose current token has the fingerprint.
func (c *cachedClient) find(fingerprint string) *entry {
	for _, e := range c.all() {
		if h := e.held.Load(); h != nil && h.token.Fingerprint == fingerprint {
			return e
		}
	}
	return nil
}

// fingerprint is that of the rejected token, however it was named.
func (r Rejection) fingerprint() string {
	if r.AccessToken.Empty() {
		return r.Fingerprint
	}
	return fingerprint(r.AccessToken)
}

// fingerprint is base64url(SHA-256(token)), RFC 9449 §4.1 "ath".
func fingerprint(token secret.Secret) (f string) {
	_ = token.Use(func(b []byte) error {
		sum := sha256.Sum256(b)
		f = base64.RawURLEncoding.EncodeToString(sum[:])
		return nil
	})
	return f
}

// fly joins the entry's flight, or starts it, for somebody who has seen that
// seen will not do; if there is another token by then, it ends with that. It
// gives an error instead while the issuer's refusal of this combination is
// recent.
func (b *Broker) fly(e *entry, seen *held, now clock.Reading) (*flight, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.flight != nil {
		return e.flight, nil
	}
	if wait := e.until.Until(now); e.refused != nil && wait > 0 {
		err := *e.refused
		err.RetryAfter = wait
		return nil, &err
	}
	f := &flight{done: make(chan struct{})}
	if !b.launch(func(ctx context.Context) {
		f.err = b.fetch(ctx, e, seen)
		e.mu.Lock()
		e.flight = nil
		e.mu.Unlock()
		close(f.done)
	}) {
		return nil, &Error{Code: client.IssuerUnavailable, Detail: "the broker is stopping or starting; try again", RetryAfter: time.Second}
	}
	e.flight = f
	return f, nil
}

// launch runs f under the Broker's context; Run waits for it.
func (b *Broker) launch(f func(context.Context)) bool {
	b.flying.Lock()
	defer b.flying.Unlock()
	r := b.running.Load()
	if r == nil || r.ctx.Err() != nil {
		return false
	}
	r.wg.Go(func() {
		ctx, cancel := context.WithTimeout(r.ctx, flightTimeout)
		defer cancel()
		f(ctx)
	})
	return true
}

// fetch is the body of a flight: it mints and installs one token, or takes over
// that of the process before this one.
func (b *Broker) fetch(ctx context.Context, e *entry, seen *held) error {
	b.takeOver(ctx, e)
	if e.held.Load() != seen {
		return nil
	}
	cl := e.state.client.Load()
	started := b.o.Clock.Now()
	m, err := cl.cred.Mint(ctx, e.want)
	now := b.o.Clock.Now()
	b.metrics.minted(cl.cfg.Name, now.Sub(started), err)
	if err == nil {
		h := newHeld(e, m.Token, m.Live)
		b.install(e, h)
		if !cl.issuer.Local() && cl.cred.Unprobed(m.Live) { // nobody waits for this
			b.launch(func(ctx context.Context) { cl.cred.ProbeServing(ctx, h.live, &h.token) })
		}
		return nil
	}
	err = explain(err)
	b.postpone(e, now, err)
	return err
}

// install puts a token into the cache and schedules its renewal.
func (b *Broker) install(e *entry, h *held) {
	for !b.swap(e, e.held.Load(), h) {
	}
}

// swap is install if old is still there.
func (b *Broker) swap(e *entry, old, h *held) bool {
	e.mu.Lock()
	if !e.held.CompareAndSwap(old, h) {
		e.mu.Unlock()
		return false
	}
	e.refused, e.patience = nil, 0
	e.mu.Unlock()
	b.retireToken(old)
	b.news.tell(h.event.Client)
	now := b.o.Clock.Now()
	e.notBefore.Store(int64(now.Boot + shortestRenew))
	b.sched.at(e, latest(h.renew, now.Add(shortestRenew)))
	return true
}

// postpone decides when the entry is tried again after a failure.
func (b *Broker) postpone(e *entry, now clock.Reading, err error) {
	wait := retryIdle
	var pe *Error
	if errors.As(err, &pe) && pe.RetryAfter > 0 {
		wait = pe.RetryAfter
	}
	// What is wrong with this combination of scope and audience, only a person
	// can mend; everything else rotation holds back for all combinations.
	if pe != nil && pe.kind == rotation.RequestRefused {
		e.mu.Lock()
		e.patience = min(max(2*e.patience, firstPatience), longPatience)
		wait, e.refused, e.until = e.patience, pe, now.Add(e.patience)
		e.mu.Unlock()
	}
	e.notBefore.Store(int64(now.Boot + wait))
	b.sched.at(e, now.Add(wait))
}

// rejected says how long a rejected token has to wait for its replacement;
// zero: replace it now, or join the flight that does. suspicious is a token
// that was refused when young. A token that was replaced meanwhile is not
// current. Each token that is refused doubles the patience, once: a young one
// waits for as long, and so does the one after any.
func (e *entry) rejected(now clock.Reading, fingerprint string) (wait time.Duration, suspicious, current bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	h, r := e.held.Load(), &e.reject
	if e.flight != nil {
		if h != nil && h.token.Fingerprint == fingerprint {
			r.last = now // the flight may bring nothing
		}
		return 0, false, true
	}
	if h == nil || h.token.Fingerprint != fingerprint {
		return 0, false, false
	}
	if now.Sub(r.last) > longPatience {
		r.patience = 0 // nobody complained for a while: begin anew
	}
	r.last = now
	if r.fingerprint != fingerprint {
		r.fingerprint, r.granted, r.young = fingerprint, false, now.Sub(h.token.Sent) < youngToken
		if next := max(2*r.patience, firstPatience); r.young {
			r.patience = min(next, longPatience)
			r.until = now.Add(r.patience)
		} else {
			r.patience = max(r.patience, min(next, oldPatience))
		}
	}
	if wait := r.until.Until(now); !r.granted && r.patience > 0 && wait > 0 {
		return wait, r.young, true
	}
	r.granted, r.until = true, now.Add(r.patience)
	return 0, false, true
}

func latest(a, b clock.Reading) clock.Reading {
	if a.Boot > b.Boot {
		return a
	}
	return b
}
