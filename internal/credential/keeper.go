package credential

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/durable"
)

// Rules of this file:
//   - a unit is restarted when there is another value than the one it read,
//     only if it runs, and at most once a minute;
//   - whoever uses a client can have its tokens replaced before their time: that
//     restarts a unit now and then, ever less often, and not each time;
//   - that it read the new value is known, since it asks for it;
//   - a unit that does not come back is left alone, with an alarm. When it
//     starts again, it is looked after again;
//   - a quarantine restarts nothing: the unit could not start. What it has
//     read cannot be taken back, which an alarm says.

// A keeper looks after the units that have read something that may end.
type keeper struct {
	c   Config
	bus manager

	mu      sync.Mutex
	known   map[string]*kept // by unit and name of the credential
	units   map[string]*unit
	fresh   chan *kept // to be followed
	wrong   map[string]string
	written error // of the state file, told once
}

// kept is one credential that a unit has read.
type kept struct {
	peer
	Seen    string    `json:"seen"`             // what it was: a fingerprint and a version
	Version string    `json:"version"`          // the version alone
	Expires time.Time `json:"expires,omitzero"` // when it ends
	Due     time.Time `json:"due,omitzero"`     // when it is replaced if nothing happens
	Read    time.Time `json:"read"`

	end    clock.Reading // Expires, on both clocks
	due    clock.Reading // Due, likewise
	old    bool          // read before the start of the daemon, and good for all that is known
	reads  int
	change chan struct{} // closed, and made anew, when it is read
}

// unit is what the credentials of one unit share.
type unit struct {
	turn chan struct{} // holds the one who restarts it
	last time.Time     // of the last restart

	early    time.Time // the last restart for a token that was replaced before its time
	patience time.Duration
	told     bool // that the next one waits for it
}

const (
	shortest = time.Minute // between restarts of a unit
	spread   = 20 * time.Second
	// settle is for reads that waited while the daemon was down.
	settle = 30 * time.Second
	// comeBack is how long a unit may take to read the new value: to stop
	// (TimeoutStopSec=) and to start.
	comeBack = 3 * time.Minute
	// again is when a restart is tried again that systemd did not take up;
	// it doubles up to longest.
	again, longest = time.Minute, 15 * time.Minute
	// firstHold is between restarts for tokens that were replaced before their
	// time; it doubles up to longestHold, and begins anew after a day without.
	firstHold, longestHold, day = 10 * time.Minute, 6 * time.Hour, 24 * time.Hour
	// lookAgain is for what is there and not read yet.
	lookAgain = 20 * time.Second
	manyKept  = 1024
)

func newKeeper(c Config) *keeper {
	k := &keeper{c: c, bus: manager{address: c.Bus}, known: map[string]*kept{}, units: map[string]*unit{}, fresh: make(chan *kept, manyKept), wrong: map[string]string{}}
	b, err := os.ReadFile(c.State)
	if err != nil {
		return k
	}
	var list []*kept
	if err := json.Unmarshal(b, &list); err != nil {
		c.Log.Warn("which units read credentials cannot be told: restart those with restart: true", "file", c.State, "error", err)
	}
	for _, one := range list {
		if one != nil && len(k.known) < manyKept {
			now := c.Clock.Now()
			if !one.Expires.IsZero() {
				one.end, one.due = now.Add(one.Expires.Sub(now.Wall)), now.Add(one.Due.Sub(now.Wall))
			}
			one.old, one.change = true, make(chan struct{})
			k.known[one.key()] = one
			k.fresh <- one
		}
	}
	return k
}

// run follows what was read until ctx ends.
func (k *keeper) run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case one := <-k.fresh:
			all.Go(func() { k.follow(ctx, one) })
		}
	}
}

