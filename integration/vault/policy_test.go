//go:build real

package vault_test

import (
	"errors"
	"testing"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	policies "credentialbroker/internal/policy"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/vault"
)

// The policies that broker setup prints, in a Vault that enforces them: what
// each allows works, and nothing else does.
func TestLeastPolicies(t *testing.T) {
	real.Row(t, area, server, "policies of broker setup, KV 1 and 2, reading and writing: enough, and no more")
	for _, kv := range []int{1, 2} {
		c := start(t, kv == 1)
		c.Set(t, "app", []byte(`{"a":"1"}`))
		c.Set(t, "app2", []byte(`{"a":"other"}`))
		for _, write := range []bool{false, true} {
			least, err := policies.For("vault", policies.Place{Path: "team/app", KV: kv, Role: "broker"}, write)
			if err != nil {
				t.Fatal(err)
			}
			c.must(t, "PUT", "sys/policies/acl/broker", obj{"policy": least.Text})
			p := open(t, c.config(c.approle(t)), clock.System{})
			b := wantRead(t, p, c.Ref("app"))
			if _, err := p.Fetch(t.Context(), c.Ref("app"), b.Version); !errors.Is(err, providers.ErrUnchanged) {
				t.Error(err)
			}
			_, end, err := p.(providers.Perishable).LoginEnd(t.Context())
			if err != nil || !end.IsZero() {
				t.Errorf("KV %d: the secret-id never ends: %v, %v", kv, end, err)
			}
			wantKind(t, p, c.Ref("app2"), providers.Denied, "")
			_, err = p.(providers.Writer).Put(t.Context(), c.Ref("app"), map[string]secret.Secret{"a": secret.FromString("2")}, b.Version)
			if write && err != nil || !write && providers.KindOf(err) != providers.Denied {
				t.Errorf("KV %d, writing %v: %v", kv, write, err)
			}
			login := c.must(t, "POST", "auth/approle/login", obj{"role_id": c.roleID, "secret_id": c.secretID})
			token := map[string]string{"X-Vault-Token": str(login, "auth", "client_token")}
			for method, paths := range map[string][]string{
				"DELETE": {"secret/data/team/app", "secret/metadata/team/app", "secret/team/app"},
				"GET":    {"secret/metadata/team?list=true", "secret/team?list=true", "sys/policies/acl", "auth/approle/role/broker/secret-id"},
				"POST":   {"auth/approle/role/broker/secret-id", "secret/undelete/team/app", "secret/data/team/app2", "secret/team/app2"},
			} {
				for _, path := range paths {
					if status, answer := c.call(t, method, path, nil, token); status != 403 {
						t.Errorf("KV %d, writing %v: %s %s gives %d %v", kv, write, method, path, status, answer)
					}
				}
			}
		}
	}
}

// What broker check --live says of the ends of logins.
func TestLoginEnd(t *testing.T) {
	real.Row(t, area, server, "the end of a secret-id, a token and a certificate is known")
	c := start(t, false)
	c.must(t, "PUT", "sys/policies/acl/broker", obj{"policy": policyOf(t)})
	c.must(t, "POST", "auth/approle/role/broker", obj{"token_policies": "broker", "secret_id_ttl": "48h"})
	c.secretID = str(c.must(t, "POST", "auth/approle/role/broker/secret-id", nil), "data", "secret_id")
	end := func(auth vault.Auth) (string, float64) {
		t.Helper()
		what, at, err := open(t, c.config(auth), clock.System{}).(providers.Perishable).LoginEnd(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if at.IsZero() {
			return what, 0
		}
		return what, at.Sub(clock.System{}.Now().Wall).Hours()
	}
	if what, hours := end(c.approle(t)); what != "the secret-id" || hours < 47 || hours > 49 {
		t.Error(what, hours)
	}
	p := open(t, c.config(c.approle(t)), clock.System{}).(providers.Perishable)
	if _, _, err := p.LoginEnd(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.must(t, "POST", "auth/approle/role/broker/secret-id/destroy", obj{"secret_id": c.secretID})
	if _, _, err := p.LoginEnd(t.Context()); providers.KindOf(err) != providers.LoginFailed {
		t.Error("the secret-id is gone:", err)
	}
	for _, k := range []struct {
		make       obj
		least, max float64
	}{
		{obj{"ttl": "3h", "renewable": false}, 2.9, 3.1},
		{obj{"ttl": "3h"}, 0, 0},
		{obj{"ttl": "3h", "explicit_max_ttl": "5h"}, 4.9, 5.1},
	} {
		token := str(c.must(t, "POST", "auth/token/create", k.make), "auth", "client_token")
		if what, hours := end(vault.Auth{TokenFile: file(t, token)}); hours < k.least || hours > k.max {
			t.Errorf("%v: %s in %.1f hours", k.make, what, hours)
		}
	}
	cert, key := keyPair(t, "broker.host")
	if what, hours := end(vault.Auth{Cert: &vault.Cert{CertFile: cert, KeyFile: key}}); what == "" || hours <= 0 {
		t.Error(what, hours)
	}
}

func policyOf(t *testing.T) string {
	t.Helper()
	p, err := policies.For("vault", policies.Place{Path: "team/app", Role: "broker"}, false)
	if err != nil {
		t.Fatal(err)
	}
	return p.Text
}
