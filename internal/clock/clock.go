// Package clock is the one source of time. Lifetimes are counted on a clock
// that goes on while the machine sleeps; the wall clock is read beside it, so
// that a jump of either can be told from the passing of time.
package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// A Clock reads both clocks at once. Timers are the time package's own:
// whoever waits for a Reading looks at the Clock again when it wakes.
type Clock interface{ Now() Reading }

// A Reading is one moment on two clocks.
type Reading struct {
	Boot time.Duration // since boot, suspended time included (CLOCK_BOOTTIME)
	Wall time.Time     // UTC, without a monotonic part; people and JWTs use it
}

// Add moves both clocks by d.
func (r Reading) Add(d time.Duration) Reading {
	return Reading{r.Boot + d, r.Wall.Add(d)}
}

// Sub is the time from o to r on the clock that nobody can set.
func (r Reading) Sub(o Reading) time.Duration { return r.Boot - o.Boot }

// Until is how long to wait for r as of now. The earlier of both clocks
// counts: when the wall clock is ahead, the machine may have been frozen
// without its boot clock noticing.
func (r Reading) Until(now Reading) time.Duration {
	return min(r.Boot-now.Boot, r.Wall.Sub(now.Wall))
}

// Jump is how far the wall clock was set between o and r, in either direction.
func (r Reading) Jump(o Reading) time.Duration {
	return (r.Wall.Sub(o.Wall) - (r.Boot - o.Boot)).Abs()
}

// Ahead is how far another clock, which read date to the second between two
// moments of ours, is ahead of ours: 0 if the way there and back explains it.
func Ahead(date time.Time, sent, received Reading) time.Duration {
	if ahead := date.Sub(received.Wall); ahead > 0 {
		return ahead
	}
	return min(0, date.Add(time.Second).Sub(sent.Wall))
}

// IsZero says whether r was never read.
func (r Reading) IsZero() bool { return r.Boot == 0 && r.Wall.IsZero() }

// System is the kernel's clock.
type System struct{}

// Now reads CLOCK_BOOTTIME and the wall clock.
func (System) Now() Reading {
	var ts unix.Timespec
	// It cannot fail: Linux has this clock since 2.6.39.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return Reading{time.Duration(ts.Nano()), time.Now().UTC().Round(0)}
}

// Bubble is a clock for tests inside testing/synctest, where the time package
// is faked and the kernel's clocks are not. Skew is added to the wall clock,
// and may be changed to make it jump.
type Bubble struct {
	start time.Time
	Skew  func() time.Duration // nil: none
}

// NewBubble starts a Bubble at an hour after boot.
func NewBubble() *Bubble { return &Bubble{start: time.Now().Add(-time.Hour)} }

// Now reads the time package's clock.
func (b *Bubble) Now() Reading {
	now := time.Now()
	r := Reading{now.Sub(b.start), now.UTC().Round(0)}
	if b.Skew != nil {
		r.Wall = r.Wall.Add(b.Skew())
	}
	return r
}
