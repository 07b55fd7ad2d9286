package configs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/gate"
	"credentialbroker/internal/proxy"
)

func TestDiff(t *testing.T) {
	const allow = "      - { user: 33, surfaces: [token], scopes: [read] }\n"
	for _, c := range []struct{ name, from, to, want string }{
		{"nothing", "", "", ""},
		{"owner", "vacancies feed", "feed", `client vdab: owner.purpose: "vacancies feed" -> "feed"`},
		{"entry added", allow, allow + "      - { user: batch }\n", "client vdab: allow: entry 3 added: { user: batch } (wider)"},
		{"entry removed", allow, "", "client vdab: allow: entry 2 of before removed: { user: 33, scopes: [read], surfaces: [token] }"},
		{"entry narrowed", "{ unit: php8.2-fpm.service, user: vacatures }", "{ unit: php8.2-fpm.service, user: vacatures, scopes: [x] }",
			"client vdab: allow: entry 1 added: { user: vacatures, unit: php8.2-fpm.service, scopes: [x] }|client vdab: allow: entry 1 of before removed: { user: vacatures, unit: php8.2-fpm.service }"},
		{"entry widened", ", user: vacatures }", " }",
			"client vdab: allow: entry 1 added: { unit: php8.2-fpm.service } (wider)|client vdab: allow: entry 1 of before removed: { user: vacatures, unit: php8.2-fpm.service }"},
		{"surface added", "[token]", "[token, api-key]",
			"client vdab: allow: entry 2 added: { user: 33, scopes: [read], surfaces: [token, api-key] } (wider)|client vdab: allow: entry 2 of before removed: { user: 33, scopes: [read], surfaces: [token] }"},
		{"key", "user: vacatures }", "user: vacatures, surfaces: [api-key] }",
			"client vdab: allow: entry 1 added: { user: vacatures, unit: php8.2-fpm.service, surfaces: [api-key] } (wider)|client vdab: allow: entry 1 of before removed: { user: vacatures, unit: php8.2-fpm.service }"},
		{"container", "user: vacatures }", "user: vacatures, container: allow }",
			"client vdab: allow: entry 1 added: { user: vacatures, unit: php8.2-fpm.service, container: allow } (wider)|client vdab: allow: entry 1 of before removed: { user: vacatures, unit: php8.2-fpm.service }"},
		{"secret", "path: vdab,", "path: vdab-prod,", "client vdab: secret: unit vdab + key -> unit vdab-prod + key (wider)"},
		{"preset", "vdab-production", "vdab-test", `client vdab: preset: "vdab-production" -> "vdab-test"|client vdab: token_endpoint: "https://op-derden.vdab.be/isam/sps/oauth/oauth20/token" -> "https://op-derden-cbt.vdab.be/isam/sps/oauth/oauth20/token"`},
		{"renamed", "  vdab:\n", "  vacancies:\n", "client vacancies: added (wider)|client vdab: removed"},
		{"provider", "systemd: {}", "systemd: { directory: /c }", `provider unit: systemd.directory: unset -> "/c"`},
		{"other provider", "systemd: {}", "exec: { command: [/bin/get] }", "provider unit: systemd: removed|provider unit: exec: added"},
		{"admin", "providers:\n", "admin: { observe: [adm], operate: [] }\nproviders:\n", "admin.observe: unset -> [adm] (wider)"},
		{"audit", "providers:\n", "audit: { retention: 30d }\nproviders:\n", "audit.retention: unset -> 30d"},
		{"writer", "systemd: {}", "file: { path: /s, insecure_identity: true, identity_file: /i }\n    write: w\n  w:\n    file: { path: /s, insecure_identity: true, identity_file: /j }",
			`provider unit: file: added|provider unit: systemd: removed|provider unit: write: unset -> "w"|provider w: added`},
		{"header", "    allow:", "    headers: { X-Id: \"{client_id}\" }\n    allow:", "client vdab: headers.X-Id: added (wider)"},
		{"file added", "    allow:", "    files: [{ path: /run/t/x }]\n    allow:", "client vdab: files: /run/t/x: token (text), for the daemon added (wider)"},
		{"loopback", "    allow:", "    loopback: { address: '127.0.0.1:8085', insecure_loopback: true }\n    allow:", "client vdab: loopback: added (wider)"},
		{"route added", "    allow:", "    reverse_proxy: [{ name: api, upstream: \"https://a.example\", paths: [/v1] }]\n    allow:", "client vdab: reverse_proxy api: added: https://a.example [/v1] (wider)"},
		{"bound", "    allow:", "    scopes: [read]\n    allow:", "client vdab: scopes: unset -> [read]"},
	} {
		old, err := load(t, map[string]string{"broker.yaml": minimal})
		if err != nil {
			t.Fatal(err)
		}
		now, err := load(t, map[string]string{"broker.yaml": strings.Replace(minimal, c.from, c.to, 1)})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		var got []string
		for _, change := range now.Diff(old) {
			got = append(got, change.Text)
			if change.Wider != strings.HasSuffix(change.Text, "(wider)") {
				t.Errorf("%s: %+v", c.name, change)
			}
		}
		if s := strings.Join(got, "|"); !strings.HasPrefix(s, c.want) || (c.want == "") != (s == "") || c.name != "preset" && s != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.name, s, c.want)
		}
		if c.name == "bound" {
			if back := old.Diff(now); len(back) != 1 || !back[0].Wider {
				t.Errorf("taking a bound away: %+v", back)
			}
		}
	}
}

