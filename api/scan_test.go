package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/scan"
)

// An administrator's scanner finds a client's secret through the socket; the
// daemon wipes what it was shown.
func TestScan(t *testing.T) {
	h := newHouse(t, nil)
	if got := ask(t, h.http, http.MethodGet, "/v1/clients/vdab/token", ""); got.status != 200 {
		t.Fatal(got.body)
	}
	a := client.Admin{Socket: h.admin}
	begun, err := a.Scan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var filter scan.Filter
	if err := json.Unmarshal(begun.Filter, &filter); err != nil || len(filter.Classes) == 0 {
		t.Fatalf("%v, %d classes", err, len(filter.Classes))
	}
	before := strings.Repeat(" ", filter.Before)
	text := before + theSecret + strings.Repeat(" ", filter.After)
	list := []client.ScanCandidate{{At: 0, Text: []byte("nothing of ours")}}
	for i := range 8 { // one of them is a window of the value, wherever that is
		list = append(list, client.ScanCandidate{At: len(before) + i, Text: []byte(text)})
	}
	matches, err := a.ConfirmScan(t.Context(), list)
	if err != nil || len(matches) != len(list) || len(matches[0]) != 0 {
		t.Fatalf("%v, %v", matches, err)
	}
	// Both clients have the secret, and so both are told.
	found := slices.DeleteFunc(slices.Concat(matches...), func(m client.ScanMatch) bool { return m.Client == "other" })
	if len(found) == 0 {
		t.Fatal("it is not found")
	}
	if m := found[0]; m.Client != "vdab" || m.Field != "client_secret" || m.Form != scan.Clear || m.Retired || m.Start != len(before) || m.End-m.Start != len(theSecret) {
		t.Errorf("%+v", m)
	}
	h.mu.Lock()
	for _, c := range h.candidates {
		if len(bytes.Trim(c.Text, "\x00")) > 0 {
			t.Error("a text is not wiped")
		}
	}
	if len(h.candidates) != len(list) {
		t.Errorf("%d candidates arrived", len(h.candidates))
	}
	h.mu.Unlock()
	if got := h.recorded(); !slices.Equal(got, []string{"scan"}) {
		t.Errorf("recorded %q", got)
	}
	until(t, "the alarm is recorded", func() bool {
		for e, err := range audit.Read(filepath.Join(h.dir, "audit"), 0) {
			if err == nil && e.Type == audit.SecretFound && e.Client == "vdab" && e.Actor.UID == uint32(os.Getuid()) {
				return true
			}
		}
		return false
	})
	h.mu.Lock()
	h.fail = errors.New("no space left")
	h.mu.Unlock()
	var p *client.Problem
	if _, err := a.Scan(t.Context()); !errors.As(err, &p) || p.Code != client.AuditUnavailable {
		t.Errorf("it is done unrecorded: %v", err)
	}
}

func TestScanRefusals(t *testing.T) {
	h := newHouse(t, nil)
	c := via(h.admin)
	const canary = "canary-58f21"
	one := func(at, text string) string { return `{"at":` + at + `,"text":"` + text + `"}` }
	good := one("3", base64.StdEncoding.EncodeToString([]byte(canary)))
	for _, x := range []struct {
		body   string
		status int
		detail string
	}{
		{`{"candidates":[` + good + `]}`, 200, `"matches":[[]]`},
		{`{"candidates":[` + strings.Repeat(good+",", 63) + good + `]}`, 200, ""},
		{`{"candidates":[` + strings.Repeat(good+",", 64) + good + `]}`, 400, "1 to 64"},
		{``, 400, "as JSON"},
		{`{}`, 400, "1 to 64"},
		{`{"candidates":[]}`, 400, "1 to 64"},
		{`{"candidates":"` + canary + `"}`, 400, "1 to 64"},
		{`{"candidates":["` + canary + `"]}`, 400, "JSON object"},
		{`{"candidates":[` + one("12", "Y2FuYXJ5LTU4ZjIx") + `]}`, 400, "a place in the text"},
		{`{"candidates":[` + one("-1", "Y2FuYXJ5LTU4ZjIx") + `]}`, 400, "a place in the text"},
		{`{"candidates":[` + one(`"1"`, "Y2FuYXJ5LTU4ZjIx") + `]}`, 400, "a place in the text"},
		{`{"candidates":[{"text":"Y2FuYXJ5LTU4ZjIx"}]}`, 400, "a place in the text"},
		{`{"candidates":[` + one("0", canary) + `]}`, 400, "base64"},
		{`{"candidates":[` + one("0", "") + `]}`, 400, "base64"},
		{`{"candidates":[{"at":0}]}`, 400, "base64"},
		{`{"candidates":[{"at":0,"text":"YQ==","` + canary + `":1}]}`, 400, "not known"},
		{`{"candidates":[` + good + `],"why":"` + canary + `"}`, 400, "not known"},
		{`{"candidates":[` + one("0", strings.Repeat("YQYQ", 64<<10)) + `]}`, 400, "256 KiB"},
	} {
		kind := "application/json"
		if x.body == "" {
			kind = "text/plain"
		}
		got := ask(t, c, http.MethodPost, "/v1/scan/confirm", x.body, "Content-Type", kind)
		if got.status != x.status || !strings.Contains(got.body, x.detail) || strings.Contains(got.body, canary) {
			t.Errorf("%.80s: %d %s", x.body, got.status, got.body)
		}
	}
	if got := ask(t, c, http.MethodPost, "/v1/scan", `{}`, "Content-Type", "application/json"); got.status != 400 {
		t.Errorf("a body where none belongs: %d", got.status)
	}
	if log := h.log.String(); strings.Contains(log, canary) {
		t.Error(log)
	}
}

// Nobody searches for a value by asking: places are counted for each user, and
// new connections do not help.
func TestScanIsRateLimited(t *testing.T) {
	h := newHouse(t, nil)
	var list []client.ScanCandidate
	for i := range client.MaxScanCandidates {
		list = append(list, client.ScanCandidate{Text: fmt.Appendf(nil, "guess %d", i)})
	}
	asked := 0
	for {
		a := client.Admin{Socket: h.admin}
		_, err := a.ConfirmScan(t.Context(), list)
		var p *client.Problem
		if errors.As(err, &p) && p.Code == client.RateLimited {
			if p.Status != 429 || p.RetryAfter < 1 || p.RetryAfter > 2 {
				t.Errorf("%+v", p)
			}
			break
		}
		if asked += len(list); err != nil || asked > 4000 {
			t.Fatalf("%d places: %v", asked, err)
		}
	}
	if asked < 1900 {
		t.Errorf("only %d places", asked)
	}
	a := client.Admin{Socket: h.admin} // other requests are not held up
	if _, err := a.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// Nor by dry runs of declarations, which say whether a text holds a secret.
func TestDryRunIsRateLimited(t *testing.T) {
	h := newHouse(t, nil)
	text := strings.Repeat("guess ", 300)
	d := client.Declaration{Client: "vdab", Severity: "confirmed", What: []string{"unknown"}, Happened: text, Where: text, FoundBy: text, As: text, DryRun: true}
	asked := 0
	for ; asked < 40; asked++ {
		a := client.Admin{Socket: h.admin}
		_, err := a.Declare(t.Context(), d)
		var p *client.Problem
		if errors.As(err, &p) && p.Code == client.RateLimited {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if asked < 2 || asked > 10 {
		t.Errorf("%d dry runs", asked)
	}
	d.DryRun = false // nothing holds a declaration up
	a := client.Admin{Socket: h.admin}
	if _, err := a.Declare(t.Context(), d); err != nil {
		t.Error(err)
	}
}
