//go:build no_vault

package configs

import (
	"credentialbroker/internal/clock"
	"credentialbroker/providers"
)

type vaultConfig struct{ leftOut } //nolint:unused // isLeftOut looks for the field

// Validate says that this build cannot use the section.
func (vaultConfig) Validate() error { return errLeftOut }

func openVault(vaultConfig, clock.Clock) (providers.Provider, error) { return nil, errLeftOut }

func ownVault(c vaultConfig, _ string) (vaultConfig, error) { return c, errLeftOut }
