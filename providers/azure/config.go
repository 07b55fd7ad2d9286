package azure

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"credentialbroker/internal/outbound"
)

// Config says which vault to read, and as whom.
type Config struct {
	// VaultURL, as in https://NAME.vault.azure.net. On a loopback address,
	// where only an emulator can be, the vault may name any resource in its
	// challenge; elsewhere it must be the vault's own domain.
	VaultURL string `yaml:"vault_url" json:"vault_url"`
	// Authority is the URL of Microsoft Entra ID, for other clouds than the
	// public one; it is then trusted as it is, without asking Microsoft
	// whether it is known (instance discovery). Empty: AZURE_AUTHORITY_HOST,
	// else https://login.microsoftonline.com.
	Authority string `yaml:"authority,omitempty" json:"authority,omitempty"`
	// Auth says where the broker's own login comes from. Empty: the SDK's
	// default chain (environment, workload identity, managed identity,
	// developers' tools). That chain gives the managed identity one second
	// to answer its first question, and passes over it when a busy machine
	// is slower: on a server choose a source here, or set
	// AZURE_TOKEN_CREDENTIALS in the daemon's environment.
	Auth auth `yaml:"auth,omitempty" json:"auth,omitzero"`

	outbound.Config `yaml:",inline"`
}

// auth has at most one source.
type auth struct {
	// ManagedIdentity is that of the virtual machine, App Service, Arc …
	ManagedIdentity *managedIdentity `yaml:"managed_identity,omitempty" json:"managed_identity,omitempty"`
	// WorkloadIdentity exchanges a Kubernetes token.
	WorkloadIdentity *workloadIdentity `yaml:"workload_identity,omitempty" json:"workload_identity,omitempty"`
	// ClientCertificate is an application with a certificate.
	ClientCertificate *clientCertificate `yaml:"client_certificate,omitempty" json:"client_certificate,omitempty"`
	// ClientSecret is an application with a secret.
	ClientSecret *clientSecret `yaml:"client_secret,omitempty" json:"client_secret,omitempty"`
	// Environment takes AZURE_TENANT_ID, AZURE_CLIENT_ID and
	// AZURE_CLIENT_SECRET or AZURE_CLIENT_CERTIFICATE_PATH.
	Environment bool `yaml:"environment,omitempty" json:"environment,omitempty"`
}

type managedIdentity struct {
	// ClientID of a user-assigned identity. Empty: the system-assigned one.
	ClientID string `yaml:"client_id,omitempty" json:"client_id,omitempty"`
}

type workloadIdentity struct {
	// TenantID. Empty: AZURE_TENANT_ID.
	TenantID string `yaml:"tenant_id,omitempty" json:"tenant_id,omitempty"`
	// ClientID of the application. Empty: AZURE_CLIENT_ID.
	ClientID string `yaml:"client_id,omitempty" json:"client_id,omitempty"`
	// TokenFile holds the Kubernetes token. Empty: AZURE_FEDERATED_TOKEN_FILE.
	TokenFile string `yaml:"token_file,omitempty" json:"token_file,omitempty"`
}

type clientCertificate struct {
	// TenantID and ClientID of the application.
	TenantID string `yaml:"tenant_id" json:"tenant_id"`
	ClientID string `yaml:"client_id" json:"client_id"`
	// CertificateFile holds certificate and private key, as PEM or PKCS#12
	// without a password. It is read at each login.
	CertificateFile string `yaml:"certificate_file" json:"certificate_file"`
}

type clientSecret struct {
	// TenantID and ClientID of the application.
	TenantID string `yaml:"tenant_id" json:"tenant_id"`
	ClientID string `yaml:"client_id" json:"client_id"`
	// ClientSecretFile holds the secret. It is read at each login.
	ClientSecretFile string `yaml:"client_secret_file" json:"client_secret_file"`
}

// Validate says what is wrong with c, all of it, naming keys.
func (c Config) Validate() error {
	var errs []error
	if c.VaultURL == "" {
		errs = append(errs, errors.New("vault_url: missing, want https://NAME.vault.azure.net"))
	} else if u := checkURL(c.VaultURL); u == nil {
		errs = append(errs, errors.New("vault_url: want https://NAME.vault.azure.net"))
	}
	if c.Authority != "" && checkURL(c.Authority) == nil {
		errs = append(errs, errors.New("authority: want https://HOST"))
	}
	if s := c.Auth.sources(); len(s) > 1 {
		errs = append(errs, fmt.Errorf("auth: %s: choose one", strings.Join(s, " and ")))
	}
	need := func(key, value string) {
		if value == "" {
			errs = append(errs, fmt.Errorf("auth.%s: missing", key))
		}
	}
	if a := c.Auth.ClientCertificate; a != nil {
		need("client_certificate.tenant_id", a.TenantID)
		need("client_certificate.client_id", a.ClientID)
		need("client_certificate.certificate_file", a.CertificateFile)
	}
	if a := c.Auth.ClientSecret; a != nil {
		need("client_secret.tenant_id", a.TenantID)
		need("client_secret.client_id", a.ClientID)
		need("client_secret.client_secret_file", a.ClientSecretFile)
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
		{"managed_identity", a.ManagedIdentity != nil}, {"workload_identity", a.WorkloadIdentity != nil},
		{"client_certificate", a.ClientCertificate != nil}, {"client_secret", a.ClientSecret != nil}, {"environment", a.Environment},
	} {
		if c.set {
			s = append(s, c.key)
		}
	}
	return s
}

// checkURL gives nil for what is not https://host[:port][/]: without TLS the
// SDK sends no token.
func checkURL(raw string) *url.URL {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil
	}
	return u
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// hosts are what a firewall has to let out.
func (c Config) hosts() []string {
	authority := cmp.Or(c.Authority, cmp.Or(os.Getenv("AZURE_AUTHORITY_HOST"), "https://login.microsoftonline.com"))
	list := []string{hostPort(c.VaultURL)}
	if c.Auth.ManagedIdentity == nil {
		list = append(list, hostPort(authority))
	}
	return list
}

func hostPort(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	if u.Port() == "" {
		return u.Host + ":443"
	}
	return u.Host
}
