// Package gcptest is a Secret Manager on loopback for tests: Google's generated
// gRPC service over TLS, and the three token endpoints of Google's logins. It
// is strict where the service is: tokens, routing headers, checksums, states.
package gcptest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"hash/crc32"
	"math/big"
	"net"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"credentialbroker/providers/providertest"
)

// Project is the only project there is; Number is its number, by which answers
// name it.
const (
	Project = "test-project"
	Number  = "123456789012"
)

// A Server is one Secret Manager, and what issues its tokens.
type Server struct {
	secretmanagerpb.UnimplementedSecretManagerServiceServer
	Tokens *Tokens
	CAFile string

	addr  string
	cert  tls.Certificate
	grpc  *grpc.Server
	ended chan struct{} // ends handlers that hang

	mu      sync.Mutex
	secrets map[string][]version // by name
	fault   providertest.Case
	faulty  string // the secret that it is about
	calls   providertest.Calls
	aliases map[string]string // NAME/ALIAS to a number
	allowed []string          // permissions of the login; nil: all
	between []byte            // written before the next AddSecretVersion
}

type version struct {
	data      []byte
	state     secretmanagerpb.SecretVersion_State
	created   time.Time
	destroyAt *timestamppb.Timestamp
	noSum     bool
	badSum    bool
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	cert := newCertificate(t)
	s := &Server{CAFile: providertest.WritePEM(t, cert.Certificate[0]), cert: cert, ended: make(chan struct{}),
		secrets: map[string][]version{}, aliases: map[string]string{}}
	s.Tokens = newTokens(t, cert)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	s.grpc = grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})),
		grpc.UnaryInterceptor(s.check))
	secretmanagerpb.RegisterSecretManagerServiceServer(s.grpc, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.grpc.Serve(l)
	}()
	t.Cleanup(func() {
		close(s.ended)
		s.grpc.Stop()
		<-done
	})
	return s
}

func newCertificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gcptest"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Addr is the service's host:port.
func (s *Server) Addr() string { return s.addr }

// Set stores payload as the newest version.
func (s *Server) Set(name string, payload []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(name, payload)
}

func (s *Server) add(name string, payload []byte) int {
	s.secrets[name] = append(s.secrets[name], version{data: payload, state: secretmanagerpb.SecretVersion_ENABLED, created: time.Now()})
	return len(s.secrets[name])
}

// Make makes a secret without versions.
func (s *Server) Make(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[name] = nil
}

// Alias names a version.
func (s *Server) Alias(name, alias, number string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aliases[name+"/"+alias] = number
}

// Latest gives the newest version's payload.
func (s *Server) Latest(name string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.secrets[name]
	if len(v) == 0 {
		return nil
	}
	return v[len(v)-1].data
}

// Between lets another writer come just before the next AddSecretVersion.
func (s *Server) Between(payload []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.between = payload
}

// SpoilChecksums makes the newest version's checksum wrong, or absent.
func (s *Server) SpoilChecksums(name string, absent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := &s.secrets[name][len(s.secrets[name])-1]
	v.noSum, v.badSum = absent, !absent
}

// Calls counts values read (Access) and metadata read.
func (s *Server) Calls() providertest.Calls {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// Fault brings a secret, or the server, into a state; see providertest.
func (s *Server) Fault(t testing.TB, c providertest.Case, name string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	newest := func() *version { return &s.secrets[name][len(s.secrets[name])-1] }
	switch c {
	case providertest.Absent:
		delete(s.secrets, name)
	case providertest.Disabled:
		newest().state = secretmanagerpb.SecretVersion_DISABLED
	case providertest.SoftDeleted: // what Destroy does where the secret has a version_destroy_ttl
		newest().state = secretmanagerpb.SecretVersion_DISABLED
		newest().destroyAt = timestamppb.New(time.Now().Add(24 * time.Hour))
	case providertest.Destroyed:
		newest().state, newest().data = secretmanagerpb.SecretVersion_DESTROYED, nil
	case providertest.Down:
		s.grpc.Stop()
	case providertest.Garbage:
		s.garbage(t)
	case providertest.LoginExpired:
		s.Tokens.expire()
	case providertest.LoginRefused:
		s.Tokens.refuse()
	case providertest.Denied, providertest.AbsentMount, providertest.Throttled, providertest.ServerError, providertest.Hangs:
		s.fault, s.faulty = c, name
	default:
		t.Fatalf("the server cannot be brought into the state %q", c)
	}
}

// DenyMetadata lets a login access values and nothing else.
func (s *Server) DenyMetadata() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = "metadata denied"
}

