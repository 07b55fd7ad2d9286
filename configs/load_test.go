package configs

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/oidc"
	"credentialbroker/providers"

	"github.com/rogpeppe/go-internal/txtar"
)

// update makes golden files anew: UPDATE=1 go test ./configs
func update() bool { return os.Getenv("UPDATE") != "" }

// write makes a directory that nobody else may write, whatever the umask.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func load(t testing.TB, files map[string]string) (*Config, error) {
	t.Helper()
	return Load(filepath.Join(write(t, files), "broker.yaml"), Options{Credentials: "/run/credentials/test"})
}

// TestMistakes compares what is said of each kind of mistake with what a
// person would want to read.
func TestMistakes(t *testing.T) {
	cases, err := filepath.Glob("testdata/bad/*.txtar")
	if err != nil || len(cases) < 30 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, name := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			files, want := map[string]string{}, ""
			var input []txtar.File
			for _, f := range archive.Files {
				if f.Name == "golden" {
					want = string(f.Data)
					continue
				}
				input = append(input, f)
				files[f.Name] = string(f.Data)
			}
			dir := write(t, files)
			o := Options{Credentials: "/run/credentials/test"}
			if strings.Contains(string(archive.Comment), "no credentials") {
				o.Credentials = ""
			}
			_, err = Load(filepath.Join(dir, "broker.yaml"), o)
			var problems Problems
			if !errors.As(err, &problems) {
				t.Fatalf("the mistake was not noticed: %v", err)
			}
			got := strings.ReplaceAll(err.Error(), dir+"/", "") + "\n"
			for _, secret := range []string{"hunter2", "CAESIJ0", "abcdefghijklmnop", "wJalr", "QQPQYQ", "k7Jx2L", "aHVudGVy", "5f2d9c01", "MIIEv", "c2lnbmF0"} {
				if strings.Contains(got, secret) {
					t.Errorf("it prints the secret %s", secret)
				}
			}
			if update() {
				archive.Files = append(input, txtar.File{Name: "golden", Data: []byte(got)})
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

const minimal = `
providers:
  unit:
    systemd: {}
clients:
  vdab:
    preset: vdab-production
    secret: { provider: unit, path: vdab, fields: { client_id: clientId, api_key: { path: key } } }
    owner: { contact: integraties@corp.example, purpose: vacancies feed }
    allow:
      - { unit: php8.2-fpm.service, user: vacatures }
      - { user: 33, surfaces: [token], scopes: [read] }
`

func TestPresetAndOverrides(t *testing.T) {
	c, err := load(t, map[string]string{"broker.yaml": minimal + `
    client_auth: client_secret_basic
    headers: { X-IBM-Client-Id: "", X-Other: "{client_id}" }
    rotation: { max_age: 365d }
    requires: [other, client_id]
    proxy: http://proxy.corp.example:3128
    keep_warm: true
    hosts: 2
`, "clients.d/b.yaml": strings.ReplaceAll(minimal[strings.Index(minimal, "clients:"):], "  vdab:", "  plain:")})
	if err != nil {
		t.Fatal(err)
	}
	got, plain := c.Clients["vdab"], c.Clients["plain"]
	if got.TokenEndpoint != "https://op-derden.vdab.be/isam/sps/oauth/oauth20/token" || got.ClientAuth != oidc.SecretBasic || got.Proxy == "" || !got.KeepWarm || got.Hosts != 2 {
		t.Errorf("%+v", got.Profile)
	}
	if want := map[string]string{"Authorization": "Bearer {access_token}", "X-Other": "{client_id}"}; !maps.Equal(got.Headers, want) {
		t.Errorf("headers %v, want %v", got.Headers, want)
	}
	if got.Rotation.MaxAge.D() != 365*24*time.Hour || got.Rotation.Kind != "by-request" || len(got.Rotation.Steps) == 0 {
		t.Errorf("rotation %+v", got.Rotation)
	}
	if !slices.Equal(got.Required(), []string{"client_id", "client_secret", "other"}) {
		t.Errorf("required %v", got.Required())
	}
	// Another client of the preset has the preset's own.
	if want := map[string]string{"Authorization": "Bearer {access_token}", "X-IBM-Client-Id": "{api_key}"}; !maps.Equal(plain.Headers, want) {
		t.Errorf("headers %v, want %v", plain.Headers, want)
	}
	if plain.ClientAuth != oidc.SecretPost || plain.Rotation.MaxAge != 0 || !slices.Equal(plain.Required(), []string{"api_key", "client_id", "client_secret"}) {
		t.Errorf("%+v", plain.Settings)
	}
	wantSecret := providers.Spec{Ref: providers.Ref{Path: "vdab"}, Fields: map[string]providers.Field{
		"client_id": {Key: "clientId"}, "api_key": {Ref: providers.Ref{Path: "key"}}}}
	if !reflect.DeepEqual(got.Secret.Spec, wantSecret) {
		t.Errorf("secret %+v", got.Secret)
	}
	if want := (access.Entry{User: "33", Surfaces: []access.Surface{access.Token}, Scopes: []string{"read"}}); !reflect.DeepEqual(got.Allow[1], want) {
		t.Errorf("allow %+v", got.Allow[1])
	}
}

func TestCredentialsDirectory(t *testing.T) {
	text := map[string]string{"broker.yaml": "providers: { a: { systemd: {} }, b: { file: { path: /s, insecure_identity: true, identity_file: ${CREDENTIALS_DIRECTORY}/t } } }\n"}
	file := filepath.Join(write(t, text), "broker.yaml")
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Credentials: "/run/c"}, "/run/c/t"},
		{Options{Credentials: "/run/c", Offline: true}, "/run/c/t"},
		{Options{Offline: true}, "${CREDENTIALS_DIRECTORY}/t"},
		{Options{}, ""},
	} {
		cfg, err := Load(file, c.o)
		switch {
		case c.want == "" && (err == nil || !strings.Contains(err.Error(), "CREDENTIALS_DIRECTORY is not set")):
			t.Errorf("%+v: %v", c.o, err)
		case c.want != "" && (err != nil || cfg.Providers["b"].File.IdentityFile != c.want):
			t.Errorf("%+v: %+v, %v", c.o, cfg, err)
		}
	}
}

