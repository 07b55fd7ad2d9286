package api

import (
	"encoding/json"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
)

const jsonType = "application/json"

func TestConsumerAnswers(t *testing.T) {
	h := newHouse(t, nil)
	token := ask(t, h.http, "GET", "/v1/clients/vdab/token?min_ttl=30s", "")
	var wire client.Token
	strict(t, token.body, &wire)
	if wire.TokenType != "Bearer" || wire.Client != "vdab" || wire.ExpiresIn < 800 || wire.ExpiresIn > 900 || len(wire.Fingerprint) != 43 ||
		strings.Count(wire.AccessToken, ".") != 2 || time.Until(wire.ExpiresAt) < 800*time.Second {
		t.Errorf("token: %+v", wire)
	}
	wantOrder := regexp.MustCompile(`^\{"access_token":"[^"]*","token_type":"Bearer","expires_in":\d+,"expires_at":"[^"]*Z","scope":"","client":"vdab","fingerprint":"[\w-]{43}"\}\n$`)
	if !wantOrder.MatchString(token.body) {
		t.Errorf("token: %s", token.body)
	}
	lines := ask(t, h.http, "GET", "/v1/clients/vdab/headers", "")
	if want := "Authorization: Bearer " + wire.AccessToken + "\nX-IBM-Client-Id: " + theKey + "\n"; lines.body != want {
		t.Errorf("headers:\n%s\nwant\n%s", lines.body, want)
	}
	object := ask(t, h.http, "GET", "/v1/clients/vdab/headers", "", "Accept", jsonType)
	var headers client.Headers
	strict(t, object.body, &headers)
	if len(headers) != 2 || headers["Authorization"] != "Bearer "+wire.AccessToken || headers["X-IBM-Client-Id"] != theKey {
		t.Errorf("headers: %v", headers)
	}
	key := ask(t, h.http, "GET", "/v1/clients/vdab/api-key", "")
	if key.body != theKey {
		t.Errorf("api-key: %q", key.body)
	}
	reject := ask(t, h.http, "POST", "/v1/clients/vdab/reject", `{"fingerprint":"`+strings.Repeat("A", 43)+`","status":401}`, "Content-Type", jsonType)
	var rejected client.Rejected
	strict(t, reject.body, &rejected)
	if rejected.Replaced || rejected.Reason == "" {
		t.Errorf("reject: %+v", rejected)
	}
	who := ask(t, h.http, "GET", "/v1/whoami", "")
	var whoami client.Whoami
	strict(t, who.body, &whoami)
	if len(whoami.Clients) != 1 || whoami.Clients[0].Client != "vdab" || len(whoami.Clients[0].Surfaces) != 3 || !strings.Contains(whoami.Caller, "pid "+itoa(os.Getpid())) {
		t.Errorf("whoami: %+v", whoami)
	}
	health := ask(t, h.http, "GET", "/healthz", "")
	ready := ask(t, h.http, "GET", "/readyz", "")
	var readiness client.Readiness
	strict(t, ready.body, &readiness)
	if !readiness.Ready || readiness.Others != 1 || len(readiness.Clients) != 1 || readiness.Clients[0].Runway < 700 {
		t.Errorf("readyz: %+v", readiness)
	}
	for name, a := range map[string]answer{"token": token, "headers": lines, "headers JSON": object, "api-key": key, "reject": reject,
		"whoami": who, "healthz": health, "readyz": ready} {
		kind := jsonType
		if name == "headers" || name == "api-key" {
			kind = "text/plain; charset=utf-8"
		}
		if a.status != 200 || a.header.Get("Cache-Control") != "no-store" || a.header.Get("Content-Type") != kind ||
			a.header.Get("Content-Length") != strconv.Itoa(len(a.body)) {
			t.Errorf("%s: %d %v", name, a.status, a.header)
		}
	}
}

// strict decodes as a careful consumer would.
func strict(t *testing.T, body string, v any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Errorf("%v in %s", err, body)
	}
}

