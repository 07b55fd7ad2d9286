package api

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// What an administrator asks for arrives as it was asked, and is recorded
// before it is done.
func TestIssuerActs(t *testing.T) {
	h := newHouse(t, nil)
	a := client.Admin{Socket: h.admin}
	ctx := t.Context()
	for _, x := range []struct {
		act  string
		do   func(name string) (any, error)
		want any
		told map[string]string
	}{
		{"", func(n string) (any, error) { return a.Key(ctx, n) }, nil, nil},
		{"keys.new", func(n string) (any, error) { return a.NewKey(ctx, n, client.NewKey{}) },
			client.NewKey{}, map[string]string{"kind": "", "certificate": "false"}},
		{"keys.new", func(n string) (any, error) {
			return a.NewKey(ctx, n, client.NewKey{Kind: "p-256", Certificate: true, Subject: "Jan É"})
		}, client.NewKey{Kind: "p-256", Certificate: true, Subject: "Jan É"}, map[string]string{"kind": "p-256", "certificate": "true"}},
		{"keys.rotate", func(n string) (any, error) { return a.RotateKey(ctx, n, client.KeyRotation{Probe: true}) },
			client.KeyRotation{Probe: true}, map[string]string{"kind": "", "probe": "true", "abandon": "false"}},
		{"keys.rotate", func(n string) (any, error) { return a.RotateKey(ctx, n, client.KeyRotation{Abandon: true}) },
			client.KeyRotation{Abandon: true}, map[string]string{"kind": "", "probe": "false", "abandon": "true"}},
		{"keys.rotate", func(n string) (any, error) {
			return a.RotateKey(ctx, n, client.KeyRotation{NewKey: client.NewKey{Kind: "p-256", Certificate: true, Subject: "Jan É"}, KeyID: "k 2"})
		}, client.KeyRotation{NewKey: client.NewKey{Kind: "p-256", Certificate: true, Subject: "Jan É"}, KeyID: "k 2"},
			map[string]string{"kind": "p-256", "probe": "false", "abandon": "false"}},
		{"login.start", func(n string) (any, error) {
			return a.StartLogin(ctx, n, client.LoginStart{RedirectURI: "http://127.0.0.1:7/callback"})
		}, client.LoginStart{RedirectURI: "http://127.0.0.1:7/callback"}, nil}, // what was typed may hold a code
		{"login", func(n string) (any, error) {
			return a.FinishLogin(ctx, n, client.LoginFinish{State: "the-state", Code: "the-code", Issuer: "https://issuer.example"})
		}, broker.LoginCode{State: "the-state", Issuer: "https://issuer.example"}, nil},
		{"revoke", func(n string) (any, error) { return a.Revoke(ctx, n, client.Revocation{Login: true}) },
			client.Revocation{Login: true}, map[string]string{"login": "true"}},
	} {
		h.mu.Lock()
		h.acts, h.told, h.want = nil, nil, nil
		h.mu.Unlock()
		got, err := x.do("vdab")
		var acts []string
		if x.act != "" {
			acts = []string{x.act + " vdab"}
		}
		if err != nil || !reflect.DeepEqual(h.want, x.want) || !slices.Equal(h.recorded(), acts) {
			t.Errorf("%s: %+v, %v; the daemon was asked for %+v; recorded %q", x.act, got, err, h.want, h.recorded())
		}
		if x.act != "" && !reflect.DeepEqual(h.told[0], x.told) {
			t.Errorf("%s: recorded with %v", x.act, h.told)
		}
		var p *client.Problem
		if _, err := x.do("noone"); !errors.As(err, &p) || p.Code != client.NotFound {
			t.Errorf("%s: of a client that there is not: %v", x.act, err)
		}
		if x.act == "" {
			continue
		}
		h.mu.Lock()
		h.fail, h.want = errors.New("no space left"), nil
		h.mu.Unlock()
		if _, err := x.do("vdab"); !errors.As(err, &p) || p.Code != client.AuditUnavailable || h.want != nil {
			t.Errorf("%s: it is done unrecorded: %v", x.act, err)
		}
		h.mu.Lock()
		h.fail = nil
		h.mu.Unlock()
	}
	if !h.code.Equal(secret.FromString("the-code")) {
		t.Error("the code does not arrive")
	}
	until(t, "the code is wiped", func() bool {
		return errors.Is(h.given.Use(func([]byte) error { return nil }), secret.ErrWiped)
	})
}

