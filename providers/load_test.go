package providers

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/secret"
)

// shelf is a provider of fixed bundles that counts how often a value is read.
type shelf struct {
	bundles map[Ref]Bundle
	reads   map[Ref]int
	given   []secret.Secret
}

func (s *shelf) Fetch(_ context.Context, ref Ref, have Version) (Bundle, error) {
	b, ok := s.bundles[ref]
	switch {
	case !ok:
		return Bundle{}, &Error{Kind: NotFound, Ref: ref}
	case b.Version == have:
		return Bundle{}, ErrUnchanged
	}
	s.reads[ref]++
	out := b
	out.Fields = map[string]secret.Secret{}
	for name, v := range b.Fields {
		out.Fields[name], _ = v.Clone()
		s.given = append(s.given, out.Fields[name])
	}
	return out, nil
}

func (*shelf) Close() error { return nil }

func newShelf() *shelf {
	main := bundle("1", "clientId", "id", "client_secret", "s3cret")
	main.Created, main.Expires = time.Unix(100, 0), time.Unix(900, 0)
	other := bundle("a.b", "key", "k")
	other.Created, other.NotBefore, other.Expires = time.Unix(200, 0), time.Unix(300, 0), time.Unix(800, 0)
	return &shelf{reads: map[Ref]int{}, bundles: map[Ref]Bundle{
		{Path: "main"}: main, {Path: "other"}: other, {Path: "key"}: bundle("9", Whole, "line\r\n"),
		{Path: "bad version"}: bundle("a+b", "a", "1"), {Mount: "m", Path: "main"}: bundle("5", "a", "1"), {Mount: "m", Path: "other"}: bundle("6", "key", "2"),
	}}
}

func TestRefs(t *testing.T) {
	main, other := Ref{Mount: "m", Path: "p"}, Ref{Path: "q", Version: "2"}
	for _, c := range []struct {
		spec     Spec
		want     []Ref
		gathered bool
	}{
		{Spec{}, nil, false},
		{Spec{Ref: main}, []Ref{main}, false},
		{Spec{Ref: main, Fields: map[string]Field{"a": {Key: "x"}}}, []Ref{main}, false},
		{Spec{Ref: main, Fields: map[string]Field{"b": {Ref: other}, "a": {Ref: Ref{Mount: "n", Path: "q"}}, "c": {Ref: other}}},
			[]Ref{main, {Mount: "n", Path: "q"}, {Mount: "m", Path: "q", Version: "2"}}, true},
		{Spec{Fields: map[string]Field{"a": {Ref: other}}}, []Ref{other}, false},
	} {
		if got := c.spec.Refs(); !reflect.DeepEqual(got, c.want) || c.spec.Gathered() != c.gathered {
			t.Errorf("%+v: %v, gathered: %v", c.spec, got, c.spec.Gathered())
		}
	}
}

