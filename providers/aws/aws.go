// Package aws reads, and writes, secrets in AWS Secrets Manager.
//
// The cheap check is DescribeSecret, which neither decrypts nor counts as a
// read of the value. Where policy forbids it, each check reads the value.
// Least privilege is secretsmanager:GetSecretValue and
// secretsmanager:DescribeSecret on the secrets, and kms:Decrypt where they
// have a key of their own.
package aws

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/providers"
)

// provider is a providers.Provider, Writer and Egress.
type provider struct {
	api       *secretsmanager.Client
	login     *login
	endpoints []string
	batch     bool
	gather    gatherer
}

// Open makes a provider. It connects to nothing: errors are those of the
// configuration, or of the files that it names.
//
// Ref.Path is a secret's name or ARN; Ref.Version a version id, or a staging
// label (AWSPREVIOUS, or one of your own); empty is AWSCURRENT. What is
// AWSPENDING alone is being made, and is read by nobody who does not ask for it.
func Open(c Config, _ clock.Clock) (providers.Provider, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	region, err := c.region()
	if err != nil {
		return nil, err
	}
	c.Region = region
	t, err := c.Exchange()
	if err != nil {
		return nil, err
	}
	client := doer{httpClient(t)}
	l, err := newLogin(c, client)
	if err != nil {
		return nil, err
	}
	p := &provider{login: l, batch: c.Batch, api: secretsmanager.New(secretsmanager.Options{
		Region: c.Region, BaseEndpoint: orNil(c.Endpoint), Credentials: l,
		HTTPClient: client, Retryer: awssdk.NopRetryer{},
	})}
	p.endpoints, err = c.hosts(context.Background())
	return p, err
}

func httpClient(t http.RoundTripper) *http.Client {
	return &http.Client{Transport: t, Timeout: outbound.CallTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func orNil(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// Fetch implements providers.Provider.
func (p *provider) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	if have != "" {
		switch current, err := p.current(ctx, ref); {
		case err == nil && current == have:
			return providers.Bundle{}, providers.ErrUnchanged
		case err != nil && providers.KindOf(err) != providers.Denied:
			return providers.Bundle{}, err
		}
	}
	if p.batch && have == "" && ref.Version == "" {
		if b, ok, err := p.readTogether(ctx, ref); ok {
			return b, err
		}
	}
	b, err := p.read(ctx, ref)
	if err == nil && b.Version == have { // describing is allowed to lag, and to be forbidden
		b.Wipe()
		return providers.Bundle{}, providers.ErrUnchanged
	}
	return b, err
}

// current asks which version ref names now: "" when none carries its label.
func (p *provider) current(ctx context.Context, ref providers.Ref) (providers.Version, error) {
	out, err := call(ctx, p, func() (*secretsmanager.DescribeSecretOutput, error) {
		return p.api.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: &ref.Path})
	})
	switch {
	case err != nil:
		return "", fault(err, ref, "secretsmanager:DescribeSecret")
	case out.DeletedDate != nil:
		return "", deleted(ref)
	case out.VersionIdsToStages == nil && out.Name == nil:
		return "", malformed(ref)
	}
	id, stage := pin(ref)
	for version, stages := range out.VersionIdsToStages {
		if id == version {
			return providers.Version(version), nil
		}
		for _, s := range stages {
			if id == "" && s == stage {
				return providers.Version(version), nil
			}
		}
	}
	return "", nil
}

// pin says which version ref asks for: by id, or by staging label.
func pin(ref providers.Ref) (id, stage string) {
	switch v := string(ref.Version); {
	case v == "":
		return "", currentStage
	case len(v) < 32: // a version id has 32 to 64 characters
		return "", v
	default:
		return v, ""
	}
}

const currentStage = "AWSCURRENT"

func (p *provider) read(ctx context.Context, ref providers.Ref) (providers.Bundle, error) {
	id, stage := pin(ref)
	a, err := call(ctx, p, func() (answer, error) {
		return getValue(ctx, p.api, &secretsmanager.GetSecretValueInput{SecretId: &ref.Path, VersionId: orNil(id), VersionStage: orNil(stage)})
	})
	defer a.wipe()
	if err != nil {
		if code, _ := codeOf(err); code == "InvalidRequestException" {
			// Of the states in which a value cannot be read, deletion is the
			// usual one; only describing tells them apart.
			switch _, derr := p.current(ctx, ref); {
			case derr == nil:
				return providers.Bundle{}, &providers.Error{Kind: providers.Unsupported, Provider: name, Ref: ref, Err: err,
					Message: "the secret is not deleted, and its state allows no reading [InvalidRequestException]"}
			case providers.KindOf(derr) != providers.Denied:
				return providers.Bundle{}, derr
			}
		}
		return providers.Bundle{}, fault(err, ref, "secretsmanager:GetSecretValue")
	}
	return a.bundle(ref)
}

// bundle makes a bundle, and leaves a as it is.
func (a answer) bundle(ref providers.Ref) (providers.Bundle, error) {
	b := providers.Bundle{Version: providers.Version(a.text("VersionId")), Created: a.time("CreatedDate")}
	payload, err := a.payload()
	if b.Version == "" || err != nil {
		clear(payload)
		return providers.Bundle{}, malformed(ref)
	}
	if b.Fields, err = providers.Parse(payload); err != nil {
		return providers.Bundle{}, withRef(err, ref)
	}
	return b, nil
}

// payload is the secret itself, text or binary, owned by the caller.
func (a answer) payload() ([]byte, error) {
	if s, ok := a["SecretString"]; ok {
		return s.AppendTo(nil)
	}
	s, ok := a["SecretBinary"]
	if !ok {
		return nil, errors.New("no value")
	}
	var out []byte
	err := s.Use(func(b []byte) (err error) {
		out, err = base64.StdEncoding.AppendDecode(nil, bytes.TrimSpace(b))
		return err
	})
	return out, err
}

// call makes one call and, if it is refused because of the login, logs in
// anew and makes it once more: sessions are ended before their time, and keys
// are rotated in their files.
func call[T any](ctx context.Context, p *provider, f func() (T, error)) (T, error) {
	used := p.login.generation()
	out, err := f()
	if err != nil && loginRefused(err) && ctx.Err() == nil {
		p.login.renew(used)
		out, err = f()
	}
	return out, err
}

// Close implements providers.Provider. There is nothing in the background.
func (p *provider) Close() error {
	p.login.renew(p.login.generation())
	return nil
}

// Endpoints implements providers.Egress.
func (p *provider) Endpoints() []string { return p.endpoints }

func (c Config) hosts(ctx context.Context) ([]string, error) {
	sm, err := secretsmanager.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx,
		secretsmanager.EndpointParameters{Region: &c.Region, Endpoint: orNil(c.Endpoint)}.WithDefaults())
	if err != nil {
		return nil, fmt.Errorf("region: %w", err)
	}
	hosts := []string{hostPort(sm.URI)}
	if c.Auth.WebIdentity != nil || c.Auth.AssumeRole != nil || len(c.Auth.sources()) == 0 {
		s, err := sts.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx,
			sts.EndpointParameters{Region: &c.Region, Endpoint: orNil(c.STSEndpoint)}.WithDefaults())
		if err != nil {
			return nil, fmt.Errorf("region: %w", err)
		}
		hosts = append(hosts, hostPort(s.URI))
	}
	return hosts, nil
}

func hostPort(u url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80"}[u.Scheme]
	}
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port)
}
