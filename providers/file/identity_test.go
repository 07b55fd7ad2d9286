package file

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"

	"credentialbroker/providers"
)

func TestIdentities(t *testing.T) {
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	m := newManager(t)
	m.Set(t, "app", []byte(`{"a":"1"}`))
	write(t, m.file("pq"), sealFor(t, []byte(`{"a":"1"}`), hybrid.Recipient()), 0o600)
	var text bytes.Buffer
	a := armor.NewWriter(&text)
	_, _ = a.Write(sealFor(t, []byte(`{"a":"1"}`), m.id.Recipient()))
	_ = a.Close()
	write(t, m.file("armored"), text.Bytes(), 0o600)
	write(t, m.identity, []byte("# two\n\n"+hybrid.String()+"\n"+m.id.String()+"\n"), 0o600)
	byCommand := m.config()
	command("/bin/cat", m.identity)(t, m, &byCommand)
	for name, c := range map[string]Config{"file": m.config(), "command": byCommand} {
		p := mustOpen(t, c)
		for _, secret := range []string{"app", "pq", "armored"} {
			if b, err := fetch(t, p, secret, ""); err != nil || value(b.Fields["a"]) != "1" {
				t.Errorf("%s: %s: %v", name, secret, err)
			}
		}
		if _, err := p.(providers.Writer).Put(t.Context(), providers.Ref{Path: "new-" + name}, nil, ""); err == nil {
			t.Errorf("%s: both kinds of recipients were mixed, which age refuses", name)
		}
	}
	write(t, m.identity, []byte(hybrid.String()), 0o600)
	p := mustOpen(t, m.config())
	if _, err := p.(providers.Writer).Put(t.Context(), providers.Ref{Path: "own"}, nil, ""); err != nil {
		t.Errorf("Put with a hybrid identity: %v", err)
	}
	mustFetch(t, p, "own")
}

// A command that does not end is ended with all that it has started.
func TestIdentityCommandHangs(t *testing.T) {
	m := newManager(t)
	m.Set(t, "app", []byte(`{}`))
	conf := m.config()
	pidFile := filepath.Join(t.TempDir(), "pid")
	command("/bin/sh", "-c", "sleep 1000 & echo $! >"+pidFile+"; wait")(t, m, &conf)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := mustOpen(t, conf).Fetch(ctx, providers.Ref{Path: "app"}, "")
	wantKind(t, err, providers.Unavailable, "in time")
	pid, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
	if err == nil && !strings.Contains(string(status), ") Z ") {
		t.Errorf("the command's child lives: %s", status)
	}
}
