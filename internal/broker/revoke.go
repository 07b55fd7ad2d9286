package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/rotation"
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
		ended, err := cl.cred.Logout(ctx, func(ctx context.Context, m oidc.Material, token secret.Secret) error {
			return cl.issuer.Revoke(ctx, m, token, "refresh_token")
		})
		if ended || err != nil {
			r.count(err)
		}
	}
	b.revoke(ctx, cl, &r)
	return r.outcome(cl)
}

// withdraw takes the client's tokens out of the cache, and gives them together
// with those that are not revoked yet and have not ended. They stay known until
// they are.
func (b *Broker) withdraw(cl *cachedClient) []*held {
	now := b.o.Clock.Now()
	cl.state.mu.Lock()
	defer cl.state.mu.Unlock()
	list := slices.DeleteFunc(cl.state.unrevoked, func(h *held) bool { return h.token.Expires.Until(now) <= 0 })
	for _, e := range cl.all() {
		if h := b.unsettled(e); h != nil {
			list = append(list, h)
		}
		if h := e.held.Swap(nil); h != nil {
			b.retireToken(h)
			list = append(list, h)
		}
	}
	cl.state.unrevoked = list
	return slices.Clone(list)
}

// revoked sums up.
type revoked struct {
	done, kept int
	why        error // of the last that was kept
	last       time.Time
}

// hopeless says that asking once more would not help, and may count at the
// issuer.
func (r *revoked) hopeless() bool {
	var refused *rotation.Error
	var cannot *oidc.Error
	return errors.As(r.why, &refused) || errors.As(r.why, &cannot) && cannot.Kind == oidc.Refused && cannot.Status == 0
}

// impossible says that the issuer has no way to revoke a token.
func (r *revoked) impossible() bool {
	var e *oidc.Error
	var refused *rotation.Error
	return !errors.As(r.why, &refused) && errors.As(r.why, &e) && e.Kind == oidc.Refused && e.Status == 0
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
	var refused *rotation.Error
	if errors.As(r.why, &refused) {
		var e *Error
		if errors.As(explain(r.why), &e) {
			e.Detail = text
			return client.Outcome{}, e
		}
	}
	var e *oidc.Error
	if !errors.As(r.why, &e) || e.Status != 0 || e.Kind != oidc.Refused {
		return client.Outcome{}, &Error{Code: client.IssuerUnavailable, Detail: text + "; run broker revoke " + name + " again", RetryAfter: time.Second, Err: r.why}
	}
	if cl.issuer.Local() {
		return client.Outcome{Reason: fmt.Sprintf("%d tokens are forgotten here; the broker signs them itself, so that nobody but a new client_secret ends them before %s",
			r.kept, r.last.UTC().Format("2006-01-02 15:04:05 MST"))}, nil
	}
	text += "; how to end them at the issuer is in its page of docs/issuers, under A leak"
	return client.Outcome{Reason: text}, nil
}
