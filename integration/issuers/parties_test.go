//go:build real

package issuers

import (
	"fmt"
	"net/http"
	"net/http/httputil"
	"os"
	"strings"
	"testing"

	"credentialbroker/api/client"
	"credentialbroker/integration/oidcprovider"
	"credentialbroker/internal/fake"
)

// set overrides a key of a client's configuration, which may lie deeper.
func set(c map[string]any, path string, value any) {
	first, rest, deeper := strings.Cut(path, ".")
	if !deeper {
		c[first] = value
		return
	}
	below, ok := c[first].(map[string]any)
	if !ok {
		below = map[string]any{}
		c[first] = below
	}
	set(below, rest, value)
}

// replace is set for what the document shows only.
func replace(c map[string]any, path string, value any) {
	first, rest, deeper := strings.Cut(path, ".")
	switch below, ok := c[first].(map[string]any); {
	case !deeper && c[first] != nil:
		c[first] = value
	case deeper && ok:
		replace(below, rest, value)
	}
}

// party takes a client as a document has it, with what has to be different
// here: the secrets manager's names have no slash, the callers are this test,
// and the servers are fakes.
func (s *stage) party(name string, c map[string]any) *party {
	s.t.Helper()
	for _, key := range []string{"secret", "refresh"} {
		if ref, ok := c[key].(map[string]any); ok {
			ref["path"] = strings.ReplaceAll(ref["path"].(string), "/", "-")
		}
	}
	for _, e := range c["allow"].([]any) {
		entry := e.(map[string]any)
		delete(entry, "unit")
		entry["user"] = fmt.Sprint(os.Getuid())
	}
	c["ca_file"] = s.caFile
	p := &party{path: c["secret"].(map[string]any)["path"].(string)}
	switch c["preset"] {
	case "vdab-production":
		s.withVDAB(name, c, p)
	case "vdab-api-key":
		s.withKey(name, c, p, "X-IBM-Client-Id", "")
	case "mijnklantportaal-api-key":
		s.withKey(name, c, p, "Authentication", "Bearer ")
	case "digitaal-vlaanderen":
		s.withACM(name, c, p)
	case "geosecure":
		s.withGeosecure(name, c, p)
	case "zgw":
		s.withZGW(name, c, p)
	case "mijnklantportaal":
		s.withPortal(name, c, p)
	case "oauth2":
		switch c["grant"] {
		case "none":
			s.withKey(name, c, p, "X-Api-Key", "")
		case "authorization_code":
			s.withProvider(name, c, p)
		default:
			s.withOAuth2(name, c, p)
		}
	default:
		s.t.Fatalf("nobody plays the issuer of the preset %v", c["preset"])
	}
	return p
}

// calls gives a use: the headers, and a call to the API.
func (s *stage) calls(name, api string) func(*testing.T) {
	return s.asks(name, api, client.Options{})
}

// register tells a fake of a client.
func (s *stage) register(f interface{ Register(fake.Client) error }, c fake.Client) {
	s.t.Helper()
	if err := f.Register(c); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) withVDAB(name string, c map[string]any, p *party) {
	f := fake.NewIssuer(fake.Client{ID: "vdab-id", Secret: "vdab-secret-1", APIKey: "vdab-api-key"})
	mux := http.NewServeMux()
	mux.Handle("/", f)
	mux.Handle(fake.APIPath, f.Gateway())
	site := s.site(mux)
	set(c, "token_endpoint", site+fake.TokenPath)
	replace(c, "probe.url", site+fake.APIPath)
	s.put(p.path, map[string]string{"client_id": "vdab-id", "client_secret": "vdab-secret-1", "api_key": "vdab-api-key"})
	p.renew = func() {
		f.SetSecret("vdab-id", "vdab-secret-2", true)
		s.put(p.path, map[string]string{"client_secret": "vdab-secret-2"})
	}
	p.use = s.calls(name, site+fake.APIPath)
}

// withKey is an API without tokens, which takes an old and a new key.
func (s *stage) withKey(name string, c map[string]any, p *party, header, prefix string) {
	site := s.site(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get(header), prefix+"an-api-key-") || r.Header.Get("Authorization") != "" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	replace(c, "probe.url", site+"/")
	s.put(p.path, map[string]string{"api_key": "an-api-key-1"})
	p.renew = func() { s.put(p.path, map[string]string{"api_key": "an-api-key-2"}) }
	p.use = s.calls(name, site+"/")
}

func (s *stage) withACM(name string, c map[string]any, p *party) {
	f := &fake.ACM{}
	mux := http.NewServeMux()
	mux.Handle("/", f)
	audience, _ := c["audience"].(string)
	mux.Handle("/api/", f.API(audience))
	site := s.site(mux)
	for key, path := range map[string]string{"token_endpoint": "/op/v1/token", "issuer": "/op", "introspection_endpoint": "/op/v1/introspect", "assertion.audience": "/op"} {
		set(c, key, site+path)
	}
	s.keyed(c, p, f, fake.Client{ID: "5f2b9d1e-0000-4000-8000-000000000101"})
	p.use = s.calls(name, site+"/api/")
}

