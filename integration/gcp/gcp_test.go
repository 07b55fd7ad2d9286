//go:build real

// Package gcp lets Google's own Node client and the adapter read what the other
// has written, through the server that the adapter's other tests run against.
package gcp

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/gcp"
	"credentialbroker/providers/gcp/gcptest"
	"credentialbroker/providers/providertest"
)

const server = "@google-cloud/secret-manager 7.2.0 (Node)"

type answer struct {
	Version, Value, State, Reason string
	Code                          int
}

// node runs Google's client once.
func node(t *testing.T, s *gcptest.Server, token, input string, args ...string) answer {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "node", append([]string{filepath.Join(real.Root(), "integration", "gcp", "client.js")}, args...)...)
	cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+s.CAFile, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH="+s.CAFile,
		"GCP_INSTALL="+real.Path("gcp"), "GCP_ADDR="+s.Addr(), "GCP_TOKEN="+token)
	cmd.Stdin = strings.NewReader(input)
	out := real.Must(t, cmd)
	var a answer
	if err := json.Unmarshal([]byte(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]), &a); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return a
}

func open(t *testing.T, s *gcptest.Server) providers.Provider {
	t.Helper()
	p, err := gcp.Open(gcp.Config{Project: gcptest.Project, Endpoint: s.Addr(), Auth: gcp.Auth{CredentialsFile: s.Tokens.ServiceAccount(t)},
		Config: outbound.Config{CAFile: s.CAFile}}, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func TestNodeReadsWhatTheAdapterWrites(t *testing.T) {
	real.Row(t, "provider gcp", server, "reads what the adapter writes")
	s := gcptest.New(t)
	w := open(t, s).(providers.Writer)
	for n, want := range []string{`{"client_id":"id","client_secret":"two\u000a\"é\""}`, `{"client_id":"id"}`} {
		fields, err := providers.Parse([]byte(want))
		if err != nil {
			t.Fatal(err)
		}
		expect := providers.Version("")
		if n == 1 {
			expect = "1"
		}
		v, err := w.Put(t.Context(), providers.Ref{Path: "app"}, fields, expect)
		if err != nil {
			t.Fatal(err)
		}
		a := node(t, s, s.Tokens.Issue(), "", "read", "app")
		got, err := base64.StdEncoding.DecodeString(a.Value)
		if err != nil || string(got) != want || a.Version != string(v) || a.State != "ENABLED" {
			t.Errorf("%+v holds %s, want %s at version %s", a, got, want, v)
		}
	}
}

func TestAdapterReadsWhatNodeWrites(t *testing.T) {
	real.Row(t, "provider gcp", server, "writes what the adapter reads")
	s := gcptest.New(t)
	p := open(t, s)
	have := providers.Version("")
	for _, want := range []string{"one", "\xff\x00 two"} {
		a := node(t, s, s.Tokens.Issue(), base64.StdEncoding.EncodeToString([]byte(want)), "write", "key")
		b, err := p.Fetch(t.Context(), providers.Ref{Path: "key"}, have)
		if err != nil || a.Version != string(b.Version) || !b.Fields[providers.Whole].Equal(secret.FromString(want)) {
			t.Errorf("version %q, want %q, %v", b.Version, a.Version, err)
		}
		have = b.Version
	}
}

// Google's client understands the server's refusals, so these are Google's.
func TestNodeSeesTheSameRefusals(t *testing.T) {
	real.Row(t, "provider gcp", server, "sees the same refusals as the adapter")
	for _, c := range []struct {
		fault providertest.Case
		code  int // google.rpc.Code
		kind  providers.Kind
	}{
		{providertest.Absent, 5, providers.NotFound},
		{providertest.Denied, 7, providers.Denied},
		{providertest.Disabled, 9, providers.Disabled},
		{providertest.Destroyed, 9, providers.Deleted},
		{providertest.LoginExpired, 16, ""}, // the adapter logs in again
	} {
		s := gcptest.New(t)
		s.Set("app", []byte(`{"a":"1"}`))
		token := s.Tokens.Issue()
		s.Fault(t, c.fault, "app")
		if a := node(t, s, token, "", "read", "app"); a.Code != c.code {
			t.Errorf("%s: Google's client sees %+v, want code %d", c.fault, a, c.code)
		}
		if _, err := open(t, s).Fetch(t.Context(), providers.Ref{Path: "app"}, ""); providers.KindOf(err) != c.kind {
			t.Errorf("%s: the adapter sees %v, want %q", c.fault, err, c.kind)
		}
	}
}
