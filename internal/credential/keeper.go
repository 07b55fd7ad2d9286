package credential

import (
	"context"
	"encoding/json"
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
	changed bool // since the state file was written

	disk    chan struct{} // holds the one who writes the state file
	written error         // of that file, told once; for the holder of disk
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
	k := &keeper{c: c, bus: manager{address: c.Bus}, known: map[string]*kept{}, units: map[string]*unit{}, fresh: make(chan *kept, manyKept), wrong: map[string]string{}, disk: make(chan struct{}, 1)}
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
	defer k.save()
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
	k.changed = true
}

// save writes the state. The caller does not hold k.mu: a disk may be slow.
func (k *keeper) save() {
	k.disk <- struct{}{}
	defer func() { <-k.disk }()
	k.mu.Lock()
	if !k.changed { // somebody wrote it while we waited
		k.mu.Unlock()
		return
	}
	k.changed = false
	list := make([]*kept, 0, len(k.known))
	for _, one := range k.known {
		list = append(list, one)
	}
	b, err := json.Marshal(list)
	k.mu.Unlock()
	if err == nil {
		err = durable.Replace(k.c.State, b)
	}
	if err != nil && k.written == nil {
		k.c.Log.Warn("which units read credentials cannot be kept for the daemon's next start", "error", err)
	}
	k.written = err
}

// forget lets go of a credential, unless it was read once more than reads.
func (k *keeper) forget(one *kept, reads int) bool {
	defer k.save()
	k.mu.Lock()
	defer k.mu.Unlock()
	if one.reads != reads {
		return false
	}
	delete(k.known, one.key())
	k.changed = true
	return true
}

// clear takes back what is wrong with a credential.
func (k *keeper) clear(one *kept) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.wrong, one.key())
}

// now is what is known of one.
func (k *keeper) now(one *kept) kept {
	k.mu.Lock()
	defer k.mu.Unlock()
	return *one
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
