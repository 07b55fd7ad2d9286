//go:build real

package issuers

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/api/client"
	"credentialbroker/integration/oidcprovider"
)

// provider is npm's oidc-provider, which learns its clients when it starts: the
// daemon has to have made their keys before.
type provider struct {
	*oidcprovider.Server
	w       *world
	clients []*registered
	started bool
}

// registered is a client of it, with what the broker is told beside the
// preset.
type registered struct {
	oidcprovider.Registration
	method, yaml string
	kind         string // of key; empty: it has none
}

func (r *registered) name() string { return "op-" + strings.Split(r.ID, " ")[0] }

// api is the resource server, which asks about tokens.
func api() oidcprovider.Registration {
	return oidcprovider.Registration{ID: "api", Secret: "the API's own secret", Auth: "client_secret_post"}
}

func (w *world) oidcProvider() (all []entry) {
	const jwtBearer = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	const bound = "certificate_bound_access_tokens: true\n" // these tokens are opaque: nothing in them says so
	awkward := ` +/:%&="\~`                                 // it allows ASCII alone
	secret := "at least 32 bytes of secret: " + awkward
	login, public := oidcprovider.ForPeople("login", "client_secret_basic", "login's secret"), oidcprovider.ForPeople("public", "none", "")
	p := &provider{Server: oidcprovider.New(w.t), w: w, clients: []*registered{
		{oidcprovider.Registration{ID: "basic" + awkward, Secret: secret, Auth: "client_secret_basic"}, "", "", ""},
		{oidcprovider.Registration{ID: "post" + awkward, Secret: secret, Auth: "client_secret_post"}, "", "", ""},
		{oidcprovider.Registration{ID: "jwt" + awkward, Secret: secret, Auth: "client_secret_jwt"}, "", "", ""},
		{oidcprovider.Registration{ID: "rs256", Auth: "private_key_jwt", Alg: "RS256"}, " RS256", "", "rsa-2048"},
		{oidcprovider.Registration{ID: "es256", Auth: "private_key_jwt", Alg: "ES256"}, " ES256", "", "p-256"},
		{oidcprovider.Registration{ID: "eddsa", Auth: "private_key_jwt", Alg: "EdDSA"}, " EdDSA", "", "ed25519"},
		{oidcprovider.Registration{ID: "tls", Auth: "tls_client_auth", Bound: true}, "; tokens bound to the certificate", bound, "rsa-2048"},
		{oidcprovider.Registration{ID: "self", Auth: "self_signed_tls_client_auth", Bound: true}, "; tokens bound to the certificate", bound, "p-256"},
		{oidcprovider.Registration{ID: "bound", Auth: "private_key_jwt", Bound: true}, " with certificate_bound_access_tokens", bound, "p-256"},
		{oidcprovider.Registration{ID: "bearer", Auth: "private_key_jwt", Grants: []string{jwtBearer}}, "; jwt_bearer grant", "grant: jwt_bearer\n", "p-256"},
		{oidcprovider.Registration{ID: "acm-basic" + awkward, Secret: secret, Auth: "client_secret_basic"}, "", "", ""},
		{oidcprovider.Registration{ID: "acm-post" + awkward, Secret: secret, Auth: "client_secret_post"}, "", "", ""},
		{oidcprovider.Registration{ID: "acm-jwt", Auth: "private_key_jwt", Alg: "RS256"}, " RS256, the issuer as audience, no kid", "", "rsa-2048"},
		{login, "; authorization code with PKCE, refresh tokens rotate", "grant: authorization_code\nscope: read write\n", ""},
		{public, " (public client); authorization code with PKCE, refresh tokens rotate", "grant: authorization_code\nscope: read write\n", ""},
	}}
	for _, r := range p.clients {
		fields := map[string]string{"client_id": r.ID}
		if r.Secret != "" {
			fields["client_secret"] = r.Secret
		}
		e := entry{name: r.name(), preset: "oauth2", method: r.Auth + r.method, server: oidcprovider.Version + ", discovered", fields: fields, caFile: p.CAFile,
			yaml: "issuer: " + p.URL + "\nclient_auth: " + r.Auth + "\n" + r.yaml,
			ready: func(t *testing.T) {
				p.start(t)
				w.accept(t, r.name())
			},
			use: func(t *testing.T) { p.introspected(t, r.name()) }}
		if strings.HasPrefix(r.ID, "acm-") { // all of ACM's flows are standard ones
			e.preset, e.server = "digitaal-vlaanderen", oidcprovider.Version
			e.yaml = fmt.Sprintf("issuer: %[1]s\ntoken_endpoint: %[1]s/token\nintrospection_endpoint: %[1]s/token/introspection\nassertion: { audience: %[1]s }\nclient_auth: %[2]s\n", p.URL, r.Auth)
		}
		if r.Redirects != nil {
			e.method += "; broker revoke --login ends it"
			e.again = func(t *testing.T) {
				w.refreshed(t, r.name(), true, func() { p.introspected(t, r.name()) })
				w.broker(t, "revoke", r.name(), "--login")
				w.wantsLogin(t, r.name())
			}
			e.yaml += "refresh: { provider: store, path: " + r.name() + "-login }\n"
			e.ready = func(t *testing.T) {
				p.start(t)
				w.wantsLogin(t, r.name())
				w.login(t, r.name(), false, func(start string) string { return p.consent(t, start) })
				w.hide(r.name()+"'s refresh token", w.fields(r.name() + "-login")["refresh_token"])
			}
		}
		all = append(all, e)
	}
	return all
}

