package client

import "time"

// Token is the answer of /v1/clients/{client}/token, in the terms of RFC 6749,
// section 5.1.
type Token struct {
	AccessToken string    `json:"access_token"`
	TokenType   string    `json:"token_type"` // as it is written in the header: "Bearer"
	ExpiresIn   int64     `json:"expires_in"` // seconds, counted when answering
	ExpiresAt   time.Time `json:"expires_at"`
	Scope       string    `json:"scope"` // granted; space-separated; may be empty
	Client      string    `json:"client"`
	Fingerprint string    `json:"fingerprint"` // base64url(SHA-256(access token)), as RFC 9449's ath
}

// Headers are what a call to the API needs, by name.
type Headers map[string]string

// Rejection tells that the API refused a token.
type Rejection struct {
	// AccessToken or Fingerprint names the token; one of them.
	AccessToken string `json:"access_token,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
	// Status is the API's HTTP status, 400 to 599.
	Status int `json:"status"`
	// MoreInformation is the text by which API Connect tells a refused key from
	// a refused token (member moreInformation of its 401). Empty: unknown.
	MoreInformation string `json:"more_information,omitempty"`
}

// Rejected is what came of a Rejection.
type Rejected struct {
	Replaced    bool   `json:"replaced"`              // ask again: there is a new token
	Fingerprint string `json:"fingerprint,omitempty"` // of the current token
	Reason      string `json:"reason"`
	RetryAfter  int    `json:"retry_after,omitempty"` // seconds until a further rejection may replace the token
}

// Whoami is what the broker sees of the caller.
type Whoami struct {
	Caller  string         `json:"caller"` // in words
	Clients []WhoamiClient `json:"clients"`
}

// WhoamiClient is one client that the caller may use.
type WhoamiClient struct {
	Client   string   `json:"client"`
	Entries  []int    `json:"entries"` // positions in allow:, from 0, that match
	Surfaces []string `json:"surfaces"`
}

// Readiness says whether the caller's clients can be served.
type Readiness struct {
	Ready   bool              `json:"ready"`
	Clients []ReadinessClient `json:"clients"`
	Others  int               `json:"others"` // how many other clients there are
}

// ReadinessClient is the state of one client.
type ReadinessClient struct {
	Client string `json:"client"`
	Ready  bool   `json:"ready"`
	Code   Code   `json:"code,omitempty"`   // why not
	Reason string `json:"reason,omitempty"` // in words
	Runway int64  `json:"runway_seconds"`   // for how long the tokens in hand serve
	// DegradedUntil is until when, at most, a sealed copy serves in place of a
	// secrets manager that is down; zero: none does. A consumer notices nothing.
	DegradedUntil time.Time `json:"degraded_until,omitzero"`
}
