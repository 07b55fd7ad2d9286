package main

import (
	"testing"

	"credentialbroker/configs"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/rotation"
)

// What an administrator may have to see to is in the status.
func TestStatusOfVersions(t *testing.T) {
	s := &server{clock: clock.System{}}
	c := broker.ClientStatus{}
	c.Credential = rotation.Status{Version: "2", Pinned: "2", Candidate: "4", Waiting: "it lacks api_key"}
	if got := s.clientStatus(c, configs.Client{}); got.Version != "2" || got.Pinned != "2" || got.Candidate != "4" || got.Waiting != "it lacks api_key" {
		t.Errorf("%+v", got)
	}
}
