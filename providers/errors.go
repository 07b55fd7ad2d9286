package providers

import (
	"errors"
	"strings"
	"time"
)

// ErrUnchanged is returned by Fetch when the secret's version is the one that
// the caller has.
var ErrUnchanged = errors.New("unchanged")

// A Kind classifies what went wrong, once, at the boundary to the manager.
type Kind string

// The kinds. Above the adapters code branches on these, never on text.
const (
	NotFound    Kind = "not_found"     // no such secret, mount, version or field
	Denied      Kind = "denied"        // the login works, its policy does not allow this
	LoginFailed Kind = "login_failed"  // the manager refused the broker's own login
	Throttled   Kind = "throttled"     // too many calls; see RetryAfter
	Unavailable Kind = "unavailable"   // unreachable, timeout, sealed, 5xx
	Disabled    Kind = "disabled"      // the version exists and is switched off
	Deleted     Kind = "deleted"       // deleted, perhaps recoverably
	Expired     Kind = "expired"       // past the manager's expiry of the secret
	NotYetValid Kind = "not_yet_valid" // before the manager's start of validity
	Malformed   Kind = "malformed"     // the payload or the answer is not what was promised
	Conflict    Kind = "conflict"      // a Put met another writer
	Unsupported Kind = "unsupported"   // this manager cannot do it
)

// Temporary says whether the same call may succeed later without anybody
// doing something.
func (k Kind) Temporary() bool {
	return k == Throttled || k == Unavailable || k == NotYetValid
}

// An Error is what a Provider returns. Message and Hint are shown to people:
// they hold no secret and no text of the manager's answer beyond an error code.
type Error struct {
	Kind       Kind
	Provider   string        // the kind of manager: vault, aws …
	Ref        Ref           // the secret that was asked for
	Message    string        // what is wrong
	Hint       string        // what to do next; may be empty
	RetryAfter time.Duration // when the manager said so; 0: it did not
	Err        error         // the cause, for errors.Is; never printed
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Provider != "" {
		b.WriteString(e.Provider + ": ")
	}
	if e.Ref.Path != "" {
		b.WriteString(e.Ref.String() + ": ")
	}
	b.WriteString(e.Message)
	if e.Message == "" {
		b.WriteString(strings.ReplaceAll(string(e.Kind), "_", " "))
	}
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf gives the kind of err, Unavailable for an error that has none (a
// context that ended, say), and "" for nil.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Kind
	}
	return Unavailable
}
