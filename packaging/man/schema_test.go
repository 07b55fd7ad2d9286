package man

import (
	"os"
	"strings"
	"testing"
)

//go:generate env UPDATE=1 go test -count=1 -run TestConfigurationPage .

// TestConfigurationPage: credential-broker.yaml(5) is made from the schema.
func TestConfigurationPage(t *testing.T) {
	schema, err := os.ReadFile("../../configs/broker.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	p := New("credential-broker.yaml", 5, "configuration of the credential broker")
	p.Section("SYNOPSIS")
	p.Text("/etc/credential-broker/broker.yaml\n\n/etc/credential-broker/clients.d/*.yaml")
	p.Section("DESCRIPTION")
	p.Text(`The configuration is YAML. It is read strictly: an unknown or repeated key, a wrong type, a missing key is an error that names file, line and column; broker check lists them all. Files in clients.d hold the one key clients. No secret has a place in it.

The files have to be root's, and writable by nobody else: who writes them grants access. A change is taken with systemctl reload credential-broker or broker reload, whole or not at all.

Durations are written 30s, 15m, 12h, 400d. At the start of a key that ends in _file, ${CREDENTIALS_DIRECTORY} stands for the directory of the unit's credentials; nothing else is expanded.`)
	p.Section("KEYS")
	p.Text("NAME is a name of your choice; [] stands for each entry of a list.")
	if err := p.Keys(schema); err != nil {
		t.Fatal(err)
	}
	p.Section("FILES")
	p.Term("/usr/share/credential-broker/examples/", "", "A configuration for each secrets manager.")
	p.Term("/usr/share/credential-broker/broker.schema.json", "", "The same keys as JSON Schema, for editors.")
	p.Section("SEE ALSO")
	p.Text("broker(1), brokerd(8), systemd-creds(1)")
	file, same, err := p.Check(os.Getenv("UPDATE") != "")
	if err != nil || !same {
		t.Errorf("%s is out of date: go generate ./... (%v)", file, err)
	}
}

// TestPage: what troff would take as its own arrives as it was written.
func TestPage(t *testing.T) {
	p := New("a", 1, "b")
	p.Text(".hidden and\n'quoted' a\\b ~x. Two.\n\n  code --flag\n    .deeper")
	got := string(p.Bytes())
	for _, want := range []string{"\n\\&.hidden and \\(aqquoted\\(aq a\\eb \\(tix.\nTwo.\n", ".EX\ncode \\-\\-flag\n  .deeper\n.EE"} {
		if !strings.Contains(got, want) {
			t.Errorf("want %q in\n%s", want, got)
		}
	}
	if strings.Count(got, "\n.TH ") != 1 || strings.Contains(got, "20") {
		t.Errorf("no date, one title:\n%s", got)
	}
}

// TestKeys: each mapping is described once, whatever place it stands at.
func TestKeys(t *testing.T) {
	p := New("a", 5, "b")
	err := p.Keys([]byte(`{"properties":{"one":{"additionalProperties":{"$ref":"#/$defs/x.C"},"description":"First."},"two":{"items":{"$ref":"#/$defs/x.C"},"description":"Second."}},
		"$defs":{"x.C":{"properties":{"w":{"enum":["a","b"],"description":"Word."}},"required":["w"],"additionalProperties":false}}}`))
	if err != nil {
		t.Fatal(err)
	}
	got := string(p.Bytes())
	for _, want := range []string{`.SS "one.NAME, two[]"`, "\\fBw\\fR \\fIword, required\\fR\nWord.\nOne of: a, b.\n", "\\fBone\\fR \\fImapping by name\\fR\nFirst.\nSee one.NAME.\n"} {
		if strings.Count(got, want) != 1 {
			t.Errorf("want %q once in\n%s", want, got)
		}
	}
	if err := p.Keys([]byte("{")); err == nil {
		t.Error("no JSON, no error")
	}
}
