package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// everything is an entry that gives this process all surfaces.
func everything(c *Client) {
	c.Allow[0].Surfaces = []access.Surface{access.Token, access.Headers, access.APIKey, access.JWT}
}

// trail is the whole audit log as it is on the disk.
func (w *world) trail() string {
	w.t.Helper()
	var all strings.Builder
	files, err := filepath.Glob(filepath.Join(w.dir, "audit", "*"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil {
			all.Write(data)
		}
	}
	return all.String()
}

// zgw makes the client one of an Open Zaak.
func zgw(api *fake.ZGW, probe bool) func(*Client) {
	return func(c *Client) {
		everything(c)
		c.Issuer = &oidc.Profile{Grant: oidc.SelfSigned, JWT: oidc.JWT{Claims: []string{"exp", "jti"}, UserID: "batch", UserRepresentation: "Nightly run"}}
		c.Headers = []Header{{"Authorization", "Bearer {access_token}"}}
		c.Rotation.Required = []string{"client_id", "client_secret"}
		c.Rotation.Prove = rotation.ProveProbe
		if probe {
			c.Probe = &Probe{Method: "GET", URL: "https://zaken.example/zaken/api/v1/zaken", Transport: api.RoundTripper()}
		}
	}
}

func newZGW(t testing.TB, secret string) *fake.ZGW {
	t.Helper()
	api := &fake.ZGW{}
	if err := api.Register(fake.Client{ID: theID, Secret: secret}); err != nil {
		t.Fatal(err)
	}
	return api
}

// call uses a token at an API and gives the status.
func call(t testing.TB, rt http.RoundTripper, address string, g *Grant) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.AppendHeaders(func(name string, value []byte) error { req.Header.Set(name, string(value)); return nil }); err != nil {
		t.Fatal(err)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func TestJWTForOneUser(t *testing.T) {
	inWorld(t, func(w *world) {
		api := newZGW(w.t, theSecret)
		w.with(zgw(api, false))
		const address = "https://zaken.example/zaken/api/v1/zaken"
		for _, user := range []oidc.User{{ID: "jdevries-4711", Representation: "J. \"de\" Vries"}, {ID: "other-user", Representation: "Ander"}, {}} {
			g, err := w.b.JWT(w.t.Context(), w.caller, UserRequest{Client: "vdab", User: user})
			if err != nil {
				w.t.Fatal(err)
			}
			if status := call(w.t, api.RoundTripper(), address, g); status != 200 {
				w.t.Errorf("%+v: the API says %d", user, status)
			}
			if user == (oidc.User{}) {
				user = oidc.User{ID: "batch", Representation: "Nightly run"}
			}
			if id, representation := api.User(); id != user.ID || representation != user.Representation {
				w.t.Errorf("the API saw %q %q", id, representation)
			}
		}
		g := w.mustGet()
		if status := call(w.t, api.RoundTripper(), address, g); status != 200 || g.ExpiresIn() <= 0 || g.ExpiresIn() > 900 {
			w.t.Errorf("the API says %d to a token for %d s", status, g.ExpiresIn())
		}
		_, err := w.b.JWT(w.t.Context(), w.caller, UserRequest{Client: "vdab", User: oidc.User{ID: strings.Repeat("jdevries", 40)}})
		if e := wantCode(w.t, err, client.InvalidRequest); strings.Contains(e.Error(), "jdevries") {
			w.t.Errorf("%q names the user", e)
		}
		w.b.Flush()
		w.stop()
		if trail := w.trail(); strings.Contains(trail, "jdevries") || strings.Contains(trail, "Vries") || strings.Contains(trail, "other-user") {
			w.t.Error("the audit log names a user")
		}
		if n := w.events(); n[audit.TokenHandover] != 2 || n[audit.TokenRepeats] != 1 { // the JWTs and the token
			w.t.Errorf("%v", n)
		}
		w.start()
	})
}

func TestJWTIsForSelfSignedClients(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(everything)
		_, err := w.b.JWT(w.t.Context(), w.caller, UserRequest{Client: "vdab"})
		wantCode(w.t, err, client.NotFound)
		for _, c := range w.b.Whoami(w.caller).Clients {
			for _, s := range c.Surfaces {
				if s == access.JWT {
					w.t.Error("whoami offers what cannot be had")
				}
			}
		}
		w.with(zgw(newZGW(w.t, theSecret), false))
		w.with(func(c *Client) {
			zgw(newZGW(w.t, theSecret), false)(c)
			c.Allow[0].Surfaces = []access.Surface{access.Token}
		})
		_, err = w.b.JWT(w.t.Context(), w.caller, UserRequest{Client: "vdab"})
		wantCode(w.t, err, client.NotAllowed)
	})
}

