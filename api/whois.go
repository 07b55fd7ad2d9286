package api

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/gate"
	"credentialbroker/internal/secret"
)

// Rules of this file: to look leaves no trace; to have a token judged may ask an
// issuer and make an incident, so it is an act that is recorded. No record holds
// a token or its fingerprint.

const whoisForm = `{"access_token" or "fingerprint", "client"}`

// judgeLimits is how many tokens a user may have judged: as many as a person
// has to look into, and too few to burden an issuer.
func judgeLimits() gate.Limits { return gate.Limits{RequestsPerSecond: 1, Burst: 20} }

// A question is the body of a whois request.
type question struct {
	fingerprint string
	token       secret.Secret // empty: the fingerprint alone was given
	name        string        // of the client whose issuer may be asked
}

func (s *Server) whois(w http.ResponseWriter, r *http.Request, c *access.Caller, _ string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	body, err := s.readBody(w, r)
	if err != nil {
		return err
	}
	q, err := parseWhois(body)
	if err != nil {
		return err
	}
	defer q.token.Wipe()
	unlock := s.alone()
	who, err := s.cfg.Administration.Whois(r.Context(), q.fingerprint)
	unlock()
	var e *broker.Error
	if !q.token.Empty() && errors.As(err, &e) && e.Code == client.NotFound {
		who, err = s.judge(r, c, q, e)
	}
	if who.Holders == nil {
		who.Holders = []client.Holder{}
	}
	return s.done(w, who, err)
}

// judge is for a token that the audit log does not know; unknown says so.
func (s *Server) judge(r *http.Request, c *access.Caller, q question, unknown *broker.Error) (client.Whois, error) {
	if q.name != "" && !everything(c) {
		if roles := s.cfg.Administration.Roles(); !roles.has(c, Operate) {
			s.cfg.Administration.Denied(c, "POST /v1/whois client", q.name)
			return client.Whois{}, &broker.Error{Code: client.NotAllowed, Identity: c.String(), Clients: []string{},
				Detail: "to ask a client's issuer about a token you have to " + roles.need(Operate)}
		}
	}
	if conn := gate.From(r.Context()); conn != nil {
		if wait := conn.AdmitJudging(judgeLimits()); wait > 0 {
			s.rateLimited.Add(1)
			return client.Whois{}, &broker.Error{Code: client.RateLimited, RetryAfter: max(wait, time.Second),
				Detail: "the audit log does not know that token, and this user has had many judged: ask again after Retry-After"}
		}
	}
	// What was issued until now is on the disk with this.
	if err := s.act(r, c, "whois.judge", q.name, nil); err != nil {
		return client.Whois{}, err
	}
	who, err := s.cfg.Administration.Judge(r.Context(), q.token, q.fingerprint, q.name)
	var e *broker.Error
	if errors.As(err, &e) && e.Code == client.NotFound {
		e.Detail = unknown.Detail + "; " + e.Detail
	}
	return who, err
}

// parseWhois reads the body of a whois request, and wipes it. A token is never
// a string.
func parseWhois(body []byte) (q question, err error) {
	defer clear(body)
	m, err := members(body, whoisForm, "access_token", "fingerprint", "client")
	if err != nil {
		return q, err
	}
	defer wipe(m)
	token, byToken := m["access_token"]
	if _, byFingerprint := m["fingerprint"]; byToken == byFingerprint {
		return q, invalid("name the token by one of access_token and fingerprint")
	}
	if raw, there := m["client"]; there {
		name, _ := text(raw)
		if q.name = string(name); !byToken || !validName(q.name) {
			return q, invalid("client goes with access_token; " + nameForm)
		}
	}
	if byToken {
		value, _ := text(token)
		if !validToken(value) {
			clear(value)
			return q, invalid("access_token is a string of printable ASCII without spaces, at most 16384 bytes")
		}
		sum := sha256.Sum256(value)
		q.fingerprint, q.token = base64.RawURLEncoding.EncodeToString(sum[:]), secret.New(value)
		return q, nil
	}
	value, _ := text(m["fingerprint"])
	if q.fingerprint = string(value); !validFingerprint(q.fingerprint) {
		return question{}, invalid("fingerprint is 43 characters of base64url, as /token gives it")
	}
	return q, nil
}