func TestNotReady(t *testing.T) {
	h := newFaultyHouse(t, fake.Fault{Kind: "401"}, nil)
	if a := ask(t, h.http, "GET", "/v1/clients/vdab/token", ""); a.status != 502 {
		t.Errorf("%+v", a)
	}
	a := ask(t, h.http, "GET", "/readyz", "")
	var r client.Readiness
	strict(t, a.body, &r)
	if a.status != 503 || a.header.Get("Content-Type") != jsonType || r.Ready || r.Clients[0].Code != client.CredentialsRejected {
		t.Errorf("%d %s", a.status, a.body)
	}
	c := client.Client{Socket: h.consumer}
	if got, err := c.Ready(t.Context()); err != nil || got.Ready || len(got.Clients) != 1 {
		t.Errorf("client: %+v, %v", got, err)
	}
}

func TestRefusedRequests(t *testing.T) {
	h := newHouse(t, nil)
	long := strings.Repeat("x", 1100)
	fp := strings.Repeat("A", 43)
	for _, c := range []struct {
		method, path, body string
		header             []string
		status             int
		code               client.Code
		detail             string // a part of it
	}{
		{"GET", "/v1/clients/vdab/token?ttl=3s", "", nil, 400, client.InvalidRequest, "min_ttl, scope, audience, resource"},
		{"GET", "/v1/clients/vdab/token?min_ttl=3s&min_ttl=4s", "", nil, 400, client.InvalidRequest, "min_ttl is given twice"},
		{"GET", "/v1/clients/vdab/token?min_ttl=", "", nil, 400, client.InvalidRequest, "min_ttl is a duration"},
		{"GET", "/v1/clients/vdab/token?min_ttl=25h", "", nil, 400, client.InvalidRequest, "up to 24h"},
		{"GET", "/v1/clients/vdab/token?min_ttl=-3s", "", nil, 400, client.InvalidRequest, "min_ttl is a duration"},
		{"GET", "/v1/clients/vdab/token?scope=a%0ab", "", nil, 400, client.InvalidRequest, "printable"},
		{"GET", "/v1/clients/vdab/token?scope=a++b", "", nil, 400, client.InvalidRequest, "one space"},
		{"GET", "/v1/clients/vdab/token?scope=a%22b", "", nil, 400, client.InvalidRequest, "6749"},
		{"GET", "/v1/clients/vdab/token?audience=" + long, "", nil, 400, client.InvalidRequest, "too long"},
		{"GET", "/v1/clients/vdab/token?scope=%zz", "", nil, 400, client.InvalidRequest, "percent"},
		{"GET", "/v1/clients/vdab/token?", "", nil, 200, "", ""},
		{"GET", "/v1/clients/vdab/token?&", "", nil, 400, client.InvalidRequest, "unknown parameter"},
		{"GET", "/v1/clients/vdab/api-key?x=1", "", nil, 400, client.InvalidRequest, "takes no parameters"},
		{"GET", "/v1/whoami?x", "", nil, 400, client.InvalidRequest, "takes no parameters"},
		{"GET", "/v1/clients/vdab/token", "body", nil, 400, client.InvalidRequest, "no body"},
		{"GET", "/v1/clients/-x/token", "", nil, 400, client.InvalidRequest, "1 to 64"},
		{"GET", "/v1/clients//token", "", nil, 400, client.InvalidRequest, "1 to 64"},
		{"GET", "/v1/clients/" + long + "/token", "", nil, 400, client.InvalidRequest, "1 to 64"},
		{"GET", "/v1/clients/a%2Fb/token", "", nil, 404, client.NotFound, ""},
		{"GET", "/v1/clients/vdab", "", nil, 404, client.NotFound, "token"},
		{"GET", "/v1/clients/vdab/token/", "", nil, 404, client.NotFound, ""},
		{"GET", "/", "", nil, 404, client.NotFound, ""},
		{"POST", "/v1/clients/vdab/token", "", nil, 405, client.MethodNotAllowed, "GET"},
		{"HEAD", "/v1/clients/vdab/token", "", nil, 405, "", ""},
		{"OPTIONS", "/v1/clients/vdab/token", "", nil, 405, client.MethodNotAllowed, "GET"},
		{"GET", "/v1/clients/vdab/reject", "", nil, 405, client.MethodNotAllowed, "POST"},
		{"GET", "/v1/status", "", nil, 404, client.NotFound, ""},
		{"GET", "/v1/clients/vdab/token", "", []string{"Origin", "http://evil.example"}, 400, client.InvalidRequest, "Origin"},
		{"GET", "/v1/clients/vdab/token", "", []string{"Sec-Fetch-Mode", "cors"}, 400, client.InvalidRequest, "Sec-Fetch-Mode"},
		{"GET", "/v1/clients/vdab/token", "", []string{"X-Forwarded-For", "1.2.3.4"}, 400, client.InvalidRequest, "X-Forwarded-For"},
		{"GET", "/v1/clients/vdab/token?scope=admin", "", nil, 403, client.NotAllowed, "scope"},
		{"GET", "/v1/clients/other/token", "", nil, 403, client.NotAllowed, "broker audit denied"},
		{"POST", "/v1/clients/vdab/reject", `{"fingerprint":"` + fp + `","status":401}`, nil, 400, client.InvalidRequest, "Content-Type"},
		{"POST", "/v1/clients/vdab/reject", `{"fingerprint":"` + fp + `"}`, []string{"Content-Type", jsonType}, 400, client.InvalidRequest, "status"},
		{"POST", "/v1/clients/vdab/reject", strings.Repeat(" ", 65<<10), []string{"Content-Type", jsonType}, 400, client.InvalidRequest, "64 KiB"},
		{"POST", "/v1/clients/vdab/reject", `{"fingerprint":"` + fp + `","status":401,"more_information":"Invalid client id or secret."}`,
			[]string{"Content-Type", "application/json; charset=utf-8"}, 409, client.APIKeyRejected, "key"},
	} {
		a := ask(t, h.http, c.method, c.path, c.body, c.header...)
		if a.status != c.status || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %.60s: %d %s, want %d", c.method, c.path, a.status, a.body, c.status)
			continue
		}
		if (c.status == 405) != (a.header.Get("Allow") != "") {
			t.Errorf("%s %s: Allow: %q", c.method, c.path, a.header.Get("Allow"))
		}
		if c.code == "" {
			continue
		}
		var p client.Problem
		strict(t, a.body, &p)
		if p.Code != c.code || p.Status != c.status || p.Type != "about:blank" || p.Title == "" || !strings.Contains(p.Detail, c.detail) ||
			a.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s: %s", c.method, c.path, a.body)
		}
	}
}

