package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/broker"
)

// abc is the SHA-256 of "abc" (FIPS 180-2, appendix B.1), in base64url.
const abc = "ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0"

// What an administrator asks for arrives as it was asked, with who asks, and
// is recorded before it is done, without what somebody wrote.
func TestIncidentActs(t *testing.T) {
	h := newHouse(t, nil)
	a := client.Admin{Socket: h.admin}
	ctx := t.Context()
	whole := client.Declaration{Client: "vdab", Severity: "confirmed", What: []string{"client_secret", "host"}, Happened: "It stood\n\tin a \"log\" 🐚",
		Where: "w", FoundBy: "f", From: time.Date(2026, 11, 20, 13, 0, 0, 0, time.UTC), To: time.Date(2026, 11, 20, 14, 0, 0, 0, time.UTC),
		PersonalData: "no", Policy: "quarantine", As: "An, 02 000", Joins: "2026-0001@web2", NoMail: true, Language: "nl"}
	short := client.Declaration{Client: "vdab", Severity: "suspected", What: []string{"unknown"}, Happened: "h", Draft: "2026-0003"}
	plain := client.Declaration{Client: "vdab", Severity: "suspected", What: []string{"unknown"}, Happened: "h"}
	for _, x := range []struct {
		act    string
		do     func() (any, error)
		want   any
		detail map[string]string
	}{
		{"leak.declare vdab", func() (any, error) { return a.Declare(ctx, whole) }, whole, map[string]string{"incident": "2026-0001@web2"}},
		{"leak.declare vdab", func() (any, error) { return a.Declare(ctx, short) }, short, map[string]string{"incident": "2026-0003"}},
		{"leak.declare vdab", func() (any, error) { return a.Declare(ctx, plain) }, plain, nil},
		{"leak.release", func() (any, error) { return a.Release(ctx, "2026-0007@web1", client.IncidentRelease{}) }, "release", map[string]string{"incident": "2026-0007@web1"}},
		{"leak.close", func() (any, error) {
			return a.Close(ctx, "2026-0007", client.IncidentClose{OldStillValid: "two live", As: "An"})
		}, client.IncidentClose{OldStillValid: "two live", As: "An"}, map[string]string{"incident": "2026-0007"}},
		{"leak.drill vdab", func() (any, error) { return a.Drill(ctx, "vdab") }, "drill", nil},
		{"leak.evidence", func() (any, error) { return a.AddEvidence(ctx, "2026-0007", json.RawMessage(`{"x":1}`)) }, `{"x":1}`, map[string]string{"incident": "2026-0007"}},
	} {
		h.mu.Lock()
		h.acts, h.told, h.want, h.caller = nil, nil, nil, nil
		h.mu.Unlock()
		got, err := x.do()
		if err != nil || !reflect.DeepEqual(h.want, x.want) || !slices.Equal(h.recorded(), []string{x.act}) {
			t.Fatalf("%s: %+v, %v; the daemon was asked for %+v; recorded %q", x.act, got, err, h.want, h.recorded())
		}
		if !reflect.DeepEqual(h.told[0], x.detail) || h.caller == nil || int(h.caller.UID) != os.Geteuid() {
			t.Errorf("%s: recorded with %v, asked by %+v", x.act, h.told, h.caller)
		}
		h.mu.Lock()
		h.fail, h.want = errors.New("no space left"), nil
		h.mu.Unlock()
		var p *client.Problem
		if _, err := x.do(); !errors.As(err, &p) || p.Code != client.AuditUnavailable || h.want != nil {
			t.Errorf("%s: it is done unrecorded: %v", x.act, err)
		}
		h.mu.Lock()
		h.fail = nil
		h.mu.Unlock()
	}
}

