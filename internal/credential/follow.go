package credential

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
)

// A follower keeps one credential up to date for as long as its entry says so.
type follower struct {
	*keeper
	one *kept

	w       *broker.Watch
	wait    time.Duration // before a restart is tried again
	covered bool          // its entry has said so
	since   time.Time     // when it did not any more; zero: it does
	told    bool          // of the quarantine
}

// follow returns when the unit is let go.
func (k *keeper) follow(ctx context.Context, one *kept) {
	old := k.now(one).old
	if old && !pause(ctx, settle) {
		return
	}
	f := &follower{keeper: k, one: one, w: k.c.Broker.WatchUnit(one.UnitCredential), wait: again, covered: old}
	for stays := true; stays && ctx.Err() == nil; {
		s, err := f.w.Look(ctx)
		var e *broker.Error
		switch {
		case err == nil:
			stays = f.look(ctx, s)
		case !errors.As(err, &e):
		case e.Code == client.NotAllowed:
			stays = f.uncovered(ctx)
		case e.Code == client.Quarantined && !f.told:
			f.told = true
			k.mu.Lock()
			one.old = false // what it holds may be revoked
			k.mu.Unlock()
			k.alarm(one, "quarantined", fmt.Sprintf("%s holds %s of the quarantined client %s, which cannot be taken back%s: systemctl stop %s ends its use",
				one.Unit, one.What, one.Client, k.ends(one), one.Unit))
		}
	}
}

// look has the unit read s, if it is something else.
func (f *follower) look(ctx context.Context, s broker.Sight) (stays bool) {
	one := f.one
	if !f.since.IsZero() {
		f.clear(one)
	}
	f.covered, f.since, f.told = true, time.Time{}, false
	stays, err := f.renew(ctx, one, s)
	switch {
	case ctx.Err() != nil || !stays:
		return false
	case err != nil:
		if f.wait == again {
			f.alarm(one, "failed", fmt.Sprintf("%s cannot be restarted, and %s of %s that it holds%s: %v", one.Unit, one.What, one.Client, f.ends(one), err))
		}
		if !pause(ctx, f.wait) {
			return false
		}
		f.wait = min(2*f.wait, longest)
	case f.now(one).Seen != s.Name: // it waits, or has read the next one
		f.wait = again
		if !pause(ctx, lookAgain) {
			return false
		}
	default:
		f.wait = again
		return true
	}
	f.w = f.c.Broker.WatchUnit(one.UnitCredential) // which looks at once, at the entry too
	return true
}

// uncovered deals with a unit whose entry is gone, perhaps by mistake: it is
// kept for a day, and until what it holds has ended.
func (f *follower) uncovered(ctx context.Context) (stays bool) {
	one, now := f.one, f.now(f.one)
	ended := !now.Expires.After(f.c.Clock.Now().Wall) // or does not end
	switch {
	case !f.covered: // a key for a unit that needs no restart
		return !f.forget(one, now.reads)
	case f.since.IsZero():
		f.since = time.Now()
		if ended {
			return true
		}
		if state, err := f.bus.state(ctx, one.Unit); err == nil && !runs(state) {
			return !f.forget(one, now.reads)
		}
		f.alarm(one, string(client.NotAllowed), fmt.Sprintf("%s holds %s of %s%s, and no allow entry has it restarted for the next one: give its entry restart: true, or systemctl stop %s",
			one.Unit, one.What, one.Client, f.ends(one), one.Unit))
	case ended && time.Since(f.since) > day:
		f.clear(one)
		return !f.forget(one, now.reads)
	}
	return true
}

// runs says whether a unit in that state goes on with what it read.
func runs(state string) bool {
	return state != "inactive" && state != "failed" && state != "deactivating"
}

func (k *keeper) ends(one *kept) string {
	if now := k.now(one); !now.Expires.IsZero() {
		return " (it ends at " + now.Expires.UTC().Format(time.RFC3339) + ")"
	}
	return ""
}

// renew has the unit read s, if it has not. It does not stay if it is let go.
func (k *keeper) renew(ctx context.Context, one *kept, s broker.Sight) (stays bool, err error) {
	now := k.now(one)
	if now.Seen == s.Name {
		k.mu.Lock()
		one.old = false // the token came over the restart: what replaces it says something of it
		k.mu.Unlock()
		return true, nil
	}
	if wait := k.early(one, s); wait > 0 {
		if !now.old {
			k.hold(one, wait)
		}
		return true, nil
	}
	if !pause(ctx, k.jitter(now.end)) {
		return true, nil
	}
	return k.restart(ctx, one, s)
}

