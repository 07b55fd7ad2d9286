//go:build real

package issuers

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/configs"
	"credentialbroker/integration/real"
	"credentialbroker/internal/fake"
)

// entry is a client, and a line of the table.
type entry struct {
	name                   string
	preset, method, server string
	yaml                   string            // what it sets beside the preset
	caFile                 string            // of the issuer; empty: the world's
	fields                 map[string]string // what its secret holds at first
	ready                  func(*testing.T)  // what a person does before it can be used; nil: nothing
	use                    func(*testing.T)  // gets a credential and calls the API
	again                  func(*testing.T)  // the same of a daemon that has been restarted since; nil: use
}

// awkward has what has to be encoded in one place or another.
const awkward = ` +/:%é&="\~`

func TestPresets(t *testing.T) {
	w := newWorld(t)
	all := slices.Concat(w.vdab(), w.acm(), w.geosecure(), w.zgw(), w.mijnKlantportaal(), w.oauth2(), w.oidcProvider())
	for _, preset := range configs.Presets() {
		if !slices.ContainsFunc(all, func(e entry) bool { return e.preset == preset }) {
			t.Errorf("the table has no line for the preset %s", preset)
		}
	}
	for _, e := range all {
		w.client(e.name, e.preset, "ca_file: "+cmp.Or(e.caFile, w.caFile)+"\n"+e.yaml, e.fields)
	}
	w.configure("")
	w.serve()
	for _, e := range all {
		t.Run(e.name, func(t *testing.T) {
			real.Row(t, "preset "+e.preset, e.server, e.method)
			if e.ready != nil {
				e.ready(t)
			}
			e.use(t)
		})
	}
	w.end(syscall.SIGTERM)
	w.serve()
	t.Run("restarted", func(t *testing.T) {
		real.Row(t, "every preset", "all of these", "after a restart the same credentials serve, those of logins by their refresh tokens")
		for _, e := range all {
			if e.again == nil {
				e.again = e.use
			}
			t.Run(e.name, e.again)
		}
	})
	t.Run("leaks", func(t *testing.T) {
		real.Row(t, "secrets", "brokerd", "every preset: none in log, audit log, status, metrics and state directory: not in clear, base64, base64url or hex")
		w.leaks(t)
	})
}

// probed waits until the API has been asked about the key, which nobody waits
// for otherwise.
func (w *world) probed(t *testing.T, name string) {
	t.Helper()
	for range 100 {
		if strings.HasPrefix(w.status(t, name).APIKey, "probed OK at ") {
			return
		}
		<-time.After(50 * time.Millisecond)
	}
	t.Errorf("the API key is %s", w.status(t, name).APIKey)
}

// asks gives a use: the headers, asked for with o, and a call to the API.
func (w *world) asks(name, api string, o client.Options) func(*testing.T) {
	return func(t *testing.T) { w.usable(t, api, w.headers(t, name, o)) }
}

func (w *world) vdab() (all []entry) {
	id, key := "kCVy8fpVSU50zFzi8TIC", "vdab-api-key-0123456789"
	issuer := fake.NewIssuer(fake.Client{ID: id, Secret: "vdab-secret" + awkward, APIKey: key})
	mux := http.NewServeMux()
	mux.Handle("/", issuer)
	mux.Handle(fake.APIPath, issuer.Gateway())
	site := w.site(mux)
	for _, preset := range []string{"vdab-test", "vdab-production"} {
		all = append(all, entry{name: preset, preset: preset, method: "client_secret_post; API key in a header of its own, probed", server: "fake ISAM and API Connect",
			yaml:   "token_endpoint: " + site + fake.TokenPath + "\nprobe: { url: " + site + fake.APIPath + " }",
			fields: map[string]string{"client_id": id, "client_secret": "vdab-secret" + awkward, "api_key": key},
			use: func(t *testing.T) {
				h := w.headers(t, preset, client.Options{})
				w.usable(t, site+fake.APIPath, h)
				w.probed(t, preset)
				if len(h) != 2 || h["X-Ibm-Client-Id"]+h["X-IBM-Client-Id"] != key {
					t.Errorf("%d headers", len(h))
				}
			}})
	}
	// What has no OIDC: the key is all, and a token would be too much.
	keyed := w.site(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-IBM-Client-Id") != key || r.Header.Get("Authorization") != "" {
			rw.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(rw, `{"httpCode":"401","httpMessage":"Unauthorized","moreInformation":"Invalid client id or secret."}`)
		}
	}))
	for _, preset := range []string{"vdab-api-key-test", "vdab-api-key"} {
		all = append(all, w.keyOnly(preset, keyed+"/", key, "fake API Connect"))
	}
	return all
}

