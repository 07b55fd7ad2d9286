package clock

import (
	"testing"
	"time"
)

func TestUntilTakesTheEarlierClock(t *testing.T) {
	now := Reading{time.Hour, time.Unix(1e9, 0)}
	end := now.Add(15 * time.Minute)
	for _, c := range []struct {
		name       string
		boot, wall time.Duration
		left, jump time.Duration
	}{
		{"both pass", time.Minute, time.Minute, 14 * time.Minute, 0},
		{"wall set forward", time.Minute, 11 * time.Minute, 4 * time.Minute, 10 * time.Minute},
		{"wall set back", time.Minute, -time.Hour, 14 * time.Minute, time.Hour + time.Minute},
	} {
		later := Reading{now.Boot + c.boot, now.Wall.Add(c.wall)}
		if got := end.Until(later); got != c.left {
			t.Errorf("%s: %v left, want %v", c.name, got, c.left)
		}
		if got := later.Jump(now); got != c.jump {
			t.Errorf("%s: jump %v, want %v", c.name, got, c.jump)
		}
	}
}

func TestSystemRuns(t *testing.T) {
	a := System{}.Now()
	b := System{}.Now()
	if a.Boot <= 0 || b.Boot < a.Boot || b.Jump(a) > time.Second {
		t.Errorf("%v then %v", a, b)
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"30s": 30 * time.Second, "15m": 15 * time.Minute, "400d": 400 * 24 * time.Hour, "0s": 0, "1h30m": 90 * time.Minute,
	} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || d.D() != want {
			t.Errorf("%s: %v, %v", text, d.D(), err)
		}
		back, err := ParseDuration(d.String())
		if err != nil || back != d {
			t.Errorf("%s is written as %s, read as %v, %v", text, d, back, err)
		}
	}
	for _, text := range []string{"", "15", "-1s", "-3d", "1.5d", "99999d", "d", "1w", "1d12h"} {
		if _, err := ParseDuration(text); err == nil {
			t.Errorf("%q is taken as a duration", text)
		}
	}
}
