package aws

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"credentialbroker/internal/outbound"
)

// Config says how to reach AWS Secrets Manager and as whom.
type Config struct {
	// Region, as in eu-west-1. Empty: AWS_REGION, else AWS_DEFAULT_REGION,
	// of the daemon's environment; one of the three must be set.
	Region string `yaml:"region,omitempty" json:"region,omitempty"`
	// Endpoint is the URL of Secrets Manager, for a VPC endpoint, FIPS, or an
	// emulator (which alone may be http, on loopback). Empty: the region's.
	Endpoint string `yaml:"endpoint,omitempty" json:"endpoint,omitempty"`
	// STSEndpoint is the URL of the Security Token Service, which
	// web_identity and assume_role ask. Empty: the region's.
	STSEndpoint string `yaml:"sts_endpoint,omitempty" json:"sts_endpoint,omitempty"`
	// Auth says where the broker's own credentials come from. Empty: the
	// SDK's default chain (environment, web identity, profile, container,
	// instance).
	Auth auth `yaml:"auth,omitempty" json:"auth,omitzero"`
	// Batch reads up to 20 secrets a call when many are read for the first
	// time, as at the start. It needs secretsmanager:BatchGetSecretValue on *
	// besides; without that they are read singly. False: singly.
	Batch bool `yaml:"batch,omitempty" json:"batch,omitempty"`

	outbound.Config `yaml:",inline"`
}

// auth has at most one source, and perhaps a role on top of it.
type auth struct {
	// Environment takes AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
	// AWS_SESSION_TOKEN of the daemon's environment.
	Environment bool `yaml:"environment,omitempty" json:"environment,omitempty"`
	// Profile takes a profile of the shared configuration files.
	Profile *profile `yaml:"profile,omitempty" json:"profile,omitempty"`
	// WebIdentity exchanges a token of another issuer at STS
	// (AssumeRoleWithWebIdentity), as IAM roles for service accounts do.
	WebIdentity *webIdentity `yaml:"web_identity,omitempty" json:"web_identity,omitempty"`
	// Container asks the endpoint that AWS_CONTAINER_CREDENTIALS_RELATIVE_URI
	// or _FULL_URI names: an ECS task role, or EKS Pod Identity.
	Container bool `yaml:"container,omitempty" json:"container,omitempty"`
	// Instance asks the instance metadata service for the EC2 instance's
	// role, with session tokens only (IMDSv2).
	Instance bool `yaml:"instance,omitempty" json:"instance,omitempty"`
	// Static reads a long-lived access key from files.
	Static *static `yaml:"static,omitempty" json:"static,omitempty"`
	// AssumeRole is a role that the source's credentials assume. Nil: none.
	AssumeRole *assumeRole `yaml:"assume_role,omitempty" json:"assume_role,omitempty"`
}

type profile struct {
	// Name of the profile. Empty: AWS_PROFILE, else "default".
	Name string `yaml:"name,omitempty" json:"name,omitempty"`
	// ConfigFile. Empty: AWS_CONFIG_FILE, else ~/.aws/config.
	ConfigFile string `yaml:"config_file,omitempty" json:"config_file,omitempty"`
	// CredentialsFile. Empty: AWS_SHARED_CREDENTIALS_FILE, else ~/.aws/credentials.
	CredentialsFile string `yaml:"credentials_file,omitempty" json:"credentials_file,omitempty"`
}

type webIdentity struct {
	// RoleARN is the role to assume. Empty: AWS_ROLE_ARN.
	RoleARN string `yaml:"role_arn,omitempty" json:"role_arn,omitempty"`
	// TokenFile holds the other issuer's token and is read at each login.
	// Empty: AWS_WEB_IDENTITY_TOKEN_FILE.
	TokenFile string `yaml:"token_file,omitempty" json:"token_file,omitempty"`
	// SessionName shows in CloudTrail. Empty: "credential-broker".
	SessionName string `yaml:"session_name,omitempty" json:"session_name,omitempty"`
}

type static struct {
	// AccessKeyIDFile and SecretAccessKeyFile hold the access key; both are
	// read at each login.
	AccessKeyIDFile     string `yaml:"access_key_id_file" json:"access_key_id_file"`
	SecretAccessKeyFile string `yaml:"secret_access_key_file" json:"secret_access_key_file"`
	// SessionTokenFile belongs to temporary keys. Empty: none.
	SessionTokenFile string `yaml:"session_token_file,omitempty" json:"session_token_file,omitempty"`
}

type assumeRole struct {
	// RoleARN is the role to assume.
	RoleARN string `yaml:"role_arn" json:"role_arn"`
	// ExternalIDFile holds the external id that the role demands. Empty: none.
	ExternalIDFile string `yaml:"external_id_file,omitempty" json:"external_id_file,omitempty"`
	// SessionName shows in CloudTrail. Empty: "credential-broker".
	SessionName string `yaml:"session_name,omitempty" json:"session_name,omitempty"`
}

// Validate says what is wrong with c, all of it, naming keys.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	// A region becomes part of host names.
	if strings.Trim(c.Region, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		bad("region: %q is no region, write it as in eu-west-1", c.Region)
	}
	errs = append(errs, checkURL("endpoint", c.Endpoint), checkURL("sts_endpoint", c.STSEndpoint))
	if sources := c.Auth.sources(); len(sources) > 1 {
		bad("auth: %s: choose one", strings.Join(sources, " and "))
	}
	if s := c.Auth.Static; s != nil {
		if s.AccessKeyIDFile == "" {
			bad("auth.static.access_key_id_file: missing")
		}
		if s.SecretAccessKeyFile == "" {
			bad("auth.static.secret_access_key_file: missing")
		}
	}
	if w := c.Auth.WebIdentity; w != nil {
		errs = append(errs, checkARN("auth.web_identity.role_arn", w.RoleARN, true))
	}
	if r := c.Auth.AssumeRole; r != nil {
		errs = append(errs, checkARN("auth.assume_role.role_arn", r.RoleARN, false))
	}
	if _, err := c.ProxyURL(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sources names the sources that are set, by their keys.
func (a auth) sources() []string {
	var s []string
	for _, c := range []struct {
		key string
		set bool
	}{
		{"environment", a.Environment}, {"profile", a.Profile != nil}, {"web_identity", a.WebIdentity != nil},
		{"container", a.Container}, {"instance", a.Instance}, {"static", a.Static != nil},
	} {
		if c.set {
			s = append(s, c.key)
		}
	}
	return s
}

func checkURL(key, raw string) error {
	if raw == "" {
		return nil
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%s: want https://host[:port]", key)
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return fmt.Errorf("%s: want https, or http on a loopback address", key)
	}
	return nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func checkARN(key, arn string, optional bool) error {
	if arn == "" && optional {
		return nil
	}
	if p := strings.SplitN(arn, ":", 6); len(p) != 6 || p[0] != "arn" || p[2] != "iam" || !strings.HasPrefix(p[5], "role/") {
		return fmt.Errorf("%s: want the ARN of a role, as in arn:aws:iam::123456789012:role/broker", key)
	}
	return nil
}

// region is the configured one, or the environment's.
func (c Config) region() (string, error) {
	for _, r := range []string{c.Region, os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")} {
		if r != "" {
			return r, nil
		}
	}
	return "", errors.New("region: missing, and neither AWS_REGION nor AWS_DEFAULT_REGION is set")
}

// How long the metadata services of the machine itself may take: whoever is
// there answers at once, and where nobody is, packets may just vanish.
const (
	localDialTimeout = time.Second
	localCallTimeout = 5 * time.Second
)
