//go:build real

// Package systemd compares the adapter with systemd's own tool for credentials.
package systemd

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
	"credentialbroker/providers/systemd"
)

const server = "systemd-creds (Debian)"

func TestSealedCredential(t *testing.T) {
	real.Row(t, "provider systemd", server, "unseals what the adapter reads, and reads the same")
	const payload = `{"client_id":"id","client_secret":"two \u00e9"}`
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	run := func(input string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), "systemd-creds", args...)
		cmd.Stdin = strings.NewReader(input)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return string(out)
	}
	// A key that every machine has stands in for the host's and the TPM's: what
	// unseals is systemd's business, not the adapter's.
	sealed := run(payload, "encrypt", "--with-key=tpm2-absent", "--name=app", "-", "-")
	if strings.Contains(sealed, "two") {
		t.Fatalf("not sealed: %s", sealed)
	}
	unsealed := run(sealed, "decrypt", "--name=app", "-", "-")
	if err := os.WriteFile(filepath.Join(dir, "app"), []byte(unsealed), 0o400); err != nil {
		t.Fatal(err)
	}
	p, err := systemd.Open(systemd.Config{}, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Fetch(t.Context(), providers.Ref{Path: "app"}, "")
	if err != nil || len(b.Fields) != 2 || !b.Fields["client_secret"].Equal(secret.FromString("two é")) {
		t.Errorf("%d fields, %v", len(b.Fields), err)
	}
	if got := run("", "cat", "app"); got != payload {
		t.Errorf("systemd reads %s", got)
	}
}
