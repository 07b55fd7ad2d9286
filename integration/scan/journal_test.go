//go:build real

// Package scan runs the scanner on what other programs wrote.
package scan

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/real"
	"credentialbroker/internal/scan"
	"credentialbroker/internal/secret"
)

const value = "9f3d2e7b-a-client-secret-of-a-test"

// A journal that systemd's own program wrote, read by systemd's journalctl.
func TestJournal(t *testing.T) {
	real.Row(t, "scan", "journalctl (Debian)", "a secret in a journal that systemd wrote is found, with its unit and time, and the value is nowhere in the report")
	journal := writeJournal(t,
		[]string{"_SYSTEMD_UNIT=a.service", "MESSAGE=started"},
		[]string{"_SYSTEMD_UNIT=php8.2-fpm.service", "MESSAGE=Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("id:"+value))},
		[]string{"_SYSTEMD_UNIT=b.service", "MESSAGE=two\nlines, and a secret: " + value + "\n"},
		[]string{"_SYSTEMD_UNIT=c.service", "MESSAGE=" + value[:20]})
	x := scan.NewIndex(scan.IndexConfig{})
	if err := x.Add(scan.Needle{Client: "vdab", Field: "client_secret", Version: "7", Value: secret.FromString(value)}); err != nil {
		t.Fatal(err)
	}
	theirs, err := exec.LookPath("journalctl")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nexec '%s' --file='%s' \"$@\"\n", theirs, journal)
	if err := os.WriteFile(filepath.Join(bin, "journalctl"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	s, err := scan.New(scan.Config{Filter: x.Filter(), Journal: true, Confirm: func(_ context.Context, list []scan.Candidate) (out [][]scan.Match, err error) {
		for _, c := range list {
			out = append(out, x.Confirm(c))
		}
		return out, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	report, err := s.Run(t.Context())
	if err != nil || report.NotRead != 0 || len(report.Findings) != 2 {
		t.Fatalf("%+v, %v", report, err)
	}
	for i, want := range []struct {
		unit string
		at   time.Time
	}{{"php8.2-fpm.service", begin().Add(time.Second)}, {"b.service", begin().Add(2 * time.Second)}} {
		if f := report.Findings[i]; f.Source != scan.SourceJournal || f.Unit != want.unit || !f.Time.Equal(want.at) || f.Client != "vdab" || f.Field != "client_secret" || f.Version != "7" {
			t.Errorf("%+v", f)
		}
	}
	text, err := json.Marshal(report)
	if err != nil || strings.Contains(string(text), value[:12]) || strings.Contains(string(text), "Authorization") {
		t.Errorf("%s, %v", text, err)
	}
}

// begin is when the first entry was written.
func begin() time.Time { return time.Unix(1700000000, 0) }

// writeJournal has systemd write a journal of entries, one a second, in its
// Journal Export Format.
func writeJournal(t *testing.T, entries ...[]string) string {
	t.Helper()
	var b strings.Builder
	for i, fields := range entries {
		fmt.Fprintf(&b, "__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n_BOOT_ID=0123456789abcdef0123456789abcdef\n", begin().Add(time.Duration(i)*time.Second).UnixMicro(), (i+1)*1_000_000)
		for _, f := range fields {
			name, text, _ := strings.Cut(f, "=")
			if !strings.Contains(text, "\n") {
				b.WriteString(f + "\n")
				continue
			}
			size := make([]byte, 8)
			size[0] = byte(len(text)) // little-endian; texts here are short
			b.WriteString(name + "\n" + string(size) + text + "\n")
		}
		b.WriteString("\n")
	}
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "test.journal")
	if err := os.WriteFile(in, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	libs, err := filepath.Glob(real.Path("journal-remote", "usr", "lib", "*-linux-gnu"))
	if err != nil || len(libs) == 0 {
		t.Fatalf("integration/install.d/journal.sh was not run: %v", err)
	}
	write := exec.CommandContext(t.Context(), real.Path("journal-remote", "lib", "systemd", "systemd-journal-remote"), "--output="+out, in)
	write.Env = append(os.Environ(), "LD_LIBRARY_PATH="+libs[0])
	if said, err := write.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	return out
}
