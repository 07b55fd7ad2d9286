//go:build real

// Package machine boots Debian with systemd in a container, for tests that look
// at what its manager does.
package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/integration/real"
)

// Server names it in the table.
const Server = "systemd 252 (Debian bookworm, booted)"

// A Machine is a system without a network. What happens in it outlives a
// reboot, and is gone with the test.
type Machine struct {
	T     testing.TB // that it reports to: a subtest puts itself here
	Share string     // /mnt inside, read-only

	name, root string
	leader     string // pid of its first process
	console    *os.File
	ended      chan error // how nspawn ended
}

// New lays a fresh file system over that of integration/install.d/nspawn.sh. It
// starts nothing.
func New(t testing.TB) *Machine {
	t.Helper()
	dir := t.TempDir()
	m := &Machine{T: t, Share: t.TempDir(), root: filepath.Join(dir, "root"), name: "broker-" + strconv.Itoa(os.Getpid())}
	over := filepath.Join(dir, "over")
	console, err := os.Create(filepath.Join(dir, "console"))
	if err = errors.Join(err, os.Chmod(m.Share, 0o755), os.Mkdir(m.root, 0o755), os.Mkdir(over, 0o755)); err != nil {
		t.Fatal(err)
	}
	m.console = console
	t.Cleanup(func() { _ = console.Close() })
	mount := func(at string, args ...string) {
		t.Helper()
		real.Must(t, exec.Command("mount", append(args, at)...))
		t.Cleanup(func() { real.Must(t, exec.Command("umount", "--recursive", at)) })
	}
	mount(over, "-t", "tmpfs", "-o", "mode=0755", "tmpfs")
	if err := errors.Join(os.Mkdir(filepath.Join(over, "up"), 0o755), os.Mkdir(filepath.Join(over, "work"), 0o755)); err != nil {
		t.Fatal(err)
	}
	mount(m.root, "-t", "overlay", "-o", "lowerdir="+real.Path("nspawn", "root")+",upperdir="+over+"/up,workdir="+over+"/work", "overlay")
	t.Cleanup(m.stop)
	return m
}

// Boot starts it, and waits until nothing is left to be started.
func (m *Machine) Boot() {
	m.T.Helper()
	cmd := exec.Command("systemd-nspawn", "-q", "-D", m.root, "-M", m.name, "--boot", "--register=no", "--keep-unit",
		"--private-network", "--console=pipe", "--capability=CAP_IPC_LOCK", "--bind-ro="+m.Share+":/mnt")
	// nspawn's own filter refuses memfd_secret and mlock.
	cmd.Env = append(os.Environ(), "SYSTEMD_SECCOMP=0")
	cmd.Stdout, cmd.Stderr = m.console, m.console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		m.T.Fatal(err)
	}
	ended := make(chan error, 1)
	m.ended = ended
	go func() { ended <- cmd.Wait() }()
	m.Until("it is up", time.Minute, func() bool {
		pid := strconv.Itoa(cmd.Process.Pid)
		b, _ := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
		if f := strings.Fields(string(b)); len(f) > 0 {
			m.leader = f[0]
		}
		_, err := m.Try("systemctl", "is-system-running", "--wait")
		return err == nil
	})
}

// Reboot has it shut down, and boots it again.
func (m *Machine) Reboot() {
	m.T.Helper()
	err := m.shut("reboot")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 133 { // how nspawn asks for it
		m.T.Fatalf("it did not ask for a reboot: %v", err)
	}
	m.Boot()
}

// shut gives how nspawn ended.
func (m *Machine) shut(how string) error {
	leader := m.leader
	_, _ = m.Try("systemctl", how)
	m.leader = ""
	select {
	case err := <-m.ended:
		m.ended = nil
		return err
	case <-time.After(time.Minute):
		m.T.Error("it did not shut down")
		if pid, err := strconv.Atoi(leader); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		err := <-m.ended
		m.ended = nil
		return err
	}
}

// stop ends it with the test.
func (m *Machine) stop() {
	if m.ended != nil {
		_ = m.shut("poweroff")
	}
	if b, err := os.ReadFile(m.console.Name()); err == nil && m.T.Failed() {
		m.T.Logf("console:\n%s", b)
	}
}

// File puts a file into the share.
func (m *Machine) File(name, text string) {
	m.T.Helper()
	if err := os.WriteFile(filepath.Join(m.Share, name), []byte(text), 0o644); err != nil {
		m.T.Fatal(err)
	}
}

// Build puts a program of the project into the share.
func (m *Machine) Build(name, pkg string) {
	m.T.Helper()
	build := exec.Command("go", "build", "-tags", "real", "-o", filepath.Join(m.Share, name), pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	real.Must(m.T, build)
}

// Try runs a command inside, as root and outside of every unit.
func (m *Machine) Try(args ...string) (string, error) {
	if m.leader == "" {
		return "", fmt.Errorf("it has no first process")
	}
	out, err := exec.Command("nsenter", append([]string{"-t", m.leader, "-a"}, args...)...).CombinedOutput()
	return string(out), err
}

// Run is Try of what must succeed.
func (m *Machine) Run(args ...string) string {
	m.T.Helper()
	out, err := m.Try(args...)
	if err != nil {
		m.T.Fatalf("%v: %v\n%s", args, err, out)
	}
	return out
}

// Until waits for a state.
func (m *Machine) Until(what string, most time.Duration, f func() bool) {
	m.T.Helper()
	for end := time.Now().Add(most); !f(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			journal, _ := m.Try("journalctl", "-q", "--no-pager", "-o", "short-monotonic", "-n", "60")
			m.T.Fatalf("not within %v: %s\n%s", most, what, journal)
		}
	}
}

// Show is a property of a unit.
func (m *Machine) Show(property, unit string) string {
	out, _ := m.Try("systemctl", "show", "-P", property, unit)
	return strings.TrimSpace(out)
}

// Is says whether a unit is active, failed ….
func (m *Machine) Is(unit string) string { return m.Show("ActiveState", unit) }

// Journal is what a unit said.
func (m *Machine) Journal(unit string) string {
	m.T.Helper()
	return m.Run("journalctl", "-q", "--no-pager", "-o", "cat", "-u", unit)
}
