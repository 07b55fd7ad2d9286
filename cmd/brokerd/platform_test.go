package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"credentialbroker/api/client"
	"credentialbroker/configs"
	"credentialbroker/internal/access"
	"credentialbroker/internal/platform"
)

// TestPlatform: the log, the status and check --live say the same of the
// machine, and it is what a look at it finds.
func TestPlatform(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	s := newSite(t)
	s.write("broker.yaml", s.config())
	s.start()
	_, text := s.do("admin.sock", "GET", "/v1/status", "")
	var st client.Status
	if err := json.Unmarshal([]byte(text), &st); err != nil {
		t.Fatal(err)
	}
	_, live := s.do("admin.sock", "POST", "/v1/check", "")
	s.stop(syscall.SIGTERM)
	logged := regexp.MustCompile(`(?m) level=INFO msg=platform (.*)$`).FindAllStringSubmatch(s.stderr.String(), -1)
	if len(logged) != 1 {
		t.Fatalf("%d lines: %s", len(logged), s.stderr.String())
	}
	all := platform.Host{}.Look()
	if len(st.Platform) != len(all) || !strings.Contains(live, `"check":"platform","target":"host","level":"ok","detail":"`+logged[0][1]+`"`) {
		t.Errorf("%v\n%v", st.Platform, live)
	}
	for _, f := range all {
		word := f.Name + "=" + f.Used
		if f.Name == "secret_memory" {
			word = f.Name + "=" + st.Platform[f.Name] // this process may have another limit
		}
		if !slices.Contains(strings.Fields(logged[0][1]), word) || f.Name+"="+st.Platform[f.Name] != word {
			t.Errorf("%s: logged %s, status %v", word, logged[0][1], st.Platform)
		}
	}
}

// TestPlatformLacks: what is missing is said once, by how bad it is.
func TestPlatformLacks(t *testing.T) {
	var out bytes.Buffer
	tellPlatform(t.Context(), slog.New(slog.NewTextHandler(&out, nil)), []platform.Feature{
		{Name: "caller", Used: "none", Lost: "nobody gets a token", Severe: true}, {Name: "units", Used: "none", Lost: "no unit matches"}, {Name: "selinux", Used: "none"}})
	for _, want := range []string{
		`level=INFO msg=platform caller=none units=none selinux=none` + "\n",
		`level=ERROR msg="this machine lacks something" feature=caller effect="nobody gets a token"` + "\n",
		`level=WARN msg="this machine lacks something" feature=units effect="no unit matches"` + "\n",
	} {
		if strings.Count(out.String(), want) != 1 {
			t.Errorf("%s is not in %s", want, out.String())
		}
	}
	// A machine whose control groups cannot be read.
	found := livePlatform(platform.Host{Root: t.TempDir()})
	if !slices.ContainsFunc(found, func(f client.Finding) bool { return f.Target == "units" && f.Level == client.Warning }) {
		t.Errorf("%v", found)
	}
}

// TestLiveSELinux: what is wrong with labels and booleans is a finding, and
// which boolean counts depends on who is allowed.
func TestLiveSELinux(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{"enforce": "1", "booleans/credential_broker_httpd_connect": "0 0"} {
		name = filepath.Join(root, "sys/fs/selinux", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	s := &server{log: slog.New(slog.NewTextHandler(io.Discard, nil)), host: platform.Host{Root: root, Label: func(path string) (string, error) {
		if strings.HasSuffix(path, "credential.sock") {
			return "system_u:object_r:var_run_t:s0", nil
		}
		return "system_u:object_r:" + platform.Type(path) + ":s0", nil
	}}}
	s.paths = paths{config: "/etc/credential-broker/broker.yaml", state: "/var/lib/credential-broker", consumer: "/run/credential-broker/broker.sock", admin: "/run/credential-broker/admin.sock"}
	for _, test := range []struct {
		entry access.Entry
		web   bool
	}{
		{access.Entry{Unit: "php8.2-fpm.service"}, true},
		{access.Entry{Unit: "httpd.service"}, true},
		{access.Entry{Unit: "nginx.service", User: "nginx"}, true},
		{access.Entry{User: "apache"}, true},
		{access.Entry{Unit: "import.service", User: "vacatures"}, false},
	} {
		s.current = &opened{config: &configs.Config{Clients: map[string]configs.Client{"vdab": {Allow: []access.Entry{test.entry}}}}}
		var found []string
		for _, f := range s.liveSELinux() {
			if f.Check != "selinux" || f.Level != client.Error || f.Detail == "" {
				t.Errorf("%+v", f)
			}
			found = append(found, f.Target)
		}
		want := []string{"/run/credential-broker/credential.sock"}
		if test.web {
			want = []string{"credential_broker_httpd_connect", want[0]}
		}
		if !slices.Equal(found, want) {
			t.Errorf("%v: %v", test.entry, found)
		}
	}
}
