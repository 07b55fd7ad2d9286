package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/gate"
)

func TestRoles(t *testing.T) {
	roles := Roles{Observe: {{"watch", 10}}, Operate: {{"run", 20}}, Incident: {{"alarm", 30}}}
	me := uint32(os.Geteuid())
	for _, c := range []struct {
		caller *access.Caller
		has    []Role
	}{
		{&access.Caller{UID: 0}, []Role{Observe, Operate, Incident}},
		{&access.Caller{UID: me}, []Role{Observe, Operate, Incident}},
		{&access.Caller{UID: 0, Container: true}, nil},
		{&access.Caller{UID: 4711, Groups: []uint32{20}, Container: true}, nil},
		{&access.Caller{UID: 4711}, nil},
		{&access.Caller{UID: 4711, Groups: []uint32{9, 11}}, nil},
		{&access.Caller{UID: 4711, Groups: []uint32{10}}, []Role{Observe}},
		{&access.Caller{UID: 4711, Groups: []uint32{20}}, []Role{Observe, Operate}},
		{&access.Caller{UID: 4711, Groups: []uint32{30}}, []Role{Observe, Incident}},
	} {
		for _, role := range []Role{Observe, Operate, Incident} {
			if got := roles.has(c.caller, role); got != slices.Contains(c.has, role) {
				t.Errorf("%v has %s: %v", c.caller, role, got)
			}
		}
	}
	if got := roles.need(Observe); !strings.Contains(got, "(watch, run, alarm)") {
		t.Error(got)
	}
	if got := roles.need(Operate); !strings.Contains(got, "(run)") {
		t.Error(got)
	}
	if got := (Roles{}).need(Operate); !strings.Contains(got, "no group") {
		t.Error(got)
	}
}

func TestAdminAnswers(t *testing.T) {
	h := newHouse(t, nil)
	a := client.Admin{Socket: h.admin}
	ctx := t.Context()
	status, err := a.Status(ctx)
	if err != nil || status.Version != "test" || len(status.Clients) != 1 {
		t.Errorf("%+v, %v", status, err)
	}
	metrics, err := a.Metrics(ctx)
	if err != nil || string(metrics) != "up 1\n" {
		t.Errorf("%s, %v", metrics, err)
	}
	h.inner.Reload = func(_ context.Context, c *access.Caller) ([]client.Change, error) {
		return []client.Change{{What: "client vdab: allow entry 2 added", Wider: c != nil}}, nil
	}
	changes, err := a.Reload(ctx)
	if err != nil || len(changes) != 1 || !changes[0].Wider {
		t.Errorf("%v, %v", changes, err)
	}
	var findings []client.Finding
	for f, err := range a.Check(ctx) {
		if err != nil {
			t.Error(err)
		}
		findings = append(findings, f)
	}
	if len(findings) != 2 || findings[1].Target != "<corp>" {
		t.Errorf("%+v", findings)
	}
	out, err := a.Rotate(ctx, "vdab", client.Rotation{Accept: true})
	if err != nil || out.Version == "" {
		t.Errorf("%+v, %v", out, err)
	}
	if out, err := a.Retry(ctx, "vdab"); err != nil || out.Reason == "" {
		t.Errorf("%+v, %v", out, err)
	}
	var p *client.Problem
	if _, err := a.Retry(ctx, "noone"); !errors.As(err, &p) || p.Code != client.NotFound {
		t.Errorf("%v", err)
	}
	want := []string{"reload", "check", "rotate vdab", "retry vdab", "retry noone"}
	if got := h.recorded(); !slices.Equal(got, want) {
		t.Errorf("recorded %q, want %q", got, want)
	}
}

// What broker intake has stored itself is in the record of the act, and goes
// to the daemon.
func TestStoredByOperator(t *testing.T) {
	h := newHouse(t, nil)
	var got client.Rotation
	h.inner.Rotate = func(_ context.Context, _ string, r client.Rotation) (client.Outcome, error) {
		got = r
		return client.Outcome{Reason: "done"}, nil
	}
	a := client.Admin{Socket: h.admin}
	for i, r := range []client.Rotation{{Stored: "8", Fields: []string{"api_key", "client_id"}}, {}} {
		if _, err := a.Rotate(t.Context(), "vdab", r); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%+v, %v", got, err)
		}
		if told := h.told[i]; told["stored"] != r.Stored || told["fields"] != strings.Join(r.Fields, " ") || r.Stored == "" && len(told) != 3 {
			t.Errorf("recorded %v", told)
		}
	}
}

