package gcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"cloud.google.com/go/auth"
	sdk "cloud.google.com/go/auth/credentials"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

const (
	scope = "https://www.googleapis.com/auth/cloud-platform"
	// early is how long before its end a token is renewed.
	early        = time.Minute
	metadataHost = "metadata.google.internal"
	maxToken     = 64 << 10
)

// login gets access tokens and keeps the current one, and that alone: keys and
// configuration are read again for each token, so replacing a file is enough.
type login struct {
	c    Config
	clk  clock.Clock
	turn chan struct{} // one login at a time

	mu      sync.Mutex // of what follows; never held over I/O
	token   secret.Secret
	quota   string // project to bill, of a user's own credentials
	expires clock.Reading
}

func newLogin(c Config, clk clock.Clock) *login {
	return &login{c: c, clk: clk, turn: make(chan struct{}, 1)}
}

// bearer puts a token on each call.
type bearer struct {
	token secret.Secret
	quota string
}

// GetRequestMetadata gives the headers of a call.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	h := map[string]string{}
	if b.quota != "" {
		h["x-goog-user-project"] = b.quota
	}
	return h, b.token.Use(func(t []byte) error {
		h["authorization"] = "Bearer " + string(t)
		return nil
	})
}

// RequireTransportSecurity keeps the token off plain connections.
func (bearer) RequireTransportSecurity() bool { return true }

// bearer gives the current token, or gets one.
func (l *login) bearer(ctx context.Context) (bearer, error) {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return bearer{}, ctx.Err()
	}
	now := l.clk.Now()
	if b, ok := l.current(now); ok {
		return b, nil
	}
	t, err := l.get(ctx)
	if err != nil {
		return bearer{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.token.Wipe()
	l.token, l.quota, l.expires = secret.FromString(t.value), t.quota, now.Add(t.useful())
	token, err := l.token.Clone()
	return bearer{token, t.quota}, err
}

// current gives a copy, which its user wipes, of a token that is still good.
func (l *login) current(now clock.Reading) (bearer, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.token.Empty() || l.expires.Until(now) <= 0 {
		return bearer{}, false
	}
	token, err := l.token.Clone()
	return bearer{token, l.quota}, err == nil
}

// issued is a token as it was got.
type issued struct {
	value, quota string
	life         time.Duration
}

// useful is how long it is used, whatever was said of its life.
func (t issued) useful() time.Duration {
	return min(max(t.life-early, time.Second), 12*time.Hour)
}

// forget drops the current token, unless it is another than refused, got by
// somebody else meanwhile; an empty one means any.
func (l *login) forget(refused secret.Secret) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if refused.Empty() || l.token.Equal(refused) {
		l.token.Wipe()
		l.token = secret.Secret{}
	}
}

// get logs in.
func (l *login) get(ctx context.Context) (issued, error) {
	kind, file := l.source()
	if file == "" {
		return l.fromMetadata(ctx)
	}
	transport, err := l.c.Transport()
	if err != nil {
		return issued{}, &providers.Error{Kind: providers.Unavailable, Message: err.Error()}
	}
	creds, err := credentialsFrom(kind, file, &sdk.DetectOptions{
		Scopes:              []string{scope},
		Client:              &http.Client{Transport: refusing{transport}, CheckRedirect: noRedirect},
		DisableAsyncRefresh: true,
		Logger:              slog.New(slog.DiscardHandler), // the environment could turn one on that shows tokens
	})
	if err != nil {
		return issued{}, loginError("the credentials file "+file+" cannot be used: "+fileReason(err), "it has to be a readable JSON file as Google writes it", nil)
	}
	t, err := creds.Token(ctx)
	if err != nil {
		return issued{}, tokenError(ctx, err, file)
	}
	if t.Value == "" {
		return issued{}, loginError("the token endpoint gave no token", "", nil)
	}
	quota, _ := creds.QuotaProjectID(ctx)
	// The SDK has computed Expiry by time.Now, and so it is undone.
	return issued{t.Value, quota, time.Until(t.Expiry)}, nil
}