func TestIssuerAnswers(t *testing.T) {
	h := newHouse(t, nil)
	c := via(h.admin)
	for path, into := range map[string]any{"keys": &client.Key{}, "keys/rotate": &client.RotatedKey{}, "login": &client.Login{}, "revoke": &client.Outcome{}} {
		strict(t, ask(t, c, "POST", "/v1/clients/vdab/"+path, "").body, into)
	}
	if got := ask(t, c, "GET", "/v1/clients/vdab/keys", "").body; got != `{"client":"vdab","version":"","kid":"k","alg":"ES256","jwk":{"kty":"EC"}}`+"\n" {
		t.Error(got)
	}
}

func TestIssuerRefusals(t *testing.T) {
	h := newHouse(t, nil)
	h.mu.Lock()
	h.told = nil
	h.mu.Unlock()
	c := via(h.admin)
	for _, x := range []struct {
		method, path, body string
		status             int
		detail             string
	}{
		{"GET", "keys?x=1", "", 400, "takes no parameters"},
		{"PUT", "keys", "", 405, "GET, POST"},
		{"POST", "keys", "", 200, ""},
		{"POST", "keys", "{}", 200, ""},
		{"POST", "keys?kind=p-256", "", 400, "takes no parameters"},
		{"POST", "keys", `{"kind":"rsa-1024"}`, 400, "rsa-3072"},
		{"POST", "keys", `{"kind":""}`, 400, "rsa-3072"},
		{"POST", "keys", `{"kind":null}`, 400, "rsa-3072"},
		{"POST", "keys", `{"certificate":"true"}`, 400, "true or false"},
		{"POST", "keys", `{"certificate":null}`, 400, "true or false"},
		{"POST", "keys", `{"subject":""}`, 400, "1 to 64"},
		{"POST", "keys", `{"subject":"` + strings.Repeat("é", 65) + `"}`, 400, "1 to 64"},
		{"POST", "keys", `{"subject":"` + strings.Repeat("é", 64) + `"}`, 200, ""},
		{"POST", "keys", `{"subject":"a\u0007"}`, 400, "control"},
		{"POST", "keys", `{"private_key":"x"}`, 400, "not known"},
		{"GET", "keys/rotate", "", 405, "POST"},
		{"POST", "keys/rotate", "", 200, ""},
		{"POST", "keys/rotate", `{"kind":"rsa-1024"}`, 400, "rsa-3072"},
		{"POST", "keys/rotate", `{"key_id":""}`, 400, "1 to 255"},
		{"POST", "keys/rotate", `{"key_id":"` + strings.Repeat("k", 256) + `"}`, 400, "1 to 255"},
		{"POST", "keys/rotate", `{"key_id":"a\u0000"}`, 400, "control"},
		{"POST", "keys/rotate", `{"probe":1}`, 400, "true or false"},
		{"POST", "keys/rotate", `{"abandon":"true"}`, 400, "true or false"},
		{"POST", "keys/rotate", `{"probe":true,"abandon":true}`, 400, "stand alone"},
		{"POST", "keys/rotate", `{"probe":true,"kind":"p-256"}`, 400, "stand alone"},
		{"POST", "keys/rotate", `{"abandon":true,"key_id":"k"}`, 400, "stand alone"},
		{"POST", "keys/rotate", `{"private_key":"x"}`, 400, "not known"},
		{"POST", "login", `{"redirect_uri":""}`, 400, "redirect_uri"},
		{"POST", "login", `{"redirect_uri":"http://x y"}`, 400, "redirect_uri"},
		{"POST", "login", `{"redirect_uri":"` + strings.Repeat("a", 1025) + `"}`, 400, "1024"},
		{"POST", "login", `{"state":"x"}`, 400, "not known"},
		{"GET", "login", "", 405, "POST"},
		{"POST", "login/finish", "", 400, "JSON"},
		{"POST", "login/finish?state=x", `{"state":"s","code":"c"}`, 400, "takes no parameters"},
		{"POST", "login/finish", `{"state":"s","code":"c"}`, 200, ""},
		{"POST", "login/finish", `{"code":"c"}`, 400, "state"},
		{"POST", "login/finish", `{"state":"s"}`, 400, "code"},
		{"POST", "login/finish", `{"state":"s","code":"topsecret code"}`, 400, "code"},
		{"POST", "login/finish", `{"state":"s","code":"topsecret","iss":""}`, 400, "iss"},
		{"POST", "login/finish", `{"state":"s","code":"` + strings.Repeat("c", 4096) + `"}`, 200, ""},
		{"POST", "login/finish", `{"state":"s","code":"` + strings.Repeat("c", 4097) + `"}`, 400, "4096"},
		{"POST", "revoke", `{"login":1}`, 400, "true or false"},
		{"POST", "revoke", `[]`, 400, "JSON"},
	} {
		a := ask(t, c, x.method, "/v1/clients/vdab/"+x.path, x.body, "Content-Type", jsonType)
		if a.status != x.status || !strings.Contains(a.body, x.detail) || strings.Contains(a.body, "topsecret") {
			t.Errorf("%s %s %.60s: %d %s", x.method, x.path, x.body, a.status, a.body)
		}
	}
	for _, told := range h.told {
		if text := fmt.Sprint(told); strings.Contains(text, "ccc") || strings.Contains(text, "state") {
			t.Errorf("recorded: %s", text)
		}
	}
}

