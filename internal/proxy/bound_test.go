package proxy

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"
	"weak"

	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/keys"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// A token that is bound to a certificate works, since the certificate goes
// with it (RFC 8705 §3).
func TestBoundTokens(t *testing.T) {
	var issuer fake.OAuth2
	w := newWorld(t, issuer.API(""), nil, func(s *httptest.Server) { s.TLS.ClientAuth = tls.RequestClientCert })
	pair := func() (fields map[string]string) {
		key, err := keys.Generate("p-256")
		if err != nil {
			t.Fatal(err)
		}
		certificate, err := key.Certificate("bound", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		private, err := key.PEM()
		if err != nil {
			t.Fatal(err)
		}
		text, err := private.AppendTo(nil)
		if err != nil {
			t.Fatal(err)
		}
		return map[string]string{"client_id": theID, "private_key": string(text), "certificate": string(certificate)}
	}
	for i := range 2 { // the second is another bundle, and another certificate
		store := fake.NewStore()
		fields := pair()
		if err := issuer.Register(fake.Client{ID: theID, Auth: "self_signed_tls_client_auth", Keys: []string{fields["certificate"]}}); err != nil {
			t.Fatal(err)
		}
		store.Set("bound", fields)
		err := w.broker.Apply([]broker.Client{{Name: "vdab", Provider: store, ProviderName: "store",
			Allow:     []access.Entry{{User: strconv.Itoa(os.Getuid())}},
			Headers:   []broker.Header{{Name: "Authorization", Value: "Bearer {access_token}"}},
			Issuer:    &oidc.Profile{TokenEndpoint: "https://issuer" + strconv.Itoa(i) + ".example/as/token", ClientAuth: oidc.SelfSignedTLS, CertificateBound: true},
			Transport: issuer.RoundTripper(),
			Rotation:  rotation.Config{Spec: providers.Spec{Ref: providers.Ref{Path: "bound"}}, Required: []string{"client_id", "private_key", "certificate"}}}})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if resp, body := w.do(http.MethodGet, "/", ""); resp.StatusCode != http.StatusOK {
				t.Errorf("bundle %d: %s %s", i+1, resp.Status, body)
			}
			w.proxy.doors[w.socket].route.Load().retire() // each call makes a connection of its own
		}
	}
	if issuer.Stats().APICalls != 4 {
		t.Errorf("the API has let %d calls in", issuer.Stats().APICalls)
	}
}

// A route outlives the bundle of its first call: it holds nothing of it.
func TestBoundKeepsNoGrant(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(ok), nil)
	rt := w.proxy.doors[w.socket].route.Load()
	first := func() weak.Pointer[broker.Grant] {
		g := &broker.Grant{Token: oidc.Token{Bound: "x5t"}}
		if _, err := rt.via(g); err != nil {
			t.Fatal(err)
		}
		return weak.Make(g)
	}()
	runtime.GC()
	if first.Value() != nil {
		t.Error("the first grant is still held")
	}
}
