package rotation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/oidc"
)

// A Prober makes a harmless request to the client's API with a bundle and a
// token; the token is nil for a client that has an API key alone. It returns
// nil if the API takes both, and otherwise an *oidc.Error: of kind
// InvalidClient if the API refuses them, of another kind if it does not say.
type Prober interface {
	Probe(ctx context.Context, live *Live, t *oidc.Token) error
}

// probed is what the last probe found.
type probed struct {
	id  versionID
	at  clock.Reading
	err error
}

// of says whether the API took this bundle.
func (p probed) of(l *Live) bool { return l != nil && p.id == l.id && p.err == nil && !p.at.IsZero() }

func (c *Credential) lastProbe() probed {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.probed
}

// Probe asks the API whether it takes the current bundle, with a token that
// was minted with it. What it says is in the status; nothing else changes.
func (c *Credential) Probe(ctx context.Context, live *Live, t *oidc.Token) error {
	ctx, cancel := context.WithTimeout(ctx, mintTimeout)
	defer cancel()
	c.deps.Uses.Add(1)
	err := c.deps.Prober.Probe(ctx, live, t)
	c.deps.Uses.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.probed = probed{live.id, c.deps.Clock.Now(), err}
	return err
}

// probeOnce asks the API about a bundle that nothing else has proved, where
// that needs no token of an issuer.
func (c *Credential) probeOnce(ctx context.Context) {
	live := c.Current()
	if c.deps.Prober == nil || live == nil || c.deps.Issuer != nil && !c.deps.Issuer.Local() {
		return
	}
	last := c.lastProbe()
	if last.id == live.id && (last.err == nil || oidc.KindOf(last.err) == oidc.InvalidClient) {
		return
	}
	var token *oidc.Token
	if c.deps.Issuer != nil {
		t, err := c.sign(live, oidc.User{})
		if err != nil {
			return
		}
		defer t.Access.Wipe()
		token = &t
	}
	if err := c.Probe(ctx, live, token); oidc.KindOf(err) == oidc.InvalidClient {
		c.note(audit.TokenRejected, live.Version, "probe", map[string]string{"alarm": "the API refuses this version of the secret: " + err.Error()})
	}
}

// proveByProbe lets the API judge a candidate. A refusal counts as one of the
// issuer's, and is remembered like it.
func (c *Credential) proveByProbe(ctx context.Context, live *Live, t *oidc.Token) error {
	err := c.Probe(ctx, live, t)
	if err == nil {
		return nil
	}
	var e *oidc.Error
	if !errors.As(err, &e) {
		e = &oidc.Error{Kind: oidc.Unavailable, Message: "the API does not answer", Err: err}
	}
	if e.Kind != oidc.InvalidClient {
		return &Error{Kind: Unavailable, Detail: e.Error(), RetryAfter: max(e.RetryAfter, longestWait), Err: err}
	}
	now := c.deps.Clock.Now()
	if err := c.recorded(c.ledger.failed(live.id, now.Wall, "probe")); err != nil {
		return err
	}
	c.note(audit.TokenRefused, live.Version, "probe", map[string]string{"alarm": "the API refused this version of the secret: " + e.Error()})
	return &Error{Kind: Rejected, Code: "probe", Err: err,
		Detail: fmt.Sprintf("the API refused version %s of the secret on %s: %s", live.Version, now.Wall.UTC().Format(time.RFC3339), e.Error())}
}
