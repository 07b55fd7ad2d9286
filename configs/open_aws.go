//go:build !no_aws

package configs

import (
	"credentialbroker/internal/clock"
	"credentialbroker/providers"
	"credentialbroker/providers/aws"
)

type awsConfig = aws.Config

func openAWS(c awsConfig, clk clock.Clock) (providers.Provider, error) { return aws.Open(c, clk) }

// ownAWS is c with the SDK's default chain.
func ownAWS(c awsConfig) awsConfig {
	c.Auth = awsConfig{}.Auth
	return c
}
