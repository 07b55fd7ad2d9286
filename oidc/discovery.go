package oidc

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
)

// Rules of this file:
//   - what is configured wins over what is discovered;
//   - a document is used only if its issuer is the configured one, to the
//     letter (RFC 8414 §3.3), and only over a connection as safe as its own;
//   - documents are public: they are fetched before any secret is shown.

const maxDocument = 256 << 10

// The endpoints, by their names in metadata (RFC 8414 §2), which are their keys
// in the configuration too.
const (
	tokenEndpoint         = "token_endpoint"
	authorizationEndpoint = "authorization_endpoint"
	revocationEndpoint    = "revocation_endpoint"
	introspectionEndpoint = "introspection_endpoint"
	keysEndpoint          = "jwks_uri"
)

// metadata is what an issuer says of itself.
type metadata struct {
	host      string // that said it
	plain     bool   // over http, on loopback
	endpoints map[string]string
	aliases   map[string]string // for those who present a certificate (RFC 8705 §5)
}

// configured is the endpoint of that name in the profile.
func (p Profile) configured(name string) string {
	switch name {
	case tokenEndpoint:
		return p.TokenEndpoint
	case authorizationEndpoint:
		return p.AuthorizationEndpoint
	case revocationEndpoint:
		return p.RevocationEndpoint
	case introspectionEndpoint:
		return p.IntrospectionEndpoint
	case keysEndpoint:
		return p.JWKSURI
	}
	return ""
}

// remote says whether tokens come from a server.
func (p Profile) remote() bool { return p.Grant != SelfSigned && p.Grant != NoGrant }

// discovers says whether the metadata are used for whatever is not configured.
// Beside a configured token endpoint, an issuer is often a mere name: many have
// no metadata, and one that cannot be had must not stop what works without.
func (p Profile) discovers() bool {
	return p.remote() && (p.MetadataURI != "" || p.TokenEndpoint == "" && p.Issuer != "")
}

// find gives the URL of an endpoint, nil if there is none. Whoever presents a
// certificate may have one of its own.
func (c *Client) find(ctx context.Context, name string, certificate bool) (*url.URL, error) {
	raw := c.profile.configured(name)
	if raw != "" {
		return c.parse(c.host(), name, raw)
	}
	// Nobody can log in without this one, so the issuer's name is tried.
	needed := name == authorizationEndpoint && c.profile.Issuer != ""
	if !c.profile.discovers() && !needed {
		return nil, nil
	}
	d, err := c.metadata.get(ctx, nil)
	if err != nil {
		return nil, err
	}
	if raw = d.endpoints[name]; certificate && d.aliases[name] != "" {
		raw = d.aliases[name]
	}
	if raw == "" {
		return nil, nil
	}
	u, err := c.parse(d.host, name, raw)
	if err == nil && u.Scheme == "http" && !d.plain {
		return nil, &Error{Kind: Protocol, Message: d.host + ": the issuer's metadata name a " + name + " without TLS", Hint: "set " + name}
	}
	return u, err
}

func (c *Client) parse(host, name, raw string) (*url.URL, error) {
	err := checkURL(raw)
	if err == nil {
		var u *url.URL
		if u, err = url.Parse(raw); err == nil {
			return u, nil
		}
	}
	return nil, &Error{Kind: Protocol, Message: host + ": the issuer's metadata name a " + name + " that cannot be used", Hint: "set " + name}
}

// fetchMetadata reads the issuer's metadata.
func (c *Client) fetchMetadata(ctx context.Context) (metadata, error) {
	places, err := c.profile.places()
	if err != nil {
		return metadata{}, &Error{Kind: Protocol, Message: c.host() + ": issuer is no URL below which metadata can be found", Hint: "set metadata_uri"}
	}
	var last error
	for _, at := range places {
		a, err := c.document(ctx, at, maxDocument)
		if err != nil {
			return metadata{}, err
		}
		d, err := a.metadata(c.profile.Issuer)
		if err == nil {
			d.plain = at.Scheme == "http"
			return d, nil
		}
		if last = err; !a.absent() {
			break
		}
	}
	return metadata{}, last
}

