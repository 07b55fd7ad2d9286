package providers

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"credentialbroker/internal/secret"
)

// A Condition bounds what Store may do to fields that are there.
type Condition int

// The conditions.
const (
	Any    Condition = iota // they are replaced
	Absent                  // they must not be there: a Conflict
)

// Store is the inverse of Load: it writes values, by the client's own names of
// fields, to where s says that they live. The other fields of those secrets
// stay, and a secret that does not exist yet is created with named fields. The
// zero Secret removes the field. It
// returns the version that Load now gives, empty while a secret of s is still
// missing.
//
// Everything is read and checked before anything is written. Of several
// secrets, those before a failed one (in the order of Refs) have been written;
// the error says so. A Conflict with another writer is returned: to try again
// is the caller's decision. Values stay the caller's to wipe. A field that was
// no string in the manager's JSON is one afterwards, with the same value here.
func Store(ctx context.Context, p Provider, s Spec, values map[string]secret.Secret, when Condition) (Version, error) {
	return store(ctx, p, s, values, when, func(Version) bool { return true })
}

// Replace is Store for somebody who has seen version have, and decided by it;
// empty: that a secret of s is missing. Another version is a Conflict, and
// nothing is written.
func Replace(ctx context.Context, p Provider, s Spec, values map[string]secret.Secret, have Version) (Version, error) {
	return store(ctx, p, s, values, Any, func(now Version) bool { return now == have })
}

func store(ctx context.Context, p Provider, s Spec, values map[string]secret.Secret, when Condition, expected func(Version) bool) (Version, error) {
	w, ok := p.(Writer)
	if !ok {
		return "", &Error{Kind: Unsupported, Ref: s.Ref, Message: "this secrets manager is read-only here",
			Hint: "store the value with the manager's own tools, or name a secret of another manager"}
	}
	refs := s.Refs()
	if len(refs) == 0 {
		return "", &Error{Kind: NotFound, Message: "no secret is named"}
	}
	changes, err := s.changes(values)
	if err != nil {
		return "", err
	}
	read := make(map[Ref]Bundle, len(refs))
	defer func() { wipeAll(read) }()
	for _, r := range refs {
		b, err := fetch(ctx, p, r, "")
		if err != nil && KindOf(err) != NotFound {
			return "", err
		}
		if err == nil {
			read[r] = b
		}
	}
	if !expected(versionOf(refs, func(r Ref) Version { return read[r].Version })) {
		return "", &Error{Kind: Conflict, Ref: s.Ref, Message: "somebody else has stored a version meanwhile", Hint: "nothing was written: look at it, and begin again"}
	}
	puts := make(map[Ref]map[string]secret.Secret, len(changes))
	defer func() {
		for _, fields := range puts {
			fields[Whole].Wipe() // merge has made it
		}
	}()
	for r, list := range changes {
		if puts[r], err = merge(r, read[r].Fields, list, when); err != nil {
			return "", err
		}
	}
	return put(ctx, w, refs, read, puts)
}

// A change is one field on its way to a secret.
type change struct {
	name  string // the client's
	key   string // there; Whole: the only value, or the field called name
	value secret.Secret
}

// changes says what goes to which secret.
func (s Spec) changes(values map[string]secret.Secret) (map[Ref][]change, error) {
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	out := map[Ref][]change{}
	for _, name := range names {
		f, placed := s.Fields[name]
		r := s.ref(f)
		refuse := func(message, hint string) error {
			return &Error{Kind: Unsupported, Ref: r, Message: message, Hint: hint}
		}
		switch {
		case name == Whole:
			return nil, refuse("a value without a name cannot be stored", "name the field")
		case r.Path == "":
			return nil, refuse(fmt.Sprintf("no secret is named for %s", name), "give the client a secret, or fields: { "+name+": { path: … } }")
		case r.Version != "":
			return nil, refuse("the configuration pins this secret to one version, so a new one would not be read", "remove version")
		case !placed && s.takes(name):
			return nil, refuse(fmt.Sprintf("the field %q there is another field of this client, so that %s would overwrite it", name, name),
				"say where "+name+" is, with fields: { "+name+": … }")
		case !placed:
			f.Key = name
		}
		out[r] = append(out[r], change{name, f.Key, values[name]})
	}
	return out, nil
}

