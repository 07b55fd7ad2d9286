//go:build no_vault || no_aws || no_azure || no_gcp

package configs

import "errors"

var errLeftOut = errors.New("this build has no such adapter: a build tag left it out")
