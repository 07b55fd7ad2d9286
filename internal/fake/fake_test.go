package fake

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const (
	id  = "kCVy8fpVSU50zFzi8TIC"
	key = "secret-1"
	api = "key-1"
)

func issuer() *Issuer { return NewIssuer(Client{ID: id, Secret: key, APIKey: api}) }

// call posts a token request; header holds further header fields.
func call(t testing.TB, rt http.RoundTripper, base, secret string, header http.Header) (*http.Response, string, error) {
	t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "client_secret": {secret}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+TokenPath, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func TestTokenIsLikeTheSample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := issuer()
		resp, body, err := call(t, i.RoundTripper(), "https://x", key, nil)
		if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json;charset=UTF-8" {
			t.Fatalf("%v, %v, %s", resp, err, body)
		}
		var a struct {
			Access  string `json:"access_token"`
			Scope   *string
			Type    string `json:"token_type"`
			Expires int    `json:"expires_in"`
		}
		if err := json.Unmarshal([]byte(body), &a); err != nil {
			t.Fatal(err)
		}
		if a.Type != "bearer" || a.Expires != 900 || a.Scope == nil || *a.Scope != "" || len(a.Access) < 1100 || len(a.Access) > 1300 {
			t.Errorf("%s", body)
		}
		now := time.Now().Unix()
		var c map[string]any
		raw, _ := jsonPart(a.Access, 1)
		if err := json.Unmarshal(raw, &c); err != nil {
			t.Fatal(err)
		}
		if c["iss"] != IssuerName || c["sub"] != id || c["client_id"] != id || c["domain"] != "NULL" || c["scope"] != "" || len(c["jti"].(string)) != 36 ||
			c["iat"] != float64(now) || c["nbf"] != float64(now) || c["exp"] != float64(now+900) || c["aud"].([]any)[0] != id {
			t.Errorf("claims %v", c)
		}
		if head, _ := jsonPart(a.Access, 0); !strings.HasPrefix(string(head), `{"typ":"jwt","kid":"`) || len(head) != 43+len(`{"typ":"jwt","kid":"","alg":"RS256"}`) {
			t.Errorf("header %s", head)
		}
		if err := check(a.Access); err != nil {
			t.Errorf("its own token: %v", err)
		}
		time.Sleep(900 * time.Second)
		if check(a.Access) == nil {
			t.Error("an expired token passes")
		}
		if len(resp.Cookies()) != 2 || resp.Header.Get("Date") == "" {
			t.Errorf("header %v", resp.Header)
		}
		again, body, _ := call(t, i.RoundTripper(), "https://x", key, http.Header{"Cookie": {resp.Cookies()[0].String()}})
		if again.StatusCode != http.StatusBadRequest || !strings.Contains(body, "FBTOAU220E") {
			t.Errorf("with its cookie: %d %s", again.StatusCode, body)
		}
	})
}

func jsonPart(token string, n int) ([]byte, error) {
	return base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[n])
}

func TestRefusals(t *testing.T) {
	i := issuer()
	rt := i.RoundTripper()
	basic := http.Header{"Authorization": {"Basic a0NWeThmcFZTVTUwekZ6aThUSUM6d3Jvbmc="}} // id:wrong
	for name, c := range map[string]struct {
		secret string
		header http.Header
		want   string
	}{
		"wrong": {"x", nil, "FBTOAU204E"}, "none": {"", nil, "FBTOAU202E"}, "wrong Basic": {key, basic, "FBTOAU204E"},
	} {
		resp, body, err := call(t, rt, "https://x", c.secret, c.header)
		if err != nil || resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, c.want) {
			t.Errorf("%s: %v, %s, %v", name, resp, body, err)
		}
	}
	if s := i.Stats(); s.Refused != 2 || s.PerSecret["x"] != 1 || s.PerSecret["wrong"] != 1 || s.Minted != 0 || s.Requests != 3 {
		t.Errorf("%+v", s)
	}
	for path, want := range map[string]int{TokenPath: 405, "/x": 404, JWKSPath: 200, MetadataPath: 200} {
		req := httptest.NewRequest(http.MethodGet, "https://x"+path, nil)
		resp, err := rt.RoundTrip(req)
		if err != nil || resp.StatusCode != want {
			t.Errorf("GET %s: %v, %v", path, resp, err)
		}
	}
}

