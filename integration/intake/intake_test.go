//go:build real

package intake

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"credentialbroker/integration/real"
)

// TestIntake stores with the administrator's own login: the daemon's can read
// alone, wherever the manager tells them apart.
func TestIntake(t *testing.T) {
	for _, c := range []struct {
		tool  string
		start func(*testing.T) *manager
	}{{"7zz", startVault}, {"bsdtar", startVault}, {"zip", startMoto}, {"7zz", startAge}} {
		m := c.start(t)
		t.Run(m.server+" "+c.tool, func(t *testing.T) {
			real.Row(t, "intake", m.server+", "+c.tool, "what is wrong stores nothing; then the administrator's own login stores, the version serves, no secret shows")
			w := newWorld(t, m)
			zip := w.archive(c.tool)
			before, _ := m.newest()
			stop := w.watch()
			w.wrong(zip, before)
			if err := m.home(w.path("home")); err != nil {
				t.Fatal(err)
			}
			w.right(zip, before, "operator", "--config", w.path("broker.yaml"))
			w.nothingShows(stop)
		})
	}
}

// TestWriter stores with the provider's own credentials to write with.
func TestWriter(t *testing.T) {
	m := startVaultWithWriter(t)
	real.Row(t, "intake", m.server+", 7zz", "with write: the daemon stores, and the administrator needs no login")
	w := newWorld(t, m)
	zip := w.archive("7zz")
	before, _ := m.newest()
	stop := w.watch()
	w.right(zip, before, "daemon")
	w.nothingShows(stop)
}

// wrong is everything that has to store nothing.
func (w *world) wrong(zip, before string) {
	w.t.Helper()
	w.broker(65, "not-the-password\n", "intake", zip, "vdab", "--yes")
	w.unchanged(before, "a wrong password")
	fixtures := filepath.Join(real.Root(), "internal", "intake", "testdata")
	for _, name := range []string{"bomb-ratio.zip", "bomb-size.zip", "traversal.zip", "many.zip", "symlink.zip", "nested-twice.zip"} {
		out := w.broker(65, strings.Repeat("geheim-2026\n", 3), "intake", filepath.Join(fixtures, name), "vdab", "--yes")
		w.unchanged(before, name+": "+out)
	}
	whole, err := os.ReadFile(zip)
	if err == nil {
		err = os.WriteFile(w.path("cut.zip"), whole[:len(whole)/2], 0o600)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.broker(65, w.password+"\n", "intake", w.path("cut.zip"), "vdab", "--yes")
	w.unchanged(before, "half an archive")
	if !strings.HasPrefix(w.manager.server, "Vault") {
		return
	}
	// A login that may not write, and none at all.
	w.broker(77, w.password+"\n", "intake", zip, "vdab", "--yes", "--config", w.path("broker.yaml"), "--token-file", w.manager.env[0])
	w.unchanged(before, "a login that may only read")
	out := w.broker(77, w.password+"\n", "intake", zip, "vdab", "--yes", "--config", w.path("broker.yaml"))
	if !strings.Contains(out, ".vault-token") {
		w.t.Errorf("it does not say which login is missing: %s", out)
	}
	w.unchanged(before, "no login")
}

// right is one intake, and what it has to leave.
func (w *world) right(zip, before, by string, more ...string) {
	w.t.Helper()
	out := w.broker(0, w.password+"\n", append([]string{"intake", zip, "vdab", "--yes", "--shred", "--json"}, more...)...)
	var done struct {
		Proved   string `json:"proved"`
		Version  string `json:"version"`
		Replaces string `json:"replaces"`
		By       string `json:"stored_by"`
		Shredded bool   `json:"shredded"`
	}
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{\n"):strings.LastIndex(out, "}")+1]), &done); err != nil {
		w.t.Fatalf("%v\n%s", err, out)
	}
	version, fields := w.manager.newest()
	if done.Version != version || version == before || done.Replaces != before || done.Proved != "mint" || done.By != by || !done.Shredded {
		w.t.Errorf("%+v; version %s follows %s", done, version, before)
	}
	for name, want := range map[string]string{"client_id": w.fields["client_id"], "client_secret": w.fields["client_secret"], "api_key": initial()["api_key"]} {
		if fields[name] != want {
			w.t.Errorf("%s in the secrets manager is not as it was sent", name)
		}
	}
	if _, err := os.Stat(zip); err == nil {
		w.t.Error("the archive is still there")
	}
	w.broker(0, "", "token", "vdab")
	if status := w.broker(0, "", "status"); !strings.Contains(status, version) {
		w.t.Errorf("version %s does not serve:\n%s", version, status)
	}
}
