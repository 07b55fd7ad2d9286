package configs

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"credentialbroker/internal/access"
	"credentialbroker/internal/files"
	"credentialbroker/internal/proxy"
)

// Rules of this file:
//   - a change is wider if somebody may have something that they could not
//     have before; when in doubt it is wider;
//   - allow entries are compared as a set: their order decides nothing.

// A Change is one difference between two configurations.
type Change struct {
	Text string `json:"text"` // client vdab: owner.contact: "a@b" -> "c@d"
	// Wider: it permits more than before, which is an audit event of its own.
	Wider bool `json:"wider"`
}

// Diff lists what changes from old to c, in the order of the keys.
func (c *Config) Diff(old *Config) []Change {
	d := &differ{report: newReport()}
	d.values("", reflect.ValueOf(*old), reflect.ValueOf(*c))
	d.protection(old.Leak, c.Leak)
	return d.changes
}

type differ struct {
	*report
	changes []Change
}

func (d *differ) add(path string, wider bool, format string, args ...any) {
	what := path
	if kind, rest, ok := strings.Cut(path, "."); ok && (kind == "clients" || kind == "providers") {
		name, key, _ := strings.Cut(rest, ".")
		what = strings.TrimSuffix(kind, "s") + " " + name
		if key != "" {
			what += ": " + key
		}
	}
	text := what + ": " + fmt.Sprintf(format, args...)
	if wider {
		text += " (wider)"
	}
	d.changes = append(d.changes, Change{text, wider})
}

func (d *differ) values(path string, old, now reflect.Value) {
	empty := old.Kind() == reflect.Slice && old.Len() == 0 && now.Len() == 0 // whether it is written or not
	if empty || reflect.DeepEqual(old.Interface(), now.Interface()) {
		return
	}
	switch before := old.Interface().(type) {
	case []access.Entry:
		d.allow(path, before, now.Interface().([]access.Entry))
		return
	case []files.Config:
		d.files(path, before, now.Interface().([]files.Config))
		return
	case []proxy.Config:
		d.routes(path, before, now.Interface().([]proxy.Config))
		return
	case Secret:
		d.add(path, true, "%s -> %s", secretText(before), secretText(now.Interface().(Secret)))
		return
	}
	switch old.Kind() {
	case reflect.Struct:
		for _, f := range d.fieldsOf(old.Type()) {
			d.values(join(path, f.name), old.FieldByIndex(f.index), now.FieldByIndex(f.index))
		}
	case reflect.Map:
		d.maps(path, old, now)
	case reflect.Pointer:
		if old.IsNil() || now.IsNil() {
			d.added(path, old.IsNil(), strings.HasPrefix(path, "clients.") && strings.HasSuffix(path, ".loopback")) // a way in
			return
		}
		d.values(path, old.Elem(), now.Elem())
	default:
		d.add(path, wider(path, old, now), "%s -> %s", show(old), show(now))
	}
}

func (d *differ) added(path string, is, wider bool) {
	if is {
		d.add(path, wider, "added")
		return
	}
	d.add(path, false, "removed")
}

func (d *differ) maps(path string, old, now reflect.Value) {
	keys := map[string]bool{}
	for _, v := range append(old.MapKeys(), now.MapKeys()...) {
		keys[v.String()] = true
	}
	// A header may hold a field of the bundle.
	more := path == "clients" || strings.HasSuffix(path, ".headers")
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		key := reflect.ValueOf(name).Convert(old.Type().Key())
		a, b := old.MapIndex(key), now.MapIndex(key)
		switch {
		case !a.IsValid() || !b.IsValid():
			d.added(join(path, name), b.IsValid(), more)
		case more && a.Kind() == reflect.String && a.String() != b.String():
			d.add(join(path, name), true, "%s -> %s", show(a), show(b))
		default:
			d.values(join(path, name), a, b)
		}
	}
}