func TestSetSecret(t *testing.T) {
	i := issuer()
	try := func(secret string) bool {
		resp, _, err := call(t, i.RoundTripper(), "https://x", secret, nil)
		return err == nil && resp.StatusCode == http.StatusOK
	}
	i.SetSecret(id, "2", true)
	if !try(key) || !try("2") {
		t.Error("with an overlap, both must work")
	}
	i.SetSecret(id, "3", true)
	if try(key) || !try("2") || !try("3") {
		t.Error("only two secrets live at once")
	}
	i.SetSecret(id, "4", false)
	if try("3") || !try("4") || try("") {
		t.Error("without an overlap, only the newest works")
	}
}

func TestFaultsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := issuer()
		i.Set(Fault{Kind: Unavailable, Times: 2, Delay: time.Second, RetryAfter: 30 * time.Second})
		start := time.Now()
		for n, want := range []int{503, 503, 200} {
			resp, body, err := call(t, i.RoundTripper(), "https://x", key, nil)
			if err != nil || resp.StatusCode != want || want == 503 && resp.Header.Get("Retry-After") != "30" {
				t.Errorf("request %d: %v, %s, %v", n, resp, body, err)
			}
		}
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("delayed %v", d)
		}
		i.Set(Fault{Kind: InvalidClient})
		if resp, _, _ := call(t, i.RoundTripper(), "https://x", key, nil); resp.StatusCode != http.StatusUnauthorized || i.Stats().PerSecret[key] != 1 {
			t.Errorf("%v, %+v", resp, i.Stats())
		}
		i.Set(Fault{})
		if resp, _, _ := call(t, i.RoundTripper(), "https://x", key, nil); resp.StatusCode != http.StatusOK {
			t.Errorf("after the fault: %v", resp)
		}
	})
}

func TestHangHonoursTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := issuer()
		i.Set(Fault{Kind: Hang})
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://x"+TokenPath, strings.NewReader("a=b"))
				if _, err := i.RoundTripper().RoundTrip(req); !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if s := i.Stats(); s.MaxInFlight != 3 || s.Requests != 3 {
			t.Errorf("%+v", s)
		}
	})
}

// The same faults through a real server and in process.
func TestBothWays(t *testing.T) {
	i := issuer()
	cert, ca, err := TLS("issuer.example")
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(i)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	srv.StartTLS()
	defer srv.Close()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		t.Fatal("no CA")
	}
	network := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}
	for kind, want := range map[FaultKind]string{
		None: "200", InvalidClient: "401", Forbidden: "403", Unavailable: "503", Maintenance: "503", Throttled: "429", Reset: "cut", Lost: "cut", HTML: "200", Empty: "200",
		CookieOnly: "200", Redirect: "302", NoExpiry: "200", Absurd: "200", BadType: "200", NoType: "200", Huge: "200", BadToken: "200",
	} {
		i.Set(Fault{Kind: kind})
		for base, rt := range map[string]http.RoundTripper{srv.URL: network, "https://x": i.RoundTripper()} {
			resp, body, err := call(t, rt, base, key, nil)
			switch {
			case want == "cut":
				if err == nil {
					t.Errorf("%s at %s: %v", kind, base, resp)
				}
				if base == "https://x" && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("in process: %v", err)
				}
			case err != nil || !strings.HasPrefix(resp.Status, want):
				t.Errorf("%s at %s: %v, %v", kind, base, resp, err)
			case kind == Huge && len(body) < 1<<20, kind == Empty && body != "", kind == NoExpiry && strings.Contains(body, "expires_in"),
				kind == Absurd && !strings.Contains(body, "315360000"), kind == NoType && strings.Contains(body, "token_type"),
				kind == BadType && !strings.Contains(body, "mac"), kind == BadToken && !strings.Contains(body, `\r\n`):
				t.Errorf("%s at %s: %.200s", kind, base, body)
			}
		}
	}
}