// A self-signed JWT is contradicted by nobody but the API: the probe judges a
// new secret, and a firewall's page does not.
func TestProbeJudgesANewSecret(t *testing.T) {
	inWorld(t, func(w *world) {
		api := newZGW(w.t, theSecret)
		w.with(zgw(api, true))
		w.mustGet()
		time.Sleep(10 * time.Second)
		if s := w.b.Status()[0].Credential; s.Probed.IsZero() || s.Works {
			w.t.Fatalf("%+v: the first secret was to be probed, and no issuer has seen it", s)
		}
		check := func(version, candidate providers.Version) rotation.Status {
			w.t.Helper()
			s, err := w.b.Rotate(w.t.Context(), "vdab", Rotation{})
			if err != nil || s.Version != version || s.Candidate != candidate {
				w.t.Fatalf("%v, version %s, candidate %s (%s), want %s and %q", err, s.Version, s.Candidate, s.Waiting, version, candidate)
			}
			return s
		}
		api.Set(fake.Fault{Kind: fake.Forbidden})
		w.secret("second")
		check("1", "2") // a page: it waits
		api.Set(fake.Fault{})
		time.Sleep(5 * time.Minute)
		if s := w.b.Status()[0].Credential; s.Version != "1" || s.Candidate != "2" || len(s.Refused) != 1 {
			w.t.Fatalf("%+v: the API refuses the second secret", s)
		}
		asked := api.Stats().Requests
		check("1", "2")
		if n := api.Stats().Requests; n != asked {
			w.t.Errorf("the refused secret was tried %d times more", n-asked)
		}
		api.SetSecret(theID, "third", true)
		w.secret("third")
		check("3", "")
	})
}

func TestAPIKeyAlone(t *testing.T) {
	inWorld(t, func(w *world) {
		gateway := fake.Local(w.issuer.Gateway())
		w.with(func(c *Client) {
			everything(c)
			c.Issuer = nil
			c.Headers = []Header{{"X-IBM-Client-Id", "{api_key}"}}
			c.Rotation.Required = []string{"api_key"}
			c.Probe = &Probe{Method: "GET", URL: "https://api.example" + fake.APIPath, Transport: gateway}
		})
		g, err := w.get(Request{Surface: access.Headers})
		if err != nil {
			w.t.Fatal(err)
		}
		var names []string
		_ = g.AppendHeaders(func(name string, _ []byte) error { names = append(names, name); return nil })
		if len(names) != 1 || names[0] != "X-IBM-Client-Id" {
			w.t.Errorf("%v", names)
		}
		if s := w.b.Whoami(w.caller).Clients[0].Surfaces; len(s) != 2 {
			w.t.Errorf("%v, want headers and api-key", s)
		}
		// This gateway wants a token besides: the key is not what it refuses.
		w.secret("x") // a new version, whatever is in it
		s, err := w.b.Rotate(w.t.Context(), "vdab", Rotation{})
		if err != nil || s.ProbeErr == nil {
			w.t.Fatalf("%+v, %v", s, err)
		}
		if w.b.Status()[0].Credential.Probed.IsZero() == false {
			w.t.Error("probed OK")
		}
	})
}

// A probe beside a token judges the API key, in normal running too.
func TestProbeBesideAToken(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(func(c *Client) {
			c.Probe = &Probe{Method: "GET", URL: "https://api.example" + fake.APIPath, Transport: fake.Local(w.issuer.Gateway())}
		})
		w.mustGet()
		time.Sleep(time.Second)
		first := w.b.Status()[0].Credential
		if first.Probed.IsZero() {
			w.t.Fatalf("%+v", first)
		}
		// The issuer takes the new version, and the API does not.
		w.store.Set("vdab", map[string]string{"client_id": theID, "client_secret": theSecret, "api_key": "another"})
		s, err := w.b.Rotate(w.t.Context(), "vdab", Rotation{})
		if err != nil || s.Version != "1" || s.Candidate != "2" || !strings.Contains(s.Waiting, "refuse") || s.Probed != first.Probed {
			w.t.Fatalf("%v, version %s, candidate %s (%s), probed %s", err, s.Version, s.Candidate, s.Waiting, s.Probed)
		}
		// An API that is down does not keep a version out that the issuer takes.
		w.issuer.Set(fake.Fault{Kind: fake.GatewayThrottle})
		w.store.Set("vdab", map[string]string{"client_id": theID, "client_secret": theSecret, "api_key": theKey})
		if s, err = w.b.Rotate(w.t.Context(), "vdab", Rotation{}); err != nil || s.Version != "3" {
			w.t.Fatalf("%+v, %v", s, err)
		}
	})
}

