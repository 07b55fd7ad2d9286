package broker

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"credentialbroker/internal/access"
)

// refuser is an issuer that grants the scope "default" alone.
type refuser struct {
	refused atomic.Int64
	next    http.RoundTripper
}

func (r *refuser) RoundTrip(req *http.Request) (*http.Response, error) {
	form, _ := io.ReadAll(req.Body)
	if !strings.Contains(string(form), "scope=default") {
		r.refused.Add(1)
		return &http.Response{StatusCode: http.StatusBadRequest, Header: http.Header{"Content-Type": {"application/json"}},
			Body: io.NopCloser(strings.NewReader(`{"error":"invalid_scope"}`)), Request: req}, nil
	}
	req.Body = io.NopCloser(strings.NewReader(string(form)))
	return r.next.RoundTrip(req)
}

// subsets names every subset of six scopes but the empty one.
func subsets() (list []string) {
	for i := 1; i < 64; i++ {
		var s []string
		for b := range 6 {
			if i&(1<<b) != 0 {
				s = append(s, string(rune('a'+b)))
			}
		}
		list = append(list, strings.Join(s, " "))
	}
	return list
}

func (w *world) sixScopes(rt http.RoundTripper) {
	w.t.Helper()
	cfg := w.config()
	cfg[0].Limits = access.Limits{Scopes: []string{"a", "b", "c", "d", "e", "f"}}
	cfg[0].Default.Scope, cfg[0].Transport = "default", rt
	if err := w.b.Apply(cfg); err != nil {
		w.t.Fatal(err)
	}
}

// One consumer that asks for every subset of its scopes takes nothing from the
// others: the client's default token has its place.
func TestCombinationsLeaveTheDefaultAlone(t *testing.T) {
	inWorld(t, func(w *world) {
		w.sixScopes(w.issuer.RoundTripper())
		for range 6 {
			for _, scope := range subsets() {
				_, _ = w.get(Request{Scope: scope})
			}
			w.mustGet()
			time.Sleep(5 * time.Minute)
		}
	})
}

// Scopes that the issuer refuses are asked for by their backoff, however many
// there are and whoever asks.
func TestRefusedCombinationsAreRemembered(t *testing.T) {
	inWorld(t, func(w *world) {
		r := &refuser{next: w.issuer.RoundTripper()}
		w.sixScopes(r)
		for range 600 {
			for _, scope := range subsets() {
				_, _ = w.get(Request{Scope: scope})
			}
			time.Sleep(time.Second)
		}
		if n := r.refused.Load(); n < Combinations || n > 5*Combinations {
			t.Errorf("%d refused requests in ten minutes, want what the backoff of %d combinations allows", n, Combinations)
		}
		w.mustGet()
	})
}
