package azure

import (
	"slices"
	"testing"

	"credentialbroker/internal/policy"
	"credentialbroker/providers"
)

// TestLeastRole: the policies of package policy are enough, and no more than
// that: without any of their actions something is denied. The fake enforces
// them; no emulator of Key Vault does.
func TestLeastRole(t *testing.T) {
	works := func(actions []string) (read, write bool) {
		f, p := opened(t)
		f.store("app", `{"a":"2"}`)
		f.allowed = actions
		b, err := p.Fetch(t.Context(), f.Ref("app"), "")
		if err == nil {
			_, err = p.Fetch(t.Context(), f.Ref("app"), "another")
		}
		if read = err == nil; !read {
			wantKind(t, err, providers.Denied)
			return false, false
		}
		_, err = p.Put(t.Context(), f.Ref("app"), one("a", "3"), b.Version)
		if err != nil {
			wantKind(t, err, providers.Denied)
		}
		return true, err == nil
	}
	for _, write := range []bool{false, true} {
		least, err := policy.For("azure", policy.Place{Path: "app", VaultURL: "https://corp.vault.azure.net"}, write)
		if err != nil {
			t.Fatal(err)
		}
		if read, writes := works(least.Actions); !read || writes != write {
			t.Errorf("%v: reads %v, writes %v", least.Actions, read, writes)
		}
		for i := range least.Actions {
			less := slices.Delete(slices.Clone(least.Actions), i, i+1)
			// A reader without readMetadata reads values to notice changes.
			optional := !write && least.Actions[i] == "Microsoft.KeyVault/vaults/secrets/readMetadata/action"
			if read, writes := works(less); read && writes == write && !optional {
				t.Errorf("it works without %s", least.Actions[i])
			}
		}
	}
}
