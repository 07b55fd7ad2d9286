package vault

import (
	"cmp"
	"errors"
	"net"
	"net/url"
	"path/filepath"
	"strings"
)

// podToken is where Kubernetes puts the token of a pod's service account.
const podToken = "/var/run/secrets/kubernetes.io/serviceaccount/token" //nolint:gosec // a file name

// Validate says everything that is wrong with c, each error naming the key. It
// opens no file.
func (c Config) Validate() error {
	errs := []error{c.validAddress()}
	if c.KV < 0 || c.KV > 2 {
		errs = append(errs, errors.New("kv: want 1 or 2, the version of the KV engine"))
	}
	if strings.ContainsFunc(c.Namespace, notPrintable) {
		errs = append(errs, errors.New("namespace: has a character that cannot be printed"))
	}
	if _, err := c.ProxyURL(); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, c.Auth.validate()...)
	if c.Auth.Cert != nil && !strings.HasPrefix(c.Address, "https://") {
		errs = append(errs, errors.New("auth.cert: needs an https:// address"))
	}
	return errors.Join(errs...)
}

func notPrintable(r rune) bool { return r <= ' ' || r == 0x7f }

func (c Config) validAddress() error {
	if c.Address == "" {
		return errors.New("address: missing: want https://host:port")
	}
	u, err := url.Parse(c.Address)
	switch {
	case err != nil:
		return errors.New("address: not a URL: want https://host:port")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return errors.New("address: want https://host:port, without user, query or fragment")
	case u.Scheme == "unix":
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return errors.New("address: want unix:///path/of/the/socket")
		}
		if c.Proxy != "" || c.CAFile != "" {
			return errors.New("address: ca_file and proxy do not apply to a Unix socket")
		}
		return nil
	case u.Hostname() == "":
		return errors.New("address: names no host: want https://host:port")
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http":
		if ip := net.ParseIP(u.Hostname()); u.Hostname() == "localhost" || ip != nil && ip.IsLoopback() {
			return nil
		}
		return errors.New("address: http:// would send secrets in the clear: want https://")
	}
	return errors.New("address: want https://host:port, or unix:///path for an Agent")
}

func (a Auth) validate() []error {
	var errs []error
	need := func(key, value string) {
		if value == "" {
			errs = append(errs, errors.New("auth."+key+": missing"))
		}
	}
	ways := 0
	if a.TokenFile != "" {
		ways++
	}
	if a.Agent {
		ways++
	}
	if a.AppRole != nil {
		ways++
		need("approle.role_id_file", a.AppRole.RoleIDFile)
		if a.AppRole.Wrapped {
			need("approle.secret_id_file", a.AppRole.SecretIDFile)
		}
	}
	if a.Kubernetes != nil {
		ways++
		need("kubernetes.role", a.Kubernetes.Role)
	}
	if a.JWT != nil {
		ways++
		need("jwt.token_file", a.JWT.TokenFile)
	}
	if a.Cert != nil {
		ways++
		need("cert.cert_file", a.Cert.CertFile)
		need("cert.key_file", a.Cert.KeyFile)
	}
	if mount := a.mount(); mount != "" && !cleanPath(mount) {
		errs = append(errs, errors.New("auth: mount is no path of an auth method, as in approle or team/approle"))
	}
	if ways != 1 {
		errs = append(errs, errors.New("auth: want exactly one of token_file, approle, kubernetes, jwt, cert, agent"))
	}
	return errs
}

// method is the name of the login, for messages.
func (a Auth) method() string {
	switch {
	case a.AppRole != nil:
		return "approle"
	case a.Kubernetes != nil:
		return "kubernetes"
	case a.JWT != nil:
		return "jwt"
	case a.Cert != nil:
		return "cert"
	case a.Agent:
		return "agent"
	}
	return "token_file"
}

// mount is the path below auth/ of the login; empty for a token or an Agent.
func (a Auth) mount() string {
	m := ""
	switch {
	case a.AppRole != nil:
		m = cmp.Or(a.AppRole.Mount, "approle")
	case a.Kubernetes != nil:
		m = cmp.Or(a.Kubernetes.Mount, "kubernetes")
	case a.JWT != nil:
		m = cmp.Or(a.JWT.Mount, "jwt")
	case a.Cert != nil:
		m = cmp.Or(a.Cert.Mount, "cert")
	}
	return strings.Trim(m, "/")
}

// files are what a login reads.
func (a Auth) files() []string {
	switch {
	case a.AppRole != nil && a.AppRole.SecretIDFile != "":
		return []string{a.AppRole.RoleIDFile, a.AppRole.SecretIDFile}
	case a.AppRole != nil:
		return []string{a.AppRole.RoleIDFile}
	case a.Kubernetes != nil:
		return []string{cmp.Or(a.Kubernetes.TokenFile, podToken)}
	case a.JWT != nil:
		return []string{a.JWT.TokenFile}
	case a.Cert != nil:
		return []string{a.Cert.CertFile, a.Cert.KeyFile}
	}
	return []string{a.TokenFile}
}

// cleanPath says whether p can be part of a URL's path without becoming
// another one.
func cleanPath(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsFunc(part, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return false
		}
	}
	return true
}
