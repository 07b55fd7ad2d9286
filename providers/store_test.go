package providers_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/file"
)

type fieldMap = map[string]string

type fieldPlaces = map[string]providers.Field

func at(path, key string) providers.Field {
	return providers.Field{Key: key, Ref: providers.Ref{Path: path}}
}

func secrets(m fieldMap) map[string]secret.Secret {
	out := map[string]secret.Secret{}
	for k, v := range m {
		out[k] = secret.FromString(v)
	}
	return out
}

// A writable is a manager that can be filled before the test.
type writable interface {
	providers.Provider
	providers.Writer
}

// managers are the stores that the cases run with: one in memory, one that
// encodes and parses.
func managers(t *testing.T) map[string]func() writable {
	return map[string]func() writable{
		"memory": func() writable { return fake.NewStore() },
		"file": func() writable {
			dir := filepath.Join(t.TempDir(), "store")
			text, err := file.Create(dir)
			if err != nil {
				t.Fatal(err)
			}
			identity := filepath.Join(t.TempDir(), "identity")
			if err := text.Use(func(b []byte) error { return os.WriteFile(identity, b, 0o600) }); err != nil {
				t.Fatal(err)
			}
			p, err := file.Open(file.Config{Path: dir, IdentityFile: identity, InsecureIdentity: true}, clock.System{})
			if err != nil {
				t.Fatal(err)
			}
			return p.(writable)
		},
	}
}

func fill(t *testing.T, p writable, have map[string]fieldMap) {
	t.Helper()
	for path, fields := range have {
		if _, err := p.Put(t.Context(), providers.Ref{Path: path}, secrets(fields), ""); err != nil {
			t.Fatal(err)
		}
	}
}

func content(t *testing.T, b providers.Bundle) fieldMap {
	t.Helper()
	out := fieldMap{}
	for k, v := range b.Fields {
		raw, err := v.AppendTo(nil)
		if err != nil {
			t.Fatal(err)
		}
		out[k] = string(raw)
	}
	return out
}

