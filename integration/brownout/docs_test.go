//go:build real

package brownout

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
)

// TestPage does what docs/brown-out.md says, in its order: every block and
// command. What only a booted systemd can do is done in its place.
func TestPage(t *testing.T) {
	real.Row(t, "brown-out", "Vault 1.21.4, age and systemd-creds (Debian), brokerd", "docs/brown-out.md: every block and command; the daemon then starts in an outage")
	page, err := os.ReadFile(filepath.Join(real.Root(), "docs", "brown-out.md"))
	if err != nil {
		t.Fatal(err)
	}
	v := startVault(t)
	h := newHost(t, v)
	for _, dir := range []string{"credstore.encrypted", "systemd", "credentials"} {
		if err := os.Mkdir(h.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// Where the page's places are here. A key that every machine has stands in
	// for the host's and the TPM's.
	here := strings.NewReplacer("/etc/credstore.encrypted", h.path("credstore.encrypted"), "/etc/systemd/system", h.path("systemd"),
		"/var/lib/credential-broker", h.path("state"), "--with-key=auto", "--with-key=tpm2-absent", "/usr/share/credential-broker/drop-ins", filepath.Join(real.Root(), "configs", "systemd", "drop-ins"))
	sealed := h.path("credstore.encrypted", "brown-out")
	start := func() {
		t.Helper()
		if h.daemon != nil {
			h.kill()
		}
		drop, err := os.ReadFile(h.path("systemd", "credential-broker.service.d", "brown-out.conf"))
		if err != nil || !strings.Contains(here.Replace(string(drop)), "LoadCredentialEncrypted=brown-out:"+sealed+"\n") {
			t.Fatalf("the unit would not get the credential: %v\n%s", err, drop)
		}
		real.Must(t, exec.CommandContext(t.Context(), "systemd-creds", "decrypt", "--name=brown-out", sealed, h.path("credentials", "brown-out")))
		h.serve("CREDENTIALS_DIRECTORY=" + h.path("credentials"))
	}
	before := strings.Replace(h.yaml, "  local: { file: { path: "+h.path("state", "brown-out")+", identity_file: "+h.path("identity")+", insecure_identity: true } }\n", "", 1)
	ran := 0
	command := func(line string) {
		t.Helper()
		t.Logf("$ %s", line)
		ran++
		switch {
		case line == "systemctl daemon-reload":
		case line == "systemctl restart credential-broker":
			start()
			h.token(20e9)
			h.until("there is a copy", func(c client.StatusClient) bool { return !c.Kept.IsZero() })
		case line == "broker reload":
			h.write(before)
			if out := h.sh(line); !strings.Contains(out, "rm "+h.path("state", "brown-out")+"/*.copy.age") {
				t.Errorf("reload: %s", out)
			}
		case line == "broker check":
			if out := h.sh("broker check --config " + h.path("broker.yaml")); !strings.Contains(out, "no mistakes") || strings.Contains(out, "insecure") {
				t.Errorf("check: %s", out)
			}
		case line == "broker status --json":
			if out := h.sh(line); !strings.Contains(out, `"kept": "`) {
				t.Errorf("status: %s", out)
			}
			v.call("PUT", "sys/seal", nil) // the outage that the page is about
			start()
			h.token(2e9)
		case line == "broker status":
			if out := h.sh(line); !strings.Contains(out, "DEGRADED until ") || !strings.Contains(out, "  DEGRADED  ") {
				t.Errorf("status: %s", out)
			}
		case line == "broker status --check":
			if out := h.sh(line + " || echo $?"); !strings.HasPrefix(out, "WARNING: app: DEGRADED") || !strings.HasSuffix(out, "\n1\n") {
				t.Errorf("status: %s", out)
			}
		case strings.HasPrefix(line, "age-keygen "), strings.HasPrefix(line, "install "), strings.HasPrefix(line, "rm "):
			h.sh(here.Replace(line))
		default:
			t.Fatalf("nobody knows what to do with %q", line)
		}
	}
	for _, m := range regexp.MustCompile("(?s)```(\\w+)\n(.*?)```").FindAllSubmatch(page, -1) {
		switch text := string(m[2]); string(m[1]) {
		case "yaml":
			one, two, _ := strings.Cut(text, "providers:\n")
			h.write(strings.Replace(before, "providers:\n", "providers:\n"+here.Replace(two), 1) + one)
		case "sh":
			for line := range strings.Lines(text) {
				command(strings.TrimSpace(line))
			}
		default:
			t.Fatalf("nobody knows what to do with a block of %s", m[1])
		}
	}
	left, _ := filepath.Glob(h.path("state", "brown-out", "*.age"))
	if text, _ := filepath.Glob(h.path("*", "*identity*")); ran < 10 || len(left) > 0 || len(text) > 0 {
		t.Errorf("%d commands, left: %v %v", ran, left, text)
	}
}

func (h *host) write(yaml string) {
	h.t.Helper()
	if err := os.WriteFile(h.path("broker.yaml"), []byte(yaml), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// sh runs a line as the page prints it.
func (h *host) sh(line string) string {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), "sh", "-c", line)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(real.Root(), "dist")+":"+os.Getenv("PATH"), "CREDENTIAL_BROKER_SOCKET="+h.path("broker.sock"),
		"CREDENTIALS_DIRECTORY="+h.path("credentials"))
	return real.Must(h.t, cmd)
}
