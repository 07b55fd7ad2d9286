package broker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/clock"
	"credentialbroker/oidc"
	"credentialbroker/rotation"
)

// Token answers a consumer that wants a token, or the headers of a call. The
// errors are of type *Error, or ctx's.
func (b *Broker) Token(ctx context.Context, c *access.Caller, r Request) (*Grant, error) {
	f, err := b.find(ctx, c, r)
	if err != nil {
		return nil, err
	}
	return b.give(ctx, taker{caller: c, via: r.Via}, r.Surface, &f)
}

// APIKey answers a consumer that wants the API key alone.
func (b *Broker) APIKey(ctx context.Context, c *access.Caller, name string) (*Grant, error) {
	cl, _, err := b.decide(c, Request{Client: name, Surface: access.APIKey})
	if err != nil {
		return nil, err
	}
	f, err := b.key(ctx, cl)
	if err != nil {
		return nil, err
	}
	return b.give(ctx, taker{caller: c}, access.APIKey, &f)
}

// found is what was found for somebody, and is not handed over yet.
type found struct {
	cl   *cachedClient
	live *rotation.Live
	held *held // nil: an API key alone
	now  clock.Reading
}

// name tells one found from another.
func (f *found) name() string {
	if f.held == nil {
		return string(f.live.Version)
	}
	return f.held.token.Fingerprint + " " + string(f.live.Version)
}

// find is Token before the hand-over.
func (b *Broker) find(ctx context.Context, c *access.Caller, r Request) (found, error) {
	cl, d, err := b.decide(c, r)
	if err != nil {
		return found{}, err
	}
	if cl.issuer == nil {
		if r.Surface == access.Token || r.Surface == access.Events || r.NeedsToken {
			return found{}, noToken()
		}
		return b.key(ctx, cl)
	}
	return b.held(ctx, cl, cl.want(d, r), r.MinTTL)
}

// findFor is find for a place.
func (b *Broker) findFor(ctx context.Context, p Place) (found, error) {
	cl := b.clients.Load().byName[p.Client]
	if cl == nil {
		return found{}, &Error{Code: client.NotFound, Detail: "there is no client " + p.Client + " any more"}
	}
	if incident := b.incident(p.Client); incident != "" {
		return found{}, quarantined(p.Client, incident)
	}
	if p.Key || cl.issuer == nil {
		return b.key(ctx, cl)
	}
	d := access.Decision{Scope: p.Scope, Audience: p.Audience}
	return b.held(ctx, cl, cl.want(d, Request{}), p.MinTTL)
}

func (b *Broker) held(ctx context.Context, cl *cachedClient, want oidc.Request, minTTL time.Duration) (found, error) {
	e, err := cl.entry(want, b.o.Clock.Now())
	if err != nil {
		return found{}, err
	}
	h, now, err := b.token(ctx, e, minTTL)
	if err != nil {
		return found{}, err
	}
	return found{cl: cl, live: h.live, held: h, now: now}, nil
}

// give hands over what was found.
func (b *Broker) give(ctx context.Context, to taker, s access.Surface, f *found) (*Grant, error) {
	g := b.grant(f)
	if err := b.handOver(ctx, to, s, g.held, f.now); err != nil {
		return nil, err
	}
	return g, nil
}

// grant is what is to be handed over.
func (b *Broker) grant(f *found) *Grant {
	g := &Grant{Client: f.cl.cfg.Name, Version: f.live.Version, Now: f.now, headers: f.cl.headers, fields: f.live.Fields}
	if f.held == nil {
		g.held = b.keyHolders(f.cl.state, f.live)
	} else {
		g.held, g.Token, g.Expires, g.renew = &f.held.holding, f.held.token, f.held.token.Expires, f.held.forUnits()
	}
	return g
}

func noToken() *Error {
	return &Error{Code: client.InvalidRequest, Detail: "this client has an API key and no tokens: ask for headers or api-key"}
}

