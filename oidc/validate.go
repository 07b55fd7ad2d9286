package oidc

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	defaultLifetime = 5 * time.Minute
	maxLifetime     = 24 * time.Hour
	defaultRedirect = "http://127.0.0.1/callback"
	formatJSON      = "json"
	typeOptional    = "optional"
)

// lifetimes gives the default and the maximum.
func (p Profile) lifetimes() (def, most time.Duration) {
	def, most = p.DefaultLifetime.D(), p.MaxLifetime.D()
	if def == 0 {
		def = defaultLifetime
	}
	if most == 0 {
		most = maxLifetime
	}
	return min(def, most), most
}

// problems collects what is wrong, each error starting with the key that it
// concerns.
type problems []error

func (e *problems) bad(key, format string, args ...any) {
	*e = append(*e, fmt.Errorf(key+": "+format, args...))
}

// word wants value to be one of words, or empty.
func word[T ~string](e *problems, key string, value T, words ...T) {
	if value != "" && !slices.Contains(words, value) {
		e.bad(key, "%q is not known: use one of %s", value, strings.Trim(fmt.Sprint(words), "[]"))
	}
}

// Validate says what is wrong with p, each error starting with the key it
// concerns.
func (p Profile) Validate() error {
	var e problems
	word(&e, "grant", p.Grant, ClientCredentials, AuthorizationCode, JWTBearer, SelfSigned, NoGrant)
	word(&e, "client_auth", p.ClientAuth, SecretPost, SecretBasic, SecretJWT, PrivateKeyJWT, TLS, SelfSignedTLS, NoAuth)
	word(&e, "request_format", p.RequestFormat, "form", formatJSON)
	word(&e, "token_type", p.TokenType, "required", typeOptional)
	if p.remote() {
		p.validateEndpoints(&e)
		p.validateAuth(&e)
	}
	e = append(e, p.validateAssertion()...)
	e = append(e, p.validateJWT()...)
	for key, params := range map[string]map[string]string{"params": p.Params, "introspection_params": p.IntrospectionParams} {
		for _, name := range paramNames(params) {
			if reason := reservedParam(name); reason != "" {
				e.bad(key, "%q %s", name, reason)
			}
		}
	}
	for _, name := range paramNames(p.AuthorizationParams) {
		if reason := reservedThere(name); reason != "" {
			e.bad("authorization_params", "%q %s", name, reason)
		}
	}
	if _, err := algorithms(p.Algorithms); err != nil {
		e.bad("algorithms", "%w", err)
	}
	if p.MaxLifetime < 0 || p.DefaultLifetime < 0 {
		e.bad("max_lifetime", "a lifetime cannot be negative")
	}
	if p.MaxLifetime > 0 && p.DefaultLifetime > p.MaxLifetime {
		e.bad("default_lifetime", "%s is longer than max_lifetime, %s", p.DefaultLifetime, p.MaxLifetime)
	}
	if _, err := p.ProxyURL(); err != nil {
		e = append(e, err)
	}
	return errors.Join(e...)
}

func (p Profile) validateEndpoints(e *problems) {
	for _, name := range []string{tokenEndpoint, authorizationEndpoint, revocationEndpoint, introspectionEndpoint, keysEndpoint} {
		if raw := p.configured(name); raw != "" {
			if err := checkURL(raw); err != nil {
				e.bad(name, "%w", err)
			}
		}
	}
	if p.MetadataURI != "" {
		if err := checkURL(p.MetadataURI); err != nil {
			e.bad("metadata_uri", "%w", err)
		}
		if p.Issuer == "" {
			e.bad("issuer", "missing: metadata_uri is of use only with the exact issuer that it has to name")
		}
	}
	if p.JWKSURI != "" && p.Issuer == "" {
		e.bad("issuer", "missing: jwks_uri is of use only with the exact iss of the tokens")
	}
	switch {
	case p.TokenEndpoint == "" && p.MetadataURI == "" && p.Issuer == "":
		e.bad(tokenEndpoint, "missing: set it, or issuer, whose metadata name it")
	case p.TokenEndpoint == "" && p.MetadataURI == "":
		p.validateIssuer(e, "token_endpoint is not set")
	}
	if p.Grant != AuthorizationCode {
		return
	}
	switch {
	case p.AuthorizationEndpoint != "" || p.MetadataURI != "":
	case p.Issuer != "" && p.TokenEndpoint != "":
		p.validateIssuer(e, "authorization_endpoint is not set")
	case p.Issuer == "":
		e.bad(authorizationEndpoint, "missing: set it, or issuer, whose metadata name it")
	}
	if p.RedirectURI != "" {
		if err := checkURL(p.RedirectURI); err != nil {
			e.bad("redirect_uri", "%w; the broker takes https, and http on loopback", err)
		}
	}
}

// validateIssuer is for an issuer below whose URL the metadata are.
func (p Profile) validateIssuer(e *problems, why string) {
	err := checkURL(p.Issuer)
	if u, _ := url.Parse(p.Issuer); err == nil && u.RawQuery != "" {
		err = errors.New("it must not have a query (RFC 8414 §2)")
	}
	if err != nil {
		e.bad("issuer", "the metadata are looked for below it, since %s: %w", why, err)
	}
}

func (p Profile) validateAuth(e *problems) {
	if u, err := url.Parse(p.TokenEndpoint); err == nil && u.Scheme == "http" && p.presents(&request{grant: "any"}) {
		e.bad("client_auth", "a client certificate is presented over https alone, and token_endpoint is http")
	}
	if p.ClientAuth == NoAuth && (p.Grant == "" || p.Grant == ClientCredentials) {
		e.bad("client_auth", "none does not go with the grant client_credentials, for which a client has to authenticate (RFC 6749 §4.4)")
	}
}

func paramNames(p map[string]string) []string { return slices.Sorted(maps.Keys(p)) }

// reservedParam says why a parameter of token requests cannot be configured as
// an extra one.
func reservedParam(name string) string {
	switch name {
	case "":
		return "is no name"
	case "grant_type", "redirect_uri":
		return "is set by the broker"
	case "scope", "audience", "resource":
		return "has a key of its own: set " + name
	}
	if credentialParam(name) {
		return "is a credential, which belongs in the secrets manager"
	}
	return ""
}

// reservedThere is the same for the authorization endpoint.
func reservedThere(name string) string {
	switch name {
	case "client_id", "response_type", "response_mode", "state", "code_challenge", "code_challenge_method":
		return "is set by the broker"
	case "audience", "resource":
		return ""
	}
	return reservedParam(name)
}

func credentialParam(name string) bool {
	switch strings.ToLower(name) {
	case "client_id", "client_secret", "client_assertion", "client_assertion_type", "assertion", "password", "username",
		"code", "code_verifier", "refresh_token", "access_token", "token", "api_key", "apikey":
		return true
	}
	return false
}

// checkURL accepts https, and http on loopback; its errors do not repeat the
// URL, which may hold a password.
func checkURL(raw string) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Hostname() == "" || u.Opaque != "":
		return errors.New("not a URL: write https://host/path")
	case u.User != nil:
		return errors.New("a URL must not hold a user or password")
	case u.Fragment != "":
		return errors.New("a URL must not have a #fragment here")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return errors.New("http shows the secret to the network: use https")
	case u.Scheme != "https" && u.Scheme != "http":
		return errors.New("not a URL: write https://host/path")
	}
	for name := range u.Query() {
		if credentialParam(name) {
			return fmt.Errorf("a credential must not be in a URL: remove %q", name)
		}
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
