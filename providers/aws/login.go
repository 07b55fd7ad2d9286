package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"credentialbroker/internal/outbound"
	"credentialbroker/providers"
)

// login is the broker's own credentials. It builds their source anew whenever
// they fail, so that files and environment are read again.
type login struct {
	c     Config
	sts   doer // through the proxy, as Secrets Manager
	local doer // the machine's own metadata services: never through a proxy

	mu    sync.Mutex
	built awssdk.CredentialsProvider // nil: to be built
	gen   int                        // counts what was thrown away
}

func newLogin(c Config, remote doer) (*login, error) {
	t, err := outbound.Config{}.Transport()
	if err != nil {
		return nil, err
	}
	t.DialContext = dialer(localDialTimeout)
	t.ResponseHeaderTimeout = localCallTimeout
	return &login{c: c, sts: remote, local: doer{httpClient(t)}}, nil
}

// Retrieve implements aws.CredentialsProvider. Its errors are *providers.Error.
func (l *login) Retrieve(ctx context.Context) (awssdk.Credentials, error) {
	gen := l.generation()
	p, err := l.provider(ctx)
	var creds awssdk.Credentials
	// Those who ask together share one login, which ends with the caller who
	// started it: then the others ask once more.
	for try := 0; err == nil && try < 2; try++ {
		if creds, err = retrieve(ctx, p); err == nil {
			return creds, nil
		}
		if ctx.Err() == nil && errors.Is(err, context.Canceled) {
			err = nil
		}
	}
	if err == nil {
		err = context.Canceled
	}
	if ctx.Err() == nil {
		l.renew(gen)
	}
	return awssdk.Credentials{}, l.fault(ctx, err)
}

// callerKey is the caller's context within itself: the SDK's cache detaches a
// login from its caller, and this ties it to him again.
type callerKey struct{}

func retrieve(ctx context.Context, p awssdk.CredentialsProvider) (awssdk.Credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, outbound.CallTimeout)
	defer cancel()
	return p.Retrieve(context.WithValue(ctx, callerKey{}, ctx))
}

// withCaller gives r a context that ends with its caller's.
func withCaller(r *http.Request) *http.Request {
	caller, ok := r.Context().Value(callerKey{}).(context.Context)
	if !ok {
		return r
	}
	ctx, cancel := context.WithCancel(r.Context())
	context.AfterFunc(caller, cancel)
	return r.WithContext(ctx)
}

func (l *login) provider(ctx context.Context) (awssdk.CredentialsProvider, error) {
	l.mu.Lock()
	p := l.built
	l.mu.Unlock()
	if p != nil {
		return p, nil
	}
	p, err := l.build(ctx)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.built == nil {
		l.built = p
	}
	return l.built, nil
}

func (l *login) generation() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gen
}

// renew throws the credentials away, unless that was done since gen.
func (l *login) renew(gen int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gen == gen {
		l.built, l.gen = nil, gen+1
	}
}

// ownError is a fault in what the operator gave, told in our own words.
type ownError string

func (e ownError) Error() string { return string(e) }

const (
	sessionName  = "credential-broker"
	expiryWindow = 5 * time.Minute // credentials are renewed this long before their end
)

// build makes the chosen source, and the role on top of it.
func (l *login) build(ctx context.Context) (awssdk.CredentialsProvider, error) {
	p, err := l.source(ctx)
	if err != nil {
		return nil, err
	}
	r := l.c.Auth.AssumeRole
	if r == nil {
		return cached(p), nil
	}
	external := ""
	if r.ExternalIDFile != "" {
		if external, err = readFile("auth.assume_role.external_id_file", r.ExternalIDFile); err != nil {
			return nil, err
		}
	}
	return cached(stscreds.NewAssumeRoleProvider(l.stsClient(cached(p)), r.RoleARN, func(o *stscreds.AssumeRoleOptions) {
		o.RoleSessionName = cmp.Or(r.SessionName, sessionName)
		o.ExternalID = orNil(external)
	})), nil
}

func cached(p awssdk.CredentialsProvider) awssdk.CredentialsProvider {
	return awssdk.NewCredentialsCache(p, func(o *awssdk.CredentialsCacheOptions) { o.ExpiryWindow = expiryWindow })
}

