package client

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// apiWorld is a broker that gives t1, and t2 once t1 is rejected, and an API
// that takes t2 alone.
type apiWorld struct {
	*httptest.Server
	http     http.Client
	rejected atomic.Value // the body of the rejection
	calls    atomic.Int32
}

func newAPIWorld(t *testing.T, refuse Code, another bool) *apiWorld {
	t.Helper()
	w := &apiWorld{}
	socket := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		token := "t1"
		if w.rejected.Load() != nil && another {
			token = "t2"
		}
		if strings.HasSuffix(r.URL.Path, "/reject") {
			body, _ := io.ReadAll(r.Body)
			w.rejected.Store(string(body))
			if refuse != "" {
				rw.Header().Set("Content-Type", "application/problem+json")
				rw.WriteHeader(refuse.Status())
				_, _ = fmt.Fprintf(rw, `{"code":%q}`, refuse)
				return
			}
		}
		_, _ = fmt.Fprintf(rw, `{"Authorization":"Bearer %s","X-Key":"k"}`, token)
	})
	other := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(rw, "elsewhere:"+r.Header.Get("Authorization")+r.Header.Get("X-Key"))
	}))
	t.Cleanup(other.Close)
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.calls.Add(1)
		switch {
		case r.URL.Path == "/away":
			http.Redirect(rw, r, other.URL, http.StatusFound)
		case r.URL.Path == "/here":
			http.Redirect(rw, r, "/", http.StatusFound)
		case r.Header.Get("Authorization") != "Bearer t2":
			rw.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(rw, `{"moreInformation":"who?"}`)
		default:
			_, _ = io.WriteString(rw, r.Header.Get("X-Key")+string(body))
		}
	}))
	t.Cleanup(w.Close)
	w.http.Transport = &Transport{Client: &Client{Socket: socket}, Name: "vdab", Base: once{w.Client().Transport}}
	return w
}

// once never sends a body again by itself, as net/http's own transport may.
type once struct{ http.RoundTripper }

func (o once) RoundTrip(r *http.Request) (*http.Response, error) {
	r.GetBody = nil
	return o.RoundTripper.RoundTrip(r)
}

// get gives status and body.
func (w *apiWorld) get(t *testing.T, path string, body io.Reader) (string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := w.http.Do(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	for _, r := range []*http.Request{r, answer.Request} {
		if len(r.Header["Authorization"])+len(r.Header["X-Key"]) > 0 {
			t.Error("the credentials are in the caller's request")
		}
	}
	text, err := io.ReadAll(answer.Body)
	return fmt.Sprint(answer.StatusCode, " ", string(text)), err
}

func TestTransport(t *testing.T) {
	const refused = `401 {"moreInformation":"who?"}`
	for name, c := range map[string]struct {
		path    string
		body    io.Reader
		refuse  Code
		another bool
		want    string
		calls   int32
	}{
		"repeated":            {"/", strings.NewReader("body"), "", true, "200 kbody", 2},
		"without a body":      {"/", nil, "", true, "200 k", 2},
		"no other token":      {"/", nil, "", false, refused, 1},
		"a body once":         {"/", io.MultiReader(strings.NewReader("body")), "", true, refused, 1},
		"a refused key":       {"/", nil, APIKeyRejected, true, "", 1},
		"to another host":     {"/away", nil, "", true, "200 elsewhere:", 1},
		"to another path":     {"/here", nil, "", true, "200 k", 3},
		"the broker is tired": {"/", nil, IssuerUnavailable, true, "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newAPIWorld(t, c.refuse, c.another)
			got, err := w.get(t, c.path, c.body)
			var p *Problem
			if errors.As(err, &p) && p.Code == c.refuse {
				err = nil
			}
			if err != nil || got != c.want || w.calls.Load() != c.calls {
				t.Errorf("%q, %v after %d calls", got, err, w.calls.Load())
			}
			if told := w.rejected.Load(); c.refuse != "" && told != `{"access_token":"t1","status":401,"more_information":"who?"}` {
				t.Errorf("the broker was told %s", told)
			}
		})
	}
}

// The broker's Retry-After is obeyed, for ten seconds in all.
func TestTransportPatience(t *testing.T) {
	for _, c := range []struct {
		patience   time.Duration
		status     int
		asked      int
		afterwards time.Duration
	}{{0, 503, 3, 8 * time.Second}, {0, 429, 3, 8 * time.Second}, {-1, 503, 1, 0}, {time.Minute, 503, 16, time.Minute}, {0, 502, 1, 0}} {
		synctest.Test(t, func(t *testing.T) {
			asked, start := 0, time.Now()
			err := (&Transport{Patience: c.patience}).patiently(t.Context(), func() error { asked++; return &Problem{Status: c.status, RetryAfter: 4} })
			if took := time.Since(start); err == nil || asked != c.asked || took != c.afterwards {
				t.Errorf("%+v: %v, asked %d times in %v", c, err, asked, took)
			}
		})
	}
}
