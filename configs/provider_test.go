package configs

import (
	"fmt"
	"strings"
	"testing"

	"credentialbroker/internal/clock"
	"credentialbroker/providers/file"
)

func TestProviderOpens(t *testing.T) {
	c, err := load(t, map[string]string{"broker.yaml": minimal})
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Providers["unit"].Open(clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := (Provider{}).Open(clock.System{}); err == nil {
		t.Error("a provider of no kind was opened")
	}
}

const writing = `providers:
  corp:
    vault: { address: "https://vault.example:8200", auth: { token_file: /t } }
    write: %s
  writer:
    vault: { address: "https://vault.example:8200", auth: { token_file: /u } }
  next:
    vault: { address: "https://vault.example:8200", auth: { token_file: /v } }
    write: writer
  other:
    file: { path: /s, insecure_identity: true, identity_file: /i }
  unit:
    systemd: {}
    %s
`

func TestWrite(t *testing.T) {
	for name, c := range map[string]struct{ write, unit, want string }{
		"another login":   {"writer", "", ""},
		"nobody":          {"wirter", "", `did you mean "writer"`},
		"itself":          {"corp", "", "names itself"},
		"another kind":    {"other", "", "of the kind file"},
		"a third one":     {"next", "", "name the one that writes: writer"},
		"what only reads": {"writer", "write: other", "can only be read"},
	} {
		_, err := load(t, map[string]string{"broker.yaml": fmt.Sprintf(writing, c.write, c.unit)})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// A writer is the same secrets manager with another login.
func TestWriteElsewhere(t *testing.T) {
	const vault = `vault: { address: "https://vault.example:8200", namespace: n, auth: { token_file: /t } }`
	for _, x := range []struct{ name, read, write, want string }{
		{"vault", vault, `vault: { address: "https://vault.example:8200/", namespace: n, kv: 2, proxy: "http://p.example:1", auth: { approle: { role_id_file: /r } } }`, ""},
		{"agent", `vault: { address: "unix:///run/agent.sock", auth: { agent: true } }`, vault, ""},
		{"address", vault, `vault: { address: "https://other.example:8200", namespace: n, auth: { token_file: /u } }`,
			`broker.yaml:5:17: the provider "w", whose login writes for "r", is another secrets manager: its address is "https://other.example:8200"|expected "https://vault.example:8200", as "r" has it`},
		{"namespace", vault, `vault: { address: "https://vault.example:8200", auth: { token_file: /u } }`, `its namespace is not set|expected "n", as`},
		{"kv", vault, `vault: { address: "https://vault.example:8200", namespace: n, kv: 1, auth: { token_file: /u } }`, `its kv is "1"|expected not set`},
		{"aws", `aws: { region: eu-west-1 }`, `aws: { region: eu-west-1, batch: true, auth: { environment: true } }`, ""},
		{"region", `aws: { region: eu-west-1 }`, `aws: { region: eu-west-2 }`, `its region is "eu-west-2"|expected "eu-west-1"`},
		{"endpoint", `aws: { region: eu-west-1 }`, `aws: { region: eu-west-1, endpoint: "https://x.example" }`, `its endpoint is "https://x.example"|expected not set`},
		{"azure", `azure: { vault_url: "https://a.vault.azure.net" }`, `azure: { vault_url: "https://b.vault.azure.net" }`, `its vault_url is "https://b.`},
		{"gcp", `gcp: { project: a }`, `gcp: { project: b, auth: { metadata: true } }`, `its project is "b"|expected "a"`},
		{"file", `file: { path: /s, insecure_identity: true, identity_file: /i }`, `file: { path: /s, identity_command: [/bin/i], recipients_file: /r }`, ""},
		{"path", `file: { path: /s, insecure_identity: true, identity_file: /i }`, `file: { path: /z, insecure_identity: true, identity_file: /j }`, `its path is "/z"|expected "/s"`},
	} {
		_, err := load(t, map[string]string{"broker.yaml": "providers:\n  r:\n    " + x.read + "\n    write: w\n  w: { " + x.write + " }\n"})
		if (err == nil) != (x.want == "") {
			t.Errorf("%s: %v", x.name, err)
			continue
		}
		for part := range strings.SplitSeq(x.want, "|") {
			if err != nil && !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, want %q", x.name, err, part)
			}
		}
	}
}

// A person's own login takes the place of the daemon's, and nothing else does.
func TestOwn(t *testing.T) {
	c, err := load(t, map[string]string{"broker.yaml": `providers:
  vault: { vault: { address: "https://vault.example:8200", namespace: n, auth: { approle: { role_id_file: /r } } }, write: agent }
  agent: { vault: { address: "unix:///run/agent.sock", auth: { agent: true } } }
  aws: { aws: { region: eu-west-1, auth: { static: { access_key_id_file: /a, secret_access_key_file: /b } } } }
  azure: { azure: { vault_url: "https://corp.vault.azure.net", auth: { managed_identity: {} } } }
  gcp: { gcp: { project: p, auth: { metadata: true } } }
  file: { file: { path: /s, insecure_identity: true, identity_file: /i } }
  shared: { file: { path: /s, insecure_identity: true, identity_file: /i, recipients_file: /r } }
  unit: { systemd: {} }
  exec: { exec: { command: [/bin/get] } }
`})
	if err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct {
		login Login
		want  func(p Provider) bool // nil: an error
	}{
		"vault": {Login{Home: "/home/me"}, func(p Provider) bool {
			return p.Vault.Auth.TokenFile == "/home/me/.vault-token" && p.Vault.Auth.AppRole == nil && p.Vault.Namespace == "n" && p.Write == ""
		}},
		"agent":  {Login{}, nil},
		"aws":    {Login{}, func(p Provider) bool { return p.AWS.Auth.Static == nil && p.AWS.Region == "eu-west-1" }},
		"azure":  {Login{}, func(p Provider) bool { return p.Azure.Auth.ManagedIdentity == nil }},
		"gcp":    {Login{}, func(p Provider) bool { return !p.GCP.Auth.Metadata && p.GCP.Project == "p" }},
		"file":   {Login{}, func(p Provider) bool { return p.File.IdentityFile == "/i" }},
		"shared": {Login{IdentityFile: "/mine"}, func(p Provider) bool { return p.File.IdentityFile == "/mine" && p.File.RecipientsFile == "/r" }},
		"unit":   {Login{}, nil},
		"exec":   {Login{}, nil},
	} {
		before := c.Providers[name]
		own, err := before.Own(x.login)
		switch {
		case (err != nil) != (x.want == nil):
			t.Errorf("%s: %v", name, err)
		case err == nil && !x.want(own):
			t.Errorf("%s: %+v", name, own)
		case err == nil:
			if _, set := own.sections(); set[0].Validate() != nil {
				t.Errorf("%s: %v", name, set[0].Validate())
			}
		}
	}
	if c.Providers["vault"].Vault.Auth.AppRole == nil || c.Providers["shared"].File.IdentityFile != "/i" {
		t.Error("the configuration itself was changed")
	}
	if _, err := c.Providers["file"].Own(Login{IdentityFile: "/mine"}); err == nil {
		t.Error("an identity of one's own would lock the daemon out")
	}
	sealed := Provider{File: &file.Config{Path: "/s", IdentityFile: credentialsVariable + "/identity"}}
	if _, err := sealed.Own(Login{}); err == nil {
		t.Error("the daemon's identity is sealed")
	}
}
