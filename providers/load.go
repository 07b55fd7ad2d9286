package providers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"credentialbroker/internal/secret"
)

// A Spec says where the fields of one client's bundle are: in one secret, or
// gathered from several.
type Spec struct {
	Ref `yaml:",inline"`
	// Fields renames fields (client_id: clientId) or takes them from other
	// secrets (api_key: {path: …}). Fields of the main secret that are not
	// named here keep their own names.
	Fields map[string]Field `yaml:"fields,omitempty" json:"fields,omitempty"`
}

// A Field is the place of one field.
type Field struct {
	// Key is the field's name there. Empty: the secret's only value, or the
	// field of the same name as here.
	Key string `yaml:"key,omitempty" json:"key,omitempty"`
	// Ref is the secret that holds it. An empty path: the main one.
	Ref `yaml:",inline"`
}

// Refs lists the distinct secrets of s, the main one first.
func (s Spec) Refs() []Ref {
	var refs []Ref
	if s.Path != "" {
		refs = append(refs, s.Ref)
	}
	names := make([]string, 0, len(s.Fields))
	for name := range s.Fields {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if r := s.ref(s.Fields[name]); !slices.Contains(refs, r) {
			refs = append(refs, r)
		}
	}
	return refs
}

func (s Spec) ref(f Field) Ref {
	if f.Path == "" {
		return s.Ref
	}
	r := f.Ref
	if r.Mount == "" {
		r.Mount = s.Mount
	}
	return r
}

// At is s with every secret pinned to its part of v, a version that Load has
// given for s; ok is false if v is none, or if s pins a version itself.
func (s Spec) At(v Version) (pinned Spec, ok bool) {
	refs := s.Refs()
	parts := splitVersion(v, len(refs))
	if len(refs) == 1 {
		parts = []Version{v}
	}
	at := map[Ref]Version{}
	for i, r := range refs {
		if parts[i] == "" || r.Version != "" || !validVersion(parts[i]) {
			return Spec{}, false
		}
		at[r] = parts[i]
	}
	pinned = Spec{Ref: s.Ref, Fields: make(map[string]Field, len(s.Fields))}
	pinned.Version = at[s.Ref]
	for name, f := range s.Fields {
		r := s.ref(f)
		r.Version = at[r]
		f.Ref = r
		pinned.Fields[name] = f
	}
	return pinned, true
}

// Gathered says whether the bundle comes from more than one secret, so that
// its version is a tuple and a change of it has to settle.
func (s Spec) Gathered() bool { return len(s.Refs()) > 1 }

// Load reads the bundle that s describes. The version of a gathered bundle
// lists the version of each secret; when one has changed, all are read again,
// so that what is returned was read in one go. It returns ErrUnchanged when
// the version is have.
func Load(ctx context.Context, p Provider, s Spec, have Version) (Bundle, error) {
	refs := s.Refs()
	if len(refs) == 0 {
		return Bundle{}, &Error{Kind: NotFound, Message: "no secret is named"}
	}
	if len(refs) == 1 {
		b, err := fetch(ctx, p, refs[0], have)
		if err != nil {
			return Bundle{}, err
		}
		return s.pick(map[Ref]Bundle{refs[0]: b}, b.Version)
	}
	had := splitVersion(have, len(refs))
	changed := false
	read := make(map[Ref]Bundle, len(refs))
	for i, r := range refs {
		b, err := fetch(ctx, p, r, had[i])
		switch {
		case errors.Is(err, ErrUnchanged):
			continue
		case err != nil:
			wipeAll(read)
			return Bundle{}, err
		}
		changed, read[r] = true, b
	}
	if !changed {
		return Bundle{}, ErrUnchanged
	}
	versions := make([]string, len(refs))
	for i, r := range refs {
		if _, ok := read[r]; !ok {
			b, err := fetch(ctx, p, r, "")
			if err != nil {
				wipeAll(read)
				return Bundle{}, err
			}
			read[r] = b
		}
		versions[i] = string(read[r].Version)
	}
	return s.pick(read, Version(strings.Join(versions, "+")))
}

