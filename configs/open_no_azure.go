//go:build no_azure

package configs

import (
	"credentialbroker/internal/clock"
	"credentialbroker/providers"
)

type azureConfig struct{ leftOut } //nolint:unused // isLeftOut looks for the field

// Validate says that this build cannot use the section.
func (azureConfig) Validate() error { return errLeftOut }

func openAzure(azureConfig, clock.Clock) (providers.Provider, error) { return nil, errLeftOut }

func ownAzure(c azureConfig) azureConfig { return c }
