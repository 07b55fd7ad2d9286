// Package packaging_test checks what the packages are made with, with Go and
// git alone; integration/package looks at the packages themselves.
package packaging_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestVersion: what comes later sorts later, and the version says which commit
// it is.
func TestVersion(t *testing.T) {
	script, err := filepath.Abs("version.sh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_AUTHOR_DATE=2026-11-21T23:30:05-0200", "GIT_COMMITTER_DATE=2026-11-21T23:30:05-0200",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	commit := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		run("git", "add", "f")
		run("git", "commit", "-q", "-m", text)
	}
	is := func(want string) {
		t.Helper()
		if got := strings.ReplaceAll(run("sh", script), run("git", "rev-parse", "--short=12", "HEAD"), "HASH"); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	run("git", "init", "-q")
	commit("1")
	is("0~git20261122013005.HASH")
	run("git", "tag", "other")
	is("0~git20261122013005.HASH")
	run("git", "tag", "v1.2.3-rc-1")
	is("1.2.3~rc.1")
	commit("2")
	is("1.2.3~rc.1+git1.HASH")
	run("git", "tag", "v1.2.3")
	is("1.2.3")
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	is("1.2.3+git0.HASH.dirty")
	commit("3")
	is("1.2.3+git1.HASH")
}

// TestDirectories: tmpfiles.conf makes what the units would make.
func TestDirectories(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join("../configs/systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	value := func(unit, key string) string {
		m := regexp.MustCompile(`(?m)^` + key + `=(.*)$`).FindStringSubmatch(read(unit))
		if m == nil {
			t.Fatalf("%s has no %s=", unit, key)
		}
		return m[1]
	}
	const service, socket = "credential-broker.service", "credential-broker.socket"
	user := value(service, "User")
	for _, want := range []string{
		"d " + filepath.Dir(value(socket, "ListenStream")) + " " + value(socket, "DirectoryMode") + " root root -\n",
		"d /var/lib/" + value(service, "StateDirectory") + " " + value(service, "StateDirectoryMode") + " " + user + " " + value(service, "Group") + " -\n",
	} {
		if !strings.Contains(read("tmpfiles.conf"), "\n"+want) {
			t.Errorf("tmpfiles.conf lacks %s", want)
		}
	}
	if !strings.Contains(read("sysusers.conf"), "\nu "+user+" ") {
		t.Errorf("sysusers.conf makes no %s", user)
	}
}

// TestShells: the shell reads every script, and none names a unit that there is
// not.
func TestShells(t *testing.T) {
	scripts, _ := filepath.Glob("deb/p*")
	more, _ := filepath.Glob("rpm/*")
	if scripts = append(scripts, more...); len(scripts) != 7 {
		t.Fatal(scripts)
	}
	units, _ := filepath.Glob("../configs/systemd/credential-broker*.s*")
	unit := regexp.MustCompile(`credential-broker[a-z-]*\.(service|socket)`)
	for _, name := range scripts {
		if out, err := exec.Command("sh", "-n", name).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", name, err, out)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		named := map[string]bool{}
		for _, u := range unit.FindAllString(text, -1) {
			named[u] = true
			if _, err := os.Stat(filepath.Join("../configs/systemd", u)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, u := range units {
			if base := filepath.Base(u); name != "rpm/postun" && name != "deb/preinst" && !named[base] {
				t.Errorf("%s does not name %s", name, base)
			}
		}
	}
}