// keyOnly is a product without tokens.
func (w *world) keyOnly(preset, api, key, server string) entry {
	return entry{name: preset, preset: preset, method: "API key alone, probed", server: server, yaml: "probe: { url: " + api + " }",
		fields: map[string]string{"api_key": key},
		use: func(t *testing.T) {
			w.usable(t, api, w.headers(t, preset, client.Options{}))
			if got, err := w.ask.APIKey(t.Context(), preset); err != nil || strings.TrimSpace(got) != key {
				t.Errorf("the key alone: %v", err)
			}
			if _, err := w.ask.Token(t.Context(), preset, client.Options{}); err == nil {
				t.Error("a token, of a product that has none")
			}
			if s := w.status(t, preset); !strings.HasPrefix(s.APIKey, "probed OK at ") {
				t.Errorf("status of the key: %q", s.APIKey)
			}
		}}
}

func (w *world) acm() (all []entry) {
	acm := &fake.ACM{}
	register := func(c fake.Client) {
		if err := acm.Register(c); err != nil {
			w.t.Fatal(err)
		}
	}
	const apiID = "5f2b9d1e-0000-4000-8000-000000000001"
	mux := http.NewServeMux()
	mux.Handle("/", acm)
	mux.Handle("/api/any", acm.API(""))
	mux.Handle("/api/audience", acm.API(apiID))
	site := w.site(mux)
	mux.Handle("/api/resource", acm.API(site+"/api/resource"))
	server := "fake ACM"
	endpoints := fmt.Sprintf("token_endpoint: %[1]s/op/v1/token\nissuer: %[1]s/op\nintrospection_endpoint: %[1]s/op/v1/introspect\nassertion: { audience: %[1]s/op }\n", site)
	for i, preset := range []string{"digitaal-vlaanderen-test", "digitaal-vlaanderen"} {
		for _, auth := range []string{"client_secret_basic", "client_secret_post"} {
			name := fmt.Sprintf("acm-%s-%d", auth[len("client_secret_"):], i)
			id, secret := name+awkward, "secret"+awkward+name
			register(fake.Client{ID: id, Secret: secret, Auth: auth, Scopes: []string{"vo_info"}})
			all = append(all, entry{name: name, preset: preset, method: auth + " with + / : % é in both; audience and resource; narrower scope shown", server: server,
				yaml:   endpoints + "client_auth: " + auth + "\nscopes: [vo_info, awv_toep_services]\naudiences: [" + apiID + ", " + site + "/api/resource]\n",
				fields: map[string]string{"client_id": id, "client_secret": secret},
				use: func(t *testing.T) {
					w.usable(t, site+"/api/audience", w.headers(t, name, client.Options{Audience: apiID}))
					w.usable(t, site+"/api/resource", w.headers(t, name, client.Options{Resource: site + "/api/resource"}))
					own := w.headers(t, name, client.Options{Scope: "awv_toep_services vo_info"})
					w.usable(t, site+"/api/any", own)
					if status, _ := w.call(t, site+"/api/audience", own); status == http.StatusOK {
						t.Error("a token for the caller itself opened the API")
					}
					w.narrowed(t, name, "awv_toep_services vo_info", "vo_info")
				}})
		}
		name := fmt.Sprintf("acm-jwt-%d", i)
		id := fmt.Sprintf("5f2b9d1e-0000-4000-8000-00000000010%d", i)
		all = append(all, entry{name: name, preset: preset, method: "private_key_jwt RS256, the issuer as audience; key made by broker keys new", server: server,
			yaml: endpoints + "scope: vo_info\n", fields: map[string]string{"client_id": id},
			ready: func(t *testing.T) {
				k := w.newKey(t, name, "rsa-3072", false)
				register(fake.Client{ID: id, Auth: "private_key_jwt", Keys: []string{string(k.JWK)}, Scopes: []string{"vo_info"}})
				w.accept(t, name)
			},
			use: w.asks(name, site+"/api/any", client.Options{})})
	}
	return all
}

// narrowed wants the status to say that less was granted than asked for.
func (w *world) narrowed(t *testing.T, name, asked, granted string) {
	t.Helper()
	for _, tok := range w.status(t, name).Tokens {
		if tok.Scope == asked {
			if tok.Granted != granted || !tok.Narrowed {
				t.Errorf("status: %+v", tok)
			}
			if out := w.broker(t, "status"); !strings.Contains(out, "granted "+granted) {
				t.Errorf("status, for people, hides the narrower scope:\n%s", out)
			}
			return
		}
	}
	t.Errorf("status has no token for %q", asked)
}

