//go:build !no_vault

package configs

import (
	"errors"

	"credentialbroker/internal/clock"
	"credentialbroker/providers"
	"credentialbroker/providers/vault"
)

type vaultConfig = vault.Config

func openVault(c vaultConfig, clk clock.Clock) (providers.Provider, error) { return vault.Open(c, clk) }

// ownVault is c with a person's token.
func ownVault(c vaultConfig, tokenFile string) (vaultConfig, error) {
	if c.Auth.Agent {
		return c, errors.New("the address is an Agent's, which logs in as the daemon: store the fields with vault kv patch, or configure a provider to write with")
	}
	c.Auth = vault.Auth{TokenFile: tokenFile}
	return c, nil
}