// A unit that is restarted may have tokens, which another may not.
func TestRestartIsWider(t *testing.T) {
	plain, restarted := access.Entry{Unit: "a.service"}, access.Entry{Unit: "a.service", Restart: true}
	if covers(plain, restarted) || !covers(restarted, plain) || entryText(restarted) != "{ unit: a.service, restart: true }" {
		t.Error(entryText(restarted))
	}
}

func TestDiffOfRoutes(t *testing.T) {
	route := func(text string) *Config {
		c, err := load(t, map[string]string{"broker.yaml": strings.Replace(minimal, "    allow:", "    reverse_proxy: [{ name: api, upstream: \"https://a.example\", paths: [/v1, /v2]"+text+" }]\n    allow:", 1)})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	from := route("")
	for _, c := range []struct {
		change func(*proxy.Config)
		wider  bool
	}{
		{func(r *proxy.Config) { r.Upstream = "https://b.example" }, true},
		{func(r *proxy.Config) { r.UpstreamUser = "tomcat" }, true},
		{func(r *proxy.Config) { r.Paths = nil }, true},
		{func(r *proxy.Config) { r.Paths = []string{"/v3"} }, true},
		{func(r *proxy.Config) { r.Paths = []string{"/v1"} }, false},
		{func(r *proxy.Config) { r.CAFile = "/ca" }, true},
		{func(r *proxy.Config) { r.Loopback = &gate.Port{Address: "127.0.0.1:8086", InsecureLoopback: true} }, true},
		{func(r *proxy.Config) { r.Timeout = clock.Duration(time.Minute) }, false},
	} {
		to := route("")
		r := &to.Clients["vdab"].ReverseProxy[0]
		c.change(r)
		if changes := to.Diff(from); len(changes) != 1 || changes[0].Wider != c.wider {
			t.Errorf("%+v: %+v", r, changes)
		}
	}
	gone := route("")
	vdab := gone.Clients["vdab"]
	vdab.ReverseProxy = nil
	gone.Clients["vdab"] = vdab
	if changes := gone.Diff(from); len(changes) != 1 || changes[0].Wider || changes[0].Text != "client vdab: reverse_proxy api: removed" {
		t.Errorf("%+v", changes)
	}
	if list, _ := from.Egress(clock.System{}); !slices.ContainsFunc(list, func(d Destination) bool {
		return d.Address == "a.example:443" && slices.Equal(d.For, []string{"client vdab: reverse proxy api"})
	}) {
		t.Errorf("%+v", list)
	}
}

// someNames knows two users.
type someNames struct{}

func (someNames) User(name string) (uint32, error) {
	if i := slices.Index([]string{"root", "vacatures"}, name); i >= 0 {
		return uint32(i), nil
	}
	if name == "33" {
		return 33, nil
	}
	return 0, fmt.Errorf("no user %s", name)
}
func (someNames) Group(name string) (uint32, error) { return 0, errors.New("no group " + name) }

func TestWarnings(t *testing.T) {
	entries := func(lines ...string) string {
		head := minimal[:strings.Index(minimal, "      - {")]
		return head + "      - " + strings.Join(lines, "\n      - ") + "\n"
	}
	foreign := filepath.Join(write(t, map[string]string{"page": "#!/bin/sh\n"}), "page")
	if err := os.Chmod(foreign, 0o770); err != nil {
		t.Fatal(err)
	}
	leak := "leak: { organisation: { name: A }, on_call: { name: B, phone: +32 2 000 00 00 }, smtp: { host: h, from: a@b.example } }\n"
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"nothing to say", leak + minimal, nil},
		{"no leak", minimal, []string{"no section leak"}},
		{"no leak, by hand", "leak_by_hand: the desk does\n" + minimal, nil},
		{"a relay without TLS", strings.Replace(leak, "{ host: h,", "{ host: h, tls: none,", 1) + minimal, []string{"the mail relay \"h\" has tls: none"}},
		{"a fallback without TLS", strings.Replace(leak, "} }", "}, fallback: [{ host: 10.0.0.1, tls: none }, { host: 127.0.0.2, tls: none }, { host: \"::1\", tls: none }, { host: localhost, tls: none }] }", 1) + minimal,
			[]string{"the mail relay \"10.0.0.1\" has tls: none"}},
		{"a command that is there", leak + minimal + "alarm: { command: [/bin/sh] }\n", nil},
		{"no command", leak + minimal + "alarm: { command: [/none/page] }\n", []string{"the command of alarm cannot be run: /none/page: no such file"}},
		{"a directory", leak + minimal + "alarm: { command: [/etc] }\n", []string{"/etc is no program"}},
		{"a foreign command", leak + minimal + "alarm: { command: [" + foreign + "] }\n", []string{"its group or others may write it, and who writes it acts as the broker: chmod go-w"}},
		{"no client", "audit: {}\n", []string{"no client is configured"}},
		{"unknown user", leak + entries("{ user: gone }"), []string{"broker.yaml:12:9: the client \"vdab\": allow entry 1 matches nobody: user: no user gone"}},
		{"unknown group", leak + entries("{ user: root, group: gone }"), []string{"matches nobody: group: no group gone"}},
		{"mod_php", leak + entries("{ unit: apache2.service }"), []string{"every site of apache2.service"}},
		{"mod_php, and its user", leak + entries("{ unit: apache2.service, user: www-data }"), []string{"no user www-data", "every site of apache2.service"}},
		{"tomcat, and its user", leak + entries("{ unit: tomcat10.service, user: root }"), []string{"every application in tomcat10.service"}},
		{"pools", leak + entries("{ unit: php8.2-fpm.service }"), []string{"every pool of php8.2-fpm.service"}},
		{"www-data", leak + entries("{ user: root }", "{ user: www-data }"), []string{"allow entry 2 matches nobody", "allow entry 2 matches everything that runs as www-data"}},
		{"group", leak + entries("{ group: staff }"), []string{"nobody: group", "every member of the group staff"}},
		{"interpreter", leak + entries("{ user: root, executable: /usr/bin/php8.2 }"), []string{"any script that /usr/bin/php8.2 runs"}},
		{"identity", strings.Replace(leak+minimal, "systemd: {}", "file: { path: /s, identity_file: /i, insecure_identity: true }", 1), []string{"broker.yaml:4:3: the provider \"unit\" has insecure_identity"}},
		{"one login", strings.Replace(leak+minimal, "systemd: {}", "vault: { address: \"https://a.example\", auth: { token_file: /t } }\n    write: w\n  w:\n    vault: { address: \"https://a.example\", auth: { token_file: /t } }", 1),
			[]string{"\"unit\" and \"w\" have one login"}},
		{"reads with it", strings.NewReplacer("systemd: {}", "vault: { address: \"https://a.example\", auth: { token_file: /t } }\n  r:\n    vault: { address: \"https://a.example\", auth: { token_file: /u } }\n    write: unit").Replace(leak + minimal),
			[]string{"is read with the login of \"unit\", which may write"}},
		{"copies that are soon too old", leak + strings.Replace(minimal, "  unit:\n    systemd: {}", "  unit:\n    exec: { command: [/bin/true] }\n  copies:\n    file: { path: /c, identity_command: [/bin/key] }", 1) +
			"    rotation: { poll: 31m }\nbrown_out: { provider: copies, max_age: 1h }\n", []string{"asked every 31m0s, and a copy may serve for 1h0m0s after that"}},
		{"copies that are not", leak + strings.Replace(minimal, "  unit:\n    systemd: {}", "  unit:\n    exec: { command: [/bin/true] }\n  copies:\n    file: { path: /c, identity_command: [/bin/key] }", 1) +
			"    rotation: { poll: 30m }\nbrown_out: { provider: copies, max_age: 1h }\n", nil},
		{"a secret that is here anyway", leak + strings.Replace(minimal, "  unit:\n", "  copies:\n    file: { path: /c, identity_command: [/bin/key] }\n  unit:\n", 1) +
			"    rotation: { poll: 31m }\nbrown_out: { provider: copies, max_age: 1h }\n", nil},
		{"a file of a group", leak + minimal + "    files: [{ path: /run/t/x }, { path: /run/t/y, group: gone }]\n", []string{"the file /run/t/y: group: no group gone"}},
		{"a file of another user", leak + minimal + "    files: [{ path: /run/t/x, owner: root }, { path: /run/t/y, owner: gone }]\n", []string{"the file /run/t/y: owner: no user gone"}},
		{"files alone", leak + minimal[:strings.Index(minimal, "    allow:")] + "    files: [{ path: /run/t/x }]\n", nil},
		{"loopback", leak + entries("{ user: root }", "{ unit: x.service }") + "    loopback: { address: '127.0.0.1:8085', insecure_loopback: true }\n",
			[]string{"\"vdab\" is served on 127.0.0.1:8085 too, which is weaker than the socket"}},
		{"loopback for nobody", leak + entries("{ user: root, unit: x.service }", "{ user: root, executable: /usr/bin/x }", "{ user: root, user_unit: x.service }") + "    loopback: { address: '[::1]:8085', insecure_loopback: true }\n",
			[]string{"weaker than the socket", "\"vdab\" is served to nobody on [::1]:8085"}},
		{"a route on loopback", leak + entries("{ user: root, unit: x.service }", "{ user: root, surfaces: [token] }") + "    reverse_proxy: [{ name: api, upstream: \"https://a.example\", loopback: { address: '127.0.0.1:8086', insecure_loopback: true } }]\n",
			[]string{"the route \"api\" of the client \"vdab\" is served on 127.0.0.1:8086 too, which is weaker", "the route \"api\" of the client \"vdab\" is served to nobody on 127.0.0.1:8086"}},
		{"a route for one", leak + entries("{ user: root, surfaces: [proxy] }") + "    reverse_proxy: [{ name: api, upstream: \"https://a.example\" }]\n", nil},
		{"a route for nobody", leak + entries("{ user: root, surfaces: [token] }") + "    reverse_proxy: [{ name: api, upstream: \"https://a.example\" }]\n",
			[]string{"the route \"api\" of the client \"vdab\" serves nobody: no allow entry has the surface proxy"}},
		{"credential of nothing", leak + entries("{ user: root }", "{ unit: x.service, surfaces: [credential, token] }", "{ unit: y.service, surfaces: [credential], restart: true }",
			"{ unit: z.service, surfaces: [credential, api-key] }", "{ unit: a.service }"), []string{"allow entry 2 gives x.service nothing by credential"}},
		{"one secret twice", leak + minimal + strings.Replace(minimal[strings.Index(minimal, "  vdab:"):], "vdab:", "two:", 1), []string{"\"two\" and \"vdab\" have one secret"}},
	} {
		cfg, err := load(t, map[string]string{"broker.yaml": c.text})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		got := cfg.Warnings(someNames{})
		ok := len(got) == len(c.want)
		for i, w := range c.want {
			ok = ok && strings.Contains(got[i].Error(), w)
		}
		if !ok {
			t.Errorf("%s: %v, want %q", c.name, got, c.want)
		}
	}
}

