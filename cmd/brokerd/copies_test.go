package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/configs"
)

// withManager is a configuration whose secrets manager is a command, which is
// down while there is a file of that name.
func (s *site) withManager(more string) {
	s.t.Helper()
	s.write("manager", "#!/bin/sh\nread -r request\n[ ! -e "+s.path("down")+" ] || exit 1\ncat "+s.path("answer")+"\n")
	if err := os.Chmod(s.path("manager"), 0o700); err != nil {
		s.t.Fatal(err)
	}
	answer, err := json.Marshal(map[string]any{"version": "7", "fields": map[string]string{
		"client_id": s.client.ID, "client_secret": s.client.Secret, "api_key": s.client.APIKey}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("answer", string(answer))
	s.write("broker.yaml", strings.NewReplacer("  local: {", "  corp: { exec: { command: ["+s.path("manager")+"] } }\n  local: {",
		"secret: { provider: local, path: vdab }", "secret: { provider: corp, path: vdab }",
		"/secrets, identity_file", "/state/brown-out, identity_file").Replace(s.config())+more)
}

func (s *site) clientStatus() client.StatusClient {
	s.t.Helper()
	_, body := s.do("admin.sock", "GET", "/v1/status", "")
	var st client.Status
	if err := json.Unmarshal([]byte(body), &st); err != nil {
		s.t.Fatal(err)
	}
	i := slices.IndexFunc(st.Clients, func(c client.StatusClient) bool { return c.Client == "vdab" })
	return st.Clients[i]
}

// TestBrownOutStart: a daemon that was killed starts while its secrets manager
// is down, and says so wherever somebody may look.
func TestBrownOutStart(t *testing.T) {
	s := newSite(t)
	s.withManager("brown_out: { provider: local }\n")
	token := func() {
		t.Helper()
		if code, body := s.do("broker.sock", "GET", "/v1/clients/vdab/token", ""); code != 200 {
			t.Fatalf("token: %d %s", code, body)
		}
	}
	s.start()
	token()
	s.until("there is a copy", func() bool { return !s.clientStatus().Kept.IsZero() })
	s.stop(syscall.SIGKILL)
	if info, err := os.Stat(s.path("state", "brown-out")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info, err)
	}
	// Nothing on the disk tells the secret.
	patterns := forms(s.client.Secret)
	maps.Copy(patterns, forms(s.client.APIKey))
	patterns["in hexadecimal digits"], patterns["in hexadecimal digits, the key"] = []byte(hex.EncodeToString([]byte(s.client.Secret))), []byte(hex.EncodeToString([]byte(s.client.APIKey)))
	files := 0
	err := filepath.WalkDir(s.path("state"), func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		files++
		for form, p := range patterns {
			if bytes.Contains(b, p) {
				t.Errorf("%s holds a secret %s", name, form)
			}
		}
		return err
	})
	if err != nil || files < 3 {
		t.Errorf("%d files, %v", files, err)
	}

	s.write("down", "")
	s.start()
	begin := time.Now()
	token()
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the first token took %v", took)
	}
	c := s.clientStatus()
	if !c.Ready || c.Version != "7" || c.Source.State != "failing" || c.DegradedReason == "" || time.Until(c.DegradedUntil) > 24*time.Hour || time.Until(c.DegradedUntil) < 23*time.Hour {
		t.Errorf("status: %+v", c)
	}
	if code, body := s.do("broker.sock", "GET", "/readyz", ""); code != 200 || !strings.Contains(body, `"degraded_until":"`) {
		t.Errorf("/readyz: %d %s", code, body)
	}
	if _, body := s.do("admin.sock", "GET", "/metrics", ""); !strings.Contains(body, `credential_broker_client_degraded{client="vdab"} 1`) {
		t.Error("the metrics do not say so")
	}
	const warned = "its sealed copy serves a client"
	s.until("it is in the journal", func() bool { return strings.Contains(s.stderr.String(), warned) })

	// A reload keeps the mark; the manager's answer takes it away.
	if code, body := s.do("admin.sock", "POST", "/v1/reload", ""); code != 200 {
		t.Fatalf("reload: %d %s", code, body)
	}
	token()
	if s.clientStatus().DegradedUntil.IsZero() {
		t.Error("a reload has taken the mark away")
	}
	if err := os.Remove(s.path("down")); err != nil {
		t.Fatal(err)
	}
	if code, body := s.do("admin.sock", "POST", "/v1/clients/vdab/rotate", ""); code != 200 {
		t.Fatalf("rotate: %d %s", code, body)
	}
	if c := s.clientStatus(); !c.DegradedUntil.IsZero() || c.Source.State != "ok" {
		t.Errorf("status: %+v", c)
	}
	s.until("the end is in the journal", func() bool { return strings.Contains(s.stderr.String(), "no copy serves any more") })
	if n := strings.Count(s.stderr.String(), warned); n != 1 {
		t.Errorf("%d lines about one outage", n)
	}

	// Without the section: what stays is said, and is of no use.
	s.withManager("")
	if _, body := s.do("admin.sock", "POST", "/v1/reload", ""); !strings.Contains(body, "rm "+s.path("state", "brown-out")+"/*.copy.age") {
		t.Errorf("reload: %s", body)
	}
	s.write("down", "")
	s.stop(syscall.SIGKILL)
	s.start()
	if code, body := s.do("broker.sock", "GET", "/v1/clients/vdab/token", ""); code != 503 || !strings.Contains(body, "provider_unavailable") {
		t.Errorf("token: %d %s", code, body)
	}
}

