package rotation

import (
	"context"
	"errors"
	"fmt"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/providers"
)

// Rules of this file: an older version is read from the secrets manager, which
// keeps it or does not; it is proved like a new one, and what serves goes on
// serving if it cannot be.

// fallBack goes back to the version that authenticated last, if the current
// one is refused and was never proved: a process that has just started knows
// the newest version alone. It says whether it did.
func (c *Credential) fallBack(ctx context.Context, live *Live) bool {
	last := c.ledger.proved(c.place)
	if last == "" || last == live.Version || !c.refused(live.id) || c.refused(c.id(last)) || c.ledger.pinned(c.place) != "" {
		return false
	}
	now := c.deps.Clock.Now()
	c.mu.Lock()
	wait, down := c.back.until.Until(now), c.provider.err
	c.mu.Unlock()
	if wait > 0 { // the manager does not give it
		return false
	}
	if c.checking.take(ctx) != nil {
		return false
	}
	defer c.checking.give()
	var b providers.Bundle
	err := down
	if err == nil {
		b, err = c.at(ctx, last)
	}
	if c.brownOut(ctx, err); c.Current() != live {
		return true
	}
	if err != nil || c.lacking(b, nil) != "" {
		b.Wipe()
		c.mu.Lock()
		c.back.fail(now, err, longestWait)
		c.mu.Unlock()
		return false
	}
	c.mu.Lock()
	newest := c.candidate
	c.back = trouble{}
	c.mu.Unlock()
	c.install(&candidate{bundle: b}, nil)
	if newest == nil {
		newest = &candidate{bundle: providers.Bundle{Version: live.Version, Fields: live.Fields, Created: live.Created, Expires: live.Expires}}
	}
	c.mu.Lock()
	c.candidate = newest
	c.mu.Unlock()
	c.hold(newest, "it was refused: store another version, or run broker retry "+c.cfg.Client, clock.Reading{})
	c.note(audit.BundleRefused, live.Version, "fell_back", map[string]string{
		"alarm": fmt.Sprintf("version %s of the secret was refused; version %s, the last one that worked, serves", live.Version, last)})
	return true
}

// at reads one version from the secrets manager.
func (c *Credential) at(ctx context.Context, v providers.Version) (providers.Bundle, error) {
	spec, ok := c.cfg.Spec.At(v)
	if !ok {
		return providers.Bundle{}, &providers.Error{Kind: providers.NotFound, Ref: c.cfg.Spec.Ref, Message: fmt.Sprintf("%.64q is no version of this secret", string(v)),
			Hint: "broker status and the secrets manager list them; a version in the configuration cannot be replaced here"}
	}
	c.deps.Uses.Add(1)
	defer c.deps.Uses.Add(1)
	return providers.Load(ctx, c.deps.Provider, spec, "")
}

// Pin makes one version serve, on an administrator's word, until Unpin: it is
// read, proved and installed, and newer ones are not looked at. If that cannot
// be, what serves goes on serving, nothing is pinned, and why says it in words.
func (c *Credential) Pin(ctx context.Context, v providers.Version, accept bool) (why string, err error) {
	if err := c.checking.take(ctx); err != nil {
		return "", err
	}
	defer c.checking.give()
	id := c.id(v)
	if live := c.Current(); live != nil && live.id == id {
		return "", c.recorded(c.ledger.pin(id))
	}
	b, err := c.at(ctx, v)
	if err != nil {
		return "", err
	}
	if b.Version != v {
		b.Wipe()
		return fmt.Sprintf("the secrets manager gave version %s for it", b.Version), nil
	}
	if why := c.lacking(b, nil); why != "" {
		b.Wipe()
		return why, nil
	}
	if err := c.recorded(c.ledger.allow(id)); err != nil { // an administrator says so
		b.Wipe()
		return "", err
	}
	c.mu.Lock()
	newest := c.candidate
	c.mu.Unlock()
	cand := &candidate{bundle: b}
	switch {
	case c.cfg.Prove == ProveNone && !accept && !c.cfg.AcceptUnproved:
		why = "it cannot be proved: say --accept"
	case c.cfg.Prove == ProveNone || accept:
		c.install(cand, nil)
	default:
		if err := c.prove(ctx, cand); err != nil {
			return "", err
		}
		why = cand.why
	}
	if live := c.Current(); live == nil || live.id != id {
		c.mu.Lock()
		c.candidate = newest
		c.mu.Unlock()
		return why, nil
	}
	return "", c.recorded(c.ledger.pin(id))
}

// Unpin lets the newest version serve again, if it can be proved.
func (c *Credential) Unpin(ctx context.Context) error {
	if err := c.recorded(c.ledger.pin("")); err != nil {
		return err
	}
	return c.CheckNow(ctx)
}

// CheckNow is Check for somebody who does not wait for other hosts.
func (c *Credential) CheckNow(ctx context.Context) error {
	err := c.Check(ctx)
	c.mu.Lock()
	waits := c.candidate != nil && c.candidate.turn
	if waits {
		c.candidate.turn, c.candidate.ready = false, clock.Reading{}
	}
	c.mu.Unlock()
	if err != nil || !waits {
		return err
	}
	if err := c.Check(ctx); err != nil && !errors.Is(err, providers.ErrUnchanged) {
		return err
	}
	return nil
}