// Nobody can find out by asking which clients there are: not by status, header
// or body.
func TestUnknownAndNotAllowedAreTheSame(t *testing.T) {
	h := newHouse(t, nil)
	whole := func(name string) string {
		a, err := raw(t, h.consumer, "GET /v1/clients/"+name+"/token HTTP/1.1\r\nHost: broker\r\n\r\n")
		if err != nil {
			t.Fatal(err)
		}
		a.header.Del("Date")
		text, _ := json.Marshal(a.header)
		return itoa(a.status) + string(text) + a.body
	}
	known, unknown := whole("other"), whole("noone")
	if known != unknown || !strings.HasPrefix(known, "403") {
		t.Errorf("not allowed: %s\nunknown:     %s", known, unknown)
	}
	var p client.Problem
	strict(t, known[strings.Index(known, `{"type"`):], &p)
	if !strings.Contains(p.Identity, "uid "+itoa(os.Getuid())) || len(p.Clients) != 1 || p.Clients[0] != "vdab" {
		t.Errorf("%+v", p)
	}
}

func TestRetryAfter(t *testing.T) {
	h := newFaultyHouse(t, fake.Fault{Kind: "503", RetryAfter: 7 * time.Second}, nil)
	a := ask(t, h.http, "GET", "/v1/clients/vdab/token", "")
	var p client.Problem
	strict(t, a.body, &p)
	seconds, err := strconv.Atoi(a.header.Get("Retry-After"))
	if a.status != 503 || p.Code != client.IssuerUnavailable || err != nil || seconds < 1 || seconds != p.RetryAfter {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
}

func TestRejectReplacesByToken(t *testing.T) {
	h := newHouse(t, nil)
	c := client.Client{Socket: h.consumer}
	first, err := c.Token(t.Context(), "vdab", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	// As PHP writes a slash, and with an escape that nobody needs.
	escaped := strings.Replace(first.AccessToken, "e", `\u0065`, 1)
	a := ask(t, h.http, "POST", "/v1/clients/vdab/reject", `{"access_token":"`+escaped+`","status":401.0}`, "Content-Type", jsonType)
	var r client.Rejected
	strict(t, a.body, &r)
	// It is younger than a minute: whatever the broker decides, it knew the token.
	if a.status != 200 || strings.Contains(r.Reason, "not the current token") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestParseRejection(t *testing.T) {
	fp := strings.Repeat("a", 43)
	for body, want := range map[string]string{
		`{"fingerprint":"` + fp + `","status":401}`:                          "",
		`{"access_token":"abc.def~+/=","status":403,"more_information":"x"}`: "",
		`{"access_token":"a\/b","status":599}`:                               "",
		`{"access_token":"a","fingerprint":"` + fp + `","status":401}`:       "one of",
		`{"status":401}`:                                                                                   "",
		`{"access_token":"a b","status":401}`:                                                              "printable",
		`{"access_token":"a\u0000","status":401}`:                                                          "printable",
		`{"access_token":"","status":401}`:                                                                 "printable",
		`{"access_token":null,"status":401}`:                                                               "printable",
		`{"access_token":["a"],"status":401}`:                                                              "printable",
		`{"access_token":"` + strings.Repeat("a", maxToken+1) + `","status":401}`:                          "printable",
		`{"fingerprint":"` + fp + `x","status":401}`:                                                       "43",
		`{"fingerprint":"` + fp[:42] + `+","status":401}`:                                                  "43",
		`{"fingerprint":7,"status":401}`:                                                                   "43",
		`{"fingerprint":"` + fp + `","status":"401"}`:                                                      "status",
		`{"fingerprint":"` + fp + `","status":200}`:                                                        "status",
		`{"fingerprint":"` + fp + `","status":401.5}`:                                                      "status",
		`{"fingerprint":"` + fp + `","status":1e99}`:                                                       "status",
		`{"fingerprint":"` + fp + `","status":null}`:                                                       "status",
		`{"fingerprint":"` + fp + `","status":401,"more_information":null}`:                                "more_information",
		`{"fingerprint":"` + fp + `","status":401,"more_information":"` + strings.Repeat("é", 2049) + `"}`: "more_information",
		`{"Fingerprint":"` + fp + `","status":401}`:                                                        "not known",
		`{"fingerprint":"` + fp + `","status":401} x`:                                                      "JSON",
		`null`: "JSON",
		`[]`:   "JSON",
		``:     "JSON",
		`{`:    "JSON",
	} {
		in := []byte(body)
		_, err := parseRejection(in)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want %q", body, err, want)
		}
		if strings.Trim(string(in), "\x00") != "" {
			t.Errorf("%.80s: the body is not wiped", body)
		}
		if err != nil && strings.Contains(err.Error(), fp) {
			t.Errorf("%.80s: the error repeats the body: %v", body, err)
		}
	}
}

func FuzzParseRejection(f *testing.F) {
	f.Add([]byte(`{"access_token":"a\/b","status":401}`))
	f.Add([]byte(`{"fingerprint":"` + strings.Repeat("a", 43) + `","status":401,"more_information":"é"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := parseRejection(body)
		if err != nil {
			return
		}
		if (r.Fingerprint == "") == r.AccessToken.Empty() || r.Status < 400 || r.Status > 599 || len(r.MoreInformation) > 4*maxMore {
			t.Errorf("accepted: %+v", r)
		}
		_ = r.AccessToken.Use(func(b []byte) error {
			if len(b) > 0 && !validToken(b) {
				t.Errorf("accepted: %q", b)
			}
			return nil
		})
	})
}

func FuzzTokenRequest(f *testing.F) {
	f.Add("min_ttl=30s&scope=a+b&audience=x&resource=https%3A%2F%2Fx")
	f.Add("min_ttl=1h&&=")
	f.Fuzz(func(t *testing.T, query string) {
		r, err := tokenRequest(query, "vdab", access.Token)
		if err != nil {
			return
		}
		if r.MinTTL < 0 || r.MinTTL > maxMinTTL || strings.ContainsAny(r.Scope+r.Audience+r.Resource, "\r\n\x00") {
			t.Errorf("%q is accepted as %+v", query, r)
		}
	})
}

func FuzzQuoted(f *testing.F) {
	f.Add("plain-token.0123456789/+~=")
	f.Add("a\"b\\c\x01d\x7f")
	for _, special := range []string{`"`, `\`, "\x01", "\x1f", "\x7f", "\x80", "\xc3\xa9"} {
		f.Add("12345" + special + "78")
	}
	f.Fuzz(func(t *testing.T, value string) {
		var w wiped
		err := w.quoted([]byte(value))
		if err != nil {
			for i := range len(value) {
				if value[i] >= 0x80 {
					return
				}
			}
			t.Fatalf("%q: %v", value, err)
		}
		var back string
		if err := json.Unmarshal(w.b, &back); err != nil || back != value {
			t.Errorf("%q is written as %s (%v)", value, w.b, err)
		}
		w.b = nil
		w.word(value)
		if !json.Valid(w.b) {
			t.Errorf("%q is written as %s", value, w.b)
		}
	})
}

// What held a token holds nothing once the answer is written, nor does what
// was too small for it.
func TestBuffersAreWiped(t *testing.T) {
	w := &wiped{make([]byte, 0, 16)}
	small := w.b[:16]
	w.text("0123456789")
	w.text("0123456789")
	if strings.Trim(string(small), "\x00") != "" {
		t.Errorf("the outgrown buffer holds %q", small)
	}
	var p buffers
	all := w.b[:cap(w.b)]
	p.put(w)
	if strings.Trim(string(all), "\x00") != "" {
		t.Errorf("the returned buffer holds %q", all)
	}
}

func TestTokenJSONIsExact(t *testing.T) {
	g := &broker.Grant{Client: "vdab", Token: oidc.Token{Access: secret.FromString(`a"b\c`), Type: "Bearer", Scope: "a <b> é", Fingerprint: "f"}}
	var w wiped
	if err := w.token(g); err != nil {
		t.Fatal(err)
	}
	var wire client.Token
	strict(t, string(w.b), &wire)
	if wire.AccessToken != `a"b\c` || wire.Scope != "a <b> é" {
		t.Errorf("%s", w.b)
	}
	w.b = nil
	if err := w.object(&broker.Grant{}); err != nil || string(w.b) != "{}\n" {
		t.Errorf("no headers: %s, %v", w.b, err)
	}
}

func TestWantsJSON(t *testing.T) {
	for accept, want := range map[string]bool{"": false, "*/*": false, "application/json": true, "text/html, Application/JSON;q=0.9": true,
		"text/plain, application/json": false, "application/jsonx": false} {
		r := &http.Request{Header: http.Header{"Accept": {accept}}}
		if wantsJSON(r) != want {
			t.Errorf("%q: %v", accept, !want)
		}
	}
}
