//go:build real

package issuers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
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

// The steps of the presets of Digitaal Vlaanderen, at a portal that keeps one
// key: the tokens in hand bridge the time in between.
func TestKeyRotation(t *testing.T) {
	real.Row(t, "keys", "fake ACM", "rotation by the preset's steps: the next key as a client of its own, then broker reload; nobody waits")
	w := newWorld(t)
	acm := &fake.ACM{}
	mux := http.NewServeMux()
	mux.Handle("/", acm)
	mux.Handle("/api/", acm.API(""))
	site := w.site(mux)
	yaml := fmt.Sprintf("ca_file: %s\ntoken_endpoint: %[2]s/op/v1/token\nissuer: %[2]s/op\nassertion: { audience: %[2]s/op }", w.caFile, site)
	register := func(k client.Key) {
		if err := acm.Register(fake.Client{ID: "acm-id", Keys: []string{string(k.JWK)}}); err != nil {
			t.Fatal(err)
		}
	}
	usable := func(name string) {
		t.Helper()
		w.usable(t, site+"/api/", w.headers(t, name, client.Options{}))
	}
	w.client("acm", "digitaal-vlaanderen", yaml, map[string]string{"client_id": "acm-id"})
	w.configure("")
	w.serve()
	register(w.newKey(t, "acm", "rsa-2048", false))
	w.accept(t, "acm")
	usable("acm")
	first := w.status(t, "acm")

	w.client("next", "digitaal-vlaanderen", yaml, map[string]string{"client_id": "acm-id"})
	w.configure("")
	w.broker(t, "reload")
	next := w.newKey(t, "next", "rsa-2048", false)
	if _, err := w.ask.Token(t.Context(), "next", client.Options{}); err == nil {
		t.Error("a token by a key that the issuer does not know")
	}
	usable("acm")
	register(next) // and the old one is gone
	usable("acm")
	w.accept(t, "next")
	usable("next")
	if _, err := w.try("keys", "new", "next"); err == nil {
		t.Error("keys new replaces a key that the issuer knows")
	}

	text, err := os.ReadFile(w.path("broker.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("secret: { provider: store, path: acm }"), []byte("secret: { provider: store, path: next }"), 1)
	if err := os.WriteFile(w.path("broker.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	w.broker(t, "reload")
	usable("acm")
	w.broker(t, "rotate", "acm")
	if s := w.status(t, "acm"); s.Version == first.Version || !s.Ready {
		t.Errorf("the new key does not serve: %+v", s)
	}
	usable("acm")
	w.leaks(t)
}
