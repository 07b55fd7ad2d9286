package configs

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// corp is the provider that the clients in the documents name.
const corp = `providers:
  corp:
    vault:
      address: https://vault.corp.example:8200
      auth: { approle: { role_id_file: /etc/b/role-id, secret_id_file: /etc/b/secret-id } }
`

func issuerPages(t *testing.T) map[string]string {
	t.Helper()
	names, _ := filepath.Glob("../docs/issuers/*.md")
	if len(names) < 6 {
		t.Fatalf("pages: %v", names)
	}
	pages := map[string]string{}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		pages[name] = string(text)
	}
	return pages
}

// TestServerRecipes loads the client of the recipes for servers with each of
// their allow entries.
func TestServerRecipes(t *testing.T) {
	page, err := os.ReadFile("../docs/servers.md")
	if err != nil {
		t.Fatal(err)
	}
	client := regexp.MustCompile("(?s)```yaml vdab.yaml\n(.*?)```").FindSubmatch(page)
	allow := regexp.MustCompile("(?s)```yaml (\\S+)\\.allow\n(.*?)```").FindAllSubmatch(page, -1)
	if client == nil || len(allow) < 7 {
		t.Fatalf("a client: %v; %d recipes", client != nil, len(allow))
	}
	for _, a := range allow {
		if _, err := load(t, map[string]string{"broker.yaml": corp, "clients.d/vdab.yaml": string(client[1]) + string(a[2])}); err != nil {
			t.Errorf("%s: %v", a[1], err)
		}
	}
}

// TestIssuerExamples loads every configuration in the pages of the issuers, as
// an operator would who copies it. Together they show every preset but those
// that differ in their hosts alone.
func TestIssuerExamples(t *testing.T) {
	block, shown := regexp.MustCompile("(?s)```yaml\n(.*?)```"), map[string]bool{}
	for name, text := range issuerPages(t) {
		for _, m := range block.FindAllStringSubmatch(text, -1) {
			yaml := m[1]
			if !strings.Contains(yaml, "providers:") {
				yaml = corp + yaml
			}
			c, err := load(t, map[string]string{"broker.yaml": yaml})
			if err != nil {
				t.Errorf("%s:\n%s\n%v", name, m[1], err)
				continue
			}
			for _, client := range c.Clients {
				shown[client.Preset] = true
			}
		}
	}
	for _, name := range Presets() {
		if !shown[name] && !strings.HasSuffix(name, "-test") {
			t.Errorf("no page shows a client of the preset %s", name)
		}
	}
}

// TestIssuerPages holds the pages against what there is: each preset has its
// line, each open question names a key that exists.
func TestIssuerPages(t *testing.T) {
	pages := issuerPages(t)
	for _, name := range Presets() {
		if !strings.Contains(pages["../docs/issuers/README.md"], "`"+name+"`") {
			t.Errorf("README.md does not name the preset %s", name)
		}
	}
	for name, text := range pages {
		_, open, found := strings.Cut(text, "## To confirm at first live use\n")
		if !found {
			if filepath.Base(name) != "README.md" {
				t.Errorf("%s does not say what is to be confirmed", name)
			}
			continue
		}
		rows := strings.Split(strings.TrimSpace(open), "\n")
		for _, row := range rows[2:] {
			cells := strings.Split(strings.Trim(row, "| "), "|")
			for _, key := range strings.Split(strings.ReplaceAll(cells[len(cells)-1], "`", ""), ",") {
				if !isKey(reflect.TypeFor[Client](), strings.TrimSpace(key)) {
					t.Errorf("%s: a client has no key %q: %s", name, key, row)
				}
			}
		}
	}
}

func isKey(t reflect.Type, path string) bool {
	first, rest, deeper := strings.Cut(path, ".")
	for _, f := range newReport().fieldsOf(t) {
		if f.name == first {
			if f.typ.Kind() == reflect.Pointer {
				f.typ = f.typ.Elem()
			}
			return !deeper || f.typ.Kind() == reflect.Struct && isKey(f.typ, rest)
		}
	}
	return false
}

// TestIntakeExample loads the configuration in the page of the intake.
func TestIntakeExample(t *testing.T) {
	text, err := os.ReadFile("../docs/intake.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, found := strings.Cut(string(text), "```yaml\n")
	block, _, _ = strings.Cut(block, "```")
	c, err := load(t, map[string]string{"broker.yaml": block})
	if !found || err != nil || c.Providers["corp"].Write != "corp-writer" {
		t.Errorf("%v\n%s", err, block)
	}
}

// TestLeakExample loads what docs/leaks.md says to configure, as an operator
// would who copies it.
func TestLeakExample(t *testing.T) {
	text, err := os.ReadFile("../docs/leaks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, found := strings.Cut(string(text), "```yaml\nleak:\n  organisation:")
	example, _, closed := strings.Cut("leak:\n  organisation:"+example, "```")
	if !found || !closed {
		t.Fatal("docs/leaks.md has no example")
	}
	c, err := load(t, map[string]string{"broker.yaml": corp + example})
	if err != nil {
		t.Fatal(err)
	}
	one := c.Clients["vdab"]
	if one.Leak.Confirmed != "quarantine" || one.Leak.Suspected != "keep-serving" || len(one.LeakContacts) == 0 || one.Hosts != 1 || c.Leak.OnCall.Phone == "" || len(c.Leak.CopyTo) != 1 {
		t.Errorf("%+v, %+v", c.Leak, one)
	}
}

// LeakContacts are what a person gets who has no configuration.
func TestLeakContacts(t *testing.T) {
	for _, c := range LeakContacts() {
		if c.Issuer == "VDAB" && slices.Contains(c.Addresses, "ict_iam@vdab.be") && slices.Contains(c.Addresses, "security@vdab.be") {
			return
		}
	}
	t.Errorf("%+v", LeakContacts())
}

// TestCredentialExample loads the configuration in the section on units.
func TestCredentialExample(t *testing.T) {
	text, err := os.ReadFile("../docs/applications.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "## Credentials of systemd units")
	_, block, found := strings.Cut(section, "```yaml\n")
	block, _, _ = strings.Cut(block, "```")
	c, err := load(t, map[string]string{"broker.yaml": corp + block})
	if !found || err != nil || !c.Clients["vdab"].Allow[0].Restart {
		t.Errorf("%v\n%s", err, block)
	}
}