// JWT answers a consumer that wants a self-signed JWT for one user: a new one
// each time.
func (b *Broker) JWT(ctx context.Context, c *access.Caller, r UserRequest) (*Grant, error) {
	cl, _, err := b.decide(c, Request{Client: r.Client, Surface: access.JWT})
	if err != nil {
		return nil, err
	}
	if cl.issuer == nil || !cl.issuer.Local() {
		return nil, &Error{Code: client.NotFound, Detail: "this client's tokens come from its issuer and name no user: ask for token or headers"}
	}
	m, err := cl.cred.Sign(ctx, r.User)
	if err != nil {
		return nil, explainUser(err)
	}
	now := b.o.Clock.Now()
	if err := b.handOver(ctx, taker{caller: c}, access.JWT, b.jwtHolders(cl.state, m.Live), now); err != nil {
		m.Token.Access.Wipe()
		return nil, err
	}
	return &Grant{Client: cl.cfg.Name, Version: m.Live.Version, Token: m.Token, Expires: m.Token.Expires, Now: now,
		headers: cl.headers, fields: m.Live.Fields}, nil
}

// explainUser tells a caller that the user it names cannot be, rather than
// that the client's secret is bad.
func explainUser(err error) error {
	var e *rotation.Error
	if errors.As(err, &e) && e.Kind == rotation.RequestRefused {
		return &Error{Code: client.InvalidRequest, Detail: e.Detail}
	}
	return explain(err)
}

// key finds what needs no token.
func (b *Broker) key(ctx context.Context, cl *cachedClient) (found, error) {
	live, err := cl.cred.Bundle(ctx)
	if err != nil {
		return found{}, explain(err)
	}
	if live.Fields["api_key"].Empty() {
		return found{}, &Error{Code: client.InvalidRequest, Detail: "the secret of this client has no field api_key"}
	}
	return found{cl: cl, live: live, now: b.o.Clock.Now()}, nil
}

// decide finds the client and the rules' answer; a refusal is recorded.
func (b *Broker) decide(c *access.Caller, r Request) (*cachedClient, access.Decision, error) {
	cl := b.clients.Load().byName[r.Client]
	if cl == nil || !c.Reaches(r.Client) {
		return nil, access.Decision{}, b.deny(c, r, access.ReasonIdentity)
	}
	d := cl.rules.Decide(c, access.Want{Surface: r.Surface, Scope: r.Scope, Audience: r.Audience, Resource: r.Resource})
	if !d.Allowed {
		return nil, d, b.deny(c, r, d.Reason)
	}
	if incident := b.incident(r.Client); incident != "" {
		b.denials.refused(b, c, r)
		return nil, d, quarantined(r.Client, incident)
	}
	return cl, d, nil
}

// deny says no. Somebody who may not use a client learns nothing of it, not
// even whether it exists.
func (b *Broker) deny(c *access.Caller, r Request, why access.Reason) error {
	b.denials.count(b, c, r, why)
	e := &Error{Code: client.NotAllowed, Identity: c.String(), Clients: []string{}, Reason: why}
	set := b.clients.Load()
	for _, name := range set.names {
		if c.Reaches(name) && set.byName[name].rules.Decide(c, access.Want{Surface: access.Token}).Matched != nil {
			e.Clients = append(e.Clients, name)
		}
	}
	switch why {
	case access.ReasonSurface:
		e.Detail = "no allow entry gives you this surface of the client; the administrator sees the request with: broker audit denied"
	case access.ReasonRestart:
		e.Detail = "a token ends while the unit runs, and systemd reads it once, at the start: the allow entry has to say restart: true, or the unit to use another surface"
	case access.ReasonScope:
		e.Detail = "the scope is outside of what your allow entry gives; ask for less, or the administrator for more"
	case access.ReasonAudience:
		e.Detail = "the audience or resource is outside of what your allow entry gives; ask for less, or the administrator for more"
	default:
		e.Detail = "there is no such client, or no allow entry for you; the administrator sees the request with: broker audit denied"
	}
	if c.Client != "" {
		e.Detail += "; this address serves the client " + c.Client + " alone, by entries that name user or group and no unit or executable"
	}
	return e
}

