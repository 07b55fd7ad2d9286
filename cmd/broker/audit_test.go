package main

import (
	"bytes"
	"strings"
	"testing"

	"credentialbroker/api/client"
)

// What is proposed allows what was asked for, and nothing beside it.
func TestDenialProposes(t *testing.T) {
	nobody := client.DeniedCaller{UID: 4_000_000}
	unit := client.DeniedCaller{UID: 4_000_000, Unit: "feed.service"}
	for _, c := range []struct {
		denial client.Denial
		want   string
	}{
		{client.Denial{Client: "vdab", Surface: "token", Code: "identity", Caller: nobody}, `- { user: "4000000", surfaces: [token, headers] }`},
		{client.Denial{Client: "vdab", Surface: "proxy", Code: "surface", Caller: unit}, `- { unit: feed.service, user: "4000000", surfaces: [proxy] }`},
		{client.Denial{Client: "vdab", Surface: "api-key", Code: "surface", Caller: nobody}, `surfaces: [api-key] }`},
		{client.Denial{Client: "vdab", Surface: "credential", Code: "restart", Caller: client.DeniedCaller{Unit: "feed.service"}}, `- { unit: feed.service, surfaces: [credential], restart: true }`},
		{client.Denial{Surface: "GET /v1/status", Code: "role", Caller: nobody}, "was refused GET /v1/status 0 times"},
	} {
		var out bytes.Buffer
		printDenial(&out, c.denial)
		if !strings.Contains(out.String(), c.want) {
			t.Errorf("%s\nhas no %q", out.String(), c.want)
		}
	}
}
