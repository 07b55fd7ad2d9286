//go:build real

package issuers

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
	"credentialbroker/internal/fake"
)

// rejection is what a consumer tells the broker of an API's answer.
func (w *world) rejection(t *testing.T, name, api string) client.Rejection {
	t.Helper()
	tok := w.token(t, name, client.Options{})
	status, body := w.call(t, api, w.headers(t, name, client.Options{}))
	var said struct{ MoreInformation string }
	if err := json.Unmarshal([]byte(body), &said); err != nil || status != http.StatusUnauthorized {
		t.Fatalf("the API answers %d %s", status, body)
	}
	return client.Rejection{Fingerprint: tok.Fingerprint, Status: status, MoreInformation: said.MoreInformation}
}

func TestReject(t *testing.T) {
	real.Row(t, "reject", "fake ISAM and API Connect", "a refused key is told from a refused token by API Connect's texts; status shows the key")
	w := newWorld(t)
	issuer := fake.NewIssuer(fake.Client{ID: "vdab-id", Secret: "vdab-secret", APIKey: "vdab-key"})
	mux := http.NewServeMux()
	mux.Handle("/", issuer)
	mux.Handle(fake.APIPath, issuer.Gateway())
	site := w.site(mux)
	w.client("vdab", "vdab-production", "ca_file: "+w.caFile+"\ntoken_endpoint: "+site+fake.TokenPath, map[string]string{"client_id": "vdab-id", "client_secret": "vdab-secret", "api_key": "vdab-key"})
	w.configure("")
	w.serve()
	w.usable(t, site+fake.APIPath, w.headers(t, "vdab", client.Options{}))
	if s := w.status(t, "vdab"); s.APIKey != "unproved" {
		t.Errorf("status of the key: %q", s.APIKey)
	}

	issuer.Set(fake.Fault{Kind: fake.GatewayKey})
	_, err := w.ask.Reject(t.Context(), "vdab", w.rejection(t, "vdab", site+fake.APIPath))
	p, ok := err.(*client.Problem) //nolint:errorlint // Reject promises this very type
	if !ok || p.Status != http.StatusConflict || p.Code != client.APIKeyRejected {
		t.Errorf("a refused key: %v", err)
	}
	s := w.status(t, "vdab")
	if !strings.HasPrefix(s.APIKey, "rejected by 1 caller") || !strings.Contains(w.broker(t, "status"), s.APIKey) {
		t.Errorf("status of the key: %q", s.APIKey)
	}

	issuer.Set(fake.Fault{Kind: fake.GatewayToken})
	out, err := w.ask.Reject(t.Context(), "vdab", w.rejection(t, "vdab", site+fake.APIPath))
	if err != nil || out.Replaced || out.RetryAfter == 0 || !strings.Contains(out.Reason, "API key") || !strings.Contains(out.Reason, "clock") {
		t.Errorf("a refused token that is young: %+v, %v", out, err)
	}
	if n := issuer.Stats().Minted; n != 1 {
		t.Errorf("%d tokens were fetched, want 1", n)
	}
	issuer.Set(fake.Fault{})
	w.usable(t, site+fake.APIPath, w.headers(t, "vdab", client.Options{}))
}
