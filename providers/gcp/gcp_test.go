package gcp

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/gcp/gcptest"
	"credentialbroker/providers/providertest"
)

// manual is a clock that the test moves.
type manual struct {
	mu sync.Mutex
	d  time.Duration
}

func (m *manual) Now() clock.Reading {
	m.mu.Lock()
	defer m.mu.Unlock()
	return clock.System{}.Now().Add(m.d)
}

func (m *manual) add(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.d += d
}

// wire is a server, and how an adapter reaches it.
type wire struct{ *gcptest.Server }

func (w wire) config(t *testing.T) Config {
	return Config{Project: gcptest.Project, Endpoint: w.Server.Addr(), Auth: Auth{CredentialsFile: w.Tokens.ServiceAccount(t)},
		Config: outbound.Config{CAFile: w.CAFile}}
}

func (w wire) Open(t *testing.T, o providertest.Options) providers.Provider {
	c := w.config(t)
	if o.Outbound != nil {
		c.Config = *o.Outbound
	}
	return mustOpen(t, c)
}

func mustOpen(t *testing.T, c Config) providers.Provider {
	t.Helper()
	p, err := Open(c, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func (w wire) Ref(name string) providers.Ref { return providers.Ref{Path: name} }
func (w wire) CA() string                    { return w.CAFile }
func (w wire) Set(_ *testing.T, name string, payload []byte) {
	w.Server.Set(name, payload)
}

func (w wire) Fault(t *testing.T, c providertest.Case, name string) { w.Server.Fault(t, c, name) }

func TestConformance(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Manager { return wire{gcptest.New(t)} }, providertest.Lacks{
		providertest.CheapCheck: "reading metadata is the dearer call: 600 a minute for the project, against 90,000 for Access; " +
			"TestUnchangedIsOneAccess counts",
		providertest.Expired:     "a secret whose expire_time has come is deleted by the service: it is NotFound",
		providertest.NotYetValid: "the service knows no start of validity",
	})
}

var app = providers.Ref{Path: "app"}

func wantKind(t *testing.T, err error, kind providers.Kind, says string) {
	t.Helper()
	if got := providers.KindOf(err); got != kind || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), providertest.Canary) {
		t.Errorf("kind %q, want %q; %q, want it to say %q", got, kind, err, says)
	}
}

func newWire(t *testing.T) wire {
	w := wire{gcptest.New(t)}
	w.Server.Set("app", []byte(`{"a":"1"}`))
	return w
}