func (s *stage) withGeosecure(name string, c map[string]any, p *party) {
	f := &fake.Geosecure{}
	mux := http.NewServeMux()
	mux.Handle("/", f)
	mux.Handle("/api/", f.API())
	site := s.site(mux)
	set(c, "token_endpoint", site+"/authorization/ws/oauth/v2/token")
	set(c, "assertion.audience", site+"/authorization/ws/oauth/v2/token")
	s.keyed(c, p, f, fake.Client{ID: "6594"})
	p.use = s.calls(name, site+"/api/")
}

// keyed registers a client with the secret that it has, or with the key that
// its person uploads.
func (s *stage) keyed(c map[string]any, p *party, f interface{ Register(fake.Client) error }, k fake.Client) {
	s.t.Helper()
	auth, _ := c["client_auth"].(string)
	if scope, ok := c["scope"].(string); ok {
		k.Scopes = strings.Fields(scope)
	}
	fields := map[string]string{"client_id": k.ID}
	if strings.HasPrefix(auth, "client_secret") || c["preset"] == "oauth2" && auth == "" {
		k.Secret = "a-client-secret"
		fields["client_secret"] = k.Secret
		s.register(f, k)
	} else {
		p.upload = func(exported string) error {
			if auth == "tls_client_auth" { // not the certificate, but its subject
				k.Subject = "CN=partner"
				return f.Register(k)
			}
			k.Keys = []string{exported}
			return f.Register(k)
		}
	}
	s.put(p.path, fields)
}

func (s *stage) withZGW(name string, c map[string]any, p *party) {
	f := &fake.ZGW{}
	site := s.site(f)
	replace(c, "probe.url", site+"/zaken/api/v1/catalogussen")
	s.register(f, fake.Client{ID: "zaak-app", Secret: "zgw-secret-of-this-client-1"})
	s.put(p.path, map[string]string{"client_id": "zaak-app", "client_secret": "zgw-secret-of-this-client-1"})
	p.renew = func() {
		f.SetSecret("zaak-app", "zgw-secret-of-this-client-2", true)
		s.put(p.path, map[string]string{"client_secret": "zgw-secret-of-this-client-2"})
	}
	p.use = s.calls(name, site+"/zaken/api/v1/zaken")
}

func (s *stage) withPortal(name string, c map[string]any, p *party) {
	f := &fake.MijnKlantportaal{}
	site := s.site(f)
	set(c, "authorization_endpoint", site+"/oauth/authorize")
	set(c, "token_endpoint", site+"/oauth/tokens")
	s.register(f, fake.Client{ID: "mijn-app", Secret: "mijn-secret", Scopes: []string{c["scope"].(string)}, RedirectURIs: []string{"http://127.0.0.1/callback"}})
	s.put(p.path, map[string]string{"client_id": "mijn-app", "client_secret": "mijn-secret"})
	p.browser = func(start string, stop bool) string { return s.browse(s.t, start, stop) }
	p.use = s.calls(name, site+"/api/v1/customers")
}

// withProvider is the one server that is no fake: none of them has both codes
// and revocation.
func (s *stage) withProvider(name string, c map[string]any, p *party) {
	op := &provider{Server: oidcprovider.New(s.t), w: s.world}
	k := oidcprovider.ForPeople("partner", "client_secret_basic", "a-client-secret")
	op.Start(s.t, api(), k)
	c["ca_file"] = op.CAFile
	set(c, "issuer", op.URL)
	set(c, "scope", "read offline_access")
	s.put(p.path, map[string]string{"client_id": k.ID, "client_secret": k.Secret})
	p.browser = func(start string, _ bool) string { return op.consent(s.t, start) }
	p.use = func(t *testing.T) { op.introspected(t, name) }
}

// withOAuth2 is a server that wants the parameters, and an API that wants the
// headers, which the document shows.
func (s *stage) withOAuth2(name string, c map[string]any, p *party) {
	f := &fake.OAuth2{}
	params, _ := c["params"].(map[string]any)
	headers, _ := c["headers"].(map[string]any)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, err := httputil.DumpRequest(r, true)
		for param, value := range params {
			if err != nil || !strings.Contains(string(body), param+"="+value.(string)) {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
		}
		f.ServeHTTP(w, r)
	})
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		for header := range headers {
			if r.Header.Get(header) != "partner-id" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
		}
		f.API("").ServeHTTP(w, r)
	})
	site := s.site(mux)
	replace(c, "issuer", site+"/as")
	replace(c, "token_endpoint", site+"/as/token")
	replace(c, "assertion.audience", site+"/as")
	s.keyed(c, p, f, fake.Client{ID: "partner-id"})
	p.use = func(t *testing.T) {
		h := s.headers(t, name, client.Options{})
		if auth, _ := c["client_auth"].(string); strings.Contains(auth, "tls") {
			s.usable(t, site+"/api/", h, s.certificate(t, p.path))
			return
		}
		s.usable(t, site+"/api/", h)
	}
}
