package client

import (
	"encoding/json"
	"time"
)

// User is whom a self-signed JWT names: the body of
// /v1/clients/{client}/jwt. It is personal data and never recorded.
type User struct {
	UserID             string `json:"user_id,omitempty"`             // at most 255 bytes; empty: the client's default
	UserRepresentation string `json:"user_representation,omitempty"` // at most 255 bytes; empty: the client's default
}

// NewKey is what an administrator asks of POST /v1/clients/{client}/keys.
type NewKey struct {
	// Kind is rsa-2048, rsa-3072, rsa-4096, p-256 or ed25519. Empty: rsa-3072.
	Kind string `json:"kind,omitempty"`
	// Certificate puts a self-signed certificate beside the key, for issuers
	// that want the key in one.
	Certificate bool `json:"certificate,omitempty"`
	// Subject is the certificate's common name. Empty: the client's name.
	Subject string `json:"subject,omitempty"`
}

// Key is the public half of a client's private_key.
type Key struct {
	Client      string          `json:"client"`
	Version     string          `json:"version"`               // of the secret that holds it
	KeyID       string          `json:"kid"`                   // RFC 7638, unless the bundle says another
	Algorithm   string          `json:"alg"`                   // JWS: RS256, ES256, EdDSA
	JWK         json.RawMessage `json:"jwk"`                   // RFC 7517
	Certificate string          `json:"certificate,omitempty"` // PEM, if the bundle has one
	// Missing are the fields that the client needs and its secret lacks.
	Missing []string `json:"missing,omitempty"`
	// Pending is the key that waits for the issuer to know it; nil: there is none.
	Pending *Key `json:"pending,omitempty"`
}

// LoginStart begins a person's login: POST /v1/clients/{client}/login.
type LoginStart struct {
	// RedirectURI is where the code is awaited. Empty: the client's.
	RedirectURI string `json:"redirect_uri,omitempty"`
}

// Login is a login that is under way.
type Login struct {
	URL         string    `json:"url"` // for the person's browser
	RedirectURI string    `json:"redirect_uri"`
	State       string    `json:"state"` // comes back with the code
	Expires     time.Time `json:"expires"`
}

// LoginFinish ends a login: POST /v1/clients/{client}/login/finish.
type LoginFinish struct {
	State string `json:"state"`
	Code  string `json:"code"`
	// Issuer is the parameter iss of the redirect (RFC 9207). Empty: it had none.
	Issuer string `json:"iss,omitempty"`
}

// Revocation is what an administrator asks of /v1/clients/{client}/revoke.
type Revocation struct {
	// Login ends the login too: the refresh token is revoked.
	Login bool `json:"login,omitempty"`
}
