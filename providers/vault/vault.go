// Package vault reads and writes secrets of HashiCorp Vault and of OpenBao:
// the KV engine, versions 2 and 1, after one of Vault's logins.
//
// The least that a policy for KV version 2 has to allow is read on
// MOUNT/data/PATH and on MOUNT/metadata/PATH, which are separate paths of a
// policy. Without the second the broker cannot ask for a version alone, and
// reads the value at every look; it tries again once an hour. Put needs create
// and update on MOUNT/data/PATH.
//
// KV version 2 keeps JSON numbers as floats: an identifier of more than 15 digits
// has to be stored as a string.
//
// KV version 1 keeps no versions. Its secrets get a version from their
// content, by a key that lives as long as the process: after a restart every
// such secret counts as new and is proved again, within the durable budgets.
package vault

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/api"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// Rules of this package:
//   - the SDK's environment variables, retries, redirects and renewal loop are
//     not used: a call is one request;
//   - whoever holds turn logs in or renews; a token that is still good serves
//     everybody else meanwhile;
//   - Vault's texts decide about kinds here and there, and are shown nowhere.

// provider is the providers.Provider, providers.Writer and providers.Egress
// that Open makes.
type provider struct {
	conf   Config
	clk    clock.Clock
	client *api.Client
	cert   *atomic.Pointer[tls.Certificate] // shown to the server, if it asks
	key    secret.Secret                    // of the versions of KV version 1

	session atomic.Pointer[session]
	closed  atomic.Bool
	logins  atomic.Int64  // logins that have ended, well or not
	turn    chan struct{} // one slot; guards what follows
	failure failure       // of the latest login, if it failed
	relogin clock.Reading // when a dead token was last replaced
	wrapped unwrapped     // the secret-id that came wrapped

	mu         sync.Mutex
	noMetadata map[string]clock.Reading // when metadata/ was denied, by path
}

// Config says where a Vault is and how to log in to it.
type Config struct {
	// Address is https://host:port, http://host:port on loopback, or
	// unix:///path of an Agent's or Proxy's listener. Required.
	Address string `yaml:"address" json:"address"`
	// Namespace of the login and of all secrets (Vault Enterprise, OpenBao).
	// Empty: the root namespace.
	Namespace string `yaml:"namespace,omitempty" json:"namespace,omitempty"`
	// Auth is the login. Exactly one of its keys is required.
	Auth Auth `yaml:"auth" json:"auth"`
	// KV is the version, 1 or 2, of the KV engines that are read. 0: 2.
	// It is said rather than asked for, since asking takes one more
	// permission; mounts of both versions are two providers.
	KV int `yaml:"kv,omitempty" json:"kv,omitempty"`

	outbound.Config `yaml:",inline"`
}

// Auth is exactly one way to log in.
type Auth struct {
	// TokenFile holds a Vault token, as an Agent's sink writes it. It is read
	// again when it changes; a token that can be renewed is renewed.
	TokenFile string `yaml:"token_file,omitempty" json:"token_file,omitempty"`
	// AppRole logs in with a role-id and a secret-id.
	AppRole *AppRole `yaml:"approle,omitempty" json:"approle,omitempty"`
	// Kubernetes logs in with the token of a service account; token_file is
	// the usual one of a pod unless it is given.
	Kubernetes *JWT `yaml:"kubernetes,omitempty" json:"kubernetes,omitempty"`
	// JWT logs in with a JSON Web Token that somebody else keeps fresh.
	JWT *JWT `yaml:"jwt,omitempty" json:"jwt,omitempty"`
	// Cert logs in with a TLS client certificate.
	Cert *Cert `yaml:"cert,omitempty" json:"cert,omitempty"`
	// Agent says that address is a Vault Agent or Proxy which adds a token of
	// its own (use_auto_auth_token): nothing to log in with.
	Agent bool `yaml:"agent,omitempty" json:"agent,omitempty"`
}

// AppRole is the login of machines. The files are read at each login.
type AppRole struct {
	// RoleIDFile holds the role-id. Required.
	RoleIDFile string `yaml:"role_id_file" json:"role_id_file"`
	// SecretIDFile holds the secret-id. Empty: the role asks for none.
	SecretIDFile string `yaml:"secret_id_file,omitempty" json:"secret_id_file,omitempty"`
	// Wrapped says that SecretIDFile holds a response-wrapping token for the
	// secret-id. It can be used once, so that the secret-id lives in memory
	// only and each start of the daemon needs a new token in the file.
	Wrapped bool `yaml:"wrapped,omitempty" json:"wrapped,omitempty"`
	// Mount is the path of the auth method. Empty: approle.
	Mount string `yaml:"mount,omitempty" json:"mount,omitempty"`
}