// The private half and the person's login are nothing that looking gives.
func TestIssuerRoles(t *testing.T) {
	h := newHouse(t, nil)
	h.mu.Lock()
	h.roles = Roles{Observe: {{"watch", 4242}}}
	h.mu.Unlock()
	as(t, 4711, 4242, func() {
		for _, x := range []struct {
			method, path string
			status       int
		}{{"GET", "keys", 200}, {"POST", "keys", 403}, {"POST", "keys/rotate", 403}, {"POST", "login", 403}, {"POST", "login/finish", 403}, {"POST", "revoke", 403}} {
			a, err := raw(t, h.admin, x.method+" /v1/clients/vdab/"+x.path+" HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n")
			if err != nil || a.status != x.status {
				t.Errorf("%s %s: %+v, %v", x.method, x.path, a, err)
			}
		}
	})
}

func TestParseUser(t *testing.T) {
	for body, want := range map[string]any{
		``:   oidc.User{},
		`{}`: oidc.User{},
		`{"user_id":"jdoe","user_representation":"J. \"Ö\" \u0044oe 🐚"}`: oidc.User{ID: "jdoe", Representation: `J. "Ö" Doe 🐚`},
		`{"user_id":""}`: oidc.User{},
		`{"user_id":"` + strings.Repeat("x", 255) + `"}`: oidc.User{ID: strings.Repeat("x", 255)},
		`{"user_id":"` + strings.Repeat("x", 256) + `"}`: "255 bytes",
		`{"user_id":"` + strings.Repeat("é", 128) + `"}`: "255 bytes",
		`{"user_representation":"personal\u0000"}`:       "control",
		`{"user_representation":"personal\u0085"}`:       "control",
		"{\"user_representation\":\"personal\xff\"}":     "user_representation",
		`{"user_id":null}`:                  "user_id",
		`{"user_id":7}`:                     "user_id",
		`{"user_id":"personal","name":"x"}`: "not known",
		`{"User_id":"personal"}`:            "not known",
		`{"user_id":"personal"} {}`:         "JSON object",
		`[]`:                                "JSON object",
		`null`:                              "JSON object",
		`{"user_id":"personal","user_representation":["name"]}`: "user_representation",
	} {
		in := []byte(body)
		got, err := parseUser(in)
		if user, ok := want.(oidc.User); ok {
			if err != nil || got != user {
				t.Errorf("%.60s: %+v, %v", body, got, err)
			}
		} else if err == nil || got != (oidc.User{}) || !strings.Contains(err.Error(), want.(string)) || strings.Contains(err.Error(), "personal") {
			t.Errorf("%.60s: %+v, %v", body, got, err)
		}
		if strings.Trim(string(in), "\x00") != "" {
			t.Errorf("%.60s: the body is not wiped", body)
		}
	}
}

