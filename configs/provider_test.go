package configs

import (
	"testing"

	"credentialbroker/internal/clock"
)

func TestProviderOpens(t *testing.T) {
	c, err := load(t, map[string]string{"broker.yaml": minimal})
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Providers["unit"].Open(clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := (Provider{}).Open(clock.System{}); err == nil {
		t.Error("a provider of no kind was opened")
	}
}
