//go:build real

package aws

import (
	"crypto/rand"
	"encoding/json"
	"slices"
	"testing"

	"credentialbroker/integration/real"
	"credentialbroker/internal/policy"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

// The policies that broker setup prints: what each allows works, what it does
// not is denied. moto holds a policy's actions against a call, and not its
// resource, for which it takes a star alone: the name of the one secret is
// tested in the text.
func TestLeastPolicies(t *testing.T) {
	real.Row(t, "provider aws", server, "policies of broker setup, reading and writing: actions enough, and no more (resources are not enforced)")
	m := newManager(t, startMoto(t))
	works := func(document string) (read, write bool) {
		name := "app-" + rand.Text()
		m.Set(t, name, []byte(`{"a":"1"}`))
		m.unenforced(func() { m.iam("PutUserPolicy", "UserName", "broker", "PolicyName", "all", "PolicyDocument", document) })
		p := m.Open(t, providertest.Options{})
		b, err := p.Fetch(t.Context(), m.Ref(name), "")
		if err == nil {
			_, err = p.Fetch(t.Context(), m.Ref(name), "another")
		}
		if read = err == nil; !read && providers.KindOf(err) != providers.Denied {
			t.Error(err)
		}
		_, err = p.(providers.Writer).Put(t.Context(), m.Ref(name), map[string]secret.Secret{"a": secret.FromString("2")}, b.Version)
		if err != nil && read && providers.KindOf(err) != providers.Denied {
			t.Error(err)
		}
		return read, err == nil
	}
	for _, write := range []bool{false, true} {
		least, err := policy.For("aws", policy.Place{Path: "app", Region: "eu-west-1", Account: "123456789012"}, write)
		if err != nil {
			t.Fatal(err)
		}
		document := func(actions []string) string {
			var d struct {
				Version   string
				Statement []map[string]any
			}
			if err := json.Unmarshal([]byte(least.Text), &d); err != nil || len(d.Statement) != 1 || d.Statement[0]["Resource"] != "arn:aws:secretsmanager:eu-west-1:123456789012:secret:app-??????" {
				t.Fatal(err, least.Text)
			}
			d.Statement[0]["Resource"] = "*"
			if actions != nil {
				d.Statement[0]["Action"] = actions
			}
			text, _ := json.Marshal(d)
			return string(text)
		}
		if read, writes := works(document(nil)); !read || writes != write {
			t.Errorf("%s reads %v, writes %v", least.Text, read, writes)
		}
		for i, action := range least.Actions {
			if !write && action == "secretsmanager:DescribeSecret" {
				continue // without it values are read to notice changes
			}
			if read, writes := works(document(slices.Delete(slices.Clone(least.Actions), i, i+1))); read && writes == write {
				t.Errorf("writing %v: it works without %s", write, action)
			}
		}
	}
}
