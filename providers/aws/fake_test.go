package aws

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

const (
	fakeRegion = "eu-west-1"
	fakeRole   = "arn:aws:iam::123456789012:role/broker"
	fakeJWT    = "header.payload.signature-" + providertest.Canary
)

// fake is Secrets Manager and STS at the wire: AWS JSON 1.1 and the query
// protocol over TLS. It checks every signature.
type fake struct {
	t     *testing.T
	srv   *httptest.Server
	ca    string
	token string // file with fakeJWT

	mu      sync.Mutex
	secrets map[string]*fakeSecret
	keys    map[string]awssdk.Credentials // by access key id: what it accepts
	issued  int
	asked   []string // STS actions, with role and external id
	fault   providertest.Case
	code    string // what every call answers; empty: by itself
	deny    string // one action that policy forbids
	denial  string // the code of that; empty: AccessDeniedException
	calls   providertest.Calls
	batches [][]string // the names in each BatchGetSecretValue
	odd     bool       // GetSecretValue finds a state that allows no reading
	before  func()     // runs once, before the next PutSecretValue
	between func()     // runs once, after it
	seq     int
}

type fakeSecret struct {
	versions map[string]fakeVersion
	stages   map[string]string // label to version
	deleted  bool
}

type fakeVersion struct {
	payload []byte
	created time.Time
}

func newFake(t *testing.T) *fake {
	isolate(t)
	f := &fake{t: t, secrets: map[string]*fakeSecret{}, keys: map[string]awssdk.Credentials{}}
	f.srv = httptest.NewTLSServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.srv.Close)
	f.ca = providertest.CAFileOf(t, f.srv)
	f.token = write(t, "token", fakeJWT)
	return f
}

