// Package gcp reads and writes Google Cloud Secret Manager over gRPC.
//
// Least privilege: roles/secretmanager.secretAccessor on each secret. With
// secretmanager.versions.get besides, the broker knows how old a version is and
// tells a disabled one from a destroyed one; writing needs
// roles/secretmanager.secretVersionAdder.
package gcp

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	secretmanager "cloud.google.com/go/secretmanager/apiv1"
	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// manager is the provider.
type manager struct {
	c     Config
	addr  string // host:port
	login *login
	meta  quota
}

// Config is one project of Secret Manager.
type Config struct {
	// Project is the project's id or number. Required.
	Project string `yaml:"project" json:"project"`
	// Endpoint is another host or host:port of the service: a regional one,
	// secretmanager.europe-west1.rep.googleapis.com, or a private one. Empty:
	// secretmanager.googleapis.com.
	Endpoint string `yaml:"endpoint,omitempty" json:"endpoint,omitempty"`
	// Auth is how the broker logs in. Empty: Application Default Credentials:
	// the file that GOOGLE_APPLICATION_CREDENTIALS names, gcloud's own file, or
	// the metadata server.
	Auth Auth `yaml:"auth,omitempty" json:"auth,omitzero"`
	// Config is how to reach Secret Manager and the token endpoints; never the
	// metadata server, which is local.
	outbound.Config `yaml:",inline"`
}

// Auth is one way to log in; the others are empty.
type Auth struct {
	// CredentialsFile is the JSON key of a service account.
	CredentialsFile string `yaml:"credentials_file,omitempty" json:"credentials_file,omitempty"`
	// WorkloadIdentity is the federation of another identity provider.
	WorkloadIdentity *WorkloadIdentity `yaml:"workload_identity,omitempty" json:"workload_identity,omitempty"`
	// Metadata uses the service account of the machine or pod. False: not.
	Metadata bool `yaml:"metadata,omitempty" json:"metadata,omitempty"`
}

// WorkloadIdentity is a login with a token of another identity provider.
type WorkloadIdentity struct {
	// File is the JSON configuration of type external_account, as gcloud iam
	// workload-identity-pools create-cred-config writes it. Required.
	File string `yaml:"file" json:"file"`
}

const (
	defaultHost = "secretmanager.googleapis.com"
	latest      = "latest"
	// maxMessage is above what the service stores, 64 KiB, and above what is
	// accepted, so that Parse and not gRPC refuses the rest.
	maxMessage = 2 * providers.MaxPayload
)