func TestEgress(t *testing.T) {
	c, err := load(t, map[string]string{"broker.yaml": minimal + `
    issuer: https://op-derden.vdab.be
    jwks_uri: https://keys.vdab.be:8443/jwks
  two:
    preset: vdab-test
    proxy: http://proxy.corp.example
    secret: { provider: unit, path: two }
    owner: { contact: a@b.example, purpose: x }
    allow: [{ user: root }]
leak: { organisation: { name: A }, on_call: { name: B, phone: +32 2 000 00 00 }, smtp: { host: smtp.corp.example, from: a@b.example }, fallback: [{ host: other.example, tls: implicit }] }
alarm: { webhook: { url: "https://pager.example/alarm?to=1", proxy: http://proxy.corp.example, secret: { provider: unit, path: hook } } }
`})
	if err != nil {
		t.Fatal(err)
	}
	all, err := c.Egress(clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(all)
	want := "[{keys.vdab.be:8443  [client vdab: keys]} {op-derden-cbt.vdab.be:443 proxy.corp.example:80 [client two: token endpoint]} " +
		"{op-derden.vdab.be:443  [client vdab: token endpoint]} {other.example:465  [leak: mail relay]} {pager.example:443 proxy.corp.example:80 [alarm: webhook]} {smtp.corp.example:587  [leak: mail relay]}]"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestUnreported: a leak in production has to be mailed, or somebody says why it
// is not; a first try needs neither.
func TestUnreported(t *testing.T) {
	production, try := minimal, strings.Replace(minimal, "vdab-production", "vdab-test", 1)
	for _, c := range []struct {
		name, text string
		want       int
	}{
		{"a first try", try, 0},
		{"production", production, 1},
		{"reported", "leak: { organisation: { name: A }, on_call: { name: B, phone: +32 2 000 00 00 }, smtp: { host: h, from: a@b.example } }\n" + production, 0},
		{"by hand", "leak_by_hand: the desk does\n" + production, 0},
	} {
		conf, err := Load(filepath.Join(write(t, map[string]string{"broker.yaml": c.text}), "broker.yaml"), Options{Offline: true})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := conf.Unreported(); len(got) != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
