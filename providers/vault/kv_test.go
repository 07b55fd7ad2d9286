package vault

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

const check = "GET secret/metadata/app"

func TestMetadataDenied(t *testing.T) {
	f, p := started(t)
	f.denied["secret/metadata/app"] = true
	for range 10 {
		if _, err := p.Fetch(t.Context(), app, "1"); !errors.Is(err, providers.ErrUnchanged) {
			t.Fatal(err)
		}
	}
	f.want(t, map[string]int{check: 1, read: 10, login: 1})
	f.clk.pass(61 * time.Minute)
	f.change(func() { clear(f.denied) })
	for range 3 {
		if _, err := p.Fetch(t.Context(), app, "1"); !errors.Is(err, providers.ErrUnchanged) {
			t.Fatal(err)
		}
	}
	f.want(t, map[string]int{check: 4, read: 10})
}

func TestTimesOfAVersion(t *testing.T) {
	f, p := started(t)
	now := f.clk.Now().Wall
	f.engines["secret"].secrets["app"][0].deletion = now.Add(time.Hour) // delete_version_after
	b, err := p.Fetch(t.Context(), app, "")
	if err != nil {
		t.Fatal(err)
	}
	if !b.Created.Equal(now) || !b.Expires.Equal(now.Add(time.Hour)) {
		t.Errorf("created %v, expires %v", b.Created, b.Expires)
	}
	if _, err := p.Fetch(t.Context(), app, "1"); !errors.Is(err, providers.ErrUnchanged) {
		t.Error(err)
	}
	f.clk.pass(2 * time.Hour)
	_, err = p.Fetch(t.Context(), app, "1")
	wantKind(t, err, providers.Deleted, "undelete -versions=1")
}

func TestPinnedVersion(t *testing.T) {
	f, p := started(t)
	f.set("app", `{"n":2}`)
	pinned := providers.Ref{Path: "app", Version: "1"}
	if _, err := p.Fetch(t.Context(), pinned, "1"); !errors.Is(err, providers.ErrUnchanged) {
		t.Error(err)
	}
	f.want(t, map[string]int{check: 1, read: 0})
	f.change(func() { f.engines["secret"].secrets["app"][0].destroyed = true })
	_, err := p.Fetch(t.Context(), pinned, "1")
	wantKind(t, err, providers.Deleted, "version 1 is destroyed")
	for _, v := range []providers.Version{"3", "0", "-1", "latest", "99999999999"} {
		_, err := p.Fetch(t.Context(), providers.Ref{Path: "app", Version: v}, "")
		wantKind(t, err, providers.NotFound, "no such version")
	}
}

func TestPlaces(t *testing.T) {
	f, p := started(t)
	for _, ok := range []providers.Ref{{Path: "/app/"}, {Mount: "secret", Path: "app"}, {Mount: "/secret/", Path: "app"}} {
		b, err := p.Fetch(t.Context(), ok, "")
		if err != nil {
			t.Errorf("%v: %v", ok, err)
		}
		b.Wipe()
	}
	n := f.count("")
	for _, bad := range []providers.Ref{{}, {Path: "../app"}, {Path: "a/./b"}, {Path: "a//b"}, {Mount: "../auth", Path: "token"}, {Path: "a\nb"}} {
		_, err := p.Fetch(t.Context(), bad, "")
		wantKind(t, err, providers.NotFound, "mount and path")
		_, err = p.(providers.Writer).Put(t.Context(), bad, nil, "")
		wantKind(t, err, providers.NotFound, "mount and path")
	}
	f.want(t, map[string]int{"": n})
	f.set("odd ?%#é", `{}`)
	if _, err := p.Fetch(t.Context(), providers.Ref{Path: "odd ?%#é"}, ""); err != nil {
		t.Error(err)
	}
}

// kv1 is a fake with an engine of version 1.
func kv1(t *testing.T) (*fake, providers.Provider) {
	f := newFake(t)
	f.engines["secret"].v1 = true
	f.set("app", `{"client_secret":"`+providertest.Canary+`"}`)
	return f, open(t, f.config(t), f.clk)
}

func TestKV1VersionsLiveAsLongAsTheProcess(t *testing.T) {
	f, p := kv1(t)
	version := func(p providers.Provider) providers.Version {
		b, err := p.Fetch(t.Context(), app, "")
		if err != nil {
			t.Fatal(err)
		}
		return b.Version
	}
	v := version(p)
	if version(p) != v || !strings.HasPrefix(string(v), "v1-") || len(v) != 19 {
		t.Errorf("versions %q and %q", v, version(p))
	}
	// The same content under another process's key: nobody can try out contents.
	if other := version(open(t, f.config(t), f.clk)); other == v {
		t.Error("the version is a plain hash of the secret")
	}
	_, err := p.Fetch(t.Context(), providers.Ref{Path: "app", Version: v}, "")
	wantKind(t, err, providers.Unsupported, "keeps no versions")
}

