//go:build real

package clients

import (
	"os/exec"
	"path/filepath"
	"testing"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
)

// The token endpoint, for OAuth libraries as they are: the client's name and
// no secret, and refusals that the library understands.
func TestOAuthLibraries(t *testing.T) {
	w := newWorld(t, "vdab")
	w.quarantine(t, "leaked")
	socket, inGo := w.path("broker.sock"), goClient(t)
	for _, lib := range []struct {
		name  string
		fetch func(t *testing.T, client string) said
	}{
		{"Authlib 1.9.9 on httpx 0.28.1", func(t *testing.T, client string) said {
			return run(t, socket, []string{real.Path("clients-python", "venv", "bin", "python"), source("integration", "clients", "oauth.py"), client})
		}},
		{"openid-client 6.8.9 (Node)", func(t *testing.T, client string) said {
			return run(t, socket, []string{"node", source("integration", "clients", "oauth.mjs"), client},
				"OPENID_CLIENT="+real.Path("clients-node", "node_modules", "openid-client", "build", "index.js"))
		}},
		{"golang.org/x/oauth2", func(t *testing.T, client string) said { return run(t, socket, []string{inGo, "oauth", client}) }},
	} {
		t.Run(lib.name, func(t *testing.T) {
			real.Row(t, "oauth library", lib.name, "POST /oauth2/token over the Unix socket: a token without a secret; refusals")
			want, err := w.ask.Token(t.Context(), "vdab", client.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if s := lib.fetch(t, "vdab"); s.Token != want.AccessToken {
				t.Errorf("%+v", s)
			}
			if s := lib.fetch(t, "nobody"); s.Code != "invalid_client" {
				t.Errorf("not allowed: %+v", s)
			}
			if s := lib.fetch(t, "leaked"); s.Code != "unauthorized_client" || len(s.Detail) < 20 || s.Detail[:12] != "quarantined:" {
				t.Errorf("quarantined: %+v", s)
			}
		})
	}
}

// goClient builds the driver in Go.
func goClient(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "goclient")
	real.Must(t, exec.Command("go", "build", "-tags", "real", "-o", program, "./goclient"))
	return program
}