func TestParseLoginFinishWipes(t *testing.T) {
	for _, body := range []string{`{"state":"s","code":"c"}`, `{"state":"s","code":"c d"}`, `{"code":"c"}`, `{`} {
		in := []byte(body)
		_, _ = parseLoginFinish(in)
		if strings.Trim(string(in), "\x00") != "" {
			t.Errorf("%s: the body is not wiped", body)
		}
	}
}

func FuzzParseUser(f *testing.F) {
	f.Add([]byte(`{"user_id":"jdoe","user_representation":"J. \"Ö\" \u0044oe"}`))
	f.Add([]byte(`{"user_id":"\ud83d\udc1a\ud83d"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		u, err := parseUser(body)
		if err != nil {
			return
		}
		for _, s := range []string{u.ID, u.Representation} {
			if len(s) > maxUser || !utf8.ValidString(s) || strings.ContainsAny(s, "\x00\n\r\x1b\x7f\u0085") {
				t.Errorf("accepted: %q", s)
			}
		}
	})
}

func FuzzParseLoginFinish(f *testing.F) {
	f.Add([]byte(`{"state":"s","code":"a\/b","iss":"https://issuer.example"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := parseLoginFinish(body)
		if err != nil {
			return
		}
		for _, s := range []string{c.State, c.Issuer} {
			if len(s) > maxWord || strings.ContainsAny(s, " \r\n\x00\x7f") {
				t.Errorf("accepted: %q", s)
			}
		}
		if c.State == "" || c.Code.Empty() || c.Code.Len() > maxCode {
			t.Errorf("accepted: %q, a code of %d bytes", c.State, c.Code.Len())
		}
	})
}

// A client without an issuer signs for the user that the caller names.
func TestJWT(t *testing.T) {
	h := newHouse(t, nil)
	h.store.Set("zgw", map[string]string{"client_id": "vacatures", "client_secret": strings.Repeat("s", 40)})
	entry := access.Entry{User: me().User, Surfaces: []access.Surface{access.Token, access.JWT}}
	zgw := broker.Client{Name: "zgw", Provider: h.store, ProviderName: "store", Allow: []access.Entry{entry},
		Headers:  []broker.Header{{Name: "Authorization", Value: "Bearer {access_token}"}},
		Issuer:   &oidc.Profile{Grant: oidc.SelfSigned},
		Rotation: rotation.Config{Spec: providers.Spec{Ref: providers.Ref{Path: "zgw"}}, Required: []string{"client_id", "client_secret"}}}
	if err := h.broker.Apply([]broker.Client{h.client("vdab", me()), zgw}); err != nil {
		t.Fatal(err)
	}
	c := client.Client{Socket: h.consumer}
	for _, u := range []client.User{{}, {UserID: "jdoe", UserRepresentation: `Jane "Ö" Doe`}} {
		token, err := c.JWT(t.Context(), "zgw", u)
		if err != nil {
			t.Fatal(err)
		}
		var claims struct {
			ClientID string `json:"client_id"`
			client.User
		}
		if err := json.Unmarshal(decoded(t, strings.Split(token.AccessToken, ".")[1]), &claims); err != nil {
			t.Fatal(err)
		}
		if claims.ClientID != "vacatures" || claims.User != u || token.TokenType != "Bearer" || token.ExpiresIn <= 0 || len(token.Fingerprint) != 43 {
			t.Errorf("%+v: %+v", token, claims)
		}
	}
	// Without a body, and by a surface that is not in the entry.
	if a := ask(t, h.http, "POST", "/v1/clients/zgw/jwt", ""); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := ask(t, h.http, "POST", "/v1/clients/vdab/jwt", ""); a.status != http.StatusForbidden {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := ask(t, h.http, "POST", "/v1/clients/zgw/jwt", `{"user_id":"personal\n"}`, "Content-Type", jsonType); a.status != http.StatusBadRequest || strings.Contains(a.body, "personal") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if log := h.log.String(); strings.Contains(log, "jdoe") || strings.Contains(log, "personal") {
		t.Errorf("logged: %s", log)
	}
}

func decoded(t *testing.T, part string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
