package broker

import (
	"context"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/clock"
)

// Rules of this file: systemd reads a credential once, when it starts a unit.
// What ends while the unit runs is given to units alone that are restarted for
// the next one. Who restarts them is not the Broker.

// A UnitCredential is what systemd puts into a unit (LoadCredential=,
// systemd.exec(5)).
type UnitCredential struct {
	Unit   string         `json:"unit"`
	Client string         `json:"client"`
	What   access.Surface `json:"what"` // token, headers or api-key
}

// startTTL is how much life a token has when a unit starts with it: enough for
// the start, and for the restart after it.
const startTTL = 2 * time.Minute

// want is what the rules are asked: the API key alone needs its own surface too.
func (u UnitCredential) want(cl *cachedClient) access.Want {
	w := access.Want{Surface: access.Credential}
	if u.What == access.APIKey {
		w.Also = access.APIKey
	}
	w.Restart = u.ends(cl)
	return w
}

// ends says whether the value ends by itself.
func (u UnitCredential) ends(cl *cachedClient) bool {
	return u.What != access.APIKey && cl.issuer != nil
}

// Credential answers systemd, which starts u.Unit; c is systemd's process in
// the unit's cgroup. The errors are those of Token.
func (b *Broker) Credential(ctx context.Context, c *access.Caller, u UnitCredential) (*Grant, error) {
	r := Request{Client: u.Client, Surface: access.Credential}
	cl := b.clients.Load().byName[u.Client]
	if cl == nil {
		return nil, b.deny(c, r, access.ReasonIdentity)
	}
	d := cl.rules.Decide(c, u.want(cl))
	if !d.Allowed {
		return nil, b.deny(c, r, d.Reason)
	}
	if incident := b.incident(u.Client); incident != "" {
		b.denials.refused(b, c, r)
		return nil, quarantined(u.Client, incident)
	}
	f, err := b.findUnit(ctx, cl, d, u)
	if err != nil {
		return nil, err
	}
	return b.give(ctx, taker{caller: c}, access.Credential, &f)
}

func (b *Broker) findUnit(ctx context.Context, cl *cachedClient, d access.Decision, u UnitCredential) (found, error) {
	if u.ends(cl) {
		return b.held(ctx, cl, cl.want(d, Request{}), startTTL)
	}
	if u.What == access.Token {
		return found{}, noToken()
	}
	return b.key(ctx, cl)
}

// DeniedCredential records that c asked for a unit's credential and is not
// systemd starting that unit.
func (b *Broker) DeniedCredential(c *access.Caller, name string) {
	b.denials.count(b, c, Request{Client: name, Surface: access.Credential}, access.ReasonIdentity)
}

// A Sight is what a unit would read now. It holds no value.
type Sight struct {
	Name    string // another one for each value
	Version string // of the bundle
	// Renew is when it is replaced if nothing happens; what is replaced earlier
	// was rejected, revoked or rotated. Zero, as Expires: it does not end.
	Renew, Expires clock.Reading
}

// sight is what f looks like from outside.
func (f *found) sight() Sight {
	s := Sight{Name: f.name(), Version: string(f.live.Version)}
	if f.held != nil {
		s.Renew, s.Expires = f.held.forUnits(), f.held.token.Expires
	}
	return s
}

// forUnits is when units get the next token: startTTL before its end, or when
// it is renewed for everybody.
func (h *held) forUnits() clock.Reading {
	if last := h.end.Add(-startTTL); last.Boot < h.renew.Boot {
		return last
	}
	return h.renew
}

// Sight is what the grant looks like from outside.
func (g *Grant) Sight() Sight {
	if g.Token.Fingerprint == "" {
		return Sight{Name: string(g.Version), Version: string(g.Version)}
	}
	return Sight{Name: g.Token.Fingerprint + " " + string(g.Version), Version: string(g.Version), Renew: g.renew, Expires: g.Expires}
}

// WatchUnit begins to follow what a unit would read, if its entry says restart.
// Nothing is handed over: Look is its method, and not Next.
func (b *Broker) WatchUnit(u UnitCredential) *Watch {
	return &Watch{b: b, client: u.Client, minTTL: startTTL, surface: access.Credential,
		find: func(ctx context.Context) (found, error) {
			cl := b.clients.Load().byName[u.Client]
			if cl == nil {
				return found{}, errNotFollowed(u)
			}
			w := u.want(cl)
			w.Restart = true
			d := cl.rules.Decide(&access.Caller{UID: noUser, GID: noUser, Unit: u.Unit}, w)
			switch incident := b.incident(u.Client); {
			case !d.Allowed:
				return found{}, errNotFollowed(u)
			case incident != "":
				return found{}, quarantined(u.Client, incident)
			}
			return b.findUnit(ctx, cl, d, u)
		}}
}

// noUser is no user: the unit alone decides.
const noUser = ^uint32(0)

func errNotFollowed(u UnitCredential) error {
	return &Error{Code: client.NotAllowed, RetryAfter: lookEvery, Detail: "no allow entry of " + u.Client + " lets " + u.Unit + " be restarted any more"}
}

// Look is Next without the hand-over: it says what there is, at once at first,
// then when it is something else.
func (w *Watch) Look(ctx context.Context) (Sight, error) {
	f, err := w.see(ctx)
	if err != nil {
		return Sight{}, err
	}
	w.last = f.name()
	return f.sight(), nil
}
