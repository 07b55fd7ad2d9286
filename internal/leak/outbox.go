package leak

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
)

// An Outbox holds each message until a relay has taken it, and then as the
// record of that. What [Outbox.Enqueue] has taken survives a loss of power; it
// is sent at least once, and always with the same Message-ID. All methods may
// be called from many goroutines.
type Outbox struct {
	clock   clock.Clock
	helo    string
	dial    func(ctx context.Context, r Relay) (net.Conn, error)
	store   store
	wake    chan struct{}
	damaged error

	adding sync.Mutex // one Enqueue at a time: what one has, it has durably

	mu         sync.Mutex
	relays     []*relay
	protection protection
	items      map[string]*item
}

// A Delivery is how one message fares.
type Delivery struct {
	Incident  string        `json:"incident"`
	Revision  int           `json:"revision"`
	Recipient string        `json:"recipient"`
	Copy      bool          `json:"copy"`
	MessageID string        `json:"message_id"`
	State     DeliveryState `json:"state"`
	QueuedAt  time.Time     `json:"queued_at"`
	SentAt    time.Time     `json:"sent_at,omitzero"`
	// NextAttempt is zero once it is sent.
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	Attempts    int       `json:"attempts"`
	// Last is how the last attempt ended at each relay that was asked.
	Last []Attempt `json:"last,omitempty"`
	// Sealing is how it left, once it is sent.
	Sealing
}

// A DeliveryState is where a message stands.
type DeliveryState string

// The states. Refused means for good, by every relay; it is still tried every
// hour, and a person has to know.
const (
	Queued  DeliveryState = "queued"
	Sent    DeliveryState = "sent"
	Refused DeliveryState = "refused"
)

// An item is a message on its way. Its fields are guarded by the outbox; while
// busy, one goroutine sends it.
type item struct {
	Format   int `json:"format"`
	Delivery `json:"delivery"`
	Message  Message `json:"message"`

	due   clock.Reading
	since clock.Reading // when this process first had it
	busy  bool
}

// OpenOutbox reads the outbox in dir, and makes the directory if it is not
// there; the one above it has to be. host names this machine to the relays. It
// starts nothing.
func OpenOutbox(dir, host string, relays []Relay, c clock.Clock) (*Outbox, error) {
	o := &Outbox{clock: c, helo: host, store: store{dir: dir}, wake: make(chan struct{}, 1), items: map[string]*item{},
		dial: func(ctx context.Context, r Relay) (net.Conn, error) { return r.Dial(ctx, r.Address()) }}
	strongCipher()
	if err := o.SetRelays(relays); err != nil {
		return nil, err
	}
	if err := o.store.open(); err != nil {
		return nil, err
	}
	o.store.sweep()
	names, err := o.store.names()
	if err != nil {
		return nil, err
	}
	now := c.Now()
	for _, n := range names {
		it, err := o.load(n)
		if err != nil {
			o.damaged = errors.Join(o.damaged, fmt.Errorf("outbox: %s cannot be read: %w; it is left as it is: look into the incident, and report it again if need be", filepath.Join(dir, n), err))
			continue
		}
		// Whatever the wall clock says now, the wait is no longer than it was
		// to be, and over at most once.
		longest := longestWait + longestWait/5
		if it.State == Refused {
			longest = refusedWait + refusedWait/5
		}
		it.since, it.due = now, now.Add(min(max(0, it.NextAttempt.Sub(now.Wall)), longest))
		o.items[n] = it
	}
	return o, nil
}

// MakeOutbox makes the directory of an outbox that is not open, if need be: there
// is one in every copy of the state, whether a relay was ever configured or not.
func MakeOutbox(dir string) error { return store{dir: dir}.open() }

func (o *Outbox) load(name string) (*item, error) {
	data, err := o.store.get(name)
	if err != nil {
		return nil, err
	}
	it := new(item)
	if err := unseal(data, it); err != nil {
		return nil, err
	}
	if it.Format != format {
		return nil, fmt.Errorf("it has format %d, and this version reads %d", it.Format, format)
	}
	if fileName(it.Message) != name || it.MessageID != it.Message.ID || !slices.Contains([]DeliveryState{Queued, Sent, Refused}, it.State) {
		return nil, errors.New("its parts contradict each other")
	}
	return it, checkMessage(it.Message)
}

// Damaged names the records that could not be read at the start, or is nil.
func (o *Outbox) Damaged() error { return o.damaged }

// SetRelays replaces the relays, which are asked in this order. One that is as
// it was keeps its login.
func (o *Outbox) SetRelays(relays []Relay) error {
	if len(relays) == 0 {
		return errors.New("outbox: there is no mail relay: set leak.smtp")
	}
	for _, r := range relays {
		if err := r.Validate(); err != nil {
			return err
		}
	}
	o.mu.Lock()
	var list []*relay
	for _, r := range relays {
		n := slices.IndexFunc(o.relays, func(old *relay) bool { return old.Relay == r })
		if n < 0 {
			list = append(list, newRelay(r, nil))
			continue
		}
		list = append(list, o.relays[n])
	}
	same := slices.Equal(list, o.relays)
	o.relays = list
	o.mu.Unlock()
	if !same {
		o.hurry(func(*item) bool { return true })
	}
	return nil
}