func TestLoad(t *testing.T) {
	gathered := map[string]Field{"client_id": {Key: "clientId"}, "api_key": {Key: "key", Ref: Ref{Path: "other"}}}
	for _, c := range []struct {
		name    string
		spec    Spec
		version Version
		want    map[string]string
		kind    Kind
		says    string
	}{
		{"as it is", Spec{Ref: Ref{Path: "main"}}, "1", map[string]string{"clientId": "id", "client_secret": "s3cret"}, "", ""},
		{"renamed", Spec{Ref: Ref{Path: "main"}, Fields: map[string]Field{"client_id": {Key: "clientId"}}}, "1",
			map[string]string{"client_id": "id", "client_secret": "s3cret"}, "", ""},
		{"one field under two names", Spec{Ref: Ref{Path: "main"}, Fields: map[string]Field{"a": {Key: "clientId"}, "b": {Key: "clientId"}}}, "1",
			map[string]string{"a": "id", "b": "id", "client_secret": "s3cret"}, "", ""},
		{"swapped", Spec{Ref: Ref{Path: "main"}, Fields: map[string]Field{"clientId": {Key: "client_secret"}, "client_secret": {Key: "clientId"}}}, "1",
			map[string]string{"client_secret": "id", "clientId": "s3cret"}, "", ""},
		{"gathered", Spec{Ref: Ref{Path: "main"}, Fields: gathered}, "1+a.b",
			map[string]string{"client_id": "id", "client_secret": "s3cret", "api_key": "k"}, "", ""},
		{"mount is inherited", Spec{Ref: Ref{Mount: "m", Path: "main"}, Fields: map[string]Field{"key": {Ref: Ref{Path: "other"}}}}, "5+6",
			map[string]string{"a": "1", "key": "2"}, "", ""},
		{"one value, named", Spec{Fields: map[string]Field{"api_key": {Ref: Ref{Path: "key"}}}}, "9", map[string]string{"api_key": "line"}, "", ""},
		{"one value, not named", Spec{Ref: Ref{Path: "key"}}, "", nil, Malformed, "fields: { api_key: { path: key } }"},
		{"no such field", Spec{Ref: Ref{Path: "main"}, Fields: map[string]Field{"a": {Key: "x"}}}, "", nil, Malformed, "it has: clientId, client_secret"},
		{"no such second secret", Spec{Ref: Ref{Path: "main"}, Fields: map[string]Field{"a": {Ref: Ref{Path: "x"}}}}, "", nil, NotFound, "x"},
		{"no secret", Spec{}, "", nil, NotFound, "no secret is named"},
		{"a version that lists versions", Spec{Ref: Ref{Path: "bad version"}}, "", nil, Malformed, "no usable version"},
	} {
		s := newShelf()
		b, err := Load(t.Context(), s, c.spec, "")
		if KindOf(err) != c.kind || err != nil && !strings.Contains(err.Error(), c.says) || b.Version != c.version {
			t.Errorf("%s: version %q, want %q; %v, want %q", c.name, b.Version, c.version, err, c.says)
		}
		wantFields(t, c.name, b.Fields, c.want)
		for _, v := range s.given { // whatever was read is wiped or was cloned
			if err := v.Use(func([]byte) error { return nil }); v.Len() > 0 && !errors.Is(err, secret.ErrWiped) {
				t.Errorf("%s: a value that was read is left", c.name)
			}
		}
	}
	b, err := Load(t.Context(), newShelf(), Spec{Ref: Ref{Path: "main"}, Fields: gathered}, "")
	if err != nil || b.Created.Unix() != 200 || b.NotBefore.Unix() != 300 || b.Expires.Unix() != 800 {
		t.Errorf("the dates of a gathered bundle: %v %v %v, %v", b.Created, b.NotBefore, b.Expires, err)
	}
}

// A change of one secret reads all of them again: what is returned was read in
// one go. Without a change nothing is read.
func TestLoadTuple(t *testing.T) {
	main, other := Ref{Path: "main"}, Ref{Path: "other"}
	spec := Spec{Ref: main, Fields: map[string]Field{"api_key": {Key: "key", Ref: other}}}
	for _, c := range []struct {
		have       Version
		version    Version // empty: unchanged
		main, othr int
	}{
		{"", "1+a.b", 1, 1},
		{"1+a.b", "", 0, 0},
		{"0+a.b", "1+a.b", 1, 1},
		{"1+x", "1+a.b", 1, 1},
		{"1", "1+a.b", 1, 1},
		{"1+a.b+c", "1+a.b", 1, 1},
	} {
		s := newShelf()
		b, err := Load(t.Context(), s, spec, c.have)
		if b.Version != c.version || (c.version == "") != errors.Is(err, ErrUnchanged) {
			t.Errorf("have %q: version %q, %v", c.have, b.Version, err)
		}
		if s.reads[main] != c.main || s.reads[other] != c.othr {
			t.Errorf("have %q: values read %v", c.have, s.reads)
		}
	}
}

// An adapter that does not notice is not trusted to.
func TestLoadComparesVersions(t *testing.T) {
	b := bundle("7", "a", "1")
	careless := scripted(func(Ref, Version) (Bundle, error) { return b, nil })
	if _, err := Load(t.Context(), careless, Spec{Ref: Ref{Path: "x"}}, "7"); !errors.Is(err, ErrUnchanged) {
		t.Errorf("%v, want ErrUnchanged", err)
	}
	if err := b.Fields["a"].Use(func([]byte) error { return nil }); !errors.Is(err, secret.ErrWiped) {
		t.Errorf("%v, want ErrWiped", err)
	}
}