// A daemon whose copies cannot be kept does its work, and says what is wrong.
func TestNoCopies(t *testing.T) {
	s := newSite(t)
	s.withManager("brown_out: { provider: local }\n")
	if err := os.Mkdir(s.path("state"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.write("state/brown-out", "a file where the directory belongs")
	s.start()
	if code, body := s.do("broker.sock", "GET", "/v1/clients/vdab/token", ""); code != 200 {
		t.Fatalf("token: %d %s", code, body)
	}
	s.until("the status says why", func() bool { return strings.Contains(s.clientStatus().KeepError, "cannot open the store") })
	s.until("the journal says why", func() bool {
		return strings.Contains(s.stderr.String(), "is not in order") && strings.Contains(s.stderr.String(), "there is no copy of a client's secret")
	})
}

// What is removed has the name of a copy whose client is gone, or of what a
// dead process was writing.
func TestTidyCopies(t *testing.T) {
	dir := filepath.Join(shortDir(t), "a", "copies")
	if err := tidyCopies(tidied(t, dir)); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	for _, name := range []string{"vdab.copy.age", "gone.copy.age", "portal.copy.age", "gone.age", "Gone.copy.age", ".copy.age", "gone.copy.age.bak", ".lock", ".new-a", ".new-b", "x.new-a"} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if name != ".new-b" {
			_ = os.Chtimes(file, old, old)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "dir.copy.age"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := tidyCopies(tidied(t, dir)); err != nil {
		t.Fatal(err)
	}
	var left []string
	list, err := os.ReadDir(dir)
	for _, f := range list {
		left = append(left, f.Name())
	}
	want := "[.copy.age .lock .new-b Gone.copy.age dir.copy.age gone.age gone.copy.age.bak vdab.copy.age x.new-a]"
	if err != nil || fmt.Sprint(left) != want {
		t.Errorf("left: %v, %v, want %s", left, err, want)
	}
}

// tidied is a configuration with a client that is copied, and one that is not.
func tidied(t *testing.T, dir string) *configs.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "broker.yaml")
	text := `providers:
  local: { file: { path: ` + dir + `, identity_command: [/bin/key] } }
  corp: { exec: { command: [/bin/true] } }
  unit: { systemd: {} }
clients:
  vdab: { preset: vdab-test, secret: { provider: corp, path: vdab }, owner: { contact: you@example.org, purpose: test }, allow: [{ user: root }] }
  portal: { preset: vdab-test, secret: { provider: unit, path: vdab }, owner: { contact: you@example.org, purpose: test }, allow: [{ user: root }] }
brown_out: { provider: local }
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := configs.Load(file, configs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