// What Store writes, Load reads; and nothing else changes.
func TestStoreThenLoad(t *testing.T) {
	main := providers.Ref{Path: "main"}
	app := map[string]fieldMap{"main": {"clientId": "id", "client_secret": "old", "note": "n"}}
	for _, c := range []struct {
		name  string
		spec  providers.Spec
		have  map[string]fieldMap
		store fieldMap
		want  fieldMap            // as Load gives it
		raw   map[string]fieldMap // as the secrets are afterwards
	}{
		{"into a secret that there is", providers.Spec{Ref: main}, app, fieldMap{"private_key": "-----BEGIN\nk\n"},
			fieldMap{"clientId": "id", "client_secret": "old", "note": "n", "private_key": "-----BEGIN\nk\n"},
			map[string]fieldMap{"main": {"clientId": "id", "client_secret": "old", "note": "n", "private_key": "-----BEGIN\nk\n"}}},
		{"a new secret", providers.Spec{Ref: main}, nil, fieldMap{"private_key": `{"kty":"RSA"}`, "certificate": "c"},
			fieldMap{"private_key": `{"kty":"RSA"}`, "certificate": "c"}, map[string]fieldMap{"main": {"private_key": `{"kty":"RSA"}`, "certificate": "c"}}},
		{"renamed", providers.Spec{Ref: main, Fields: fieldPlaces{"client_id": {Key: "clientId"}, "private_key": {Key: "pem"}}}, app,
			fieldMap{"client_id": "2", "private_key": "k"}, fieldMap{"client_id": "2", "client_secret": "old", "note": "n", "private_key": "k"},
			map[string]fieldMap{"main": {"clientId": "2", "client_secret": "old", "note": "n", "pem": "k"}}},
		{"swapped names", providers.Spec{Ref: main, Fields: fieldPlaces{"a": {Key: "b"}, "b": {Key: "a"}}}, map[string]fieldMap{"main": {"a": "1", "b": "2"}},
			fieldMap{"a": "x"}, fieldMap{"a": "x", "b": "1"}, map[string]fieldMap{"main": {"a": "1", "b": "x"}}},
		{"one value", providers.Spec{Ref: main, Fields: fieldPlaces{"api_key": at("key", "")}},
			map[string]fieldMap{"main": {"client_id": "id"}, "key": {providers.Whole: "old\n"}}, fieldMap{"api_key": "new"},
			fieldMap{"client_id": "id", "api_key": "new"}, map[string]fieldMap{"main": {"client_id": "id"}, "key": {providers.Whole: "new"}}},
		{"one value with a line end", providers.Spec{Fields: fieldPlaces{"private_key": at("key", "")}},
			map[string]fieldMap{"key": {providers.Whole: "old"}}, fieldMap{"private_key": "k\r\n"},
			fieldMap{"private_key": "k\r\n"}, map[string]fieldMap{"key": {providers.Whole: "k\r\n\n"}}},
		{"one value in the main secret", providers.Spec{Ref: main, Fields: fieldPlaces{"api_key": {}}},
			map[string]fieldMap{"main": {providers.Whole: "old"}}, fieldMap{"api_key": "new"}, fieldMap{"api_key": "new"}, map[string]fieldMap{"main": {providers.Whole: "new"}}},
		{"a secret of its own with fields, no key", providers.Spec{Ref: main, Fields: fieldPlaces{"api_key": at("key", "")}},
			map[string]fieldMap{"main": {"client_id": "id"}, "key": {"api_key": "old", "more": "m"}}, fieldMap{"api_key": "{new"},
			fieldMap{"client_id": "id", "api_key": "{new"}, map[string]fieldMap{"key": {"api_key": "{new", "more": "m"}}},
		{"a new secret of its own", providers.Spec{Ref: main, Fields: fieldPlaces{"private_key": at("key", "")}},
			map[string]fieldMap{"main": {"client_id": "id"}}, fieldMap{"private_key": "k\n"},
			fieldMap{"client_id": "id", "private_key": "k\n"}, map[string]fieldMap{"key": {"private_key": "k\n"}}},
		{"two fields in one new secret", providers.Spec{Ref: main, Fields: fieldPlaces{"private_key": at("pair", ""), "certificate": at("pair", "cert")}},
			map[string]fieldMap{"main": {"client_id": "id"}}, fieldMap{"private_key": "k", "certificate": "c"},
			fieldMap{"client_id": "id", "private_key": "k", "certificate": "c"}, map[string]fieldMap{"pair": {"private_key": "k", "cert": "c"}}},
		{"a name that another secret has too", providers.Spec{Ref: main, Fields: fieldPlaces{"api_key": at("key", "client_secret")}},
			map[string]fieldMap{"main": {"client_secret": "old"}, "key": {"client_secret": "k"}}, fieldMap{"client_secret": "new"},
			fieldMap{"client_secret": "new", "api_key": "k"}, map[string]fieldMap{"main": {"client_secret": "new"}, "key": {"client_secret": "k"}}},
		{"into several secrets", providers.Spec{Ref: main, Fields: fieldPlaces{"private_key": at("key", "pem")}},
			map[string]fieldMap{"main": {"client_id": "id"}, "key": {"pem": "old"}}, fieldMap{"private_key": "k", "key_id": "7"},
			fieldMap{"client_id": "id", "key_id": "7", "private_key": "k"}, map[string]fieldMap{"main": {"client_id": "id", "key_id": "7"}, "key": {"pem": "k"}}},
	} {
		for kind, open := range managers(t) {
			p := open()
			fill(t, p, c.have)
			v, err := providers.Store(t.Context(), p, c.spec, secrets(c.store), providers.Any)
			if err != nil {
				t.Errorf("%s, %s: %v", c.name, kind, err)
				continue
			}
			b, err := providers.Load(t.Context(), p, c.spec, "")
			if err != nil || b.Version != v || !maps.Equal(content(t, b), c.want) {
				t.Errorf("%s, %s: stored as %q, loaded %q %v, %v", c.name, kind, v, b.Version, content(t, b), err)
			}
			if _, err := providers.Load(t.Context(), p, c.spec, v); !errors.Is(err, providers.ErrUnchanged) {
				t.Errorf("%s, %s: the version %q is not the one that Load has: %v", c.name, kind, v, err)
			}
			for path, want := range c.raw {
				b, err := p.Fetch(t.Context(), providers.Ref{Path: path}, "")
				if err != nil || !maps.Equal(content(t, b), want) {
					t.Errorf("%s, %s: %s holds %q, want %q; %v", c.name, kind, path, content(t, b), want, err)
				}
			}
		}
	}
}

// The main secret may come later than the key: the public key is what one
// registers to get a client_id.
func TestStoreBeforeTheRestIsThere(t *testing.T) {
	p := fake.NewStore()
	spec := providers.Spec{Ref: providers.Ref{Path: "main"}, Fields: fieldPlaces{"private_key": at("key", "")}}
	v, err := providers.Store(t.Context(), p, spec, secrets(fieldMap{"private_key": "k"}), providers.Any)
	if v != "" || err != nil || p.Stats().Puts != 1 {
		t.Fatalf("%q, %v, %+v", v, err, p.Stats())
	}
	if v, err = providers.Store(t.Context(), p, spec, secrets(fieldMap{"client_id": "id"}), providers.Any); v != "1+1" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
}

