package files

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
)

// Every content in every format, from the broker itself.
func TestFormats(t *testing.T) {
	inWorld(t, func(w *world) {
		var list []Config
		for _, c := range []Content{Token, Headers, APIKey} {
			for _, f := range []Format{Text, JSON, Dotenv} {
				list = append(list, Config{Path: string(c) + "." + string(f), Content: c, Format: f})
			}
		}
		w.files(list...)
		token := w.read("token.text")
		if len(strings.Split(token, ".")) != 3 || strings.ContainsAny(token, "\n ") {
			t.Fatalf("token: %q", token)
		}
		until := time.Now().Add(15 * time.Minute).UTC().Format(time.RFC3339)
		for name, want := range map[string]string{
			"headers.text": "Authorization: Bearer " + token + "\nX-IBM-Client-Id: " + theKey + "\n",
			"headers.json": `{"Authorization":"Bearer ` + token + `","X-IBM-Client-Id":"` + theKey + "\"}\n",
			"api-key.text": theKey, "api-key.json": `{"api_key":"` + theKey + "\"}\n", "api-key.dotenv": "API_KEY='" + theKey + "'\n",
			"headers.dotenv": "AUTHORIZATION='Bearer " + token + "'\nX_IBM_CLIENT_ID='" + theKey + "'\n",
			"token.dotenv":   "ACCESS_TOKEN='" + token + "'\nTOKEN_TYPE='Bearer'\nEXPIRES_AT='" + until + "'\n",
		} {
			if got := w.read(name); got != want {
				t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
			}
		}
		var in map[string]string
		if err := json.Unmarshal([]byte(w.read("token.json")), &in); err != nil {
			t.Fatal(err)
		}
		if in["access_token"] != token || in["token_type"] != "Bearer" || in["expires_at"] != until || in["client"] != "vdab" || len(in["fingerprint"]) != 43 || len(in) != 6 {
			t.Errorf("%v", in)
		}
		out, err := exec.Command("sh", "-c", `. "$0"; printf %s "$AUTHORIZATION"`, filepath.Join(w.run, "headers.dotenv")).Output()
		if err != nil || string(out) != "Bearer "+token {
			t.Errorf("a shell reads %q, %v", out, err)
		}
	})
}

// A value that readers of .env files would read in different ways is refused.
func TestAssignment(t *testing.T) {
	for v, fine := range map[string]bool{"plain": true, `a "b" $c #d`: true, "it's": false, `a\b`: false, "a\nb": false, "é": false} {
		var b buffer
		if err := b.assignment("x", []byte(v)); (err == nil) != fine {
			t.Errorf("%q: %v", v, err)
		}
	}
	var b buffer
	if err := b.member("x", []byte(`a"\`)); err != nil || string(b.b) != `"x":"a\"\\"` {
		t.Errorf("%s, %v", b.b, err)
	}
}

// What held a token is wiped, also what it grew out of.
func TestWiped(t *testing.T) {
	var b buffer
	b.text("first")
	small := b.b
	for range 100 {
		b.text("more and more")
	}
	large := b.b
	b.wipe()
	for _, c := range append(small, large...) {
		if c != 0 {
			t.Fatalf("%q %q", small, large)
		}
	}
	if err := (&buffer{}).fill(Config{Path: "x"}.filled(), &broker.Grant{}); err == nil {
		t.Error("a file without a token")
	}
}

func TestValidate(t *testing.T) {
	good := Config{Path: "/run/credential-broker/files/vdab/token"}
	for _, c := range []struct {
		name string
		edit func(*Config)
		want string // empty: it is good
	}{
		{"the least", func(*Config) {}, ""},
		{"all", func(c *Config) {
			c.Content, c.Format, c.Owner, c.Group, c.Mode, c.MinTTL, c.Scope = Headers, Dotenv, "33", "www-data", "0440", clock.Duration(time.Minute), "read"
		}, ""},
		{"relative", func(c *Config) { c.Path = "token" }, "path: "},
		{"not plain", func(c *Config) { c.Path = "/run/../etc/x" }, "path: "},
		{"a slash too many", func(c *Config) { c.Path += "/" }, "path: "},
		{"hidden", func(c *Config) { c.Path = "/run/x/.token.new" }, "path: "},
		{"too long", func(c *Config) { c.Path = "/run/" + strings.Repeat("x", 241) }, "path: "},
		{"among the sockets", func(c *Config) { c.Path = "/run/credential-broker/broker.sock" }, "directory of the sockets"},
		{"content", func(c *Config) { c.Content = "secret" }, "content: "},
		{"format", func(c *Config) { c.Format = "yaml" }, "format: "},
		{"mode", func(c *Config) { c.Mode = "0444" }, "mode: "},
		{"min_ttl", func(c *Config) { c.MinTTL = clock.Duration(time.Second) }, "min_ttl: "},
		{"a key with a scope", func(c *Config) { c.Content, c.Scope = APIKey, "read" }, "scope: "},
		{"a key with an audience", func(c *Config) { c.Content, c.Audience = APIKey, "x" }, "audience: "},
		{"a key with a life", func(c *Config) { c.Content, c.MinTTL = APIKey, clock.Duration(time.Minute) }, "min_ttl: "},
	} {
		one := good
		c.edit(&one)
		err := one.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if m := (Config{Group: "www-data"}).mode(); m != 0o440 {
		t.Errorf("%o", m)
	}
	if m := (Config{}).mode(); m != 0o400 {
		t.Errorf("%o", m)
	}
}

// Everybody who can read a file is named.
func TestString(t *testing.T) {
	for want, c := range map[string]Config{
		"/run/x: token (text), for the daemon":                                    {Path: "/run/x"},
		"/run/x: headers (json), for the user app and everybody in the group ops": {Path: "/run/x", Content: Headers, Format: JSON, Owner: "app", Group: "ops"},
		"/run/x: token (text), for the daemon and its group, or the directory's":  {Path: "/run/x", Mode: "0440"},
		"/run/x: token (text), scope read write, audience api, for the daemon":    {Path: "/run/x", Scope: "read write", Audience: "api"},
		"/run/x: api-key (dotenv), for the daemon":                                {Path: "/run/x", Content: APIKey, Format: Dotenv, Group: "ops", Mode: "0400"},
	} {
		if got := c.String(); got != want {
			t.Errorf("%s", got)
		}
	}
}
