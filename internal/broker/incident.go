package broker

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// Rules of this file: here is what the answer to a leak needs to know of the
// live secrets, and to do with them. None of them leaves.

// shortest is how long a value is that is looked for: a shorter one is in many
// a text by chance.
const shortest = 6

// Holds says whether text holds a live secret or token of any client, in
// clear, in hexadecimal or in base64 at any alignment; or one that was retired a
// short time ago, in any form that scans look for.
func (b *Broker) Holds(text []byte) bool {
	if b.sought.index.Holds(text) {
		return true
	}
	lower := bytes.ToLower(text)
	for _, cl := range b.clients.Load().byName {
		if live := cl.cred.Current(); live != nil {
			for name, v := range live.Fields {
				public := slices.Contains([]string{"client_id", fieldCertificate, fieldKeyID, pendingKeyID}, name)
				if !public && holds(text, lower, v) {
					return true
				}
			}
		}
		for _, e := range cl.all() {
			if h := e.held.Load(); h != nil && holds(text, lower, h.token.Access) || e.holdsCarried(text, lower) {
				return true
			}
		}
		cl.state.mu.Lock()
		left := slices.ContainsFunc(cl.state.unrevoked, func(h *held) bool { return holds(text, lower, h.token.Access) })
		cl.state.mu.Unlock()
		if left {
			return true
		}
	}
	b.retired.Lock()
	defer b.retired.Unlock()
	return slices.ContainsFunc(b.retired.list, func(r retiree) bool { return r.token != nil && holds(text, lower, r.token.token.Access) })
}

// Knows says whether Holds can tell the client's secrets: they have been read.
// There is nothing to tell of a client that there is not.
func (b *Broker) Knows(name string) bool {
	cl := b.clients.Load().byName[name]
	return cl == nil || cl.cred.Current() != nil
}

func holds(text, lower []byte, v secret.Secret) bool {
	found := false
	_ = v.Use(func(b []byte) error {
		if len(b) < shortest {
			return nil
		}
		coded := make([]byte, max(hex.EncodedLen(len(b)), base64.RawStdEncoding.EncodedLen(len(b)+2)))
		shifted := make([]byte, len(b)+2)
		defer clear(coded)
		defer clear(shifted)
		hex.Encode(coded, b)
		found = bytes.Contains(text, b) || bytes.Contains(lower, coded[:hex.EncodedLen(len(b))])
		copy(shifted[2:], b)
		for before := range 3 { // bytes of something else in front
			in := shifted[2-before:]
			for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				enc.Encode(coded, in)
				// Characters that share bits with what surrounds it are not looked at.
				whole := coded[(before*8+5)/6 : len(in)*8/6]
				found = found || bytes.Contains(text, whole)
			}
		}
		return nil
	})
	return found
}

// Credentials is what names a client's bundle, and is no secret.
type Credentials struct {
	ClientID string // at the issuer; empty: not known
	KeyID    string // of the key that it authenticates with; empty: it has none
	Version  string // of what serves; empty: nothing does
	Created  time.Time
}

// Credentials reads the client's bundle from the secrets manager, if it has
// none yet, and names it. What could not be read stays empty.
func (b *Broker) Credentials(ctx context.Context, name string) Credentials {
	cl := b.clients.Load().byName[name]
	if cl == nil {
		return Credentials{}
	}
	live, err := cl.cred.Bundle(ctx)
	if err != nil {
		return Credentials{}
	}
	c := Credentials{Version: string(live.Version), Created: live.Created}
	_ = live.Fields["client_id"].Use(func(id []byte) error { c.ClientID = string(id); return nil })
	if cl.wants(fieldPrivateKey) {
		if key, err := cl.publicKey(providers.Bundle{Version: live.Version, Fields: live.Fields}); err == nil {
			c.KeyID = key.KeyID
		}
	}
	return c
}

// ClientIDs are the public identifiers of the clients that have a bundle.
func (b *Broker) ClientIDs() map[string]string {
	all := map[string]string{}
	for name, cl := range b.clients.Load().byName {
		if live := cl.cred.Current(); live != nil {
			if id := plain(live.Fields["client_id"]); id != "" && printable(id) {
				all[name] = id
			}
		}
	}
	return all
}

