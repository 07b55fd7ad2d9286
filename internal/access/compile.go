package access

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Entry is one line of a client's allow list. All keys that it gives must
// hold; the entries are alternatives. At least one of User, Group, Unit and
// UserUnit is needed.
type Entry struct {
	// User is a user, by name or number; zero: any.
	User string `yaml:"user,omitempty" json:"user,omitempty"`
	// Group is a group that the caller is in, by name or number; zero: any.
	Group string `yaml:"group,omitempty" json:"group,omitempty"`
	// Unit is a unit of the system's service manager, whole: php8.2-fpm.service; zero: any or none.
	Unit string `yaml:"unit,omitempty" json:"unit,omitempty"`
	// UserUnit is a unit of User's own service manager; it needs User, since every user may name a unit so; zero: any or none.
	UserUnit string `yaml:"user_unit,omitempty" json:"user_unit,omitempty"`
	// Executable is the program's absolute path. It narrows another key; an interpreter runs anybody's script; zero: any.
	Executable string `yaml:"executable,omitempty" json:"executable,omitempty"`
	// Container is "allow" for callers inside of a container too; zero: only those outside.
	Container string `yaml:"container,omitempty" json:"container,omitempty"`
	// Scopes that may be asked for, and are when the caller asks for none; zero: the client's (Limits).
	Scopes []string `yaml:"scopes,omitempty" json:"scopes,omitempty"`
	// Audiences and resources that may be asked for; the first is when the caller asks for none; zero: the client's (Limits).
	Audiences []string `yaml:"audiences,omitempty" json:"audiences,omitempty"`
	// Surfaces that may be used; zero: all but api-key. credential needs an entry with Unit alone.
	Surfaces []Surface `yaml:"surfaces,omitempty" json:"surfaces,omitempty"`
	// Restart lets Unit have tokens by LoadCredential=: it is restarted before each ends; zero: only what does not end.
	Restart bool `yaml:"restart,omitempty" json:"restart,omitempty"`
}

// Surface is one way in which something is handed over.
type Surface string

// The surfaces.
const (
	Token      Surface = "token"
	Headers    Surface = "headers"
	APIKey     Surface = "api-key" // only where an entry names it
	JWT        Surface = "jwt"
	Events     Surface = "events"
	Files      Surface = "files"
	Exec       Surface = "exec"
	Proxy      Surface = "proxy"
	Credential Surface = "credential" // to systemd, which fetches it as root: only for entries by unit alone
)

// surfaceSet has a bit for each surface, in the order of surfaces.
type surfaceSet uint16

func surfaces() [9]Surface {
	return [...]Surface{Token, Headers, APIKey, JWT, Events, Files, Exec, Proxy, Credential}
}

// bit is zero for an unknown surface.
func bit(s Surface) surfaceSet {
	for i, known := range surfaces() {
		if s == known {
			return 1 << i
		}
	}
	return 0
}

// Limits is what any entry of a client may allow at most.
type Limits struct {
	Scopes    []string // zero: no limit, and nothing may be asked for unless an entry names it
	Audiences []string // likewise, resources included
}

// EntryError is what is wrong with one entry.
type EntryError struct {
	Entry int    // from 0
	Key   string // as in the configuration; "" for the entry as a whole
	Err   error
}

func (e *EntryError) Error() string {
	if e.Key == "" {
		return fmt.Sprintf("allow entry %d: %v", e.Entry+1, e.Err)
	}
	return fmt.Sprintf("allow entry %d, %s: %v", e.Entry+1, e.Key, e.Err)
}

// Unwrap makes errors.Is(err, ErrUnresolved) work.
func (e *EntryError) Unwrap() error { return e.Err }

// ErrUnresolved is in the chain of errors about a user or group that the
// machine does not know: nothing is wrong with the entry itself.
var ErrUnresolved = errors.New("name not resolved")

// Compile checks the entries and looks their names up. Each error is an
// *EntryError; an entry with one matches nobody, the others work. With n nil
// the form alone is checked, and entries with names match nobody.
func Compile(entries []Entry, l Limits, n Names) (Rules, []error) {
	r := Rules{entries: make([]rule, len(entries)), index: make([]int, len(entries))}
	var errs []error
	for i, e := range entries {
		r.index[i] = i
		c := compiler{entry: i, limits: l, names: n}
		r.entries[i] = c.compile(e)
		r.entries[i].dead = c.unnamed || len(c.errs) > 0
		errs = append(errs, c.errs...)
	}
	return r, errs
}

// compiler gathers the errors of one entry.
type compiler struct {
	entry   int
	limits  Limits
	names   Names
	unnamed bool // a name was not looked up
	errs    []error
}

func (c *compiler) fail(key, format string, args ...any) {
	c.errs = append(c.errs, &EntryError{Entry: c.entry, Key: key, Err: fmt.Errorf(format, args...)})
}

