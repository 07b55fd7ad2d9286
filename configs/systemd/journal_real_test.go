//go:build real

package systemd_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/integration/real"
	"credentialbroker/internal/audit"
)

const inside = "AUDIT_TEST_JOURNAL"

// TestAnchorsInTheJournal runs a journald of its own, in a mount namespace
// where /run and /var/log are empty, and a log that is anchored in it. This
// needs root, as journald does.
func TestAnchorsInTheJournal(t *testing.T) {
	if os.Getenv(inside) != "" {
		anchored(t)
		return
	}
	real.Row(t, "audit log", "systemd-journald (Debian)", "anchors come back through journalctl; a log that was removed is found")
	cmd := exec.Command(os.Args[0], "-test.run=^TestAnchorsInTheJournal$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if out := real.Must(t, cmd); !strings.Contains(out, "--- PASS: TestAnchorsInTheJournal") {
		t.Error(out)
	}
}

func anchored(t *testing.T) {
	journald(t)
	dir := filepath.Join(t.TempDir(), "audit")
	l, err := audit.Open(audit.Config{}, audit.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	if err := l.Record(ctx, audit.Event{Type: audit.TokenHandover, Client: "vdab", Caller: &audit.Caller{UID: 33}}); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if s := l.Status(); s.Anchors != "journald" || s.AnchorSeq != s.Seq {
		t.Fatalf("%+v", s)
	}
	anchors := exported(t, 2) // at the start and at the end
	r, err := audit.Verify(dir, anchors)
	if err != nil || !r.OK() || r.Anchors != 2 || r.Covered != r.Last {
		t.Errorf("%+v, %v", r, err)
	}
	// The whole log is removed.
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	if r, err = audit.Verify(dir, anchors); err != nil || r.OK() {
		t.Errorf("%+v, %v", r, err)
	}
}

// journald starts systemd-journald, and ends it with the test.
func journald(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"/run", "/var/log"} {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	conf := "/run/systemd/journald.conf.d/test.conf"
	if err := errors.Join(os.MkdirAll(filepath.Dir(conf), 0o755), os.MkdirAll("/run/systemd/journal", 0o755), os.MkdirAll("/run/log/journal", 0o755),
		// The machine's own kernel messages and audit settings are left alone.
		os.WriteFile(conf, []byte("[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/lib/systemd/systemd-journald")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	const socket = "/run/systemd/journal/socket"
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			return
		}
	}
	t.Fatal("journald does not listen")
}

// exported reads the anchors as the documentation says, once there are n.
func exported(t *testing.T, n int) (anchors []audit.Anchor) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); len(anchors) < n && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		// journalctl exits with 1 as long as there is nothing.
		out, _ := exec.Command("journalctl", "-o", "json", "--no-pager", "MESSAGE_ID="+audit.AnchorMessageID).Output()
		var err error
		if anchors, err = audit.ParseAnchors(strings.NewReader(string(out))); err != nil {
			t.Fatal(err)
		}
	}
	if len(anchors) != n {
		t.Fatalf("%d anchors in the journal: %+v", len(anchors), anchors)
	}
	for _, a := range anchors {
		if age := time.Since(a.Time); age < 0 || age > time.Minute {
			t.Errorf("%+v", a)
		}
	}
	return anchors
}
