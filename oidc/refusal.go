package oidc

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

const clockTrouble = 30 * time.Second // a clock's error that may be why an assertion is refused

// refusal classifies an answer whose status is not 200.
func (c *Client) refusal(a *answer, q *request) *Error {
	e := a.refusal(&c.profile, q)
	judged := e.Kind == InvalidClient || e.Kind == InvalidGrant || e.Kind == Refused && e.Code == "invalid_grant"
	if now, ok := a.measured(); ok && q.signed && judged && now.Abs() <= maxSkew && (now-q.ahead).Abs() > clockTrouble {
		// The key was not judged, the time was: the next assertion is made by
		// the issuer's clock, which is known now.
		why := a.clockHint()
		if now.Abs() <= clockTrouble {
			why = "this machine's clock was set meanwhile"
		}
		return &Error{Kind: Unavailable, Code: e.Code, Status: e.Status, RetryAfter: time.Second,
			Message: fmt.Sprintf("%s: the issuer refuses an assertion that was made by another clock than its own (%s, HTTP %d)", a.host, e.Code, a.status),
			Hint:    "the next attempt goes by the issuer's clock; " + why}
	}
	return e
}

func (a *answer) refusal(p *Profile, q *request) *Error {
	code := a.errorCode()
	e := &Error{Kind: Protocol, Code: code, Status: a.status, RetryAfter: a.retryAfter()}
	say := func(k Kind, hint, format string, args ...any) *Error {
		e.Kind, e.Hint = k, hint
		e.Message = a.host + ": " + fmt.Sprintf(format, args...)
		return e
	}
	rejected := a.status == http.StatusBadRequest || a.status == http.StatusUnauthorized
	switch {
	case a.status == http.StatusTooManyRequests:
		return say(Throttled, "", "too many requests (HTTP 429)")
	case a.busy(), code == "server_error", code == "temporarily_unavailable":
		return say(Unavailable, "", "the issuer cannot answer now (HTTP %d)", a.status)
	case rejected && code == "invalid_grant" && q.grant != grantClient && q.grant != "":
		what, hint := q.granted()
		return say(InvalidGrant, hint, "the issuer refuses %s (%s, HTTP %d)", what, code, a.status)
	case rejected && code == "invalid_client", a.status == http.StatusUnauthorized && code == "unauthorized_client":
		// 401 is for a client that was not authenticated (RFC 6749 §5.2);
		// Keycloak says unauthorized_client beside it.
		what, hint := p.evidence()
		return say(InvalidClient, hint, "the issuer refuses %s (%s, HTTP %d)", what, code, a.status)
	case code != "" && code != "invalid_client" && (rejected || a.status == http.StatusForbidden):
		return say(Refused, refusedHint(code, q), "the issuer refuses the request (%s, HTTP %d)", code, a.status)
	case a.status >= 300 && a.status < 400:
		return say(Protocol, "redirects are not followed with a secret in hand; set "+q.endpoint+" to the address that answers",
			"the %s redirects elsewhere (HTTP %d)", q.endpoint, a.status)
	case a.elsewhere():
		return say(Protocol, "check "+q.endpoint, "there is no %s at this address (HTTP %d)", q.endpoint, a.status)
	case a.status == http.StatusProxyAuthRequired:
		return say(Protocol, "check proxy", "the proxy wants a login (HTTP 407)")
	case !a.json():
		return say(Protocol, "a firewall or proxy may have answered in the issuer's place; a secret is never judged by such a page",
			"the answer is a page, not an authorization server's (HTTP %d, %s)", a.status, a.mediaType())
	}
	return say(Protocol, "check "+q.endpoint, "the answer is none that RFC 6749 knows (HTTP %d)", a.status)
}

// elsewhere says whether the endpoint is not at this address, or no more.
func (a *answer) elsewhere() bool {
	switch a.status {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusGone:
		return true
	}
	return a.status >= 300 && a.status < 400
}

// evidence names what the client authenticates with, and what to check if it
// is refused.
func (p *Profile) evidence() (what, hint string) {
	const current = "check that client_id and client_secret are current and belong to this environment of the issuer"
	switch p.ClientAuth {
	case SecretJWT:
		return "the assertion signed with the client's secret", current + "; check assertion.audience and the clock"
	case PrivateKeyJWT:
		return "the client's assertion", "check that the issuer knows this public key: broker keys show CLIENT prints it; check client_id, assertion.audience and the clock"
	case TLS, SelfSignedTLS:
		return "the client's certificate", "check client_id, and that the issuer knows this certificate: broker keys show CLIENT prints it"
	case NoAuth:
		return "the client", "check client_id, and that the issuer knows the client as a public one"
	default:
		return "the client's secret", current
	}
}

// granted names what q was granted for, and what to do if that is refused.
func (q *request) granted() (what, hint string) {
	switch q.grant {
	case grantRefresh:
		return "the refresh token", "consent was withdrawn, or the token ran out or was used elsewhere: run broker login CLIENT"
	case grantCode:
		return "the code", "it can be used once, and soon: run broker login CLIENT again"
	}
	return "the assertion", "check that the issuer knows this public key: broker keys show CLIENT prints it; check assertion.subject, assertion.audience and the clock"
}

func refusedHint(code string, q *request) string {
	switch code {
	case "invalid_scope":
		return "check scope, which the issuer may not have granted to this client"
	case "invalid_target":
		return "check audience and resource"
	case "unsupported_token_type":
		return "the issuer cannot revoke tokens of this type: they end by themselves"
	case "unauthorized_client", "unsupported_grant_type":
		if q.grant != "" {
			return "ask the issuer to allow the grant " + q.grant + " for this client"
		}
	}
	return "check the preset and params"
}

// errorCode gives the error code of a JSON answer, if it is a known one. An
// unknown one is the issuer's free text and is dropped.
func (a *answer) errorCode() string {
	if !a.json() || a.truncated {
		return ""
	}
	members, err := a.members()
	defer wipeMembers(members)
	if err != nil {
		return ""
	}
	code, _ := text(members["error"])
	switch string(code) {
	case "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope", // RFC 6749 §5.2
		"invalid_target",                          // RFC 8707 §2
		"unsupported_token_type",                  // RFC 7009 §2.2.1
		"server_error", "temporarily_unavailable": // RFC 6749 §4.1.2.1, sent by token endpoints too
		return strings.Clone(string(code))
	}
	return ""
}