// start has all keys made, tells the server, and starts it.
func (p *provider) start(t *testing.T) {
	t.Helper()
	if p.started {
		return
	}
	p.started = true
	all := []oidcprovider.Registration{api()}
	for _, r := range p.clients {
		if r.kind != "" {
			p.publish(t, r)
		}
		all = append(all, r.Registration)
	}
	p.Start(p.w.t, all...)
}

// publish makes a key and gives the server its public half.
func (p *provider) publish(t *testing.T, r *registered) {
	t.Helper()
	made := p.w.newKey(t, r.name(), r.kind, r.Bound)
	if r.Auth == "tls_client_auth" { // an authority's certificate replaces the self-signed one
		var k jose.JSONWebKey
		if err := k.UnmarshalJSON(made.JWK); err != nil {
			t.Fatal(err)
		}
		r.Subject = "CN=" + r.ID + ",O=Example,C=BE"
		p.w.put(r.name(), map[string]string{"certificate": string(p.Certificate(t, k.Key, r.ID))})
		return
	}
	var jwk map[string]any
	if err := json.Unmarshal(made.JWK, &jwk); err != nil {
		t.Fatal(err)
	}
	if r.Bound {
		block, _ := pem.Decode([]byte(made.Certificate))
		jwk["x5c"] = []string{base64.StdEncoding.EncodeToString(block.Bytes)}
	}
	r.Keys = &oidcprovider.JWKS{Keys: []map[string]any{jwk}}
}

// consent is a person at the server's own pages, and a browser that then goes
// where it is sent.
func (p *provider) consent(t *testing.T, start string) string {
	t.Helper()
	u, err := url.Parse(start)
	if err != nil {
		t.Fatal(err)
	}
	back := p.Person(t, start, u.Query().Get("redirect_uri"))
	p.w.hide("a code", back.Query().Get("code"))
	resp, err := http.Get(back.String())
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("the browser shows %s at the end", resp.Status)
	}
	return ""
}

// introspected gets a token and has the API ask the server about it.
func (p *provider) introspected(t *testing.T, name string) {
	t.Helper()
	tok := p.w.token(t, name, client.Options{})
	resp, err := (&http.Client{Transport: p.Transport(t)}).PostForm(p.URL+"/token/introspection", url.Values{"client_id": {api().ID}, "client_secret": {api().Secret}, "token": {tok.AccessToken}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var said struct {
		Active bool
		Cnf    map[string]string
	}
	if err := json.NewDecoder(resp.Body).Decode(&said); err != nil || !said.Active {
		t.Errorf("introspection: %+v, %v", said, err)
	}
	s := p.w.status(t, name)
	if len(s.Tokens) != 1 || s.Tokens[0].Bound != said.Cnf["x5t#S256"] {
		t.Errorf("bound to %q, status says %+v", said.Cnf["x5t#S256"], s.Tokens)
	}
}