// isolate takes the environment's credentials away; nothing may reach the
// real metadata address.
func isolate(t *testing.T) {
	for _, kv := range os.Environ() {
		if k, _, _ := strings.Cut(kv, "="); strings.HasPrefix(k, "AWS_") {
			t.Setenv(k, "") // so that it is restored
			os.Unsetenv(k)
		}
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// accept makes the fake take an access key.
func (f *fake) accept(id string) awssdk.Credentials {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := awssdk.Credentials{AccessKeyID: id, SecretAccessKey: "key of " + id, SessionToken: "session of " + id}
	f.keys[id] = c
	return c
}

func (f *fake) config() Config {
	return Config{Region: fakeRegion, Endpoint: f.srv.URL, STSEndpoint: f.srv.URL, Config: outbound.Config{CAFile: f.ca}}
}

func (f *fake) open(t *testing.T, c Config) providers.Provider {
	t.Helper()
	p, err := Open(c, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// Open implements providertest.Manager, with the login that can expire.
func (f *fake) Open(t *testing.T, o providertest.Options) providers.Provider {
	c := f.config()
	c.Auth.WebIdentity = &webIdentity{RoleARN: fakeRole, TokenFile: f.token}
	if o.Outbound != nil {
		c.Config = *o.Outbound
	}
	return f.open(t, c)
}

func (f *fake) Ref(name string) providers.Ref { return providers.Ref{Path: name} }
func (f *fake) CA() string                    { return f.ca }
func (f *fake) Addr() string                  { return providertest.HostPort(f.t, f.srv.URL) }

func (f *fake) Calls() providertest.Calls {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

func (f *fake) Set(_ *testing.T, name string, payload []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.store(name, f.newID(), payload, currentStage)
}

func (f *fake) newID() string {
	f.seq++
	return fmt.Sprintf("%08d-0000-4000-8000-000000000000", f.seq)
}

// store adds a version and moves a label to it.
func (f *fake) store(name, id string, payload []byte, stage string) {
	s := f.secrets[name]
	if s == nil {
		s = &fakeSecret{versions: map[string]fakeVersion{}, stages: map[string]string{}}
		f.secrets[name] = s
		stage = currentStage
	}
	s.versions[id] = fakeVersion{bytes.Clone(payload), time.Unix(1_700_000_000+int64(len(s.versions)), 0)}
	s.move(stage, id)
}

func (s *fakeSecret) move(stage, id string) {
	if old := s.stages[stage]; stage == currentStage && old != "" {
		s.stages["AWSPREVIOUS"] = old
	}
	s.stages[stage] = id
}

func (f *fake) Fault(_ *testing.T, c providertest.Case, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch c {
	case providertest.Absent, providertest.Destroyed:
		delete(f.secrets, name)
	case providertest.SoftDeleted:
		f.secrets[name].deleted = true
	case providertest.Throttled:
		f.code = "ThrottlingException"
	case providertest.Denied:
		f.code = "AccessDeniedException"
	case providertest.LoginExpired:
		clear(f.keys)
	case providertest.Down:
		f.srv.Listener.Close()
		f.srv.CloseClientConnections()
	default:
		f.fault = c
	}
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.mu.Lock()
	fault, code := f.fault, f.code
	f.mu.Unlock()
	switch fault {
	case providertest.ServerError:
		reply(w, 500, "InternalServiceError", nil)
		return
	case providertest.Hangs:
		<-r.Context().Done()
		return
	case providertest.Garbage:
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<html>hello, I am a proxy</html>")
		return
	case providertest.LoginRefused:
		code = "UnrecognizedClientException"
	default:
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Header.Get("X-Amz-Target") == "" {
		f.serveSTS(w, r, body)
		return
	}
	if r.URL.RawQuery != "" || !r.Close {
		f.t.Errorf("query %q, connection kept: %v", r.URL.RawQuery, !r.Close)
	}
	if code == "" {
		code = f.checkSignature(r, body, "secretsmanager")
	}
	if code != "" {
		reply(w, 400, code, nil)
		return
	}
	f.serveSecrets(w, strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "secretsmanager."), body)
}

// checkSignature signs the request again (Signature Version 4).
func (f *fake) checkSignature(r *http.Request, body []byte, service string) (code string) {
	auth := r.Header.Get("Authorization")
	_, rest, ok := strings.Cut(auth, "AWS4-HMAC-SHA256 Credential=")
	id, _, _ := strings.Cut(rest, "/")
	if !ok {
		return "MissingAuthenticationTokenException"
	}
	creds, ok := f.keys[id]
	if !ok || creds.SessionToken != r.Header.Get("X-Amz-Security-Token") {
		return "ExpiredTokenException"
	}
	_, signed, _ := strings.Cut(auth, "SignedHeaders=")
	signed, _, _ = strings.Cut(signed, ",")
	again, err := http.NewRequest(r.Method, "https://"+r.Host+r.URL.Path, bytes.NewReader(body))
	if err != nil {
		f.t.Error(err)
		return "InvalidSignatureException"
	}
	for _, h := range strings.Split(signed, ";") {
		if v := r.Header.Values(h); len(v) > 0 && h != "x-amz-security-token" && h != "x-amz-date" {
			again.Header[http.CanonicalHeaderKey(h)] = v
		}
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil {
		return "InvalidSignatureException"
	}
	sum := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(f.t.Context(), creds, again, hex.EncodeToString(sum[:]), service, fakeRegion, at); err != nil {
		f.t.Error(err)
	}
	if again.Header.Get("Authorization") != auth {
		return "InvalidSignatureException"
	}
	return ""
}

func (f *fake) serveSTS(w http.ResponseWriter, r *http.Request, body []byte) {
	r.Body = io.NopCloser(bytes.NewReader(body))
	if err := r.ParseForm(); err != nil || r.URL.RawQuery != "" {
		f.t.Errorf("STS: %v, query %q", err, r.URL.RawQuery)
	}
	action := r.PostForm.Get("Action")
	if action == "AssumeRole" {
		if code := f.checkSignature(r, body, "sts"); code != "" {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `<ErrorResponse><Error><Code>%s</Code><Message>no</Message></Error></ErrorResponse>`, code)
			return
		}
	}
	f.asked = append(f.asked, strings.TrimSpace(action+" "+r.PostForm.Get("RoleArn")+" "+r.PostForm.Get("RoleSessionName")+" "+r.PostForm.Get("ExternalId")))
	switch {
	case f.fault == providertest.LoginRefused, action == "AssumeRoleWithWebIdentity" && r.PostForm.Get("WebIdentityToken") != fakeJWT:
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, `<ErrorResponse><Error><Code>InvalidIdentityToken</Code><Message>no `+providertest.Canary+`</Message></Error></ErrorResponse>`)
		return
	case f.code == "sts down":
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	f.issued++
	id := fmt.Sprintf("ASIA%d", f.issued)
	c := awssdk.Credentials{AccessKeyID: id, SecretAccessKey: "key of " + id, SessionToken: "session of " + id}
	f.keys[id] = c
	fmt.Fprintf(w, `<%[1]sResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><%[1]sResult><Credentials><AccessKeyId>%[2]s</AccessKeyId><SecretAccessKey>%[3]s</SecretAccessKey><SessionToken>%[4]s</SessionToken><Expiration>%[5]s</Expiration></Credentials></%[1]sResult></%[1]sResponse>`,
		action, c.AccessKeyID, c.SecretAccessKey, c.SessionToken, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
}

func reply(w http.ResponseWriter, status int, code string, v map[string]any) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	if code != "" {
		v = map[string]any{"__type": "com.amazonaws.secretsmanager#" + code, "Message": "about " + providertest.Canary}
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

type fakeInput struct {
	SecretID            string   `json:"SecretId"`
	SecretIDList        []string `json:"SecretIdList"`
	Name                string
	VersionID           string `json:"VersionId"`
	VersionStage        string
	VersionStages       []string
	SecretString        *string
	SecretBinary        []byte
	ClientRequestToken  string
	MoveToVersionID     string `json:"MoveToVersionId"`
	RemoveFromVersionID string `json:"RemoveFromVersionId"`
}

func (in fakeInput) payload() []byte {
	if in.SecretString != nil {
		return []byte(*in.SecretString)
	}
	return in.SecretBinary
}

func (f *fake) serveSecrets(w http.ResponseWriter, action string, body []byte) {
	var in fakeInput
	if err := json.Unmarshal(body, &in); err != nil {
		f.t.Error(err)
	}
	if action == f.deny {
		reply(w, 400, cmp.Or(f.denial, "AccessDeniedException"), nil)
		return
	}
	if action == "CreateSecret" {
		if f.secrets[in.Name] != nil {
			reply(w, 400, "ResourceExistsException", nil)
			return
		}
		f.store(in.Name, in.ClientRequestToken, in.payload(), currentStage)
		reply(w, 200, "", map[string]any{"VersionId": in.ClientRequestToken})
		return
	}
	if action == "BatchGetSecretValue" {
		f.batch(w, in)
		return
	}
	s := f.secrets[in.SecretID]
	if s == nil {
		reply(w, 400, "ResourceNotFoundException", nil)
		return
	}
	switch action {
	case "DescribeSecret":
		f.describe(w, in.SecretID, s)
	case "GetSecretValue":
		f.get(w, in, s)
	case "PutSecretValue":
		if b := f.before; b != nil {
			f.before = nil
			b()
		}
		f.store(in.SecretID, in.ClientRequestToken, in.payload(), in.VersionStages[0])
		if b := f.between; b != nil {
			f.between = nil
			b()
		}
		reply(w, 200, "", map[string]any{"VersionId": in.ClientRequestToken})
	case "UpdateSecretVersionStage":
		if s.stages[in.VersionStage] != in.RemoveFromVersionID {
			reply(w, 400, "InvalidParameterException", nil)
			return
		}
		s.move(in.VersionStage, in.MoveToVersionID)
		reply(w, 200, "", map[string]any{})
	default:
		reply(w, 400, "UnknownOperationException", nil)
	}
}

func (f *fake) describe(w http.ResponseWriter, name string, s *fakeSecret) {
	f.calls.Checks++
	stages := map[string][]string{}
	for stage, id := range s.stages {
		stages[id] = append(stages[id], stage)
	}
	out := map[string]any{"Name": name, "VersionIdsToStages": stages}
	if s.deleted {
		out["DeletedDate"] = 1.7e9
	}
	reply(w, 200, "", out)
}

func (f *fake) get(w http.ResponseWriter, in fakeInput, s *fakeSecret) {
	f.calls.Values++
	id := in.VersionID
	if id == "" {
		id = s.stages[in.VersionStage]
	}
	v, ok := s.versions[id]
	switch {
	case s.deleted || f.odd:
		reply(w, 400, "InvalidRequestException", nil)
		return
	case !ok:
		reply(w, 400, "ResourceNotFoundException", nil)
		return
	}
	reply(w, 200, "", v.output(in.SecretID, id))
}

func (v fakeVersion) output(name, id string) map[string]any {
	out := map[string]any{"ARN": "arn:aws:secretsmanager:" + fakeRegion + ":123456789012:secret:" + name + "-abcdef", "Name": name, "VersionId": id,
		"VersionStages": []string{currentStage}, "CreatedDate": float64(v.created.UnixMilli()) / 1000}
	if utf8.Valid(v.payload) {
		out["SecretString"] = string(v.payload)
	} else {
		out["SecretBinary"] = base64.StdEncoding.EncodeToString(v.payload)
	}
	return out
}

// batch gives what can be had, and a list of errors.
func (f *fake) batch(w http.ResponseWriter, in fakeInput) {
	f.batches = append(f.batches, in.SecretIDList)
	if len(in.SecretIDList) > 20 {
		reply(w, 400, "InvalidParameterException", nil)
		return
	}
	values, errs := []any{}, []any{}
	for _, name := range in.SecretIDList {
		if name, ok := strings.CutPrefix(name, "arn:aws:secretsmanager:"+fakeRegion+":123456789012:secret:"); ok {
			in.SecretID = strings.TrimSuffix(name, "-abcdef")
		} else {
			in.SecretID = name
		}
		s := f.secrets[in.SecretID]
		if s == nil || s.deleted {
			errs = append(errs, map[string]any{"SecretId": name, "ErrorCode": "ResourceNotFoundException", "Message": "about " + providertest.Canary})
			continue
		}
		id := s.stages[currentStage]
		values = append(values, s.versions[id].output(in.SecretID, id))
	}
	reply(w, 200, "", map[string]any{"SecretValues": values, "Errors": errs})
}
