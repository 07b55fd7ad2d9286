package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
)

const theState = "3V6LrfQmC0CZbXhY7xVu9A"

func TestParseRedirect(t *testing.T) {
	long := strings.Repeat("c", 4097)
	for query, want := range map[string]struct {
		code, iss string
		exit      int    // of the issuer's refusal
		bad       string // no answer to this login
	}{
		"code=abc&state=" + theState:                                      {code: "abc"},
		"state=" + theState + "&code=a%2Fb%3D&iss=https%3A%2F%2Fi&x=1":    {code: "a/b=", iss: "https://i"},
		"code=abc&state=other":                                            {bad: "another login"},
		"code=abc":                                                        {bad: "another login"},
		"error=access_denied":                                             {bad: "another login"},
		"code=abc&code=def&state=" + theState:                             {bad: "code twice"},
		"code=abc&state=" + theState + "&state=" + theState:               {bad: "state twice"},
		"code=&state=" + theState:                                         {bad: "no authorization code"},
		"code=a+b&state=" + theState:                                      {bad: "no authorization code"},
		"code=" + long + "&state=" + theState:                             {bad: "no authorization code"},
		"code=a&iss=a%0ab&state=" + theState:                              {bad: "no authorization code"},
		"code=%zz&state=" + theState:                                      {bad: "percent"},
		"error=access_denied&error_description=text&state=" + theState:    {exit: exitNotAllowed},
		"error=unauthorized_client&state=" + theState:                     {exit: exitNotAllowed},
		"error=invalid_scope&state=" + theState:                           {exit: exitConfig},
		"error=invalid_request&state=" + theState:                         {exit: exitConfig},
		"error=unsupported_response_type&state=" + theState:               {exit: exitConfig},
		"error=server_error&state=" + theState:                            {exit: exitUnavailable},
		"error=temporarily_unavailable&state=" + theState:                 {exit: exitTryAgain},
		"error=%1b%5B2Jtext&code=abc&state=" + theState:                   {exit: exitUnavailable},
		"error=access_denied&error=server_error&code=a&state=" + theState: {bad: "error twice"},
	} {
		got, err := parseRedirect(query, theState)
		if (err != nil) != (want.bad != "") || err != nil && !strings.Contains(err.Error(), want.bad) {
			t.Errorf("%.80s: %v, want %q", query, err, want.bad)
			continue
		}
		if got.code != want.code || got.issuer != want.iss || (got.err != nil) != (want.exit != 0) || got.err != nil && exitCode(got.err) != want.exit {
			t.Errorf("%.80s: %+v, want %+v", query, got, want)
		}
		for _, err := range []error{err, got.err} {
			if err != nil && (strings.Contains(err.Error(), "text") || strings.Contains(err.Error(), "abc")) {
				t.Errorf("%.80s: the error repeats what came: %v", query, err)
			}
		}
	}
}

