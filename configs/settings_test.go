package configs

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"credentialbroker/internal/clock"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// clients makes a configuration of some, each of its name, preset and further
// lines.
func clients(t *testing.T, all ...[3]string) *Config {
	t.Helper()
	var b strings.Builder
	b.WriteString(corp + "leak: { organisation: { name: A }, on_call: { name: B, phone: +32 2 000 00 00 }, smtp: { host: h, from: a@b.example }, copy_to: [a@b.example] }\nclients:\n")
	for _, c := range all {
		fmt.Fprintf(&b, "  %s:\n    preset: %s\n    secret: { provider: corp, path: %s }\n    owner: { contact: a@b.example, purpose: x }\n    allow: [{ user: root }]\n",
			c[0], c[1], c[0])
		for line := range strings.Lines(c[2]) {
			b.WriteString("    " + strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	c, err := load(t, map[string]string{"broker.yaml": b.String()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const login = "refresh: { provider: corp, path: login }"

// TestRequired: what the grant and the authentication need, and what the preset
// or client asks for besides.
func TestRequired(t *testing.T) {
	for _, c := range []struct{ preset, lines, want string }{
		{"vdab-test", "", "api_key client_id client_secret"},
		{"vdab-test", "headers: { X-IBM-Client-Id: '' }\nrequires: []", "client_id client_secret"},
		{"vdab-test", "requires: [api_key, client_id, account]", "account api_key client_id client_secret"},
		{"vdab-api-key", "", "api_key"},
		{"geosecure", "", "client_id private_key"},
		{"geosecure", "client_auth: client_secret_basic", "client_id client_secret"},
		{"digitaal-vlaanderen", "", "client_id private_key"},
		{"zgw", "", "client_id client_secret"},
		{"mijnklantportaal", login, "client_id client_secret"},
		{"mijnklantportaal-api-key", "", "api_key"},
		{"oauth2", "issuer: https://a.example\nclient_auth: self_signed_tls_client_auth", "certificate client_id private_key"},
	} {
		got := clients(t, [3]string{"x", c.preset, c.lines}).Clients["x"].Required()
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s %q: %v, want %s", c.preset, c.lines, got, c.want)
		}
	}
}

// TestProveByGrant: oauth2 does not say how a bundle is proved.
func TestProveByGrant(t *testing.T) {
	for lines, want := range map[string]string{
		"token_endpoint: https://a.example/token":                                       "mint",
		"token_endpoint: https://a.example/token\ngrant: jwt_bearer\nclient_auth: none": "mint",
		"issuer: https://a.example\ngrant: authorization_code\n" + login:                "refresh",
		"grant: self_signed": "probe",
		"grant: none\nrequires: [api_key]\nheaders: { Authorization: 'Key {api_key}' }":                              "probe",
		"grant: none\nrequires: [api_key]\nheaders: { Authorization: 'Key {api_key}' }\nprove: none":                 "none",
		"token_endpoint: https://a.example/token\nprove: probe\nprobe: { url: https://api.example/x, method: HEAD }": "probe",
	} {
		if got := clients(t, [3]string{"x", "oauth2", lines}).Clients["x"].Prove; got != want {
			t.Errorf("%q: prove %q, want %q", lines, got, want)
		}
	}
}

// TestPresetsAlone loads the smallest client of each preset.
func TestPresetsAlone(t *testing.T) {
	more := map[string]string{"mijnklantportaal": login, "oauth2": "issuer: https://a.example"}
	for _, name := range Presets() {
		c := clients(t, [3]string{"x", name, more[name]}).Clients["x"]
		if c.Prove == "" || len(c.Headers) == 0 || c.Rotation.Kind == "" {
			t.Errorf("%s: %+v", name, c.Settings)
		}
	}
}

// TestReadOnly holds the rule against what the adapters can do.
func TestReadOnly(t *testing.T) {
	c, err := load(t, map[string]string{"broker.yaml": `providers:
  a: { systemd: {} }
  b: { exec: { command: [/bin/get] } }
  c: { file: { path: /s, insecure_identity: true, identity_file: /i } }
  d: { vault: { address: "https://vault.example:8200", auth: { token_file: /t } } }
  e: { azure: { vault_url: "https://corp.vault.azure.net", auth: { managed_identity: {} } } }
`})
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range c.Providers {
		open, err := p.Open(clock.System{})
		if err != nil {
			t.Fatal(err)
		}
		if _, writes := open.(providers.Writer); writes == p.readOnly() {
			t.Errorf("%s (%s): it writes: %v, and counts as read-only: %v", name, p.Kind(), writes, p.readOnly())
		}
		open.Close()
	}
}

func TestIssuerWarnings(t *testing.T) {
	for _, c := range []struct{ preset, lines, want string }{
		{"geosecure", "", ""},
		{"geosecure", "client_auth: client_secret_basic", `authenticates with client_secret_basic, where its preset prefers private_key_jwt`},
		{"digitaal-vlaanderen", "client_auth: client_secret_post", `authenticates with client_secret_post`},
		{"digitaal-vlaanderen", "client_auth: tls_client_auth", ""},
		{"vdab-test", "", ""},
		{"oauth2", "token_endpoint: https://a.example/token", ""},
		{"zgw", "", "nothing can prove a new version"},
		{"zgw", "probe: { url: https://a.example/x }", ""},
		{"zgw", "rotation: { accept: unproved }", ""},
		{"vdab-api-key", "", "waits for broker rotate x --accept"},
		{"mijnklantportaal", login, ""},
		{"mijnklantportaal", login, "has no leak_contacts"},
	} {
		lines := "leak_contacts: []\n" + c.lines
		if strings.Contains(c.want, "leak_contacts") {
			lines = c.lines
		}
		got := clients(t, [3]string{"x", c.preset, lines}).Warnings(someNames{})
		if c.want == "" && len(got) != 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0].Message, c.want)) {
			t.Errorf("%s %q: %v, want %q", c.preset, c.lines, got, c.want)
		}
	}
}

func TestIssuerEgress(t *testing.T) {
	for _, c := range []struct{ preset, lines, want string }{
		{"zgw", "probe: { url: 'https://api.example/x' }", "api.example:443 probe"},
		{"zgw", "", ""},
		{"vdab-test", "grant: none\nprove: none\nheaders: { Authorization: '' }", ""},
		{"vdab-api-key", "probe: { url: 'http://127.0.0.1:8000/x' }", "127.0.0.1:8000 probe"},
		{"mijnklantportaal", login, "manage.mijnklantportaal.nl:443 token endpoint"},
		{"mijnklantportaal", login + "\nauthorization_endpoint: https://login.example/", "manage.mijnklantportaal.nl:443 token endpoint"},
		{"digitaal-vlaanderen", "", "authenticatie.vlaanderen.be:443 token endpoint, introspection"},
		{"oauth2", "issuer: https://a.example", "a.example:443 metadata, which name the endpoints"},
		{"oauth2", "issuer: https://a.example\ntoken_endpoint: https://b.example/token", "b.example:443 token endpoint"},
		{"oauth2", "issuer: https://a.example\nmetadata_uri: https://c.example:8443/m", "c.example:8443 metadata, which name the endpoints"},
		{"oauth2", "issuer: https://a.example\ntoken_endpoint: https://b.example/token\ngrant: authorization_code\n" + login,
			"a.example:443 metadata, which name the endpoints; b.example:443 token endpoint"},
		{"oauth2", "token_endpoint: https://b.example/token\nrevocation_endpoint: https://d.example/revoke", "b.example:443 token endpoint; d.example:443 revocation"},
	} {
		all, err := clients(t, [3]string{"x", c.preset, c.lines}).Egress(clock.System{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range all {
			if d.Address == "h:587" || d.Address == "vault.corp.example:8200" {
				continue
			}
			got = append(got, d.Address+" "+strings.ReplaceAll(strings.Join(d.For, ", "), "client x: ", ""))
		}
		if strings.Join(got, "; ") != c.want {
			t.Errorf("%s %q: %q, want %q", c.preset, c.lines, got, c.want)
		}
	}
}

func TestIssuerDiff(t *testing.T) {
	for _, c := range []struct{ preset, old, now, want string }{
		{"mijnklantportaal", login, "refresh: { provider: corp, path: other, owner: app1 }",
			`refresh.path: "login" -> "other"|refresh.owner: unset -> "app1"`},
		{"zgw", "jwt: { form: '2018', zaaktypes: [a] }", "jwt: { form: '2018', scopes: [zaken.lezen], zaaktypes: [a, b] }\nprobe: { url: 'https://a.example/x' }",
			`jwt.scopes: unset -> [zaken.lezen] (wider)|jwt.zaaktypes: [a] -> [a, b] (wider)|probe.url: unset -> "https://a.example/x"`},
		{"vdab-test", "", "key_rejected: [no key]\nmax_lifetime: 1h", `max_lifetime: unset -> 1h0m0s|key_rejected: [Invalid client id or secret] -> [no key]`},
		{"geosecure", "", "assertion: { key_id: certificate }", `assertion.key_id: "thumbprint" -> "certificate"`},
		{"oauth2", "issuer: https://a.example", "issuer: https://a.example\ngrant: authorization_code\n" + login,
			`grant: "client_credentials" -> "authorization_code"|refresh: added|prove: "mint" -> "refresh"`},
	} {
		old, now := clients(t, [3]string{"jwt", c.preset, c.old}), clients(t, [3]string{"jwt", c.preset, c.now})
		var got, want []string
		for _, change := range now.Diff(old) {
			got = append(got, strings.TrimPrefix(change.Text, "client jwt: "))
			if change.Wider != strings.HasSuffix(change.Text, "(wider)") {
				t.Errorf("%+v", change)
			}
		}
		want = strings.Split(c.want, "|")
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q\nwant %q", c.preset, got, want)
		}
	}
	// A client may be called jwt: its own scopes are a bound, and no claims.
	bound := [3]string{"jwt", "vdab-test", "scopes: [read]"}
	if d := clients(t, [3]string{"jwt", "vdab-test", ""}).Diff(clients(t, bound)); len(d) != 1 || !d[0].Wider {
		t.Errorf("taking a bound away: %+v", d)
	}
}

// TestNoFalseAlarm: keys and values of issuers that are no secrets, though they
// may look so.
func TestNoFalseAlarm(t *testing.T) {
	c := clients(t,
		[3]string{"now", "zgw", "jwt: { user_id: mijn-consumer-RuAJiUr4sUQp }"},
		[3]string{"zgw", "zgw", "jwt: { issuer: mijn-consumer-RuAJiUr4sUQp, form: '2018',\n" +
			"  zaaktypes: ['https://ref.tst.vng.cloud/ztc/api/v1/catalogussen/f7afd156-c8f5-4666-b8b5-28a4a9b5dfc7/zaaktypen/0119dd4e-7be9-477e-bccf-75023b1453c1'] }"},
		[3]string{"geo", "geosecure", "assertion: { key_id: certificate, subject: kCVy8fpVSU50zFzi8TIC }"},
		[3]string{"key", "vdab-api-key", "key_rejected: [Invalid client id or secret, 'api_key: unknown']"},
		[3]string{"person", "mijnklantportaal", login + "\ntoken_type: required\nauthorization_params: { prompt: login }"})
	if got := c.Clients["geo"].Assertion; got.KeyID != "certificate" || got.Audience == "" {
		t.Errorf("an overridden key takes the others with it: %+v", got)
	}
	if c.Clients["person"].AuthorizationParams["prompt"] != "login" || c.Clients["zgw"].Grant != oidc.SelfSigned {
		t.Errorf("%+v", c.Clients)
	}
}
