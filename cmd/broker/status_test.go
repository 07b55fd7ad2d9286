package main

import (
	"bytes"
	"strings"
	"testing"

	"credentialbroker/api/client"
)

func TestStatusTells(t *testing.T) {
	ready := func(change func(*client.StatusClient)) client.StatusClient {
		c := client.StatusClient{Client: "mkp", Ready: true, Runway: 90}
		change(&c)
		return c
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
