package broker

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/fake"
	"credentialbroker/oidc"
	"credentialbroker/rotation"
)

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
