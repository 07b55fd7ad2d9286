package policy

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The secret that docs/providers.md speaks of.
var example = Place{Path: "vdab/prod", Region: "eu-west-1", Account: "111122223333", Role: "credential-broker",
	VaultURL: "https://corp-integrations.vault.azure.net", Project: "corp-integrations"}

// TestDocument: the page shows every policy as broker setup prints it.
func TestDocument(t *testing.T) {
	page, err := os.ReadFile("../../docs/providers.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, manager := range []string{"vault", "aws", "azure", "gcp"} {
		for _, write := range []bool{false, true} {
			place := example
			if manager == "azure" || manager == "gcp" {
				place.Path = "vdab-prod"
			}
			if manager == "vault" && write {
				place.Role = ""
			}
			p, err := For(manager, place, write)
			if err != nil {
				t.Fatal(err)
			}
			if block := "```" + p.Language + "\n" + p.Text + "```\n"; !strings.Contains(string(page), block) {
				t.Errorf("docs/providers.md does not show what broker setup prints for %s (writing: %v):\n%s", manager, write, block)
			}
			if p.Language == "json" {
				if err := json.Unmarshal([]byte(p.Text), new(map[string]any)); err != nil {
					t.Errorf("%s: %v", manager, err)
				}
			}
		}
	}
}

// TestOneSecret: no name makes a policy of more than one secret, or a command
// of more than one.
func TestOneSecret(t *testing.T) {
	for _, path := range []string{"*", "vdab/*", "vdab/+/prod", "v?ab", `a" { capabilities = ["sudo"] } path "b`, "a\nb", "a b", "$(id)", "a;id"} {
		for _, manager := range []string{"vault", "aws", "azure", "gcp"} {
			if p, err := For(manager, Place{Path: path}, false); err == nil && (path != "vdab/+/prod" || manager == "vault") {
				t.Errorf("%s: %q is accepted:\n%s", manager, path, p.Text)
			}
		}
	}
	if _, err := For("vualt", Place{Path: "a"}, false); err == nil {
		t.Error("a manager that there is not")
	}
}

func TestPlaces(t *testing.T) {
	for _, c := range []struct {
		manager string
		place   Place
		want    string
	}{
		{"vault", Place{Path: "/a/b/", Mount: "team/kv/"}, `path "team/kv/data/a/b" { capabilities = ["read"] }`},
		{"vault", Place{Path: "a", Role: "r", Auth: "team/approle"}, `path "auth/team/approle/role/r/secret-id/lookup"`},
		{"vault", Place{Path: "a/b", KV: 1}, "path \"secret/a/b\" { capabilities = [\"read\"] }\n"},
		{"aws", Place{Path: "arn:aws:secretsmanager:eu-west-1:1:secret:a-AbCdEf"}, `"Resource": "arn:aws:secretsmanager:eu-west-1:1:secret:a-AbCdEf"`},
		{"aws", Place{Path: "a"}, `"Resource": "arn:aws:secretsmanager:*:*:secret:a-??????"`},
		{"gcp", Place{Path: "projects/p/secrets/s"}, "binding s --project=p "},
	} {
		p, err := For(c.manager, c.place, false)
		if err != nil || !strings.Contains(p.Text, c.want) {
			t.Errorf("%s %+v: %v\n%s", c.manager, c.place, err, p.Text)
		}
	}
	if p, _ := For("vault", Place{Path: "a", KV: 1}, false); strings.Contains(p.Text, "data/") {
		t.Error(p.Text)
	}
}

// A second client's policy, put in force as it says, takes nothing from the
// first one's: a role keeps the policies that it has.
func TestSecondClient(t *testing.T) {
	dir := t.TempDir()
	const vault = `#!/bin/sh
for a; do case $a in -field=token_policies) echo '[default credential-broker-secret-one]'; exit;; esac; done
echo "$@"
`
	if err := os.WriteFile(dir+"/vault", []byte(vault), 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := For("vault", Place{Path: "two", Role: "broker", Namespace: "team"}, false)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-ec", p.Install)
	cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"policy write -namespace=team credential-broker-secret-two policy.hcl\n",
		"write -namespace=team auth/approle/role/broker token_ttl=1h token_policies=default,credential-broker-secret-one,credential-broker-secret-two\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%s\nhas no %s", out, want)
		}
	}
	if strings.Count(string(out), "-namespace=team") != 4 {
		t.Errorf("a command outside of the namespace:\n%s", out)
	}
	one, errOne := For("aws", Place{Path: "vdab/one"}, false)
	two, errTwo := For("aws", Place{Path: "vdab/two"}, false)
	if errOne != nil || errTwo != nil || one.Install == two.Install {
		t.Errorf("one name for two policies: %s", one.Install)
	}
}
