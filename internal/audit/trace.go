package audit

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"
)

// A Trace is what the log says of the tokens and API keys of some clients in a
// time: what there was that could leak, and who had it.
type Trace struct {
	// Tokens are those that were valid at some moment of the time, in the order
	// of their issue; self-signed JWTs, of which each is for one call, are one.
	Tokens []TracedToken
	More   int       // tokens beyond the first 10,000
	Last   time.Time // when the last of all of them ends; zero: there is none
	Keys   []Holder  // of API keys
	// Begins is when the log does: what was before is not known. Zero: there is
	// no log.
	Begins time.Time
}

// A TracedToken is one token, from its issue to its end.
type TracedToken struct {
	Client      string    `json:"client"`
	Version     string    `json:"version,omitempty"` // of the bundle that it was issued for
	Fingerprint string    `json:"fingerprint,omitempty"`
	JTI         string    `json:"jti,omitempty"`
	Scope       string    `json:"scope,omitempty"`
	Audience    string    `json:"audience,omitempty"`
	Issued      time.Time `json:"issued,omitzero"`
	Expires     time.Time `json:"expires,omitzero"`
	Revoked     time.Time `json:"revoked,omitzero"` // by the issuer, on our word; zero: not
	Holders     []Holder  `json:"holders,omitempty"`
}

