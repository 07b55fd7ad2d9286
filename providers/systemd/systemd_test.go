package systemd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

// unit is a directory of credentials; starts counts how often systemd made one.
type unit struct {
	dir    string
	starts int
}

func newUnit(t *testing.T) *unit { return &unit{dir: t.TempDir()} }

func (u *unit) Open(t *testing.T, _ providertest.Options) providers.Provider {
	p, err := Open(Config{Directory: u.dir}, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (u *unit) Ref(name string) providers.Ref { return providers.Ref{Path: name} }

// Set makes the file as systemd does: complete, and at a later time.
func (u *unit) Set(t *testing.T, name string, payload []byte) {
	t.Helper()
	u.starts++
	tmp := filepath.Join(u.dir, ".tmp")
	at := time.Unix(1_700_000_000+int64(u.starts), 0)
	if err := errors.Join(os.WriteFile(tmp, payload, 0o440), os.Chtimes(tmp, at, at), os.Rename(tmp, filepath.Join(u.dir, name))); err != nil {
		t.Fatal(err)
	}
}

func (u *unit) Fault(t *testing.T, c providertest.Case, name string) {
	t.Helper()
	var err error
	switch c {
	case providertest.Absent:
		err = os.Remove(filepath.Join(u.dir, name))
	case providertest.AbsentMount:
		err = os.RemoveAll(u.dir)
	case providertest.Denied:
		err = os.Chmod(filepath.Join(u.dir, name), 0o460)
	default:
		t.Fatalf("cannot make %q happen", c)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (u *unit) Calls() providertest.Calls { return providertest.Calls{} }
func (u *unit) CA() string                { return "" }
func (u *unit) Addr() string              { return "" }

const (
	noServer = "there is no server, credentials are files"
	noState  = "a credential is there or not, as long as the unit runs"
)

var lacks = providertest.Lacks{
	providertest.Throttled: noServer, providertest.ServerError: noServer, providertest.Down: noServer,
	providertest.Hangs: noServer, providertest.Garbage: "any content is a credential", providertest.LoginExpired: noServer,
	providertest.LoginRefused: noServer, providertest.CAFile: noServer, providertest.Proxy: noServer,
	providertest.Disabled: noState, providertest.SoftDeleted: noState, providertest.Destroyed: noState,
	providertest.Expired: noState, providertest.NotYetValid: noState,
	providertest.Pinned:     "a credential has one version",
	providertest.CheapCheck: "nobody counts calls of stat; TestUnchangedIsNotOpened takes the right to open away instead",
	providertest.Put:        "credentials are read only", providertest.PutRace: "credentials are read only",
}

func TestConformance(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Manager { return newUnit(t) }, lacks)
}

func wantKind(t *testing.T, err error, kind providers.Kind, says string) {
	t.Helper()
	if got := providers.KindOf(err); got != kind || !strings.Contains(err.Error(), says) {
		t.Errorf("kind %q, want %q; %q says %q", got, kind, err, says)
	}
}

// An unchanged read must not meet what an opening would refuse.
func TestUnchangedIsNotOpened(t *testing.T) {
	u := newUnit(t)
	u.Set(t, "app", []byte(`{"a":"1"}`))
	p := u.Open(t, providertest.Options{})
	b, err := p.Fetch(t.Context(), u.Ref("app"), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(u.dir, "app"), 0o462); err != nil { // refused, once it is opened
		t.Fatal(err)
	}
	if _, err := p.Fetch(t.Context(), u.Ref("app"), b.Version); !errors.Is(err, providers.ErrUnchanged) {
		t.Errorf("%v, want ErrUnchanged", err)
	}
	_, err = p.Fetch(t.Context(), u.Ref("app"), "")
	wantKind(t, err, providers.Denied, "chmod")
}

func TestVersionIsWhenTheFileWasMade(t *testing.T) {
	u := newUnit(t)
	var versions []providers.Version
	for range 2 {
		u.Set(t, "app", []byte(`{"a":"1"}`))
		b, err := u.Open(t, providertest.Options{}).Fetch(t.Context(), u.Ref("app"), "")
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, b.Version)
	}
	if versions[0] != "cwyvpf2039c0" || versions[1] == versions[0] {
		t.Errorf("versions %q", versions)
	}
}

func TestRefusals(t *testing.T) {
	u := newUnit(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := errors.Join(os.WriteFile(outside, []byte("x"), 0o600), os.Symlink(outside, filepath.Join(u.dir, "link")),
		os.Symlink("app", filepath.Join(u.dir, "inner")), os.Mkdir(filepath.Join(u.dir, "dir"), 0o700),
		syscall.Mkfifo(filepath.Join(u.dir, "fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	u.Set(t, "app", []byte(`{}`))
	u.Set(t, "large", bytes.Repeat([]byte("x"), providers.MaxPayload+1))
	up, err := filepath.Rel(u.dir, outside)
	if err != nil {
		t.Fatal(err)
	}
	p := u.Open(t, providertest.Options{})
	for name, want := range map[string]struct {
		kind providers.Kind
		says string
	}{
		up: {providers.NotFound, "slash"}, "": {providers.NotFound, "name"}, ".": {providers.NotFound, "name"},
		"..": {providers.NotFound, "name"}, "a\x00": {providers.NotFound, "name"}, strings.Repeat("n", 256): {providers.NotFound, "name"},
		"link": {providers.Denied, "a link"}, "inner": {providers.Denied, "a link"}, "dir": {providers.Denied, "regular"},
		"fifo": {providers.Denied, "regular"}, "large": {providers.Malformed, "larger"}, "none": {providers.NotFound, "LoadCredential"},
	} {
		_, err := p.Fetch(t.Context(), providers.Ref{Path: name}, "")
		wantKind(t, err, want.kind, want.says)
	}
	_, err = p.Fetch(t.Context(), providers.Ref{Path: "app", Version: "1"}, "")
	wantKind(t, err, providers.Unsupported, "remove version")
}

func TestDirectoryOfTheUnit(t *testing.T) {
	u := newUnit(t)
	u.Set(t, "app", []byte(`{"a":"1"}`))
	t.Setenv("CREDENTIALS_DIRECTORY", u.dir)
	p, err := Open(Config{}, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Fetch(t.Context(), u.Ref("app"), ""); err != nil {
		t.Error(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	p, err = Open(Config{}, clock.System{})
	if err != nil {
		t.Fatal("a daemon without credentials must still start:", err)
	}
	_, err = p.Fetch(t.Context(), u.Ref("app"), "")
	wantKind(t, err, providers.NotFound, "CREDENTIALS_DIRECTORY is not set")
}

func TestValidate(t *testing.T) {
	for dir, ok := range map[string]bool{"": true, "/run/x": true, "${CREDENTIALS_DIRECTORY}": true, "x": false, "../x": false} {
		_, err := Open(Config{Directory: dir}, clock.System{})
		if (err == nil) != ok || err != nil && !strings.HasPrefix(err.Error(), "directory: ") {
			t.Errorf("%q: %v", dir, err)
		}
	}
}
