package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
)

func TestStatusTells(t *testing.T) {
	ready := func(change func(*client.StatusClient)) client.StatusClient {
		c := client.StatusClient{Client: "mkp", Ready: true, Runway: 90}
		change(&c)
		return c
	}
	// A daemon names steps once the secret is due.
	aged := func(days int64, unknown bool) client.StatusClient {
		return ready(func(c *client.StatusClient) {
			c.Version, c.Age, c.MaxAge = "7", days*86400, 365*86400
			if !unknown {
				c.Due = time.Date(2027, 11, 21, 9, 0, 0, 0, time.UTC)
			}
			if days > 292 {
				c.Steps = []string{"ask for one", "store it"}
			}
		})
	}
	for _, x := range []struct {
		client client.StatusClient
		code   int
		check  string // in the line for monitoring
		shown  string // in the table's remarks
	}{
		{ready(func(*client.StatusClient) {}), 0, "", ""},
		{ready(func(c *client.StatusClient) { c.APIKey = "unproved" }), 0, "", "mkp: API key: unproved"},
		{ready(func(c *client.StatusClient) { c.APIKey = "probed OK at 2026-11-21T09:00:00Z" }), 0, "", "mkp: API key: probed OK at 2026"},
		{ready(func(c *client.StatusClient) { c.APIKey = "rejected by 3 callers, last at x" }), 1, "the API key was rejected by 3 callers", "mkp: API key: rejected by 3 callers"},
		{ready(func(c *client.StatusClient) { c.Candidate, c.Waiting = "4", "the issuer has refused it" }), 1, "mkp: version 4 waits: the issuer has refused it", "mkp: version 4 waits: the issuer has refused it"},
		{ready(func(c *client.StatusClient) { c.Candidate = "4" }), 1, "mkp: version 4 waits: it has not been tried yet", "mkp: version 4 waits: it has not"},
		{ready(func(c *client.StatusClient) { c.Version, c.Pinned = "2", "2" }), 0, "", "mkp: version 2 is pinned: broker rotate --latest mkp lets go"},
		{ready(func(c *client.StatusClient) { c.Login = &client.LoginStatus{State: "ok"} }), 0, "", ""},
		{ready(func(c *client.StatusClient) { c.Login = &client.LoginStatus{State: "required"} }), 1, "run broker login mkp", "mkp: login required: run broker login mkp"},
		{ready(func(c *client.StatusClient) { c.Login = &client.LoginStatus{State: "pending"} }), 1, "sealed on this host", "mkp: login pending: the newest"},
		{ready(func(c *client.StatusClient) {
			c.Ready, c.Code, c.Reason = false, client.LoginRequired, "the user has revoked the access: run broker login mkp"
			c.Login = &client.LoginStatus{State: "required", Reason: c.Reason}
		}), 2, "mkp: the user has revoked the access", "mkp: login required: the user has revoked"},
		{ready(func(c *client.StatusClient) {
			c.Tokens = []client.TokenStatus{{Scope: "a", Granted: "a"}, {Scope: "a b", Granted: "a", Narrowed: true}, {Scope: "c", Narrowed: true}}
		}), 1, "mkp: scope: asked for a b, granted a; mkp: scope: asked for c, granted none", "mkp: scope: asked for a b, granted a"},
		{ready(func(c *client.StatusClient) {
			c.DegradedUntil, c.DegradedReason, c.KeepError = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC), "its manager is down", "old"
			c.Source = client.SourceStatus{State: "failing", Reason: "no answer"}
		}), 1, "mkp: DEGRADED until 2026-11-22T09:00:00Z at most: its manager is down", "mkp: DEGRADED until 2026-11-22T09:00:00Z at most: its manager is down"},
		{ready(func(c *client.StatusClient) { c.DegradedUntil = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC) }), 1, "mkp: DEGRADED", "mkp     DEGRADED  1m30s"},
		{ready(func(c *client.StatusClient) {
			c.Ready, c.Code, c.Reason = false, client.ProviderUnavailable, "its copy has run out"
			c.DegradedUntil, c.DegradedReason = time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC), c.Reason
		}), 2, "mkp: its copy has run out", "mkp: its copy has run out"},
		{ready(func(c *client.StatusClient) { c.Kept = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC) }), 0, "", ""},
		{ready(func(c *client.StatusClient) { c.KeepError = "the disk is full" }), 1, "mkp: no copy for a start in an outage: the disk is full", "mkp: no copy for a start in an outage: the disk is full"},
		{aged(100, false), 0, "", "mkp: the secret is due on 2027-11-21\n"},
		{aged(292, false), 0, "", "mkp: the secret is due on 2027-11-21\n"}, // 80 % to the day
		{aged(293, false), 1, "the secret is 293 days old and due in 72 days, on 2027-11-21", "  2. store it"},
		{aged(364, false), 1, "due in 24 hours, on 2027", "  1. ask for one"},
		{aged(365, false), 2, "365 days old, 365 days are allowed", "  1. ask for one"},
		{aged(366, false), 2, "the secret is 366 days old, 365 days are allowed: it was due on 2027-11-21", "mkp: to replace the secret:\n  1. ask for one\n  2. store it"},
		{aged(0, true), 1, "max_age cannot be watched", "age is not known"},
		{ready(func(c *client.StatusClient) { c.Age = 3 * 86400 }), 0, "", ""}, // without a limit it is in the table alone
	} {
		st := &client.Status{Audit: client.AuditStatus{Healthy: true}, Clients: []client.StatusClient{x.client}}
		code, problems := judge(st)
		text := strings.Join(problems, "; ")
		if code != x.code || !strings.Contains(text, x.check) || (x.check == "") != (text == "") {
			t.Errorf("%+v: %d %s", x.client, code, text)
		}
		var out bytes.Buffer
		if err := printStatus(&out, st); err != nil || !strings.Contains(out.String(), x.shown) || x.shown == "" && strings.Contains(out.String(), "mkp: ") {
			t.Errorf("%+v: %v\n%s", x.client, err, out.String())
		}
	}
}