func TestReloadWithErrors(t *testing.T) {
	h := newHouse(t, nil)
	h.inner.Reload = func(context.Context, *access.Caller) ([]client.Change, error) {
		return nil, errors.New("broker.yaml:3:5: no such key\n  3 | provder: x")
	}
	a := client.Admin{Socket: h.admin}
	_, err := a.Reload(t.Context())
	var p *client.Problem
	if !errors.As(err, &p) || p.Code != client.InvalidConfiguration || p.Status != 422 || !strings.Contains(p.Detail, "\n  3 | provder: x") {
		t.Errorf("%+v", err)
	}
	h.inner.Reload = func(context.Context, *access.Caller) ([]client.Change, error) {
		return nil, &broker.Error{Code: client.Internal, Detail: "d"}
	}
	if _, err := a.Reload(t.Context()); !errors.As(err, &p) || p.Status != 500 {
		t.Errorf("%+v", err)
	}
}

// What cannot be recorded is not done.
func TestUnrecordedActsAreNotDone(t *testing.T) {
	h := newHouse(t, nil)
	done := false
	h.inner.Reload = func(context.Context, *access.Caller) ([]client.Change, error) { done = true; return nil, nil }
	h.mu.Lock()
	h.fail = errors.New("no space left")
	h.mu.Unlock()
	a := client.Admin{Socket: h.admin}
	var p *client.Problem
	if _, err := a.Reload(t.Context()); !errors.As(err, &p) || p.Code != client.AuditUnavailable || p.RetryAfter == 0 || done {
		t.Errorf("%v; done: %v", err, done)
	}
	for _, err := range a.Check(t.Context()) {
		if !errors.As(err, &p) || p.Code != client.AuditUnavailable {
			t.Errorf("%v", err)
		}
	}
	if _, err := a.Rotate(t.Context(), "vdab", client.Rotation{}); !errors.As(err, &p) || p.Code != client.AuditUnavailable {
		t.Errorf("%v", err)
	}
	// Looking is no act: it works, or nobody would find out what is wrong.
	if _, err := a.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAdminRefusals(t *testing.T) {
	h := newHouse(t, nil)
	c := via(h.admin)
	for _, x := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "/v1/reload", "{}", 400},
		{"POST", "/v1/reload?x=1", "", 400},
		{"GET", "/v1/reload", "", 405},
		{"POST", "/v1/clients/vdab/rotate", `{"accept":"yes"}`, 400},
		{"POST", "/v1/clients/vdab/rotate", `{"accept":true} {}`, 400},
		{"POST", "/v1/clients/vdab/rotate", `{"force":true}`, 400},
		{"POST", "/v1/clients/vdab/rotate", `{"Accept":true}`, 400},
		{"POST", "/v1/clients/vdab/rotate", `{"accept":null}`, 400},
		{"POST", "/v1/clients/vdab/rotate", `{"stored":"7 8"}`, 400},
		{"POST", "/v1/clients/vdab/rotate", `{"stored":7}`, 400},
		{"POST", "/v1/clients/vdab/rotate", `{"stored":"8","latest":true}`, 400},
		{"POST", "/v1/clients/vdab/rotate", `{"fields":["api_key"]}`, 400},
		{"POST", "/v1/clients/vdab/rotate", `{"stored":"8","fields":[]}`, 400},
		{"POST", "/v1/clients/vdab/rotate", `{"stored":"8","fields":null}`, 400},
		{"POST", "/v1/clients/vdab/rotate", `{"stored":"8","fields":["a secret"]}`, 400},
		{"POST", "/v1/clients/vdab/rotate", `{"stored":"8"}`, 200},
		{"POST", "/v1/clients/vdab/rotate", `{}`, 200},
		{"POST", "/v1/clients/vdab/rotate", "", 200},
		{"GET", "/v1/audit?last=-1", "", 400},
		{"GET", "/v1/audit?last=10001", "", 400},
		{"GET", "/v1/audit?follow=1", "", 400},
		{"GET", "/v1/audit/denied?since=yesterday", "", 400},
		{"GET", "/v1/audit/export?format=xml", "", 400},
		{"GET", "/v1/audit/export?to=1", "", 400},
		{"GET", "/v1/clients/vdab/token", "", 404},
		{"GET", "/healthz", "", 200},
	} {
		a := ask(t, c, x.method, x.path, x.body, "Content-Type", "application/json")
		if a.status != x.status {
			t.Errorf("%s %s: %d %s", x.method, x.path, a.status, a.body)
		}
	}
}

