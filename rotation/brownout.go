package rotation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
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
//   - at every moment a process that lives by the copy serves what one that
//     starts at that moment would: only while the manager does not answer (one
//     that says no is obeyed), and only until KeepFor after its last good answer;
//   - a manager that says that the secret is gone takes the copy with it;
//   - nobody who wants a token waits for the copy to be written.

const (
	defaultKeepFor = 24 * time.Hour
	resealAfter    = time.Hour // or sooner, if KeepFor is short
	keepTimeout    = 5 * time.Second
	sealTimeout    = time.Minute     // nobody waits, and at the start of many clients many are sealed
	startPatience  = 5 * time.Second // with a secrets manager that hangs, before the copy is looked at
	futureSlack    = 5 * time.Minute // of clocks, between two starts
	keepFormat     = "1"
)

// A Keeper holds sealed copies of bundles on this host.
type Keeper interface {
	// Fetch reads one, as that of a providers.Provider.
	Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error)
	// Replace writes one in place of whatever is there: after a crash the old
	// one or the new one is, whole.
	Replace(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret) error
	// Remove takes one away, for good. If there is none, it says NotFound.
	Remove(ctx context.Context, ref providers.Ref) error
}

// KeptName is what the copy of a client is called by the Keeper.
func KeptName(client string) string { return client + ".copy" }

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

// kept is what this process knows of the sealed copy.
type kept struct {
	id        versionID     // that it has sealed; empty: none
	at        clock.Reading // when
	confirmed time.Time     // the manager's last good answer that the copy has
	removed   bool          // with the secret
	err       error         // why it could not be written, removed or used
}

// brown is a brown-out: the sealed copy serves.
type brown struct {
	confirmed time.Time // the manager's last good answer; zero: there is no brown-out
	until     clock.Reading
	gone      bool // the manager has said that the secret is
}

func (b brown) on() bool { return !b.confirmed.IsZero() }

// brownSince is a brown-out by a copy that was confirmed then.
func (c *Credential) brownSince(confirmed time.Time) brown {
	now := c.deps.Clock.Now()
	return brown{confirmed: confirmed, until: now.Add(confirmed.Add(c.cfg.KeepFor).Sub(now.Wall))}
}

// Adopt starts c with the bundle of another Credential of the same client, so
// that a changed configuration does not begin with a gap. A sealed copy stays
// one; for how long it may serve follows from c's configuration.
func (c *Credential) Adopt(old *Credential) {
	old.mu.Lock()
	live, b := old.Current(), old.brown
	old.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if live == nil || !c.current.CompareAndSwap(nil, live) {
		return
	}
	if b.on() && c.deps.Keeper != nil {
		b.until = c.brownSince(b.confirmed).until
	}
	c.brown = b
}

// Degraded is until when, at most, a sealed copy serves in place of a secrets
// manager that is down; zero: none does.
func (c *Credential) Degraded() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.brown.on() {
		return time.Time{}
	}
	return c.brown.until.Wall
}

// withheld says why the bundle may not serve any more; nil: it may.
func (c *Credential) withheld(now clock.Reading) *Error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, down := c.brown, c.provider.err
	no := b.gone || down != nil && !outage(down)
	if !b.on() || !no && b.until.Until(now) > 0 {
		return nil
	}
	e := &Error{Kind: NoBundle, Code: string(providers.KindOf(down)), Err: down, RetryAfter: max(time.Second, c.provider.until.Until(now))}
	if no {
		e.Detail = "the secrets manager, which was down, gives no credentials, and so their sealed copy serves no longer"
	} else {
		e.Detail = "the secrets manager is down, and its sealed copy could serve until " + stamp(b.until.Wall) + " only"
	}
	if down != nil {
		e.Detail += ": " + down.Error()
	}
	return e
}

// outage says whether an error is no word of the secrets manager about the
// secret.
func outage(err error) bool {
	kind := providers.KindOf(err)
	return kind.Temporary() && kind != providers.NotYetValid
}

// patience bounds the first read of a process that may have a copy.
func (c *Credential) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	c.mu.Lock()
	first := c.deps.Keeper != nil && c.Current() == nil && c.provider.fails == 0 && c.checked.IsZero()
	c.mu.Unlock()
	if !first {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, startPatience)
}

// keeper calls the Keeper, in turn.
func (c *Credential) keeper(ctx context.Context, timeout time.Duration, call func(ctx context.Context, copies Keeper, ref providers.Ref)) {
	if c.deps.Keeper == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if c.ledger.keeping.take(ctx) != nil {
		return // another call hangs, and says so
	}
	defer c.ledger.keeping.give()
	if today := c.ledger.keeper.Load(); today != nil && today != c {
		return // a reload has put another in its place
	}
	c.deps.Uses.Add(1)
	defer c.deps.Uses.Add(1)
	call(ctx, c.deps.Keeper, providers.Ref{Path: KeptName(c.cfg.Client)})
}

// unkept says whether live has to be sealed now: it is not, or so long ago that
// the copy would run out early.
func (c *Credential) unkept(live *Live) bool {
	if c.deps.Keeper == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kept.id != live.id || c.deps.Clock.Now().Sub(c.kept.at) >= min(resealAfter, c.cfg.KeepFor/24)
}

