// Package providers reads, and where a secrets manager allows it writes, one
// versioned bundle of fields.
//
// [Provider] is what an adapter implements: one secret of one manager. [Load]
// is what the rest of the house calls: one client's bundle, which may have to
// be renamed or gathered from several secrets. Adapters retry nothing and keep
// no value: whoever calls decides when to ask again.
package providers

import (
	"context"
	"time"

	"credentialbroker/internal/secret"
)

// A Provider reads secrets from one manager. Its methods may be called from
// many goroutines.
type Provider interface {
	// Fetch reads the secret at ref. If its version is have, it returns
	// ErrUnchanged, which an adapter finds out the cheapest way that its
	// manager offers, without reading values wherever that is possible.
	// Other errors are of type *Error. ctx bounds the whole call.
	Fetch(ctx context.Context, ref Ref, have Version) (Bundle, error)
	// Close ends background work and forgets the manager's login.
	Close() error
}

// A Writer is a Provider that can store a new version. Put is atomic where the
// manager has compare-and-set; elsewhere it reads, writes, reads back, and
// returns a Conflict if another writer came between. expect is the version
// that is to be replaced, empty for a secret that must not exist yet.
type Writer interface {
	Put(ctx context.Context, ref Ref, fields map[string]secret.Secret, expect Version) (Version, error)
}

// Egress is a Provider that knows which host:port pairs it connects to, for
// the firewall request.
type Egress interface {
	Endpoints() []string
}

// A Perishable is a Provider that can tell when what it logs in with ends: not
// its session, which it renews by itself, but the secret-id, token or
// certificate that somebody has to replace.
type Perishable interface {
	// LoginEnd gives the end and what ends, in words. Zero: no end is known. Its
	// errors are of type *Error; Denied: the login may not ask for its own end.
	LoginEnd(ctx context.Context) (what string, end time.Time, err error)
}

// A Ref names one secret in the manager's own words.
type Ref struct {
	// Mount is the path of the secrets engine (vault only; empty: "secret").
	Mount string `yaml:"mount,omitempty" json:"mount,omitempty"`
	// Path is the secret's name: a path (vault), a name or ARN (aws), a name
	// (azure), a name or projects/P/secrets/S (gcp), a name in the store
	// (file), a credential's name (systemd), anything (exec).
	Path string `yaml:"path,omitempty" json:"path"`
	// Version pins one version. Empty: the manager's current one.
	Version Version `yaml:"version,omitempty" json:"version,omitempty"`
}

// String gives mount/path@version, for messages and records.
func (r Ref) String() string {
	s := r.Path
	if r.Mount != "" {
		s = r.Mount + "/" + s
	}
	if r.Version != "" {
		s += "@" + string(r.Version)
	}
	return s
}

// A Version is a manager's own name of one state of a secret: at most 128
// characters of A-Z a-z 0-9 . _ : -; the version of a gathered bundle is a
// list of these. It is no secret, and is what records call a bundle by.
type Version string

// A Bundle is the fields of one client at one version, never mixed.
type Bundle struct {
	Version Version
	// Fields by name: client_id, client_secret, api_key, private_key …
	// A secret that is not a JSON object has the one field Whole.
	Fields map[string]secret.Secret
	// Created is when the manager made this version; zero: unknown.
	Created time.Time
	// NotBefore and Expires bound the version's validity; zero: no bound.
	// Adapters refuse a version outside its bounds, at the time of reading.
	NotBefore, Expires time.Time
}

// Whole is the name of the only field of a secret without named fields.
const Whole = ""

// MaxPayload is the largest secret that is read, in bytes.
const MaxPayload = 256 << 10

// Wipe wipes all fields.
func (b Bundle) Wipe() {
	for _, s := range b.Fields {
		s.Wipe()
	}
}

// CheckValidity returns the error of kind NotYetValid or Expired that applies
// to b at now.
func (b Bundle) CheckValidity(now time.Time) error {
	switch {
	case !b.NotBefore.IsZero() && now.Before(b.NotBefore):
		return &Error{Kind: NotYetValid, Message: "the secret is not valid before " + b.NotBefore.UTC().Format(time.RFC3339)}
	case !b.Expires.IsZero() && !now.Before(b.Expires):
		return &Error{Kind: Expired, Message: "the secret expired at " + b.Expires.UTC().Format(time.RFC3339)}
	}
	return nil
}
