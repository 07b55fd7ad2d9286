package gcp

import (
	"context"
	"errors"
	"regexp"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"credentialbroker/providers"
)

// classify makes every error one of the provider's. The service's own messages
// are not shown: they repeat what it was asked.
func classify(ctx context.Context, err error, ref providers.Ref) error {
	if err == nil || errors.Is(err, providers.ErrUnchanged) {
		return err
	}
	var out providers.Error
	if e := (*providers.Error)(nil); errors.As(err, &e) {
		out = *e
	} else {
		out = fromStatus(err)
	}
	ended := ctx.Err()
	if ended == nil && status.Code(err) == codes.DeadlineExceeded { // the server may notice first
		ended = context.DeadlineExceeded
	}
	if ended != nil {
		out = providers.Error{Kind: providers.Unavailable, Message: "the secrets manager did not answer in time", Err: ended}
	}
	out.Provider, out.Ref = "gcp", ref
	return &out
}

func fromStatus(err error) providers.Error {
	st := status.Convert(err)
	e := providers.Error{Err: err}
	reason := ""
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.RetryInfo:
			e.RetryAfter = min(max(d.GetRetryDelay().AsDuration(), 0), 24*time.Hour)
		case *errdetails.ErrorInfo:
			if regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`).MatchString(d.GetReason()) {
				reason = " (" + d.GetReason() + ")"
			}
		}
	}
	switch st.Code() {
	case codes.NotFound:
		e.Kind, e.Message, e.Hint = providers.NotFound, "there is no such secret, or it has no such version", "check project and name"
	case codes.PermissionDenied:
		e.Kind, e.Message, e.Hint = providers.Denied, "the login may not do this"+reason, "grant it roles/secretmanager.secretAccessor on the secret"
	case codes.Unauthenticated:
		e.Kind, e.Message, e.Hint = providers.LoginFailed, "the service does not accept the login"+reason, "check that the service account is enabled, and the clock"
	case codes.ResourceExhausted:
		e.Kind, e.Message = providers.Throttled, "a quota is used up"+reason
	case codes.FailedPrecondition:
		e.Kind, e.Message, e.Hint = providers.Disabled, "the secret is not in a state to be used"+reason, "check the state of its versions"
	case codes.AlreadyExists, codes.Aborted:
		e.Kind, e.Message, e.Hint = providers.Conflict, "another writer was there"+reason, "read it again first"
	case codes.InvalidArgument, codes.OutOfRange, codes.Unimplemented, codes.DataLoss:
		e.Kind, e.Message, e.Hint = providers.Malformed, "the service does not understand the request"+reason, "check endpoint and name"
	default: // Unavailable, DeadlineExceeded, Internal, Unknown, Canceled
		e.Kind, e.Message = providers.Unavailable, "the secrets manager cannot be reached or does not work"+reason
		e.Hint = "check endpoint, ca_file, proxy and firewall"
	}
	return e
}
