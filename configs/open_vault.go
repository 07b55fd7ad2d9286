//go:build !no_vault

package configs

import (
	"credentialbroker/internal/clock"
	"credentialbroker/providers"
	"credentialbroker/providers/vault"
)

type vaultConfig = vault.Config

func openVault(c vaultConfig, clk clock.Clock) (providers.Provider, error) { return vault.Open(c, clk) }