// takes says whether a field of the main secret is read under another name.
func (s Spec) takes(key string) bool {
	for _, f := range s.Fields {
		if f.Key == key && s.ref(f) == s.Ref {
			return true
		}
	}
	return false
}

// merge puts the changes into the fields of a secret, so that find and pick
// read them back. from may be nil: the secret is new.
func merge(r Ref, from map[string]secret.Secret, list []change, when Condition) (map[string]secret.Secret, error) {
	refuse := func(format string, args ...any) (map[string]secret.Secret, error) {
		return nil, &Error{Kind: Malformed, Ref: r, Message: fmt.Sprintf(format, args...),
			Hint: "give the field a secret of its own, as in fields: { " + list[0].name + ": { path: … } }"}
	}
	out := make(map[string]secret.Secret, len(from)+len(list))
	for name, v := range from {
		out[name] = v
	}
	_, whole := from[Whole]
	taken := map[string]string{}
	for _, c := range list {
		switch {
		case whole && c.key != Whole:
			return refuse("the secret is one value, not a JSON object with fields: there is no room for %s", c.name)
		case !whole && c.key == Whole:
			c.key = c.name
		}
		if other, ok := taken[c.key]; ok {
			return refuse("%s and %s are the same field there", other, c.name)
		}
		if when == Absent && !from[c.key].Empty() {
			return nil, &Error{Kind: Conflict, Ref: r, Message: "somebody else has stored " + c.name + " meanwhile"}
		}
		taken[c.key] = c.name
		if c.value == (secret.Secret{}) {
			if c.key == Whole {
				return refuse("the secret is one value, which cannot be removed")
			}
			delete(out, c.key)
			continue
		}
		out[c.key] = c.value
		if c.key == Whole {
			if looksLikeObject(c.value) {
				return refuse("the secret is one value, and %s begins as a JSON object does: it would be read as fields", c.name)
			}
			var err error
			if out[c.key], err = keepNewline(c.value); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func looksLikeObject(v secret.Secret) (yes bool) {
	_ = v.Use(func(b []byte) error { // a wiped value is found when it is written
		yes = bytes.HasPrefix(bytes.TrimSpace(b), []byte{'{'})
		return nil
	})
	return yes
}

// keepNewline clones v, and doubles a line end that pick would drop.
func keepNewline(v secret.Secret) (secret.Secret, error) {
	b, err := v.AppendTo(make([]byte, 0, v.Len()+1))
	if len(b) > 0 && b[len(b)-1] == '\n' {
		b = append(b, '\n')
	}
	return secret.New(b), err
}

// put writes, and gives the version of the whole.
func put(ctx context.Context, w Writer, refs []Ref, read map[Ref]Bundle, puts map[Ref]map[string]secret.Secret) (Version, error) {
	now := make(map[Ref]Version, len(refs))
	var written []string
	for _, r := range refs {
		now[r] = read[r].Version
		if fields, ok := puts[r]; ok {
			var err error
			if now[r], err = w.Put(ctx, r, fields, now[r]); err != nil {
				return "", halfway(err, written)
			}
			written = append(written, r.String())
		}
	}
	return versionOf(refs, func(r Ref) Version { return now[r] }), nil
}

// versionOf is the version of the whole, as Load has it; empty: a part is
// missing.
func versionOf(refs []Ref, of func(Ref) Version) Version {
	versions := make([]string, len(refs))
	for i, r := range refs {
		if versions[i] = string(of(r)); versions[i] == "" {
			return ""
		}
	}
	return Version(strings.Join(versions, "+"))
}

// halfway says which secrets are written already.
func halfway(err error, written []string) error {
	if len(written) == 0 {
		return err
	}
	out := Error{Kind: KindOf(err), Message: "the write failed", Err: err}
	if e, ok := err.(*Error); ok { //nolint:errorlint // an adapter's own error, which is not wrapped
		out = *e
	}
	out.Message += "; already written: " + strings.Join(written, ", ")
	return &out
}