func TestParsePasted(t *testing.T) {
	for line, want := range map[string]string{
		"abc":         "abc",
		" a/b=c?d \r": "a/b=c?d",
		"http://127.0.0.1/callback?code=abc&state=" + theState:        "abc",
		"127.0.0.1/callback?state=" + theState + "&code=abc#fragment": "abc",
		"http://127.0.0.1/callback?code=abc&state=other":              "",
		"http://127.0.0.1/callback":                                   "",
		"two words":                                                   "",
		"":                                                            "",
		strings.Repeat("c", 4097):                                     "",
	} {
		got, err := parsePasted(line, theState)
		if got.code != want || (err == nil) != (want != "") {
			t.Errorf("%.60q: %+v, %v", line, got, err)
		}
	}
	if got, err := parsePasted("http://127.0.0.1/callback?error=access_denied&state="+theState, theState); err != nil || got.err == nil {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzParsePasted(f *testing.F) {
	f.Add("http://127.0.0.1/callback?code=abc&state=" + theState)
	f.Add("x?error=y&state=" + theState + "#z")
	f.Add("abc")
	f.Fuzz(func(t *testing.T, line string) {
		r, err := parsePasted(line, theState)
		if err == nil && (r.err == nil) != validCode(r.code) {
			t.Errorf("%q is read as %+v", line, r)
		}
	})
}

func TestListen(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for uri, want := range map[string]string{
		"http://127.0.0.1/callback?x=1":                "http://127.0.0.1:PORT/callback?x=1",
		"http://localhost/cb":                          "http://localhost:PORT/cb",
		"http://" + busy.Addr().String() + "/callback": "cannot be opened",
		"https://127.0.0.1/callback":                   "does not lead to this machine",
		"https://app.example/callback":                 "does not lead to this machine",
		"http://192.0.2.1/callback":                    "does not lead to this machine",
		"http://app.example/callback":                  "does not lead to this machine",
		"http://0.0.0.0/callback":                      "does not lead to this machine",
		"urn:ietf:wg:oauth:2.0:oob":                    "does not lead to this machine",
	} {
		l, whole, reason := listen(t.Context(), uri)
		if l == nil {
			if !strings.Contains(reason, want) {
				t.Errorf("%s: %q", uri, reason)
			}
			continue
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		if !l.Addr().(*net.TCPAddr).IP.IsLoopback() || whole != strings.Replace(want, "PORT", port, 1) {
			t.Errorf("%s: %s on %s", uri, whole, l.Addr())
		}
		_ = l.Close()
	}
	// A port that is named is the one that is opened.
	free := busy.Addr().String()
	_ = busy.Close()
	l, whole, reason := listen(t.Context(), "http://"+free+"/callback")
	if l == nil || l.Addr().String() != free || whole != "http://"+free+"/callback" {
		t.Fatalf("%s %s", whole, reason)
	}
	_ = l.Close()
}

// visit calls the landing page as a browser does.
func visit(t *testing.T, method, address, host string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequest(method, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), resp.Header
}

// What is no answer to this login does not end it; the answer does, once.
func TestAwait(t *testing.T) {
	for query, want := range map[string]redirected{
		"code=the-code&iss=https%3A%2F%2Fi&state=" + theState: {code: "the-code", issuer: "https://i"},
		"error=access_denied&state=" + theState:               {err: errors.New("any")},
	} {
		l, whole, reason := listen(t.Context(), "http://127.0.0.1/callback")
		if l == nil {
			t.Fatal(reason)
		}
		type result struct {
			redirected
			err error
		}
		done := make(chan result, 1)
		go func() {
			got, err := await(t.Context(), l, &client.Login{RedirectURI: whole, State: theState})
			done <- result{got, err}
		}()
		host := l.Addr().String()
		for _, wrong := range []struct {
			method, address, host string
			status                int
		}{
			{"GET", "http://" + host + "/favicon.ico", host, 404},
			{"GET", whole + "?" + query, "attacker.example", 404},
			{"GET", whole + "?" + query, "attacker.example:80", 404},
			{"POST", whole + "?" + query, host, 404},
			{"GET", whole + "?code=evil&state=other", host, 400},
			{"GET", whole, host, 400},
		} {
			if status, body, _ := visit(t, wrong.method, wrong.address, wrong.host); status != wrong.status || strings.Contains(body, "evil") {
				t.Errorf("%s %s: %d %s", wrong.method, wrong.address, status, body)
			}
		}
		status, body, header := visit(t, "GET", whole+"?"+query, host)
		if status != 200 || !strings.Contains(body, "close this window") || strings.Contains(body, "the-code") ||
			header.Get("Cache-Control") != "no-store" || header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%d %s %v", status, body, header)
		}
		got := <-done
		if got.code != want.code || got.issuer != want.issuer || (got.err == nil) != (want.err == nil) {
			t.Errorf("%s: %+v", query, got)
		}
		if c, err := net.Dial("tcp", host); err == nil {
			_ = c.Close()
			t.Error("the port stays open")
		}
	}
}

func TestAwaitEnds(t *testing.T) {
	l, whole, reason := listen(t.Context(), "http://127.0.0.1/callback")
	if l == nil {
		t.Fatal(reason)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := await(ctx, l, &client.Login{RedirectURI: whole, State: theState}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// One answer counts: whoever comes second is told so.
func TestLandingTakesOneAnswer(t *testing.T) {
	p := &landing{host: "127.0.0.1:1", path: "/", state: theState, got: make(chan redirected, 1)}
	for _, want := range []int{200, 409} {
		w := &pageWriter{header: http.Header{}}
		p.ServeHTTP(w, &http.Request{Method: http.MethodGet, Host: "127.0.0.1:1", URL: &url.URL{Path: "/", RawQuery: "code=a&state=" + theState}})
		if w.status != want {
			t.Errorf("%d, want %d", w.status, want)
		}
	}
}

type pageWriter struct {
	header http.Header
	status int
}

func (w *pageWriter) Header() http.Header         { return w.header }
func (w *pageWriter) WriteHeader(status int)      { w.status = status }
func (w *pageWriter) Write(b []byte) (int, error) { return len(b), nil }
