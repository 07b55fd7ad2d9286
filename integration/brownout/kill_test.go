//go:build real

package brownout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/file"
	"credentialbroker/rotation"
)

// sealing is the variable that makes this program write a copy, and end.
const sealing = "BROWNOUT_SEAL_IN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(sealing); dir != "" {
		runtime.LockOSThread() // so that its calls are counted in a row
		if err := seal(dir, "new"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func store(dir string) (providers.Provider, error) {
	return file.Open(file.Config{Path: filepath.Join(dir, "copies"), IdentityFile: filepath.Join(dir, "identity"), InsecureIdentity: true}, clock.System{})
}

var ref = providers.Ref{Path: rotation.KeptName("app")}

// seal writes a copy whose two fields belong together.
func seal(dir, value string) error {
	p, err := store(dir)
	if err != nil {
		return err
	}
	return p.(rotation.Keeper).Replace(context.Background(), ref, map[string]secret.Secret{
		"a": secret.FromString(value), "z": secret.FromString(strings.Repeat(value, 50_000))})
}

func sealed(t *testing.T, dir string) string {
	t.Helper()
	p, err := store(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Fetch(t.Context(), ref, "")
	if err != nil {
		t.Fatalf("the copy cannot be read: %v", err)
	}
	defer b.Wipe()
	for _, value := range []string{"old", "new"} {
		if b.Fields["a"].Equal(secret.FromString(value)) && b.Fields["z"].Equal(secret.FromString(strings.Repeat(value, 50_000))) {
			return value
		}
	}
	t.Fatal("the copy is neither the old one nor the new one")
	return ""
}

// traced lets this program write a copy under strace.
func traced(t *testing.T, dir string, options ...string) ([]byte, error) {
	cmd := exec.CommandContext(t.Context(), "strace", append(append([]string{"-f", "-qq", "-o", filepath.Join(dir, "trace")}, options...), os.Args[0])...)
	cmd.Env = append(os.Environ(), sealing+"="+dir, "GOMAXPROCS=1")
	return cmd.CombinedOutput()
}

// calls are the system calls about files that writing a copy makes.
func calls(t *testing.T, dir string) (names []string) {
	t.Helper()
	if out, err := traced(t, dir, "-e", "trace=%file,%desc"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, "trace"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := bytes.Cut(text, []byte(dir))
	for _, m := range regexp.MustCompile(`(?m)^\d+ +(\w+)\(`).FindAllSubmatch(text, -1) {
		if name := string(m[1]); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, want := range []string{"openat", "write", "fsync", "renameat"} {
		ok = ok && slices.Contains(names, want)
	}
	if !ok {
		t.Fatalf("writing a copy makes the calls %v", names)
	}
	return names
}

func TestKilledWhileSealing(t *testing.T) {
	real.Row(t, "brown-out", "strace (Debian)", "a process that is killed at any system call of its writing leaves the old copy or the new one, whole")
	dir := t.TempDir()
	identity, err := file.Create(filepath.Join(dir, "copies"))
	if err != nil {
		t.Fatal(err)
	}
	if err := identity.Use(func(b []byte) error { return os.WriteFile(filepath.Join(dir, "identity"), b, 0o600) }); err != nil {
		t.Fatal(err)
	}
	var kills, halfway, done int
	for _, call := range calls(t, dir) {
		for n := 1; ; n++ { // of this call, in any one thread
			if n > 200 {
				t.Fatalf("%s: it does not end", call)
			}
			if err := seal(dir, "old"); err != nil {
				t.Fatal(err)
			}
			out, err := traced(t, dir, "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n))
			value := sealed(t, dir)
			left, _ := filepath.Glob(filepath.Join(dir, "copies", ".new-*"))
			for _, name := range left {
				_ = os.Remove(name)
			}
			if err == nil {
				if value != "new" {
					t.Errorf("%s: it ended well, and the copy is the old one", call)
				}
				break
			}
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("%s %d: %v\n%s", call, n, err, out)
			}
			kills++
			if len(left) > 0 {
				halfway++
			}
			if value == "new" {
				done++
			}
		}
	}
	// Steps of all three kinds were met: before, with a file that is not in place
	// yet (opened, written, synced), and after it was put in place.
	if kills < 30 || halfway < 5 || done < 3 {
		t.Errorf("%d kills, %d with an unfinished file, %d after the copy was in place", kills, halfway, done)
	}
	t.Logf("%d kills, %d with an unfinished file, %d after the copy was in place", kills, halfway, done)
}
