package fake

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const portal = "https://manage.example"

func newPortal(t *testing.T) *MijnKlantportaal {
	m := &MijnKlantportaal{}
	register(t, m, Client{ID: "app", Secret: "s", Scopes: []string{"read", "write"}, RedirectURIs: []string{"http://127.0.0.1/callback", "https://app.example/back?x=1"}, APIKey: "mk-key"},
		Client{ID: "other", Secret: "s", RedirectURIs: []string{"http://127.0.0.1/callback"}})
	return m
}

const verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"

func challenge() string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func visit(namesAndValues ...string) url.Values {
	return with(form("response_type", "code", "client_id", "app", "redirect_uri", "http://127.0.0.1:5511/callback", "state", "st",
		"code_challenge", challenge(), "code_challenge_method", "S256"), namesAndValues...)
}

// login gives where the person is sent, or nil for a page.
func login(t *testing.T, m *MijnKlantportaal, q url.Values) *url.URL {
	t.Helper()
	status, _, h := request(t, m.RoundTripper(), http.MethodGet, portal+"/oauth/authorize?"+q.Encode(), nil)
	if status == http.StatusBadRequest {
		return nil
	}
	to, err := url.Parse(h.Get("Location"))
	if err != nil || status != http.StatusFound {
		t.Fatalf("%d %v", status, h)
	}
	return to
}

// tokens posts JSON to the token endpoint.
func tokens(t *testing.T, m *MijnKlantportaal, namesAndValues ...string) (int, map[string]any) {
	t.Helper()
	in := map[string]string{"client_id": "app", "client_secret": "s"}
	for i := 0; i < len(namesAndValues); i += 2 {
		in[namesAndValues[i]] = namesAndValues[i+1]
	}
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	status, doc, _ := request(t, m.RoundTripper(), http.MethodPost, portal+"/oauth/tokens", raw, "Content-Type", "application/json")
	return status, doc
}

// redeemed logs in and gives the first answer.
func redeemed(t *testing.T, m *MijnKlantportaal) map[string]any {
	t.Helper()
	to := login(t, m, visit())
	status, doc := tokens(t, m, "grant_type", "authorization_code", "code", to.Query().Get("code"), "redirect_uri", "http://127.0.0.1:5511/callback", "code_verifier", verifier)
	expect(t, "redeem", status, doc, 200, "")
	return doc
}

func TestAuthorize(t *testing.T) {
	m := newPortal(t)
	for name, q := range map[string]url.Values{
		"no such client": visit("client_id", "x"), "another path": visit("redirect_uri", "http://127.0.0.1:5511/other"), "another host": visit("redirect_uri", "http://127.0.0.2:5511/callback"),
		"https on loopback": visit("redirect_uri", "https://127.0.0.1/callback"), "another port elsewhere": visit("redirect_uri", "https://app.example:444/back?x=1"), "none": visit("redirect_uri", ""),
		"no address": visit("redirect_uri", "http://%zz"),
	} {
		if to := login(t, m, q); to != nil {
			t.Errorf("%s: sent to %s", name, to)
		}
	}
	for _, c := range []struct {
		name string
		q    url.Values
		want string
	}{
		{"good", visit("prompt", "consent", "scope", "read"), ""},
		{"its query stays", visit("redirect_uri", "https://app.example/back?x=1"), ""},
		{"response_type", visit("response_type", "token"), "unsupported_response_type"},
		{"prompt", visit("prompt", "none"), "invalid_request"},
		{"plain", visit("code_challenge_method", "plain"), "invalid_request"},
		{"no method", with(visit(), "code_challenge_method", ""), "invalid_request"},
		{"scope", visit("scope", "delete"), "invalid_scope"},
	} {
		to := login(t, m, c.q)
		if to == nil {
			t.Errorf("%s: a page", c.name)
			continue
		}
		q := to.Query()
		if q.Get("error") != c.want || (q.Get("code") == "") != (c.want != "") || q.Get("state") != "st" || strings.HasPrefix(to.Host, "app") && q.Get("x") != "1" {
			t.Errorf("%s: %s", c.name, to)
		}
		if m.Prompt() != c.q.Get("prompt") {
			t.Errorf("%s: prompt %q", c.name, m.Prompt())
		}
	}
	m.Set(Fault{Kind: ConsentDenied})
	if to := login(t, m, visit()); to.Query().Get("error") != "access_denied" {
		t.Errorf("%s", to)
	}
}

func TestCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newPortal(t)
		redirect := "http://127.0.0.1:5511/callback"
		noPKCE := visit()
		noPKCE.Del("code_challenge")
		noPKCE.Del("code_challenge_method")
		for _, c := range []struct {
			name   string
			visit  url.Values
			send   []string
			wait   time.Duration
			status int
			code   string
		}{
			{"good", visit(), []string{"code_verifier", verifier}, 0, 200, ""},
			{"without PKCE", noPKCE, nil, 0, 200, ""},
			{"no verifier", visit(), nil, 0, 400, "invalid_grant"},
			{"another verifier", visit(), []string{"code_verifier", verifier + "x"}, 0, 400, "invalid_grant"},
			{"a verifier without a challenge", noPKCE, []string{"code_verifier", verifier}, 0, 400, "invalid_grant"},
			{"another address", visit(), []string{"code_verifier", verifier, "redirect_uri", "http://127.0.0.1:5512/callback"}, 0, 400, "invalid_grant"},
			{"another client", visit(), []string{"code_verifier", verifier, "client_id", "other"}, 0, 400, "invalid_grant"},
			{"a wrong secret", visit(), []string{"client_secret", "x"}, 0, 401, "invalid_client"},
			{"too late", visit(), []string{"code_verifier", verifier}, codeLifetime, 400, "invalid_grant"},
			{"another code", visit(), []string{"code_verifier", verifier, "code", "x"}, 0, 400, "invalid_grant"},
			{"another grant", visit(), []string{"grant_type", "client_credentials"}, 0, 400, "unsupported_grant_type"},
		} {
			code := login(t, m, c.visit).Query().Get("code")
			time.Sleep(c.wait)
			in := append([]string{"grant_type", "authorization_code", "code", code, "redirect_uri", redirect}, c.send...)
			status, doc := tokens(t, m, in...)
			expect(t, c.name, status, doc, c.status, c.code)
			if c.status != 200 {
				continue
			}
			if doc["token_type"] != nil || doc["refresh_token"] == nil || doc["expires_in"] != 3600.0 || doc["scope"] != nil {
				t.Errorf("%s: %v", c.name, doc)
			}
			status, doc = tokens(t, m, in...)
			expect(t, c.name+", once more", status, doc, 400, "invalid_grant")
		}
		f := form("grant_type", "refresh_token", "client_id", "app", "client_secret", "s", "refresh_token", redeemed(t, m)["refresh_token"].(string))
		status, doc, _ := send(t, m.RoundTripper(), portal+"/oauth/tokens", f)
		expect(t, "a form", status, doc, 400, "invalid_request")
		status, doc, _ = request(t, m.RoundTripper(), http.MethodPost, portal+"/oauth/tokens", []byte(`{"client_id":"app","client_secret":"s","grant_type":"x"}`), "Content-Type", "text/plain")
		expect(t, "JSON that does not say so", status, doc, 400, "invalid_request")
		status, doc, _ = request(t, m.RoundTripper(), http.MethodPost, portal+"/oauth/tokens", []byte(`[]`), "Content-Type", "application/json")
		expect(t, "no object", status, doc, 400, "invalid_request")
	})
}

