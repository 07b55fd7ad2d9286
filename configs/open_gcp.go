//go:build !no_gcp

package configs

import (
	"credentialbroker/internal/clock"
	"credentialbroker/providers"
	"credentialbroker/providers/gcp"
)

type gcpConfig = gcp.Config

func openGCP(c gcpConfig, clk clock.Clock) (providers.Provider, error) { return gcp.Open(c, clk) }

// ownGCP is c with the SDK's default chain.
func ownGCP(c gcpConfig) gcpConfig {
	c.Auth = gcpConfig{}.Auth
	return c
}
