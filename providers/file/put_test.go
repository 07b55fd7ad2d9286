package file

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

func TestPut(t *testing.T) {
	m := newManager(t)
	p := mustOpen(t, m.config())
	w := p.(providers.Writer)
	put := func(name string, fields map[string]string, expect providers.Version) (providers.Version, error) {
		in := map[string]secret.Secret{}
		for k, v := range fields {
			in[k] = secret.FromString(v)
		}
		return w.Put(t.Context(), providers.Ref{Path: name}, in, expect)
	}
	_, err := put("app", map[string]string{"a": "1"}, "0123456789abcdef")
	wantKind(t, err, providers.Conflict, "another writer")
	_, err = put("app", map[string]string{"a": "\xff"}, "")
	wantKind(t, err, providers.Unsupported, `"a" is not text`)
	_, err = put("app", map[string]string{"a": strings.Repeat("x", providers.MaxPayload)}, "")
	wantKind(t, err, providers.Unsupported, "larger")
	if _, err := put("key", map[string]string{providers.Whole: "\xff"}, ""); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(m.file("key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}

	// Eight writers expect the same version: one wins.
	v, err := put("app", map[string]string{"n": "0"}, "")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	results := make([]error, 8)
	for i := range results {
		wg.Go(func() { _, results[i] = put("app", map[string]string{"n": "1"}, v) })
	}
	wg.Wait()
	won := 0
	for _, err := range results {
		if err == nil {
			won++
		} else {
			wantKind(t, err, providers.Conflict, "nothing was written")
		}
	}
	if won != 1 {
		t.Errorf("%d of 8 writers won", won)
	}
	entries, _ := os.ReadDir(m.dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".new-") {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}

func TestPutWaitsForTheLockAsLongAsItMay(t *testing.T) {
	m := newManager(t)
	dir, err := os.OpenRoot(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	unlock, err := lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	w := mustOpen(t, m.config()).(providers.Writer)
	_, err = w.Put(ctx, m.Ref("app"), nil, "")
	wantKind(t, err, providers.Unavailable, "lock")
	unlock()
	if _, err := w.Put(t.Context(), m.Ref("app"), nil, ""); err != nil {
		t.Error(err)
	}
}

func TestRecipientsFile(t *testing.T) {
	m := newManager(t)
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	conf := m.config()
	conf.RecipientsFile = filepath.Join(t.TempDir(), "recipients")
	w := mustOpen(t, conf).(providers.Writer)
	_, err = w.Put(t.Context(), m.Ref("app"), nil, "")
	wantKind(t, err, providers.NotFound, "recipients file")
	write(t, conf.RecipientsFile, []byte("nonsense"), 0o600)
	_, err = w.Put(t.Context(), m.Ref("app"), nil, "")
	wantKind(t, err, providers.Malformed, "age1")
	write(t, conf.RecipientsFile, []byte(other.Recipient().String()+"\n"+m.id.Recipient().String()), 0o600)
	if _, err = w.Put(t.Context(), m.Ref("app"), nil, ""); err != nil {
		t.Fatal(err)
	}
	sealed, _ := os.ReadFile(m.file("app"))
	for _, id := range []age.Identity{m.id, other} {
		if b, err := open(sealed, []age.Identity{id}); err != nil || string(b) != "{}" {
			t.Errorf("%q, %v", b, err)
		}
	}
}

// Whoever stores a secret, the one who reads the store goes on reading it.
func TestPutKeepsTheReaders(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	identity, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "identity")
	if err := identity.Use(func(b []byte) error { return os.WriteFile(name, b, 0o600) }); err != nil {
		t.Fatal(err)
	}
	p := mustOpen(t, Config{Path: dir, IdentityFile: name, InsecureIdentity: true})
	gid := os.Getgid()
	if os.Geteuid() == 0 { // who may give files to any group
		gid = 12346
	}
	secretFile, version := filepath.Join(dir, "a.age"), providers.Version("")
	for _, c := range []struct{ of, mode, want os.FileMode }{{0, 0o700, 0o600}, {0, 0o750, 0o640}, {0, 0o755, 0o640}, {1, 0o640, 0o640}, {1, 0o600, 0o600}, {1, 0o444, 0o644}} {
		like := []string{dir, secretFile}[c.of]
		if c.of == 0 {
			_, version = os.Remove(secretFile), ""
		}
		if err := errors.Join(os.Chown(like, -1, gid), os.Chmod(like, c.mode)); err != nil {
			t.Fatal(err)
		}
		if version, err = p.(providers.Writer).Put(t.Context(), providers.Ref{Path: "a"}, map[string]secret.Secret{"x": secret.FromString("1")}, version); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(secretFile)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Sys().(*syscall.Stat_t); info.Mode().Perm() != c.want || int(got.Gid) != gid {
			t.Errorf("%+v: mode %o of group %d", c, info.Mode().Perm(), got.Gid)
		}
	}
}

// keeper is what a store can do beyond a provider.
type keeper interface {
	Replace(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret) error
	Remove(ctx context.Context, ref providers.Ref) error
}

// Whatever is there is replaced: also what is damaged, or sealed for an identity
// of before.
func TestReplaceAndRemove(t *testing.T) {
	m := newManager(t)
	p := mustOpen(t, m.config())
	k := p.(keeper)
	wantKind(t, k.Remove(t.Context(), m.Ref("app")), providers.NotFound, "no such secret")
	for _, spoil := range []func(){
		func() {},
		func() {},
		func() { m.Fault(t, providertest.Garbage, "app") },
		func() { m.Fault(t, providertest.LoginRefused, "app") },
		func() { m.Fault(t, providertest.Denied, "app") },
	} {
		spoil()
		if err := k.Replace(t.Context(), m.Ref("app"), map[string]secret.Secret{"a": secret.FromString("1")}); err != nil {
			t.Fatal(err)
		}
		b, err := p.Fetch(t.Context(), m.Ref("app"), "")
		if err != nil || !b.Fields["a"].Equal(secret.FromString("1")) {
			t.Errorf("it reads %v, %v", b, err)
		}
	}
	if err := k.Remove(t.Context(), m.Ref("app")); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(m.dir); err != nil || len(left) != 1 || left[0].Name() != lockName {
		t.Errorf("left behind: %v, %v", left, err)
	}
	wantKind(t, k.Remove(t.Context(), m.Ref("../app")), providers.NotFound, "no possible name")
	wantKind(t, k.Replace(t.Context(), m.Ref("a/b"), nil), providers.NotFound, "no possible name")
}
