package broker

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"credentialbroker/api/client"
	"credentialbroker/internal/fake"
	"credentialbroker/oidc"
)

func TestRevoke(t *testing.T) {
	inWorld(t, func(w *world) {
		o, edit := anOAuth2(w.t)
		w.with(edit)
		api := fake.Local(o.API(""))
		g := w.mustGet()
		if status := call(w.t, api, "https://api.example/", g); status != 200 {
			w.t.Fatal(status)
		}
		out, err := w.b.Revoke(w.t.Context(), "vdab", false)
		if err != nil || !strings.Contains(out.Reason, "1 tokens revoked") {
			w.t.Fatalf("%+v, %v", out, err)
		}
		if status := call(w.t, api, "https://api.example/", g); status == 200 {
			w.t.Error("the API takes the revoked token")
		}
		if fresh := w.mustGet(); fresh.Token.Fingerprint == g.Token.Fingerprint {
			w.t.Error("the revoked token is served")
		}
		if _, err = w.b.Revoke(w.t.Context(), "vdab", false); err != nil {
			w.t.Fatal(err)
		}
		if out, err = w.b.Revoke(w.t.Context(), "vdab", false); err != nil || !strings.Contains(out.Reason, "no token") {
			w.t.Errorf("%+v, %v", out, err)
		}
		_, err = w.b.Revoke(w.t.Context(), "vdab", true)
		wantCode(w.t, err, client.NotFound)
	})
}

// What could not be revoked is not forgotten: no consumer gets it, and the next
// attempt finds it.
func TestRevokeAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		o, edit := anOAuth2(w.t)
		down := &gate{rt: o.RoundTripper()}
		w.with(func(c *Client) { edit(c); c.Transport = down })
		api := fake.Local(o.API(""))
		g := w.mustGet()
		down.shut.Store(true)
		_, err := w.b.Revoke(w.t.Context(), "vdab", false)
		wantCode(w.t, err, client.IssuerUnavailable)
		down.shut.Store(false)
		if w.mustGet().Token.Fingerprint == g.Token.Fingerprint {
			w.t.Error("a withdrawn token is served")
		}
		if out, err := w.b.Revoke(w.t.Context(), "vdab", false); err != nil || !strings.Contains(out.Reason, "2 tokens revoked") {
			w.t.Errorf("%+v, %v", out, err)
		}
		if status := call(w.t, api, "https://api.example/", g); status == 200 {
			w.t.Error("the API takes the first token")
		}
	})
}

// A dead secret is not presented by the way of administrators either.
func TestRevokeKeepsTheBudget(t *testing.T) {
	inWorld(t, func(w *world) {
		o, edit := anOAuth2(w.t)
		w.with(func(c *Client) { edit(c); c.Limits.Audiences = []string{"a", "b", "c", "d"} })
		for _, audience := range []string{"", "a", "b", "c", "d"} {
			if _, err := w.get(Request{Audience: audience}); err != nil {
				w.t.Fatal(err)
			}
		}
		o.SetSecret(theID, "another", false)
		_, err := w.b.Revoke(w.t.Context(), "vdab", false)
		wantCode(w.t, err, client.CredentialsRejected)
		for range 3 {
			w.b.Live(w.t.Context(), func(client.Finding) {})
			_, _ = w.b.Revoke(w.t.Context(), "vdab", false)
		}
		if s := w.b.Status()[0].Credential; o.Stats().Refused != 1 || !s.Dead {
			w.t.Errorf("%d refusals, dead %t", o.Stats().Refused, s.Dead)
		}
	})
}

func TestRevokeWhereTheIssuerCannot(t *testing.T) {
	inWorld(t, func(w *world) {
		g := w.mustGet()
		out, err := w.b.Revoke(w.t.Context(), "vdab", false)
		if err != nil || !strings.Contains(out.Reason, "not revoked at the issuer") || !strings.Contains(out.Reason, "A leak") {
			w.t.Fatalf("%+v, %v", out, err)
		}
		if w.mustGet().Token.Fingerprint == g.Token.Fingerprint {
			w.t.Error("the token is still served")
		}
	})
}

func TestLiveAsksTheIssuer(t *testing.T) {
	inWorld(t, func(w *world) {
		o, edit := anOAuth2(w.t)
		w.with(edit)
		found := func() string {
			var all []string
			w.b.Live(w.t.Context(), func(f client.Finding) { all = append(all, f.Check+" "+string(f.Level)+" "+f.Detail) })
			return strings.Join(all, "\n")
		}
		if all := found(); !strings.Contains(all, "introspection ok") {
			w.t.Error(all)
		}
		h := w.b.clients.Load().byName["vdab"].all()[0].held.Load()
		if err := w.b.clients.Load().byName["vdab"].issuer.Revoke(w.t.Context(), oidc.Material(h.live.Fields), h.token.Access, ""); err != nil {
			w.t.Fatal(err)
		}
		if all := found(); !strings.Contains(all, "introspection error") || o.Stats().Introspects != 2 {
			w.t.Error(all)
		}
	})
}

// anOAuth2 is any server, found by its metadata.
func anOAuth2(t testing.TB) (*fake.OAuth2, func(*Client)) {
	t.Helper()
	o := &fake.OAuth2{}
	if err := o.Register(fake.Client{ID: theID, Secret: theSecret, Scopes: []string{"read"}}); err != nil {
		t.Fatal(err)
	}
	return o, func(c *Client) {
		c.Issuer = &oidc.Profile{Issuer: "http://127.0.0.1/as", ClientAuth: oidc.SecretBasic} // http: check --live opens no connection to look at TLS
		c.Transport = o.RoundTripper()
	}
}

// gate is a network that can be cut, or held up until wait is closed.
type gate struct {
	rt   http.RoundTripper
	shut atomic.Bool
	wait chan struct{}
}

func (g *gate) RoundTrip(r *http.Request) (*http.Response, error) {
	if g.shut.Load() {
		return nil, errors.New("cut")
	}
	if g.wait != nil {
		<-g.wait
	}
	return g.rt.RoundTrip(r)
}