// A Withdrawal is what became of a client's tokens.
type Withdrawal struct {
	Revoked int // at the issuer
	Kept    int // forgotten here alone
	// Last is when the last of those that were kept ends.
	Last time.Time
	// Possible is false if the issuer has no way to revoke them.
	Possible bool
}

// Withdraw forgets the client's tokens and has the issuer revoke them where it
// can (RFC 7009). What is kept can be tried again, while the process lives.
func (b *Broker) Withdraw(ctx context.Context, name string) Withdrawal {
	cl := b.clients.Load().byName[name]
	if cl == nil || cl.issuer == nil {
		return Withdrawal{}
	}
	var r revoked
	b.revoke(ctx, cl, &r)
	return Withdrawal{Revoked: r.done, Kept: r.kept, Last: r.last, Possible: r.kept == 0 || !r.impossible()}
}

// StillTaken asks the issuer once, within the budget of failed
// authentications, whether it still takes an older version of the client's
// secret. The secrets manager has to have that version.
func (b *Broker) StillTaken(ctx context.Context, name, version string) (bool, error) {
	cl := b.clients.Load().byName[name]
	if cl == nil {
		return false, noClient(name)
	}
	taken, err := cl.cred.StillTaken(ctx, providers.Version(version))
	if err != nil {
		return false, explain(err)
	}
	return taken, nil
}

// revoke withdraws the tokens of cl, and has the issuer revoke them. One does
// at a time; who cannot wait so long counts as kept what another one works on.
func (b *Broker) revoke(ctx context.Context, cl *cachedClient, r *revoked) {
	list := b.withdraw(cl)
	select {
	case cl.state.revoking <- struct{}{}:
		defer func() { <-cl.state.revoking }()
		list = b.withdraw(cl) // what is left
	case <-ctx.Done():
		r.why = ctx.Err()
	}
	for _, h := range list {
		if r.last.Before(h.token.Expires.Wall) {
			r.last = h.token.Expires.Wall
		}
		if ctx.Err() != nil || r.hopeless() { // the client is not authenticated, or the issuer cannot do it: do not ask again
			r.count(cmp.Or(r.why, ctx.Err()))
		} else if r.count(cl.cred.Authenticated(ctx, func(ctx context.Context, m oidc.Material) error {
			return cl.issuer.Revoke(ctx, m, h.token.Access, "access_token")
		})) {
			b.o.Audit.Note(audit.Event{Type: audit.TokenRevoked, Client: cl.cfg.Name, Version: string(h.live.Version), Fingerprint: h.token.Fingerprint, JTI: h.token.JTI})
			cl.state.mu.Lock()
			cl.state.unrevoked = slices.DeleteFunc(cl.state.unrevoked, func(o *held) bool { return o == h })
			cl.state.mu.Unlock()
		}
	}
}

// Has says whether there is a client of that name.
func (b *Broker) Has(name string) bool { return b.clients.Load().byName[name] != nil }

// Prove shows whether the issuer, or the API, takes what serves: with a token
// request of its own, within the budget of failed authentications.
func (b *Broker) Prove(ctx context.Context, name string) error {
	cl := b.clients.Load().byName[name]
	switch {
	case cl == nil:
		return noClient(name)
	case cl.issuer == nil && cl.cfg.Probe == nil:
		return nil // nothing can show it: an administrator has accepted it
	case cl.issuer == nil:
		live, err := cl.cred.Bundle(ctx)
		if err != nil {
			return explain(err)
		}
		return cl.cred.Probe(ctx, live, nil)
	}
	m, err := cl.cred.Mint(ctx, cl.cfg.Default)
	if err != nil {
		return explain(err)
	}
	if m.Live.Proof == nil || !m.Live.Proof.Access.Equal(m.Token.Access) { // that one is somebody else's too
		m.Token.Access.Wipe()
	}
	return nil
}
