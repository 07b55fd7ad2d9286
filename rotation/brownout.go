package rotation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// Rules of this file, which lets a process start while its secrets manager is
// down ("brown-out"):
//   - kept is the bundle that serves, once it has worked, sealed by Deps.Keeper;
//   - it serves only a process that has none, only while the manager does not
//     answer (a manager that says no is obeyed), and only until KeepFor after
//     the manager's last good answer;
//   - a manager that says that the secret is gone takes the copy with it.

const (
	defaultKeepFor = 24 * time.Hour
	keepFormat     = "1"
	futureSlack    = 5 * time.Minute // of clocks, between two starts
)

// The fields of a sealed copy; those of the bundle follow keptField.
const (
	keptFormat    = "format"
	keptPlace     = "place"
	keptVersion   = "version"
	keptCreated   = "created"
	keptExpires   = "expires"
	keptConfirmed = "confirmed" // the manager's last good answer
	keptField     = "field."
)

// kept is what is known of the sealed copy.
type kept struct {
	id      versionID // empty: none, as far as is known
	at      clock.Reading
	version providers.Version // of the keeper
	err     error
	told    bool
}

func (c *Credential) keptRef() providers.Ref { return providers.Ref{Path: c.cfg.Client} }

// unkept says whether live has to be sealed now: it is not, or so long ago that
// the copy would run out early.
func (c *Credential) unkept(live *Live) bool {
	if c.deps.Keeper == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kept.id != live.id || c.deps.Clock.Now().Sub(c.kept.at) >= c.cfg.KeepFor/24
}

// keepNow is keep for somebody who has no turn.
func (c *Credential) keepNow(ctx context.Context) {
	if c.checking.take(ctx) != nil {
		return
	}
	defer c.checking.give()
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	c.keep(ctx)
}

// keep seals the bundle that serves, if it has worked and the manager has just
// confirmed it. The caller has the checking turn.
func (c *Credential) keep(ctx context.Context) {
	live := c.Current()
	if live == nil || !c.unkept(live) || !c.good(live) {
		return
	}
	c.mu.Lock()
	confirmed, answers := c.checked, c.provider.err == nil && c.degraded.IsZero()
	c.mu.Unlock()
	if !answers {
		return
	}
	fields := map[string]secret.Secret{
		keptFormat:    public(keepFormat),
		keptPlace:     public(c.place),
		keptVersion:   public(string(live.Version)),
		keptCreated:   public(stamp(live.Created)),
		keptExpires:   public(stamp(live.Expires)),
		keptConfirmed: public(stamp(confirmed.Wall)),
	}
	meta := make([]secret.Secret, 0, len(fields))
	for _, v := range fields {
		meta = append(meta, v)
	}
	for name, v := range live.Fields {
		fields[keptField+name] = v
	}
	c.keptAs(live.id, c.seal(ctx, fields))
	for _, v := range meta {
		v.Wipe()
	}
}

// good says whether a bundle has worked, or nothing could tell.
func (c *Credential) good(live *Live) bool {
	switch {
	case c.refused(live.id) || live.id != c.id(live.Version):
		return false
	case c.cfg.Prove == ProveNone:
		return true
	}
	return c.ledger.hasWorked(live.id) || c.id(c.ledger.proved(c.place)) == live.id || c.lastProbe(live).taken()
}

// seal replaces the copy. Nobody else writes it, but a process of before may
// have.
func (c *Credential) seal(ctx context.Context, fields map[string]secret.Secret) error {
	w, ok := c.deps.Keeper.(providers.Writer)
	if !ok {
		return errors.New("the store for brown-out starts cannot be written")
	}
	c.mu.Lock()
	have := c.kept.version
	c.mu.Unlock()
	v, err := w.Put(ctx, c.keptRef(), fields, have)
	if providers.KindOf(err) == providers.Conflict {
		var b providers.Bundle
		if b, err = c.deps.Keeper.Fetch(ctx, c.keptRef(), ""); err == nil {
			b.Wipe()
			v, err = w.Put(ctx, c.keptRef(), fields, b.Version)
		}
	}
	if err == nil {
		c.mu.Lock()
		c.kept.version = v
		c.mu.Unlock()
	}
	return err
}