// Allow lets a login do what these permissions of IAM allow, and nothing else.
func (s *Server) Allow(permissions []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allowed = permissions
}

// permission is what IAM asks for a method.
func permission(method string) string {
	return map[string]string{
		"AccessSecretVersion": "secretmanager.versions.access", "GetSecretVersion": "secretmanager.versions.get",
		"AddSecretVersion": "secretmanager.versions.add", "CreateSecret": "secretmanager.secrets.create",
	}[method[strings.LastIndexByte(method, '/')+1:]]
}

// garbage replaces the service by a web server.
func (s *Server) garbage(t testing.TB) {
	s.grpc.Stop()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: webServer(), TLS: &tls.Config{Certificates: []tls.Certificate{s.cert}}}
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
}

// check is what the service looks at before any method.
func (s *Server) check(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if token, ok := strings.CutPrefix(strings.Join(md.Get("authorization"), " "), "Bearer "); !ok || !s.Tokens.valid(token) {
		return nil, detailed(codes.Unauthenticated, &errdetails.ErrorInfo{Reason: "ACCESS_TOKEN_TYPE_UNSUPPORTED"})
	}
	resource := ""
	switch r := req.(type) {
	case interface{ GetName() string }:
		resource = "name=" + url.QueryEscape(r.GetName())
	case interface{ GetParent() string }:
		resource = "parent=" + url.QueryEscape(r.GetParent())
	}
	if got := strings.Join(md.Get("x-goog-request-params"), "&"); got != resource {
		return nil, status.Errorf(codes.InvalidArgument, "routing header %q, want %q", got, resource)
	}
	s.mu.Lock()
	fault, allowed := s.fault, s.allowed
	s.mu.Unlock()
	metadataCall := strings.HasSuffix(info.FullMethod, "/GetSecretVersion")
	switch {
	case fault == providertest.Hangs:
		<-s.ended
		return nil, status.Error(codes.Unavailable, "ended")
	case fault == providertest.Denied, allowed != nil && !slices.Contains(allowed, permission(info.FullMethod)), fault == "metadata denied" && metadataCall:
		return nil, detailed(codes.PermissionDenied, &errdetails.ErrorInfo{Reason: "IAM_PERMISSION_DENIED"})
	case fault == providertest.AbsentMount:
		return nil, detailed(codes.PermissionDenied, &errdetails.ErrorInfo{Reason: "CONSUMER_INVALID"})
	case fault == providertest.Throttled:
		return nil, detailed(codes.ResourceExhausted, &errdetails.RetryInfo{RetryDelay: durationpb.New(7 * time.Second)})
	case fault == providertest.ServerError:
		return nil, status.Error(codes.Internal, providertest.Canary)
	}
	return next(ctx, req)
}

// detailed makes an error as the service does: a text that repeats things, and
// details.
func detailed(code codes.Code, d interface {
	Reset()
	String() string
	ProtoMessage()
}) error {
	st := status.New(code, "text with "+providertest.Canary)
	if with, err := st.WithDetails(d); err == nil {
		st = with
	}
	return st.Err()
}

