//go:build no_gcp

package configs

import (
	"credentialbroker/internal/clock"
	"credentialbroker/providers"
)

type gcpConfig struct{ leftOut } //nolint:unused // isLeftOut looks for the field

// Validate says that this build cannot use the section.
func (gcpConfig) Validate() error { return errLeftOut }

func openGCP(gcpConfig, clock.Clock) (providers.Provider, error) { return nil, errLeftOut }

func ownGCP(c gcpConfig) gcpConfig { return c }
