package file

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"golang.org/x/sys/unix"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

// later is a clock for which every file was written long ago.
type later struct{}

func (later) Now() clock.Reading { return clock.System{}.Now().Add(time.Hour) }

// manager is a store on disk, and who looks after it.
type manager struct {
	dir, identity string
	id            *age.X25519Identity
}

func newManager(t *testing.T) *manager {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	m := &manager{dir: dir, identity: filepath.Join(t.TempDir(), "identity")}
	text, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	_ = text.Use(func(b []byte) error { write(t, m.identity, b, 0o600); return nil })
	m.id = m.readIdentity(t)
	return m
}

func (m *manager) readIdentity(t *testing.T) *age.X25519Identity {
	b, err := os.ReadFile(m.identity)
	if err != nil {
		t.Fatal(err)
	}
	id, err := age.ParseX25519Identity(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func write(t *testing.T, name string, b []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(name+".tmp", b, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".tmp", name); err != nil {
		t.Fatal(err)
	}
}

func sealFor(t *testing.T, payload []byte, to ...age.Recipient) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to...)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(payload)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (m *manager) config() Config {
	return Config{Path: m.dir, IdentityFile: m.identity, InsecureIdentity: true}
}

func (m *manager) file(name string) string { return filepath.Join(m.dir, name+".age") }

func (m *manager) Open(t *testing.T, _ providertest.Options) providers.Provider {
	return mustOpen(t, m.config())
}

func mustOpen(t *testing.T, c Config) providers.Provider {
	t.Helper()
	p, err := Open(c, later{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (m *manager) Ref(name string) providers.Ref { return providers.Ref{Path: name} }

func (m *manager) Set(t *testing.T, name string, payload []byte) {
	write(t, m.file(name), sealFor(t, payload, m.id.Recipient()), 0o600)
}

func (m *manager) Fault(t *testing.T, c providertest.Case, name string) {
	t.Helper()
	var err error
	switch c {
	case providertest.Absent, providertest.Destroyed:
		err = os.Remove(m.file(name))
	case providertest.AbsentMount:
		err = os.RemoveAll(m.dir)
	case providertest.Denied:
		err = os.Chmod(m.file(name), 0o662)
	case providertest.Garbage:
		err = os.Truncate(m.file(name), 300)
	case providertest.LoginExpired, providertest.LoginRefused: // another identity
		m.id, err = age.GenerateX25519Identity()
		write(t, m.identity, []byte("# a comment\n"+m.id.String()), 0o600)
	default:
		t.Fatalf("cannot make %q happen", c)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (m *manager) Calls() providertest.Calls { return providertest.Calls{} }
func (m *manager) CA() string                { return "" }
func (m *manager) Addr() string              { return "" }

const noServer = "there is no server, the store is a local directory"

var lacks = providertest.Lacks{
	providertest.Throttled: noServer, providertest.ServerError: noServer, providertest.Down: noServer,
	providertest.Hangs: noServer, providertest.CAFile: noServer, providertest.Proxy: noServer,
	providertest.Disabled:    "a file is there or not; there is no switch",
	providertest.SoftDeleted: "a removed file is gone",
	providertest.Expired:     "a file has no dates of validity",
	providertest.NotYetValid: "a file has no dates of validity",
	providertest.Pinned:      "the store keeps one version of a secret",
	providertest.CheapCheck:  "nobody counts calls of stat; TestUnchangedIsNotOpened watches the file instead",
}

func TestConformance(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Manager { return newManager(t) }, lacks)
}

func fetch(t *testing.T, p providers.Provider, name string, have providers.Version) (providers.Bundle, error) {
	return p.Fetch(t.Context(), providers.Ref{Path: name}, have)
}

func mustFetch(t *testing.T, p providers.Provider, name string) providers.Bundle {
	t.Helper()
	b, err := fetch(t, p, name, "")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantKind(t *testing.T, err error, kind providers.Kind, says string) {
	t.Helper()
	if got := providers.KindOf(err); got != kind || !strings.Contains(err.Error(), says) {
		t.Errorf("kind %q, want %q; %q says %q", got, kind, err, says)
	}
}

func value(s secret.Secret) string {
	b, _ := s.AppendTo(nil)
	return string(b)
}

// opens counts how often a file is opened while f runs.
func opens(t *testing.T, file string, f func()) int {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, file, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	f()
	// Equal events in a row are merged into one: this tells none from some.
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	return max(n, 0) / unix.SizeofInotifyEvent
}

func TestUnchangedIsNotOpened(t *testing.T) {
	m := newManager(t)
	m.Set(t, "app", []byte(`{"a":"1"}`))
	p := mustOpen(t, m.config())
	b := mustFetch(t, p, "app")
	n := opens(t, m.file("app"), func() {
		for range 5 {
			if _, err := fetch(t, p, "app", b.Version); !errors.Is(err, providers.ErrUnchanged) {
				t.Fatal(err)
			}
		}
	})
	if n != 0 {
		t.Error("the file was opened by unchanged reads")
	}
	if opens(t, m.file("app"), func() { mustFetch(t, p, "app") }) == 0 {
		t.Error("the watch sees nothing")
	}
}

// A file that was just written may be written again in the same tick, at the
// same size, in place: its times must not be believed.
func TestFreshFileIsLookedInto(t *testing.T) {
	m := newManager(t)
	one, two := sealFor(t, []byte(`{"a":"1"}`), m.id.Recipient()), sealFor(t, []byte(`{"a":"2"}`), m.id.Recipient())
	write(t, m.file("app"), one, 0o600)
	p, err := Open(m.config(), clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	b := mustFetch(t, p, "app")
	if opens(t, m.file("app"), func() { _, err = fetch(t, p, "app", b.Version) }) == 0 || !errors.Is(err, providers.ErrUnchanged) {
		t.Errorf("not looked into, or %v", err)
	}
	f, err := os.OpenFile(m.file("app"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(two, 0)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if b, err := fetch(t, p, "app", b.Version); err != nil || value(b.Fields["a"]) != "2" {
		t.Errorf("the second content was missed: %v", err)
	}
}

func TestVersion(t *testing.T) {
	m := newManager(t)
	m.Set(t, "app", []byte(`{"a":"1"}`))
	b := mustFetch(t, mustOpen(t, m.config()), "app")
	restarted := mustOpen(t, m.config())
	if _, err := fetch(t, restarted, "app", b.Version); !errors.Is(err, providers.ErrUnchanged) {
		t.Errorf("after a restart: %v", err)
	}
	m.Set(t, "app", []byte(`{"a":"1"}`))
	if again := mustFetch(t, restarted, "app"); again.Version == b.Version || len(again.Version) != 16 {
		t.Errorf("the same content, written again, has version %q, before %q", again.Version, b.Version)
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(t *testing.T, m *manager, c *Config)
		kind providers.Kind
		says string
	}{
		{"directory others write", func(_ *testing.T, m *manager, _ *Config) { _ = os.Chmod(m.dir, 0o777) }, providers.Denied, "the store"},
		{"file its group writes", func(_ *testing.T, m *manager, _ *Config) { _ = os.Chmod(m.file("app"), 0o620) }, providers.Denied, "chmod"},
		{"link", func(_ *testing.T, m *manager, _ *Config) {
			_ = os.Rename(m.file("app"), m.file("real"))
			_ = os.Symlink("real.age", m.file("app"))
		}, providers.Denied, "a link"},
		{"directory", func(_ *testing.T, m *manager, _ *Config) {
			_ = os.Remove(m.file("app"))
			_ = os.Mkdir(m.file("app"), 0o700)
		}, providers.Denied, "regular"},
		{"fifo", func(_ *testing.T, m *manager, _ *Config) {
			_ = os.Remove(m.file("app"))
			_ = syscall.Mkfifo(m.file("app"), 0o600)
		}, providers.Denied, "regular"},
		{"too large", func(_ *testing.T, m *manager, _ *Config) { _ = os.Truncate(m.file("app"), maxFile+1) }, providers.Malformed, "larger"},
		{"cut", func(_ *testing.T, m *manager, _ *Config) { _ = os.Truncate(m.file("app"), 10) }, providers.Malformed, "whole age file"},
		{"empty", func(_ *testing.T, m *manager, _ *Config) { _ = os.Truncate(m.file("app"), 0) }, providers.Malformed, "whole age file"},
		{"identity that others read", func(_ *testing.T, m *manager, _ *Config) { _ = os.Chmod(m.identity, 0o640) }, providers.Denied, "identity file"},
		{"identity that others write", func(_ *testing.T, m *manager, _ *Config) { _ = os.Chmod(m.identity, 0o602) }, providers.Denied, "identity file"},
		{"no identity", func(_ *testing.T, m *manager, _ *Config) { _ = os.Remove(m.identity) }, providers.LoginFailed, "no such file"},
		{"identity that is none", func(t *testing.T, m *manager, _ *Config) {
			write(t, m.identity, []byte("AGE-SECRET-KEY-1"+providertest.Canary), 0o600)
		}, providers.LoginFailed, "age-keygen"},
		{"endless identity", func(_ *testing.T, _ *manager, c *Config) { c.IdentityFile = "/dev/zero" }, providers.Denied, "identity file"},
		{"command fails", command("/bin/false"), providers.LoginFailed, "/bin/false"},
		{"no command", command("/nowhere/command"), providers.LoginFailed, "/nowhere"},
		{"command without end", command("/bin/cat", "/dev/zero"), providers.LoginFailed, "/bin/cat"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newManager(t)
			m.Set(t, "app", []byte(`{"a":"`+providertest.Canary+`"}`))
			conf := m.config()
			c.do(t, m, &conf)
			_, err := fetch(t, mustOpen(t, conf), "app", "")
			wantKind(t, err, c.kind, c.says)
			if err != nil && strings.Contains(err.Error(), providertest.Canary) {
				t.Errorf("leaks: %v", err)
			}
		})
	}
}

func command(argv ...string) func(*testing.T, *manager, *Config) {
	return func(_ *testing.T, _ *manager, c *Config) {
		c.IdentityFile, c.InsecureIdentity, c.IdentityCommand = "", false, argv
	}
}

func TestNames(t *testing.T) {
	m := newManager(t)
	outside := filepath.Join(filepath.Dir(m.dir), "outside.age")
	write(t, outside, sealFor(t, []byte(`{}`), m.id.Recipient()), 0o600)
	p := mustOpen(t, m.config())
	for _, name := range []string{"", ".", "..", "../outside", ".lock", "a/b", "a\x00", strings.Repeat("n", 201)} {
		_, err := fetch(t, p, name, "")
		wantKind(t, err, providers.NotFound, "name")
	}
	_, err := p.Fetch(t.Context(), providers.Ref{Path: "app", Version: "1"}, "")
	wantKind(t, err, providers.Unsupported, "remove version")
}

func TestValidate(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "/run/credentials/broker.service")
	for _, c := range []struct {
		name string
		c    Config
		want string // empty: valid
	}{
		{"unit's credential", Config{Path: "/store", IdentityFile: "/run/credentials/broker.service/id"}, ""},
		{"before expansion", Config{Path: "/store", IdentityFile: "${CREDENTIALS_DIRECTORY}/id"}, ""},
		{"plain, accepted", Config{Path: "/store", IdentityFile: "/etc/id", InsecureIdentity: true}, ""},
		{"command", Config{Path: "/store", IdentityCommand: []string{"/bin/id"}}, ""},
		{"plain", Config{Path: "/store", IdentityFile: "/etc/id"}, "identity_file: not a credential"},
		{"out of the directory", Config{Path: "/store", IdentityFile: "/run/credentials/broker.service/../x/id"}, "identity_file: not a credential"},
		{"beside the directory", Config{Path: "/store", IdentityFile: "/run/credentials/broker.service-x"}, "identity_file: not a credential"},
		{"both", Config{Path: "/store", IdentityFile: "${CREDENTIALS_DIRECTORY}/id", IdentityCommand: []string{"/x"}}, "identity_command: there is"},
		{"relative command", Config{Path: "/store", IdentityCommand: []string{"id"}}, "identity_command: want"},
		{"relative path", Config{Path: "store", IdentityCommand: []string{"/id"}}, "path: want"},
		{"nothing", Config{}, "path: missing: the directory that holds the NAME.age files\nidentity_file: missing"},
	} {
		err := c.c.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if _, openErr := Open(c.c, later{}); (openErr == nil) != (err == nil) {
			t.Errorf("%s: Open says %v", c.name, openErr)
		}
	}
}

// FuzzOpen: whatever is in the file, it is fields or an error of the provider.
func FuzzOpen(f *testing.F) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	w, _ := age.Encrypt(&b, id.Recipient())
	_, _ = w.Write([]byte(`{"a":"1"}`))
	_ = w.Close()
	f.Add(b.Bytes())
	f.Add([]byte(armor.Header + "\nYWdl"))
	f.Add([]byte("age-encryption.org/v1\n-> X25519 x\n"))
	f.Fuzz(func(t *testing.T, sealed []byte) {
		payload, err := open(bytes.Clone(sealed), []age.Identity{id})
		if e := (*providers.Error)(nil); err != nil && !errors.As(err, &e) {
			t.Errorf("%T: %v", err, err)
		}
		if err == nil && len(payload) > len(sealed) {
			t.Error("longer than its ciphertext")
		}
	})
}
