package rotation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// Rules of this file:
//   - what is not in the secrets manager yet (an administrator's intake, a new
//     key) is proved by the same rules and within the same budget as a version;
//   - its refusal is a failure, and no refused version: it has no name that
//     could be remembered, and a person decides whether to try again;
//   - what was proved so is remembered for as long as it takes to store it, so
//     that the version that then comes is installed with this proof.

const (
	trialPause  = time.Minute      // after a refusal of the same; it doubles with each
	trialRest   = time.Hour        // is the longest pause
	notStored   = "(not stored)"   // in place of a version
	trialPrefix = "try/"           // which no version begins with
	trialLife   = 15 * time.Minute // of a proof that waits for its version
)

// proven is a bundle that was proved before it was stored.
type proven struct {
	fields map[string]secret.Secret
	proof  *oidc.Token // nil: the API alone judged
	until  clock.Reading
}

// Try proves a whole bundle that is not stored yet. name tells it apart from
// other trials in the state file, and holds nothing secret: after a
// refusal the next attempt with that name waits, a minute at first. how is mint, refresh or probe; empty
// means that nothing can prove it. A bundle that lacks a required field is
// proved if it has those that the issuer needs; the API is not asked then.
// fields stay the caller's.
// Errors are of type *Error, or ctx's; RetryAfter says when to try again.
func (c *Credential) Try(ctx context.Context, name string, fields map[string]secret.Secret) (how Prove, err error) {
	if c.cfg.Prove == ProveNone {
		return "", nil
	}
	b := providers.Bundle{Fields: fields}
	lacks := c.lacking(b, nil)
	if lacks != "" && (c.cfg.Prove == ProveProbe || c.cfg.Proving == nil || len(absent(c.cfg.Proving, b)) > 0) {
		return "", &Error{Kind: RequestRefused, Detail: lacks}
	}
	if err := c.ledger.minting.take(ctx); err != nil {
		return "", err
	}
	defer c.ledger.minting.give()
	own, err := cloneFields(fields)
	if err != nil {
		return "", err
	}
	live := &Live{Version: notStored, Fields: own, id: c.id(trialPrefix + providers.Version(name)), trial: true}
	proof, err := c.try(ctx, live, lacks == "")
	if err != nil {
		wipe(own)
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgetProven()
	c.proven = &proven{fields: own, proof: proof, until: c.deps.Clock.Now().Add(trialLife)}
	return c.cfg.Prove, nil
}

func (c *Credential) try(ctx context.Context, live *Live, complete bool) (proof *oidc.Token, err error) {
	now := c.deps.Clock.Now()
	if last, n := c.ledger.lastFailure(live.id); n > 0 {
		pause := min(trialPause<<min(n-1, 6), trialRest)
		if wait := pause - now.Wall.Sub(last); wait > 0 && wait <= pause {
			return nil, &Error{Kind: Rejected, Code: "pace", RetryAfter: wait,
				Detail: fmt.Sprintf("the issuer refused what was tried at %s; these were not tried: the next attempt is made %s after that, or after broker retry %s", last.UTC().Format(time.RFC3339), pause, c.cfg.Client)}
		}
	}
	if c.deps.Issuer != nil {
		t, err := c.attempt(ctx, live, c.cfg.Default)
		if err != nil {
			return nil, untold(err)
		}
		proof = &t
	}
	if c.deps.Prober != nil && complete {
		if err := c.proveByProbe(ctx, live, proof); err != nil {
			return nil, untold(err)
		}
	}
	return proof, nil
}

// untold words a refusal for something that has no version yet.
func untold(err error) error {
	var e *Error
	if !errors.As(err, &e) || e.Kind != Rejected || e.RetryAfter > 0 {
		return err
	}
	e.Detail = "the issuer refuses these credentials (" + e.Code + "): see that they are whole, and of this environment"
	if e.Code == "probe" {
		e.Detail = "the API refuses these credentials: " + e.Err.Error()
	}
	return e
}

// provenAs gives the proof of a bundle that was proved before it was stored.
func (c *Credential) provenAs(b providers.Bundle) (proof *oidc.Token, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proven == nil || c.proven.until.Until(c.deps.Clock.Now()) <= 0 || !sameFields(c.proven.fields, b.Fields) {
		return nil, false
	}
	return c.proven.proof, true
}

// forgetOldProof wipes what nobody has stored in time.
func (c *Credential) forgetOldProof() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proven != nil && c.proven.until.Until(c.deps.Clock.Now()) <= 0 {
		c.forgetProven()
	}
}

// forgetProven is for somebody who holds c.mu.
func (c *Credential) forgetProven() {
	if c.proven != nil {
		wipe(c.proven.fields)
		c.proven = nil
	}
}

func sameFields(a, b map[string]secret.Secret) bool {
	if len(a) != len(b) {
		return false
	}
	for name, v := range a {
		if w, ok := b[name]; !ok || !v.Equal(w) {
			return false
		}
	}
	return true
}

func cloneFields(m map[string]secret.Secret) (map[string]secret.Secret, error) {
	out := make(map[string]secret.Secret, len(m))
	for name, v := range m {
		own, err := v.Clone()
		if err != nil {
			wipe(out)
			return nil, err
		}
		out[name] = own
	}
	return out, nil
}

func wipe(m map[string]secret.Secret) {
	for _, v := range m {
		v.Wipe()
	}
}

// alarm is the detail of a refusal that somebody has to see. Whoever makes a
// trial sees it anyhow.
func (l *Live) alarm(text string) map[string]string {
	if l.trial {
		return map[string]string{"trial": "what is not stored yet was tried"}
	}
	return map[string]string{"alarm": text}
}