// find gives a version by its resource name, under s.mu.
func (s *Server) find(resource string) (*version, string, error) {
	rest, ok := strings.CutPrefix(resource, "projects/"+Project+"/secrets/")
	if !ok {
		rest, ok = strings.CutPrefix(resource, "projects/"+Number+"/secrets/")
	}
	name, want, _ := strings.Cut(rest, "/versions/")
	if number, there := s.aliases[name+"/"+want]; there {
		want = number
	}
	all := s.secrets[name]
	n, err := strconv.Atoi(want)
	if want == "latest" {
		n, err = len(all), nil
	}
	if !ok || err != nil || n < 1 || n > len(all) {
		return nil, "", status.Errorf(codes.NotFound, "Secret [%s] not found or has no versions.", resource)
	}
	return &all[n-1], fmt.Sprintf("projects/%s/secrets/%s/versions/%d", Number, name, n), nil
}

// AccessSecretVersion is the service's method.
func (s *Server) AccessSecretVersion(_ context.Context, r *secretmanagerpb.AccessSecretVersionRequest) (*secretmanagerpb.AccessSecretVersionResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls.Values++
	v, name, err := s.find(r.GetName())
	if err != nil {
		return nil, err
	}
	if v.state != secretmanagerpb.SecretVersion_ENABLED {
		return nil, status.Errorf(codes.FailedPrecondition, "Secret Version [%s] is in %s state.", name, v.state)
	}
	sum := int64(crc32.Checksum(v.data, crc32.MakeTable(crc32.Castagnoli)))
	p := &secretmanagerpb.SecretPayload{Data: append([]byte(nil), v.data...), DataCrc32C: &sum}
	switch {
	case v.noSum:
		p.DataCrc32C = nil
	case v.badSum:
		sum++
	}
	return &secretmanagerpb.AccessSecretVersionResponse{Name: name, Payload: p}, nil
}

// GetSecretVersion is the service's method.
func (s *Server) GetSecretVersion(_ context.Context, r *secretmanagerpb.GetSecretVersionRequest) (*secretmanagerpb.SecretVersion, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls.Checks++
	v, name, err := s.find(r.GetName())
	if err != nil {
		return nil, err
	}
	return &secretmanagerpb.SecretVersion{Name: name, State: v.state, CreateTime: timestamppb.New(v.created), ScheduledDestroyTime: v.destroyAt}, nil
}

// CreateSecret is the service's method.
func (s *Server) CreateSecret(_ context.Context, r *secretmanagerpb.CreateSecretRequest) (*secretmanagerpb.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.GetParent() != "projects/"+Project || r.GetSecret().GetReplication() == nil {
		return nil, status.Error(codes.InvalidArgument, "parent or replication")
	}
	if _, there := s.secrets[r.GetSecretId()]; there {
		return nil, status.Error(codes.AlreadyExists, "Secret already exists.")
	}
	s.secrets[r.GetSecretId()] = nil
	return &secretmanagerpb.Secret{Name: "projects/" + Number + "/secrets/" + r.GetSecretId(), Replication: r.GetSecret().GetReplication()}, nil
}

// AddSecretVersion is the service's method.
func (s *Server) AddSecretVersion(_ context.Context, r *secretmanagerpb.AddSecretVersionRequest) (*secretmanagerpb.SecretVersion, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name, ok := strings.CutPrefix(r.GetParent(), "projects/"+Project+"/secrets/")
	if _, there := s.secrets[name]; !ok || !there {
		return nil, status.Error(codes.NotFound, "Secret not found.")
	}
	p := r.GetPayload()
	if p.DataCrc32C != nil && p.GetDataCrc32C() != int64(crc32.Checksum(p.GetData(), crc32.MakeTable(crc32.Castagnoli))) {
		return nil, status.Error(codes.InvalidArgument, "checksum")
	}
	if len(p.GetData()) > 64<<10 {
		return nil, status.Error(codes.InvalidArgument, "too large")
	}
	if s.between != nil {
		s.add(name, s.between)
		s.between = nil
	}
	n := s.add(name, append([]byte(nil), p.GetData()...))
	return &secretmanagerpb.SecretVersion{Name: fmt.Sprintf("projects/%s/secrets/%s/versions/%d", Number, name, n),
		State: secretmanagerpb.SecretVersion_ENABLED}, nil
}