// wider says whether a list of permissions grew.
func wider(path string, old, now reflect.Value) bool {
	a, ok := old.Interface().([]string)
	b, _ := now.Interface().([]string)
	if !ok {
		return false
	}
	top, rest, _ := strings.Cut(path, ".")
	_, key, _ := strings.Cut(rest, ".")
	switch {
	case top == "admin":
		return !subset(b, a)
	case top != "clients":
	case key == "scopes": // none: no bound
		return len(a) > 0 && (len(b) == 0 || !subset(b, a))
	case key == "audiences", key == "jwt.scopes", key == "jwt.zaaktypes": // none: none
		return !subset(b, a)
	}
	return false
}

func (d *differ) allow(path string, old, now []access.Entry) {
	same := func(list []access.Entry, e access.Entry) bool {
		return slices.ContainsFunc(list, func(o access.Entry) bool { return reflect.DeepEqual(o, e) })
	}
	for i, e := range now {
		if !same(old, e) {
			covered := slices.ContainsFunc(old, func(o access.Entry) bool { return covers(o, e) })
			d.add(path, !covered, "entry %d added: %s", i+1, entryText(e))
		}
	}
	for i, e := range old {
		if !same(now, e) {
			d.add(path, false, "entry %d of before removed: %s", i+1, entryText(e))
		}
	}
}

// covers says whether old already permitted all that e permits.
func covers(old, e access.Entry) bool {
	for _, pair := range [][2]string{{old.User, e.User}, {old.Group, e.Group}, {old.Unit, e.Unit},
		{old.UserUnit, e.UserUnit}, {old.Executable, e.Executable}} {
		if pair[0] != "" && pair[0] != pair[1] {
			return false
		}
	}
	within := func(old, e []string) bool { return old == nil || e != nil && subset(e, old) }
	surfaces := func() bool {
		if old.Surfaces == nil {
			return !slices.Contains(e.Surfaces, access.APIKey)
		}
		return e.Surfaces != nil && subset(e.Surfaces, old.Surfaces)
	}
	return (e.Container == "" || e.Container == old.Container) && (old.Restart || !e.Restart) &&
		within(old.Scopes, e.Scopes) && within(old.Audiences, e.Audiences) && surfaces()
}

func subset[S ~string](a, of []S) bool {
	return !slices.ContainsFunc(a, func(s S) bool { return !slices.Contains(of, s) })
}

func entryText(e access.Entry) string {
	var parts []string
	add := func(key, value string) {
		if value != "" {
			parts = append(parts, key+": "+value)
		}
	}
	add("user", e.User)
	add("group", e.Group)
	add("unit", e.Unit)
	add("user_unit", e.UserUnit)
	add("executable", e.Executable)
	add("container", e.Container)
	if e.Scopes != nil {
		add("scopes", "["+strings.Join(e.Scopes, ", ")+"]")
	}
	if e.Audiences != nil {
		add("audiences", "["+strings.Join(e.Audiences, ", ")+"]")
	}
	if e.Surfaces != nil {
		add("surfaces", strings.ReplaceAll(fmt.Sprint(e.Surfaces), " ", ", "))
	}
	if e.Restart {
		add("restart", "true")
	}
	return "{ " + strings.Join(parts, ", ") + " }"
}

func secretText(s Secret) string {
	refs := s.Refs()
	texts := make([]string, len(refs))
	for i, r := range refs {
		texts[i] = r.String()
	}
	return s.Provider + " " + strings.Join(texts, " + ")
}

func show(v reflect.Value) string {
	if v.IsZero() || v.Kind() == reflect.Slice && v.Len() == 0 {
		return "unset"
	}
	switch x := v.Interface().(type) {
	case fmt.Stringer:
		return x.String()
	case []string:
		return "[" + strings.Join(x, ", ") + "]"
	}
	if v.Kind() == reflect.String {
		return quote(v.String())
	}
	return fmt.Sprint(v.Interface())
}