// fetch checks what an adapter, a plug-in command perhaps, has answered.
func fetch(ctx context.Context, p Provider, r Ref, have Version) (Bundle, error) {
	b, err := p.Fetch(ctx, r, have)
	if err != nil {
		return Bundle{}, err
	}
	if !validVersion(b.Version) {
		b.Wipe()
		return Bundle{}, &Error{Kind: Malformed, Ref: r, Message: "the secrets manager gave no usable version",
			Hint: "a version is 1 to 128 characters of A-Z a-z 0-9 . _ : -"}
	}
	if b.Version == have {
		b.Wipe()
		return Bundle{}, ErrUnchanged
	}
	return b, nil
}

func validVersion(v Version) bool {
	if len(v) == 0 || len(v) > 128 {
		return false
	}
	return strings.Trim(string(v), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-") == ""
}

func splitVersion(v Version, n int) []Version {
	parts := make([]Version, n)
	if s := strings.Split(string(v), "+"); len(s) == n {
		for i := range s {
			parts[i] = Version(s[i])
		}
	}
	return parts
}

func wipeAll(read map[Ref]Bundle) {
	for _, b := range read {
		b.Wipe()
	}
}

// pick names the fields. What it does not pick, it wipes.
func (s Spec) pick(read map[Ref]Bundle, v Version) (Bundle, error) {
	defer wipeAll(read) // picked fields are clones
	out := Bundle{Version: v, Fields: map[string]secret.Secret{}}
	for _, b := range read {
		if b.Created.After(out.Created) {
			out.Created = b.Created
		}
		if b.NotBefore.After(out.NotBefore) {
			out.NotBefore = b.NotBefore
		}
		if !b.Expires.IsZero() && (out.Expires.IsZero() || b.Expires.Before(out.Expires)) {
			out.Expires = b.Expires
		}
	}
	moved := map[string]bool{}
	for name, f := range s.Fields {
		ref := s.ref(f)
		from := read[ref].Fields
		key, err := f.find(name, from)
		if err != nil {
			out.Wipe()
			err.Ref = ref
			return Bundle{}, err
		}
		if ref == s.Ref {
			moved[key] = true
		}
		if out.Fields[name], _ = from[key].Clone(); key == Whole {
			out.Fields[name] = trimNewline(out.Fields[name])
		}
	}
	for name, value := range read[s.Ref].Fields {
		if _, taken := out.Fields[name]; taken || moved[name] {
			continue
		}
		if name == Whole {
			out.Wipe()
			return Bundle{}, &Error{Kind: Malformed, Ref: s.Ref, Message: "the secret is one value, not a JSON object with fields",
				Hint: "name the field that it is, as in fields: { api_key: { path: " + s.Path + " } }"}
		}
		out.Fields[name], _ = value.Clone()
	}
	return out, nil
}

// trimNewline drops the line end that editors and shells leave behind a secret
// that is a single value.
func trimNewline(s secret.Secret) secret.Secret {
	b, err := s.AppendTo(nil)
	if err != nil || len(b) == 0 || b[len(b)-1] != '\n' {
		clear(b)
		return s
	}
	s.Wipe()
	n := len(b) - 1
	if n > 0 && b[n-1] == '\r' {
		n--
	}
	defer clear(b)
	return secret.New(b[:n])
}

// find gives the name in from of the field called name here.
func (f Field) find(name string, from map[string]secret.Secret) (string, *Error) {
	want := f.Key
	if want == "" {
		if _, ok := from[Whole]; ok {
			return Whole, nil
		}
		want = name
	}
	if _, ok := from[want]; ok {
		return want, nil
	}
	have := make([]string, 0, len(from))
	for k := range from {
		have = append(have, k)
	}
	slices.Sort(have)
	return "", &Error{Kind: Malformed, Message: fmt.Sprintf("the secret has no field %q for %s", want, name),
		Hint: "it has: " + strings.Join(have, ", ")}
}