// What cannot be used is said in its own words, and nothing is sent.
func TestUnusableKey(t *testing.T) {
	inWorld(t, func(w *world) {
		acm := &fake.ACM{}
		w.store.Set("acm", map[string]string{"client_id": theID, "private_key": "-----BEGIN GARBAGE-----"})
		w.with(func(c *Client) {
			c.Rotation.Spec.Path = "acm"
			c.Rotation.Required = []string{"client_id", "private_key"}
			c.Issuer = &oidc.Profile{TokenEndpoint: "https://acm.example/op/v1/token", ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{Audience: "https://acm.example/op"}}
			c.Transport = acm.RoundTripper()
			c.Headers = nil
		})
		_, err := w.get(Request{})
		if e := wantCode(w.t, err, client.CredentialsRejected); !strings.Contains(e.Detail, "private_key") || strings.Contains(e.Detail, "scope") {
			w.t.Errorf("%q", e.Detail)
		}
		if r := w.b.Ready(w.caller); r.Ready || r.Clients[0].Code != client.CredentialsRejected {
			w.t.Errorf("%+v", r)
		}
		w.stop()
		defer w.start()
		if n := w.events(); n[audit.TokenRefused] == 0 || acm.Stats().Requests != 0 {
			w.t.Errorf("%v, %d requests", n, acm.Stats().Requests)
		}
	})
}

// A certificate is made around the key that there is; and two who make a key
// at once do not replace each other's.
func TestKeysAreNotReplaced(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(func(c *Client) {
			c.Rotation.Spec.Path = "acm"
			c.Issuer.ClientAuth = oidc.PrivateKeyJWT
			c.Headers = nil
		})
		type made struct {
			client.Key
			err error
		}
		results := make(chan made)
		for range 4 {
			go func() {
				k, err := w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Kind: "p-256"})
				results <- made{k, err}
			}()
		}
		var first client.Key
		for range 4 {
			if r := <-results; r.err == nil && first.KeyID != "" {
				w.t.Error("two keys were made")
			} else if r.err == nil {
				first = r.Key
			}
		}
		second, err := w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Certificate: true})
		if err != nil || second.KeyID != first.KeyID || second.Certificate == "" {
			w.t.Errorf("%+v, %v, want the key %s and a certificate", second, err, first.KeyID)
		}
		_, err = w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Certificate: true})
		wantCode(w.t, err, client.InvalidRequest)
		// Somebody else's key, stored between our look and our write.
		values := map[string]secret.Secret{"private_key": secret.FromString("theirs")}
		if _, err := providers.Store(w.t.Context(), w.store, providers.Spec{Ref: providers.Ref{Path: "acm"}}, values, providers.Absent); providers.KindOf(err) != providers.Conflict {
			w.t.Error(err)
		}
	})
}

