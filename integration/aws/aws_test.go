//go:build real

// Package aws runs the conformance suite of the secrets managers against
// moto, and lets Amazon's own client read and write what our adapter does.
package aws

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/goccy/go-yaml"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/aws"
	"credentialbroker/providers/providertest"
)

const server = "moto 5.2.5"

func TestConformance(t *testing.T) {
	real.Row(t, "provider aws", server, "conformance suite, signatures and policies enforced")
	base := startMoto(t)
	providertest.Run(t, func(t *testing.T) providertest.Manager { return newManager(t, base) }, providertest.Lacks{
		providertest.AbsentMount: "a region has no engines or vaults: a name is there or not",
		providertest.Disabled:    "AWS cannot switch a secret off",
		providertest.Expired:     "AWS keeps no expiry of a secret",
		providertest.NotYetValid: "AWS keeps no start of a secret's validity",
		providertest.Throttled:   "moto does not throttle; the fake at the wire does",
	})
}

// What the adapter and Amazon's own client for another language write, the
// other reads.
func TestSecondClient(t *testing.T) {
	real.Row(t, "provider aws", server, "cross-check by @aws-sdk/client-secrets-manager for Node")
	m := newManager(t, startMoto(t))
	p := m.Open(t, providertest.Options{})
	node := func(stdin string, args ...string) string {
		cmd := exec.Command("node", append([]string{"client.mjs"}, args...)...)
		cmd.Env = append(os.Environ(), "CLIENT_MODULES="+real.Path("moto", "node_modules"), "AWS_ACCESS_KEY_ID="+m.admin.AccessKeyID,
			"AWS_SECRET_ACCESS_KEY="+m.admin.SecretAccessKey, "NODE_EXTRA_CA_CERTS="+m.CA())
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.Output() // Node warns of its age on the other stream
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return string(out)
	}
	node(`{"client_id":"id","client_secret":"é\"\\😀"}`, "put", m.front.URL, "theirs")
	b, err := p.Fetch(t.Context(), m.Ref("theirs"), "")
	if err != nil {
		t.Fatal(err)
	}
	if s, _ := b.Fields["client_secret"].AppendTo(nil); string(s) != "é\"\\😀" {
		t.Errorf("read %q", s)
	}
	v, err := p.(providers.Writer).Put(t.Context(), m.Ref("theirs"), map[string]secret.Secret{"client_secret": secret.FromString("ours \n<&>")}, b.Version)
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Value, Version string }
	if err := json.Unmarshal([]byte(node("", "get", m.front.URL, "theirs")), &got); err != nil {
		t.Fatal(err)
	}
	var fields map[string]string
	if err := json.Unmarshal([]byte(got.Value), &fields); err != nil || fields["client_secret"] != "ours \n<&>" || got.Version != string(v) {
		t.Errorf("Node reads %q at %s, want version %s (%v)", fields, got.Version, v, err)
	}
}

func startMoto(t *testing.T) *url.URL {
	t.Helper()
	addr := real.FreeAddr(t)
	host, port, _ := net.SplitHostPort(addr)
	real.Start(t, addr, exec.Command(real.Path("moto", "venv", "bin", "python"), real.Path("moto", "venv", "bin", "moto_server"), "-H", host, "-p", port))
	return &url.URL{Scheme: "http", Host: addr}
}

// manager is moto behind a TLS front, which can also break as networks do.
type manager struct {
	t      *testing.T
	base   *url.URL
	front  *httptest.Server
	ca     string
	dir    string // with the broker's access key
	admin  awssdk.Credentials
	key    string // the broker's access key id
	client *secretsmanager.Client

	mu    sync.Mutex
	fault providertest.Case
	calls providertest.Calls
}