// early is how long the unit keeps what it has, though there is s: of the same
// version, and before its time.
func (k *keeper) early(one *kept, s broker.Sight) time.Duration {
	now := k.c.Clock.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	if one.Version != s.Version {
		return 0
	}
	if one.old { // this daemon's token is another one, which says nothing of that one
		return one.due.Until(now)
	}
	u := k.unit(one)
	return min(one.due.Until(now), u.patience-time.Since(u.early))
}

// hold says, once, that the unit keeps what it has.
func (k *keeper) hold(one *kept, wait time.Duration) {
	k.mu.Lock()
	u := k.unit(one)
	told := u.told
	u.told = true
	k.mu.Unlock()
	if !told {
		k.alarm(one, "held", fmt.Sprintf("%s holds %s of %s that was replaced before its time, rejected or revoked, as the one before%s: it is restarted in %s; token.rejected in broker audit tail says whose word that is",
			one.Unit, one.What, one.Client, k.ends(one), wait.Round(time.Minute)))
	}
}

// spend notes that the unit, which had before, is restarted for s: if early,
// the next such restart has to wait.
func (k *keeper) spend(u *unit, before kept, s broker.Sight) {
	if before.Version != s.Version || before.due.Until(k.c.Clock.Now()) <= 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(u.early) > day {
		u.patience = 0
	}
	u.early, u.patience, u.told = time.Now(), min(max(2*u.patience, firstHold), longestHold), false
}

// unit is what one shares with the unit's other credentials; the caller holds
// k.mu.
func (k *keeper) unit(one *kept) *unit {
	u := k.units[one.Unit]
	if u == nil {
		u = &unit{turn: make(chan struct{}, 1)}
		k.units[one.Unit] = u
	}
	return u
}

// jitter keeps units apart that read the same, and yet before the end.
func (k *keeper) jitter(end clock.Reading) time.Duration {
	most := spread
	if !end.IsZero() {
		most = max(0, min(most, end.Until(k.c.Clock.Now())/4))
	}
	return rand.N(most + 1) // #nosec G404 -- spreads load
}

// restart restarts the unit, once for all of its credentials, and waits until
// it has read them. It is false if the unit does not run, or did not come back.
func (k *keeper) restart(ctx context.Context, one *kept, s broker.Sight) (bool, error) {
	k.mu.Lock()
	u := k.unit(one)
	k.mu.Unlock()
	select {
	case u.turn <- struct{}{}:
		defer func() { <-u.turn }()
	case <-ctx.Done():
		return true, ctx.Err()
	}
	if !u.last.IsZero() && !pause(ctx, shortest-time.Since(u.last)) {
		return true, ctx.Err()
	}
	before := k.now(one)
	if before.Seen == s.Name || k.early(one, s) > 0 { // another of its credentials was first
		return true, nil
	}
	state, err := k.bus.state(ctx, one.Unit)
	switch {
	case err != nil:
		return true, err
	case !runs(state):
		return !k.forget(one, before.reads), nil // whoever starts it again reads what there is then
	}
	u.last = time.Now()
	if err := k.bus.restart(ctx, one.Unit); err != nil {
		return true, err
	}
	k.spend(u, before, s)
	if k.came(ctx, one, before.reads) {
		k.note(audit.Event{Type: audit.UnitRestarted, Client: one.Client, Detail: map[string]string{"unit": one.Unit, "credential": one.Name}})
		k.c.Log.Info("a unit was restarted and has read its new credential", "unit", one.Unit, "credential", one.Name)
		return true, nil
	}
	if ctx.Err() != nil {
		return true, ctx.Err()
	}
	if state, err = k.bus.state(ctx, one.Unit); err != nil {
		state = "unknown"
	}
	if !k.forget(one, before.reads) {
		return true, nil
	}
	k.alarm(one, "lost", fmt.Sprintf("%s was restarted for a new %s and has not read it (it is %s): it is left alone; journalctl -u %s says why", one.Unit, one.Name, state, one.Unit))
	return false, nil
}

// came waits until the credential was read once more.
func (k *keeper) came(ctx context.Context, one *kept, before int) bool {
	timer := time.NewTimer(comeBack)
	defer timer.Stop()
	for {
		now := k.now(one)
		if now.reads > before {
			return true
		}
		select {
		case <-now.change:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}