// A dry run and looking need no record: they work when nothing can be recorded.
func TestIncidentLooks(t *testing.T) {
	h := newHouse(t, nil)
	h.mu.Lock()
	h.fail = errors.New("no space left")
	h.mu.Unlock()
	a := client.Admin{Socket: h.admin}
	ctx := t.Context()
	d := client.Declaration{Client: "vdab", Severity: "suspected", What: []string{"unknown"}, Happened: "h", DryRun: true}
	if i, err := a.Declare(ctx, d); err != nil || i.State != "open" || !reflect.DeepEqual(h.want, d) {
		t.Errorf("%+v, %v", i, err)
	}
	if list, err := a.Incidents(ctx); err != nil || list == nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if i, err := a.Incident(ctx, "2026-0007@web1"); err != nil || i.ID != "2026-0007" {
		t.Errorf("%v, %v", i, err)
	}
	if e, err := a.Evidence(ctx, "2026-0007"); err != nil || string(e) != `{"format":1}` {
		t.Errorf("%s, %v", e, err)
	}
	if w, err := a.Whois(ctx, abc); err != nil || w.Client != "vdab" || h.want != abc || w.Holders == nil {
		t.Errorf("%+v, %v", w, err)
	}
	var p *client.Problem
	if _, err := a.Incident(ctx, "2026-0008"); !errors.As(err, &p) || p.Code != client.NotFound {
		t.Error(err)
	}
	if got := h.recorded(); len(got) != 0 {
		t.Errorf("recorded %q", got)
	}
	strict(t, ask(t, via(h.admin), "GET", "/v1/incidents", "").body, &client.Incidents{})
	strict(t, ask(t, via(h.admin), "GET", "/v1/incidents/2026-0007", "").body, &client.Incident{})
	strict(t, ask(t, via(h.admin), "POST", "/v1/whois", `{"access_token":"abc"}`, "Content-Type", jsonType).body, &client.Whois{})
	if h.want != abc {
		t.Errorf("the token came as %v", h.want)
	}
}

func TestIncidentRefusals(t *testing.T) {
	h := newHouse(t, nil)
	c := via(h.admin)
	evidence := func(n int) string { return `{"x":"` + strings.Repeat("y", n-8) + `"}` }
	for _, x := range []struct {
		method, path, body string
		status             int
		detail             string
	}{
		{"POST", "/v1/incidents", "", 400, "the body has to be a JSON object"},
		{"POST", "/v1/incidents?dry_run=true", `{}`, 400, "takes no parameters"},
		{"GET", "/v1/incidents?state=open", "", 400, "takes no parameters"},
		{"GET", "/v1/incidents", "{}", 400, "has no body"},
		{"PUT", "/v1/incidents", "", 405, "GET, POST"},
		{"GET", "/v1/incidents/2026-0007", "", 200, ""},
		{"GET", "/v1/incidents/2026-0007%40web1", "", 200, ""},
		{"GET", "/v1/incidents/2026-7", "", 400, "2026-0007@web1"},
		{"GET", "/v1/incidents/2026-0007@", "", 400, "2026-0007@web1"},
		{"GET", "/v1/incidents/..%2Fx", "", 404, ""},
		{"GET", "/v1/incidents/2026-0007?x", "", 400, "takes no parameters"},
		{"POST", "/v1/incidents/2026-0007", "", 405, "GET"},
		{"POST", "/v1/incidents/2026-0007/release", `{"new_secret_confirmed": "yes"}`, 400, "new_secret_confirmed is true or false"},
		{"POST", "/v1/incidents/2026-0007/release", `{"new_secret_confirmed": true}`, 200, ""},
		{"POST", "/v1/incidents/2026-0007/release", "", 200, ""},
		{"POST", "/v1/incidents/2026-0008/release", "", 404, ""},
		{"GET", "/v1/incidents/2026-0007/release", "", 405, "POST"},
		{"POST", "/v1/incidents/2026-0007/close", "", 200, ""},
		{"POST", "/v1/incidents/2026-0007/close", "{}", 200, ""},
		{"POST", "/v1/incidents/2026-0007/close", `{"old_still_valid":true}`, 400, "old_still_valid"},
		{"POST", "/v1/incidents/2026-0007/close", `{"told_by_hand":["a@b"]}`, 400, "told_by_hand is an object"},
		{"POST", "/v1/incidents/2026-0007/close", `{"told_by_hand":{"a@b":7}}`, 400, "how somebody was told"},
		{"POST", "/v1/incidents/2026-0007/close", `{"reason":"x"}`, 400, "not known"},
		{"POST", "/v1/incidents/2026-0007/close", `{"as":"x","as":"y"}`, 400, "twice"},
		{"POST", "/v1/incidents/2026-0007/close", `{"old_still_valid":"` + strings.Repeat("x", 2001) + `"}`, 400, "2000 bytes"},
		{"POST", "/v1/clients/vdab/drill", "{}", 400, "has no body"},
		{"POST", "/v1/clients/vdab/drill", "", 200, ""},
		{"POST", "/v1/clients/noone/drill", "", 404, ""},
		{"POST", "/v1/incidents/2026-0007/evidence", "", 400, "JSON"},
		{"POST", "/v1/incidents/2026-0007/evidence", `[]`, 400, "JSON object"},
		{"POST", "/v1/incidents/2026-0007/evidence", `null`, 400, "JSON object"},
		{"POST", "/v1/incidents/2026-0007/evidence", `{} {}`, 400, "JSON object"},
		{"POST", "/v1/incidents/2026-0007/evidence?x=1", `{}`, 400, "takes no parameters"},
		{"POST", "/v1/incidents/2026-0007/evidence", evidence(1 << 20), 200, ""},
		{"POST", "/v1/incidents/2026-0007/evidence", evidence(1<<20 + 1), 400, "larger than 1024 KiB"},
		{"POST", "/v1/whois", evidence(64<<10 + 1), 400, "larger than 64 KiB"},
		{"POST", "/v1/whois", "", 400, "JSON"},
		{"GET", "/v1/whois", "", 405, "POST"},
		{"POST", "/v1/whois", `{"access_token":"personal x"}`, 400, "printable ASCII"},
		{"POST", "/v1/whois", `{"fingerprint":"personal"}`, 400, "43 characters"},
		{"POST", "/v1/whois", `{"fingerprint":"` + abc + `","access_token":"personal"}`, 400, "one of"},
		{"POST", "/v1/whois", `{}`, 400, "one of"},
		{"POST", "/v1/whois", `{"fingerprint":"` + abc + `"}`, 200, ""},
	} {
		a := ask(t, c, x.method, x.path, x.body, "Content-Type", jsonType)
		if a.status != x.status || !strings.Contains(a.body, x.detail) || strings.Contains(a.body, "personal") {
			t.Errorf("%s %s %.60s: %d %.200s", x.method, x.path, x.body, a.status, a.body)
		}
	}
}

