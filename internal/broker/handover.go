package broker

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// Rules of this file: nothing is released without a record. The first
// hand-over to a process is durable before it happens; repeats are counted and
// written every minute.

const (
	manyRecipients = 10_000 // of one token; further ones are recorded by user and unit
	recordTimeout  = 10 * time.Second
)

// A holding is one token, or one API key, and the processes that have it.
type holding struct {
	event   audit.Event // of the first hand-over to each
	repeats audit.Type  // of the further ones

	mu sync.RWMutex
	m  map[recipient]*share
}

type recipient struct {
	pid     int32
	start   uint64
	uid     uint32
	unit    string // only where pid is 0
	place   string // its name, or a listener's
	gid     uint32 // of a place
	surface access.Surface
	via     string
}

// said is what the records say of the way in beside the surface.
func (r recipient) said() map[string]string {
	if r.via == "" {
		return nil
	}
	return map[string]string{"via": r.via}
}

// share is one recipient's part.
type share struct {
	recorded chan struct{} // closed when the first hand-over is durable, or failed
	err      error         // valid once recorded is closed
	caller   audit.Caller
	n        atomic.Int64 // hand-overs
	last     atomic.Int64 // Unix nanoseconds of the latest
	written  int64        // of n, flush's own
	since    int64        // last at the previous flush
}

// handOver records that to gets what event describes. It is the one place where
// things are released.
func (b *Broker) handOver(ctx context.Context, to taker, surface access.Surface, h *holding, now clock.Reading) error {
	key := to.recipient(surface)
	h.mu.RLock()
	s := h.m[key]
	h.mu.RUnlock()
	if s == nil {
		s = b.firstHandOver(to, h, key)
	}
	select {
	case <-s.recorded:
	default:
		select {
		case <-s.recorded:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if s.err != nil {
		return &Error{Code: client.AuditUnavailable, Detail: "the hand-over cannot be recorded, so it does not happen: an administrator sees why with broker status",
			RetryAfter: 5 * time.Second, Err: s.err}
	}
	if err := ctx.Err(); err != nil { // nobody waits for it any more: it does not count
		return err
	}
	if to.gone() { // while it waited: whoever holds the connection now is somebody else
		return exited(to.caller)
	}
	if incident := b.incident(h.event.Client); incident != "" { // declared since the decision
		return quarantined(h.event.Client, incident)
	}
	s.n.Add(1)
	s.last.Store(now.Wall.UnixNano())
	b.metrics.handovers.Add(1)
	return nil
}

func exited(c *access.Caller) *Error {
	return &Error{Code: client.NotAllowed, Detail: "the process that opened the connection has exited", Identity: c.String(), Clients: []string{}}
}

// firstHandOver makes the share and has it recorded; whoever comes meanwhile
// waits for the same record.
func (b *Broker) firstHandOver(to taker, h *holding, key recipient) *share {
	h.mu.Lock()
	if c := to.caller; c != nil && c.Place == "" && len(h.m) >= manyRecipients {
		key = recipient{uid: c.UID, unit: c.Unit + c.UserUnit, surface: key.surface, via: key.via}
	}
	if s := h.m[key]; s != nil {
		h.mu.Unlock()
		return s
	}
	s := &share{recorded: make(chan struct{}), caller: to.audited()}
	if key.pid == 0 {
		s.caller.PID, s.caller.Start = 0, 0
	}
	if h.m == nil {
		h.m = map[recipient]*share{}
	}
	h.m[key] = s
	h.mu.Unlock()

	event := h.event
	event.Caller, event.Code, event.Detail = &s.caller, string(key.surface), key.said()
	// Not under the caller's context: others may wait for the same record.
	ctx, cancel := context.WithTimeout(context.Background(), recordTimeout)
	defer cancel()
	if s.err = b.o.Audit.Record(ctx, event); s.err != nil {
		h.mu.Lock()
		delete(h.m, key)
		h.mu.Unlock()
	} else {
		s.written = 1
	}
	close(s.recorded)
	return s
}

// flush writes how often each recipient has come back.
func (h *holding) flush(log *audit.Log) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for key, s := range h.m {
		select {
		case <-s.recorded:
		default:
			continue
		}
		n := s.n.Load()
		if n <= s.written {
			continue
		}
		e := h.event
		e.Type, e.Caller, e.Code, e.Detail, e.Count = h.repeats, &s.caller, string(key.surface), key.said(), n-s.written
		e.Last = time.Unix(0, s.last.Load()).UTC()
		if s.since > 0 {
			e.First = time.Unix(0, s.since).UTC()
		}
		s.written, s.since = n, s.last.Load()
		log.Note(e)
	}
}

// total is the number of all hand-overs.
func (h *holding) total() (n int64) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, s := range h.m {
		n += s.n.Load()
	}
	return n
}

