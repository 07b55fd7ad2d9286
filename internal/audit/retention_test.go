package audit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/clock"
)

func TestAnchors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := logDir(t)
		var mu sync.Mutex
		var got []Anchor
		fail := false
		anchor := func(_ context.Context, a Anchor) error {
			mu.Lock()
			defer mu.Unlock()
			if fail {
				return errors.New("no journal today")
			}
			got = append(got, a)
			return nil
		}
		expect := func(what string, n int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(got) != n {
				t.Errorf("%s: %d anchors, want %d", what, len(got), n)
			}
		}
		l, stop := start(t, Config{}, Options{Dir: dir, Clock: clock.NewBubble(), Anchor: anchor}, nil)
		expect("at the start", 1)
		time.Sleep(time.Hour)
		expect("an idle hour", 1)
		record(t, l, Event{Type: TokenHandover})
		time.Sleep(5 * time.Minute)
		expect("five minutes after an entry", 2)
		for range 998 {
			record(t, l, Event{Type: TokenHandover})
		}
		expect("998 entries", 2)
		for range 2 {
			record(t, l, Event{Type: TokenHandover})
		}
		expect("1000 entries", 3)
		time.Sleep(24 * time.Hour)
		record(t, l, Event{Type: TokenHandover})
		expect("a new day's file", 4)
		mu.Lock()
		fail = true
		mu.Unlock()
		record(t, l, Event{Type: TokenHandover})
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if s := l.Status(); s.AnchorError != "no journal today" || s.Anchors != "custom" {
			t.Errorf("status %+v", s)
		}
		failures := 0
		for _, e := range ofType(entries(t, dir), LogAnchor) {
			if e.Code == "not_sent" && e.Detail["error"] == "no journal today" {
				failures++
			}
		}
		if failures != 1 {
			t.Errorf("%d entries about anchors that were not sent, want one", failures)
		}
		mu.Lock()
		fail = false
		mu.Unlock()
		time.Sleep(6 * time.Minute)
		expect("tried again", 5)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		expect("at the end", 6)
		r := verified(t, dir, got)
		if r.Anchors != 6 || r.Covered != r.Last {
			t.Errorf("report %+v", r)
		}
		if s := l.Status(); s.AnchorSeq != r.Last || s.AnchorTime.IsZero() || s.AnchorError != "" {
			t.Errorf("status %+v", s)
		}
	})
}

// TestSlowAnchor: while one anchor is on its way, records go on, and the next
// anchor to be sent is the newest.
func TestSlowAnchor(t *testing.T) {
	release := make(chan struct{})
	var got []Anchor
	anchor := func(_ context.Context, a Anchor) error {
		<-release
		got = append(got, a)
		return nil
	}
	dir := logDir(t)
	l, stop := start(t, Config{}, Options{Dir: dir, Anchor: anchor}, func(l *Log) { l.limits.entries = 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for range 20 {
		if err := l.Record(ctx, Event{Type: TokenHandover}); err != nil {
			t.Fatal(err)
		}
	}
	close(release)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	r := verified(t, dir, got)
	if n := len(got); n > 4 || r.Covered != r.Last || got[n-1].Seq != r.Last {
		t.Errorf("%d anchors, the last of entry %d of %d", n, got[n-1].Seq, r.Last)
	}
}

func TestRotationBySize(t *testing.T) {
	dir := logDir(t)
	l, stop := start(t, quiet, Options{Dir: dir}, func(l *Log) { l.limits.segment = 2000 })
	for range 50 {
		record(t, l, Event{Type: TokenHandover, Client: strings.Repeat("x", 200)})
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if r := verified(t, dir, nil); r.Segments < 5 || r.First != 1 {
		t.Errorf("%+v", r)
	}
	// A second run goes on in the file that is there.
	before, _ := segments(dir)
	l, stop = start(t, quiet, Options{Dir: dir}, nil)
	record(t, l, Event{Type: TokenHandover})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if after, _ := segments(dir); len(after) != len(before) {
		t.Errorf("%d files, then %d", len(before), len(after))
	}
	verified(t, dir, nil)
}

func TestRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := logDir(t)
		var got []Anchor
		anchor := func(_ context.Context, a Anchor) error { got = append(got, a); return nil }
		cfg := Config{Retention: clock.Duration(30 * 24 * time.Hour)}
		l, stop := start(t, cfg, Options{Dir: dir, Clock: clock.NewBubble(), Anchor: anchor}, nil)
		if err := os.WriteFile(filepath.Join(dir, "00000001.torn-7"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			record(t, l, Event{Type: TokenHandover})
			time.Sleep(24 * time.Hour)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		numbers, _ := segments(dir)
		if len(numbers) < 31 || len(numbers) > 33 {
			t.Errorf("%d daily files are left of 100", len(numbers))
		}
		if _, err := os.Stat(filepath.Join(dir, "00000001.torn-7")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what was set aside: %v", err)
		}
		r := verified(t, dir, got)
		oldest := time.Since(r.Since)
		if r.First < 100 || oldest < 30*24*time.Hour || oldest > 33*24*time.Hour {
			t.Errorf("the oldest entry is number %d, %v old", r.First, oldest)
		}
		for _, e := range ofType(entries(t, dir), LogExpired) {
			to, _ := strconv.ParseUint(e.Detail["to"], 10, 64)
			from, _ := strconv.ParseUint(e.Detail["from"], 10, 64)
			if e.Code != "" || int64(to-from+1) != e.Count || from == 0 || e.First.IsZero() || e.Last.IsZero() || len(e.Detail["hash"]) != hashLen {
				t.Errorf("expiry %+v", e)
			}
		}

		// What expires while the daemon is down is deleted when it comes up.
		time.Sleep(10 * 24 * time.Hour)
		_, stop = start(t, cfg, Options{Dir: dir, Clock: clock.NewBubble(), Anchor: anchor}, nil)
		synctest.Wait()
		left, _ := segments(dir)
		if len(left) > len(numbers)-8 {
			t.Errorf("%d files, and %d after ten days", len(numbers), len(left))
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		numbers, r = left, verified(t, dir, got)

		// Somebody deletes one more day: no expiry explains it.
		if err := os.Remove(filepath.Join(dir, segmentName(numbers[0]))); err != nil {
			t.Fatal(err)
		}
		wants(t, dir, got, "did not expire")
		// And writes a matching expiry at the end: the anchors were made later than it says.
		next, err := firstEntry(filepath.Join(dir, segmentName(numbers[10])))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range numbers[1:10] {
			if err := os.Remove(filepath.Join(dir, segmentName(n))); err != nil {
				t.Fatal(err)
			}
		}
		lie := Entry{Seq: r.Last + 1, Time: r.Until, Prev: r.Hash, Event: Event{Type: LogExpired, Detail: map[string]string{
			"to": strconv.FormatUint(next.Seq-1, 10), "hash": next.Prev, "retention": "720h0m0s"}}}
		appendFile(t, filepath.Join(dir, segmentName(numbers[len(numbers)-1])), forged(lie))
		wants(t, dir, got, "before their time")
	})
}
