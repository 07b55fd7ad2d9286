package oidc

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/clock"
)

const (
	good   = `{"access_token":"tok","token_type":"bearer","expires_in":900}`
	marker = "UPSTREAM-TEXT" // in answers; must not be in errors
)

func TestAnswersThatAreNoToken(t *testing.T) {
	html := "<html><body>" + marker + "</body></html>"
	doc := func(code string) string { return `{"error":"` + code + `","error_description":"` + marker + `"}` }
	for _, c := range []struct {
		name string
		r    reply
		kind Kind
		code string
		says string
	}{
		{"secret refused, 400", reply{status: 400, body: doc("invalid_client")}, InvalidClient, "invalid_client", "secret"},
		{"secret refused, 401", reply{status: 401, body: doc("invalid_client")}, InvalidClient, "invalid_client", "secret"},
		{"secret refused, escaped", reply{status: 401, body: `{"error":"invalid\u005fclient"}`}, InvalidClient, "invalid_client", ""},
		{"401 page", reply{status: 401, ctype: "text/html", body: html}, Protocol, "", "firewall"},
		{"401 page that quotes the code", reply{status: 401, ctype: "text/html", body: doc("invalid_client")}, Protocol, "", "firewall"},
		{"401 empty", reply{status: 401, ctype: "-"}, Protocol, "", "empty"},
		{"401 empty JSON", reply{status: 401}, Protocol, "", ""},
		{"401 JSON of another shape", reply{status: 401, body: `["invalid_client"]`}, Protocol, "", ""},
		{"401 code not a string", reply{status: 401, body: `{"error":{"error":"invalid_client"}}`}, Protocol, "", ""},
		{"401 broken JSON", reply{status: 401, body: `{"error":"invalid_client"`}, Protocol, "", ""},
		{"403 page", reply{status: 403, ctype: "text/html", body: html}, Protocol, "", "firewall"},
		{"403 JSON", reply{status: 403, body: doc("invalid_client")}, Protocol, "invalid_client", ""},
		{"403 access", reply{status: 403, body: doc("unauthorized_client")}, Refused, "unauthorized_client", "allow"},
		{"scope", reply{status: 400, body: doc("invalid_scope")}, Refused, "invalid_scope", "scope"},
		{"target", reply{status: 400, body: doc("invalid_target")}, Refused, "invalid_target", "resource"},
		{"grant", reply{status: 400, body: doc("unsupported_grant_type")}, Refused, "unsupported_grant_type", "grant"},
		{"request", reply{status: 400, body: doc("invalid_request")}, Refused, "invalid_request", ""},
		{"unknown code", reply{status: 400, body: doc(marker)}, Protocol, "", ""},
		{"not now, 400", reply{status: 400, body: doc("temporarily_unavailable")}, Unavailable, "temporarily_unavailable", ""},
		{"500 unknown code", reply{status: 500, body: doc("internal server error")}, Unavailable, "", "500"},
		{"500 known code", reply{status: 500, body: doc("invalid_client")}, Unavailable, "invalid_client", ""},
		{"502 page", reply{status: 502, ctype: "text/html", body: html}, Unavailable, "", "502"},
		{"503 huge page", reply{status: 503, ctype: "text/html", body: strings.Repeat(html, 1e4)}, Unavailable, "", "503"},
		{"408", reply{status: 408}, Unavailable, "", ""},
		{"429", reply{status: 429, ctype: "text/html", body: html}, Throttled, "", "too many"},
		{"301", reply{status: 301, ctype: "text/html", header: map[string]string{"Location": "https://" + marker}}, Protocol, "", "redirect"},
		{"307", reply{status: 307, header: map[string]string{"Location": "https://" + marker}}, Protocol, "", "redirect"},
		{"404", reply{status: 404, ctype: "text/html", body: html}, Protocol, "", "token_endpoint"},
		{"407", reply{status: 407, ctype: "text/html", body: html}, Protocol, "", "proxy"},
		{"204", reply{status: 204, ctype: "-"}, Protocol, "", ""},
		{"201", reply{status: 201, body: good}, Protocol, "", "201"},
		{"200 page", reply{status: 200, ctype: "text/html", body: html}, Protocol, "", "text/html"},
		{"200 token as a page", reply{status: 200, ctype: "text/html", body: good}, Protocol, "", "text/html"},
		{"200 token without a type", reply{status: 200, ctype: "-", body: good}, Protocol, "", "type"},
		{"200 type not named", reply{status: 200, ctype: "text/" + marker, body: good}, Protocol, "", "another type"},
		{"200 empty", reply{status: 200}, Protocol, "", "empty"},
		{"200 blank", reply{status: 200, body: " \r\n"}, Protocol, "", "empty"},
		{"200 null", reply{status: 200, body: "null"}, Protocol, "", "object"},
		{"200 array", reply{status: 200, body: "[" + good + "]"}, Protocol, "", "object"},
		{"200 two objects", reply{status: 200, body: good + good}, Protocol, "", "object"},
		{"200 cut", reply{status: 200, body: good[:len(good)-1]}, Protocol, "", "object"},
		{"200 error", reply{status: 200, body: doc("invalid_client")}, Protocol, "invalid_client", "200"},
		{"200 error and token", reply{status: 200, body: `{"error":"` + marker + `",` + good[1:]}, Protocol, "", "200"},
		{"200 no token", reply{status: 200, body: `{"token_type":"bearer"}`}, Protocol, "", "access_token"},
		{"200 token in another case", reply{status: 200, body: `{"Access_Token":"x","token_type":"bearer"}`}, Protocol, "", "access_token"},
		{"200 token not a string", reply{status: 200, body: `{"access_token":{"a":1},"token_type":"bearer"}`}, Protocol, "", "access_token"},
		{"200 empty token", reply{status: 200, body: `{"access_token":"","token_type":"bearer"}`}, Protocol, "", "access_token"},
		{"header injection", reply{status: 200, body: `{"access_token":"a\r\nX: ` + marker + `","token_type":"bearer"}`}, Protocol, "", "access_token"},
		{"space in the token", reply{status: 200, body: `{"access_token":"a b","token_type":"bearer"}`}, Protocol, "", "access_token"},
		{"NUL in the token", reply{status: 200, body: `{"access_token":"a\u0000","token_type":"bearer"}`}, Protocol, "", "access_token"},
		{"letter beyond ASCII", reply{status: 200, body: `{"access_token":"é","token_type":"bearer"}`}, Protocol, "", "access_token"},
		{"long token", reply{status: 200, body: `{"access_token":"` + strings.Repeat("a", maxToken+1) + `","token_type":"bearer"}`}, Protocol, "", "access_token"},
		{"oversized", reply{status: 200, body: `{"x":"` + strings.Repeat("a", maxAnswer) + `",` + good[1:]}, Protocol, "", "larger"},
		{"oversized blanks", reply{status: 200, body: good + strings.Repeat(" ", maxAnswer)}, Protocol, "", "larger"},
		{"no type", reply{status: 200, body: `{"access_token":"x"}`}, Protocol, "", "token_type"},
		{"mac", reply{status: 200, body: `{"access_token":"x","token_type":"mac"}`}, Protocol, "", "token_type"},
		{"dpop", reply{status: 200, body: `{"access_token":"x","token_type":"DPoP"}`}, Protocol, "", "token_type"},
		{"type null", reply{status: 200, body: `{"access_token":"x","token_type":null}`}, Protocol, "", "token_type"},
		{"scope not a string", reply{status: 200, body: `{"scope":["a"],` + good[1:]}, Protocol, "", "scope"},
		{"scope with a line break", reply{status: 200, body: `{"scope":"a\nb",` + good[1:]}, Protocol, "", "scope"},
		{"long scope", reply{status: 200, body: `{"scope":"` + strings.Repeat("a", maxScope+1) + `",` + good[1:]}, Protocol, "", "scope"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := mint(t, Profile{}, c.r, Request{})
			e := wantKind(t, err, c.kind)
			if e.Code != c.code || e.Status != c.r.status {
				t.Errorf("code %q, status %d; want %q, %d", e.Code, e.Status, c.code, c.r.status)
			}
			if !strings.Contains(e.Error(), c.says) || !strings.Contains(e.Error(), "issuer.example") {
				t.Errorf("%q does not say %q and where", e, c.says)
			}
			if strings.Contains(e.Error(), marker) || e.Err != nil && strings.Contains(e.Err.Error(), marker) {
				t.Errorf("the answer shows in %q, %v", e, e.Err)
			}
		})
	}
}