// A reload that changes nothing keeps what is under way; one that changes what
// the API is asked does not. A login does not outlive its issuer.
func TestReloadWithAProbe(t *testing.T) {
	inWorld(t, func(w *world) {
		probe := func(url, header string) func(*Client) {
			return func(c *Client) {
				c.Probe = &Probe{Method: "GET", URL: url, Transport: fake.Local(w.issuer.Gateway())}
				c.Headers = append(c.Headers, Header{"X-Also", header})
			}
		}
		apply := func(f func(*Client)) *rotation.Credential {
			w.t.Helper()
			list := w.config()
			f(&list[0])
			if err := w.b.Apply(list); err != nil {
				w.t.Fatal(err)
			}
			return w.b.clients.Load().byName["vdab"].cred
		}
		const url = "https://api.example" + fake.APIPath
		first := apply(probe(url, "a"))
		w.mustGet()
		if apply(probe(url, "a")) != first {
			w.t.Error("a reload without a change made a new credential")
		}
		for name, f := range map[string]func(*Client){
			"url": probe(url+"x", "a"), "headers": probe(url, "b"), "none": func(*Client) {},
			"trust":        func(c *Client) { probe(url, "a")(c); c.Trust = "other" },
			"key_rejected": func(c *Client) { probe(url, "a")(c); c.KeyRejected = []string{"other"} },
		} {
			if apply(f) == apply(probe(url, "a")) {
				w.t.Errorf("%s changed, and the old credential went on", name)
			}
		}
	})
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

// Versions with a bad API key do not use up what the good one needs.
func TestBadKeysDoNotHoldBackTheGoodOne(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(func(c *Client) {
			c.Probe = &Probe{Method: "GET", URL: "https://api.example" + fake.APIPath, Transport: fake.Local(w.issuer.Gateway())}
		})
		w.mustGet()
		for range 5 {
			w.store.Set("vdab", map[string]string{"client_id": theID, "client_secret": theSecret, "api_key": rand.Text()})
			if _, err := w.b.Rotate(w.t.Context(), "vdab", Rotation{}); err != nil {
				w.t.Fatal(err)
			}
		}
		for range 8 {
			time.Sleep(10 * time.Minute)
			w.mustGet()
		}
	})
}

// A new key fits what the profile signs with.
func TestNewKeyFits(t *testing.T) {
	inWorld(t, func(w *world) {
		for _, x := range []struct {
			profile oidc.Profile
			kind    string
			alg     string // empty: refused
			cert    bool
		}{
			{oidc.Profile{ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{Algorithm: "ES256"}}, "", "ES256", false},
			{oidc.Profile{ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{Algorithm: "PS256"}}, "rsa-2048", "PS256", false},
			{oidc.Profile{ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{Algorithm: "RS256"}}, "ed25519", "", false},
			{oidc.Profile{ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{KeyID: "certificate"}}, "p-256", "ES256", true},
			{oidc.Profile{ClientAuth: oidc.SelfSignedTLS}, "p-256", "ES256", true},
			{oidc.Profile{ClientAuth: oidc.TLS}, "p-256", "", false},
		} {
			w.with(func(c *Client) {
				c.Rotation.Spec.Path = rand.Text()
				c.Issuer = &x.profile
				c.Issuer.TokenEndpoint = "https://issuer.example/token"
				c.Headers = nil
			})
			k, err := w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Kind: x.kind})
			if x.alg == "" {
				wantCode(w.t, err, client.InvalidRequest)
				continue
			}
			if err != nil || k.Algorithm != x.alg || !strings.Contains(string(k.JWK), `"alg":"`+x.alg+`"`) || (k.Certificate != "") != x.cert {
				w.t.Errorf("%+v: %+v, %v", x.profile, k, err)
			}
		}
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

// gate is a network that can be cut.
type gate struct {
	rt   http.RoundTripper
	shut atomic.Bool
}

func (g *gate) RoundTrip(r *http.Request) (*http.Response, error) {
	if g.shut.Load() {
		return nil, errors.New("cut")
	}
	return g.rt.RoundTrip(r)
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

func TestNewKey(t *testing.T) {
	inWorld(t, func(w *world) {
		acm := &fake.ACM{}
		w.with(func(c *Client) {
			c.Rotation.Spec.Path = "acm"
			c.Rotation.Required = []string{"client_id", "private_key"}
			c.Issuer = &oidc.Profile{TokenEndpoint: "https://acm.example/op/v1/token", ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{Audience: "https://acm.example/op"}}
			c.Transport = acm.RoundTripper()
			c.Headers = nil
		})
		_, err := w.b.Key(w.t.Context(), "vdab")
		wantCode(w.t, err, client.NotFound)
		made, err := w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Kind: "p-256", Certificate: true, Subject: "our app"})
		if err != nil {
			w.t.Fatal(err)
		}
		shown, err := w.b.Key(w.t.Context(), "vdab")
		if err != nil || string(shown.JWK) != string(made.JWK) || shown.KeyID != made.KeyID || shown.Algorithm != "ES256" || shown.Certificate != made.Certificate || shown.Version != "1" {
			w.t.Errorf("%+v, %v, want %+v", shown, err, made)
		}
		if strings.Contains(string(made.JWK), `"d"`) || strings.Contains(made.Certificate, "PRIVATE") {
			w.t.Error("the private key is shown")
		}
		if len(made.Missing) != 1 || made.Missing[0] != "client_id" {
			w.t.Errorf("missing: %v", made.Missing)
		}
		_, err = w.b.NewKey(w.t.Context(), "vdab", client.NewKey{})
		wantCode(w.t, err, client.InvalidRequest)
		_, err = w.b.NewKey(w.t.Context(), "nobody", client.NewKey{})
		wantCode(w.t, err, client.NotFound)
		time.Sleep(time.Second) // it has looked again
		_, err = w.get(Request{})
		if e := wantCode(w.t, err, client.ProviderUnavailable); !strings.Contains(e.Detail, "client_id") {
			w.t.Errorf("%q", e.Detail)
		}
		// What stands around a certificate is nobody's business.
		secretText := map[string]secret.Secret{"certificate": secret.FromString("client_secret=oh-no\n" + made.Certificate)}
		if _, err := providers.Store(w.t.Context(), w.store, providers.Spec{Ref: providers.Ref{Path: "acm"}}, secretText, providers.Any); err != nil {
			w.t.Fatal(err)
		}
		if shown, err = w.b.Key(w.t.Context(), "vdab"); err != nil || shown.Certificate != made.Certificate {
			w.t.Errorf("%q, %v", shown.Certificate, err)
		}
		// The issuer has registered the key and given an id: a token.
		if err := acm.Register(fake.Client{ID: theID, Keys: []string{string(made.JWK)}}); err != nil {
			w.t.Fatal(err)
		}
		if _, err := providers.Store(w.t.Context(), w.store, providers.Spec{Ref: providers.Ref{Path: "acm"}}, map[string]secret.Secret{"client_id": secret.FromString(theID)}, providers.Any); err != nil {
			w.t.Fatal(err)
		}
		time.Sleep(6 * time.Minute)
		w.mustGet()
	})
}