func (l *login) source(ctx context.Context) (awssdk.CredentialsProvider, error) {
	switch a := l.c.Auth; {
	case a.Environment:
		env, err := config.NewEnvConfig()
		if err != nil || !env.Credentials.HasKeys() {
			return nil, ownError("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not both in the daemon's environment")
		}
		return credentials.StaticCredentialsProvider{Value: env.Credentials}, nil
	case a.Profile != nil:
		return l.fromProfile(ctx, *a.Profile)
	case a.WebIdentity != nil:
		return l.fromWebIdentity(*a.WebIdentity)
	case a.Container:
		return l.fromContainer()
	case a.Instance:
		return ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = l.imds() }), nil
	case a.Static != nil:
		return fromFiles(*a.Static)
	}
	return l.sdk(ctx)
}

// sdk is the SDK's own chain, over our connections.
func (l *login) sdk(ctx context.Context, more ...func(*config.LoadOptions) error) (awssdk.CredentialsProvider, error) {
	if os.Getenv("AWS_CA_BUNDLE") != "" {
		return nil, ownError("AWS_CA_BUNDLE is in the daemon's environment: name that file in ca_file instead")
	}
	cfg, err := config.LoadDefaultConfig(ctx, append([]func(*config.LoadOptions) error{
		config.WithRegion(l.c.Region),
		config.WithHTTPClient(l.sts),
		config.WithRetryer(func() awssdk.Retryer { return awssdk.NopRetryer{} }),
		config.WithLogger(logging.Nop{}),
		config.WithEC2RoleCredentialOptions(func(o *ec2rolecreds.Options) { o.Client = l.imds() }),
		config.WithEndpointCredentialOptions(func(o *endpointcreds.Options) { o.HTTPClient = l.local }),
		config.WithWebIdentityRoleCredentialOptions(func(o *stscreds.WebIdentityRoleOptions) {
			o.Client = l.stsClient(awssdk.AnonymousCredentials{})
		}),
	}, more...)...)
	if err != nil {
		return nil, err
	}
	return cfg.Credentials, nil
}

func (l *login) fromProfile(ctx context.Context, p profile) (awssdk.CredentialsProvider, error) {
	name := cmp.Or(p.Name, cmp.Or(os.Getenv("AWS_PROFILE"), "default"))
	opts := []func(*config.LoadOptions) error{config.WithSharedConfigProfile(name)}
	if p.ConfigFile != "" {
		opts = append(opts, config.WithSharedConfigFiles([]string{p.ConfigFile}))
	}
	if p.CredentialsFile != "" {
		opts = append(opts, config.WithSharedCredentialsFiles([]string{p.CredentialsFile}))
	}
	creds, err := l.sdk(ctx, opts...)
	var absent config.SharedConfigProfileNotExistError
	if errors.As(err, &absent) {
		return nil, ownError(fmt.Sprintf("there is no profile %q in the shared configuration files", name))
	}
	return creds, err
}

func (l *login) fromWebIdentity(w webIdentity) (awssdk.CredentialsProvider, error) {
	role := cmp.Or(w.RoleARN, os.Getenv("AWS_ROLE_ARN"))
	file := cmp.Or(w.TokenFile, os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE"))
	if role == "" || file == "" {
		return nil, ownError("auth.web_identity needs role_arn and token_file, or AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE")
	}
	if _, err := readFile("auth.web_identity.token_file", file); err != nil {
		return nil, err
	}
	return stscreds.NewWebIdentityRoleProvider(l.stsClient(awssdk.AnonymousCredentials{}), role, stscreds.IdentityTokenFile(file),
		func(o *stscreds.WebIdentityRoleOptions) { o.RoleSessionName = cmp.Or(w.SessionName, sessionName) }), nil
}

func (l *login) stsClient(p awssdk.CredentialsProvider) *sts.Client {
	return sts.New(sts.Options{Region: l.c.Region, BaseEndpoint: orNil(l.c.STSEndpoint), Credentials: p,
		HTTPClient: l.sts, Retryer: awssdk.NopRetryer{}})
}

func (l *login) imds() *imds.Client {
	env, _ := config.NewEnvConfig() // its faults concern other settings
	return imds.New(imds.Options{HTTPClient: l.local, Retryer: awssdk.NopRetryer{},
		EnableFallback: awssdk.FalseTernary, EndpointMode: env.EC2IMDSEndpointMode, Endpoint: env.EC2IMDSEndpoint})
}

// ecsAddr is where ECS serves relative paths (ECS developer guide, task IAM roles).
const ecsAddr = "http://169.254.170.2"

func (l *login) fromContainer() (awssdk.CredentialsProvider, error) {
	full := os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
	if rel := os.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"); rel != "" {
		full = ecsAddr + rel
	}
	if full == "" {
		return nil, ownError("neither AWS_CONTAINER_CREDENTIALS_RELATIVE_URI nor _FULL_URI is in the daemon's environment")
	}
	if !containerURL(full) {
		return nil, ownError("AWS_CONTAINER_CREDENTIALS_FULL_URI is neither https nor an address of this machine, ECS or EKS")
	}
	return endpointcreds.New(full, func(o *endpointcreds.Options) {
		o.HTTPClient, o.Retryer = l.local, awssdk.NopRetryer{}
		o.AuthorizationToken = os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN")
		if file := os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"); file != "" {
			o.AuthorizationTokenProvider = endpointcreds.TokenProviderFunc(func() (string, error) {
				return readFile("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file)
			})
		}
	}), nil
}

