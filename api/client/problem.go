package client

import "fmt"

// A Code names one kind of failure, for programs; it never changes its meaning.
type Code string

// The codes of product errors, with the HTTP status of each in Status.
const (
	InvalidRequest      Code = "invalid_request"
	NotAllowed          Code = "not_allowed"
	NotFound            Code = "not_found" // no such path
	MethodNotAllowed    Code = "method_not_allowed"
	Quarantined         Code = "quarantined"
	APIKeyRejected      Code = "api_key_rejected"
	LoginRequired       Code = "login_required"
	RateLimited         Code = "rate_limited"
	CredentialsRejected Code = "credentials_rejected"
	IssuerProtocolError Code = "issuer_protocol_error"
	IssuerUnavailable   Code = "issuer_unavailable"
	ProviderUnavailable Code = "provider_unavailable"
	AuditUnavailable    Code = "audit_unavailable"
	APIUnavailable      Code = "api_unavailable" // of the reverse proxy: the API cannot be reached
	APITimeout          Code = "api_timeout"     // likewise: it does not answer in time
	Internal            Code = "internal"
	// InvalidConfiguration is the admin socket's: a reload that changed nothing.
	InvalidConfiguration Code = "invalid_configuration"
)

// Status is the HTTP status that goes with the code.
func (c Code) Status() int {
	switch c {
	case InvalidRequest:
		return 400
	case NotAllowed:
		return 403
	case NotFound:
		return 404
	case MethodNotAllowed:
		return 405
	case Quarantined, APIKeyRejected, LoginRequired:
		return 409
	case InvalidConfiguration:
		return 422
	case RateLimited:
		return 429
	case CredentialsRejected, IssuerProtocolError, APIUnavailable:
		return 502
	case IssuerUnavailable, ProviderUnavailable, AuditUnavailable:
		return 503
	case APITimeout:
		return 504
	case Internal:
	}
	return 500
}

// A Problem is an error document (RFC 9457). Detail says what to do.
type Problem struct { //nolint:errname // RFC 9457 calls it so
	Type   string `json:"type"` // always "about:blank": the Code tells the kinds apart
	Title  string `json:"title"`
	Status int    `json:"status"`
	Code   Code   `json:"code"`
	Detail string `json:"detail"`
	// RetryAfter is in seconds, as the Retry-After header; 0: it is not known
	// when trying again may help.
	RetryAfter int `json:"retry_after,omitempty"`
	// Identity is how the broker sees the caller (not_allowed only).
	Identity string `json:"identity,omitempty"`
	// Clients are those that the caller may use (not_allowed only).
	Clients []string `json:"clients,omitempty"`
}

func (p *Problem) Error() string { return fmt.Sprintf("%s: %s", p.Code, p.Detail) }

// Title is a short name of the code for people.
func (c Code) Title() string {
	switch c {
	case InvalidRequest:
		return "The request is not understood"
	case NotAllowed:
		return "Not allowed"
	case NotFound:
		return "No such path"
	case MethodNotAllowed:
		return "Method not allowed"
	case Quarantined:
		return "Quarantined after a leak"
	case APIKeyRejected:
		return "The API key was rejected"
	case LoginRequired:
		return "A person must log in"
	case InvalidConfiguration:
		return "The configuration has errors"
	case RateLimited:
		return "Too many requests"
	case CredentialsRejected:
		return "The issuer rejected the credentials"
	case IssuerProtocolError:
		return "The issuer gave no token"
	case IssuerUnavailable:
		return "The issuer is unavailable"
	case ProviderUnavailable:
		return "The secrets manager is unavailable"
	case AuditUnavailable:
		return "The audit log cannot be written"
	case APIUnavailable:
		return "The API cannot be reached"
	case APITimeout:
		return "The API does not answer"
	case Internal:
	}
	return "Internal error"
}
