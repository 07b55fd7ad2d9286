package broker

import (
	"context"
	"errors"
	"slices"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/clock"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// Whoami tells what the broker sees of a caller and what it may have.
func (b *Broker) Whoami(c *access.Caller) Identity {
	id := Identity{Caller: c.String(), Clients: []IdentityClient{}}
	set := b.clients.Load()
	for _, name := range set.names {
		rules := set.byName[name].rules
		if !c.Reaches(name) {
			continue
		}
		if s := set.byName[name].served(rules.Surfaces(c)); len(s) > 0 {
			d := rules.Decide(c, access.Want{Surface: s[0]})
			id.Clients = append(id.Clients, IdentityClient{Client: name, Entries: d.Matched, Surfaces: s})
		}
	}
	return id
}

// served leaves out the surfaces that the client, or this version, does not
// have.
func (c *cachedClient) served(list []access.Surface) []access.Surface {
	return slices.DeleteFunc(list, func(s access.Surface) bool {
		switch s {
		case access.Headers, access.APIKey, access.Credential, access.Exec:
			return false
		case access.Token, access.Events:
			return c.issuer == nil
		case access.JWT:
			return c.issuer == nil || !c.issuer.Local()
		case access.Proxy:
			return !c.cfg.Proxied
		case access.Files:
		}
		return true
	})
}

// Ready tells whether the caller's clients can be served now; of the others it
// tells only how many there are.
func (b *Broker) Ready(c *access.Caller) Readiness {
	r := Readiness{Ready: true, Clients: []ClientReadiness{}}
	now := b.o.Clock.Now()
	set := b.clients.Load()
	for _, name := range set.names {
		cl := set.byName[name]
		if !c.Reaches(name) || len(cl.rules.Surfaces(c)) == 0 {
			r.Others++
			continue
		}
		one := ClientReadiness{Client: name, Runway: int64(cl.runway(now) / time.Second), DegradedUntil: cl.cred.Degraded()}
		if err := b.ready(cl, now); err != nil {
			one.Code, one.Reason = err.Code, err.Detail
		}
		one.Ready = one.Code == ""
		r.Ready = r.Ready && one.Ready
		r.Clients = append(r.Clients, one)
	}
	return r
}

// runway is for how long the tokens in hand will serve.
func (c *cachedClient) runway(now clock.Reading) time.Duration {
	var longest time.Duration
	for _, e := range c.all() {
		if h := e.held.Load(); h != nil {
			longest = max(longest, h.end.Until(now))
		}
	}
	return longest
}

// ready says why nothing can be handed out now, without any I/O; nil if
// nothing is known to prevent it.
func (b *Broker) ready(c *cachedClient, now clock.Reading) *Error {
	if err := b.o.Audit.Healthy(); err != nil && !b.o.ServeUnrecorded {
		return &Error{Code: client.AuditUnavailable, Detail: "the audit log cannot be written: " + err.Error(), RetryAfter: 5 * time.Second, Err: err}
	}
	if incident := b.incident(c.cfg.Name); incident != "" {
		return quarantined(c.cfg.Name, incident)
	}
	if c.runway(now) > 0 {
		return nil
	}
	s := c.cred.Status()
	var err error
	switch {
	case s.Version == "" && s.Provider.Err != nil:
		err = &rotation.Error{Kind: rotation.NoBundle, Detail: "the secrets manager gave no credentials: " + s.Provider.Err.Error()}
	case s.Version == "" && s.Candidate != "":
		err = &rotation.Error{Kind: rotation.NoBundle, Detail: "version " + string(s.Candidate) + " of the secret cannot be used: " + s.Waiting}
	case s.Version == "":
		err = &rotation.Error{Kind: rotation.NoBundle, Detail: "the secrets manager has not been read yet"}
	case s.Withheld != nil:
		err = s.Withheld
	case c.issuer == nil:
		return nil
	case s.State.Err != nil:
		err = s.State.Err
	case s.Dead:
		err = &rotation.Error{Kind: rotation.Rejected, Detail: "the issuer refused version " + string(s.Version) + " of the secret: " + s.Remedy}
	case s.Login != nil && s.Login.Required:
		err = &rotation.Error{Kind: rotation.LoginRequired, Client: c.cfg.Name}
	case s.Issuer.Err != nil:
		err = s.Issuer.Err
	default:
		return nil
	}
	var e *Error
	if !errors.As(explain(err), &e) {
		return nil
	}
	return e
}

// A ClientStatus is one client's state, for administrators.
type ClientStatus struct {
	Name, ProviderName string
	Owner              Owner
	Credential         rotation.Status
	Tokens             []TokenStatus
	Runway             int64 // seconds
	Problem            *Error
	EntryProblems      []error // of the allow list
	Quarantined        string  // the incident; empty: it is not
	MaxAge             time.Duration
	KeyComplaints      int // callers who said that the API refused the key
	KeyLast            time.Time
	HasKey             bool
	HasIssuer          bool   // that issues tokens
	Secret             string // where it is
	PendingKey         string // kid of a key that waits for the issuer; empty: none
}

// TokenStatus is one token in the cache.
type TokenStatus struct {
	Scope, Audience, Resource string
	Granted                   string // scope that the issuer gave
	Narrowed                  bool
	Fingerprint, JTI          string
	Version                   string
	Bound                     string // x5t#S256 of the certificate that it is bound to
	Expires                   time.Time
	ExpiresIn                 int64 // seconds
	Handovers                 int64
	Processes                 int
	Skew                      time.Duration
}

// Status tells the state of every client, in the order of their names.
func (b *Broker) Status() []ClientStatus {
	now := b.o.Clock.Now()
	set := b.clients.Load()
	list := make([]ClientStatus, 0, len(set.names))
	for _, name := range set.names {
		list = append(list, b.status(set.byName[name], now))
	}
	return list
}

func (b *Broker) status(c *cachedClient, now clock.Reading) ClientStatus {
	s := ClientStatus{Name: c.cfg.Name, ProviderName: c.cfg.ProviderName, Owner: c.cfg.Owner, Credential: c.cred.Status(),
		Runway: int64(c.runway(now) / time.Second), Problem: b.ready(c, now), EntryProblems: c.problems, MaxAge: c.cfg.Rotation.MaxAge,
		Secret: c.cfg.Rotation.Spec.String(), HasIssuer: c.issuer != nil && !c.issuer.Local(), Quarantined: b.incident(c.cfg.Name)}
	if live := c.cred.Current(); live != nil {
		s.HasKey = !live.Fields["api_key"].Empty()
		if id := plain(live.Fields[pendingKeyID]); printable(id) {
			s.PendingKey = id
		}
	}
	c.state.mu.Lock()
	if c.state.bad.version == s.Credential.Version {
		s.KeyComplaints, s.KeyLast = len(c.state.bad.callers), c.state.bad.last
	}
	c.state.mu.Unlock()
	for _, e := range c.all() {
		h := e.held.Load()
		if h == nil {
			continue
		}
		h.mu.RLock()
		n := len(h.m)
		h.mu.RUnlock()
		s.Tokens = append(s.Tokens, TokenStatus{Scope: e.want.Scope, Audience: e.want.Audience, Resource: e.want.Resource,
			Granted: h.token.Scope, Narrowed: h.token.Narrowed, Fingerprint: h.token.Fingerprint, JTI: h.token.JTI, Bound: h.token.Bound, Version: string(h.live.Version),
			Expires: h.token.Expires.Wall, ExpiresIn: max(0, int64(h.token.Expires.Until(now)/time.Second)),
			Handovers: h.total(), Processes: n, Skew: h.token.Skew})
	}
	return s
}

// Retry lets a refused version of the secret be tried once more.
func (b *Broker) Retry(name string) error {
	cl := b.clients.Load().byName[name]
	if cl == nil {
		return noClient(name)
	}
	for _, e := range cl.all() {
		e.mu.Lock()
		e.refused, e.patience = nil, 0
		e.mu.Unlock()
		e.notBefore.Store(0)
		b.sched.at(e, b.o.Clock.Now())
	}
	return cl.cred.Retry()
}

// A Rotation is what an administrator asks for. Zero: the newest version is
// looked for now, and proved.
type Rotation struct {
	Accept  bool              // install what cannot be proved
	Version providers.Version // pin this one; empty: none
	Latest  bool              // take a pin away
}

// Rotate does it, and returns what serves afterwards.
func (b *Broker) Rotate(ctx context.Context, name string, r Rotation) (rotation.Status, error) {
	cl := b.clients.Load().byName[name]
	if cl == nil {
		return rotation.Status{}, noClient(name)
	}
	var err error
	var why string
	switch {
	case r.Version != "":
		why, err = cl.cred.Pin(ctx, r.Version, r.Accept)
	case r.Latest:
		err = cl.cred.Unpin(ctx)
	case r.Accept:
		_, why, err = cl.cred.Accept(ctx)
	default:
		err = cl.cred.CheckNow(ctx)
	}
	for _, e := range cl.all() {
		b.sched.at(e, b.o.Clock.Now())
	}
	switch {
	case r.Version != "" && err != nil && !providers.KindOf(err).Temporary():
		err = &Error{Code: client.NotFound, Detail: "this version cannot be had: " + err.Error(), Err: err}
	case err != nil:
		err = &Error{Code: client.ProviderUnavailable, Detail: err.Error(), RetryAfter: 30 * time.Second, Err: err}
	case why != "":
		err = &Error{Code: client.CredentialsRejected, Detail: "the version is not installed, and what served serves on: " + why}
	}
	return cl.cred.Status(), err
}

// SecretUses counts reads of secrets and their uses at issuers, before and
// after each. Whoever cleans memory behind that looks whether it has changed.
func (b *Broker) SecretUses() uint64 { return b.uses.Load() }

// SecretUsed counts one more, which passed through somebody else's hands.
func (b *Broker) SecretUsed() { b.uses.Add(1) }

func noClient(name string) error {
	return &Error{Code: client.NotFound, Detail: "no client is called " + name + "; broker status lists them"}
}
