//go:build real

package issuers

import (
	"net/http"
	"strings"
	"testing"

	"credentialbroker/api/client"
	"credentialbroker/internal/fake"
)

// oauth2 is the preset for any other server, which is found by its metadata.
func (w *world) oauth2() (all []entry) {
	o := &fake.OAuth2{}
	mux := http.NewServeMux()
	mux.Handle("/", o)
	mux.Handle("/api/", o.API(""))
	site := w.site(mux)
	register := func(c fake.Client) {
		c.Scopes = []string{"read"}
		if err := o.Register(c); err != nil {
			w.t.Fatal(err)
		}
	}
	add := func(name, method, yaml string, fields map[string]string, ready, use func(*testing.T)) {
		if use == nil {
			use = w.asks(name, site+"/api/", client.Options{})
		}
		all = append(all, entry{name: name, preset: "oauth2", method: method, server: "fake OAuth 2 server, discovered", yaml: "issuer: " + site + "/as\n" + yaml, fields: fields, ready: ready, use: use})
	}
	for _, auth := range []string{"client_secret_basic", "client_secret_post", "client_secret_jwt"} {
		name := "as-" + strings.ReplaceAll(auth[len("client_secret_"):], "_", "-")
		secret := "at least 32 bytes of secret: " + awkward
		register(fake.Client{ID: name + awkward, Secret: secret, Auth: auth})
		add(name, auth+"; broker revoke ends the token", "client_auth: "+auth, map[string]string{"client_id": name + awkward, "client_secret": secret}, nil, func(t *testing.T) {
			h := w.headers(t, name, client.Options{})
			w.usable(t, site+"/api/", h)
			w.broker(t, "revoke", name)
			if status, _ := w.call(t, site+"/api/", h); status == http.StatusOK {
				t.Error("a revoked token opens the API")
			}
			w.usable(t, site+"/api/", w.headers(t, name, client.Options{}))
		})
	}
	for kind, alg := range map[string]string{"rsa-2048": "RS256", "p-256": "ES256", "ed25519": "EdDSA"} {
		name := "as-" + strings.ToLower(alg)
		add(name, "private_key_jwt "+alg, "client_auth: private_key_jwt", map[string]string{"client_id": name}, func(t *testing.T) {
			register(fake.Client{ID: name, Auth: "private_key_jwt", Keys: []string{string(w.newKey(t, name, kind, false).JWK)}})
			w.accept(t, name)
		}, nil)
	}
	bound := func(name string) func(*testing.T) {
		return func(t *testing.T) {
			h := w.headers(t, name, client.Options{})
			w.usable(t, site+"/api/", h, w.certificate(t, name))
			if status, _ := w.call(t, site+"/api/", h); status == http.StatusOK {
				t.Error("a bound token opens the API without its certificate")
			}
			if s := w.status(t, name); len(s.Tokens) == 0 || s.Tokens[0].Bound == "" {
				t.Errorf("status does not say that the token is bound: %+v", s.Tokens)
			}
		}
	}
	for _, auth := range []string{"tls_client_auth", "self_signed_tls_client_auth", "private_key_jwt"} {
		name, yaml, method := "as-"+strings.ReplaceAll(auth, "_", "-"), "client_auth: "+auth, auth+"; tokens bound to the certificate"
		if auth == "private_key_jwt" {
			name, yaml, method = "as-bound", yaml+"\ncertificate_bound_access_tokens: true", auth+" with certificate_bound_access_tokens"
		}
		add(name, method, yaml, map[string]string{"client_id": name}, func(t *testing.T) {
			k := w.newKey(t, name, "p-256", true)
			c := fake.Client{ID: name, Auth: auth, Keys: []string{string(k.JWK)}}
			switch auth {
			case "tls_client_auth":
				c.Keys, c.Subject = nil, "CN="+name
			case "self_signed_tls_client_auth":
				c.Keys = []string{k.Certificate}
			}
			register(c)
			w.accept(t, name)
		}, bound(name))
	}
	add("as-bearer", "jwt_bearer grant, no client authentication (none)", "grant: jwt_bearer\nclient_auth: none", map[string]string{"client_id": "as-bearer"}, func(t *testing.T) {
		register(fake.Client{ID: "as-bearer", Keys: []string{string(w.newKey(t, "as-bearer", "p-256", false).JWK)}})
		w.accept(t, "as-bearer")
	}, nil)
	return all
}