// want is the token request that a decision allows.
func (c *cachedClient) want(d access.Decision, r Request) oidc.Request {
	w := oidc.Request{Scope: d.Scope, Audience: d.Audience, Resource: r.Resource}
	if w.Scope == "" {
		w.Scope = c.cfg.Default.Scope
	}
	if w.Audience == "" && w.Resource == "" {
		w.Audience, w.Resource = c.cfg.Default.Audience, c.cfg.Default.Resource
	}
	return w
}

// token finds a usable token, or waits for one.
func (b *Broker) token(ctx context.Context, e *entry, minTTL time.Duration) (*held, clock.Reading, error) {
	now := b.o.Clock.Now()
	e.read.Store(int64(now.Boot))
	for range 4 { // as found, taken over or proved with a newer bundle, minted
		h := e.held.Load()
		if h != nil && h.usable(now, minTTL) {
			if h.stale(now, e.state.client.Load().cred.Current()) {
				h = b.refresh(e, h, now)
			}
			return h, now, nil
		}
		if b.adopt(e, h, now) != nil {
			continue
		}
		if err := b.await(ctx, e, h, now); err != nil {
			return nil, now, err
		}
		now = b.o.Clock.Now()
	}
	return nil, now, &Error{Code: client.IssuerProtocolError, RetryAfter: time.Minute,
		Detail: "the issuer's tokens end before they can be used, or before min_ttl: ask for less, and check the clock and the lifetime at the issuer"}
}