// readOnly hides that a store can write.
type readOnly struct{ providers.Provider }

func TestStoreRefuses(t *testing.T) {
	main := providers.Ref{Path: "main"}
	have := map[string]fieldMap{"main": {"clientId": "id"}, "whole": {providers.Whole: "x"}}
	for _, c := range []struct {
		name  string
		spec  providers.Spec
		store fieldMap
		kind  providers.Kind
		says  string
	}{
		{"a pinned secret", providers.Spec{Ref: providers.Ref{Path: "main", Version: "1"}}, fieldMap{"a": "1"}, providers.Unsupported, "remove version"},
		{"a pinned field", providers.Spec{Ref: main, Fields: fieldPlaces{"a": {Ref: providers.Ref{Path: "key", Version: "2"}}}}, fieldMap{"a": "1"}, providers.Unsupported, "key@2: "},
		{"no secret", providers.Spec{}, fieldMap{"a": "1"}, providers.NotFound, "no secret is named"},
		{"no secret for this field", providers.Spec{Fields: fieldPlaces{"a": at("key", "")}}, fieldMap{"b": "1"}, providers.Unsupported, "no secret is named for b"},
		{"no name", providers.Spec{Ref: main}, fieldMap{"": "1"}, providers.Unsupported, "without a name"},
		{"another field's place", providers.Spec{Ref: main, Fields: fieldPlaces{"client_id": {Key: "clientId"}}}, fieldMap{"clientId": "1"}, providers.Unsupported, "would overwrite it"},
		{"two fields in one place", providers.Spec{Ref: main, Fields: fieldPlaces{"a": {Key: "x"}, "b": {Key: "x"}}}, fieldMap{"a": "1", "b": "2"}, providers.Malformed, "a and b are the same field"},
		{"two fields in one value", providers.Spec{Fields: fieldPlaces{"a": at("whole", ""), "b": at("whole", "")}}, fieldMap{"a": "1", "b": "2"}, providers.Malformed, "a and b are the same field"},
		{"a named field in one value", providers.Spec{Ref: providers.Ref{Path: "whole"}}, fieldMap{"a": "1"}, providers.Malformed, "no room for a"},
		{"a field with a key in one value", providers.Spec{Fields: fieldPlaces{"a": at("whole", "x")}}, fieldMap{"a": "1"}, providers.Malformed, "fields: { a: { path: … } }"},
		{"an object as one value", providers.Spec{Fields: fieldPlaces{"a": at("whole", "")}}, fieldMap{"a": " {}"}, providers.Malformed, "read as fields"},
	} {
		p := fake.NewStore()
		fill(t, p, have)
		_, err := providers.Store(t.Context(), p, c.spec, secrets(c.store), providers.Any)
		if providers.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %s, %q", c.name, err, c.kind, c.says)
		}
		if p.Stats().Puts != len(have) {
			t.Errorf("%s: something was written", c.name)
		}
	}
	_, err := providers.Store(t.Context(), readOnly{fake.NewStore()}, providers.Spec{Ref: main}, secrets(fieldMap{"a": "1"}), providers.Any)
	if providers.KindOf(err) != providers.Unsupported || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("a manager that cannot write: %v", err)
	}
}

// racing changes a secret between the read and the write.
type racing struct {
	*fake.Store
	path string
}

func (r racing) Put(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret, expect providers.Version) (providers.Version, error) {
	if ref.Path == r.path {
		r.Set(r.path, fieldMap{"other": "writer"})
	}
	return r.Store.Put(ctx, ref, fields, expect)
}

func TestStoreMeetsAnotherWriter(t *testing.T) {
	for path, written := range map[string]string{"main": "", "key": "already written: main"} {
		p := racing{fake.NewStore(), path}
		fill(t, p.Store, map[string]fieldMap{"main": {"client_id": "id"}, "key": {"pem": "old"}})
		spec := providers.Spec{Ref: providers.Ref{Path: "main"}, Fields: fieldPlaces{"private_key": at("key", "pem")}}
		_, err := providers.Store(t.Context(), p, spec, secrets(fieldMap{"private_key": "k", "key_id": "7"}), providers.Any)
		if providers.KindOf(err) != providers.Conflict || !strings.Contains(err.Error(), written) || strings.Contains(err.Error(), "already") != (written != "") {
			t.Errorf("%s: %v", path, err)
		}
		b, err := p.Fetch(t.Context(), providers.Ref{Path: path}, "")
		if err != nil || content(t, b)["other"] != "writer" {
			t.Errorf("%s: the other writer's version was replaced; %v", path, err)
		}
	}
}

