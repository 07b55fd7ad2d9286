package rotation

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// probed is what the last probe of a bundle found.
type probed struct {
	at  clock.Reading
	err error
}

// taken says that the API took the bundle.
func (p probed) taken() bool { return p.err == nil && !p.at.IsZero() }

// refused says that it did not.
func (p probed) refused() bool { return oidc.KindOf(p.err) == oidc.InvalidClient }

func (c *Credential) lastProbe(l *Live) probed {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.probes[l.id]
}

// Unprobed says whether the API has not been asked about a bundle yet, or has
// not answered.
func (c *Credential) Unprobed(live *Live) bool {
	last := c.lastProbe(live)
	return c.deps.Prober != nil && !last.taken() && !last.refused()
}

// ProbeServing is Probe for a bundle that serves already: a refusal raises an
// alarm, and changes nothing else.
func (c *Credential) ProbeServing(ctx context.Context, live *Live, t *oidc.Token) {
	if err := c.Probe(ctx, live, t); oidc.KindOf(err) == oidc.InvalidClient {
		c.note(audit.TokenRejected, live.Version, "probe", map[string]string{"alarm": "the API refuses this version of the secret: " + err.Error()})
	}
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
	if c.probes == nil {
		c.probes = map[versionID]probed{}
	}
	if serving := c.Current(); len(c.probes) > 8 && serving != nil { // candidates that were refused, one after another
		maps.DeleteFunc(c.probes, func(id versionID, _ probed) bool { return id != serving.id })
	}
	c.probes[live.id] = probed{c.deps.Clock.Now(), err}
	return err
}

// probeOnce asks the API about a bundle that nothing else has proved, where
// that needs no token of an issuer.
func (c *Credential) probeOnce(ctx context.Context) {
	live := c.Current()
	if live == nil || c.deps.Issuer != nil && !c.deps.Issuer.Local() || !c.Unprobed(live) {
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
	c.ProbeServing(ctx, live, token)
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
	switch {
	case e.Kind == oidc.InvalidClient:
	case c.cfg.Prove != ProveProbe:
		return nil // the issuer has judged; that the API is down says nothing
	default:
		return &Error{Kind: Unavailable, Detail: e.Error(), RetryAfter: max(e.RetryAfter, longestWait), Err: err}
	}
	now := c.deps.Clock.Now()
	if err := c.refuse(live, now, "probe"); err != nil {
		return err
	}
	c.note(audit.TokenRefused, live.Version, "probe", live.alarm("the API refused this version of the secret: "+e.Error()))
	return &Error{Kind: Rejected, Code: "probe", Err: err,
		Detail: fmt.Sprintf("the API refused version %s of the secret on %s: %s", live.Version, now.Wall.UTC().Format(time.RFC3339), e.Error())}
}
