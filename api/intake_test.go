package api

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"credentialbroker/api/client"
	"credentialbroker/internal/secret"
)

// Values arrive as they were sent, their names alone are recorded, before
// anything is done, and they are wiped.
func TestIntake(t *testing.T) {
	h := newHouse(t, nil)
	a := client.Admin{Socket: h.admin}
	values := func() map[string][]byte {
		return map[string][]byte{"client_id": []byte("an-id"), "api_key": []byte("se\"cr\\et \n é")}
	}
	got, err := a.Intake(t.Context(), "vdab", values(), true)
	if err != nil || got.Proved != "mint" || h.want != true {
		t.Errorf("%+v, %v; accept %v", got, err, h.want)
	}
	if !slices.Equal(h.recorded(), []string{"intake vdab"}) || h.told[0]["fields"] != "api_key client_id" || h.told[0]["accept"] != "true" || len(h.told[0]) != 2 {
		t.Errorf("recorded %q with %v", h.recorded(), h.told)
	}
	for name, v := range values() {
		if !h.brought[name].Equal(secret.New(v)) {
			t.Errorf("%s does not arrive as it is", name)
		}
	}
	until(t, "they are wiped", func() bool {
		return errors.Is(h.given.Use(func([]byte) error { return nil }), secret.ErrWiped)
	})
	var p *client.Problem
	if _, err := a.Intake(t.Context(), "noone", values(), false); !errors.As(err, &p) || p.Code != client.NotFound {
		t.Errorf("of a client that there is not: %v", err)
	}
	h.mu.Lock()
	h.fail, h.want = errors.New("no space left"), nil
	h.mu.Unlock()
	if _, err := a.Intake(t.Context(), "vdab", values(), false); !errors.As(err, &p) || p.Code != client.AuditUnavailable || h.want != nil {
		t.Errorf("it is done unrecorded: %v", err)
	}
}

func TestIntakeRefusals(t *testing.T) {
	h := newHouse(t, nil)
	c := via(h.admin)
	const canary = "canary-58f21"
	many := ""
	for i := range 17 {
		many += `"` + strings.Repeat("a", i+1) + `":"v",`
	}
	for _, x := range []struct {
		body   string
		status int
		detail string
	}{
		{`{"fields":{"api_key":"` + canary + `"}}`, 200, ""},
		{`{"fields":{"api_key":"` + strings.Repeat("x", 8192) + `"},"accept":false}`, 200, ""},
		{``, 400, "as JSON"},
		{`{}`, 400, "1 to 16"},
		{`{"fields":{}}`, 400, "1 to 16"},
		{`{"fields":null}`, 400, "1 to 16"},
		{`{"fields":["` + canary + `"]}`, 400, "1 to 16"},
		{`{"fields":{` + strings.TrimSuffix(many, ",") + `}}`, 400, "1 to 16"},
		{`{"fields":{"` + canary + `":"v"}}`, 400, "a to z"},
		{`{"fields":{"":"` + canary + `"}}`, 400, "a to z"},
		{`{"fields":{"api_key":""}}`, 400, "1 to 8192"},
		{`{"fields":{"api_key":7}}`, 400, "1 to 8192"},
		{`{"fields":{"api_key":"` + strings.Repeat("x", 8193) + `"}}`, 400, "1 to 8192"},
		{`{"fields":{"api_key":"` + canary + `"},"accept":"true"}`, 400, "true or false"},
		{`{"fields":{"api_key":"` + canary + `"},"password":"x"}`, 400, "not known"},
		{`{"fields":{"api_key":"` + canary + `"`, 400, "JSON object"},
	} {
		kind := "application/json"
		if x.body == "" {
			kind = "text/plain"
		}
		h.mu.Lock()
		h.acts = nil
		h.mu.Unlock()
		got := ask(t, c, http.MethodPost, "/v1/clients/vdab/intake", x.body, "Content-Type", kind)
		if got.status != x.status || !strings.Contains(got.body, x.detail) || strings.Contains(got.body, canary) {
			t.Errorf("%.80s: %d %s", x.body, got.status, got.body)
		}
		if recorded := len(h.recorded()) > 0; recorded != (x.status == 200) {
			t.Errorf("%.80s: recorded: %v", x.body, recorded)
		}
	}
	if log := h.log.String(); strings.Contains(log, canary) {
		t.Error(log)
	}
}
