package broker

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"sync"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// Rules of this file: a process that ends in good order may leave its live
// tokens to the next one, in memory alone.
//   - Left behind is only what would be served now: nothing of a quarantined
//     client, no token that was revoked, or that a consumer has rejected.
//   - It is taken over only if all that made it is the same: the client, its
//     issuer, the bundle's version by the secrets manager's word of now, the
//     client_id in it, and both clocks. Until that is known it waits, and serves
//     nobody.
//   - Whatever is not taken over is wiped. Then the issuer is asked, as if there
//     had been nothing.
// Tokens that the broker signs itself are not among them: a new one costs
// nothing. Refresh tokens stay where they are.

// A carried is a token of the process before this one.
type carried struct {
	client, issuer   string // issuer: see issuerDigest
	origin, clientID string // of the bundle that minted it
	version          providers.Version
	want             oidc.Request
	read             time.Duration // boot time of the last read; 0: never
	token            oidc.Token
}

// Restored is what became of the tokens of the process before this one.
type Restored struct {
	Taken int
	Left  map[string]int // wiped, by why
}

// Why a token of before is not taken over.
const (
	leftClient   = "client_changed"  // it is gone, or has its tokens elsewhere
	leftVersion  = "secret_changed"  // another version serves, or the issuer has refused it
	leftClock    = "clock"           // it was set meanwhile
	leftEnded    = "ended"           // its life is over
	leftRejected = "rejected"        // an API has refused it meanwhile
	leftRevoked  = "revoked"         // somebody wants it so
	leftReplaced = "replaced"        // there is a newer one already
	leftMany     = "too_many_scopes" // there is no place for it
)

// restoring counts what is not decided yet.
type restoring struct {
	mu      sync.Mutex
	waiting int
	sum     Restored
	done    chan struct{} // closed when nothing waits
}

// settleAgain is the time between looks at whether a token of before may serve,
// while nobody asks for it.
const settleAgain = time.Second

// Carry gives the live tokens, for Restore of the next process, and how many
// they are; nil if there are none. Call it after Run has ended. The bytes are
// the caller's to wipe.
func (b *Broker) Carry() (data []byte, n int, err error) {
	now := b.o.Clock.Now()
	var list []carried
	set := b.clients.Load()
	for _, name := range set.names {
		cl := set.byName[name]
		if cl.issuer == nil || cl.issuer.Local() || b.incident(name) != "" {
			continue
		}
		for _, e := range cl.all() {
			h := e.held.Load()
			if c := e.carried.Load(); h == nil && c != nil { // it waits still
				list = append(list, *c)
				continue
			}
			if h == nil || h.live != cl.cred.Current() || !h.usable(now, 0) || e.complained(h) {
				continue
			}
			list = append(list, carried{client: name, issuer: issuerDigest(cl.cfg.Issuer), origin: h.live.Origin(), clientID: cl.id(),
				version: h.live.Version, want: e.want, read: time.Duration(e.read.Load()), token: h.token})
		}
	}
	return encodeCarried(list)
}

// complained says whether an API has refused the token.
func (e *entry) complained(h *held) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.reject.last.IsZero() && e.reject.last.Sub(h.token.Sent) >= 0
}