// places are where the metadata may be: RFC 8414 §3.1 puts the well-known part
// between host and path, OpenID Connect Discovery §4 at the end.
func (p Profile) places() ([]*url.URL, error) {
	if p.MetadataURI != "" {
		u, err := url.Parse(p.MetadataURI)
		return []*url.URL{u}, err
	}
	if err := checkURL(p.Issuer); err != nil {
		return nil, err
	}
	u, err := url.Parse(p.Issuer)
	if err != nil {
		return nil, err
	}
	base := &url.URL{Scheme: u.Scheme, Host: u.Host}
	path := strings.TrimRight(u.EscapedPath(), "/")
	first, err := base.Parse("/.well-known/oauth-authorization-server" + path)
	if err != nil {
		return nil, err
	}
	second, err := base.Parse(path + "/.well-known/openid-configuration")
	return []*url.URL{first, second}, err
}

// document fetches what is public.
func (c *Client) document(ctx context.Context, at *url.URL, limit int) (*answer, error) {
	req := (&http.Request{Method: http.MethodGet, URL: at, Host: at.Host, Header: http.Header{}}).WithContext(ctx)
	a, err := send(c.rt, c.clock, req, limit)
	if err != nil {
		return nil, err
	}
	// Its Date is not remembered: a document may come from a cache, or from
	// another host than tokens do.
	return a, nil
}

// busy says whether the answer is "not now".
func (a *answer) busy() bool {
	return a.status >= 500 || a.status == http.StatusTooManyRequests || a.status == http.StatusRequestTimeout
}

// absent says whether there are no metadata at this place: by status, or
// because a page was answered.
func (a *answer) absent() bool {
	switch a.status {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusGone:
		return true
	}
	return !a.busy() && !a.json()
}

// metadata reads a document, which must be issuer's.
func (a *answer) metadata(issuer string) (metadata, error) {
	const hint = "check issuer and metadata_uri, or set token_endpoint and what else is needed"
	switch {
	case a.busy():
		return metadata{}, &Error{Kind: Unavailable, Status: a.status, RetryAfter: a.retryAfter(), Message: a.host + ": the issuer's metadata cannot be had now"}
	case a.status != http.StatusOK:
		return metadata{}, a.protocol(hint, "there are no metadata of the issuer (HTTP %d)", a.status)
	case a.truncated:
		return metadata{}, a.protocol(hint, "the issuer's metadata are larger than %d bytes", maxDocument)
	case !a.json():
		return metadata{}, a.protocol(hint, "the answer is a page, not the issuer's metadata (%s)", a.mediaType())
	}
	m, err := a.members()
	if err != nil {
		return metadata{}, a.protocol(hint, "the issuer's metadata are no JSON object")
	}
	if got, ok := text(m["issuer"]); !ok || string(got) != issuer {
		return metadata{}, a.protocol("set issuer to the one in the metadata, to the letter, if it is the right one (RFC 8414 §3.3)",
			"the metadata are of the issuer at %s, and issuer names %s", hostOf(string(got)), hostOf(issuer))
	}
	var aliases map[string]json.RawMessage
	_ = json.Unmarshal(m["mtls_endpoint_aliases"], &aliases) // what is no object names none
	return metadata{host: a.host, endpoints: urls(m), aliases: urls(aliases)}, nil
}

// urls picks the endpoints that this package knows.
func urls(m map[string]json.RawMessage) map[string]string {
	found := map[string]string{}
	for _, name := range []string{tokenEndpoint, authorizationEndpoint, revocationEndpoint, introspectionEndpoint, keysEndpoint} {
		if s, ok := text(m[name]); ok {
			found[name] = string(s)
		}
	}
	return found
}

// hostOf names a URL's host for people, and nothing else of it.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || len(u.Host) > 253 || strings.Trim(strings.ToLower(u.Host), "abcdefghijklmnopqrstuvwxyz0123456789.-:[]") != "" {
		return "no known host"
	}
	return u.Host
}