// containerURL keeps to the hosts that the SDKs allow: a token goes there.
func containerURL(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (loopback(u.Hostname()) || err == nil &&
		(ip == netip.AddrFrom4([4]byte{169, 254, 170, 2}) || ip == netip.AddrFrom4([4]byte{169, 254, 170, 23}) ||
			ip == netip.MustParseAddr("fd00:ec2::23")))
}

func fromFiles(s static) (awssdk.CredentialsProvider, error) {
	id, err1 := readFile("auth.static.access_key_id_file", s.AccessKeyIDFile)
	key, err2 := readFile("auth.static.secret_access_key_file", s.SecretAccessKeyFile)
	token, err3 := "", error(nil)
	if s.SessionTokenFile != "" {
		token, err3 = readFile("auth.static.session_token_file", s.SessionTokenFile)
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, ownError(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return credentials.NewStaticCredentialsProvider(id, key, token), nil
}

func readFile(key, file string) (string, error) {
	b, err := os.ReadFile(file) //nolint:gosec // the operator's configuration or the container's runtime names it
	if err != nil {
		return "", ownError(key + ": " + err.Error())
	}
	defer clear(b)
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", ownError(key + ": " + file + " is empty")
	}
	return s, nil
}

// fault classifies why there are no credentials.
func (l *login) fault(ctx context.Context, err error) *providers.Error {
	code, status := codeOf(err)
	e := &providers.Error{Kind: providers.LoginFailed, Provider: name, Err: err, RetryAfter: retryAfter(err),
		Message: "AWS gave the broker no credentials", Hint: "check auth"}
	var own ownError
	switch {
	case errors.As(err, &own):
		e.Message, e.Hint = "no login: "+own.Error(), ""
	case ctx.Err() != nil:
		e.Kind, e.Message, e.Hint, e.Err = providers.Unavailable, "the login did not end in time", "", ctx.Err()
	case len(l.c.Auth.sources()) == 0 && fromIMDS(err):
		e.Message = "the default chain found no credentials in environment, profile, container or instance"
		e.Hint = "choose a source under auth"
	case throttled(code) || status == http.StatusTooManyRequests:
		e.Kind, e.Message, e.Hint = providers.Throttled, "too many logins", ""
	case status >= 500, status == 0 && (unreachable(err) || fromIMDS(err)): // the SDK hides why IMDS gave no session
		e.Kind, e.Message, e.Hint = providers.Unavailable, "where the credentials come from cannot be reached", ""
	case code == "" && status == http.StatusNotFound && l.c.Auth.Instance:
		e.Message, e.Hint = "the instance has no role", "attach an instance profile"
	}
	if c := shown(code); c != "" {
		e.Message += " [" + c + "]"
	}
	return e
}

// fromIMDS says whether it was the chain's last resort that failed.
func fromIMDS(err error) bool {
	var op *smithy.OperationError
	return errors.As(err, &op) && op.Service() == imds.ServiceID
}

// unreachable says whether err is one of the network.
func unreachable(err error) bool {
	var n net.Error
	var send *smithyhttp.RequestSendError
	return errors.As(err, &n) || errors.As(err, &send)
}

func dialer(timeout time.Duration) func(context.Context, string, string) (net.Conn, error) {
	return (&net.Dialer{Timeout: timeout}).DialContext
}
