package access

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Rules is a client's allow list, compiled. It never changes. The zero value
// allows nothing.
type Rules struct {
	entries []rule
	index   []int // 0, 1, 2 …: Decision.Matched is cut from it
}

// Want is what a caller asks for.
type Want struct {
	Surface  Surface
	Scope    string  // scopes with a space between (RFC 6749 §3.3); "": what there is without asking
	Audience string  // "": as Scope
	Resource string  // RFC 8707; held against the audiences of the entry
	Also     Surface // a second surface that the same entry must give; "": none
	Restart  bool    // it ends while its unit runs, so the entry must say restart
}

// Decision is the answer to a Want. Its slices must not be changed.
type Decision struct {
	Allowed bool
	Entry   int    // the entry that allowed it, from 0; -1 without one
	Scope   string // to ask the issuer for: sorted, each once, a space between; "": the client's default
	// Audience to ask the issuer for: what was wanted; else, if the entry names
	// audiences and no resource was wanted, its first; else "", the client's default.
	Audience string
	Reason   Reason // why not; "" if Allowed
	Matched  []int  // the entries that hold for this caller, whatever it wants
}

// Reason says why nothing is allowed. Of several entries, the one that came
// closest gives it.
type Reason string

// The reasons, from far to close.
const (
	ReasonIdentity  Reason = "identity"  // no entry is for this caller
	ReasonContainer Reason = "container" // one would be, if it said container: allow
	ReasonSurface   Reason = "surface"   // one is, without this surface
	ReasonRestart   Reason = "restart"   // one has it, for what does not end while the unit runs
	ReasonAudience  Reason = "audience"  // audience or resource lies outside of the entry
	ReasonScope     Reason = "scope"     // so does the scope
)

// Decide applies the rules. Entries are tried in order; the first that allows
// it counts. Nothing is allowed without one.
func (r Rules) Decide(c *Caller, w Want) Decision {
	d := Decision{Entry: -1, Reason: ReasonIdentity}
	if c == nil {
		return d
	}
	for i := range r.entries {
		e := &r.entries[i]
		reason := e.identity(c)
		if reason == "" {
			d.Matched = r.match(d.Matched, i)
			if d.Allowed {
				continue
			}
			if reason = e.permits(w, &d); reason == "" {
				d.Allowed, d.Entry, d.Reason = true, i, ""
				continue
			}
		}
		if !d.Allowed && closeness(reason) > closeness(d.Reason) {
			d.Reason = reason
		}
	}
	return d
}

// Surfaces lists what any entry allows c, whatever the scope.
func (r Rules) Surfaces(c *Caller) []Surface {
	var mask surfaceSet
	for i := range r.entries {
		if c != nil && r.entries[i].identity(c) == "" {
			mask |= r.entries[i].surfaces
		}
	}
	var list []Surface
	for i, s := range surfaces() {
		if mask&(1<<i) != 0 {
			list = append(list, s)
		}
	}
	return list
}

// match adds i to matched, without allocating while they follow each other.
func (r Rules) match(matched []int, i int) []int {
	n := len(matched)
	if n == 0 {
		return r.index[i : i+1 : i+1]
	}
	if first := matched[0]; first+n == i {
		return r.index[first : i+1 : i+1]
	}
	return append(matched, i)
}

// closeness orders the reasons.
func closeness(r Reason) int {
	return slices.Index([]Reason{ReasonIdentity, ReasonContainer, ReasonSurface, ReasonRestart, ReasonAudience, ReasonScope}, r)
}

// rule is an Entry whose names are numbers.
type rule struct {
	dead            bool // its error was reported: it matches nobody
	user, group     uint32
	byUser, byGroup bool
	unit, userUnit  string
	container       bool
	executable      string
	surfaces        surfaceSet
	restart         bool
	scopes          []string // may be asked for
	audiences       []string // likewise
	scope, audience string   // for who asks for none; "": the client's default
}

// identity says why e is not for c, or "".
func (e *rule) identity(c *Caller) Reason {
	if e.dead ||
		c.Place != "" && (e.unit != "" || e.userUnit != "" || e.executable != "") ||
		e.byUser && e.user != c.UID ||
		e.byGroup && !inGroup(c, e.group) ||
		e.unit != "" && e.unit != c.Unit ||
		e.userUnit != "" && e.userUnit != c.UserUnit ||
		e.executable != "" && !runs(c, e.executable) {
		return ReasonIdentity
	}
	if c.Container && !e.container {
		return ReasonContainer
	}
	return ""
}

func inGroup(c *Caller, gid uint32) bool {
	_, ok := slices.BinarySearch(c.Groups, gid)
	return ok
}

// runs looks the file up each time: an update of the package replaces it, and
// the service that it restarts must not be locked out.
func runs(c *Caller, path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && c.Exe == Executable{Dev: st.Dev, Ino: st.Ino}
}

// permits says why w is outside of e, or "" and what to ask the issuer for.
func (e *rule) permits(w Want, d *Decision) Reason {
	if e.surfaces&bit(w.Surface) == 0 || w.Also != "" && e.surfaces&bit(w.Also) == 0 {
		return ReasonSurface
	}
	if w.Restart && !e.restart {
		return ReasonRestart
	}
	for _, asked := range [...]string{w.Audience, w.Resource} {
		if asked != "" && !slices.Contains(e.audiences, asked) {
			return ReasonAudience
		}
	}
	scope := e.scope
	if w.Scope != "" {
		if scope = normal(w.Scope, e.scopes); scope == "" {
			return ReasonScope
		}
	}
	d.Scope, d.Audience = scope, w.Audience
	if w.Audience == "" && w.Resource == "" {
		d.Audience = e.audience
	}
	return ""
}

// normal is the scopes of asked, sorted and each once, or "" if one is not in
// allowed.
func normal(asked string, allowed []string) string {
	if slices.Contains(allowed, asked) { // one scope: nothing to sort
		return asked
	}
	list := strings.Split(asked, " ")
	for _, s := range list {
		if !slices.Contains(allowed, s) {
			return ""
		}
	}
	slices.Sort(list)
	return strings.Join(slices.Compact(list), " ")
}
