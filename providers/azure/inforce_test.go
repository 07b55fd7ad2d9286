package azure

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"credentialbroker/providers"
)

// A version that is to come leaves the one before it in force, for whoever has
// it and for whoever starts meanwhile.
func TestVersionInForce(t *testing.T) {
	f, p := opened(t)
	old := mustFetch(t, p, f.Ref("app"), "")
	reads := func(what string, want providers.Version) {
		t.Helper()
		if b := mustFetch(t, p, f.Ref("app"), ""); b.Version != want {
			t.Errorf("%s: a first read gives %q, want %q", what, b.Version, want)
		}
		if _, err := p.Fetch(t.Context(), f.Ref("app"), want); !errors.Is(err, providers.ErrUnchanged) {
			t.Errorf("%s: %v, want unchanged", what, err)
		}
	}
	fails := func(what string, kind providers.Kind) {
		t.Helper()
		for _, have := range []providers.Version{"", old.Version} {
			_, err := p.Fetch(t.Context(), f.Ref("app"), have)
			if providers.KindOf(err) != kind {
				t.Errorf("%s, having %q: %v, want %s", what, have, err, kind)
			}
		}
	}

	f.Set(t, "app", []byte(`{"n":"2"}`))
	next := f.newest("app")
	next.nbf = time.Now().Unix() + 3600
	reads("the next is to come", old.Version)
	values := f.Calls().Values
	if _, err := p.Fetch(t.Context(), f.Ref("app"), old.Version); !errors.Is(err, providers.ErrUnchanged) || f.Calls().Values != values {
		t.Errorf("%v, and %d values were read", err, f.Calls().Values-values)
	}
	next.enabled = false
	reads("the next is to come and switched off", old.Version)
	_, err := p.Fetch(t.Context(), providers.Ref{Path: "app", Version: providers.Version(next.id)}, "")
	wantKind(t, err, providers.Disabled)
	next.enabled = true

	f.secrets["app"][0].exp = time.Now().Unix() - 1
	fails("and the one in force has expired", providers.Expired)
	f.secrets["app"][0].exp, f.secrets["app"][0].enabled = 0, false
	fails("and the one in force is disabled", providers.NotYetValid)
	f.secrets["app"][0].enabled = true

	f.now-- // a second one to come, of the same second as the first
	f.Set(t, "app", []byte(`{"n":"3"}`))
	f.newest("app").nbf = next.nbf
	reads("two are to come", old.Version)

	next.nbf = time.Now().Unix() - 1
	if b := mustFetch(t, p, f.Ref("app"), old.Version); string(b.Version) != next.id {
		t.Errorf("its time has come, and %q is read", b.Version)
	}
	f.newest("app").nbf = 0
	f.newest("app").exp = time.Now().Unix() - 1
	fails("the newest has expired", providers.Expired)
	f.newest("app").exp, f.newest("app").enabled = 0, false
	fails("the newest is disabled", providers.Disabled)
}

// Who may not list versions learns what is wrong with the newest.
func TestVersionInForceWantsList(t *testing.T) {
	f, p := opened(t)
	old := mustFetch(t, p, f.Ref("app"), "")
	f.Set(t, "app", []byte(`{"n":"2"}`))
	f.newest("app").nbf = time.Now().Unix() + 3600
	f.refuse = func(r *http.Request) *fakeError {
		if strings.HasSuffix(r.URL.Path, "/versions") {
			return &fakeError{status: 403, code: "Forbidden", inner: "ForbiddenByPolicy"}
		}
		return nil
	}
	for _, have := range []providers.Version{"", old.Version} {
		_, err := p.Fetch(t.Context(), f.Ref("app"), have)
		wantKind(t, err, providers.NotYetValid)
	}
}