// issuerDigest tells whether two profiles are the same issuer, as identity does.
func issuerDigest(p *oidc.Profile) string {
	b, err := json.Marshal(identity(p))
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Restore takes what Carry gave in the process before this one, and wipes it.
// Call it once, after Apply and before there are consumers. Each token serves as soon as the
// secrets manager has named the version that minted it. After an error it is as
// if there had been nothing.
func (b *Broker) Restore(data []byte) error {
	list, err := decodeCarried(data)
	clear(data)
	if err != nil {
		return err
	}
	b.restoring.mu.Lock()
	b.restoring.waiting = len(list)
	if b.restoring.waiting > 0 {
		b.restoring.done = make(chan struct{})
	}
	b.restoring.mu.Unlock()
	now := b.o.Clock.Now()
	for i := range list {
		c := &list[i]
		cl := b.clients.Load().byName[c.client]
		if cl == nil || cl.issuer == nil || cl.issuer.Local() || c.issuer == "" || c.issuer != issuerDigest(cl.cfg.Issuer) {
			b.decided(c, leftClient)
			continue
		}
		e, err := cl.entry(c.want, now)
		if err != nil || !e.carried.CompareAndSwap(nil, c) {
			b.decided(c, leftMany)
			continue
		}
		e.read.Store(int64(min(c.read, now.Boot)))
		b.sched.at(e, now)
	}
	return nil
}

// Restored waits until it is decided of every token of before whether it serves
// on; told is false if ctx ends before that.
func (b *Broker) Restored(ctx context.Context) (sum Restored, told bool) {
	r := &b.restoring
	r.mu.Lock()
	done := r.done
	r.mu.Unlock()
	if done != nil {
		select {
		case <-done:
		case <-ctx.Done():
			return Restored{}, false
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return Restored{r.sum.Taken, maps.Clone(r.sum.Left)}, true
}

// decided counts a token of before: why it is left, and wiped; empty: it is
// taken over.
func (b *Broker) decided(c *carried, why string) {
	if why != "" {
		c.token.Access.Wipe()
	}
	b.counted(why)
}

func (b *Broker) counted(why string) {
	r := &b.restoring
	r.mu.Lock()
	defer r.mu.Unlock()
	if why == "" {
		r.sum.Taken++
	} else {
		if r.sum.Left == nil {
			r.sum.Left = map[string]int{}
		}
		r.sum.Left[why]++
	}
	if r.waiting--; r.waiting == 0 {
		close(r.done)
	}
}

// settle decides about an entry's token of before, if there is one and it can
// be told. It does no I/O.
func (b *Broker) settle(e *entry) {
	if e.carried.Load() == nil {
		return
	}
	e.settling.Lock()
	defer e.settling.Unlock()
	c := e.carried.Load()
	if c == nil {
		return // somebody else has decided
	}
	cl, now := e.state.client.Load(), b.o.Clock.Now()
	live, told := cl.cred.Same(c.origin)
	var h *held
	if live != nil {
		h = newHeld(e, c.token, live)
	}
	why := ""
	switch {
	case e.held.Load() != nil:
		why = leftReplaced
	case now.Boot < c.token.Sent.Boot, now.Jump(c.token.Sent) > Margin:
		why = leftClock
	case c.token.Expires.Until(now) <= 0, h != nil && !h.usable(now, 0):
		why = leftEnded
	case !told || b.incident(cl.cfg.Name) != "": // it serves nobody meanwhile, and is there to be revoked
		return
	case h == nil || c.clientID != cl.id():
		why = leftVersion
	}
	if why == "" && !b.swap(e, nil, h) {
		why = leftReplaced
	}
	e.carried.Store(nil) // last: whoever sees none sees the token that came of it
	b.decided(c, why)
	if why == "" {
		event := h.event
		event.Type = audit.TokenCarried
		b.o.Audit.Note(event)
	}
}

// holdsCarried says whether an entry's token of before is in a text, as holds
// does.
func (e *entry) holdsCarried(text, lower []byte) bool {
	e.settling.Lock()
	defer e.settling.Unlock()
	c := e.carried.Load()
	return c != nil && holds(text, lower, c.token.Access)
}

// forget lets go of an entry's token of before.
func (b *Broker) forget(e *entry, why string) {
	e.settling.Lock()
	defer e.settling.Unlock()
	if c := e.carried.Swap(nil); c != nil {
		b.decided(c, why)
	}
}

// unsettled takes an entry's token of before out, to be revoked; nil: there is
// none.
func (b *Broker) unsettled(e *entry) *held {
	e.settling.Lock()
	defer e.settling.Unlock()
	c := e.carried.Swap(nil)
	if c == nil {
		return nil
	}
	b.counted(leftRevoked) // and wiped by the collector, when the issuer has revoked it
	h := newHeld(e, c.token, &rotation.Live{Version: c.version})
	b.retireToken(h)
	return h
}

// takeOver is settle for somebody who waits: it reads the bundle if nobody has
// yet.
func (b *Broker) takeOver(ctx context.Context, e *entry) {
	if e.carried.Load() == nil {
		return
	}
	if _, err := e.state.client.Load().cred.Bundle(ctx); err == nil { // else whoever mints will find the same
		b.settle(e)
	}
}

// settleAll is settle for a client, one of whose tokens a consumer has
// rejected: if that waits still, it serves nobody.
func (b *Broker) settleAll(cl *cachedClient, rejected string) {
	for _, e := range cl.all() {
		b.settle(e)
		if c := e.carried.Load(); c != nil && c.token.Fingerprint == rejected {
			b.forget(e, leftRejected)
		}
	}
}
