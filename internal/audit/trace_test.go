package audit

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/clock"
)

// What clients had in a time, and who had it; what was over before it began,
// began after it ended, or is another client's, is not told.
func TestTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := logDir(t)
		l, stop := start(t, quiet, Options{Dir: dir, Clock: clock.NewBubble()}, nil)
		begun := time.Now()
		say := func(e Event) { t.Helper(); record(t, l, e) }
		who := func(pid int32) *Caller { return &Caller{PID: pid, Start: uint64(pid), UID: 33, Unit: "a.service"} }
		mint := func(name, fingerprint string) {
			say(Event{Type: TokenMinted, Client: name, Version: "1", Fingerprint: fingerprint, JTI: "j-" + fingerprint, Expires: time.Now().Add(15 * time.Minute)})
		}
		hand := func(typ Type, name, fingerprint string, pid int32, n int64) {
			say(Event{Type: typ, Client: name, Version: "1", Fingerprint: fingerprint, Caller: who(pid), Code: "token", Count: n})
		}
		mint("vdab", "old")
		hand(TokenHandover, "vdab", "old", 1, 0)
		say(Event{Type: KeyHandover, Client: "vdab", Version: "1", Caller: who(1), Code: "api-key"})
		time.Sleep(time.Hour)
		mint("vdab", "before")
		mint("other", "theirs")
		hand(TokenHandover, "vdab", "before", 1, 0)
		time.Sleep(10 * time.Minute)
		from := time.Now()
		time.Sleep(time.Minute)
		mint("vdab", "within")
		hand(TokenHandover, "vdab", "within", 1, 0)
		hand(TokenHandover, "vdab", "within", 2, 0)
		time.Sleep(time.Minute)
		hand(TokenRepeats, "vdab", "within", 2, 40)
		hand(TokenHandover, "zgw", "", 3, 0)
		hand(TokenRepeats, "zgw", "", 3, 4)
		say(Event{Type: KeyHandover, Client: "vdab", Version: "1", Caller: who(1), Code: "headers", Count: 3})
		say(Event{Type: TokenRevoked, Client: "vdab", Fingerprint: "within"})
		revoked := time.Now()
		time.Sleep(time.Minute)
		to := time.Now()
		time.Sleep(time.Minute)
		mint("vdab", "after")
		hand(TokenHandover, "zgw", "", 9, 0)
		say(Event{Type: KeyHandover, Client: "vdab", Version: "1", Caller: who(9), Code: "api-key"})
		if err := stop(); err != nil {
			t.Fatal(err)
		}

		over, cancel := context.WithCancel(t.Context())
		cancel()
		if got, err := TraceClients(over, dir, []string{"vdab"}, from, to); !errors.Is(err, context.Canceled) || len(got.Tokens) != 0 {
			t.Errorf("when the time is over: %+v, %v", got, err)
		}
		got, err := TraceClients(t.Context(), dir, []string{"vdab", "zgw"}, from, to)
		if err != nil || len(got.Tokens) != 3 || got.More != 0 {
			t.Fatalf("%+v, %v", got, err)
		}
		jwt, before, within := got.Tokens[0], got.Tokens[1], got.Tokens[2]
		if before.Fingerprint != "before" || within.Fingerprint != "within" || within.JTI != "j-within" || !within.Revoked.Equal(revoked) || !before.Revoked.IsZero() {
			t.Errorf("%+v", got.Tokens)
		}
		if h := within.Holders; len(h) != 2 || h[1].PID != 2 || h[1].Count != 41 || h[1].Unit != "a.service" || !h[1].Last.After(h[1].First) || h[0].Count != 1 {
			t.Errorf("who had it: %+v", h)
		}
		if len(jwt.Holders) != 1 || jwt.Holders[0].Count != 5 || jwt.Client != "zgw" {
			t.Errorf("self-signed: %+v", jwt)
		}
		if len(got.Keys) != 1 || got.Keys[0].Count != 3 || got.Keys[0].Surface != "headers" {
			t.Errorf("keys: %+v", got.Keys)
		}
		if !got.Last.Equal(within.Expires) || !within.Expires.Equal(within.Issued.Add(15*time.Minute)) {
			t.Errorf("the last ends at %s", got.Last)
		}

		one, found, err := TraceToken(dir, "old")
		if err != nil || !found || one.Client != "vdab" || len(one.Holders) != 1 || one.Issued.IsZero() || one.Expires.IsZero() {
			t.Errorf("%+v, %v, %v", one, found, err)
		}
		sum := sha256.Sum256([]byte("j-old"))
		byID, found, err := TraceToken(dir, base64.RawURLEncoding.EncodeToString(sum[:]))
		if err != nil || !found || byID.Fingerprint != "old" || len(byID.Holders) != 1 {
			t.Errorf("by jti: %+v, %v, %v", byID, found, err)
		}
		if !got.Begins.Equal(begun) {
			t.Errorf("the log begins at %s, want %s", got.Begins, begun)
		}
		if _, found, err := TraceToken(dir, "never"); found || err != nil {
			t.Errorf("found %v, %v", found, err)
		}
	})
}

func TestTraceIsBounded(t *testing.T) {
	tr := tracer{tokens: map[string]*TracedToken{}}
	at := time.Unix(1_800_000_000, 0)
	for i := range maxTraced + 7 {
		e := Entry{Time: at, Event: Event{Type: TokenMinted, Client: "c", Fingerprint: id(int32(i)), Expires: at.Add(time.Duration(i) * time.Second)}}
		tr.take(&e, at, at)
	}
	for i := range maxHolders + 7 {
		e := Entry{Time: at, Event: Event{Type: TokenHandover, Client: "c", Fingerprint: "0", Caller: &Caller{PID: int32(i)}}}
		tr.take(&e, at, at)
	}
	got := tr.result(at, at)
	if len(got.Tokens) != maxTraced || got.More != 7 || len(got.Tokens[0].Holders) != maxHolders {
		t.Errorf("%d tokens and %d more, %d holders", len(got.Tokens), got.More, len(got.Tokens[0].Holders))
	}
	if want := at.Add((maxTraced + 6) * time.Second); !got.Last.Equal(want) {
		t.Errorf("the last ends at %s, want that of one beyond the bound, %s", got.Last, want)
	}
}
