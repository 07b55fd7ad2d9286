package oidc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"credentialbroker/internal/outbound"
)

// A Kind classifies what went wrong, once, at the boundary to the issuer.
type Kind string

// The kinds. Above this package code branches on these, never on text.
const (
	// InvalidClient: the secret is refused. Only RFC 6749 §5.2's code in a
	// JSON answer with status 400 or 401 counts.
	InvalidClient Kind = "invalid_client"
	// Refused: another refusal of RFC 6749 §5.2, or a bundle without the
	// fields that a request needs, for which nothing is sent.
	Refused Kind = "refused"
	// Protocol: an answer that is no token, or a token that fails its check.
	Protocol Kind = "protocol"
	// Throttled: too many requests (RFC 6585 §4).
	Throttled Kind = "throttled"
	// Unavailable: no answer, or one that says "not now".
	Unavailable Kind = "unavailable"
)

// An Error is what Mint returns. Message and Hint are shown to people: they
// hold no secret and no text of the issuer's answer beyond a known code.
type Error struct {
	Kind       Kind
	Code       string        // error code of RFC 6749 §5.2 and RFC 8707 §2, from the known ones only
	Status     int           // HTTP status; 0: no answer
	RetryAfter time.Duration // when the issuer said so, at most an hour; 0: it did not
	Message    string        // what is wrong, and where
	Hint       string        // what to do next; may be empty
	Err        error         // the cause, for errors.Is; never printed
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + "; " + e.Hint
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf gives the kind of err, Unavailable for an error that has none, and ""
// for nil.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Kind
	}
	return Unavailable
}

// transportError says why there is no answer from host. The cause's own text
// is not shown: it may hold a proxy's URL with its password.
func transportError(host string, err error) *Error {
	e := &Error{Kind: Unavailable, Err: err}
	say := func(what, hint string) *Error {
		e.Message, e.Hint = host+": "+what, hint
		return e
	}
	if what, hint := certificateProblem(err); what != "" {
		return say(what, hint)
	}
	var (
		dns    *net.DNSError
		op     *net.OpError
		record tls.RecordHeaderError
	)
	errors.As(err, &op)
	switch {
	case errors.Is(err, context.Canceled):
		return say("the request was abandoned", "")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return say("no answer in time", "")
	case errors.Is(err, outbound.ErrProxy):
		return say("the proxy cannot be reached", "check proxy and the way to it")
	case errors.As(err, &dns):
		return say("the host name cannot be resolved", "check the name and this machine's DNS; behind a firewall, set proxy")
	case errors.As(err, &record):
		return say("the other side does not speak TLS", "check scheme and port")
	case op != nil && (op.Op == "remote error" || op.Op == "local error"): // crypto/tls's words for an alert
		return say("the two sides cannot agree on TLS", "TLS 1.2 or newer is needed; the other side may want a client certificate")
	case errors.Is(err, syscall.ECONNREFUSED):
		return say("the connection was refused", "check host and port, and that the firewall lets this machine out")
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return say("the connection was cut", "")
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return say("there is no route to the host", "check this machine's network; behind a firewall, set proxy")
	}
	return say("no answer", "")
}

// certificateProblem says what is wrong with the server's certificate, if that
// is what err is about.
func certificateProblem(err error) (what, hint string) {
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		verify  *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &unknown):
		return "the certificate is signed by an unknown authority",
			"if your organisation has its own certificate authority or inspects TLS, name its PEM file in ca_file"
	case errors.As(err, &name):
		return "the certificate is for another host name", "check the host in the URL"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the certificate has expired or is not valid yet", "check this machine's clock first, then the certificate"
	case errors.As(err, &invalid), errors.As(err, &verify):
		return "the certificate is not valid", "see it with: openssl s_client -connect HOST:443"
	}
	return "", ""
}

// refusal classifies an answer whose status is not 200.
func (a *answer) refusal() *Error {
	code := a.errorCode()
	e := &Error{Kind: Protocol, Code: code, Status: a.status, RetryAfter: a.retryAfter()}
	say := func(k Kind, hint, format string, args ...any) *Error {
		e.Kind, e.Hint = k, hint
		e.Message = a.host + ": " + fmt.Sprintf(format, args...)
		return e
	}
	rejected := a.status == 400 || a.status == 401
	switch {
	case a.status == 429:
		return say(Throttled, "", "too many requests (HTTP 429)")
	case a.status >= 500, a.status == 408, code == "server_error", code == "temporarily_unavailable":
		return say(Unavailable, "", "the issuer cannot answer now (HTTP %d)", a.status)
	case rejected && code == "invalid_client", a.status == 401 && code != "":
		// 401 is for a client that was not authenticated (RFC 6749 §5.2),
		// whatever the code beside it: Keycloak says unauthorized_client.
		return say(InvalidClient, "check that client_id and client_secret are current and belong to this environment of the issuer",
			"the issuer refuses the client's secret (%s, HTTP %d)", code, a.status)
	case code != "" && code != "invalid_client" && (rejected || a.status == 403):
		return say(Refused, refusedHint(code), "the issuer refuses the request (%s, HTTP %d)", code, a.status)
	case a.status >= 300 && a.status < 400:
		return say(Protocol, "redirects are not followed with a secret in hand; set token_endpoint to the address that answers",
			"the token endpoint redirects elsewhere (HTTP %d)", a.status)
	case a.status == 404, a.status == 405, a.status == 410:
		return say(Protocol, "check token_endpoint", "there is no token endpoint at this address (HTTP %d)", a.status)
	case a.status == 407:
		return say(Protocol, "check proxy", "the proxy wants a login (HTTP 407)")
	case !a.json():
		return say(Protocol, "a firewall or proxy may have answered in the issuer's place; a secret is never judged by such a page",
			"the answer is a page, not a token endpoint's (HTTP %d, %s)", a.status, a.mediaType())
	}
	return say(Protocol, "check token_endpoint", "the answer is none that RFC 6749 knows (HTTP %d)", a.status)
}

func refusedHint(code string) string {
	switch code {
	case "invalid_scope":
		return "check scope, which the issuer may not have granted to this client"
	case "invalid_target":
		return "check audience and resource"
	case "unauthorized_client", "unsupported_grant_type":
		return "ask the issuer to allow the client_credentials grant for this client"
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
		"server_error", "temporarily_unavailable": // RFC 6749 §4.1.2.1, sent by token endpoints too
		return strings.Clone(string(code))
	}
	return ""
}
