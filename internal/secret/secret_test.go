package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const clearText = "correct-horse-battery"

func TestNoPrintingShowsTheValue(t *testing.T) {
	s := FromString(clearText)
	type nested struct {
		Public  Secret
		private Secret
		list    []Secret
		byName  map[string]Secret
		pointer *Secret
	}
	n := nested{s, s, []Secret{s}, map[string]Secret{"a": s}, &s}
	var logged bytes.Buffer
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "secret", s, "nested", n)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "secret", s, "nested", n)
	marshalled, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{logged.String(), string(marshalled)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d"} {
		out = append(out, fmt.Sprintf(verb, s), fmt.Sprintf(verb, n), fmt.Sprintf(verb, &n))
	}
	hex := fmt.Sprintf("%x", clearText)
	for _, o := range out {
		if strings.Contains(o, clearText) || strings.Contains(strings.ToLower(o), hex) || strings.Contains(o, "Y29ycmVjdC1ob3") {
			t.Errorf("the value shows in %q", o)
		}
	}
}

func TestNewWipesItsArgument(t *testing.T) {
	b := []byte(clearText)
	New(b)
	if !bytes.Equal(b, make([]byte, len(clearText))) {
		t.Errorf("argument still holds %q", b)
	}
}

func TestWipe(t *testing.T) {
	s := FromString(clearText)
	mem := s.s.mem
	err := s.Use(func(b []byte) error {
		s.Wipe()
		if string(b) != clearText {
			t.Error("wiped while in use")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mem, make([]byte, len(mem))) {
		t.Error("memory not wiped after the last use")
	}
	if err := s.Use(func([]byte) error { t.Error("called"); return nil }); !errors.Is(err, ErrWiped) {
		t.Errorf("err = %v, want ErrWiped", err)
	}
	if s.Equal(s) {
		t.Error("a wiped value equals something")
	}
	s.Wipe() // again: nothing
}

func TestForgottenValueIsWiped(t *testing.T) {
	mem := func() []byte { return FromString(strings.Repeat("f", 3000)).s.mem }()
	for range 200 {
		runtime.GC()
		vault.mu.Lock()
		wiped := mem[0] == 0
		vault.mu.Unlock()
		if wiped {
			return
		}
		runtime.Gosched()
		<-time.After(time.Millisecond)
	}
	t.Error("a value without handles was never wiped")
}

func TestConcurrentUseAndWipe(t *testing.T) {
	for range 200 {
		s := FromString(clearText)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 50 {
					err := s.Use(func(b []byte) error {
						if string(b) != clearText {
							t.Errorf("read %q", b)
						}
						return nil
					})
					if err != nil && !errors.Is(err, ErrWiped) {
						t.Error(err)
					}
				}
			})
		}
		wg.Go(s.Wipe)
		wg.Wait()
	}
}

func TestSizes(t *testing.T) {
	for _, n := range []int{0, 1, 31, 32, 33, 64 << 10, 64<<10 + 1, 1 << 20} {
		s := New(bytes.Repeat([]byte{'x'}, n))
		if s.Len() != n {
			t.Errorf("Len = %d, want %d", s.Len(), n)
		}
		c, err := s.Clone()
		if err != nil || !c.Equal(s) {
			t.Errorf("clone of %d bytes differs (%v)", n, err)
		}
		s.Wipe()
		if n > 0 && c.Empty() {
			t.Error("wiping the original wiped the clone")
		}
		c.Wipe()
	}
}

// The kernel refuses to read memfd_secret memory on anybody's behalf. Where it
// has none, which is asked without our own code, the test says what stands in.
func TestMemoryIsUnreadableThroughProc(t *testing.T) {
	s := FromString(clearText)
	fd, err := unix.MemfdSecret(0)
	if err != nil {
		t.Logf("no memfd_secret here (%v); held by %v", err, Protected())
		return
	}
	_ = unix.Close(fd)
	if Protected()[MemfdSecret] == 0 {
		t.Fatalf("this kernel has memfd_secret, and secrets are held by %v", Protected())
	}
	f, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, len(clearText))
	if _, err := f.ReadAt(b, int64(uintptr(unsafe.Pointer(&s.s.mem[0])))); err == nil {
		t.Errorf("read %q", b)
	}
	runtime.KeepAlive(s)
}

func TestHarden(t *testing.T) {
	if err := Harden(); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || n != 0 {
		t.Errorf("dumpable = %d, %v", n, err)
	}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &l); err != nil || l.Max != 0 {
		t.Errorf("core limit = %+v, %v", l, err)
	}
}

func BenchmarkUse(b *testing.B) {
	s := FromString(strings.Repeat("t", 1200))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_ = s.Use(func([]byte) error { return nil })
		}
	})
}
