package api

import (
	"encoding/base64"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/fake"
)

func basic(user, pass string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+pass))
}

func TestTokenEndpoint(t *testing.T) {
	h := newHouse(t, nil)
	const grant = "grant_type=client_credentials"
	for _, c := range []struct {
		body, auth string
	}{
		{grant + "&client_id=vdab", ""},
		{grant + "&client_id=vdab&client_secret=", ""},
		{grant + "&client_id=vdab&client_secret=-", ""},
		{grant + "&client_id=vdab&client_secret=unused&scope=read&foo=bar&foo=baz", ""},
		{grant, basic("vdab", "")},
		{grant + "&client_id=vdab", basic("vdab", "unused")},
		{grant, basic("v%64ab", "-")},
	} {
		headers := []string{"Content-Type", formType + "; charset=utf-8"}
		if c.auth != "" {
			headers = append(headers, "Authorization", c.auth)
		}
		a := ask(t, h.http, "POST", oauthPath, c.body, headers...)
		var token client.Token
		strict(t, a.body, &token)
		if a.status != 200 || token.AccessToken == "" || token.TokenType != "Bearer" || a.header.Get("Cache-Control") != "no-store" || a.header.Get("Pragma") != "no-cache" {
			t.Errorf("%s %s: %d %v", c.body, c.auth, a.status, a.header)
		}
	}
	via := map[string]bool{}
	for e, err := range audit.Read(filepath.Join(h.dir, "audit"), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Type == audit.TokenHandover {
			via[e.Code+" "+e.Detail["via"]] = true
		}
	}
	if len(via) != 1 || !via["token oauth2"] {
		t.Errorf("on record: %v", via)
	}
}