// JWT is a login with a signed token. The file is read at each login.
type JWT struct {
	// Role to log in to. Required for kubernetes; jwt has a default role.
	Role string `yaml:"role,omitempty" json:"role,omitempty"`
	// TokenFile holds the token. Required for jwt.
	TokenFile string `yaml:"token_file,omitempty" json:"token_file,omitempty"`
	// Mount is the path of the auth method. Empty: kubernetes, or jwt.
	Mount string `yaml:"mount,omitempty" json:"mount,omitempty"`
}

// Cert is a login with a TLS client certificate. The files are read at each
// login.
type Cert struct {
	// CertFile holds the certificate and its chain, PEM. Required.
	CertFile string `yaml:"cert_file" json:"cert_file"`
	// KeyFile holds the private key, PEM. Required.
	KeyFile string `yaml:"key_file" json:"key_file"`
	// Role is the name of the certificate's role. Empty: any that matches.
	Role string `yaml:"role,omitempty" json:"role,omitempty"`
	// Mount is the path of the auth method. Empty: cert.
	Mount string `yaml:"mount,omitempty" json:"mount,omitempty"`
}

// Open makes the provider for c. It does not connect: the first Fetch logs in,
// so that a Vault that is down does not keep the daemon from starting. What it
// returns is a providers.Writer and a providers.Egress too.
func Open(c Config, clk clock.Clock) (providers.Provider, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.KV == 0 {
		c.KV = 2
	}
	p := &provider{
		conf: c, clk: clk, turn: make(chan struct{}, 1), noMetadata: map[string]clock.Reading{},
		cert: new(atomic.Pointer[tls.Certificate]),
	}
	var err error
	if p.client, err = newClient(c, p.cert); err != nil {
		return nil, err
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it never fails
	p.key = secret.New(key)
	return p, nil
}

// Fetch reads one secret. An unchanged one of KV version 2 costs one read of
// its metadata.
func (p *provider) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	b, err := p.fetch(ctx, place(ref), have)
	if err == nil && b.Version == have {
		b.Wipe()
		return providers.Bundle{}, providers.ErrUnchanged
	}
	if err == nil {
		err = b.CheckValidity(p.clk.Now().Wall)
	}
	if err != nil {
		b.Wipe()
		if ctx.Err() != nil && providers.KindOf(err) == providers.Malformed { // half of an answer is none
			err = fail(providers.Unavailable, "there was no whole answer in time", "")
		}
		return providers.Bundle{}, about(ref, err)
	}
	return b, nil
}

// Put stores a new version. KV version 2 compares and sets; version 1 is read,
// written and read back.
func (p *provider) Put(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret, expect providers.Version) (providers.Version, error) {
	v, err := p.put(ctx, place(ref), fields, expect)
	return v, about(ref, err)
}

// Endpoints gives Vault's host:port; none for a Unix socket.
func (p *provider) Endpoints() []string {
	u, err := url.Parse(p.conf.Address)
	if err != nil || u.Host == "" {
		return nil
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return []string{net.JoinHostPort(u.Hostname(), port)}
}

// Close revokes the token that a login of this process got, if Vault answers
// within two seconds, and forgets it. Later calls fail.
func (p *provider) Close() error {
	if p.closed.Swap(true) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
		p.wrapped.id.Wipe()
	case <-ctx.Done():
	}
	if s := p.session.Swap(nil); s != nil {
		if s.own && s.alive(p.clk.Now()) {
			_, _ = p.call(ctx, s.token, "auth/token/revoke-self", nil, []byte("{}"))
		}
		s.token.Wipe()
	}
	p.key.Wipe()
	return nil
}

// fail makes an error of this package.
func fail(kind providers.Kind, message, hint string) *providers.Error {
	return &providers.Error{Kind: kind, Provider: "vault", Message: message, Hint: hint}
}

// about says in a copy of err which secret it concerns: errors of a login are
// shared.
func about(ref providers.Ref, err error) error {
	var e *providers.Error
	if !errors.As(err, &e) {
		return err
	}
	told := *e
	told.Provider, told.Ref = "vault", ref
	return &told
}