// A user without a role gets nothing but the way to one; a group gives it.
func TestAdminRolesOverTheSocket(t *testing.T) {
	h := newHouse(t, nil)
	request := func(method, path string) string {
		return method + " " + path + " HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n"
	}
	if !as(t, 4711, 4242, func() {
		a, err := raw(t, h.admin, request("POST", "/v1/reload"))
		if err != nil || a.status != 403 || !strings.Contains(a.body, "uid 4711") || !strings.Contains(a.body, "no group has the role operate") {
			t.Errorf("%+v, %v", a, err)
		}
		if a, err := raw(t, h.admin, request("GET", "/healthz")); err != nil || a.status != 200 {
			t.Errorf("%+v, %v", a, err)
		}
	}) {
		return
	}
	if got := h.recorded(); !slices.Equal(got, []string{"denied POST /v1/reload"}) {
		t.Errorf("%q", got)
	}
	h.mu.Lock()
	h.roles = Roles{Observe: {{"watch", 4242}}}
	h.mu.Unlock()
	as(t, 4711, 4242, func() {
		if a, err := raw(t, h.admin, request("GET", "/v1/status")); err != nil || a.status != 200 {
			t.Errorf("%+v, %v", a, err)
		}
		if a, err := raw(t, h.admin, request("POST", "/v1/reload")); err != nil || a.status != 403 {
			t.Errorf("%+v, %v", a, err)
		}
	})
}

func TestAuditOverTheSocket(t *testing.T) {
	h := newHouse(t, func(s *Server) { s.pools.admin = gate.New(gate.Limits{}, s.log) }) // it polls
	for range 3 {
		ask(t, h.http, "GET", "/v1/clients/vdab/token", "")
		ask(t, h.http, "GET", "/v1/clients/nothing/token", "")
	}
	a := client.Admin{Socket: h.admin}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	verdict, err := a.Verify(ctx)
	if err != nil || len(verdict.Problems) != 0 || verdict.Entries == 0 {
		t.Errorf("%+v, %v", verdict, err)
	}
	strict(t, ask(t, via(h.admin), "GET", "/v1/audit/verify", "").body, &client.Verdict{})

	until(t, "the denial is on record", func() bool {
		denials, err := a.Denied(ctx, time.Now().Add(-time.Hour))
		return err == nil && len(denials) == 1 && denials[0].Client == "nothing" && denials[0].Surface == "token" &&
			denials[0].Caller.UID == uint32(os.Getuid())
	})
	strict(t, ask(t, via(h.admin), "GET", "/v1/audit/denied?since=1h", "").body, &client.Denials{})
	if denials, err := a.Denied(ctx, time.Now().Add(time.Hour)); err != nil || len(denials) != 0 {
		t.Errorf("%+v, %v", denials, err)
	}

	var out bytes.Buffer
	if err := a.Export(ctx, &out, time.Time{}, time.Time{}, "json"); err != nil {
		t.Error(err)
	}
	onDisk, err := os.ReadFile(filepath.Join(h.dir, "audit", "00000001.jsonl"))
	if err != nil || !bytes.HasPrefix(onDisk, out.Bytes()[:out.Len()-1]) || out.Len() < 500 {
		t.Errorf("%v: exported\n%s\nand there is\n%s", err, out.Bytes(), onDisk)
	}
	out.Reset()
	if err := a.Export(ctx, &out, time.Now().Add(-time.Hour), time.Time{}, "csv"); err != nil || !strings.HasPrefix(out.String(), "seq,time,type") {
		t.Errorf("%s, %v", out.String(), err)
	}

	seen := map[string]bool{}
	for line, err := range a.Tail(ctx, 1000, true) {
		if err != nil {
			t.Fatal(err)
		}
		var e audit.Entry
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		if !seen[string(e.Type)] && e.Type == audit.TokenHandover {
			// One that is new while we follow.
			ask(t, h.http, "GET", "/v1/clients/vdab/api-key", "")
		}
		seen[string(e.Type)] = true
		if e.Type == audit.KeyHandover {
			break
		}
	}
	n := 0
	for range a.Tail(ctx, 2, false) {
		n++
	}
	if n != 2 {
		t.Errorf("%d of the last two entries", n)
	}
}

// Streams end when the server goes down.
func TestStreamsEndWithTheServer(t *testing.T) {
	h := newHouse(t, nil)
	resp, err := via(h.admin).Get("http://broker/v1/audit/follow?last=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	start := time.Now()
	if err := h.stop(); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Errorf("it does not end well: %v", err)
	}
	if took := time.Since(start); took > h.server.times.Drain/2 {
		t.Errorf("it took %v", took)
	}
}
