package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
)

// Revoke forgets the client's tokens, so that the next request gets a new one,
// and has the issuer revoke them where it can (RFC 7009); with login, the
// refresh token too.
func (b *Broker) Revoke(ctx context.Context, name string, login bool) (client.Outcome, error) {
	cl := b.clients.Load().byName[name]
	switch {
	case cl == nil:
		return client.Outcome{}, noClient(name)
	case cl.issuer == nil:
		return client.Outcome{}, &Error{Code: client.NotFound, Detail: name + " has an API key and no tokens: revoke the key where it was made"}
	case login && cl.cfg.Rotation.Refresh == nil:
		return client.Outcome{}, &Error{Code: client.NotFound, Detail: name + " has no login: leave --login out"}
	}
	var r revoked
	if login { // first: with some issuers it ends the access tokens too
		r.count(cl.cred.Logout(ctx, func(ctx context.Context, m oidc.Material, token secret.Secret) error {
			return cl.issuer.Revoke(ctx, m, token, "refresh_token")
		}))
	}
	for _, e := range cl.all() {
		h := e.held.Load()
		if h == nil {
			continue
		}
		if r.last.Before(h.token.Expires.Wall) {
			r.last = h.token.Expires.Wall
		}
		err := cl.issuer.Revoke(ctx, oidc.Material(h.live.Fields), h.token.Access, "access_token")
		if r.count(err) {
			b.o.Audit.Note(audit.Event{Type: audit.TokenRevoked, Client: name, Version: string(h.live.Version), Fingerprint: h.token.Fingerprint, JTI: h.token.JTI})
		}
		if e.held.CompareAndSwap(h, nil) {
			b.retireToken(h)
		}
	}
	return r.outcome(cl)
}

// revoked sums up.
type revoked struct {
	done, kept int
	why        error // of the last that was kept
	last       time.Time
}

func (r *revoked) count(err error) bool {
	if err != nil {
		r.kept, r.why = r.kept+1, err
		return false
	}
	r.done++
	return true
}

func (r *revoked) outcome(cl *cachedClient) (client.Outcome, error) {
	name := cl.cfg.Name
	if r.done+r.kept == 0 {
		return client.Outcome{Reason: "there was no token to revoke"}, nil
	}
	if r.kept == 0 {
		return client.Outcome{Reason: fmt.Sprintf("%d tokens revoked at the issuer and forgotten here", r.done)}, nil
	}
	text := fmt.Sprintf("%d of %d tokens are forgotten here and not revoked at the issuer: %v; the last of them ends at %s",
		r.kept, r.done+r.kept, r.why, r.last.UTC().Format("2006-01-02 15:04:05 MST"))
	var e *oidc.Error
	if !errors.As(r.why, &e) || e.Status != 0 || e.Kind != oidc.Refused {
		return client.Outcome{}, &Error{Code: client.IssuerUnavailable, Detail: text + "; run broker revoke " + name + " again", RetryAfter: time.Second, Err: r.why}
	}
	if len(cl.cfg.Steps) > 0 {
		text += "; what a person can do there: " + strings.Join(cl.cfg.Steps, " ")
	}
	return client.Outcome{Reason: text}, nil
}
