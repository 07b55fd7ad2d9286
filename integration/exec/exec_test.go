//go:build real

// Package exec runs the conformance suite on a command that shares nothing
// with the product but the contract.
package exec

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/providers"
	"credentialbroker/providers/exec"
	"credentialbroker/providers/providertest"
)

type manager struct {
	root    string
	version int
}

func newManager(t *testing.T) providertest.Manager {
	t.Helper()
	m := &manager{root: t.TempDir()}
	text, err := os.ReadFile(filepath.Join(real.Root(), "integration", "exec", "plugin.py"))
	if err == nil {
		err = os.WriteFile(m.command(), text, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *manager) command() string { return filepath.Join(m.root, "plugin.py") }

func (m *manager) Open(t *testing.T, _ providertest.Options) providers.Provider {
	t.Helper()
	p, err := exec.Open(exec.Config{Command: []string{"/usr/bin/python3", "-I", m.command()},
		Environment: map[string]string{"PLUGIN_ROOT": m.root}}, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (m *manager) Ref(name string) providers.Ref { return providers.Ref{Path: name} }

func (m *manager) Set(t *testing.T, name string, payload []byte) {
	t.Helper()
	m.version++
	dir := filepath.Join(m.root, "secrets", name)
	tmp := filepath.Join(m.root, "tmp")
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.WriteFile(tmp, payload, 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, fmt.Sprintf("%06d", m.version)))
	}
	if err != nil {
		t.Error(err)
	}
}

func (m *manager) Fault(t *testing.T, c providertest.Case, name string) {
	t.Helper()
	var err error
	switch c {
	case providertest.Absent:
		err = os.RemoveAll(filepath.Join(m.root, "secrets", name))
	case providertest.AbsentMount:
		err = os.RemoveAll(filepath.Join(m.root, "secrets"))
	case providertest.Down:
		err = os.Remove(m.command())
	default:
		err = os.WriteFile(filepath.Join(m.root, "state"), []byte(c), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (m *manager) Calls() providertest.Calls {
	log, _ := os.ReadFile(filepath.Join(m.root, "calls"))
	return providertest.Calls{Values: strings.Count(string(log), "value"), Checks: strings.Count(string(log), "check")}
}

func (m *manager) CA() string   { return "" }
func (m *manager) Addr() string { return "" }

func TestPython(t *testing.T) {
	real.Row(t, "provider exec", "a Python command (Debian)", "passes the conformance suite")
	const own = "how the command reaches its manager is its own affair"
	providertest.Run(t, newManager, providertest.Lacks{
		providertest.CAFile: own, providertest.Proxy: own, providertest.LoginExpired: own,
		providertest.Put: "a command only reads", providertest.PutRace: "a command only reads",
	})
}
