package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func setupOf(answers map[string]string) *setupRun {
	in := &setupRun{sockets: &sockets{}, say: io.Discard, text: map[string]*string{}}
	in.flags(&cobra.Command{})
	for flag, text := range answers {
		*in.text[flag] = text
	}
	return in
}

// TestHide: what was pasted beyond the line that was asked for neither shows nor
// waits for the shell.
func TestHide(t *testing.T) {
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	defer ours.Close()
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	must(t, err, unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0))
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	defer terminal.Close()
	show, err := hide(terminal)
	must(t, err)
	_, err = ours.WriteString("first\nthe-second\nthe-third, without its end")
	must(t, err)
	line, err := readBytes(t.Context(), terminal)
	if show(); err != nil || string(line) != "first" {
		t.Errorf("%q, %v", line, err)
	}
	_, err = ours.WriteString("typed\n")
	must(t, err)
	if line, err := readLine(t.Context(), terminal); line != "typed" {
		t.Errorf("the next one to read gets %q, %v", line, err)
	}
	text, buf := "", make([]byte, 1<<10)
	for !strings.Contains(text, "typed") {
		n, err := ours.Read(buf)
		must(t, err)
		text += string(buf[:n])
	}
	if strings.Contains(text, "the-") {
		t.Errorf("the terminal shows %q", text)
	}
}

// TestSetupWrite: a file that cannot be written leaves all as it was.
func TestSetupWrite(t *testing.T) {
	in := setupOf(nil)
	in.root = t.TempDir()
	must(t, os.WriteFile(in.at("/old"), []byte("old"), 0o640), os.WriteFile(in.at("/file"), nil, 0o600))
	if os.Geteuid() == 0 {
		must(t, os.Chown(in.at("/old"), -1, 4711))
	}
	changed, err := in.file("/old", []byte("new"), 0o644, false)
	must(t, err)
	err = in.write([]*setupFile{{Path: "/d/new", State: "created", data: []byte("x"), mode: 0o600}, changed,
		{Path: "/file", State: "unchanged"}, {Path: "/file/below", State: "created", data: []byte("x"), mode: 0o644}})
	if err == nil || !strings.Contains(err.Error(), "everything is as it was") {
		t.Error(err)
	}
	if text, err := os.ReadFile(in.at("/old")); err != nil || string(text) != "old" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := os.Stat(in.at("/d/new")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("it is there:", err)
	}
	must(t, in.write([]*setupFile{changed}))
	if info, err := os.Stat(in.at("/old")); err != nil || info.Mode() != 0o640 {
		t.Error(info.Mode(), err)
	}
	if info, err := os.Stat(in.at("/old")); os.Geteuid() == 0 && (err != nil || info.Sys().(*syscall.Stat_t).Gid != 4711) {
		t.Error("it is another's now:", err)
	}
	must(t, os.Symlink("old", in.at("/link")))
	if _, err := in.file("/link", nil, 0o644, false); err == nil || !strings.Contains(err.Error(), "is a link") {
		t.Error(err)
	}
}

// TestEditConfig: every line that is not the provider's own stays.
func TestEditConfig(t *testing.T) {
	const block = "  corp:\n    systemd: {}\n"
	for name, c := range map[string]struct{ before, after, err string }{
		"none":       {"", "# Configuration of the credential broker: credential-broker.yaml(5). When it is\n# changed, run broker check, then systemctl reload credential-broker.\n\nproviders:\n" + block, ""},
		"no section": {"# a\naudit:\n  anchor: none\n", "# a\naudit:\n  anchor: none\n\nproviders:\n" + block, ""},
		"empty":      {"providers: {} # none yet\nstate: /x\n", "providers:\n" + block + "state: /x\n", ""},
		"another":    {"providers: # all\n  # the first\n  a:\n    systemd: {}\nstate: /x\n", "providers: # all\n" + block + "  # the first\n  a:\n    systemd: {}\nstate: /x\n", ""},
		"deeper":     {"providers:\n    a:\n        systemd: {}\n", "providers:\n    corp:\n      systemd: {}\n    a:\n        systemd: {}\n", ""},
		"same":       {"providers:\n  a: { systemd: {} }\n" + block + "  # b\n  b:\n    systemd: {}\n\n\n", "providers:\n  a: { systemd: {} }\n" + block + "  # b\n  b:\n    systemd: {}\n\n\n", ""},
		"other":      {"providers:\n  corp: # mine\n    file:\n      path: /x\n", "", "a provider corp already"},
		"flow":       {"providers: { a: { systemd: {} } }\n", "", "on one line"},
		"longer":     {"providers:\n  corporate:\n    systemd: {}\n", "providers:\n" + block + "  corporate:\n    systemd: {}\n", ""},
		"in comment": {"# providers:\n#   corp:\nclients:\n  providers:\n    x: y\n", "# providers:\n#   corp:\nclients:\n  providers:\n    x: y\n\nproviders:\n" + block, ""},
	} {
		in := setupOf(map[string]string{"provider": "corp"})
		in.manager, in.root = managers()[5], t.TempDir()
		got, err := in.editConfig(c.before)
		if got != c.after || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v\n%s", name, err, got)
		}
	}
	in := setupOf(map[string]string{"provider": "corp"})
	in.manager, in.root, in.replace = managers()[5], t.TempDir(), true
	got, err := in.editConfig("providers:\n  corp:\n    file:\n      # deep\n      path: /x\n\n  # of b\n  b: { systemd: {} }\n")
	if want := "providers:\n" + block + "\n  # of b\n  b: { systemd: {} }\n"; got != want || err != nil {
		t.Errorf("%v\n%s", err, got)
	}
}

// TestSetupForms: each way to log in that setup knows is one that the
// configuration takes.
func TestSetupForms(t *testing.T) {
	program := filepath.Join(t.TempDir(), "brokerd")
	if out, err := exec.Command("go", "build", "-o", program, "../brokerd").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv("PATH", filepath.Dir(program)+":"+os.Getenv("PATH"))
	values := map[string]string{"address": "https://v.example:8200", "region": "eu-west-1", "vault-url": "https://corp.vault.azure.net", "project": "corp-integrations",
		"store": "/srv/secrets", "tenant-id": "11111111-2222-3333-4444-555555555555", "application-id": "66666666-2222-3333-4444-555555555555",
		"namespace": "team", "kv": "1", "ca-file": "/etc/ssl/ca.pem", "proxy": "http://proxy.corp.example:3128",
		"provider": "corp", "client": "vdab", "preset": "vdab-test", "path": "vdab-test", "mount": "secret", "contact": "a: b", "purpose": "true", "role": "r"}
	for _, m := range managers() {
		for _, l := range m.logins {
			in := setupOf(values)
			in.manager, in.login, in.root, in.allow, in.dryRun = m, l, t.TempDir(), []string{"user=1000,executable=/bin/x y"}, true
			must(t, in.valid(), os.Chmod(in.root, 0o700))
			if _, err := in.policy(); err != nil {
				t.Error(m.name, err)
			}
			files, err := in.plan(t.Context(), in.credentials())
			must(t, err)
			if err := in.check(t.Context(), files); err != nil {
				t.Errorf("%s, %s: %v\n%s", m.name, l.name, err, files[len(files)-2].data)
			}
		}
	}
}