func mustFetch(t *testing.T, p providers.Provider, ref providers.Ref) providers.Bundle {
	t.Helper()
	b, err := p.Fetch(t.Context(), ref, "")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestUnchangedIsOneAccess(t *testing.T) {
	w := newWire(t)
	p := w.Open(t, providertest.Options{})
	b := mustFetch(t, p, app)
	if got := w.Calls(); got != (providertest.Calls{Values: 1, Checks: 1}) || time.Since(b.Created) > time.Hour {
		t.Errorf("a new version: %+v, created %v", got, b.Created)
	}
	for range 5 {
		if _, err := p.Fetch(t.Context(), app, b.Version); !errors.Is(err, providers.ErrUnchanged) {
			t.Fatal(err)
		}
	}
	if got := w.Calls(); got != (providertest.Calls{Values: 6, Checks: 1}) {
		t.Errorf("five unchanged reads: %+v in all", got)
	}
	if n := w.Tokens.Issued("service account"); n != 1 {
		t.Errorf("%d logins", n)
	}
}

func TestNames(t *testing.T) {
	w := newWire(t)
	w.Server.Set("app", []byte(`{"a":"2"}`))
	w.Alias("app", "stable", "1")
	p := w.Open(t, providertest.Options{})
	for _, c := range []struct {
		ref  providers.Ref
		want providers.Version // empty: NotFound
	}{
		{providers.Ref{Path: "app"}, "2"},
		{providers.Ref{Path: "projects/" + gcptest.Number + "/secrets/app"}, "2"},
		{providers.Ref{Path: "app", Version: "1"}, "1"},
		{providers.Ref{Path: "app", Version: "stable"}, "1"},
		{providers.Ref{Path: "app", Version: "3"}, ""},
		{providers.Ref{Path: "app", Version: "1/x"}, ""},
		{providers.Ref{Path: "app/versions/1"}, ""},
		{providers.Ref{Path: "projects/x/secrets/app/versions/1"}, ""},
		{providers.Ref{Path: "projects/x/topics/app"}, ""},
		{providers.Ref{Path: "../app"}, ""},
		{providers.Ref{}, ""},
	} {
		b, err := p.Fetch(t.Context(), c.ref, "")
		if b.Version != c.want || (c.want == "") != (providers.KindOf(err) == providers.NotFound) {
			t.Errorf("%+v: version %q, want %q, %v", c.ref, b.Version, c.want, err)
		}
	}
}

func TestChecksum(t *testing.T) {
	for absent, says := range map[bool]string{false: "does not match", true: "without a checksum"} {
		w := newWire(t)
		w.SpoilChecksums("app", absent)
		_, err := w.Open(t, providertest.Options{}).Fetch(t.Context(), app, "")
		wantKind(t, err, providers.Malformed, says)
	}
}

func TestStates(t *testing.T) {
	for c, want := range map[providertest.Case]struct {
		kind providers.Kind
		says string
	}{
		providertest.Disabled:    {providers.Disabled, "is disabled"},
		providertest.SoftDeleted: {providers.Deleted, "will be destroyed at 20"},
		providertest.Destroyed:   {providers.Deleted, "is destroyed"},
		providertest.Denied:      {providers.Denied, "IAM_PERMISSION_DENIED"},
		providertest.AbsentMount: {providers.Denied, "CONSUMER_INVALID"},
	} {
		w := newWire(t)
		w.Server.Fault(t, c, "app")
		_, err := w.Open(t, providertest.Options{}).Fetch(t.Context(), app, "")
		wantKind(t, err, want.kind, want.says)
	}
}

// With the least of roles the broker reads, and guesses what it may not see.
func TestAccessorRoleAlone(t *testing.T) {
	w := newWire(t)
	w.DenyMetadata()
	p := w.Open(t, providertest.Options{})
	if b := mustFetch(t, p, app); !b.Created.IsZero() || b.Version != "1" {
		t.Errorf("%+v", b)
	}
	wire := w.Server
	wire.Fault(t, providertest.Destroyed, "app")
	_, err := p.Fetch(t.Context(), app, "")
	wantKind(t, err, providers.Disabled, "versions.get")
}

func TestThrottled(t *testing.T) {
	w := newWire(t)
	w.Server.Fault(t, providertest.Throttled, "app")
	_, err := w.Open(t, providertest.Options{}).Fetch(t.Context(), app, "")
	wantKind(t, err, providers.Throttled, "quota")
	e := (*providers.Error)(nil)
	if !errors.As(err, &e) || e.RetryAfter != 7*time.Second {
		t.Errorf("%+v", e)
	}
	if n := w.Calls().Values; n != 0 {
		t.Errorf("%d calls came through: something retries", n)
	}
}

func put(t *testing.T, p providers.Provider, ref providers.Ref, value string, expect providers.Version) (providers.Version, error) {
	t.Helper()
	return p.(providers.Writer).Put(t.Context(), ref, map[string]secret.Secret{"a": secret.FromString(value)}, expect)
}

func TestPut(t *testing.T) {
	w := newWire(t)
	w.Make("empty")
	p := w.Open(t, providertest.Options{})
	for _, c := range []struct {
		what, name string
		expect     providers.Version
		value      string
		want       providers.Version
		kind       providers.Kind
		says       string
	}{
		{"next", "app", "1", "2", "2", "", ""},
		{"stale", "app", "1", "x", "", providers.Conflict, "the latest version is 2, not 1"},
		{"not absent", "app", "", "x", "", providers.Conflict, "the latest version is 2, not 0"},
		{"absent", "gone", "3", "x", "", providers.Conflict, "the latest version is 0, not 3"},
		{"new", "new", "", "1", "1", "", ""},
		{"made without a version", "empty", "", "1", "1", "", ""},
		{"odd version", "app", "latest", "x", "", providers.Unsupported, "number"},
		{"binary", "app", "2", "\xff", "", providers.Unsupported, "not text"},
		{"large", "app", "2", strings.Repeat("x", 64<<10), "", providers.Unsupported, "larger"},
	} {
		v, err := put(t, p, providers.Ref{Path: c.name}, c.value, c.expect)
		if v != c.want {
			t.Errorf("%s: version %q, want %q", c.what, v, c.want)
		}
		if c.kind != "" || err != nil {
			wantKind(t, err, c.kind, c.says)
		}
	}
	w.Between([]byte(`{"a":"other"}`))
	_, err := put(t, p, app, "4", "2")
	wantKind(t, err, providers.Conflict, "version 4 was added")
	if got := string(w.Latest("app")); got != `{"a":"4"}` {
		t.Errorf("latest is %s", got)
	}
}

// The SDK would write payloads to standard error when told to by this variable.
func TestSDKLogsNothing(t *testing.T) {
	t.Setenv("GOOGLE_SDK_GO_LOGGING_LEVEL", "debug")
	log := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stdout, stderr := os.Stdout, os.Stderr
	os.Stdout, os.Stderr = f, f
	w := newWire(t)
	_, err = w.Open(t, providertest.Options{}).Fetch(t.Context(), app, "")
	os.Stdout, os.Stderr = stdout, stderr
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(log); err != nil || len(b) != 0 {
		t.Errorf("%d bytes were logged: %.200s", len(b), b)
	}
}

func TestEndpoints(t *testing.T) {
	w := newWire(t)
	t.Setenv("GCE_METADATA_HOST", "")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("CLOUDSDK_CONFIG", "")
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
	for _, c := range []struct {
		conf Config
		want []string
	}{
		{Config{Project: "p1"}, []string{"secretmanager.googleapis.com:443", "metadata.google.internal:80"}},
		{Config{Project: "p1", Endpoint: "host", Auth: Auth{Metadata: true}}, []string{"host:443", "metadata.google.internal:80"}},
		{Config{Project: "p1", Endpoint: "host:8443", Auth: Auth{CredentialsFile: w.Tokens.ServiceAccount(t)}}, []string{"host:8443", w.Tokens.Addr()}},
		{Config{Project: "p1", Auth: Auth{WorkloadIdentity: &WorkloadIdentity{File: w.Tokens.ExternalAccount(t)}}},
			[]string{"secretmanager.googleapis.com:443", w.Tokens.Addr()}},
		{Config{Project: "p1", Auth: Auth{CredentialsFile: "/nowhere"}}, []string{"secretmanager.googleapis.com:443"}},
	} {
		if got := mustOpen(t, c.conf).(providers.Egress).Endpoints(); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.conf, got, c.want)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		conf Config
		want string // empty: valid
	}{
		{Config{Project: "my-project"}, ""},
		{Config{Project: "example.com:my-project", Endpoint: "secretmanager.europe-west1.rep.googleapis.com", Auth: Auth{Metadata: true}}, ""},
		{Config{}, "project: "},
		{Config{Project: "a/b"}, "project: "},
		{Config{Project: "p", Endpoint: "https://x"}, "endpoint: "},
		{Config{Project: "p", Endpoint: "a:b:c"}, "endpoint: "},
		{Config{Project: "p", Auth: Auth{Metadata: true, CredentialsFile: "x"}}, "auth: want one"},
		{Config{Project: "p", Auth: Auth{WorkloadIdentity: &WorkloadIdentity{}}}, "auth: workload_identity: file"},
		{Config{Project: "p", Config: outbound.Config{Proxy: "socks5://x"}}, "proxy: "},
		{Config{Endpoint: "/"}, "project: want the id or number of the project\nendpoint: "},
	} {
		_, err := Open(c.conf, clock.System{})
		if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.conf, err, c.want)
		}
	}
}

func TestBadCAFile(t *testing.T) {
	w := newWire(t)
	c := w.config(t)
	c.CAFile = "/nowhere/ca.pem"
	_, err := mustOpen(t, c).Fetch(t.Context(), app, "")
	wantKind(t, err, providers.Unavailable, "ca_file")
}

func TestDeadlineIsNamed(t *testing.T) {
	w := newWire(t)
	p := w.Open(t, providertest.Options{})
	w.Server.Fault(t, providertest.Hangs, "app")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := p.Fetch(ctx, app, "")
	wantKind(t, err, providers.Unavailable, "in time")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func BenchmarkFetch(b *testing.B) {
	s := gcptest.New(b)
	s.Set("app", []byte(`{"a":"1"}`))
	p, err := Open(Config{Project: gcptest.Project, Endpoint: s.Addr(), Auth: Auth{CredentialsFile: s.Tokens.ServiceAccount(b)},
		Config: outbound.Config{CAFile: s.CAFile}}, clock.System{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := p.Fetch(b.Context(), app, "1"); !errors.Is(err, providers.ErrUnchanged) {
			b.Fatal(err)
		}
	}
}
