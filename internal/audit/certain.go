package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// flushed is how long hand-overs may be counted before they are written.
const flushed = 2 * time.Minute

// Uncertain says in words why the log may not hold every token that a client
// got, here, between two times; empty: it holds them all. That is so if nothing
// in the log is damaged, the client had been served before, and the daemon ran
// and could write, all that time. Of self-signed JWTs for one call each there
// are counts alone: there must be none.
func Uncertain(dir, client string, from, to time.Time) (why string, err error) {
	report, err := Verify(dir, nil)
	if err != nil {
		return "", err
	}
	if !report.OK() {
		return "the audit log is damaged: broker audit verify says where", nil
	}
	c, err := seek(dir, 0)
	if err != nil {
		return "", err
	}
	defer c.close()
	u := uncertain{client: client, from: from, to: to}
	mine := []byte(`"client":"` + client + `"`)
	c.skip = func(line []byte) bool { return u.pass(line, mine) }
	for {
		e, err := c.next()
		switch {
		case errors.Is(err, io.EOF):
			return u.result(), nil
		case fatal(err):
			return "", err
		case err == nil:
			u.take(&e)
		}
	}
}

type uncertain struct {
	client   string
	from, to time.Time
	first    time.Time // when the client was served first
	alive    time.Time // of the last entry that a running daemon wrote
	stopped  bool      // in good order, since
	doubt    string    // the first that matters
}

// pass leaves out, undecoded, what says nothing but when it was written.
func (u *uncertain) pass(line, mine []byte) bool {
	if bytes.Contains(line, mine) || bytes.Contains(line, []byte(`"type":"daemon.`)) || bytes.Contains(line, []byte(`"type":"audit.`)) || bytes.Contains(line, []byte(`"type":"clock.`)) {
		return false
	}
	_, rest, _ := bytes.Cut(line, []byte(`"time":"`))
	if text, _, ok := bytes.Cut(rest, []byte{'"'}); ok {
		if t, err := time.Parse(time.RFC3339Nano, string(text)); err == nil {
			u.alive = t
		}
	}
	return true
}

func (u *uncertain) take(e *Entry) {
	last := u.alive
	if !strings.HasPrefix(string(e.Type), "audit.") { // some of those are of a start
		u.alive = e.Time
	}
	switch e.Type { //nolint:exhaustive // the others leave no doubt
	case DaemonStop:
		u.stopped = true
	case DaemonStart:
		switch {
		case last.IsZero():
		case u.stopped:
			u.gap(last, e.Time, "the daemon did not run from %s to %s")
		default:
			u.gap(last.Add(-flushed), e.Time, "the daemon was killed, and what it did last is not on record, from %s to %s")
		}
		u.stopped = false
	case ClockJumped:
		jump, _ := time.ParseDuration(e.Detail["wall"])
		u.gap(e.Time.Add(-jump), e.Time, "the clock was set, or the machine slept, from %s to %s")
	case LogLost:
		u.gap(e.First, e.Last, "the audit log could not be written from %s to %s")
	case LogTorn, LogBroken:
		u.gap(last, e.Time, "the audit log was damaged from %s to %s")
	case BundleInstalled, TokenMinted, TokenHandover, TokenRepeats:
		u.served(e)
	}
}

func (u *uncertain) served(e *Entry) {
	if e.Client != u.client {
		return
	}
	if u.first.IsZero() {
		u.first = e.Time
	}
	switch {
	case e.Fingerprint != "":
	case e.Type == TokenHandover:
		u.gap(e.Time, e.Time, "this host signed JWTs for single calls, which are not recorded one by one, from %s to %s")
	case e.Type == TokenRepeats:
		u.gap(e.Time.Add(-flushed), e.Last, "this host signed JWTs for single calls, which are not recorded one by one, from %s to %s")
	}
}

// gap notes a time of doubt, if it matters.
func (u *uncertain) gap(from, to time.Time, format string) {
	if to.Before(from) { // the clock was set back
		from, to = to, from
	}
	if u.doubt == "" && !from.After(u.to) && !to.Before(u.from) {
		u.doubt = fmt.Sprintf(format, stamp(from), stamp(to))
	}
}

func (u *uncertain) result() string {
	switch {
	case u.first.IsZero():
		return "the audit log does not know " + u.client
	case u.first.After(u.from):
		return fmt.Sprintf("the audit log knows %s from %s on, and the token may be older", u.client, stamp(u.first))
	}
	return u.doubt
}