// Validate finds every mistake that can be seen without the network.
func (c Config) Validate() error {
	var errs []error
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9.:-]*$`).MatchString(c.Project) {
		errs = append(errs, errors.New("project: want the id or number of the project"))
	}
	if _, err := c.target(); err != nil {
		errs = append(errs, err)
	}
	ways := 0
	for _, set := range []bool{c.Auth.CredentialsFile != "", c.Auth.WorkloadIdentity != nil, c.Auth.Metadata} {
		if set {
			ways++
		}
	}
	if ways > 1 {
		errs = append(errs, errors.New("auth: want one of credentials_file, workload_identity, metadata"))
	}
	if w := c.Auth.WorkloadIdentity; w != nil && w.File == "" {
		errs = append(errs, errors.New("auth: workload_identity: file: missing"))
	}
	if _, err := c.ProxyURL(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c Config) target() (string, error) {
	switch {
	case c.Endpoint == "":
		return defaultHost + ":443", nil
	case strings.ContainsAny(c.Endpoint, "/ @"):
		return "", errors.New("endpoint: want a host or host:port, without https://")
	case strings.Contains(c.Endpoint, ":"):
		if _, _, err := net.SplitHostPort(c.Endpoint); err != nil {
			return "", errors.New("endpoint: want a host or host:port")
		}
		return c.Endpoint, nil
	}
	return c.Endpoint + ":443", nil
}

// Open makes the provider. It touches neither network nor files.
func Open(c Config, clk clock.Clock) (providers.Provider, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	addr, err := c.target()
	if err != nil {
		return nil, err
	}
	return &manager{c: c, addr: addr, login: newLogin(c, clk), meta: quota{clk: clk}}, nil
}

// Close forgets the login. Connections end with their calls.
func (m *manager) Close() error {
	m.login.forget(secret.Secret{})
	return nil
}

// Endpoints gives Secret Manager and what the login is known to need.
func (m *manager) Endpoints() []string {
	return append([]string{m.addr}, m.login.endpoints()...)
}

// Fetch accesses the version even to find out that it is unchanged: Access has
// a quota of 90,000 calls a minute and GetSecretVersion shares one of 600 with
// every other read of the project, so a value is the cheaper poll. Unchanged
// values are wiped unread.
//
// The numbers of a secret's versions grow, and latest may lag behind: a smaller
// one than have is no news, unless the secret has been made anew.
func (m *manager) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	var b providers.Bundle
	err := m.call(ctx, ref, func(ctx context.Context, c *secretmanager.Client) error {
		v := string(ref.Version)
		if v == "" {
			v = latest
		}
		resp, err := m.access(ctx, c, ref, v)
		if err != nil {
			return err
		}
		defer clear(resp.GetPayload().GetData())
		if b.Version, err = checked(resp); err != nil {
			return err
		}
		if v == latest && older(b.Version, have) {
			switch again, err := m.access(ctx, c, ref, string(have)); {
			case err == nil:
				clear(again.GetPayload().GetData())
				return providers.ErrUnchanged
			case status.Code(err) != codes.NotFound:
				return err
			}
		}
		if b.Version == have {
			return providers.ErrUnchanged
		}
		if b.Fields, err = providers.Parse(resp.GetPayload().GetData()); err != nil {
			return err
		}
		// Its age is worth one metadata call for each new version, and no failure.
		if m.meta.spend() {
			meta, err := c.GetSecretVersion(ctx, &secretmanagerpb.GetSecretVersionRequest{Name: resp.GetName()})
			if err == nil && meta.GetCreateTime() != nil {
				b.Created = meta.GetCreateTime().AsTime()
			}
		}
		return nil
	})
	if err != nil {
		return providers.Bundle{}, err
	}
	return b, nil
}

// access reads one version.
func (m *manager) access(ctx context.Context, c *secretmanager.Client, ref providers.Ref, v string) (*secretmanagerpb.AccessSecretVersionResponse, error) {
	name := m.secretName(ref) + "/versions/" + v
	resp, err := c.AccessSecretVersion(ctx, &secretmanagerpb.AccessSecretVersionRequest{Name: name})
	if err != nil {
		return nil, m.explainState(ctx, c, name, err)
	}
	return resp, nil
}

// older says whether a is a smaller number than b.
func older(a, b providers.Version) bool {
	x, err1 := strconv.ParseUint(string(a), 10, 63)
	y, err2 := strconv.ParseUint(string(b), 10, 63)
	return err1 == nil && err2 == nil && x < y
}

// quota is the broker's share of the 600 metadata calls that Google allows a
// whole project in a minute: half of them. Without it the start of a large
// installation would use up everybody's.
type quota struct {
	clk clock.Clock

	mu    sync.Mutex
	since clock.Reading
	spent int
}

const metadataCalls = 300 // a minute

// spend says whether one more call is within the quota, and counts it.
func (q *quota) spend() bool {
	now := q.clk.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.since.IsZero() || now.Sub(q.since) >= time.Minute {
		q.since, q.spent = now, 0
	}
	q.spent++
	return q.spent <= metadataCalls
}

// secretName gives projects/P/secrets/S or, with a regional endpoint,
// projects/P/locations/L/secrets/S.
func (m *manager) secretName(ref providers.Ref) string {
	if strings.HasPrefix(ref.Path, "projects/") {
		return ref.Path
	}
	return "projects/" + m.c.Project + "/secrets/" + ref.Path
}

// checkRef keeps a Ref from naming anything but a secret's version.
func checkRef(ref providers.Ref) error { return Config{}.CheckRef(ref) }

// CheckRef says whether ref can name a secret.
func (Config) CheckRef(ref providers.Ref) error {
	const id = `[A-Za-z0-9_-]{1,255}`
	if !regexp.MustCompile(`^(projects/[a-z0-9][a-z0-9.:-]*/(locations/[a-z0-9-]+/)?secrets/)?` + id + `$`).MatchString(ref.Path) {
		return &providers.Error{Kind: providers.NotFound, Message: "no possible name of a secret", Hint: "want NAME or projects/PROJECT/secrets/NAME"}
	}
	if ref.Version != "" && !regexp.MustCompile(`^`+id+`$`).MatchString(string(ref.Version)) {
		return &providers.Error{Kind: providers.NotFound, Message: "no possible version of a secret", Hint: "want a number or an alias"}
	}
	return nil
}

// checked verifies the checksum and gives the version's number, which the
// response names also where an alias was asked for.
func checked(resp *secretmanagerpb.AccessSecretVersionResponse) (providers.Version, error) {
	_, number, ok := strings.Cut(resp.GetName(), "/versions/")
	if _, err := strconv.ParseUint(number, 10, 63); !ok || err != nil {
		return "", &providers.Error{Kind: providers.Malformed, Message: "the answer does not say which version it is"}
	}
	p := resp.GetPayload()
	switch {
	case p == nil || p.DataCrc32C == nil:
		return "", &providers.Error{Kind: providers.Malformed, Message: "the value came without a checksum"}
	case p.GetDataCrc32C() != checksum(p.GetData()):
		return "", &providers.Error{Kind: providers.Malformed, Message: "the value does not match its checksum"}
	}
	return providers.Version(number), nil
}

func checksum(data []byte) int64 {
	return int64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
}

// call runs f with a client that is logged in. If the service does not accept
// the token, it may have ended early: f runs once more with a new one.
func (m *manager) call(ctx context.Context, ref providers.Ref, f func(context.Context, *secretmanager.Client) error) error {
	if err := checkRef(ref); err != nil {
		return classify(ctx, err, ref)
	}
	for again := true; ; again = false {
		b, err := m.login.bearer(ctx)
		if err == nil {
			err = m.attempt(ctx, b, f)
		}
		refused := status.Code(err) == codes.Unauthenticated
		if refused {
			m.login.forget(b.token)
		}
		b.token.Wipe()
		if !refused || !again {
			return classify(ctx, err, ref)
		}
	}
}

// attempt connects, runs f and disconnects. A connection of its own for each
// call costs a TLS handshake, some milliseconds and two round trips, every few
// minutes; an open one would keep the values that passed it in its buffers.
func (m *manager) attempt(ctx context.Context, b bearer, f func(context.Context, *secretmanager.Client) error) error {
	tls, err := m.c.TLS()
	if err != nil {
		return &providers.Error{Kind: providers.Unavailable, Message: err.Error()}
	}
	conn, closeConn, err := forgetting(m.c.Config, m.addr,
		grpc.WithTransportCredentials(credentials.NewTLS(tls)),
		grpc.WithPerRPCCredentials(b),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return &providers.Error{Kind: providers.Unavailable, Message: "the endpoint " + m.addr + " cannot be used"}
	}
	defer closeConn()
	// Without a logger of ours the SDK logs values when the environment says so.
	c, err := secretmanager.NewClient(ctx, option.WithGRPCConn(conn), option.WithTelemetryDisabled(), option.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return &providers.Error{Kind: providers.Unavailable, Message: "the client cannot be made"}
	}
	c.CallOptions = &secretmanager.CallOptions{} // they would retry
	return f(ctx, c)
}

// explainState finds out why a version that exists cannot be read.
func (m *manager) explainState(ctx context.Context, c *secretmanager.Client, version string, err error) error {
	if status.Code(err) != codes.FailedPrecondition {
		return err
	}
	if !m.meta.spend() {
		return &providers.Error{Kind: providers.Disabled, Message: "the version is disabled or destroyed", Hint: "enable it or add a version", Err: err}
	}
	meta, metaErr := c.GetSecretVersion(ctx, &secretmanagerpb.GetSecretVersionRequest{Name: version})
	destroyAt := meta.GetScheduledDestroyTime()
	switch {
	case metaErr != nil:
		return &providers.Error{Kind: providers.Disabled, Message: "the version is disabled or destroyed",
			Hint: "enable it or add a version; with secretmanager.versions.get the broker could say which", Err: err}
	case meta.GetState() == secretmanagerpb.SecretVersion_DESTROYED:
		return &providers.Error{Kind: providers.Deleted, Message: "the version is destroyed", Hint: "add a version", Err: err}
	case destroyAt != nil:
		return &providers.Error{Kind: providers.Deleted, Err: err, Hint: "enable it before then, or add a version",
			Message: fmt.Sprintf("the version is disabled, and will be destroyed at %s", destroyAt.AsTime().UTC().Format(time.RFC3339))}
	case meta.GetState() == secretmanagerpb.SecretVersion_DISABLED:
		return &providers.Error{Kind: providers.Disabled, Message: "the version is disabled", Hint: "enable it or add a version", Err: err}
	}
	return err
}
