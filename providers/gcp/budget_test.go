package gcp

import (
	"errors"
	"testing"
	"time"

	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

// `latest` is consistent in the end only. A number smaller than the one in
// hand is yesterday's, unless that one is gone.
func TestLatestLags(t *testing.T) {
	w := newWire(t)
	w.Server.Set("app", []byte(`{"a":"2"}`))
	p := w.Open(t, providertest.Options{})
	if b := mustFetch(t, p, app); b.Version != "2" {
		t.Fatalf("version %q", b.Version)
	}
	w.Alias("app", "latest", "1")
	before := w.Calls()
	if b, err := p.Fetch(t.Context(), app, "2"); !errors.Is(err, providers.ErrUnchanged) {
		t.Errorf("version %q, %v: want what is in hand", b.Version, err)
	}
	if got := w.Calls(); got.Values-before.Values != 2 || got.Checks != before.Checks {
		t.Errorf("%+v after %+v", got, before)
	}
	if b, err := p.Fetch(t.Context(), app, "1"); !errors.Is(err, providers.ErrUnchanged) {
		t.Errorf("version %q, %v", b.Version, err)
	}
	w.Server.Fault(t, providertest.Disabled, "app") // the newest, which latest does not show yet
	_, err := p.Fetch(t.Context(), app, "2")
	wantKind(t, err, providers.Disabled, "is disabled")

	b, err := p.Fetch(t.Context(), app, "7") // deleted and made anew
	if err != nil || b.Version != "1" {
		t.Errorf("version %q, %v: want the new secret's", b.Version, err)
	}
	pinned := providers.Ref{Path: "app", Version: "1"} // an administrator goes back
	if b, err := p.Fetch(t.Context(), pinned, "2"); err != nil || b.Version != "1" {
		t.Errorf("version %q, %v", b.Version, err)
	}
}

// Of the 600 metadata calls a minute that the whole project has, the broker
// leaves half; what it cannot ask it does without.
func TestMetadataQuota(t *testing.T) {
	w := newWire(t)
	p := w.Open(t, providertest.Options{}).(*manager)
	clk := &manual{}
	p.meta.clk = clk
	for i := range 2 * metadataCalls {
		if got, want := p.meta.spend(), i < metadataCalls; got != want {
			t.Fatalf("call %d: %v", i, got)
		}
	}
	if b := mustFetch(t, p, app); b.Version != "1" || !b.Created.IsZero() {
		t.Errorf("%+v", b)
	}
	w.Server.Fault(t, providertest.Disabled, "app")
	_, err := p.Fetch(t.Context(), app, "")
	wantKind(t, err, providers.Disabled, "disabled or destroyed")
	if n := w.Calls().Checks; n != 0 {
		t.Errorf("%d metadata calls beyond the quota", n)
	}
	clk.add(time.Minute)
	_, err = p.Fetch(t.Context(), app, "")
	wantKind(t, err, providers.Disabled, "version is disabled (")
	if n := w.Calls().Checks; n != 1 {
		t.Errorf("%d metadata calls a minute later", n)
	}
}