// A Holder is a process that had something, or the processes of a user and
// unit where they were too many.
type Holder struct {
	Caller
	Client  string    `json:"client"`
	Version string    `json:"version,omitempty"`
	Surface string    `json:"surface,omitempty"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Count   int64     `json:"count"` // hand-overs
}

const (
	maxTraced  = 10_000
	maxHolders = 1000           // of one token, or of keys
	maxLife    = 25 * time.Hour // of a token: none that was issued earlier is looked for
)

// TraceClients follows what clients had from one time to another. It reads the
// log from a day before on, until ctx ends. Lines that cannot be read are passed
// over: Verify finds them.
func TraceClients(ctx context.Context, dir string, clients []string, from, to time.Time) (Trace, error) {
	names := make([][]byte, 0, len(clients))
	for _, c := range clients {
		names = append(names, []byte(`"client":"`+c+`"`)) // a client's name needs no escape
	}
	t := tracer{tokens: map[string]*TracedToken{}}
	err := t.read(ctx, dir, from.Add(-maxLife), func(line []byte) bool {
		return !slices.ContainsFunc(names, func(n []byte) bool { return bytes.Contains(line, n) })
	}, func(e *Entry) { t.take(e, from, to) })
	out := t.result(from, to)
	if err == nil {
		out.Begins, err = begins(dir)
	}
	return out, err
}

// begins is the time of the first entry that is kept.
func begins(dir string) (time.Time, error) {
	numbers, err := segments(dir)
	if err != nil || len(numbers) == 0 {
		return time.Time{}, err
	}
	head, err := firstEntry(filepath.Join(dir, segmentName(numbers[0])))
	return head.Time, err
}

// TraceToken follows one token through the whole log; found is false if the
// log does not know it. fingerprint is the token's, or that of its jti, by which
// issuers name it: of several with that jti, the last.
func TraceToken(dir, fingerprint string) (token TracedToken, found bool, err error) {
	t := tracer{tokens: map[string]*TracedToken{}}
	mark, id := []byte(`"fingerprint":"`+fingerprint+`"`), ""
	err = t.read(context.Background(), dir, time.Time{}, func(line []byte) bool { return !bytes.Contains(line, mark) && !namedBy(line, fingerprint) },
		func(e *Entry) {
			if e.Fingerprint == fingerprint {
				t.take(e, time.Time{}, time.Time{})
			} else if e.Type == TokenMinted {
				id = e.Fingerprint
			}
		})
	for _, one := range t.tokens {
		return *one, true, err
	}
	if id != "" && id != fingerprint && err == nil {
		return TraceToken(dir, id)
	}
	return TracedToken{}, false, err
}

// namedBy says whether the first jti in a line has the fingerprint.
func namedBy(line []byte, fingerprint string) bool {
	_, value, ok := bytes.Cut(line, []byte(`"jti":`))
	if !ok {
		return false
	}
	var jti string
	if err := json.NewDecoder(bytes.NewReader(value)).Decode(&jti); err != nil {
		return false
	}
	sum := sha256.Sum256([]byte(jti))
	return base64.RawURLEncoding.EncodeToString(sum[:]) == fingerprint
}

type tracer struct {
	tokens map[string]*TracedToken // by fingerprint, or of JWTs without one by client and version
	keys   []Holder
	more   int
	last   time.Time // of those beyond
}

func (t *tracer) read(ctx context.Context, dir string, from time.Time, skip func([]byte) bool, take func(*Entry)) error {
	c, err := seekTime(dir, from)
	if err != nil {
		return err
	}
	defer c.close()
	c.skip = func(line []byte) bool { return ctx.Err() == nil && skip(line) }
	for {
		e, err := c.next()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF):
			return nil
		case fatal(err):
			return err
		case err == nil:
			take(&e)
		}
	}
}

// seekTime begins with the segment that holds the first entry after a time.
func seekTime(dir string, from time.Time) (*cursor, error) {
	c, err := seek(dir, 0)
	if err != nil {
		return nil, err
	}
	numbers, err := segments(dir)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	for _, n := range slices.Backward(numbers) {
		if head, err := firstEntry(filepath.Join(dir, segmentName(n))); err == nil && head.Time.Before(from) {
			c.number = n - 1
			break
		}
	}
	return c, nil
}

// take adds what an entry says; from and to bound hand-overs that belong to no
// token of the issuer. Zero: no bound.
func (t *tracer) take(e *Entry, from, to time.Time) {
	outside := !to.IsZero() && e.Time.After(to) || e.Time.Before(from) && cmp.Or(e.Last, e.Time).Before(from)
	switch e.Type { //nolint:exhaustive // the others tell nothing of tokens
	case TokenMinted:
		if one := t.token(e); one != nil {
			one.Issued, one.Expires, one.JTI = e.Time, e.Expires, e.JTI
		}
	case TokenHandover, TokenRepeats:
		if e.Fingerprint == "" && outside {
			return
		}
		if one := t.token(e); one != nil {
			one.Expires = cmp.Or(one.Expires, e.Expires)
			one.Holders = hold(one.Holders, e)
		}
	case KeyHandover:
		if !outside {
			t.keys = hold(t.keys, e)
		}
	case TokenRevoked:
		if one := t.tokens[e.Fingerprint]; one != nil {
			one.Revoked = e.Time
		}
	}
}

// token finds or makes the token of an entry; nil: there are too many.
func (t *tracer) token(e *Entry) *TracedToken {
	key := cmp.Or(e.Fingerprint, e.Client+" "+e.Version)
	one := t.tokens[key]
	if one == nil && len(t.tokens) >= maxTraced {
		if e.Type == TokenMinted {
			t.more++
		}
		if t.last.Before(e.Expires) {
			t.last = e.Expires
		}
		return nil
	}
	if one == nil {
		one = &TracedToken{Client: e.Client, Version: e.Version, Fingerprint: e.Fingerprint, JTI: e.JTI, Scope: e.Scope, Audience: e.Audience}
		t.tokens[key] = one
	}
	return one
}

// hold counts a hand-over with those of the same process.
func hold(list []Holder, e *Entry) []Holder {
	if e.Caller == nil {
		return list
	}
	first, last := cmp.Or(e.First, e.Time), cmp.Or(e.Last, e.Time)
	for i := range list {
		h := &list[i]
		if h.Caller == *e.Caller && h.Surface == e.Code && h.Client == e.Client && h.Version == e.Version {
			h.Count += max(e.Count, 1)
			if h.Last.Before(last) {
				h.Last = last
			}
			return list
		}
	}
	if len(list) >= maxHolders {
		return list
	}
	return append(list, Holder{Caller: *e.Caller, Client: e.Client, Version: e.Version, Surface: e.Code, First: first, Last: last, Count: max(e.Count, 1)})
}

// result keeps the tokens that were valid between two times.
func (t *tracer) result(from, to time.Time) Trace {
	out := Trace{More: t.more, Last: t.last, Keys: t.keys}
	for _, one := range t.tokens {
		begins := one.Issued
		if begins.IsZero() && len(one.Holders) > 0 { // a self-signed JWT, or issued before what is kept
			begins = one.Holders[0].First
		}
		if begins.After(to) || !one.Expires.IsZero() && one.Expires.Before(from) {
			continue
		}
		if out.Last.Before(one.Expires) {
			out.Last = one.Expires
		}
		out.Tokens = append(out.Tokens, *one)
	}
	slices.SortFunc(out.Tokens, func(a, b TracedToken) int {
		return cmp.Or(a.Issued.Compare(b.Issued), cmp.Compare(a.Fingerprint, b.Fingerprint))
	})
	return out
}
