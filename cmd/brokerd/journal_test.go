package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/response"
)

// stream is a pipe, and its name as systemd would tell it to the process.
func stream(t *testing.T) (r, w *os.File, name string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	info, err := w.Stat()
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return r, w, fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// TestPriorities: each line has its level's priority in the journal, and none
// of that is seen elsewhere.
func TestPriorities(t *testing.T) {
	lines := func(of string) string {
		r, w, name := stream(t)
		if of == "" {
			of = name
		}
		t.Setenv("JOURNAL_STREAM", of)
		log := logger(w)
		log.Debug("not shown")
		log.Info("one\n<0>two")
		log.With("a", 1).WithGroup("g").Warn("three", "level", "x", "time", "y")
		log.Error("four")
		log.Log(context.Background(), response.LevelAlert, "five")
		log.Log(context.Background(), slog.LevelError+1, "six")
		fmt.Fprintln(w, failed(w, "seven\neight"))
		_ = w.Close()
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got, want := lines(""), `<6>level=INFO msg="one\n<0>two"
<4>level=WARN msg=three a=1 g.level=x g.time=y
<3>level=ERROR msg=four
<1>level=ALERT msg=five
<3>level=ERROR+1 msg=six
<3>seven
<3>eight
`; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, other := range []string{"1:1", "no", " "} {
		got := lines(other)
		for line := range strings.Lines(got) {
			if strings.HasPrefix(line, "<") || strings.Contains(line, "level=ERROR+4") {
				t.Errorf("%s: %s", other, line)
			}
		}
		if n := len(regexp.MustCompile(`(?m)^time=\S+ level=`).FindAllString(got, -1)); n != 5 || !strings.Contains(got, "level=ALERT msg=five\n") {
			t.Errorf("%s: %d times\n%s", other, n, got)
		}
	}
	var b bytes.Buffer
	logger(&b).Info("x")
	if strings.HasPrefix(b.String(), "<") {
		t.Error(b.String())
	}
}

// TestDaemonEndsInTheJournal: why it does not start is an error there.
func TestDaemonEndsInTheJournal(t *testing.T) {
	name, err := daemonProgram()
	if err != nil {
		t.Fatal(err)
	}
	r, w, journal := stream(t)
	cmd := exec.Command(name, "serve", "--config", "/none/broker.yaml")
	cmd.Stderr, cmd.Env = w, []string{"JOURNAL_STREAM=" + journal}
	if err := cmd.Run(); err == nil {
		t.Error("it runs")
	}
	_ = w.Close()
	b, err := io.ReadAll(r)
	if err != nil || !strings.HasPrefix(string(b), "<3>") || strings.Contains(strings.TrimSuffix(string(b), "\n"), "\n") && !strings.Contains(string(b), "\n<3>") {
		t.Errorf("%q, %v", b, err)
	}
}

// TestUnrecordedDeclaration: an act that the audit log does not take is told to
// whoever asked; if it was to declare a leak, to everybody.
func TestUnrecordedDeclaration(t *testing.T) {
	var b bytes.Buffer
	log, err := audit.Open(audit.Config{Anchor: "none"}, audit.Options{Dir: filepath.Join(t.TempDir(), "audit")})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{log: logger(&b), audit: log}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.act(ctx, nil, "rotate", "vdab", nil); err == nil || b.Len() > 0 {
		t.Errorf("%v\n%s", err, b.String())
	}
	if err := s.act(ctx, nil, "leak.declare", "vdab", nil); err == nil || !strings.Contains(b.String(), `level=ALERT msg="a leak was declared and is not recorded`) {
		t.Errorf("%v\n%s", err, b.String())
	}
}
