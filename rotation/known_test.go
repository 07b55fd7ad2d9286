package rotation

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"credentialbroker/internal/scan"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
)

// Scans know each refresh token from its first moment: the newest as live, the
// others as retired, and all as retired once the login has ended.
func TestScansKnowRefreshTokens(t *testing.T) {
	dir := t.TempDir()
	inPortal(t, func(p *portal) {
		x := scan.NewIndex(scan.IndexConfig{})
		p.c.deps.Known = x
		var tokens []string
		note := func() {
			_ = p.c.login.token.Use(func(b []byte) error { tokens = append(tokens, string(b)); return nil })
		}
		p.mustLogin()
		note()
		p.mustMint()
		note()
		if got := scanned(p.t, x, dir, tokens); len(got) != 2 || !got["app refresh_token 1 retired"] || !got["app refresh_token 2 live"] {
			p.t.Errorf("%v", got)
		}
		ended, err := p.c.Logout(p.t.Context(), func(context.Context, oidc.Material, secret.Secret) error { return nil })
		if err != nil || !ended {
			p.t.Fatal(ended, err)
		}
		if got := scanned(p.t, x, dir, tokens); len(got) != 2 || !got["app refresh_token 2 retired"] {
			p.t.Errorf("%v", got)
		}
	})
}

// scanned is what a scan finds of values in a file.
func scanned(t testing.TB, x *scan.Index, dir string, values []string) map[string]bool {
	t.Helper()
	text := ""
	for _, v := range values {
		text += v + "\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "log"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := scan.New(scan.Config{Filter: x.Filter(), Paths: []string{dir}, Workers: 1, Confirm: func(_ context.Context, list []scan.Candidate) (out [][]scan.Match, _ error) {
		for _, c := range list {
			out = append(out, x.Confirm(c))
		}
		return out, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	report, err := s.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, f := range report.Findings {
		state := " live"
		if f.Retired {
			state = " retired"
		}
		found[f.Client+" "+f.Field+" "+f.Version+state] = true
	}
	return found
}
