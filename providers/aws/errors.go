package aws

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"credentialbroker/providers"
)

const name = "aws"

// fault classifies what the SDK returned, once. Nothing of the answer but its
// error code is shown.
func fault(err error, ref providers.Ref, action string) *providers.Error {
	var done *providers.Error
	if errors.As(err, &done) { // the login's own
		e := *done
		e.Ref = ref
		return &e
	}
	code, status := codeOf(err)
	e := &providers.Error{Provider: name, Ref: ref, Err: err, RetryAfter: retryAfter(err)}
	switch {
	case errors.Is(err, errNotAnAnswer) || isMalformed(err) && status < 500:
		e.Kind, e.Message = providers.Malformed, "what answered is not Secrets Manager"
		e.Hint = "check endpoint and proxy"
	case throttled(code) || status == http.StatusTooManyRequests:
		e.Kind, e.Message = providers.Throttled, "too many calls"
	case code == "ResourceNotFoundException":
		e.Kind, e.Message = providers.NotFound, "no such secret in this region, or it has no such version"
	case code == "ResourceExistsException":
		e.Kind, e.Message = providers.Conflict, "another writer was faster"
	case code == "InvalidRequestException":
		e.Kind, e.Message = providers.Deleted, "the secret is marked for deletion, or its state does not allow this"
	case strings.HasPrefix(code, "DecryptionFailure") || strings.HasPrefix(code, "KMS") || code == "EncryptionFailure":
		e.Kind, e.Message = providers.Denied, "its key does not open it"
		e.Hint = "the key must be enabled, and allow the broker kms:Decrypt"
	case strings.HasPrefix(code, "AccessDenied") || code == "NotAuthorized" || code == "UnauthorizedOperation":
		e.Kind, e.Message, e.Hint = providers.Denied, "the policy does not allow it", "allow "+action
	case loginRefused(err):
		e.Kind, e.Message = providers.LoginFailed, "AWS refused the broker's own credentials"
		e.Hint = "check auth, and the clock of this machine"
	case code == "InvalidParameterException" || code == "ValidationException":
		e.Kind, e.Message = providers.Malformed, "AWS does not take this name or value"
	case status >= 400 && status < 500:
		e.Kind, e.Message = providers.Denied, "refused"
	default:
		e.Kind, e.Message = providers.Unavailable, "AWS Secrets Manager cannot be reached"
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			e.Message = "AWS Secrets Manager does not answer in time"
		case errors.Is(err, context.Canceled):
			e.Message = "given up"
		case status != 0:
			e.Message = "AWS Secrets Manager fails"
		}
	}
	if c := shown(code); c != "" {
		e.Message += " [" + c + "]"
	}
	return e
}

// codeOf gives the error code that AWS answered and the HTTP status; "" and 0
// when it did not answer.
func codeOf(err error) (code string, status int) {
	var api smithy.APIError
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	var resp *smithyhttp.ResponseError
	if errors.As(err, &resp) {
		status = resp.HTTPStatusCode()
	}
	return code, status
}

// throttled looks at the code: throttling arrives with HTTP status 400.
func throttled(code string) bool {
	_, ok := retry.DefaultThrottleErrorCodes[code]
	return ok
}

// loginRefused says whether AWS did not accept who asks, as opposed to what.
func loginRefused(err error) bool {
	var own *providers.Error
	if errors.As(err, &own) {
		return false // there was no login to refuse
	}
	switch code, status := codeOf(err); code {
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidClientTokenId", "InvalidAccessKeyId",
		"UnrecognizedClientException", "InvalidSignatureException", "SignatureDoesNotMatch", "IncompleteSignature",
		"IncompleteSignatureException", "MissingAuthenticationToken", "MissingAuthenticationTokenException",
		"RequestExpired", "RequestTimeTooSkewed", "AuthFailure", "OptInRequired", "InvalidToken":
		return true
	case "", "UnknownError":
		return status == http.StatusUnauthorized
	}
	return false
}

func isMalformed(err error) bool {
	var d *smithy.DeserializationError
	return errors.As(err, &d)
}

// shown gives a code that is fit to be shown, else "".
func shown(code string) string {
	if len(code) > 64 || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-") != "" {
		return ""
	}
	return code
}

// retryAfter reads the header of that name, in seconds (RFC 9110 §10.2.3).
func retryAfter(err error) time.Duration {
	var resp *smithyhttp.ResponseError
	if !errors.As(err, &resp) || resp.Response == nil || resp.Response.Response == nil {
		return 0
	}
	s, err := strconv.ParseUint(resp.Response.Header.Get("Retry-After"), 10, 12)
	if err != nil {
		return 0
	}
	return time.Duration(s) * time.Second
}

func deleted(ref providers.Ref) *providers.Error {
	return &providers.Error{Kind: providers.Deleted, Provider: name, Ref: ref, Message: "the secret is marked for deletion",
		Hint: "until its recovery window ends, restore-secret brings it back"}
}

func malformed(ref providers.Ref) *providers.Error { return fault(errNotAnAnswer, ref, "") }

// withRef completes an error of package providers.
func withRef(err error, ref providers.Ref) error {
	var e *providers.Error
	if !errors.As(err, &e) {
		return fault(err, ref, "")
	}
	full := *e
	full.Provider, full.Ref = name, ref
	return &full
}
