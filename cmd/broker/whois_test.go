package main

import (
	"testing"

	"credentialbroker/api/client"
)

// A place is no process and no unit.
func TestHolder(t *testing.T) {
	for want, h := range map[string]client.Holder{
		"pid 7, uid 4294967290, unit a.service, token":        {PID: 7, UID: 1<<32 - 6, Unit: "a.service", Surface: "token"},
		"uid 4294967290, gid 33, at file /run/x/token, files": {UID: 1<<32 - 6, GID: 33, Place: "file /run/x/token", Surface: "files"},
		"uid 4294967290, at file /run/x/token, files":         {UID: 1<<32 - 6, GID: 1<<32 - 1, Place: "file /run/x/token", Surface: "files"},
		"uid 4294967290, at loopback 127.0.0.1:8085, token":   {UID: 1<<32 - 6, GID: 33, Place: "loopback 127.0.0.1:8085", Surface: "token"},
		"pid 0, uid 4294967290, unit a.service, token":        {UID: 1<<32 - 6, Unit: "a.service", Surface: "token"},
	} {
		if got := holder(h); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