// keptAs notes how sealing went; a failure is recorded once.
func (c *Credential) keptAs(id versionID, err error) {
	c.mu.Lock()
	told := c.kept.told
	if err == nil {
		c.kept.id, c.kept.at = id, c.deps.Clock.Now()
	}
	c.kept.err, c.kept.told = err, err != nil
	c.mu.Unlock()
	if err != nil && !told {
		c.note(audit.BundleKept, "", "failed", map[string]string{"error": err.Error()})
	}
}

// withdraw takes the copy away when the manager says that the secret is gone.
func (c *Credential) withdraw(ctx context.Context, why error) {
	if c.deps.Keeper == nil {
		return
	}
	switch providers.KindOf(why) {
	case providers.NotFound, providers.Deleted, providers.Disabled, providers.Expired:
	default:
		return
	}
	b, err := c.deps.Keeper.Fetch(ctx, c.keptRef(), "")
	if providers.KindOf(err) == providers.NotFound {
		return
	}
	gone := err == nil && b.Fields[keptVersion].Empty()
	b.Wipe()
	if gone {
		return
	}
	format := public(keepFormat)
	defer format.Wipe()
	c.keptAs("", c.seal(ctx, map[string]secret.Secret{keptFormat: format}))
}

// brownOut installs the copy, because the manager does not answer.
func (c *Credential) brownOut(ctx context.Context, down error) {
	if c.deps.Keeper == nil || !providers.KindOf(down).Temporary() || providers.KindOf(down) == providers.NotYetValid {
		return
	}
	b, err := c.deps.Keeper.Fetch(ctx, c.keptRef(), "")
	if err != nil {
		if providers.KindOf(err) != providers.NotFound {
			c.keptAs("", fmt.Errorf("the sealed copy cannot be read: %w", err))
		}
		return
	}
	defer b.Wipe()
	bundle, confirmed, err := c.unkeep(b)
	if err != nil {
		c.keptAs("", fmt.Errorf("the sealed copy is not used: %w", err))
		return
	}
	until := confirmed.Add(c.cfg.KeepFor)
	c.mu.Lock()
	c.degraded = until
	c.kept = kept{id: c.id(bundle.Version), at: c.deps.Clock.Now(), version: b.Version}
	c.mu.Unlock()
	c.install(&candidate{bundle: bundle}, nil)
	c.note(audit.BundleKept, bundle.Version, "brown_out", map[string]string{"alarm": fmt.Sprintf(
		"the secrets manager does not answer: its sealed copy of %s serves, until %s at most", stamp(confirmed), stamp(until))})
}

// unkeep reads a copy. Its fields are the caller's.
func (c *Credential) unkeep(b providers.Bundle) (out providers.Bundle, confirmed time.Time, err error) {
	now := c.deps.Clock.Now().Wall
	confirmed = moment(text(b, keptConfirmed))
	version := text(b, keptVersion)
	switch {
	case text(b, keptFormat) != keepFormat:
		return out, confirmed, errors.New("another version of the broker wrote it")
	case version == "":
		return out, confirmed, errors.New("the secrets manager had withdrawn the secret")
	case text(b, keptPlace) != c.place:
		return out, confirmed, errors.New("it is of another configuration")
	case confirmed.After(now.Add(futureSlack)):
		return out, confirmed, fmt.Errorf("it is from %s: check the clock", stamp(confirmed))
	case !now.Before(confirmed.Add(c.cfg.KeepFor)):
		return out, confirmed, fmt.Errorf("it is too old, from %s", stamp(confirmed))
	case c.refused(c.id(providers.Version(version))):
		return out, confirmed, errors.New("the issuer has refused its version")
	}
	out = providers.Bundle{Version: providers.Version(version), Fields: map[string]secret.Secret{},
		Created: moment(text(b, keptCreated)), Expires: moment(text(b, keptExpires))}
	for name, v := range b.Fields {
		field, ok := strings.CutPrefix(name, keptField)
		if !ok {
			continue
		}
		if out.Fields[field], err = v.Clone(); err != nil {
			out.Wipe()
			return providers.Bundle{}, confirmed, err
		}
	}
	if lacks := c.lacking(out, nil); lacks != "" {
		out.Wipe()
		return providers.Bundle{}, confirmed, errors.New(lacks)
	}
	return out, confirmed, nil
}

func (c *Credential) degradedUntil() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.degraded
}

// public is a value that is no secret, among those that are.
func public(s string) secret.Secret { return secret.New([]byte(s)) }

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func moment(s string) time.Time {
	t, _ := time.Parse(time.RFC3339, s)
	return t
}
