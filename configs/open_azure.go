//go:build !no_azure

package configs

import (
	"credentialbroker/internal/clock"
	"credentialbroker/providers"
	"credentialbroker/providers/azure"
)

type azureConfig = azure.Config

func openAzure(c azureConfig, clk clock.Clock) (providers.Provider, error) { return azure.Open(c, clk) }

// ownAzure is c with the SDK's default chain.
func ownAzure(c azureConfig) azureConfig {
	c.Auth = azureConfig{}.Auth
	return c
}