func TestNewKeyIsRefused(t *testing.T) {
	inWorld(t, func(w *world) {
		_, err := w.b.NewKey(w.t.Context(), "vdab", client.NewKey{})
		wantCode(w.t, err, client.NotFound) // it has a secret
		asymmetric := func(c *Client) { c.Issuer.ClientAuth = oidc.PrivateKeyJWT }
		w.with(asymmetric)
		_, err = w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Kind: "rsa-1024"})
		if e := wantCode(w.t, err, client.InvalidRequest); !strings.Contains(e.Detail, "rsa-3072") {
			w.t.Errorf("%q", e.Detail)
		}
		w.with(func(c *Client) { asymmetric(c); c.Provider = struct{ providers.Provider }{w.store} })
		_, err = w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Kind: "p-256"})
		wantCode(w.t, err, client.ProviderUnavailable)
	})
}

// A clock that is ten minutes off costs a request, not the client.
func TestWrongClock(t *testing.T) {
	for _, off := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		inWorld(t, func(w *world) {
			key, err := keys.Generate("p-256")
			if err != nil {
				w.t.Fatal(err)
			}
			public, err1 := key.Public("")
			private, err2 := key.PEM()
			if err := errors.Join(err1, err2); err != nil {
				w.t.Fatal(err)
			}
			acm := &fake.ACM{}
			if err := acm.Register(fake.Client{ID: theID, Keys: []string{string(public)}}); err != nil {
				w.t.Fatal(err)
			}
			if _, err := w.store.Put(context.Background(), providers.Ref{Path: "acm"}, map[string]secret.Secret{"client_id": secret.FromString(theID), "private_key": private}, ""); err != nil {
				w.t.Fatal(err)
			}
			w.skew.Store(int64(off))
			w.with(func(c *Client) {
				c.Rotation.Spec.Path = "acm"
				c.Rotation.Required = []string{"client_id", "private_key"}
				c.Issuer = &oidc.Profile{TokenEndpoint: "https://acm.example/op/v1/token", ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{Audience: "https://acm.example/op"}}
				c.Transport = acm.RoundTripper()
				c.Headers = nil
			})
			if _, err = w.get(Request{}); err != nil {
				if e := wantCode(w.t, err, client.IssuerUnavailable); !strings.Contains(e.Detail, "clock") {
					w.t.Errorf("%q", e.Detail)
				}
				time.Sleep(3 * time.Second)
			}
			w.mustGet()
			if n := acm.Stats().Requests; n > 2 {
				w.t.Errorf("%s: %d requests", off, n)
			}
		})
	}
}