// keyHeld is who has the API key, or self-signed JWTs, of one bundle.
type keyHeld struct {
	holding
	live *rotation.Live
}

func (b *Broker) keyHolders(s *clientState, live *rotation.Live) *holding {
	return b.holders(s, &s.key, live, audit.KeyHandover, audit.KeyHandover)
}

// jwtHolders counts by process: each JWT is another one, made for one call.
func (b *Broker) jwtHolders(s *clientState, live *rotation.Live) *holding {
	return b.holders(s, &s.jwt, live, audit.TokenHandover, audit.TokenRepeats)
}

func (b *Broker) holders(s *clientState, have **keyHeld, live *rotation.Live, first, repeats audit.Type) *holding {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *have == nil || (*have).live != live {
		if *have != nil {
			b.retireLater(retiree{holding: &(*have).holding})
		}
		*have = &keyHeld{live: live, holding: holding{repeats: repeats,
			event: audit.Event{Type: first, Client: s.client.Load().cfg.Name, Version: string(live.Version)}}}
	}
	return &(*have).holding
}

// keyComplaints is what callers say of the API key of one version.
type keyComplaints struct {
	version providers.Version
	callers []uint32 // uids
	last    time.Time
}

func (s *clientState) keyRejected(c *access.Caller, v providers.Version, now clock.Reading) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bad.version != v {
		s.bad = keyComplaints{version: v}
	}
	if !slices.Contains(s.bad.callers, c.UID) && len(s.bad.callers) < 1000 {
		s.bad.callers = append(s.bad.callers, c.UID)
	}
	s.bad.last = now.Wall
}

func auditCaller(c *access.Caller) audit.Caller {
	return audit.Caller{PID: c.PID, Start: c.Start, UID: c.UID, GID: c.GID, Unit: c.Unit, UserUnit: c.UserUnit,
		LoginUID: c.LoginUID, Container: c.Container, Place: c.Place}
}

// noteRejection records a consumer's complaint; a caller that goes on is
// counted like any repeated refusal.
func (b *Broker) noteRejection(cl *cachedClient, c *access.Caller, keyFault bool) {
	what := "token"
	if keyFault {
		what = "api_key"
	}
	b.metrics.rejections.WithLabelValues(cl.cfg.Name, what).Inc()
	b.denials.add(b, c, audit.TokenRejected, denialOf{client: cl.cfg.Name, why: what})
}

// denials sums up what is refused, so that nobody can fill the disk by asking,
// nor hide what others ask.
type denials struct {
	mu    sync.Mutex
	m     map[denial]*denied
	users map[uint32]int       // how many different ones each user has in m
	told  map[uint32]time.Time // when the last alarm about a user was
}

type denial struct {
	event audit.Type
	what  denialOf
	uid   uint32
	unit  string
}

type denialOf struct{ client, surface, scope, why string }

func (k denial) audited(s *denied) audit.Event {
	e := audit.Event{Type: k.event, Client: k.what.client, Scope: k.what.scope, Code: k.what.why, Caller: &s.caller}
	if k.what.surface != "" {
		e.Detail = map[string]string{"surface": k.what.surface}
	}
	return e
}

type denied struct {
	n           int64
	first, last time.Time
	caller      audit.Caller
}

const (
	denialsOfUser = 16        // different ones within a minute; further ones are one
	manyDenials   = 4096      // of all users
	denialQuiet   = time.Hour // between alarms about one user
	manyTold      = 64        // users that there are alarms about within that time
	longestName   = 20        // is shorter than secrets are
)