func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, rotate := range []bool{false, true} {
			m := newPortal(t)
			m.RotateRefresh = rotate
			first, _ := redeemed(t, m)["refresh_token"].(string)
			status, doc := tokens(t, m, "grant_type", "refresh_token", "refresh_token", first)
			expect(t, "refresh", status, doc, 200, "")
			second, has := doc["refresh_token"].(string)
			if has != rotate || doc["token_type"] != nil {
				t.Errorf("rotate %v: %v", rotate, doc)
			}
			status, doc = tokens(t, m, "grant_type", "refresh_token", "refresh_token", first)
			if rotate {
				expect(t, "the old one", status, doc, 400, "invalid_grant")
				status, doc = tokens(t, m, "grant_type", "refresh_token", "refresh_token", second)
			}
			expect(t, "once more", status, doc, 200, "")
			status, doc = tokens(t, m, "grant_type", "refresh_token", "refresh_token", first, "client_id", "other")
			expect(t, "another client", status, doc, 400, "invalid_grant")
			if st := m.Stats(); st.Refreshed != 2 || st.Minted != 3 {
				t.Errorf("%+v", st)
			}
		}
	})
}

// The answer is lost after the refresh token was used; other faults leave it.
func TestRefreshFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newPortal(t)
		m.RotateRefresh = true
		refresh, _ := redeemed(t, m)["refresh_token"].(string)
		for kind, want := range map[FaultKind]int{Unavailable: 503, HTML: 200, Reset: 0, InvalidClient: 401} {
			m.Set(Fault{Kind: kind})
			if status, doc := tokens(t, m, "grant_type", "refresh_token", "refresh_token", refresh); status != want || doc["access_token"] != nil {
				t.Errorf("%s: %d %v", kind, status, doc)
			}
		}
		m.Set(Fault{Kind: Lost, Times: 1})
		if status, doc := tokens(t, m, "grant_type", "refresh_token", "refresh_token", refresh); status != 0 || m.Stats().Refreshed != 1 {
			t.Errorf("lost: %d %v, %+v", status, doc, m.Stats())
		}
		status, doc := tokens(t, m, "grant_type", "refresh_token", "refresh_token", refresh)
		expect(t, "after the loss", status, doc, 400, "invalid_grant")
	})
}

func TestPortalAPIAndRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newPortal(t)
		first := redeemed(t, m)
		refresh, _ := first["refresh_token"].(string)
		token, _ := first["access_token"].(string)
		get := func(name, value string) int {
			status, _, _ := request(t, m.RoundTripper(), http.MethodGet, portal+"/api/v1/customers", nil, name, value)
			return status
		}
		if get("Authentication", "Bearer "+token) != 200 || get("Authentication", "Bearer mk-key") != 200 {
			t.Error("a token or key is refused")
		}
		if get("Authorization", "Bearer "+token) != 401 || get("Authentication", token) != 401 || get("Authentication", "Bearer x") != 401 || get("Authentication", "Bearer ") != 401 {
			t.Error("a wrong one passes")
		}
		unused := login(t, m, visit()).Query().Get("code")
		m.Revoke("somebody else")
		if get("Authentication", "Bearer "+token) != 200 {
			t.Error("another person's revocation ends it")
		}
		status, doc := tokens(t, m, "grant_type", "refresh_token", "refresh_token", refresh)
		expect(t, "refresh after another person's revocation", status, doc, 200, "")
		m.Revoke("user")
		if get("Authentication", "Bearer "+token) != 401 || get("Authentication", "Bearer mk-key") != 200 {
			t.Error("the token lives, or the key does not")
		}
		status, doc = tokens(t, m, "grant_type", "refresh_token", "refresh_token", refresh)
		expect(t, "refresh", status, doc, 400, "invalid_grant")
		status, doc = tokens(t, m, "grant_type", "authorization_code", "code", unused, "redirect_uri", "http://127.0.0.1:5511/callback", "code_verifier", verifier)
		expect(t, "code", status, doc, 400, "invalid_grant")
		token, _ = redeemed(t, m)["access_token"].(string) // a new consent
		if get("Authentication", "Bearer "+token) != 200 {
			t.Error("a new token is refused")
		}
		time.Sleep(time.Hour)
		if get("Authentication", "Bearer "+token) != 401 {
			t.Error("an expired token passes")
		}
	})
}

func TestPortalPagesAreNoJSON(t *testing.T) {
	m := newPortal(t)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, portal+"/oauth/authorize?client_id=x", nil)
	resp, err := m.RoundTripper().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusBadRequest || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") || !strings.Contains(string(b), "not known") {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}