// SetLogin gives the login of relay n (from 0). The outbox keeps its own copy of
// the password, in protected memory. Whatever waits for it is tried at once; a
// login that the relay has refused is not, until it changes.
func (o *Outbox) SetLogin(n int, username string, password secret.Secret) error {
	kept, err := password.Clone()
	if err != nil {
		return err
	}
	o.mu.Lock()
	if n < 0 || n >= len(o.relays) {
		o.mu.Unlock()
		kept.Wipe()
		return fmt.Errorf("outbox: there is no relay %d", n)
	}
	old := o.relays[n]
	if old.login != nil && old.login.username == username && old.login.password.Equal(kept) {
		o.mu.Unlock()
		kept.Wipe()
		return nil
	}
	// An attempt under way keeps the old one, which the collector wipes.
	o.relays = slices.Clone(o.relays)
	o.relays[n] = newRelay(old.Relay, &login{username, kept})
	o.mu.Unlock()
	o.hurry(func(it *item) bool {
		return old.login != nil || slices.ContainsFunc(it.Last, func(a Attempt) bool { return a.Cause == "login_missing" })
	})
	return nil
}

// hurry makes due what waits, where which says so.
func (o *Outbox) hurry(which func(*item) bool) {
	now := o.clock.Now()
	o.mu.Lock()
	for _, it := range o.items {
		if !it.busy && which(it) {
			it.due = now
		}
	}
	o.mu.Unlock()
	o.signal()
}

func (o *Outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// fileName is the local part of the Message-ID.
func fileName(m Message) string {
	local, _, _ := strings.Cut(strings.Trim(m.ID, "<>"), "@")
	return local + ".json"
}

// checkMessage sees to it that nothing in m can become a command or a path.
func checkMessage(m Message) error {
	name := fileName(m)
	if !validID(m.Incident) || !strings.HasPrefix(name, fmt.Sprintf("%s.%d.", m.Incident, m.Revision)) || !validHost(name) {
		return fmt.Errorf("%q is no Message-ID of incident %s", line(m.ID), line(m.Incident))
	}
	if len(m.Data) == 0 {
		return errors.New("it has no text")
	}
	return errors.Join(validAddress(m.Recipient), validAddress(m.From))
}

// Enqueue takes messages to be sent. Those that it has already are left as they
// are, so that it may be called again after a crash or a failure.
func (o *Outbox) Enqueue(messages []Message) error {
	for _, m := range messages {
		if err := checkMessage(m); err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
	}
	o.adding.Lock()
	defer o.adding.Unlock()
	defer o.signal()
	for _, m := range messages {
		name, now := fileName(m), o.clock.Now()
		at := now.Wall.UTC().Truncate(time.Second)
		it := &item{Format: format, Message: m, due: now, since: now, busy: true, Delivery: Delivery{Incident: m.Incident, Revision: m.Revision,
			Recipient: m.Recipient, Copy: m.Copy, MessageID: m.ID, State: Queued, QueuedAt: at, NextAttempt: at}}
		o.mu.Lock()
		_, have := o.items[name]
		if !have {
			o.items[name] = it
		}
		o.mu.Unlock()
		if have {
			continue
		}
		err := o.save(it)
		o.mu.Lock()
		it.busy = false
		if err != nil {
			delete(o.items, name)
		}
		o.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// save writes an item whose busy flag the caller holds.
func (o *Outbox) save(it *item) error {
	data, err := seal(it)
	if err != nil {
		return err
	}
	if len(data) > mostBytes {
		return fmt.Errorf("outbox: the message to %s is too long", it.Recipient)
	}
	return o.store.put(fileName(it.Message), data)
}

// Deliveries says how the messages of an incident fare; of all if id is empty.
func (o *Outbox) Deliveries(id string) []Delivery {
	return o.pick(func(it *item) bool { return id == "" || it.Incident == id })
}

// Message is the one with that Message-ID.
func (o *Outbox) Message(id string) (m Message, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, it := range o.items {
		if it.MessageID == id {
			return it.Message, true
		}
	}
	return m, false
}

// Undelivered are the messages that no relay has taken after that long, and
// those that every relay refuses.
func (o *Outbox) Undelivered(after time.Duration) []Delivery {
	now := o.clock.Now()
	return o.pick(func(it *item) bool {
		// The longer of both counts: the wall clock may have been set back.
		age := max(now.Sub(it.since), now.Wall.Sub(it.QueuedAt))
		return it.State == Refused || it.State == Queued && age >= after
	})
}

func (o *Outbox) pick(which func(*item) bool) []Delivery {
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []Delivery
	for _, it := range o.items {
		if which(it) {
			d := it.Delivery
			d.Last = slices.Clone(d.Last)
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(a, b Delivery) int {
		return cmp.Or(cmp.Compare(a.Incident, b.Incident), cmp.Compare(a.Revision, b.Revision), compareCopies(a, b), cmp.Compare(a.Recipient, b.Recipient))
	})
	return list
}

// compareCopies puts the issuer first.
func compareCopies(a, b Delivery) int {
	switch {
	case a.Copy == b.Copy:
		return 0
	case a.Copy:
		return 1
	}
	return -1
}

// Check goes as far as every relay lets it without sending: connection, TLS and
// login. The answers are in the relays' order.
func (o *Outbox) Check(ctx context.Context) []Attempt {
	o.mu.Lock()
	relays := o.relays
	o.mu.Unlock()
	var list []Attempt
	for _, r := range relays {
		s, a := o.open(ctx, r)
		if s != nil {
			s.quit()
		}
		list = append(list, a)
	}
	return list
}
