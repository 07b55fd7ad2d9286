package oidc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
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
	// InvalidGrant: the refresh token, code or assertion is refused (RFC 6749
	// §5.2), and not the client: the person has to log in again.
	InvalidGrant Kind = "invalid_grant"
	// Protocol: an answer that is no token, or a token that fails its check.
	Protocol Kind = "protocol"
	// Throttled: too many requests (RFC 6585 §4).
	Throttled Kind = "throttled"
	// Unavailable: no answer, or one that says "not now".
	Unavailable Kind = "unavailable"
)

// An Error is what a Client returns. Message and Hint are shown to people: they
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

// Unreachable says why there is no answer from host, in words that hold
// nothing of what was sent or received.
func Unreachable(host string, err error) *Error { return transportError(host, err) }

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