func TestAnswersThatAreTokens(t *testing.T) {
	for name, r := range map[string]reply{
		"as the seed has it": {status: 200, body: `{"access_token":"tok","scope":"","token_type":"bearer","expires_in":900}`},
		"upper case":         {status: 200, body: `{"access_token":"tok","token_type":"BEARER","expires_in":900}`},
		"unknown members":    {status: 200, body: `{"x":{"y":[1,2]},"access_token":"tok","token_type":"Bearer","expires_in":900,"refresh_token":"r"}`},
		"escapes":            {status: 200, body: `{"\u0061ccess_token":"\u0074ok","token_type":"be\u0061rer","expires_in":900}`},
		"nulls":              {status: 200, body: `{"access_token":"tok","token_type":"bearer","expires_in":900,"scope":null,"error":null}`},
		"another JSON type":  {status: 200, ctype: "application/vnd.x+json", body: good},
		"upper-case type":    {status: 200, ctype: "Application/JSON", body: good},
		"blanks around":      {status: 200, body: "\r\n " + good + " \n"},
		"as large as may be": {status: 200, body: good + strings.Repeat(" ", maxAnswer-len(good))},
	} {
		tok, err := mint(t, Profile{}, r, Request{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := reveal(t, tok.Access); got != "tok" || tok.Type != "Bearer" || tok.Expires.Sub(tok.Sent) != 900*time.Second {
			t.Errorf("%s: %q, %+v", name, got, tok)
		}
	}
}

func TestLifetime(t *testing.T) {
	const minute = time.Minute
	for _, c := range []struct {
		expiresIn string // raw JSON; "" means absent
		want      time.Duration
	}{
		{`900`, 15 * minute}, {`"900"`, 15 * minute}, {`900.9`, 15 * minute}, {`9e2`, 15 * minute}, {`1`, time.Second},
		{``, 5 * minute}, {`null`, 5 * minute}, {`0`, 5 * minute}, {`-900`, 5 * minute}, {`0.5`, 5 * minute}, {`"soon"`, 5 * minute}, {`""`, 5 * minute},
		{`true`, 5 * minute}, {`[900]`, 5 * minute}, {`{"s":900}`, 5 * minute}, {`"0x10"`, 5 * minute}, {`"inf"`, 5 * minute}, {`"nan"`, 5 * minute}, {`-1e999`, 5 * minute},
		{`86400`, 24 * time.Hour}, {`86401`, 24 * time.Hour}, {`315360000`, 24 * time.Hour}, {`1e300`, 24 * time.Hour}, {`1e999`, 24 * time.Hour},
		{`99999999999999999999`, 24 * time.Hour}, {`9223372036854775807`, 24 * time.Hour}, {`"123456789012345678901234567890123"`, 5 * minute},
	} {
		body := `{"access_token":"tok","token_type":"bearer"`
		if c.expiresIn != "" {
			body += `,"expires_in":` + c.expiresIn
		}
		tok, err := mint(t, Profile{}, reply{status: 200, body: body + "}"}, Request{})
		if err != nil || tok.Expires.Sub(tok.Sent) != c.want {
			t.Errorf("%s: %v, %v; want %v", c.expiresIn, tok.Expires.Sub(tok.Sent), err, c.want)
		}
	}
	p := Profile{DefaultLifetime: clock.Duration(minute), MaxLifetime: clock.Duration(10 * minute)}
	for body, want := range map[string]time.Duration{good: 10 * minute, strings.Replace(good, "900", "0", 1): minute} {
		tok, err := mint(t, p, reply{status: 200, body: body}, Request{})
		if err != nil || tok.Expires.Sub(tok.Sent) != want {
			t.Errorf("%s: %v, %v; want %v", body, tok.Expires.Sub(tok.Sent), err, want)
		}
	}
}

func TestScope(t *testing.T) {
	for _, c := range []struct {
		asked, answered, want string
		narrowed              bool
	}{
		{"a b", ``, "a b", false},
		{"a b", `null`, "a b", false},
		{"a b", `"b a"`, "b a", false},
		{"a b", `"a"`, "a", true},
		{"a b", `"a b c"`, "a b c", false},
		{"a b", `"  a   b "`, "a b", false},
		{"a", `""`, "", true},
		{"", `""`, "", false},
		{"", `"x"`, "x", false},
		{"a", `"aa"`, "aa", true},
	} {
		body := good
		if c.answered != "" {
			body = `{"scope":` + c.answered + `,` + good[1:]
		}
		tok, err := mint(t, Profile{}, reply{status: 200, body: body}, Request{Scope: c.asked})
		if err != nil || tok.Scope != c.want || tok.Narrowed != c.narrowed {
			t.Errorf("%q, answered %s: %q, %v, %v", c.asked, c.answered, tok.Scope, tok.Narrowed, err)
		}
	}
}

func TestSkew(t *testing.T) {
	sent := clock.Reading{Boot: time.Hour, Wall: time.Date(2026, 1, 2, 3, 4, 5, 5e8, time.UTC)}
	for _, c := range []struct {
		date string
		want time.Duration
	}{
		{"", 0}, {"yesterday", 0}, {"-1", 0},
		{"Fri, 02 Jan 2026 03:04:05 GMT", 0}, // the second in which it was sent
		{"Fri, 02 Jan 2026 03:04:07 GMT", 0}, // the second in which it was received
		{"Fri, 02 Jan 2026 03:04:04 GMT", -500 * time.Millisecond},
		{"Fri, 02 Jan 2026 03:04:08 GMT", 500 * time.Millisecond},
		{"Fri, 02 Jan 2026 04:04:07 GMT", time.Hour - 500*time.Millisecond},
		{"Fri, 02 Jan 2026 02:04:05 GMT", -time.Hour + 500*time.Millisecond},
		{"Friday, 02-Jan-26 04:04:07 GMT", time.Hour - 500*time.Millisecond}, // RFC 850
	} {
		a := answer{header: http.Header{"Date": {c.date}}, sent: sent, received: sent.Add(2 * time.Second)}
		if got := a.skew(); got != c.want {
			t.Errorf("%q: skew %v, want %v", c.date, got, c.want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	const date = "Fri, 02 Jan 2026 03:04:05 GMT"
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		value string
		wall  time.Time // ours
		want  time.Duration
	}{
		{"", at, 0}, {"0", at, 0}, {"30", at, 30 * time.Second}, {" 30 ", at, 30 * time.Second}, {"-30", at, 0}, {"1.5", at, 0}, {"soon", at, 0},
		{"3600", at, time.Hour}, {"3601", at, time.Hour}, {"2147483647", at, time.Hour}, {"99999999999999999999", at, 0},
		{"Fri, 02 Jan 2026 03:05:05 GMT", at, time.Minute},
		{"Fri, 02 Jan 2026 03:03:05 GMT", at, 0},
		{"Fri, 31 Dec 9999 23:59:59 GMT", at, time.Hour},
		// Our clock is a day off: the issuer's two times still tell.
		{"Fri, 02 Jan 2026 03:05:05 GMT", at.Add(24 * time.Hour), time.Minute},
		{"Fri, 02 Jan 2026 03:05:05 GMT", at.Add(-24 * time.Hour), time.Minute},
	} {
		r := clock.Reading{Boot: time.Hour, Wall: c.wall}
		a := answer{header: http.Header{"Date": {date}, "Retry-After": {c.value}}, sent: r, received: r}
		if got := a.retryAfter(); got != c.want {
			t.Errorf("%q at %v: %v, want %v", c.value, c.wall, got, c.want)
		}
	}
}

func TestTruncatedBodyIsNoAnswer(t *testing.T) {
	rt := roundTrip(func(r *http.Request) (*http.Response, error) {
		resp, err := reply{status: 200, body: ""}.RoundTrip(r)
		resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(good[:20]), errReader{io.ErrUnexpectedEOF}))
		return resp, err
	})
	_, err := mint(t, Profile{}, rt, Request{})
	wantKind(t, err, Unavailable)
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestErrorText(t *testing.T) {
	_, err := mint(t, Profile{}, reply{status: 400, body: `{"error":"invalid_scope"}`}, Request{})
	const want = "issuer.example: the issuer refuses the request (invalid_scope, HTTP 400); check scope, which the issuer may not have granted to this client"
	if fmt.Sprint(err) != want {
		t.Errorf("%v", err)
	}
	if KindOf(nil) != "" || KindOf(io.EOF) != Unavailable {
		t.Error("KindOf of errors that are not ours")
	}
}
