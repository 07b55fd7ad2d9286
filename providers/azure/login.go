package azure

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"credentialbroker/internal/outbound"
	"credentialbroker/providers"
)

// login makes the credentials of the broker itself.
type login struct {
	c      Config
	remote *http.Client // Entra ID, through the proxy
	local  *http.Client // the machine's own metadata services: never through a proxy
}

func newLogin(c Config) (*login, error) {
	remote, err := c.Transport()
	if err != nil {
		return nil, err
	}
	local, err := outbound.Config{}.Transport()
	if err != nil {
		return nil, err
	}
	// The default chain asks both sides over one transport.
	if proxy := remote.Proxy; proxy != nil && len(c.Auth.sources()) == 0 {
		remote.Proxy = func(r *http.Request) (*url.URL, error) {
			if metadata(r.URL.Hostname()) {
				return nil, nil
			}
			return proxy(r)
		}
	}
	return &login{c: c, remote: httpClient(remote), local: httpClient(local)}, nil
}

// metadata says whether host can only be a service of this machine.
func metadata(host string) bool {
	ip, err := netip.ParseAddr(host)
	return loopback(host) || err == nil && ip.IsLinkLocalUnicast()
}

// ownError is a fault in what the operator gave, told in our own words.
type ownError string

func (e ownError) Error() string { return string(e) }

// credential makes the chosen credential; again means that the token of the
// one before was refused.
func (l *login) credential(again bool) (azcore.TokenCredential, error) {
	inner, err := l.source()
	if err != nil {
		e := &providers.Error{Kind: providers.LoginFailed, Provider: name, Message: "no login: the SDK does not take what auth says", Err: err}
		var own ownError
		if errors.As(err, &own) {
			e.Message = "no login: " + own.Error()
		}
		return nil, e
	}
	// Managed identities share a cache that outlives the credential.
	cache := l.c.Auth.ManagedIdentity != nil || len(l.c.Auth.sources()) == 0
	return &credential{inner: inner, chain: len(l.c.Auth.sources()) == 0, fresh: again && cache}, nil
}

func (l *login) source() (azcore.TokenCredential, error) {
	o := options(&observed{l.remote})
	known := l.c.Authority == ""
	if !known {
		o.Cloud = cloud.Configuration{ActiveDirectoryAuthorityHost: l.c.Authority}
	}
	switch a := l.c.Auth; {
	case a.ManagedIdentity != nil:
		// Service Fabric pins a certificate, and needs a plain client for it.
		mo := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: options(&observed{l.local})}
		if os.Getenv("IDENTITY_SERVER_THUMBPRINT") != "" {
			mo.Transport = l.local
		}
		if a.ManagedIdentity.ClientID != "" {
			mo.ID = azidentity.ClientID(a.ManagedIdentity.ClientID)
		}
		return azidentity.NewManagedIdentityCredential(mo)
	case a.WorkloadIdentity != nil:
		w := a.WorkloadIdentity
		file := cmp.Or(w.TokenFile, os.Getenv("AZURE_FEDERATED_TOKEN_FILE"))
		if file == "" {
			return nil, ownError("auth.workload_identity.token_file: missing, and AZURE_FEDERATED_TOKEN_FILE is not set")
		}
		if _, err := readFile("auth.workload_identity.token_file", file); err != nil {
			return nil, err
		}
		return azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{ClientOptions: o,
			DisableInstanceDiscovery: !known, TenantID: w.TenantID, ClientID: w.ClientID, TokenFilePath: file})
	case a.ClientCertificate != nil:
		return l.fromCertificate(*a.ClientCertificate, o, known)
	case a.ClientSecret != nil:
		s, err := readFile("auth.client_secret.client_secret_file", a.ClientSecret.ClientSecretFile)
		if err != nil {
			return nil, err
		}
		return azidentity.NewClientSecretCredential(a.ClientSecret.TenantID, a.ClientSecret.ClientID, strings.TrimSpace(string(s)),
			&azidentity.ClientSecretCredentialOptions{ClientOptions: o, DisableInstanceDiscovery: !known})
	case a.Environment:
		c, err := azidentity.NewEnvironmentCredential(&azidentity.EnvironmentCredentialOptions{ClientOptions: o, DisableInstanceDiscovery: !known})
		if err != nil {
			return nil, ownError("AZURE_TENANT_ID, AZURE_CLIENT_ID, and a secret or certificate are not all in the daemon's environment")
		}
		return c, nil
	}
	return azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: o, DisableInstanceDiscovery: !known})
}

func (l *login) fromCertificate(c clientCertificate, o azcore.ClientOptions, known bool) (azcore.TokenCredential, error) {
	certs, private, err := c.read()
	if err != nil {
		return nil, err
	}
	return azidentity.NewClientCertificateCredential(c.TenantID, c.ClientID, certs, private,
		&azidentity.ClientCertificateCredentialOptions{ClientOptions: o, DisableInstanceDiscovery: !known})
}