// await joins the entry's flight, or starts it, and waits for its end; seen is
// the token that will not do.
func (b *Broker) await(ctx context.Context, e *entry, seen *held, now clock.Reading) error {
	select {
	case <-b.started: // whoever comes while the daemon starts waits for it
	case <-ctx.Done():
		return ctx.Err()
	}
	f, err := b.fly(e, seen, now)
	if err != nil {
		return err
	}
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// refresh starts to replace a token that is still good, and gives the one to
// serve meanwhile.
func (b *Broker) refresh(e *entry, h *held, now clock.Reading) *held {
	if n := b.adopt(e, h, now); n != nil {
		return n
	}
	if now.Boot >= time.Duration(e.notBefore.Load()) {
		_, _ = b.fly(e, h, now)
	}
	return h
}

// adopt takes the token that has proved a newer bundle, if there is one; nil: no.
func (b *Broker) adopt(e *entry, h *held, now clock.Reading) *held {
	cl := e.state.client.Load()
	live := cl.cred.Current()
	if h == nil || live == nil || live == h.live || live.Proof == nil || e.want != cl.cfg.Default {
		return nil
	}
	n := newHeld(e, *live.Proof, live)
	if !n.usable(now, 0) {
		return nil
	}
	if !b.swap(e, h, n) {
		return e.held.Load() // somebody else was faster
	}
	return n
}

// explain maps what rotation says to what a consumer sees: the one table.
func explain(err error) error {
	var e *rotation.Error
	if !errors.As(err, &e) {
		if errors.Is(err, context.Canceled) {
			return err
		}
		return &Error{Code: client.IssuerUnavailable, Detail: "there was no answer in time; try again", RetryAfter: time.Second, Err: err}
	}
	out := &Error{Detail: e.Detail, RetryAfter: e.RetryAfter, Err: e.Err, kind: e.Kind}
	switch e.Kind {
	case rotation.Rejected, rotation.RequestRefused:
		out.Code = client.CredentialsRejected
	case rotation.Protocol:
		out.Code = client.IssuerProtocolError
	case rotation.NoBundle:
		out.Code = client.ProviderUnavailable
	case rotation.LoginRequired:
		// The reason names hosts, and administrators see it in the status.
		out.Code, out.Detail = client.LoginRequired, "a person has to log in at the issuer: an administrator sees why with broker status, and runs broker login "+e.Client
	case rotation.StateUnwritable:
		out.Code = client.AuditUnavailable
	case rotation.Unavailable:
		out.Code = client.IssuerUnavailable
	}
	if out.Code.Status() == 503 {
		out.RetryAfter = max(out.RetryAfter, time.Second)
	}
	return out
}

// Reject takes a consumer's word that the API refused a token.
//
// Only the current token is replaced, by one fetch for all who complain, while
// it goes on serving the others. A token that is refused when it is young is
// not the problem: then the next replacement waits, a minute at first,
// doubling to fifteen. So does the replacement of a replacement, up to five.
func (b *Broker) Reject(ctx context.Context, c *access.Caller, r Rejection) (Rejected, error) {
	cl, err := b.mayReject(c, r.Client)
	if err != nil {
		return Rejected{}, err
	}
	keyFault := meansKey(cl.cfg.KeyRejected, r.MoreInformation) || cl.issuer == nil && r.Status == http.StatusUnauthorized
	b.noteRejection(cl, c, keyFault)
	fingerprint := r.fingerprint()
	switch {
	case keyFault:
		cl.state.keyRejected(c, cl.cred.Status().Version, b.o.Clock.Now())
		return Rejected{}, &Error{Code: client.APIKeyRejected, Detail: "the API refused the API key, not a token: a new token would not help; " +
			"an administrator has to check the key, its subscription and the environment"}
	case !cl.aboutToken(r.Status):
		return Rejected{Fingerprint: fingerprint, Reason: fmt.Sprintf("HTTP %d does not say that the token is bad, so it stays: on 429 and 503 obey Retry-After, on 403 look at the scope", r.Status)}, nil
	case fingerprint == "" || cl.issuer == nil:
		return Rejected{Reason: "no token is named, by access_token or fingerprint, so nothing is replaced"}, nil
	}
	b.settleAll(cl, fingerprint)
	e := cl.find(fingerprint)
	if e == nil {
		return notCurrent(), nil
	}
	return b.replace(ctx, e, fingerprint)
}

// aboutToken says whether an API's status can mean that the token is bad: 401
// (RFC 6750 §3.1), and the 403 of the ZGW components.
func (c *cachedClient) aboutToken(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden && c.issuer != nil && c.issuer.Local()
}

// mayReject finds the client for somebody who may have anything of it that an
// API could refuse.
func (b *Broker) mayReject(c *access.Caller, name string) (*cachedClient, error) {
	surface := access.Token
	if cl := b.clients.Load().byName[name]; cl != nil {
		for _, s := range []access.Surface{access.Token, access.Headers, access.JWT, access.APIKey, access.Events, access.Exec, access.Proxy} {
			if cl.rules.Decide(c, access.Want{Surface: s}).Allowed {
				surface = s
				break
			}
		}
	}
	cl, _, err := b.decide(c, Request{Client: name, Surface: surface})
	return cl, err
}

func (b *Broker) replace(ctx context.Context, e *entry, fingerprint string) (Rejected, error) {
	now, seen := b.o.Clock.Now(), e.held.Load()
	wait, suspicious, current := e.rejected(now, fingerprint)
	if !current {
		return notCurrent(), nil
	}
	if wait > 0 {
		out := Rejected{Fingerprint: fingerprint, RetryAfter: wait, Reason: "the token was asked for again a short time ago: it is replaced after the wait"}
		if suspicious {
			out.Reason = "this token was refused within a minute of its issue: suspect the API key, the subscription or a clock before the token"
			if h := e.held.Load(); h != nil && h.token.Skew.Abs() > time.Second {
				out.Reason += "; the issuer's clock and ours differ by " + h.token.Skew.Round(time.Second).String()
			}
		}
		return out, nil
	}
	if err := b.await(ctx, e, seen, now); err != nil {
		return Rejected{}, err
	}
	out := Rejected{Replaced: true, Reason: "a new token is there: repeat the call once"}
	if h := e.held.Load(); h != nil {
		out.Fingerprint = h.token.Fingerprint
	}
	return out, nil
}

func notCurrent() Rejected {
	return Rejected{Reason: "this is not the current token: ask for the token again, then repeat the call once"}
}

// meansKey says whether an API's text is about the key rather than the token.
func meansKey(texts []string, moreInformation string) bool {
	said := strings.ToLower(moreInformation)
	return slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(said, strings.ToLower(t)) })
}