func newManager(t *testing.T, base *url.URL) *manager {
	m := &manager{t: t, base: base, dir: t.TempDir()}
	m.front = httptest.NewTLSServer(m.handler())
	t.Cleanup(m.front.Close)
	m.ca = providertest.CAFileOf(t, m.front)
	m.moto("reset", "")
	m.enforce(false)
	for _, user := range []string{"admin", "broker"} {
		m.iam("CreateUser", "UserName", user)
		m.iam("PutUserPolicy", "UserName", user, "PolicyName", "all",
			"PolicyDocument", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"secretsmanager:*","Resource":"*"}]}`)
	}
	m.admin = m.newKey("admin")
	m.giveKey()
	m.enforce(true)
	m.client = secretsmanager.New(secretsmanager.Options{Region: "eu-west-1", BaseEndpoint: new(base.String()),
		Credentials: credentials.StaticCredentialsProvider{Value: m.admin}})
	return m
}

func (m *manager) handler() http.Handler {
	to := &httputil.ReverseProxy{ModifyResponse: jsonError, Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = m.base.Scheme, m.base.Host, r.In.Host // the Host is signed
	}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		switch r.Header.Get("X-Amz-Target") {
		case "secretsmanager.GetSecretValue", "secretsmanager.BatchGetSecretValue":
			m.calls.Values++
		case "secretsmanager.DescribeSecret":
			m.calls.Checks++
		}
		fault := m.fault
		m.mu.Unlock()
		switch fault {
		case providertest.Hangs:
			_, _ = io.Copy(io.Discard, r.Body) // only then does the server see its client leave
			<-r.Context().Done()
		case providertest.Garbage:
			_, _ = io.WriteString(w, "<html>not here</html>")
		case providertest.ServerError:
			http.Error(w, "bad gateway", http.StatusBadGateway)
		default:
			to.ServeHTTP(w, r)
		}
	})
}

// jsonError puts moto's refusals of signatures and policies, which it writes as
// XML whatever the protocol, into the form that AWS JSON 1.1 has for errors.
func jsonError(resp *http.Response) error {
	if resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusUnauthorized {
		return nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	_, code, _ := strings.Cut(string(text), "<Code>")
	code, _, _ = strings.Cut(code, "</Code>")
	body, err := json.Marshal(map[string]string{"__type": code})
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	resp.Header.Set("Content-Type", "application/x-amz-json-1.1")
	return err
}

// moto calls moto's own administration.
func (m *manager) moto(action, body string) {
	m.t.Helper()
	resp, err := http.Post(m.base.String()+"/moto-api/"+action, "text/plain", strings.NewReader(body))
	if err != nil || resp.StatusCode != http.StatusOK {
		m.t.Fatal(action, err, resp)
	}
	resp.Body.Close()
}

// enforce switches the checking of signatures and policies.
func (m *manager) enforce(on bool) {
	m.moto("reset-auth", map[bool]string{true: "0", false: "inf"}[on])
}

// iam makes a call while nothing is enforced.
func (m *manager) iam(action string, params ...string) []byte {
	m.t.Helper()
	form := url.Values{"Action": {action}, "Version": {"2010-05-08"}}
	for i := 0; i < len(params); i += 2 {
		form.Set(params[i], params[i+1])
	}
	req, err := http.NewRequest(http.MethodPost, m.base.String(), strings.NewReader(form.Encode()))
	if err != nil {
		m.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=nobody/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		m.t.Fatalf("%s: %s %v %s", action, resp.Status, err, body)
	}
	return body
}

func (m *manager) newKey(user string) awssdk.Credentials {
	var out struct {
		Key struct {
			AccessKeyID     string `xml:"AccessKeyId"`
			SecretAccessKey string
		} `xml:"CreateAccessKeyResult>AccessKey"`
	}
	if err := xml.Unmarshal(m.iam("CreateAccessKey", "UserName", user), &out); err != nil || out.Key.AccessKeyID == "" {
		m.t.Fatal("no access key", err)
	}
	return awssdk.Credentials{AccessKeyID: out.Key.AccessKeyID, SecretAccessKey: out.Key.SecretAccessKey}
}

// giveKey makes an access key for the broker and writes it where it reads it.
func (m *manager) giveKey() {
	c := m.newKey("broker")
	m.key = c.AccessKeyID
	for file, text := range map[string]string{"id": c.AccessKeyID, "key": c.SecretAccessKey} {
		if err := os.WriteFile(filepath.Join(m.dir, file), []byte(text), 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
}

// Open implements providertest.Manager, from a configuration as people write it.
func (m *manager) Open(t *testing.T, o providertest.Options) providers.Provider {
	t.Helper()
	var c aws.Config
	text := fmt.Sprintf("region: eu-west-1\nendpoint: %s\nca_file: %q\nauth: { static: { access_key_id_file: %q, secret_access_key_file: %q } }\n",
		m.front.URL, m.ca, filepath.Join(m.dir, "id"), filepath.Join(m.dir, "key"))
	if err := yaml.UnmarshalWithOptions([]byte(text), &c, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	if o.Outbound != nil {
		c.Config = *o.Outbound
	}
	p, err := aws.Open(c, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func (m *manager) Ref(name string) providers.Ref { return providers.Ref{Path: name} }
func (m *manager) CA() string                    { return m.ca }
func (m *manager) Addr() string                  { return providertest.HostPort(m.t, m.front.URL) }

func (m *manager) Calls() providertest.Calls {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls
}

// Set stores as an administrator, with the SDK alone.
func (m *manager) Set(t *testing.T, name string, payload []byte) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var text *string
	var binary []byte
	if utf8.Valid(payload) {
		text = new(string(payload))
	} else {
		binary = bytes.Clone(payload)
	}
	_, err := m.client.CreateSecret(ctx, &secretsmanager.CreateSecretInput{Name: &name, SecretString: text, SecretBinary: binary})
	if err != nil && strings.Contains(err.Error(), "ResourceExistsException") {
		_, err = m.client.PutSecretValue(ctx, &secretsmanager.PutSecretValueInput{SecretId: &name, SecretString: text, SecretBinary: binary})
	}
	if err != nil {
		t.Error(err)
	}
}

// Fault implements providertest.Manager.
func (m *manager) Fault(t *testing.T, c providertest.Case, name string) {
	switch c {
	case providertest.Absent, providertest.Destroyed:
		m.remove(t, name, true)
	case providertest.SoftDeleted:
		m.remove(t, name, false)
	case providertest.Denied:
		m.unenforced(func() { m.iam("DeleteUserPolicy", "UserName", "broker", "PolicyName", "all") })
	case providertest.LoginRefused:
		m.unenforced(func() { m.iam("DeleteAccessKey", "UserName", "broker", "AccessKeyId", m.key) })
	case providertest.LoginExpired:
		m.unenforced(func() {
			m.iam("DeleteAccessKey", "UserName", "broker", "AccessKeyId", m.key)
			m.giveKey()
		})
	case providertest.Down:
		m.front.Listener.Close()
		m.front.CloseClientConnections()
	default:
		m.mu.Lock()
		defer m.mu.Unlock()
		m.fault = c
	}
}

func (m *manager) unenforced(f func()) {
	m.enforce(false)
	f()
	m.enforce(true)
}

func (m *manager) remove(t *testing.T, name string, force bool) {
	_, err := m.client.DeleteSecret(t.Context(), &secretsmanager.DeleteSecretInput{SecretId: &name, ForceDeleteWithoutRecovery: &force})
	if err != nil {
		t.Fatal(err)
	}
}