func TestLineEnds(t *testing.T) {
	if _, err := load(t, map[string]string{"broker.yaml": strings.ReplaceAll(minimal, "\n", "\r\n")}); err != nil {
		t.Error(err)
	}
	_, err := load(t, map[string]string{"broker.yaml": "audit: {}\r\naudti: {}\r\n"})
	if err == nil || !strings.Contains(err.Error(), "broker.yaml:2:1: ") || strings.ContainsAny(err.Error(), "\r\uFFFD") {
		t.Errorf("%q", err)
	}
}

// TestUnreadable covers what cannot be shown in a golden file.
func TestUnreadable(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"byte order mark": {"\xef\xbb\xbfaudit: {}\n", "broker.yaml:1:1: the file begins with a byte order mark"},
		"not UTF-8":       {"# a\n# \xe9t\xe9\n", "broker.yaml:2:1: the line is not UTF-8"},
		"UTF-16":          {"\xff\xfea\x00", "broker.yaml:1:1: the line is not UTF-8"},
		"NUL":             {"state: /a\x00b\n", "control character 0x00"},
		"escape":          {"state: /a\x1b[2J\n", "control character 0x1b"},
		"lone CR":         {"state: /a\rb\n", "control character 0x0d"},
		"too large":       {"# " + strings.Repeat("x", maxFile), "larger than 1024 KiB"},
		"brackets":        {"state: " + strings.Repeat("[", 100_000), "more than 64 levels"},
		"braces":          {"a: " + strings.Repeat("{a: ", 1000), "more than 64 levels"},
		"dashes":          {strings.Repeat("- ", 100_000), "more than 64 levels"},
		"questions":       {strings.Repeat("? ", 100_000), "more than 64 levels"},
		"colons":          {strings.Repeat("a: ", 100_000), "broker.yaml:1:"},
		"tags":            {"a: " + strings.Repeat("!a ", 100_000), "broker.yaml:1:"},
	} {
		_, err := load(t, map[string]string{"broker.yaml": c.text})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %.300v, want %s", name, err, c.want)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\x00\x1b\r") {
			t.Errorf("%s: the error holds control characters: %q", name, err)
		}
	}
}

func TestManyClients(t *testing.T) {
	const n = 500
	files := map[string]string{"broker.yaml": "providers:\n  unit:\n    systemd: {}\n"}
	client := minimal[strings.Index(minimal, "clients:"):]
	for i := range n {
		files[fmt.Sprintf("clients.d/c%d.yaml", i)] = strings.Replace(client, "vdab:", fmt.Sprintf("c%d:", i), 1)
	}
	dir := write(t, files)
	start := time.Now()
	c, err := Load(filepath.Join(dir, "broker.yaml"), Options{})
	if err != nil || len(c.Clients) != n {
		t.Fatal(err)
	}
	t.Logf("%d clients in %v", n, time.Since(start))
}
