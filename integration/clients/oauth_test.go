//go:build real

package clients

import (
	"context"
	"errors"
	"net"
	"net/http"
	"testing"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
)

// The token endpoint, for OAuth libraries as they are: the client's name and
// no secret, and refusals that the library understands.
func TestOAuthLibraries(t *testing.T) {
	w := newWorld(t, "vdab")
	w.quarantine(t)
	socket := w.path("broker.sock")
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
		{"golang.org/x/oauth2", func(t *testing.T, client string) said { return inGo(t, socket, client) }},
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

func inGo(t *testing.T, socket, client string) said {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer tr.CloseIdleConnections()
	cfg := clientcredentials.Config{ClientID: client, TokenURL: "http://localhost/oauth2/token", AuthStyle: oauth2.AuthStyleInParams}
	tok, err := cfg.Token(context.WithValue(t.Context(), oauth2.HTTPClient, &http.Client{Transport: tr}))
	var refused *oauth2.RetrieveError
	switch {
	case errors.As(err, &refused):
		return said{Code: refused.ErrorCode, Detail: refused.ErrorDescription}
	case err != nil:
		t.Fatal(err)
	}
	return said{Token: tok.AccessToken}
}