// read notes that systemd has read a credential for a unit.
func (k *keeper) read(p peer, s broker.Sight) {
	k.mu.Lock()
	defer k.mu.Unlock()
	one := k.known[p.key()]
	if one == nil {
		if len(k.known) >= manyKept {
			k.c.Log.Error("too many units read credentials: this one is not restarted", "unit", p.Unit)
			return
		}
		one = &kept{peer: p, change: make(chan struct{})}
		k.known[p.key()] = one
		k.fresh <- one // there is room for all that are known
	}
	one.Seen, one.Version, one.Read = s.Name, s.Version, k.c.Clock.Now().Wall
	one.Expires, one.end, one.Due, one.due = s.Expires.Wall, s.Expires, s.Renew.Wall, s.Renew
	one.old = false
	one.reads++
	close(one.change)
	one.change = make(chan struct{})
	delete(k.wrong, p.key())
	k.save()
}

// save writes the state; the caller holds k.mu.
func (k *keeper) save() {
	list := make([]*kept, 0, len(k.known))
	for _, one := range k.known {
		list = append(list, one)
	}
	b, err := json.Marshal(list)
	if err == nil {
		err = durable.Replace(k.c.State, b)
	}
	if err != nil && k.written == nil {
		k.c.Log.Warn("which units read credentials cannot be kept for the daemon's next start", "error", err)
	}
	k.written = err
}

// forget lets go of a credential.
func (k *keeper) forget(one *kept) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.known, one.key())
	k.save()
}

// now is what is known of one.
func (k *keeper) now(one *kept) kept {
	k.mu.Lock()
	defer k.mu.Unlock()
	return *one
}

// follow keeps one credential up to date for as long as its entry says so.
func (k *keeper) follow(ctx context.Context, one *kept) {
	if k.now(one).old && !pause(ctx, settle) {
		return
	}
	w, wait, said := k.c.Broker.WatchUnit(one.UnitCredential), again, false
	for {
		s, err := w.Look(ctx)
		if ctx.Err() != nil {
			return
		}
		var e *broker.Error
		switch {
		case err == nil:
			stays, err := k.renew(ctx, one, s)
			if ctx.Err() != nil || !stays {
				return
			}
			if said = false; err == nil {
				wait = again
				if k.now(one).Seen != s.Name { // it may wait, or have read the next one
					if !pause(ctx, lookAgain) {
						return
					}
					w = k.c.Broker.WatchUnit(one.UnitCredential)
				}
				continue
			}
			if wait == again {
				k.alarm(one, "failed", fmt.Sprintf("%s cannot be restarted, and %s of %s that it holds%s: %v", one.Unit, one.What, one.Client, k.ends(one), err))
			}
			if !pause(ctx, wait) {
				return
			}
			wait, w = min(2*wait, longest), k.c.Broker.WatchUnit(one.UnitCredential) // which looks at the entry too
		case !errors.As(err, &e):
		case e.Code == client.NotAllowed:
			k.forget(one)
			return
		case e.Code == client.Quarantined && !said:
			said = true
			k.mu.Lock()
			one.old = false // what it holds may be revoked
			k.mu.Unlock()
			k.alarm(one, "quarantined", fmt.Sprintf("%s holds %s of the quarantined client %s, which cannot be taken back%s: systemctl stop %s ends its use",
				one.Unit, one.What, one.Client, k.ends(one), one.Unit))
		}
	}
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
	case state == "inactive" || state == "failed":
		k.forget(one) // whoever starts it again reads what there is then
		return false, nil
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
	k.alarm(one, "lost", fmt.Sprintf("%s was restarted for a new %s and has not read it (it is %s): it is left alone; journalctl -u %s says why", one.Unit, one.Name, state, one.Unit))
	k.forget(one)
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

// alarm records what a person has to look at, and keeps it for the status.
func (k *keeper) alarm(one *kept, code, text string) {
	k.note(audit.Event{Type: audit.UnitRestarted, Client: one.Client, Code: code,
		Detail: map[string]string{"unit": one.Unit, "credential": one.Name, audit.AlarmKey: text}})
	k.c.Log.Warn(text)
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.wrong) < manyKept {
		k.wrong[one.key()] = text
	}
}

func (k *keeper) note(e audit.Event) { k.c.Audit.Note(e) }

// findings is what is wrong until the unit reads its credential again.
func (k *keeper) findings() (list []client.Finding) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, text := range k.wrong {
		list = append(list, client.Finding{Check: "credential", Target: key, Level: client.Warning, Detail: text})
	}
	return list
}