func (c *compiler) compile(e Entry) rule {
	c.form(e)
	r := rule{
		unit: e.Unit, userUnit: e.UserUnit, executable: e.Executable, container: e.Container == "allow",
		byUser: e.User != "", byGroup: e.Group != "",
	}
	if c.names == nil {
		c.unnamed = r.byUser || r.byGroup
	} else {
		if r.byUser {
			r.user = c.resolve("user", e.User, c.names.User)
		}
		if r.byGroup {
			r.group = c.resolve("group", e.Group, c.names.Group)
		}
	}
	r.scopes = c.within("scopes", e.Scopes, c.limits.Scopes, isScope)
	r.audiences = c.within("audiences", e.Audiences, c.limits.Audiences, isAudience)
	if len(e.Scopes) > 0 {
		r.scope = normal(strings.Join(e.Scopes, " "), e.Scopes)
	}
	if len(e.Audiences) > 0 {
		r.audience = e.Audiences[0]
	}
	r.surfaces = c.surfaces(e.Surfaces)
	if !e.byUnitAlone() {
		r.surfaces &^= bit(Credential)
	}
	r.restart = e.Restart
	return r
}

// byUnitAlone says whether nothing but the unit decides: what systemd fetches
// for a unit, it fetches as root, before the unit's user or program is there.
func (e *Entry) byUnitAlone() bool {
	return e.Unit != "" && e.User == "" && e.Group == "" && e.Executable == ""
}

// form checks what needs no look at the machine.
func (c *compiler) form(e Entry) {
	if e.User == "" && e.Group == "" && e.Unit == "" && e.UserUnit == "" {
		c.fail("", "it names nobody: give user, group or unit (executable, container, scopes and surfaces only narrow these)")
	}
	_, manager := userManager(e.Unit)
	switch {
	case e.Unit == "":
	case !isUnit(e.Unit) || isSlice(e.Unit):
		c.fail("unit", "%q is no unit that a process can be in: write the whole name, as in php8.2-fpm.service", e.Unit)
	case manager:
		c.fail("unit", "%q is a user's own manager, whose units the user names: write user, and user_unit to narrow it", e.Unit)
	}
	switch {
	case e.UserUnit == "":
	case !isUnit(e.UserUnit) || isSlice(e.UserUnit):
		c.fail("user_unit", "%q is no unit that a process can be in: write the whole name, as in feed.service", e.UserUnit)
	case e.Unit != "":
		c.fail("user_unit", "a process is in a unit or in a user_unit, never in both: make two entries")
	case e.User == "":
		c.fail("user_unit", "every user may name a unit so: add user")
	}
	if e.Executable != "" && (!path.IsAbs(e.Executable) || path.Clean(e.Executable) != e.Executable) {
		c.fail("executable", "%q is no absolute path without detours", e.Executable)
	}
	switch byCredential := e.Surfaces == nil || slices.Contains(e.Surfaces, Credential); {
	case e.Surfaces != nil && byCredential && !e.byUnitAlone():
		c.fail("surfaces", "a credential is fetched by systemd itself, before the unit's user or program is there: write an entry with unit, and without user, group and executable")
	case e.Restart && (!byCredential || !e.byUnitAlone()):
		c.fail("restart", "only a unit that reads a credential is restarted: write an entry with unit alone and the surface credential")
	}
	if e.Container != "" && e.Container != "allow" {
		c.fail("container", "%q is not known: write allow, or leave it out", e.Container)
	}
}

func (c *compiler) resolve(key, name string, find func(string) (uint32, error)) uint32 {
	id, err := find(name)
	if err != nil {
		c.errs = append(c.errs, &EntryError{c.entry, key, unresolved{err}})
	}
	return id
}

// unresolved reads as the error below it.
type unresolved struct{ error }

func (unresolved) Is(target error) bool { return target == ErrUnresolved }
func (u unresolved) Unwrap() error      { return u.error }

// within is what an entry may allow: its own list, which must be inside of the
// limit, or the limit.
func (c *compiler) within(key string, own, limit []string, valid func(string) bool) []string {
	if own == nil {
		return limit
	}
	if len(own) == 0 {
		c.fail(key, "the list is empty: leave the key out, or name what is allowed")
	}
	for _, s := range own {
		switch {
		case !valid(s):
			c.fail(key, "%q is none: it is empty, or has a character that does not belong", s)
		case len(limit) > 0 && !slices.Contains(limit, s):
			c.fail(key, "%q is not among the %s of the client: %s", s, key, strings.Join(limit, ", "))
		}
	}
	return own
}

func (c *compiler) surfaces(own []Surface) (set surfaceSet) {
	known := surfaces()
	if own == nil {
		own = slices.DeleteFunc(known[:], func(s Surface) bool { return s == APIKey })
	}
	if len(own) == 0 {
		c.fail("surfaces", "the list is empty: leave the key out, or name what is allowed")
	}
	for _, s := range own {
		if bit(s) == 0 {
			c.fail("surfaces", "%q is not known: it is one of %v", s, surfaces())
		}
		set |= bit(s)
	}
	return set
}

// isScope follows RFC 6749 §3.3, scope-token.
func isScope(s string) bool { return printable(s) && !strings.ContainsAny(s, `"\`) }

// isAudience takes any printable string: RFC 8707 wants a URI, servers differ.
func isAudience(s string) bool { return printable(s) }

func printable(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
