package rotation

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// A rule is one line of the table in the package's documentation: the life of a
// version.
type rule struct {
	fits bool
	then func() error
}

// advance takes the candidate as far as it goes now.
func (c *Credential) advance(ctx context.Context) error {
	c.mu.Lock()
	cand := c.candidate
	c.mu.Unlock()
	if cand == nil {
		return nil
	}
	for _, r := range c.rules(ctx, cand) {
		if r.fits {
			return r.then()
		}
	}
	return nil
}

func (c *Credential) rules(ctx context.Context, cand *candidate) []rule {
	live, now, name := c.current.Load(), c.deps.Clock.Now(), c.cfg.Client
	lacking := c.lacking(cand.bundle, live)
	proof, proven := c.provenAs(cand.bundle)
	held := func(why string, until clock.Reading) func() error {
		return func() error { c.hold(cand, why, until); return nil }
	}
	installed := func() error { c.install(cand, nil); return nil }
	return []rule{
		{lacking != "", func() error {
			if c.hold(cand, lacking, clock.Reading{}) {
				c.note(audit.BundleRefused, cand.bundle.Version, "incomplete", map[string]string{"alarm": lacking})
			}
			return nil
		}},
		{proven, func() error { c.install(cand, proof); return nil }},
		{live == nil, installed}, // even a refused one: whoever asks is told so
		{c.refused(c.id(cand.bundle.Version)), held("it was refused: store another version, or run broker retry "+name, clock.Reading{})},
		{now.Sub(cand.ready) < 0 && cand.turn, held("other hosts prove it first", cand.ready)},
		{now.Sub(cand.ready) < 0, held("its parts have to settle", cand.ready)},
		{c.cfg.Prove == ProveNone && !c.cfg.AcceptUnproved, held("it cannot be proved: broker rotate --accept "+name+" installs it", clock.Reading{})},
		{c.cfg.Prove == ProveNone, installed},
		{true, func() error { return c.prove(ctx, cand) }},
	}
}

// prove gets a token with the candidate, and asks the API if the profile says
// so; success installs both.
func (c *Credential) prove(ctx context.Context, cand *candidate) error {
	if err := c.ledger.minting.take(ctx); err != nil {
		return err
	}
	defer c.ledger.minting.give()
	b := cand.bundle
	live := &Live{Version: b.Version, Fields: b.Fields, id: c.id(b.Version)}
	var proof *oidc.Token
	var err error
	if c.deps.Issuer != nil {
		var token oidc.Token
		token, err = c.attempt(ctx, live, c.cfg.Default)
		proof = &token
	}
	if err == nil && c.deps.Prober != nil { // which judges an API key too
		err = c.proveByProbe(ctx, live, proof)
	}
	if err == nil {
		c.install(cand, proof)
		return nil
	}
	var next clock.Reading
	var e *Error
	if errors.As(err, &e) && e.Kind == LoginRequired {
		c.install(cand, nil) // the old bundle gets no token either; the login proves this one
		return nil
	}
	if e != nil && e.RetryAfter > 0 {
		next = c.deps.Clock.Now().Add(e.RetryAfter)
	}
	c.hold(cand, "not proved: "+err.Error(), next)
	return nil
}

// hold says why the candidate is not installed, and when to try again. It says
// whether the reason is a new one.
func (c *Credential) hold(cand *candidate, why string, next clock.Reading) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := cand.why != why
	cand.why, cand.next = why, next
	signal(c.replan) // somebody else than Run may be asking
	return changed
}

// Pending is the beginning of the names of fields that wait to become others:
// a version may lack them.
const Pending = "pending_"

// lacking says in words what a bundle does not have: required fields, or
// fields that its predecessor had ("kv put" replaces all of them).
func (c *Credential) lacking(b providers.Bundle, live *Live) string {
	missing := absent(c.cfg.Required, b)
	if live != nil {
		for name := range live.Fields {
			if strings.HasPrefix(name, Pending) { // it has become the key, or was given up
				continue
			}
			if _, ok := b.Fields[name]; !ok && !slices.Contains(missing, name) {
				missing = append(missing, name)
			}
		}
	}
	if len(missing) == 0 {
		return ""
	}
	slices.Sort(missing)
	if len(missing) == 1 && missing[0] == "private_key" {
		return "it lacks private_key: broker keys new " + c.cfg.Client + " makes one"
	}
	return "it lacks " + strings.Join(missing, ", ") + "; store a version with all fields"
}

// absent are the names that b has no value for.
func absent(names []string, b providers.Bundle) (missing []string) {
	for _, name := range names {
		if b.Fields[name].Empty() {
			missing = append(missing, name)
		}
	}
	return missing
}

func (c *Credential) install(cand *candidate, proof *oidc.Token) { c.replace(cand, proof, brown{}) }

// replace makes cand current, which may be a sealed copy.
func (c *Credential) replace(cand *candidate, proof *oidc.Token, copied brown) {
	b := cand.bundle
	live := &Live{Version: b.Version, Fields: b.Fields, Created: b.Created, Expires: b.Expires,
		Installed: c.deps.Clock.Now(), Proof: proof, id: c.id(b.Version)}
	live.Created = c.since(live)
	how, minted := "unproved", proof != nil && !c.deps.Issuer.Local()
	c.mu.Lock()
	proven := c.proven != nil && sameFields(c.proven.fields, live.Fields)
	if minted || proven || c.probes[live.id].taken() {
		how = "proved"
	}
	c.candidate = nil
	if proven {
		c.forgetProven()
	}
	maps.DeleteFunc(c.probes, func(id versionID, _ probed) bool { return id != live.id })
	// What was current is wiped when the last token minted with it is gone:
	// its holders keep it alive, the collector ends it.
	old := c.current.Swap(live)
	c.brown = copied
	c.mu.Unlock()
	c.replaced(old, live)
	if minted {
		_ = c.recorded(c.ledger.serves(live.id))
	}
	c.note(audit.BundleInstalled, b.Version, how, nil)
}

// Accept looks for a new version and installs it without proof, on an
// administrator's word. If there is one that cannot be installed even so, why
// says it in words.
func (c *Credential) Accept(ctx context.Context) (installed bool, why string, err error) {
	if err := c.Check(ctx); err != nil {
		return false, "", err
	}
	if err := c.checking.take(ctx); err != nil {
		return false, "", err
	}
	defer c.checking.give()
	c.mu.Lock()
	cand := c.candidate
	c.mu.Unlock()
	if cand == nil {
		return false, "", nil
	}
	if why = c.lacking(cand.bundle, c.current.Load()); why != "" {
		return false, why, nil
	}
	if c.refused(c.id(cand.bundle.Version)) || c.deps.Clock.Now().Sub(cand.ready) < 0 {
		return false, cand.why, nil
	}
	c.install(cand, nil)
	return true, "", nil
}