// Errors are those of RFC 6749, and no secret that somebody sends comes back.
func TestTokenEndpointRefuses(t *testing.T) {
	h := newHouse(t, nil)
	const grant = "grant_type=client_credentials"
	real := "s3cr3t-" + strings.Repeat("x", 40)
	for _, c := range []struct {
		body, auth string
		status     int
		code       string
	}{
		{"", "", 400, "invalid_request"},
		{"grant_type=password&client_id=vdab", "", 400, "unsupported_grant_type"},
		{grant, "", 400, "invalid_request"},
		{grant + "&client_id=vdab&client_id=vdab", "", 400, "invalid_request"},
		{grant + "&client_id=vdab&client_secret=" + real, "", 401, "invalid_client"},
		{grant + "&client_id=vdab&client_secret=unused1", "", 401, "invalid_client"},
		{grant + "&client_assertion=" + real, "", 401, "invalid_client"},
		{grant, basic("vdab", real), 401, "invalid_client"},
		{grant, "Bearer " + real, 401, "invalid_client"},
		{grant + "&client_id=other", basic("vdab", ""), 400, "invalid_request"},
		{grant + "&client_id=none", "", 401, "invalid_client"},
		{grant + "&client_id=other", "", 401, "invalid_client"},
		{grant + "&client_id=../x", "", 401, "invalid_client"},
		{grant + "&client_id=vdab&scope=admin", "", 400, "invalid_scope"},
		{grant + "&client_id=vdab&scope=a%22b", "", 400, "invalid_scope"},
		{grant + "&client_id=vdab&resource=https%3A%2F%2Fx", "", 400, "invalid_target"},
		{grant + "&client_id=vdab&scope=%zz", "", 400, "invalid_request"},
		{grant + "&client_id=vdab&scope=" + strings.Repeat("a", 2000), "", 400, "invalid_request"},
		{grant + "&client_id=vdab&x=" + strings.Repeat("a", maxBody), "", 400, "invalid_request"},
	} {
		headers := []string{"Content-Type", formType}
		if c.auth != "" {
			headers = append(headers, "Authorization", c.auth)
		}
		a := ask(t, h.http, "POST", oauthPath, c.body, headers...)
		var e oauthError
		strict(t, a.body, &e)
		if a.status != c.status || e.Error != c.code || e.Description == "" || a.header.Get("Content-Type") != jsonType ||
			strings.Contains(a.body, real) || strings.ContainsAny(e.Description, "\"\\\n") {
			t.Errorf("%.80s %s: %d %s", c.body, c.auth, a.status, a.body)
		}
		if asked := a.header.Get("WWW-Authenticate") != ""; asked != (c.status == 401 && c.auth != "") {
			t.Errorf("%.80s: WWW-Authenticate %v", c.body, asked)
		}
	}
	for what, a := range map[string]answer{
		"JSON":     ask(t, h.http, "POST", oauthPath, "{}", "Content-Type", jsonType),
		"a query":  ask(t, h.http, "POST", oauthPath+"?client_id=vdab", grant, "Content-Type", formType),
		"a GET":    ask(t, h.http, "GET", oauthPath, ""),
		"browsers": ask(t, h.http, "POST", oauthPath, grant, "Content-Type", formType, "Origin", "https://evil.example"),
	} {
		var e oauthError
		strict(t, a.body, &e)
		if a.status < 400 || a.status > 405 || e.Error != "invalid_request" {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
	// The same words for a client that is not there and one that is another's.
	of := func(name string) string {
		return ask(t, h.http, "POST", oauthPath, grant+"&client_id="+name, "Content-Type", formType).body
	}
	if a, b := of("none"), of("other"); a != b {
		t.Errorf("%s differs from %s", a, b)
	}
	if strings.Contains(h.log.String(), real) {
		t.Error("the log has the secret")
	}
}

// An issuer's or a manager's trouble is told with a status that says so.
func TestTokenEndpointInTrouble(t *testing.T) {
	for name, c := range map[string]struct {
		fault  fake.FaultKind
		status int
		code   string
	}{
		"the issuer is down":         {fake.Unavailable, 503, "temporarily_unavailable"},
		"the issuer refuses":         {fake.InvalidClient, 502, "server_error"},
		"the issuer answers a page":  {fake.Forbidden, 502, "server_error"},
		"the issuer answers nothing": {fake.Empty, 502, "server_error"},
	} {
		h := newFaultyHouse(t, fake.Fault{Kind: c.fault}, nil)
		a := ask(t, h.http, "POST", oauthPath, "grant_type=client_credentials&client_id=vdab", "Content-Type", formType)
		var e oauthError
		strict(t, a.body, &e)
		if a.status != c.status || e.Error != c.code || c.status == 503 && a.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s %v", name, a.status, a.body, a.header)
		}
	}
	h := newHouse(t, nil)
	entry := me()
	entry.Surfaces = []access.Surface{access.Headers}
	h.apply(entry)
	a := ask(t, h.http, "POST", oauthPath, "grant_type=client_credentials&client_id=vdab", "Content-Type", formType)
	if a.status != 400 || !strings.Contains(a.body, `"unauthorized_client"`) {
		t.Errorf("without the surface: %d %s", a.status, a.body)
	}
	h.broker.Contain(map[string]string{"vdab": "2026-0007"})
	h.apply(me())
	a = ask(t, h.http, "POST", oauthPath, "grant_type=client_credentials&client_id=vdab", "Content-Type", formType)
	if a.status != 400 || !strings.Contains(a.body, `"unauthorized_client"`) || !strings.Contains(a.body, "quarantined") {
		t.Errorf("quarantined: %d %s", a.status, a.body)
	}
}

func FuzzForm(f *testing.F) {
	f.Add("grant_type=client_credentials&client_id=vdab&client_secret=unused")
	f.Add("client_secret=%75nused&scope=a+b")
	f.Fuzz(func(t *testing.T, body string) {
		got, refused := parseForm([]byte(body))
		if refused != nil {
			return
		}
		if s := got["client_secret"]; s != "" && s != "-" && s != "unused" {
			t.Errorf("%q: a secret was read: %q", body, s)
		}
		want, _ := url.ParseQuery(body)
		for name, value := range got {
			if len(want[name]) != 1 || want[name][0] != value {
				t.Errorf("%q: %s is %q, want %q", body, name, value, want[name])
			}
		}
	})
}