// keep seals the bundle that serves, if it has worked and the manager still
// answers.
func (c *Credential) keep(ctx context.Context) {
	live := c.Current()
	if live == nil || !c.unkept(live) || !c.good(live) {
		return
	}
	c.keeper(ctx, sealTimeout, func(ctx context.Context, copies Keeper, ref providers.Ref) {
		now := c.deps.Clock.Now()
		c.mu.Lock()
		checked, answers := c.checked, c.provider.err == nil && !c.checked.IsZero()
		c.mu.Unlock()
		if !answers {
			return
		}
		err := c.seal(ctx, copies, ref, live, checked.Wall)
		if errors.Is(ctx.Err(), context.Canceled) { // the process ends
			return
		}
		c.mu.Lock()
		told := c.kept.err != nil
		if err == nil {
			c.kept = kept{id: live.id, at: now, confirmed: checked.Wall}
		} else {
			c.kept.err = err
		}
		c.mu.Unlock()
		c.noteKeeping(told, err)
	})
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

func (c *Credential) seal(ctx context.Context, copies Keeper, ref providers.Ref, live *Live, confirmed time.Time) error {
	fields := map[string]secret.Secret{
		keptFormat:    public(keepFormat),
		keptPlace:     public(c.place),
		keptVersion:   public(string(live.Version)),
		keptCreated:   public(stamp(live.Created)),
		keptExpires:   public(stamp(live.Expires)),
		keptConfirmed: public(stamp(confirmed)),
	}
	meta := slices.Collect(maps.Values(fields))
	for name, v := range live.Fields {
		fields[keptField+name] = v
	}
	err := copies.Replace(ctx, ref, fields)
	for _, v := range meta {
		v.Wipe()
	}
	return err
}

// noteKeeping records a failure to keep a copy, once.
func (c *Credential) noteKeeping(told bool, err error) {
	if err != nil && !told {
		c.note(audit.BundleKept, "", "failed", map[string]string{"error": err.Error()})
	}
}

// withdraw takes the copy away when the manager says that the secret is gone. It
// has a time of its own: that of the question may be over.
func (c *Credential) withdraw(ctx context.Context, why error) {
	switch providers.KindOf(why) {
	case providers.NotFound, providers.Deleted, providers.Disabled, providers.Expired:
	default:
		return
	}
	c.mu.Lock()
	c.brown.gone = c.brown.on()
	removed := c.kept.removed
	c.mu.Unlock()
	if removed {
		return
	}
	c.keeper(context.WithoutCancel(ctx), keepTimeout, func(ctx context.Context, copies Keeper, ref providers.Ref) {
		err := copies.Remove(ctx, ref)
		none := providers.KindOf(err) == providers.NotFound
		c.mu.Lock()
		told := c.kept.err != nil
		if err == nil || none {
			c.kept = kept{removed: true}
		} else {
			c.kept.err = fmt.Errorf("the sealed copy cannot be removed: %w", err)
			err = c.kept.err
		}
		c.mu.Unlock()
		switch {
		case err == nil:
			c.note(audit.BundleKept, "", "withdrawn", nil)
		case !none:
			c.noteKeeping(told, err)
		}
	})
}

// brownOut installs the copy, because the manager does not answer. It has a time
// of its own, as withdraw.
func (c *Credential) brownOut(ctx context.Context, down error) {
	if !outage(down) || errors.Is(ctx.Err(), context.Canceled) { // the process ends
		return
	}
	c.keeper(context.WithoutCancel(ctx), keepTimeout, func(ctx context.Context, copies Keeper, ref providers.Ref) {
		b, err := copies.Fetch(ctx, ref, "")
		if providers.KindOf(err) == providers.NotFound {
			return
		}
		defer b.Wipe()
		var bundle providers.Bundle
		var confirmed time.Time
		if err == nil {
			bundle, confirmed, err = c.unkeep(b)
		}
		c.mu.Lock()
		told := c.kept.err != nil
		if err == nil {
			c.kept = kept{confirmed: confirmed}
		} else {
			err = fmt.Errorf("the sealed copy is not used: %w", err)
			c.kept.err = err
		}
		c.mu.Unlock()
		if err != nil {
			c.noteKeeping(told, err)
			return
		}
		since := c.brownSince(confirmed)
		c.replace(&candidate{bundle: bundle}, nil, since)
		c.note(audit.BundleKept, bundle.Version, "brown_out", map[string]string{"alarm": fmt.Sprintf(
			"the secrets manager does not answer: its sealed copy of %s serves, until %s at most", stamp(confirmed), stamp(since.until.Wall))})
	})
}

// unkeep reads a copy. Its fields are the caller's.
func (c *Credential) unkeep(b providers.Bundle) (out providers.Bundle, confirmed time.Time, err error) {
	now := c.deps.Clock.Now().Wall
	confirmed = moment(text(b, keptConfirmed))
	version, pinned := providers.Version(text(b, keptVersion)), c.ledger.pinned(c.place)
	switch {
	case text(b, keptFormat) != keepFormat:
		return out, confirmed, errors.New("another version of the broker wrote it")
	case text(b, keptPlace) != c.place:
		return out, confirmed, errors.New("it is of another configuration")
	case confirmed.After(now.Add(futureSlack)):
		return out, confirmed, fmt.Errorf("it is from %s: check the clock", stamp(confirmed))
	case !now.Before(confirmed.Add(c.cfg.KeepFor)):
		return out, confirmed, fmt.Errorf("it is too old, from %s", stamp(confirmed))
	case c.refused(c.id(version)):
		return out, confirmed, fmt.Errorf("the issuer has refused its version, %s", version)
	case pinned != "" && pinned != version:
		return out, confirmed, fmt.Errorf("it is version %s, and version %s is pinned", version, pinned)
	}
	out = providers.Bundle{Version: version, Fields: map[string]secret.Secret{},
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
