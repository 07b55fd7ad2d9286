//go:build real

package leak

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"credentialbroker/integration/real"
)

// The disk of the state directory is full while a leak is declared, and after.
func TestFullDisk(t *testing.T) {
	real.Row(t, "leak", server, "full disk: broker leak declare says that nothing is recorded; once there is room, it is, and arrives; killed with the disk full again, it stays contained and is not reported twice")
	s := newSite(t)
	state := s.path("state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, "size=4m,mode=0700"); err != nil {
		t.Fatal("this test needs root, to make a disk that it can fill: ", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(state, syscall.MNT_DETACH) })
	kill := s.start()
	token := func() (code int) {
		t.Helper()
		_, _, code = s.broker("token", "vdab")
		return code
	}
	if code := token(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	filler := filepath.Join(state, "filler")
	fill := func() {
		t.Helper()
		f, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err = io.Copy(f, zeros{}); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	fill()
	if how, recorded := s.declare(); recorded || how != "not recorded" {
		t.Errorf("on a full disk: %s", how)
	}
	if id := s.onlyOne(); id != "" {
		t.Errorf("it is there all the same: %s", id)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if how, recorded := s.declare(); !recorded {
		t.Fatalf("with room again: %s", how)
	}
	id := s.onlyOne()
	s.reported(s.show(id))
	fill()
	kill()
	kill = s.start()
	if code := token(); code == 0 {
		t.Error("handed over by a daemon that started on a full disk")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if code := token(); code != notAllowed {
		t.Errorf("exit code %d, want %d", code, notAllowed)
	}
	if twice, _ := s.reported(s.show(id)); twice != 0 {
		t.Errorf("%d mails came twice", twice)
	}
	kill()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
