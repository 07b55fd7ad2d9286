package rotation

import (
	"context"
	"time"

	"credentialbroker/internal/clock"
)

// A turn is a mutex that can be waited for with a context, since it is held
// over I/O.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) give() { <-t }

// trouble is a failure that goes on, with the time of the next attempt.
type trouble struct {
	err   error
	since clock.Reading
	until clock.Reading
	fails int
}

const (
	firstBackoff  = time.Second
	longestWait   = time.Minute
	longestDemand = time.Hour // of a Retry-After
)

// fail notes a failure: the next attempt comes after a second, doubling to a
// minute, with jitter, or when the other side said.
func (t *trouble) fail(now clock.Reading, err error, after time.Duration) {
	if t.err == nil {
		t.since = now
	}
	t.err = err
	wait := longestWait
	if t.fails < 6 {
		wait = firstBackoff << t.fails
	}
	t.fails++
	t.until = now.Add(max(jitter(wait), min(after, longestDemand)))
}
