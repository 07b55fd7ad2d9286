//go:build real

package systemd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"credentialbroker/integration/real"
)

const (
	area   = "systemd units"
	server = "systemd-analyze (Debian)"
)

// root is a file system with systemd's own units and ours, and stand-ins for
// the programs.
func root(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	units := filepath.Join(dir, "usr/lib/systemd/system")
	real.Must(t, exec.Command("mkdir", "-p", filepath.Dir(units), filepath.Join(dir, "etc"), filepath.Join(dir, "usr/bin"), filepath.Join(dir, "usr/libexec/credential-broker")))
	real.Must(t, exec.Command("cp", "-r", "/usr/lib/systemd/system", units))
	for _, program := range []string{"usr/bin/broker", "usr/libexec/credential-broker/brokerd"} {
		real.Must(t, exec.Command("cp", "/bin/true", filepath.Join(dir, program)))
	}
	ours, err := filepath.Glob("credential-broker*")
	if err != nil || len(ours) != 4 {
		t.Fatalf("%v, %v", ours, err)
	}
	real.Must(t, exec.Command("cp", append(ours, units)...))
	return dir
}

func dropIn(t *testing.T, root string, files ...string) {
	t.Helper()
	dir := filepath.Join(root, "etc/systemd/system/credential-broker.service.d")
	real.Must(t, exec.Command("mkdir", "-p", dir))
	real.Must(t, exec.Command("cp", append(files, dir)...))
}

// analyze runs systemd-analyze on the units in root.
func analyze(root, verb string, args ...string) (string, error) {
	cmd := exec.Command("systemd-analyze", append([]string{verb, "--root=" + root, "--no-pager"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// exposure is the score, and what makes it: the lines that cost.
func exposure(t *testing.T, root string) (float64, string) {
	t.Helper()
	out, err := analyze(root, "security", "--offline=true", "--threshold=100", "credential-broker.service")
	m := regexp.MustCompile(`Overall exposure level for credential-broker.service: ([0-9.]+)`).FindStringSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	score, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return score, strings.Join(regexp.MustCompile(`(?m)^✗.*$`).FindAllString(out, -1), "\n")
}

func TestExposure(t *testing.T) {
	real.Row(t, area, server, "exposure score of the service is 1.5 or lower")
	dir := root(t)
	version, _, _ := strings.Cut(real.Must(t, exec.Command("systemd-analyze", "--version")), "\n")
	score, costs := exposure(t, dir)
	t.Logf("%s: exposure %.1f, from\n%s", version, score, costs)
	if score > 1.5 {
		t.Errorf("exposure %.1f is above 1.5", score)
	}
	for _, f := range []string{"executable", "egress", "credentials"} {
		dir := root(t)
		dropIn(t, dir, "drop-ins/"+f+".conf")
		with, _ := exposure(t, dir)
		t.Logf("with %s.conf: %.1f", f, with)
		if f != "executable" && with > score {
			t.Errorf("%s.conf makes it worse: %.1f", f, with)
		}
	}
}

func TestVerify(t *testing.T) {
	real.Row(t, area, server, "verify finds no mistake in units and drop-ins")
	dir := root(t)
	verify := func() (string, error) {
		return analyze(dir, "verify", "--man=no", "--recursive-errors=no", "credential-broker.service", "credential-broker.socket", "credential-broker-admin.socket", "credential-broker-credential.socket")
	}
	if out, err := verify(); err != nil || out != "" {
		t.Errorf("%v\n%s", err, out)
	}
	dropIn(t, dir, "drop-ins/executable.conf", "drop-ins/egress.conf", "drop-ins/credentials.conf")
	if out, err := verify(); err != nil || out != "" {
		t.Errorf("with drop-ins: %v\n%s", err, out)
	}
	// The check has to be able to fail.
	wrong := filepath.Join(t.TempDir(), "wrong.conf")
	if err := os.WriteFile(wrong, []byte("[Service]\nProtectClok=yes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dropIn(t, dir, wrong)
	if out, err := verify(); !strings.Contains(out, "ProtectClok") {
		t.Errorf("a mistake is not found: %v\n%s", err, out)
	}
}

func TestSysusers(t *testing.T) {
	real.Row(t, area, "systemd-sysusers (Debian)", "makes the service's user")
	dir := root(t)
	conf, err := filepath.Abs("sysusers.conf")
	if err != nil {
		t.Fatal(err)
	}
	real.Must(t, exec.Command("systemd-sysusers", "--root="+dir, conf))
	passwd, err := os.ReadFile(filepath.Join(dir, "etc/passwd"))
	if user := read(t, "credential-broker.service").directives["Service.User"][0]; err != nil || !strings.HasPrefix(string(passwd), user+":") {
		t.Errorf("%v\n%s", err, passwd)
	}
}