func (w *world) geosecure() (all []entry) {
	g := &fake.Geosecure{}
	mux := http.NewServeMux()
	mux.Handle("/", g)
	mux.Handle("/api/", g.API())
	site := w.site(mux)
	path := "/authorization/ws/oauth/v2/token"
	endpoints := fmt.Sprintf("token_endpoint: %[1]s%[2]s\nassertion: { audience: %[1]s%[2]s", site, path)
	register := func(c fake.Client) {
		if err := g.Register(c); err != nil {
			w.t.Fatal(err)
		}
	}
	for i, preset := range []string{"geosecure-test", "geosecure"} {
		secret := "geosecure" + awkward
		ids := []string{fmt.Sprint(6594 + 10*i), fmt.Sprint(6595 + 10*i), fmt.Sprint(6596 + 10*i)}
		register(fake.Client{ID: ids[0], Secret: secret, Auth: "client_secret_basic", Scopes: []string{"read"}})
		basic, jwt, x509 := fmt.Sprint("geo-basic-", i), fmt.Sprint("geo-jwt-", i), fmt.Sprint("geo-x509-", i)
		api := site + "/api/"
		all = append(all,
			entry{name: basic, preset: preset, method: "client_secret_basic with + / : % é; narrower scope shown", server: "fake Geosecure", yaml: endpoints + " }\nclient_auth: client_secret_basic\nscope: read write\n",
				fields: map[string]string{"client_id": ids[0], "client_secret": secret},
				use: func(t *testing.T) {
					w.usable(t, api, w.headers(t, basic, client.Options{}))
					w.narrowed(t, basic, "read write", "read")
				}},
			entry{name: jwt, preset: preset, method: "private_key_jwt, lower-case endpoint as audience, kid by RFC 7638", server: "fake Geosecure", yaml: endpoints + " }\n",
				fields: map[string]string{"client_id": ids[1]},
				ready: func(t *testing.T) {
					k := w.newKey(t, jwt, "rsa-2048", false)
					register(fake.Client{ID: ids[1], Auth: "private_key_jwt", Keys: []string{string(k.JWK)}, Scopes: []string{"read"}})
					w.accept(t, jwt)
				}, use: w.asks(jwt, api, client.Options{})},
			entry{name: x509, preset: preset, method: "private_key_jwt, self-signed certificate registered, kid by its SHA-1", server: "fake Geosecure", yaml: endpoints + ", key_id: certificate }\n",
				fields: map[string]string{"client_id": ids[2]},
				ready: func(t *testing.T) {
					w.newKey(t, x509, "rsa-2048", true)
					exported := w.broker(t, "keys", "export", x509, "--format", "certificate")
					register(fake.Client{ID: ids[2], Auth: "private_key_jwt", Keys: []string{exported}, Scopes: []string{"read"}})
					w.accept(t, x509)
				}, use: w.asks(x509, api, client.Options{})})
	}
	return all
}

func (w *world) zgw() []entry {
	z := &fake.ZGW{}
	site := w.site(z)
	id, secret := "zaak-app", "zgw-secret-of-this-client"
	if err := z.Register(fake.Client{ID: id, Secret: secret}); err != nil {
		w.t.Fatal(err)
	}
	addr := real.FreeAddr(w.t)
	api := site + "/zaken/api/v1/zaken"
	const user, person = "burger-900000001", `Jan "é" Jansen-van-Burgerzaken`
	w.hide("a user's id", user)
	w.hide("a user's name", person)
	fields := map[string]string{"client_id": id, "client_secret": secret}
	return []entry{
		{name: "zgw", preset: "zgw", method: "self-signed HS256: token with defaults, JWT for a user; probed", server: "fake Open Zaak", fields: fields,
			yaml: "probe: { url: " + api + " }\njwt: { user_id: default-user, user_representation: Default }\n",
			use: func(t *testing.T) {
				w.usable(t, api, w.headers(t, "zgw", client.Options{}))
				if id, name := z.User(); id != "default-user" || name != "Default" {
					t.Errorf("the API saw %q, %q", id, name)
				}
				w.user(t, "zgw", api, user, person)
				if id, name := z.User(); id != user || name != person {
					t.Errorf("the API saw %q, %q", id, name)
				}
			}},
		{name: "zgw-2018", preset: "zgw", method: "self-signed HS256 in the form of 2018", server: "fake Open Zaak", fields: fields,
			yaml: "probe: { url: " + api + " }\njwt: { form: \"2018\", scopes: [zds.scopes.zaken.lezen] }\n",
			use:  w.asks("zgw-2018", api, client.Options{})},
		{name: "zgw-real", preset: "zgw", method: "self-signed HS256: token with defaults, JWT for a user; probed", server: "commonground-api-common 2.16.0", fields: fields,
			yaml: "probe: { url: \"http://" + addr + "/zaken/api/v1/zaken\" }\n",
			ready: func(t *testing.T) {
				cmd := exec.Command(real.Path("zgw", "venv", "bin", "python"), "-W", "ignore", real.Root()+"/integration/zgw/server.py", addr)
				cmd.Env = append(os.Environ(), "ZGW_OLD="+real.Path("zgw", "2018"))
				cmd.Stdin = strings.NewReader(fmt.Sprintf("{%q: %q}", id, secret))
				real.Start(w.t, addr, cmd)
				w.accept(t, "zgw-real")
			},
			use: func(t *testing.T) {
				w.usable(t, "http://"+addr+"/zaken/api/v1/zaken", w.headers(t, "zgw-real", client.Options{}))
				if body := w.user(t, "zgw-real", "http://"+addr+"/zaken/api/v1/zaken", user, person); !strings.Contains(body, user) {
					t.Errorf("the API saw %s", body)
				}
			}},
	}
}