func TestParseDeclaration(t *testing.T) {
	with := func(more string) string {
		return `{"client":"vdab","severity":"suspected","what":["token"],"happened":"personal"` + more + `}`
	}
	long := strings.Repeat("é", 1000)
	for body, want := range map[string]string{
		with(""):                            "",
		with(`,"where":"` + long + `"`):     "",
		with(`,"where":"` + long + `x"`):    "where",
		with(`,"as":"a\u0000"`):             "as is a string",
		with(`,"as":"a\u0085"`):             "as is a string",
		with(`,"as":"a\r\n"`):               "as is a string",
		with(`,"found_by":null`):            "found_by",
		with(",\"found_by\":\"\xff\""):      "found_by",
		with(`,"happened":"personal"`):      "twice",
		with(`,"h\u0061ppened":"personal"`): "twice",
		with(`,"personal":1`):               "not known",
		with(`,"Where":"x"`):                "not known",
		with(`,"what":["token"]`):           "twice",
		with(`,"policy":"none"`):            "keep-serving",
		with(`,"policy":""`):                "keep-serving",
		with(`,"policy":"rotate"`):          "",
		with(`,"language":"fr"`):            "nl, en",
		with(`,"personal_data":"maybe"`):    "yes, no",
		with(`,"from":"yesterday"`):         "RFC 3339",
		with(`,"from":7`):                   "RFC 3339",
		with(`,"from":"2026-11-21T03:00:00+01:00","to":"2026-11-21T02:00:00Z"`):                   "",
		with(`,"from":"2026-11-21T03:00:00Z","to":"2026-11-21T02:00:00Z"`):                        "to lies before from",
		with(`,"joins":"2026-0007"`):                                                              "joins is an incident",
		with(`,"joins":"2026-0007@we b"`):                                                         "joins is an incident",
		with(`,"joins":"2026-0007@web1"`):                                                         "",
		with(`,"draft":"2026-07"`):                                                                "draft is an incident",
		with(`,"draft":"2026-0007"`):                                                              "",
		with(`,"no_mail":"yes"`):                                                                  "no_mail is true or false",
		with(`,"dry_run":1`):                                                                      "dry_run is true or false",
		`{"severity":"suspected","what":["token"],"happened":"personal"}`:                         "client",
		`{"client":"a/b","severity":"suspected","what":["token"],"happened":"personal"}`:          "client",
		`{"client":"vdab","what":["token"],"happened":"personal"}`:                                "suspected, confirmed",
		`{"client":"vdab","severity":"suspected","happened":"personal"}`:                          "what is a list",
		`{"client":"vdab","severity":"suspected","what":[],"happened":"personal"}`:                "what is a list",
		`{"client":"vdab","severity":"suspected","what":"token","happened":"personal"}`:           "what is a list",
		`{"client":"vdab","severity":"suspected","what":["token","token"],"happened":"personal"}`: "what is a list",
		`{"client":"vdab","severity":"suspected","what":["personal"],"happened":"x"}`:             "what is a list",
		`{"client":"vdab","severity":"suspected","what":["token"]}`:                               "happened is missing",
		`{"client":"vdab","severity":"suspected","what":["token"],"happened":" \n"}`:              "happened is missing",
		`[]`: "JSON object", `null`: "JSON object", `{} {}`: "JSON object",
	} {
		in := []byte(body)
		_, err := parseDeclaration(in)
		var e *broker.Error
		if (err == nil) != (want == "") || err != nil && (!errors.As(err, &e) || e.Code != client.InvalidRequest || !strings.Contains(e.Detail, want) || strings.Contains(e.Detail, `"personal"`)) {
			t.Errorf("%.120s: %v, want %q", body, err, want)
		}
		if strings.Trim(string(in), "\x00") != "" {
			t.Errorf("%.80s: the body is not wiped", body)
		}
	}
}

