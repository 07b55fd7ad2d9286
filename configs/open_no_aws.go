//go:build no_aws

package configs

import (
	"credentialbroker/internal/clock"
	"credentialbroker/providers"
)

type awsConfig struct{ leftOut } //nolint:unused // isLeftOut looks for the field

// Validate says that this build cannot use the section.
func (awsConfig) Validate() error { return errLeftOut }

func openAWS(awsConfig, clock.Clock) (providers.Provider, error) { return nil, errLeftOut }

func ownAWS(c awsConfig) awsConfig { return c }
