package audit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/clock"
)

// What leaves a doubt whether a token was issued here, and what does not.
func TestUncertain(t *testing.T) {
	const after = time.Hour // of what happens, until a token that is asked about
	for name, c := range map[string]struct {
		happens func(t *testing.T, dir string, say func(Event))
		at      time.Duration // of the token, after the beginning
		words   string        // empty: no doubt
	}{
		"nothing":            {func(*testing.T, string, func(Event)) {}, after, ""},
		"before the client":  {func(*testing.T, string, func(Event)) {}, time.Second, "knows vdab from"},
		"stopped before":     {restart(DaemonStop), 2 * after, ""},
		"stopped then":       {restart(DaemonStop), after + 5*time.Minute, "did not run"},
		"killed before":      {restart(""), 2 * after, ""},
		"killed then":        {restart(""), after + 5*time.Minute, "was killed"},
		"killed just after":  {restart(""), after - 5*time.Minute - time.Second, "was killed"},
		"stopped just after": {restart(DaemonStop), after - 5*time.Minute - time.Second, ""},
		"lost": {func(_ *testing.T, _ string, say func(Event)) {
			say(Event{Type: LogLost, Count: 1, First: time.Now().Add(-time.Minute), Last: time.Now()})
		}, after, "could not be written"},
		"lost long before": {func(_ *testing.T, _ string, say func(Event)) {
			say(Event{Type: LogLost, Count: 1, First: time.Now().Add(-time.Minute), Last: time.Now()})
		}, 2 * after, ""},
		"another clock": {func(_ *testing.T, _ string, say func(Event)) {
			time.Sleep(10 * time.Minute)
			say(Event{Type: ClockJumped, Detail: map[string]string{"wall": "10m5s"}})
		}, after + 3*time.Minute, "the clock was set"},
		"a JWT": {func(_ *testing.T, _ string, say func(Event)) {
			say(Event{Type: TokenHandover, Client: "vdab", Version: "1"})
		}, after, "one by one"},
		"JWTs": {func(_ *testing.T, _ string, say func(Event)) {
			time.Sleep(6*time.Minute + 30*time.Second)
			say(Event{Type: TokenRepeats, Client: "vdab", Version: "1", Count: 7, Last: time.Now()})
		}, after, "one by one"},
		"another client's JWT": {func(_ *testing.T, _ string, say func(Event)) {
			say(Event{Type: TokenHandover, Client: "zgw", Version: "1"})
		}, after, ""},
		"damage": {func(t *testing.T, dir string, _ func(Event)) {
			name := filepath.Join(dir, "00000001.jsonl")
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(strings.Replace(string(b), `"code":"proved"`, `"code":"Proved"`, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
		}, after, "is damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := logDir(t)
				l, stop := start(t, quiet, Options{Dir: dir, Clock: clock.NewBubble()}, nil)
				say := func(e Event) { t.Helper(); record(t, l, e) }
				begin := time.Now()
				say(Event{Type: DaemonStart})
				time.Sleep(10 * time.Minute)
				say(Event{Type: BundleInstalled, Client: "other", Version: "1", Code: "proved"})
				say(Event{Type: BundleInstalled, Client: "vdab", Version: "1", Code: "proved"})
				time.Sleep(50 * time.Minute)
				say(Event{Type: ProviderRead, Client: "other"})
				c.happens(t, dir, say)
				time.Sleep(2 * time.Hour)
				if err := stop(); err != nil && name != "damage" {
					t.Fatal(err)
				}
				at := begin.Add(c.at)
				why, err := Uncertain(dir, "vdab", at.Add(-5*time.Minute), at.Add(5*time.Minute))
				if err != nil || (why == "") != (c.words == "") || !strings.Contains(why, c.words) {
					t.Errorf("%q, %v", why, err)
				}
				if why, err = Uncertain(dir, "nobody", at, at); err != nil || why == "" {
					t.Errorf("%q, %v", why, err)
				}
			})
		})
	}
}

// restart stops the daemon, or kills it, for a while.
func restart(end Type) func(*testing.T, string, func(Event)) {
	return func(_ *testing.T, _ string, say func(Event)) {
		if end != "" {
			say(Event{Type: end})
		}
		time.Sleep(10 * time.Minute)
		say(Event{Type: DaemonStart})
	}
}