// user calls the API for a user, with a JWT of the consumer socket and with one
// of the command line.
func (w *world) user(t *testing.T, name, api, id, representation string) (body string) {
	t.Helper()
	tok, err := w.ask.JWT(t.Context(), name, client.User{UserID: id, UserRepresentation: representation})
	if err != nil {
		t.Fatal(err)
	}
	printed := strings.TrimSpace(w.broker(t, "jwt", name, "--user-id", id, "--user-representation", representation))
	for _, jwt := range []string{tok.AccessToken, printed} {
		w.hide("a JWT of "+name, jwt)
		var status int
		if status, body = w.call(t, api, client.Headers{"Authorization": "Bearer " + jwt}); status != http.StatusOK {
			t.Errorf("the API answers %d %s", status, body)
		}
	}
	return body
}

func (w *world) mijnKlantportaal() []entry {
	m, rotating := &fake.MijnKlantportaal{}, &fake.MijnKlantportaal{RotateRefresh: true}
	id, secret, key := "mijn-app", "mijn-secret"+awkward, "mijn-portal-api-key"
	for _, f := range []*fake.MijnKlantportaal{m, rotating} {
		if err := f.Register(fake.Client{ID: id, Secret: secret, APIKey: key, Scopes: []string{"read"}, RedirectURIs: []string{"http://127.0.0.1/callback"}}); err != nil {
			w.t.Fatal(err)
		}
	}
	sites := map[string]string{"mijn": w.site(m), "mijn-paste": w.site(rotating)}
	entries := []entry{w.keyOnly("mijnklantportaal-api-key", sites["mijn"]+"/api/v1/customers", key, "fake MijnKlantportaal")}
	for name, method := range map[string]string{"mijn": "authorization_code by broker login, JSON bodies, no token_type; one refresh token",
		"mijn-paste": "authorization_code by broker login --paste; refresh tokens rotate"} {
		site := sites[name]
		entries = append(entries, entry{name: name, preset: "mijnklantportaal", method: method, server: "fake MijnKlantportaal",
			yaml:   fmt.Sprintf("authorization_endpoint: %[1]s/oauth/authorize\ntoken_endpoint: %[1]s/oauth/tokens\nrefresh: { provider: store, path: %[2]s-login }\n", site, name),
			fields: map[string]string{"client_id": id, "client_secret": secret},
			ready: func(t *testing.T) {
				w.wantsLogin(t, name)
				w.login(t, name, name == "mijn-paste", func(start string) string { return w.browse(t, start, name == "mijn-paste") })
				w.hide(name+"'s refresh token", w.fields(name + "-login")["refresh_token"])
			},
			use: func(t *testing.T) {
				h := w.headers(t, name, client.Options{})
				if h["Authentication"] == "" || h["Authorization"] != "" {
					t.Errorf("the headers are not those of this API")
				}
				w.usable(t, site+"/api/v1/customers", h)
				if s := w.status(t, name).Login; s == nil || s.State != "ok" {
					t.Errorf("status of the login: %+v", s)
				}
			},
			again: func(t *testing.T) {
				w.refreshed(t, name, name == "mijn-paste", func() { w.usable(t, site+"/api/v1/customers", w.headers(t, name, client.Options{})) })
			}})
	}
	return entries
}

// refreshed checks whether f has replaced the refresh token.
func (w *world) refreshed(t *testing.T, name string, replaced bool, f func()) {
	t.Helper()
	before := w.fields(name + "-login")["refresh_token"]
	f()
	after := w.fields(name + "-login")["refresh_token"]
	w.hide(name+"'s next refresh token", after)
	if after == "" || (after != before) != replaced {
		t.Errorf("there is a new refresh token: %v, want %v", after != before, replaced)
	}
}