// An incident that is not closed is seen by whoever looks, and by monitoring.
func TestStatusTellsIncidents(t *testing.T) {
	since := time.Date(2026, 11, 20, 13, 0, 0, 0, time.UTC)
	for _, x := range []struct {
		line client.IncidentLine
		code int
		text string
	}{
		{client.IncidentLine{ID: "2026-0007", State: "open", Client: "mkp", Since: since}, 1, "mkp: incident 2026-0007 is open since 2026-11-20T13:00:00Z: broker leak show 2026-0007"},
		{client.IncidentLine{ID: "2026-0007", State: "draft", Client: "mkp", Since: since}, 1, "mkp: the daemon suspects a leak, incident 2026-0007, since 2026-11-20T13:00:00Z: broker leak show 2026-0007"},
		{client.IncidentLine{ID: "2026-0007", State: "open", Client: "mkp", Undelivered: 1}, 2, "HAS NOT REACHED 1 recipient: broker leak show 2026-0007"},
		{client.IncidentLine{ID: "2026-0007", State: "closed", Client: "mkp", Undelivered: 1}, 2, "HAS NOT REACHED 1 recipient: broker leak show 2026-0007"},
		{client.IncidentLine{ID: "2026-0007", State: "damaged", Undelivered: 2}, 2, "THE REPORT of incident 2026-0007 HAS NOT REACHED 2 recipients, and its record cannot be read"},
		{client.IncidentLine{ID: "2026-0007", State: "draft", Client: "mkp", Undelivered: 2}, 2, "HAS NOT REACHED 2 recipients: broker leak show 2026-0007"},
	} {
		st := &client.Status{Audit: client.AuditStatus{Healthy: true}, Incidents: []client.IncidentLine{x.line}}
		code, problems := judge(st)
		var out bytes.Buffer
		if err := printStatus(&out, st); err != nil || code != x.code || !strings.Contains(strings.Join(problems, ""), x.text) || !strings.Contains(out.String(), x.text) {
			t.Errorf("%+v: %d %q, %v\n%s", x.line, code, problems, err, out.String())
		}
	}
}