func FuzzParseDeclaration(f *testing.F) {
	f.Add([]byte(`{"client":"vdab","severity":"suspected","what":["token"],"happened":"h\u0061","to":"2026-11-21T03:00:00Z"}`))
	f.Add([]byte(`{"a":{"b":[":"]},"c\"":":"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		d, err := parseDeclaration(slices.Clone(body))
		if err != nil {
			return
		}
		// What is accepted is written and read again as it is.
		again, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		back, err := parseDeclaration(again)
		if err != nil || !d.From.Equal(back.From) || back.Happened != d.Happened || !slices.Equal(back.What, d.What) {
			t.Errorf("%q is read as %+v, then as %+v, %v", body, d, back, err)
		}
	})
}

func TestValidIncident(t *testing.T) {
	for id, want := range map[string]bool{
		"2026-0007": true, "2026-123456789": true, "2026-0007@web1": true, "2026-0007@Web-1.corp_x.example": true,
		"": false, "2026": false, "2026-007": false, "26-0007": false, "2026-1234567890": false, "2026-00a7": false, "2026-0007 ": false,
		"2026-0007@": false, "2026-0007@-x": false, "2026-0007@.x": false, "2026-0007@a b": false, "2026-0007@a@b": false, "2026-0007@é": false,
		"2026-0007@" + strings.Repeat("x", 253): true, "2026-0007@" + strings.Repeat("x", 254): false,
	} {
		if got := validIncident(id); got != want {
			t.Errorf("%s: %v", id, got)
		}
	}
}

// A role is needed for each; what has personal data needs incident.
func TestIncidentRoles(t *testing.T) {
	h := newHouse(t, nil)
	type call struct {
		method, path string
		watcher      int // with the role observe
	}
	calls := []call{{"GET", "/v1/incidents", 200}, {"POST", "/v1/whois", 400}, {"POST", "/v1/incidents", 403}, {"GET", "/v1/incidents/2026-0007", 403},
		{"POST", "/v1/incidents/2026-0007/release", 403}, {"POST", "/v1/incidents/2026-0007/close", 403}, {"GET", "/v1/incidents/2026-0007/evidence", 403},
		{"POST", "/v1/incidents/2026-0007/evidence", 403}, {"POST", "/v1/clients/vdab/drill", 403}}
	for _, role := range []Role{"", Operate, Observe, Incident} {
		h.mu.Lock()
		h.roles, h.acts = Roles{role: {{"them", 4242}}}, nil
		h.mu.Unlock()
		for _, x := range calls {
			if !as(t, 4711, 4242, func() {
				a, err := raw(t, h.admin, x.method+" "+x.path+" HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n")
				refused := role == "" || role != Incident && x.watcher == 403
				if err != nil || (a.status == http.StatusForbidden) != refused {
					t.Errorf("%s %s as %s: %d %s, %v", x.method, x.path, role, a.status, a.body, err)
				}
				// An incident is no client.
				if want := map[bool]string{true: "vdab"}[strings.Contains(x.path, "vdab")]; refused && h.want != want {
					t.Errorf("%s %s: denied of client %v", x.method, x.path, h.want)
				}
			}) {
				return
			}
		}
		if role == Observe && !slices.Contains(h.recorded(), "denied POST /v1/incidents/{incident}/release") {
			t.Errorf("%q", h.recorded())
		}
	}
}
