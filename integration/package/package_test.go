//go:build real

// Package pkg makes the packages, as make package does, and has the tools of
// the distributions look at them.
package pkg

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"credentialbroker/integration/real"
)

const area = "packages"

// made makes the packages into dist/packages, where other tests find them too.
func made(t *testing.T) string {
	t.Helper()
	real.Must(t, in(real.Root(), "make", "package"))
	return filepath.Join(real.Root(), "dist", "packages")
}

func in(dir, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	return cmd
}

// one is the one file that the pattern matches.
func one(t *testing.T, pattern string) string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) != 1 {
		t.Fatalf("%s: %v, %v", pattern, list, err)
	}
	return list[0]
}

// TestPackages looks at what make package has made once.
func TestPackages(t *testing.T) {
	dir := made(t)
	t.Run("reproducible", func(t *testing.T) {
		real.Row(t, area, "make package", "two builds, in two places, under another umask, time zone and home, are the same bytes")
		reproducible(t, dir)
	})
	t.Run("checksums", func(t *testing.T) {
		real.Row(t, area, "sha256sum", "SHA256SUMS is of every file")
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if out := real.Must(t, in(dir, "sha256sum", "--check", "--strict", "SHA256SUMS")); strings.Count(out, ": OK\n") != len(files)-1 || len(files) != 9 {
			t.Errorf("%d files\n%s", len(files), out)
		}
	})
	for _, arch := range []string{"amd64", "arm64"} {
		t.Run("lintian-"+arch, func(t *testing.T) {
			real.Row(t, area, "lintian (Debian)", "nothing is said of the deb for "+arch+", information and pedantry among it, but for overrides with reasons")
			deb := one(t, dir+"/*_"+arch+".deb")
			// Go stores strings without anything between: where two meet, words look misspelt.
			out, err := in(dir, "lintian", "--suppress-tags", "spelling-error-in-binary", "--allow-root", "--display-info", "--pedantic", "--fail-on", "error,warning,info,pedantic", deb).CombinedOutput()
			if err != nil || len(out) > 0 {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	t.Run("deb", func(t *testing.T) {
		real.Row(t, area, "dpkg-deb (Debian)", "everything is where an installed host has it, owned by root, writable by nobody else")
		deb := one(t, dir+"/*_amd64.deb")
		installed(t, real.Must(t, in(dir, "dpkg-deb", "--contents", deb)), regexp.MustCompile(`(?m)^(\S{10}) root/root .* \.(/\S+)$`))
		if got := real.Must(t, in(dir, "dpkg-deb", "--info", deb, "conffiles")); got != "/etc/credential-broker/broker.yaml\n" {
			t.Errorf("conffiles: %q", got)
		}
	})
	t.Run("rpm", func(t *testing.T) {
		real.Row(t, area, "rpm (Debian)", "digests and headers are well; it owns no directory but its own; the configuration is not replaced")
		checkRPM(t, dir)
	})
	t.Run("rpm-life", func(t *testing.T) {
		real.Row(t, area, "rpm (Debian)", "installed, upgraded and removed in a root that is not booted: user and presets, a changed configuration stays, nothing else does")
		lifeOfRPM(t, dir)
	})
	t.Run("tarball", func(t *testing.T) {
		real.Row(t, area, "tar", "the static programs run from the tarball, on a machine without anything else")
		checkTarball(t, dir)
	})
	t.Run("man", func(t *testing.T) {
		real.Row(t, area, "man (Debian)", "every manual page is formatted without a warning")
		pages, _ := filepath.Glob(filepath.Join(real.Root(), "packaging", "man", "*.[158]"))
		if len(pages) != 3 {
			t.Fatal(pages)
		}
		for _, p := range pages {
			cmd := in(dir, "man", "--warnings", "--local-file", p)
			cmd.Env = append(cmd.Env, "MANROFFSEQ=", "MANWIDTH=80")
			var said strings.Builder
			cmd.Stderr = &said
			if out, err := cmd.Output(); err != nil || said.Len() > 0 || len(out) < 1000 {
				t.Errorf("%s: %v, %d bytes\n%s", p, err, len(out), said.String())
			}
		}
	})
}

// reproducible makes them once more, from a copy of the project in another
// place, and compares the sums.
func reproducible(t *testing.T, dir string) {
	copied := filepath.Join(t.TempDir(), "a copy", "elsewhere")
	root := real.Root()
	real.Must(t, in(root, "git", "clone", "-q", "--no-checkout", root, copied))
	real.Must(t, in(copied, "git", "reset", "-q", strings.TrimSpace(real.Must(t, in(root, "git", "rev-parse", "HEAD")))))
	// The working copy as it is, committed or not.
	real.Must(t, in(root, "bash", "-c", `git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --target-directory="$0"`, copied))
	cmd := in(copied, "bash", "-c", `umask 077; packaging/package.sh "$0"`, filepath.Join(copied, "out"))
	cache := strings.Fields(real.Must(t, in(root, "go", "env", "GOCACHE", "GOMODCACHE", "GOPATH")))
	nfpm := one(t, filepath.Join(root, ".tools", "nfpm-*"))
	cmd.Env = append(cmd.Env, "NFPM="+nfpm, "HOME="+t.TempDir(), "TZ=Asia/Kathmandu", "USER=somebody", "GOCACHE="+cache[0], "GOMODCACHE="+cache[1], "GOPATH="+cache[2])
	real.Must(t, cmd)
	want, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(copied, "out", "SHA256SUMS"))
	if err != nil || string(got) != string(want) {
		t.Errorf("%v\n%s\nis not\n%s", err, got, want)
	}
}

// installed holds a listing (mode, path) against the layout of an installed
// host.
func installed(t *testing.T, listing string, line *regexp.Regexp) {
	t.Helper()
	modes := map[string]string{}
	for _, m := range line.FindAllStringSubmatch(listing, -1) {
		modes[strings.TrimSuffix(m[2], "/")] = m[1]
		if m[1][5] == 'w' || m[1][8] == 'w' || strings.ContainsAny(m[1], "sStT") {
			t.Errorf("%s %s", m[1], m[2])
		}
	}
	if lines := strings.Count(listing, "\n"); len(modes) < lines-1 { // ./ itself
		t.Errorf("%d of %d lines are root's:\n%s", len(modes), lines, listing)
	}
	const program, file, directory = "-rwxr-xr-x", "-rw-r--r--", "drwxr-xr-x"
	for path, want := range map[string]string{
		"/usr/bin/broker": program, "/usr/libexec/credential-broker/brokerd": program,
		"/usr/lib/systemd/system/credential-broker.service": file, "/usr/lib/systemd/system/credential-broker.socket": file,
		"/usr/lib/systemd/system/credential-broker-admin.socket": file, "/usr/lib/systemd/system/credential-broker-credential.socket": file,
		"/usr/lib/sysusers.d/credential-broker.conf": file, "/usr/lib/tmpfiles.d/credential-broker.conf": file,
		"/etc/credential-broker": directory, "/etc/credential-broker/clients.d": directory, "/etc/credential-broker/broker.yaml": file,
		"/usr/share/man/man1/broker.1.gz": file, "/usr/share/man/man5/credential-broker.yaml.5.gz": file, "/usr/share/man/man8/brokerd.8.gz": file,
		"/usr/share/bash-completion/completions/broker": file, "/usr/share/fish/vendor_completions.d/broker.fish": file,
		"/usr/share/credential-broker/drop-ins/credentials.conf": file, "/usr/share/credential-broker/polkit/50-credential-broker.rules": file,
		"/usr/share/credential-broker/examples/vault/broker.yaml": file, "/usr/share/credential-broker/examples/exec/example.sh": program,
		"/usr/share/credential-broker/broker.schema.json": file, "/usr/share/credential-broker/clients/credential_broker.py": file,
		"/usr/share/doc/credential-broker/install.md": file, "/usr/share/doc/credential-broker/sbom.cdx.json": file,
		"/usr/share/doc/credential-broker/third-party-licences.txt": file,
	} {
		if modes[path] != want {
			t.Errorf("%s: %q, want %s", path, modes[path], want)
		}
	}
}

func checkRPM(t *testing.T, dir string) {
	rpms, _ := filepath.Glob(dir + "/*.rpm")
	if len(rpms) != 2 {
		t.Fatal(rpms)
	}
	if out := real.Must(t, in(dir, "rpm", append([]string{"--checksig"}, rpms...)...)); strings.Count(out, ": digests OK\n") != 2 {
		t.Error(out)
	}
	rpm := one(t, dir+"/*.x86_64.rpm")
	listing := real.Must(t, in(dir, "rpm", "-qplv", rpm))
	installed(t, listing, regexp.MustCompile(`(?m)^(\S{10}) +\d+ root +root .* (/\S+)$`))
	for _, m := range regexp.MustCompile(`(?m)^d.* (/\S+)$`).FindAllStringSubmatch(listing, -1) {
		if !strings.Contains(m[1], "/credential-broker") {
			t.Errorf("it owns %s, which is the distribution's", m[1])
		}
	}
	// RPMFILE_CONFIG | RPMFILE_NOREPLACE
	if out := real.Must(t, in(dir, "rpm", "-qp", "--queryformat", `[%{FILENAMES} %{FILEFLAGS:fflags}\n]`, rpm)); !strings.Contains(out, "/etc/credential-broker/broker.yaml cn\n") {
		t.Errorf("flags:\n%s", out)
	}
	if out := real.Must(t, in(dir, "rpm", "-qp", "--queryformat", "%{BUILDHOST} %{ARCH} %{LICENSE}", rpm)); out != "localhost x86_64 Apache-2.0" {
		t.Error(out)
	}
}

// lifeOfRPM runs the scripts of the rpm in a copy of the Debian root that
// integration/nspawn boots. There is no systemd to talk to, as in the making of
// an image.
func lifeOfRPM(t *testing.T, dir string) {
	root := filepath.Join(t.TempDir(), "root")
	real.Must(t, in(dir, "cp", "-a", real.Path("nspawn", "root"), root))
	run := func(args ...string) {
		t.Helper()
		out := real.Must(t, in(dir, "rpm", append([]string{"--root", root}, args...)...))
		if strings.Contains(out, "failed") {
			t.Errorf("rpm %v:\n%s", args, out)
		}
	}
	has := func(path, want string) {
		t.Helper()
		if b, err := os.ReadFile(filepath.Join(root, path)); err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s does not hold %q: %v", path, want, err)
		}
	}
	const config, wanted = "etc/credential-broker/broker.yaml", "etc/systemd/system/sockets.target.wants/credential-broker.socket"
	run("--initdb") // which knows nothing of the packages that are needed
	rpm := one(t, dir+"/*.x86_64.rpm")
	run("-i", "--nodeps", rpm)
	has("etc/passwd", "\ncredential-broker:x:")
	has(config, "audit:")
	if _, err := os.Lstat(filepath.Join(root, wanted)); err != nil {
		t.Errorf("Debian's preset enables everything: %v", err)
	}
	real.Must(t, in(root, "sh", "-c", "echo '# mine' >>"+config))
	real.Must(t, in(root, "rm", wanted))
	run("-U", "--nodeps", "--force", rpm) // the new one's post, then the old one's preun and postun
	has(config, "# mine")
	if _, err := os.Lstat(filepath.Join(root, wanted)); err == nil {
		t.Error("an upgrade enables what was disabled")
	}
	run("-e", "credential-broker")
	has(config+".rpmsave", "# mine")
	left := real.Must(t, in(root, "find", ".", "-name", "*credential-broker*", "-not", "-path", "./usr/lib/sysimage/*"))
	if left != "./etc/credential-broker\n" {
		t.Errorf("left over:\n%s", left)
	}
}

func checkTarball(t *testing.T, dir string) {
	tarball, top := one(t, dir+"/*-linux-"+runtime.GOARCH+".tar.gz"), t.TempDir()
	real.Must(t, in(top, "tar", "-xzf", tarball, "--strip-components=1"))
	version := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(tarball), "credential-broker-"), "-linux-"+runtime.GOARCH+".tar.gz")
	programs := []string{"/usr/bin/broker", "/usr/libexec/credential-broker/brokerd"}
	for i, args := range [][]string{{"version"}, {"--version"}} {
		// In a root that holds nothing else: no library, no shell.
		if out := real.Must(t, in(top, "chroot", append([]string{top, programs[i]}, args...)...)); !strings.Contains(out, version) {
			t.Errorf("%s %v: %q, want %s", programs[i], args, out, version)
		}
	}
	real.Must(t, in(top, "bash", "-n", "usr/share/bash-completion/completions/broker"))

	var sbom struct {
		Components []struct{ Type, Name, Version string }
	}
	text, err := os.ReadFile(filepath.Join(top, "usr/share/doc/credential-broker/sbom.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &sbom); err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, c := range sbom.Components {
		if c.Type == "library" && c.Name != "std" {
			listed = append(listed, c.Name+" "+c.Version)
		}
	}
	// What Go itself says is in them.
	var linked []string
	for _, p := range programs {
		for _, m := range regexp.MustCompile(`(?m)^\tdep\t(\S+)\t(\S+)`).FindAllStringSubmatch(real.Must(t, in(top, "go", "version", "-m", top+p)), -1) {
			linked = append(linked, m[1]+" "+m[2])
		}
	}
	slices.Sort(listed)
	slices.Sort(linked)
	if linked = slices.Compact(linked); !slices.Equal(listed, linked) || len(linked) < 40 {
		t.Errorf("the SBOM lists %d modules\n%v\nlinked are %d\n%v", len(listed), listed, len(linked), linked)
	}
	licences, err := os.ReadFile(filepath.Join(top, "usr/share/doc/credential-broker/third-party-licences.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range linked {
		if name := strings.Replace(m, " ", "@", 1); !strings.Contains(string(licences), "\n"+name+"\n") {
			t.Errorf("no licence of %s", name)
		}
	}
}