// Replace writes only over the version that was seen, or over nothing.
func TestReplace(t *testing.T) {
	p := fake.NewStore()
	spec := providers.Spec{Ref: providers.Ref{Path: "main"}, Fields: fieldPlaces{"api_key": at("key", "key")}}
	put := func(have providers.Version) (providers.Version, error) {
		return providers.Replace(t.Context(), p, spec, secrets(fieldMap{"client_id": "id", "api_key": "k"}), have)
	}
	for _, c := range []struct{ have, want providers.Version }{{"1+1", ""}, {"", "1+1"}, {"", ""}, {"1", ""}, {"1+1", "2+2"}, {"1+1", ""}} {
		v, err := put(c.have)
		if v != c.want || (providers.KindOf(err) == providers.Conflict) != (c.want == "") {
			t.Errorf("over %q: %q, %v, want %q", c.have, v, err, c.want)
		}
	}
	b, err := providers.Load(t.Context(), p, spec, "")
	if err != nil || b.Version != "2+2" {
		t.Errorf("version %q, %v", b.Version, err)
	}
}

func TestStoreWhileTheManagerIsDown(t *testing.T) {
	p := fake.NewStore()
	fill(t, p, map[string]fieldMap{"main": {"client_id": "id"}})
	for _, kind := range []providers.Kind{providers.Unavailable, providers.Denied, providers.Deleted} {
		p.SetFault(kind)
		if _, err := providers.Store(t.Context(), p, providers.Spec{Ref: providers.Ref{Path: "main"}}, secrets(fieldMap{"a": "1"}), providers.Any); providers.KindOf(err) != kind {
			t.Errorf("%s: %v", kind, err)
		}
	}
	p.SetFault("")
	if n := p.Stats().Faults; n != 3 {
		t.Errorf("%d calls for three: something was tried after a failed read", n)
	}
	b, err := p.Fetch(t.Context(), providers.Ref{Path: "main"}, "")
	if err != nil || len(b.Fields) != 1 {
		t.Errorf("%v, %v", content(t, b), err)
	}
}

func TestStoreLeavesTheCallersValues(t *testing.T) {
	p := fake.NewStore()
	values := secrets(fieldMap{"a": "1"})
	if _, err := providers.Store(t.Context(), p, providers.Spec{Ref: providers.Ref{Path: "main"}}, values, providers.Any); err != nil {
		t.Fatal(err)
	}
	if got, err := values["a"].AppendTo(nil); string(got) != "1" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	p.Set("key", fieldMap{providers.Whole: "old"})
	if _, err := providers.Store(t.Context(), p, providers.Spec{Fields: fieldPlaces{"a": at("key", "")}}, values, providers.Any); err != nil || values["a"].Use(func([]byte) error { return nil }) != nil {
		t.Errorf("one value: %v", err)
	}
	values["a"].Wipe()
	if _, err := providers.Store(t.Context(), p, providers.Spec{Ref: providers.Ref{Path: "main"}}, values, providers.Any); err == nil || p.Stats().Puts != 2 {
		t.Errorf("a wiped value was stored: %v", err)
	}
}

// The zero Secret removes a field; one that was wiped does not.
func TestStoreRemoves(t *testing.T) {
	spec := providers.Spec{Ref: providers.Ref{Path: "main"}, Fields: fieldPlaces{"key": {Key: "pem"}, "one": at("one", "")}}
	for name, open := range managers(t) {
		t.Run(name, func(t *testing.T) {
			p := open()
			fill(t, p, map[string]fieldMap{"main": {"pem": "old", "pending": "new"}, "one": {providers.Whole: "x"}})
			values := map[string]secret.Secret{"key": secret.FromString("new"), "pending": {}, "was never there": {}}
			if _, err := providers.Store(t.Context(), p, spec, values, providers.Any); err != nil {
				t.Fatal(err)
			}
			b, err := p.Fetch(t.Context(), providers.Ref{Path: "main"}, "")
			if err != nil {
				t.Fatal(err)
			}
			if got := content(t, b); len(got) != 1 || got["pem"] != "new" {
				t.Errorf("there is %v, want the new key alone", got)
			}
			if _, err := providers.Store(t.Context(), p, spec, map[string]secret.Secret{"one": {}}, providers.Any); providers.KindOf(err) != providers.Malformed {
				t.Errorf("a secret's only value was removed: %v", err)
			}
			wiped := secret.FromString("w")
			wiped.Wipe()
			if _, err := providers.Store(t.Context(), p, spec, map[string]secret.Secret{"key": wiped}, providers.Any); err == nil {
				t.Error("a wiped value was stored or removed the field")
			}
		})
	}
}
