package oidc

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"credentialbroker/internal/secret"
)

const userAgent = "credential-broker"

// exchange sends one token request and reads the answer, whatever it is. The
// caller wipes it.
func (c *Client) exchange(ctx context.Context, m Material, r Request) (*answer, error) {
	body, err := c.encode(m, r)
	if err != nil {
		return nil, err
	}
	defer body.wipe()
	req := (&http.Request{
		Method:        http.MethodPost,
		URL:           c.endpoint,
		Host:          c.endpoint.Host,
		Header:        http.Header{},
		Body:          body,
		ContentLength: int64(len(body.all)),
	}).WithContext(ctx)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if body.auth != nil {
		req.Header.Set("Authorization", view(body.auth))
	}
	return send(c.rt, c.clock, req, maxAnswer)
}

// encode writes the form (RFC 6749 §4.4.2).
func (c *Client) encode(m Material, r Request) (*form, error) {
	size := 256 + 3*(len(r.Scope)+len(r.Audience)+len(r.Resource))
	for k, v := range c.profile.Params {
		size += 3 * (len(k) + len(v))
	}
	for _, name := range []string{"client_id", "client_secret"} {
		if m[name].Empty() {
			return nil, &Error{Kind: Refused, Message: fmt.Sprintf("%s: the client's secret has no %s", c.endpoint.Host, name),
				Hint: "add the field in the secrets manager, or map it under fields"}
		}
		size += 3 * m[name].Len()
	}
	f := &form{all: make([]byte, 0, size)} // large enough: growing would leave a copy
	f.add("grant_type", "client_credentials")
	err := c.authenticate(f, m)
	if err != nil {
		f.wipe()
		return nil, &Error{Kind: Unavailable, Message: c.endpoint.Host + ": the client's secret was replaced meanwhile", Err: err}
	}
	f.add("scope", r.Scope)
	f.add("audience", r.Audience)
	f.add("resource", r.Resource)
	for _, k := range paramNames(c.profile.Params) {
		f.add(k, c.profile.Params[k])
	}
	f.rest = f.all
	return f, nil
}

func (c *Client) authenticate(f *form, m Material) error {
	id, key := m["client_id"], m["client_secret"]
	if c.profile.ClientAuth != SecretBasic {
		return errors.Join(f.addSecret("client_id", id), f.addSecret("client_secret", key))
	}
	// RFC 6749 §2.3.1: form-urlencoded first, then as RFC 7617 has it.
	plain := make([]byte, 0, 3*(id.Len()+key.Len())+1)
	err := id.Use(func(b []byte) error { plain = appendForm(plain, b); return nil })
	plain = append(plain, ':')
	err = errors.Join(err, key.Use(func(b []byte) error { plain = appendForm(plain, b); return nil }))
	defer func() { clear(plain) }()
	const scheme = "Basic "
	f.auth = make([]byte, len(scheme)+base64.StdEncoding.EncodedLen(len(plain)))
	base64.StdEncoding.Encode(f.auth[copy(f.auth, scheme):], plain)
	return err
}

// A form is a request's body that can be wiped even while a transport that was
// told to stop still reads it, and beside it the Authorization header.
type form struct {
	mu      sync.Mutex
	all     []byte
	rest    []byte // not read yet
	auth    []byte // the Authorization header's string points here; nil: none
	started bool   // a transport reads the body only when it has written the header
	wiped   bool
}

// Read implements io.Reader.
func (f *form) Read(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started = true
	if f.wiped {
		return 0, net.ErrClosed
	}
	n := copy(b, f.rest)
	f.rest = f.rest[n:]
	if len(f.rest) == 0 {
		return n, io.EOF
	}
	return n, nil
}

// Close implements io.Closer.
func (f *form) Close() error { return nil }

func (f *form) wipe() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.all)
	f.wiped = true
	if f.started {
		clear(f.auth) // else the header may be on its way: it is left to the collector
	}
}

// add appends one parameter; an empty value is not sent.
func (f *form) add(name, value string) {
	if value != "" {
		f.name(name)
		f.all = appendForm(f.all, []byte(value))
	}
}

func (f *form) addSecret(name string, s secret.Secret) error {
	f.name(name)
	return s.Use(func(b []byte) error { f.all = appendForm(f.all, b); return nil })
}

func (f *form) name(name string) {
	if len(f.all) > 0 {
		f.all = append(f.all, '&')
	}
	f.all = append(appendForm(f.all, []byte(name)), '=')
}

// appendForm encodes as application/x-www-form-urlencoded. The standard
// library would make strings of it, which cannot be wiped.
func appendForm(dst, src []byte) []byte {
	const hex = "0123456789ABCDEF"
	for _, c := range src {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_', c == '~':
			dst = append(dst, c)
		case c == ' ':
			dst = append(dst, '+')
		default:
			dst = append(dst, '%', hex[c>>4], hex[c&15])
		}
	}
	return dst
}

// view makes a string that shares b's memory, so that it is wiped with it. It
// must not be used after that.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func paramNames(p map[string]string) []string { return slices.Sorted(maps.Keys(p)) }

// reservedParam says why a parameter cannot be configured as an extra one.
func reservedParam(name string) string {
	switch name {
	case "":
		return "is no name"
	case "grant_type":
		return "is set by the broker"
	case "scope", "audience", "resource":
		return "has a key of its own: set " + name
	}
	if credentialParam(name) {
		return "is a credential, which belongs in the secrets manager"
	}
	return ""
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
