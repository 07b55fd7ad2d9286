package azure

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"credentialbroker/providers"
)

const name = "azure"

// fault classifies what the SDK returned, once. Nothing of the answer but its
// error codes is shown. permission is what the call needed.
func (p *provider) fault(ctx context.Context, err error, ref providers.Ref, permission string) *providers.Error {
	if done := loginFault(err); done != nil {
		e := *done
		e.Ref = ref
		return &e
	}
	e := &providers.Error{Provider: name, Ref: ref, Err: err}
	var resp *azcore.ResponseError
	switch {
	case errors.As(err, &resp):
		code, inner := codes(resp)
		e.RetryAfter = retryAfter(resp.RawResponse)
		e.Kind, e.Message, e.Hint = classify(resp.StatusCode, code, inner, permission)
		if e.Kind == providers.NotFound && p.isDeleted(ctx, ref) {
			e.Kind, e.Message = providers.Deleted, "the secret is deleted"
			e.Hint = "until it is purged, az keyvault secret recover brings it back"
		}
		for _, c := range []string{code, inner} {
			if c = shown(c); c != "" {
				e.Message += " [" + c + "]"
			}
		}
	case errors.Is(err, context.DeadlineExceeded):
		e.Kind, e.Message = providers.Unavailable, "Key Vault does not answer in time"
	case errors.Is(err, context.Canceled):
		e.Kind, e.Message = providers.Unavailable, "given up"
	case network(err):
		e.Kind, e.Message = providers.Unavailable, "Key Vault cannot be reached"
	default:
		e.Kind, e.Message, e.Hint = providers.Malformed, "what answered is not this Key Vault", "check vault_url and proxy"
	}
	return e
}

// classify maps what Key Vault answered.
func classify(status int, code, inner, permission string) (kind providers.Kind, message, hint string) {
	switch {
	case inner == "SecretDisabled" || code == "SecretDisabled":
		return providers.Disabled, "the secret is disabled", ""
	case strings.HasPrefix(inner, "ForbiddenByFirewall") || strings.HasPrefix(inner, "ForbiddenByConnection"):
		return providers.Denied, "the vault's firewall does not let this machine in", "allow its address or a private endpoint"
	case status == http.StatusForbidden:
		return providers.Denied, "the vault's policy does not allow it",
			"give the broker's identity the secret permission " + permission + " or the role Key Vault Secrets " +
				map[bool]string{true: "Officer", false: "User"}[permission == "set"]
	case status == http.StatusUnauthorized:
		return providers.LoginFailed, "the vault does not take the broker's token", "check tenant, auth, and the clock of this machine"
	case status == http.StatusNotFound:
		return providers.NotFound, "no such secret or version in this vault", ""
	case status == http.StatusTooManyRequests:
		return providers.Throttled, "too many calls to this vault", ""
	case inner == "ObjectIsDeletedButRecoverable" || inner == "ObjectIsBeingDeleted":
		return providers.Deleted, "a deleted secret has this name", "recover or purge it"
	case status == http.StatusConflict || status == http.StatusPreconditionFailed:
		return providers.Conflict, "another writer was faster", ""
	case status >= 500:
		return providers.Unavailable, "Key Vault fails", ""
	}
	return providers.Malformed, "Key Vault does not take this", ""
}

// isDeleted asks whether an absent secret can be recovered, where policy
// allows the question.
func (p *provider) isDeleted(ctx context.Context, ref providers.Ref) bool {
	a, err := call(ctx, p, func(api *azsecrets.Client) (answer, error) {
		return captured(ctx, func(ctx context.Context) error {
			_, err := api.GetDeletedSecret(ctx, ref.Path, nil)
			return err
		})
	})
	a.wipe()
	return err == nil
}

// codes gives error.code and error.innererror.code.
func codes(e *azcore.ResponseError) (code, inner string) {
	code = e.ErrorCode
	if e.RawResponse == nil {
		return code, ""
	}
	body, err := runtime.Payload(e.RawResponse)
	if err != nil {
		return code, ""
	}
	var out struct {
		Error struct {
			InnerError struct{ Code string } `json:"innererror"`
		}
	}
	_ = json.Unmarshal(body, &out) // without codes the status has to do
	return code, out.Error.InnerError.Code
}

// tokenRefused says whether the vault did not accept who asks.
func tokenRefused(err error) bool {
	var resp *azcore.ResponseError
	return loginFault(err) == nil && errors.As(err, &resp) && resp.StatusCode == http.StatusUnauthorized
}

// loginFault gives the login's own error in err, or nil.
func loginFault(err error) *providers.Error {
	var e *providers.Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

func network(err error) bool {
	var n net.Error
	var u *url.Error
	return errors.As(err, &n) || errors.As(err, &u) || errors.Is(err, io.ErrUnexpectedEOF)
}

// shown gives a code that is fit to be shown, else "".
func shown(code string) string {
	if len(code) > 64 || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-") != "" {
		return ""
	}
	return code
}

// retryAfter reads the header of that name, in seconds (RFC 9110 §10.2.3).
func retryAfter(resp *http.Response) time.Duration {
	if resp == nil {
		return 0
	}
	s, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 12)
	if err != nil {
		return 0
	}
	return time.Duration(s) * time.Second
}

// withRef completes an error of package providers.
func withRef(err error, ref providers.Ref) error {
	var e *providers.Error
	if !errors.As(err, &e) {
		return &providers.Error{Kind: providers.Malformed, Provider: name, Ref: ref, Message: "the value cannot be taken", Err: err}
	}
	full := *e
	full.Provider, full.Ref = name, ref
	return &full
}