func credentialsFrom(kind sdk.CredType, file string, o *sdk.DetectOptions) (*auth.Credentials, error) {
	if kind != "" {
		return sdk.NewCredentialsFromFile(kind, file, o)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var head struct {
		Type sdk.CredType `json:"type"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, err
	}
	return sdk.NewCredentialsFromJSON(head.Type, text, o)
}

// source is the file to log in with, and the type it must have; no file means
// the metadata server, no type any. The default chain is the SDK's, but asked
// anew each time: the SDK would remember for ever that a metadata server was
// not there when it first looked.
func (l *login) source() (sdk.CredType, string) {
	a := l.c.Auth
	switch {
	case a.CredentialsFile != "":
		return sdk.ServiceAccount, a.CredentialsFile
	case a.WorkloadIdentity != nil:
		return sdk.ExternalAccount, a.WorkloadIdentity.File
	case a.Metadata:
		return "", ""
	}
	if f := os.Getenv("GOOGLE_APPLICATION_CREDENTIALS"); f != "" {
		return "", f
	}
	dir := os.Getenv("CLOUDSDK_CONFIG")
	if dir == "" {
		dir = filepath.Join(os.Getenv("HOME"), ".config", "gcloud")
	}
	f := filepath.Join(dir, "application_default_credentials.json")
	//nolint:gosec // the environment is the operator's
	if info, err := os.Stat(f); err == nil && info.Mode().IsRegular() {
		return "", f
	}
	return "", ""
}

func metadataAddr() string {
	if h := os.Getenv("GCE_METADATA_HOST"); h != "" {
		return h
	}
	return metadataHost
}

// fromMetadata asks the machine's or pod's metadata server, once, directly.
func (l *login) fromMetadata(ctx context.Context) (issued, error) {
	transport, err := outbound.Config{}.Transport()
	if err != nil {
		return issued{}, err
	}
	u := "http://" + metadataAddr() + "/computeMetadata/v1/instance/service-accounts/default/token?scopes=" + url.QueryEscape(scope)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return issued{}, loginError("GCE_METADATA_HOST is no host", "", nil)
	}
	req.Header.Set("Metadata-Flavor", "Google")
	resp, err := (&http.Client{Transport: transport, CheckRedirect: noRedirect}).Do(req)
	if err != nil && !l.c.Auth.Metadata {
		return issued{}, loginError("there are no credentials: no metadata server answers, and no file is named",
			"set auth, or GOOGLE_APPLICATION_CREDENTIALS", err)
	}
	if err != nil {
		return issued{}, &providers.Error{Kind: providers.Unavailable, Message: "the metadata server does not answer", Err: err}
	}
	defer resp.Body.Close()
	var t struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	switch code := resp.StatusCode; {
	case code == http.StatusTooManyRequests || code >= 500:
		return issued{}, &providers.Error{Kind: providers.Unavailable, Message: fmt.Sprintf("the metadata server answers with status %d", code)}
	case code != http.StatusOK || resp.Header.Get("Metadata-Flavor") != "Google":
		return issued{}, loginError(fmt.Sprintf("the metadata server gives no token (status %d)", code), "give the machine a service account", nil)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxToken))
	defer clear(body)
	if err != nil || json.Unmarshal(body, &t) != nil || t.AccessToken == "" {
		return issued{}, loginError("the metadata server's answer is no token", "", nil)
	}
	return issued{value: t.AccessToken, life: time.Duration(min(max(t.ExpiresIn, 0), 1<<30)) * time.Second}, nil
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// refusing turns answers that are no refusal into errors: the SDK reports all
// alike, with the body, and in some cases without the status.
type refusing struct{ next http.RoundTripper }

type statusError int

// Error says which.
func (e statusError) Error() string { return fmt.Sprintf("status %d", int(e)) }

// RoundTrip passes on what is below 500 and not 429.
func (r refusing) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.next.RoundTrip(req)
	if err == nil && (resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests) {
		_ = resp.Body.Close()
		return nil, statusError(resp.StatusCode)
	}
	return resp, err
}

// tokenError classifies; the SDK's own text may hold the answer's body.
func tokenError(ctx context.Context, err error, file string) error {
	var (
		netErr *url.Error
		st     statusError
		pathE  *fs.PathError
	)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &st):
		return &providers.Error{Kind: providers.Unavailable, Message: "the token endpoint answers with " + st.Error(), Err: st}
	case errors.As(err, &netErr):
		return &providers.Error{Kind: providers.Unavailable, Message: "the token endpoint cannot be reached", Hint: "check ca_file, proxy and firewall"}
	case errors.As(err, &pathE):
		return loginError("the file "+pathE.Path+" that "+file+" names: "+fileReason(err), "", nil)
	}
	return loginError("the token endpoint refused the credentials of "+file, "check that the key or federation is still valid, and the clock", nil)
}

func loginError(message, hint string, err error) error {
	return &providers.Error{Kind: providers.LoginFailed, Message: message, Hint: hint, Err: err}
}

func fileReason(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "it does not exist"
	case errors.Is(err, fs.ErrPermission):
		return "it may not be read"
	}
	return "it is not of the right type"
}

// endpoints reads from the file where the login goes.
func (l *login) endpoints() []string {
	_, file := l.source()
	if file == "" {
		host := metadataAddr()
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(host, "80")
		}
		return []string{host}
	}
	var f struct {
		TokenURI         string `json:"token_uri"`
		TokenURL         string `json:"token_url"`
		Impersonation    string `json:"service_account_impersonation_url"`
		CredentialSource struct {
			URL string `json:"url"`
		} `json:"credential_source"`
	}
	text, err := os.ReadFile(file)
	defer clear(text)
	if err != nil || json.Unmarshal(text, &f) != nil {
		return nil
	}
	var out []string
	for _, raw := range []string{f.TokenURI, f.TokenURL, f.Impersonation, f.CredentialSource.URL} {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" {
			continue
		}
		port := u.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
		}
		if host := net.JoinHostPort(u.Hostname(), port); !slices.Contains(out, host) {
			out = append(out, host)
		}
	}
	return out
}