func (c clientCertificate) read() ([]*x509.Certificate, crypto.PrivateKey, error) {
	const key = "auth.client_certificate.certificate_file"
	pem, err := readFile(key, c.CertificateFile)
	if err != nil {
		return nil, nil, err
	}
	defer clear(pem)
	certs, private, err := azidentity.ParseCertificates(pem, nil)
	if err != nil {
		return nil, nil, ownError(key + ": " + c.CertificateFile + " holds no certificate with its private key")
	}
	return certs, private, nil
}

// LoginEnd implements providers.Perishable. Entra ID tells nobody but
// administrators when a client secret ends; a certificate says so itself.
func (p *provider) LoginEnd(context.Context) (what string, end time.Time, _ error) {
	c := p.c.Auth.ClientCertificate
	if c == nil {
		return "", time.Time{}, nil
	}
	certs, _, err := c.read()
	if err != nil {
		return "", time.Time{}, &providers.Error{Kind: providers.LoginFailed, Provider: name, Message: err.Error()}
	}
	return "the certificate in auth.client_certificate.certificate_file", certs[0].NotAfter, nil
}

func readFile(key, file string) ([]byte, error) {
	b, err := os.ReadFile(file) //nolint:gosec // the operator's configuration names it
	if err != nil {
		return nil, ownError(key + ": " + err.Error())
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, ownError(key + ": " + file + " is empty")
	}
	return b, nil
}

// credential tells in our own errors why there is no token: the SDK's carry
// whole answers, and hide what happened below.
type credential struct {
	inner azcore.TokenCredential
	chain bool // the default one

	mu    sync.Mutex
	fresh bool // cached tokens are of no use
}

// GetToken implements azcore.TokenCredential. Its errors are *providers.Error.
func (c *credential) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	c.mu.Lock()
	fresh := c.fresh
	c.mu.Unlock()
	if fresh && o.Claims == "" {
		o.Claims = `{"access_token":{}}` // asks for nothing, and passes by all caches
	}
	var seen exchange
	token, err := c.inner.GetToken(context.WithValue(ctx, exchangeKey{}, &seen), o)
	if err != nil {
		return azcore.AccessToken{}, c.fault(ctx, err, &seen)
	}
	c.mu.Lock()
	c.fresh = false
	c.mu.Unlock()
	return token, nil
}

func (c *credential) fault(ctx context.Context, err error, seen *exchange) *providers.Error {
	last := seen.last()
	e := &providers.Error{Kind: providers.LoginFailed, Provider: name, Err: err, RetryAfter: last.retryAfter,
		Message: "Entra ID gave the broker no token", Hint: "check auth"}
	switch {
	case ctx.Err() != nil:
		e.Kind, e.Message, e.Hint, e.Err = providers.Unavailable, "the login did not end in time", "", ctx.Err()
	case last.status == http.StatusTooManyRequests:
		e.Kind, e.Message, e.Hint = providers.Throttled, "too many logins", ""
	case c.chain && last.status == 0:
		e.Message = "the default chain found no login in environment, workload identity, managed identity or a developer's tool"
		e.Hint = "choose a source under auth"
	case last.status >= 500 || last.failed:
		e.Kind, e.Message, e.Hint = providers.Unavailable, "where the token comes from cannot be reached", ""
	}
	for _, s := range last.codes {
		if s = shown(s); s != "" {
			e.Message += " [" + s + "]"
		}
	}
	return e
}

// exchange is what passed while a token was asked for.
type exchangeKey struct{}

type exchange struct {
	mu sync.Mutex
	outcome
}

type outcome struct {
	failed     bool // no answer
	status     int
	codes      []string
	retryAfter time.Duration
}

func (x *exchange) last() outcome {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.outcome
}

// observed notes the outcome of each request in its context's exchange.
type observed struct{ client *http.Client }

// Do implements policy.Transporter.
func (d *observed) Do(r *http.Request) (*http.Response, error) {
	resp, err := d.client.Do(r) //nolint:gosec // the SDK's requests go where the operator says
	var o outcome
	if err != nil {
		o.failed = true
	} else {
		o.status, o.retryAfter = resp.StatusCode, retryAfter(resp)
		body, rerr := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if cerr := resp.Body.Close(); rerr == nil {
			rerr = cerr
		}
		if rerr != nil {
			resp, err, o.failed = nil, rerr, true
		} else {
			resp.Body = io.NopCloser(bytes.NewReader(body))
		}
		if o.status >= http.StatusBadRequest {
			o.codes = entraCodes(body)
		}
	}
	if x, ok := r.Context().Value(exchangeKey{}).(*exchange); ok {
		x.mu.Lock()
		x.outcome = o
		x.mu.Unlock()
	}
	return resp, err
}

// entraCodes takes the error (RFC 6749 §5.2) and Entra's own number of it.
func entraCodes(body []byte) []string {
	var e struct {
		Error string
		Codes []json.Number `json:"error_codes"`
	}
	if err := json.Unmarshal(body, &e); err != nil || e.Error == "" {
		return nil
	}
	if len(e.Codes) == 0 {
		return []string{e.Error}
	}
	return []string{e.Error, "AADSTS" + e.Codes[0].String()}
}
