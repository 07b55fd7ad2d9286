package broker

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

func TestLogin(t *testing.T) {
	inWorld(t, func(w *world) {
		p := &fake.MijnKlantportaal{}
		if err := p.Register(fake.Client{ID: theID, Secret: theSecret, RedirectURIs: []string{"http://127.0.0.1/callback"}}); err != nil {
			w.t.Fatal(err)
		}
		w.with(portal(p, w.store))
		_, err := w.get(Request{})
		wantCode(w.t, err, client.LoginRequired)
		if r := w.b.Ready(w.caller); r.Ready || r.Clients[0].Code != client.LoginRequired {
			w.t.Errorf("%+v", r)
		}
		start := func() client.Login {
			w.t.Helper()
			l, err := w.b.StartLogin(w.t.Context(), "vdab", "http://127.0.0.1:4711/callback")
			if err != nil {
				w.t.Fatal(err)
			}
			return l
		}
		finish := func(state, code, iss string) error {
			_, err := w.b.FinishLogin(w.t.Context(), "vdab", LoginCode{State: state, Code: secret.FromString(code), Issuer: iss})
			return err
		}
		l := start()
		q := consent(w.t, p, l.URL)
		if p.Prompt() != "consent" || q.Get("state") != l.State {
			w.t.Errorf("prompt %q, state %q", p.Prompt(), q.Get("state"))
		}
		wantCode(w.t, finish("another", q.Get("code"), ""), client.InvalidRequest)
		if err := finish(l.State, q.Get("code"), ""); err != nil {
			w.t.Fatal(err)
		}
		if g := w.mustGet(); call(w.t, p.RoundTripper(), "https://portal.example/api/x", g) != 200 {
			w.t.Error("the API refuses the token")
		}
		wantCode(w.t, finish(l.State, q.Get("code"), ""), client.InvalidRequest) // once
		l = start()
		q = consent(w.t, p, l.URL)
		time.Sleep(loginPatience)
		wantCode(w.t, finish(l.State, q.Get("code"), ""), client.InvalidRequest)
		// Another issuer's code (RFC 9207 §2.4).
		w.with(func(c *Client) { portal(p, w.store)(c); c.Issuer.Issuer = "https://portal.example" })
		l = start()
		q = consent(w.t, p, l.URL)
		wantCode(w.t, finish(l.State, q.Get("code"), "https://evil.example"), client.InvalidRequest)
		// The new process goes on with the login that there is.
		if g := w.mustGet(); call(w.t, p.RoundTripper(), "https://portal.example/api/x", g) != 200 {
			w.t.Error("the API refuses the token after a restart")
		}
		w.stop()
		trail := w.trail()
		for _, s := range []string{q.Get("code"), l.State} {
			if strings.Contains(trail, s) {
				w.t.Error("the audit log holds a code or state")
			}
		}
		w.start()
	})
}

// portal makes the client one of MijnKlantportaal.
func portal(p *fake.MijnKlantportaal, store providers.Provider) func(*Client) {
	return func(c *Client) {
		c.Issuer = &oidc.Profile{Grant: oidc.AuthorizationCode, TokenEndpoint: "https://portal.example/oauth/tokens", RequestFormat: "json", TokenType: "optional",
			AuthorizationEndpoint: "https://portal.example/oauth/authorize", AuthorizationParams: map[string]string{"prompt": "consent"}}
		c.Transport = p.RoundTripper()
		c.Headers = []Header{{"Authentication", "Bearer {access_token}"}}
		c.Rotation.Required = []string{"client_id", "client_secret"}
		c.Rotation.Prove = rotation.ProveRefresh
		c.Rotation.Refresh = &rotation.Refresh{Provider: "store", Ref: providers.Ref{Path: "login"}, Owner: "app1"}
		c.RefreshProvider = store
	}
}

// consent is a browser: it follows the consent page to the redirect.
func consent(t testing.TB, p *fake.MijnKlantportaal, page string) url.Values {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, page, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := p.RoundTripper().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	back, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || resp.StatusCode != http.StatusFound {
		t.Fatalf("%s: %v", resp.Status, err)
	}
	return back.Query()
}

func TestReloadDuringALogin(t *testing.T) {
	inWorld(t, func(w *world) {
		p := &fake.MijnKlantportaal{}
		if err := p.Register(fake.Client{ID: theID, Secret: theSecret, RedirectURIs: []string{"http://127.0.0.1/callback"}}); err != nil {
			w.t.Fatal(err)
		}
		w.with(portal(p, w.store))
		l, err := w.b.StartLogin(w.t.Context(), "vdab", "")
		if err != nil {
			w.t.Fatal(err)
		}
		q := consent(w.t, p, l.URL)
		list := w.config()
		portal(p, w.store)(&list[0])
		list[0].Issuer.TokenEndpoint = "https://elsewhere.example/oauth/tokens"
		if err := w.b.Apply(list); err != nil {
			w.t.Fatal(err)
		}
		_, err = w.b.FinishLogin(w.t.Context(), "vdab", LoginCode{State: l.State, Code: secret.FromString(q.Get("code"))})
		wantCode(w.t, err, client.InvalidRequest)
		if n := p.Stats().Requests; n != 0 {
			w.t.Errorf("%d requests: the code went to another issuer", n)
		}
	})
}
