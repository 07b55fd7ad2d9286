package broker

import (
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/internal/fake"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

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
