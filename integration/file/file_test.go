//go:build real

// Package file lets Debian's age and the adapter read what the other has
// written.
package file

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/file"
)

const (
	server  = "age (Debian)"
	payload = `{"client_id":"id","client_secret":"two"}`
)

// store is a directory whose identity age-keygen has made.
type store struct{ dir, identity string }

func newStore(t *testing.T) store {
	s := store{t.TempDir(), filepath.Join(t.TempDir(), "identity")}
	real.Must(t, exec.CommandContext(t.Context(), "age-keygen", "-o", s.identity))
	if err := os.Chmod(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s store) file(name string) string { return filepath.Join(s.dir, name+".age") }

func (s store) recipient(t *testing.T) string {
	return strings.TrimSpace(real.Must(t, exec.CommandContext(t.Context(), "age-keygen", "-y", s.identity)))
}

func (s store) encrypt(t *testing.T, name, text string, options ...string) {
	cmd := exec.CommandContext(t.Context(), "age", append(options, "-o", s.file(name))...)
	cmd.Stdin = strings.NewReader(text)
	real.Must(t, cmd)
}

func (s store) open(t *testing.T, c file.Config) providers.Provider {
	t.Helper()
	c.Path = s.dir
	if c.IdentityCommand == nil {
		c.IdentityFile, c.InsecureIdentity = s.identity, true
	}
	p, err := file.Open(c, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAdapterReadsWhatAgeWrites(t *testing.T) {
	real.Row(t, "provider file", server, "writes what the adapter reads, for one and for two recipients, armored too")
	s, other := newStore(t), newStore(t)
	s.encrypt(t, "one", payload, "-r", s.recipient(t))
	s.encrypt(t, "two", payload, "-r", other.recipient(t), "-r", s.recipient(t))
	s.encrypt(t, "armored", payload, "-a", "-r", s.recipient(t))
	s.encrypt(t, "foreign", payload, "-r", other.recipient(t))
	byFile := s.open(t, file.Config{})
	byCommand := s.open(t, file.Config{IdentityCommand: []string{"/bin/cat", s.identity}})
	for _, p := range []providers.Provider{byFile, byCommand} {
		for _, name := range []string{"one", "two", "armored"} {
			b, err := p.Fetch(t.Context(), providers.Ref{Path: name}, "")
			if err != nil || !b.Fields["client_secret"].Equal(secret.FromString("two")) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := p.Fetch(t.Context(), providers.Ref{Path: "foreign"}, ""); providers.KindOf(err) != providers.LoginFailed {
			t.Errorf("foreign: %v", err)
		}
	}
}

func TestAgeReadsWhatTheAdapterWrites(t *testing.T) {
	real.Row(t, "provider file", server, "reads what the adapter writes")
	s, other := newStore(t), newStore(t)
	recipients := filepath.Join(t.TempDir(), "recipients")
	if err := os.WriteFile(recipients, []byte("# both\n"+s.recipient(t)+"\n"+other.recipient(t)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fields, err := providers.Parse([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]file.Config{"own": {}, "both": {RecipientsFile: recipients}} {
		if _, err := s.open(t, c).(providers.Writer).Put(t.Context(), providers.Ref{Path: name}, fields, ""); err != nil {
			t.Fatal(err)
		}
		if got := real.Must(t, exec.CommandContext(t.Context(), "age", "-d", "-i", s.identity, s.file(name))); got != payload {
			t.Errorf("%s: age reads %s", name, got)
		}
	}
	if got := real.Must(t, exec.CommandContext(t.Context(), "age", "-d", "-i", other.identity, s.file("both"))); got != payload {
		t.Errorf("the other recipient reads %s", got)
	}
	// And a store that the product makes is one for age.
	made := store{filepath.Join(t.TempDir(), "store"), filepath.Join(t.TempDir(), "identity")}
	id, err := file.Create(made.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Use(func(b []byte) error { return os.WriteFile(made.identity, b, 0o600) }); err != nil {
		t.Fatal(err)
	}
	made.encrypt(t, "app", payload, "-r", made.recipient(t))
	if _, err := made.open(t, file.Config{}).Fetch(t.Context(), providers.Ref{Path: "app"}, ""); err != nil {
		t.Error(err)
	}
}
