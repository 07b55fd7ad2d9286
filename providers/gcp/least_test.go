package gcp

import (
	"slices"
	"testing"

	"credentialbroker/internal/policy"
	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

// TestLeastRoles: the policies of package policy are enough, and no more than
// that. The stand-in enforces them; no emulator of Secret Manager does.
func TestLeastRoles(t *testing.T) {
	works := func(permissions []string) (read, write bool) {
		w := newWire(t)
		w.Allow(permissions)
		p := w.Open(t, providertest.Options{})
		_, err := p.Fetch(t.Context(), app, "")
		if read = err == nil; !read {
			wantKind(t, err, providers.Denied, "")
		}
		_, err = put(t, p, app, "2", "1")
		if err != nil {
			wantKind(t, err, providers.Denied, "")
		}
		return read, err == nil
	}
	for _, write := range []bool{false, true} {
		least, err := policy.For("gcp", policy.Place{Path: "app"}, write)
		if err != nil {
			t.Fatal(err)
		}
		if read, writes := works(least.Actions); !read || writes != write {
			t.Errorf("%v: reads %v, writes %v", least.Actions, read, writes)
		}
		for i := range least.Actions {
			if read, writes := works(slices.Delete(slices.Clone(least.Actions), i, i+1)); read && writes == write {
				t.Errorf("it works without %s", least.Actions[i])
			}
		}
	}
}