// count records that a request was refused. What the caller wrote may be
// anything, a secret in the wrong place too: names that are long, and scopes
// that the client does not know, are not repeated.
func (d *denials) count(b *Broker, c *access.Caller, r Request, why access.Reason) {
	b.metrics.denials.Inc()
	what := denialOf{client: r.Client, surface: string(r.Surface), why: string(why)}
	cl := b.clients.Load().byName[r.Client]
	if cl == nil {
		what.client = shortened(r.Client)
	} else if known(r.Scope, cl.cfg.Limits.Scopes) {
		what.scope = r.Scope
	}
	d.add(b, c, audit.AccessDenied, what)
}

// refused records that somebody who may have a client asked for it while it is
// quarantined.
func (d *denials) refused(b *Broker, c *access.Caller, r Request) {
	b.metrics.denials.Inc()
	d.add(b, c, audit.AccessQuarantined, denialOf{client: r.Client, surface: string(r.Surface), why: b.incident(r.Client)})
}

// DeniedRole records that somebody without the role asked for an
// administrative act.
func (b *Broker) DeniedRole(c *access.Caller, act, name string) {
	b.metrics.denials.Inc()
	if b.clients.Load().byName[name] == nil {
		name = shortened(name)
	}
	b.denials.add(b, c, audit.AccessDenied, denialOf{client: name, why: "role:" + act})
}

// DeniedPath is why c may not call a path outside of those of a route: it may
// not use the client at all, or else the detail, which is recorded as a denial.
func (b *Broker) DeniedPath(c *access.Caller, name, detail string) error {
	r := Request{Client: name, Surface: access.Proxy}
	if _, _, err := b.decide(c, r); err != nil {
		return err
	}
	b.denials.count(b, c, r, "path")
	return &Error{Code: client.NotAllowed, Detail: detail}
}

func shortened(name string) string {
	if len(name) > longestName {
		return name[:8] + "…"
	}
	return name
}

func known(scope string, scopes []string) bool {
	for s := range strings.FieldsSeq(scope) {
		if !slices.Contains(scopes, s) {
			return false
		}
	}
	return true
}

// add records the first of its kind within a minute and counts the others.
func (d *denials) add(b *Broker, c *access.Caller, t audit.Type, what denialOf) {
	key := denial{t, what, c.UID, c.Unit + c.UserUnit + c.Place}
	now := b.o.Clock.Now().Wall
	d.mu.Lock()
	if s := d.m[key]; s == nil && (d.users[c.UID] >= denialsOfUser || len(d.m) >= manyDenials) {
		key = denial{event: t, what: denialOf{client: "(many)"}, uid: c.UID}
	}
	s := d.m[key]
	if s != nil {
		s.n++
		s.last = now
		d.mu.Unlock()
		return
	}
	s = &denied{first: now, last: now, caller: auditCaller(c)}
	d.m[key] = s
	if d.users == nil {
		d.users = map[uint32]int{}
	}
	d.users[c.UID]++
	e := key.audited(s)
	if t == audit.AccessDenied && d.alarm(c.UID, now) {
		if e.Detail == nil {
			e.Detail = map[string]string{}
		}
		e.Detail[audit.AlarmKey] = fmt.Sprintf("user %d was refused %s: broker audit denied says what, and what would allow it; there is one alarm an hour about a user",
			c.UID, cmp.Or(key.what.client, "an administrative act"))
	}
	d.mu.Unlock()
	b.o.Audit.Note(e)
}

// alarm says whether this is the first refusal of a user within the hour.
// Anyone local can knock, so it is an alarm at most, and no incident.
func (d *denials) alarm(uid uint32, now time.Time) bool {
	if last, ok := d.told[uid]; ok && now.Sub(last).Abs() < denialQuiet {
		return false
	}
	maps.DeleteFunc(d.told, func(_ uint32, last time.Time) bool { return now.Sub(last).Abs() >= denialQuiet })
	if len(d.told) >= manyTold {
		return false
	}
	if d.told == nil {
		d.told = map[uint32]time.Time{}
	}
	d.told[uid] = now
	return true
}

// flush writes the counts and begins anew.
func (d *denials) flush(log *audit.Log) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, s := range d.m {
		if s.n > 0 {
			e := key.audited(s)
			e.Count, e.First, e.Last = s.n, s.first, s.last
			log.Note(e)
		}
	}
	clear(d.m)
	clear(d.users)
}