func TestGateway(t *testing.T) {
	i := issuer()
	_, body, _ := call(t, i.RoundTripper(), "https://x", key, nil)
	var a struct {
		Access string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(body), &a); err != nil {
		t.Fatal(err)
	}
	get := func(token, key string) (int, string, http.Header) {
		r := httptest.NewRequest(http.MethodGet, "https://api.example"+APIPath+"vacatures", nil)
		r.Header.Set("Authorization", token)
		r.Header.Set("X-IBM-Client-Id", key)
		w := httptest.NewRecorder()
		i.Gateway().ServeHTTP(w, r)
		return w.Code, w.Body.String(), w.Header()
	}
	const badKey, badToken = "Invalid client id or secret.", "Cannot pass the security checks"
	tampered := a.Access[:len(a.Access)-8] + "AAAAAAAA"
	for _, c := range []struct {
		name, token, key string
		fault            FaultKind
		status           int
		says             string
	}{
		{"good", "Bearer " + a.Access, api, None, 200, "resultaten"},
		{"no key", "Bearer " + a.Access, "", None, 401, badKey},
		{"bad key", "Bearer " + a.Access, "x", None, 401, badKey},
		{"no token", "", api, None, 401, badToken},
		{"bare token", a.Access, api, None, 401, badToken},
		{"tampered", "Bearer " + tampered, api, None, 401, badToken},
		{"refuses tokens", "Bearer " + a.Access, api, GatewayToken, 401, badToken},
		{"refuses keys", "Bearer " + a.Access, api, GatewayKey, 401, badKey},
		{"limit", "Bearer " + a.Access, api, GatewayThrottle, 429, "Rate Limit exceeded"},
	} {
		i.Set(Fault{Kind: c.fault})
		status, body, h := get(c.token, c.key)
		if status != c.status || !strings.Contains(body, c.says) || h.Get("X-Global-Transaction-ID") == "" {
			t.Errorf("%s: %d %s", c.name, status, body)
		}
		if c.fault != None {
			if resp, _, err := call(t, i.RoundTripper(), "https://x", key, nil); err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("%s also spoils the token endpoint: %v, %v", c.fault, resp, err)
			}
		}
	}
	i.Set(Fault{Kind: GatewayToken, Times: 1})
	if s, _, _ := get("Bearer "+a.Access, api); s != 401 {
		t.Errorf("first: %d", s)
	}
	if s, _, _ := get("Bearer "+a.Access, api); s != 200 {
		t.Errorf("second: %d", s)
	}
}

// An answer is lost after the token was made.
func TestLost(t *testing.T) {
	i := issuer()
	i.Set(Fault{Kind: Lost, Times: 1})
	if _, _, err := call(t, i.RoundTripper(), "https://x", key, nil); !errors.Is(err, syscall.ECONNRESET) || i.Stats().Minted != 1 {
		t.Errorf("%v, %+v", err, i.Stats())
	}
	if resp, _, err := call(t, i.RoundTripper(), "https://x", key, nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%v, %v", resp, err)
	}
}

func TestLifetimeAndOpaque(t *testing.T) {
	i := issuer()
	i.Set(Fault{Lifetime: 10 * time.Second})
	_, body, _ := call(t, i.RoundTripper(), "https://x", key, nil)
	if !strings.Contains(body, `"expires_in":10,`) {
		t.Error(body)
	}
	i.Set(Fault{Opaque: true})
	if _, body, _ = call(t, i.RoundTripper(), "https://x", key, nil); !strings.Contains(body, `"opaque-`) {
		t.Error(body)
	}
}
