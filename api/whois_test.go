package api

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"credentialbroker/api/client"
	"credentialbroker/internal/secret"
)

// abcToken is the token whose fingerprint is abc.
const abcToken = "abc"

// What the audit log does not know is judged, if it is a token; that is on
// record before it happens, without the token.
func TestJudge(t *testing.T) {
	h := newHouse(t, nil)
	a := client.Admin{Socket: h.admin}
	if w, err := a.WhoisToken(t.Context(), abcToken, "vdab"); err != nil || w.Foreign || h.judged != "" {
		t.Errorf("%+v, %v: a token that is known was judged", w, err)
	}
	h.mu.Lock()
	h.unknown = true
	h.mu.Unlock()
	var p *client.Problem
	if _, err := a.Whois(t.Context(), abc); !errors.As(err, &p) || p.Code != client.NotFound || h.judged != "" {
		t.Errorf("%v, %q: a fingerprint was judged", err, h.judged)
	}
	if got := h.recorded(); len(got) != 0 {
		t.Errorf("recorded %q", got)
	}
	if _, err := a.WhoisToken(t.Context(), abcToken, ""); !errors.As(err, &p) || p.Detail != "it is not known; it cannot be told" || h.judged != abcToken+" "+abc+" " {
		t.Errorf("%v, %q", err, h.judged)
	}
	w, err := a.WhoisToken(t.Context(), abcToken, "vdab")
	if err != nil || !w.Foreign || w.Incident != "2026-0008" || w.Holders == nil || h.judged != abcToken+" "+abc+" vdab" {
		t.Errorf("%+v, %v, %q", w, err, h.judged)
	}
	until(t, "the token is wiped", func() bool {
		return errors.Is(h.given.Use(func([]byte) error { return nil }), secret.ErrWiped)
	})
	if got := h.recorded(); len(got) != 2 || strings.Contains(strings.Join(got, ""), abc) {
		t.Errorf("recorded %q", got)
	}
	strict(t, ask(t, via(h.admin), "POST", "/v1/whois", `{"access_token":"abc","client":"vdab"}`, "Content-Type", jsonType).body, &client.Whois{})
	h.mu.Lock()
	h.fail, h.judged = errors.New("no space left"), ""
	h.mu.Unlock()
	if _, err := a.WhoisToken(t.Context(), abcToken, "vdab"); !errors.As(err, &p) || p.Code != client.AuditUnavailable || h.judged != "" {
		t.Errorf("%v: it is done unrecorded", err)
	}
	for _, body := range []string{`{"fingerprint":"` + abc + `","client":"vdab"}`, `{"access_token":"abc","client":"../x"}`, `{"access_token":"abc","client":7}`} {
		if got := ask(t, via(h.admin), "POST", "/v1/whois", body, "Content-Type", jsonType); got.status != 400 {
			t.Errorf("%s: %d", body, got.status)
		}
	}
}

// Judging is for people who look into something, and asking an issuer for those
// who operate.
func TestJudgeLimits(t *testing.T) {
	h := newHouse(t, nil)
	h.mu.Lock()
	h.unknown, h.roles = true, Roles{Observe: {{"them", 4242}}}
	h.mu.Unlock()
	whois := func(more string) (status int) {
		body := `{"access_token":"abc"` + more + `}`
		a, err := raw(t, h.admin, "POST /v1/whois HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body)
		if err != nil {
			t.Error(err)
		}
		return a.status
	}
	if !as(t, 4711, 4242, func() {
		if got := whois(`,"client":"vdab"`); got != http.StatusForbidden || h.judged != "" {
			t.Errorf("%d, %q", got, h.judged)
		}
		if !slices.Contains(h.recorded(), "denied POST /v1/whois client") {
			t.Errorf("%q", h.recorded())
		}
		var seen []int
		for range 22 {
			seen = append(seen, whois(""))
		}
		if seen[0] != http.StatusNotFound || !slices.Contains(seen, http.StatusTooManyRequests) {
			t.Errorf("%v", seen)
		}
	}) {
		return
	}
}