func TestWrongEngineVersion(t *testing.T) {
	f, p := kv1(t)
	c := f.config(t)
	c.KV = 0
	_, err := open(t, c, f.clk).Fetch(t.Context(), app, "")
	wantKind(t, err, providers.NotFound, "needs kv: 1")
	f.set("data/app", `{"data":{}}`)
	_, err = open(t, c, f.clk).Fetch(t.Context(), app, "")
	wantKind(t, err, providers.Malformed, "kv")
	f.change(func() { f.engines["secret"].v1 = false })
	_, err = p.Fetch(t.Context(), app, "")
	wantKind(t, err, providers.NotFound, "leave kv: 1 out")
}

func TestPutContents(t *testing.T) {
	text := "q\" b\\ n\n t\t c\x01 é😀 <&>  " + providertest.Canary
	for _, c := range []struct {
		name string
		make func(*testing.T) (*fake, providers.Provider)
	}{{"KV 2", started}, {"KV 1", kv1}} {
		t.Run(c.name, func(t *testing.T) {
			f, p := c.make(t)
			w := p.(providers.Writer)
			v, err := w.Put(t.Context(), providers.Ref{Path: "new"}, map[string]secret.Secret{"a": secret.FromString(text), "b": {}}, "")
			if err != nil {
				t.Fatal(err)
			}
			var kept map[string]string
			if err := json.Unmarshal(f.engines["secret"].secrets["new"][0].data, &kept); err != nil || kept["a"] != text || len(kept) != 2 {
				t.Errorf("%v: kept %q", err, kept)
			}
			_, err = w.Put(t.Context(), providers.Ref{Path: "new"}, map[string]secret.Secret{providers.Whole: secret.FromString("x")}, v)
			wantKind(t, err, providers.Unsupported, "named fields")
			_, err = w.Put(t.Context(), providers.Ref{Path: "new"}, map[string]secret.Secret{"a": secret.FromString(providertest.Canary + "\xff")}, v)
			wantKind(t, err, providers.Unsupported, `"a" is not text`)
			_, err = w.Put(t.Context(), providers.Ref{Path: "new", Version: v}, nil, v)
			wantKind(t, err, providers.Unsupported, "pinned")
			_, err = w.Put(t.Context(), providers.Ref{Path: "new"}, nil, "nonsense")
			wantKind(t, err, providers.Conflict, "")
			f.change(func() { f.denied["secret/new"], f.denied["secret/data/new"] = true, true })
			_, err = w.Put(t.Context(), providers.Ref{Path: "new"}, nil, v)
			wantKind(t, err, providers.Denied, "")
			_, err = w.Put(t.Context(), providers.Ref{Mount: "nowhere", Path: "new"}, nil, "")
			wantKind(t, err, providers.NotFound, "")
		})
	}
}

// What another writer stores between a write to KV version 1 and the reading
// back is a conflict.
func TestPutKV1Race(t *testing.T) {
	f, p := kv1(t)
	f.afterWrite = `{"client_secret":"another"}`
	b, err := p.Fetch(t.Context(), app, "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.(providers.Writer).Put(t.Context(), app, map[string]secret.Secret{"client_secret": secret.FromString("mine")}, b.Version)
	wantKind(t, err, providers.Conflict, "another writer")
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"data":{"data":{"a":"b"},"metadata":{"version":3,"created_time":"2026-01-02T03:04:05Z","deletion_time":"","destroyed":false}}}`))
	f.Add([]byte(`{"data":{"data":null,"metadata":{"version":3,"deletion_time":"2026-01-02T03:04:05Z"}}}`))
	f.Add([]byte(`{"data":{"current_version":2,"versions":{"2":{"deletion_time":"","destroyed":false}}}}`))
	f.Add([]byte(`{"auth":{"client_token":"hvs.x","lease_duration":3600,"renewable":true,"token_type":"service"}}`))
	f.Add([]byte(`{"auth":{"client_token":"\u0000\"","lease_duration":-1e30}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		told := func(err error) {
			var e *providers.Error
			if err != nil && (!errors.As(err, &e) || e.Kind == "" || len(err.Error()) > 400 || strings.ContainsAny(err.Error(), "\n\r")) {
				t.Errorf("%T %v", err, err)
			}
		}
		v, err := parseValue(body)
		told(err)
		if err == nil {
			_, err = providers.Parse(v.Data)
			told(err)
		}
		_, err = parseMetadata(body)
		told(err)
		got, err := parseLogin(body)
		told(err)
		if got.ttl < 0 || strings.ContainsFunc(string(got.token), notPrintable) {
			t.Errorf("token of %d bytes for %v", len(got.token), got.ttl)
		}
		told(absent(body, app))
	})
}
