package leak

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Waits between two attempts.
const (
	firstWait   = 10 * time.Second
	longestWait = 15 * time.Minute
	refusedWait = time.Hour
	saveWait    = 10 * time.Second // for a disk that failed
	lookWait    = time.Minute      // a timer does not count while the machine sleeps
	mostAtOnce  = 8
)

// Run sends what is due until ctx ends; then it gives up what is under way.
func (o *Outbox) Run(ctx context.Context) error {
	var sending sync.WaitGroup
	defer sending.Wait()
	for {
		due, wait := o.due()
		for _, it := range due {
			sending.Go(func() {
				o.attempt(ctx, it)
				o.signal()
			})
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-o.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// due takes the items whose time has come, the issuer's first, and says how
// long to wait for the next.
func (o *Outbox) due() ([]*item, time.Duration) {
	now, wait := o.clock.Now(), lookWait
	o.mu.Lock()
	defer o.mu.Unlock()
	if hold := o.keyless(now); hold > 0 {
		return nil, min(wait, hold)
	}
	var due []*item
	room := mostAtOnce
	for _, it := range o.items {
		switch left := it.due.Until(now); {
		case it.busy:
			room--
		case it.State == Sent && it.NextAttempt.IsZero():
		case left <= 0:
			due = append(due, it)
		default:
			wait = min(wait, left)
		}
	}
	slices.SortFunc(due, func(a, b *item) int {
		return cmp.Or(compareCopies(a.Delivery, b.Delivery), a.QueuedAt.Compare(b.QueuedAt), cmp.Compare(a.Recipient, b.Recipient))
	})
	due = due[:max(0, min(room, len(due)))]
	for _, it := range due {
		it.busy = true
	}
	return due, wait
}

// attempt tries every relay in order, until one takes the message, and makes
// the outcome durable. A message that is sent, of which the disk could not take
// note, is not sent again: noting is tried until it works.
func (o *Outbox) attempt(ctx context.Context, it *item) {
	o.mu.Lock()
	relays, protection, sent := o.relays, o.protection, it.State == Sent
	o.mu.Unlock()
	var tried []Attempt
	var s *session
	if !sent {
		now := o.clock.Now().Wall.UTC().Truncate(time.Second)
		data, sealing, err := protection.seal(&it.Message, now)
		if err != nil {
			tried = []Attempt{{At: now, Result: Temporary, Stage: "encrypt", Cause: "encryption"}}
		}
		for n := 0; err == nil && n < len(relays); n++ {
			var a Attempt
			if s, a = o.deliver(ctx, relays[n], &it.Message, data); a.Result == Accepted {
				o.mu.Lock()
				it.Sealing = sealing
				o.mu.Unlock()
				sent, tried = true, append(tried, a)
				break
			}
			if ctx.Err() != nil {
				o.mu.Lock()
				it.busy = false
				o.mu.Unlock()
				return
			}
			tried = append(tried, a)
		}
	}
	o.note(it, relays, tried, sent)
	if s != nil {
		s.quit()
	}
}

// note writes down how an attempt at those relays ended.
func (o *Outbox) note(it *item, relays []*relay, tried []Attempt, sent bool) {
	now := o.clock.Now()
	wall := now.Wall.UTC().Truncate(time.Second)
	o.mu.Lock()
	if len(tried) > 0 {
		it.Attempts++
		it.Last = tried
	}
	var wait time.Duration
	switch {
	case sent && it.State != Sent:
		it.State, it.SentAt = Sent, wall
	case sent:
	case !slices.ContainsFunc(tried, func(a Attempt) bool { return a.Result != Permanent }):
		it.State, wait = Refused, jitter(refusedWait)
	default:
		it.State, wait = Queued, jitter(backoff(it.Attempts))
	}
	it.NextAttempt = time.Time{}
	if !sent {
		it.NextAttempt = wall.Add(wait)
	}
	it.due = now.Add(wait)
	o.mu.Unlock()
	err := o.save(it) // nobody else writes to an item that is busy
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil && sent {
		// Sent, with a next attempt: to write it down.
		it.NextAttempt, it.due = wall.Add(saveWait), now.Add(saveWait)
	}
	if !sent && !slices.Equal(relays, o.relays) {
		it.due = now // hurry has passed it by while it was busy
	}
	it.busy = false
}

func backoff(attempts int) time.Duration {
	return min(firstWait<<min(max(0, attempts-1), 10), longestWait)
}

// jitter is d, a fifth more or less.
func jitter(d time.Duration) time.Duration {
	return d - d/5 + time.Duration(rand.Int64N(int64(d*2/5))) //nolint:gosec // it keeps hosts apart, and no secret
}
