package aws

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

func TestConformance(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Manager { return newFake(t) }, providertest.Lacks{
		providertest.AbsentMount: "a region has no engines or vaults: a name is there or not",
		providertest.Disabled:    "AWS cannot switch a secret off; its key can be, which is a test of its own",
		providertest.Expired:     "AWS keeps no expiry of a secret",
		providertest.NotYetValid: "AWS keeps no start of a secret's validity",
	})
}

// fetch opens a provider with a login that needs no STS, and reads.
func opened(t *testing.T) (*fake, *provider) {
	f := newFake(t)
	c := f.config()
	c.Auth.Environment = true
	setKey(t, f, "AKIA0")
	f.Set(t, "app", []byte(`{"client_secret":"`+providertest.Canary+`"}`))
	return f, f.open(t, c).(*provider)
}

func setKey(t *testing.T, f *fake, id string) {
	k := f.accept(id)
	t.Setenv("AWS_ACCESS_KEY_ID", k.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", k.SecretAccessKey)
	t.Setenv("AWS_SESSION_TOKEN", k.SessionToken)
}

func mustFetch(t *testing.T, p providers.Provider, ref providers.Ref, have providers.Version) providers.Bundle {
	t.Helper()
	b, err := p.Fetch(t.Context(), ref, have)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantKind(t *testing.T, err error, want providers.Kind) *providers.Error {
	t.Helper()
	var e *providers.Error
	if !errors.As(err, &e) || e.Kind != want {
		t.Fatalf("%v (kind %q), want kind %q", err, providers.KindOf(err), want)
	}
	if strings.Contains(err.Error(), providertest.Canary) || e.Provider != "aws" {
		t.Errorf("leaks or is nobody's: %v", err)
	}
	return e
}

func TestErrorCodes(t *testing.T) {
	f, p := opened(t)
	for code, want := range map[string]providers.Kind{
		"ResourceNotFoundException": providers.NotFound, "AccessDeniedException": providers.Denied, "EncryptionFailure": providers.Denied,
		"DecryptionFailure": providers.Denied, "KMSInvalidStateException": providers.Denied,
		"ThrottlingException": providers.Throttled, "TooManyRequestsException": providers.Throttled, "RequestLimitExceeded": providers.Throttled,
		"ExpiredTokenException": providers.LoginFailed, "InvalidClientTokenId": providers.LoginFailed,
		"UnrecognizedClientException": providers.LoginFailed, "InvalidSignatureException": providers.LoginFailed,
		"InvalidParameterException": providers.Malformed, "InvalidRequestException": providers.Deleted,
		"SomethingNew": providers.Denied,
	} {
		t.Run(code, func(t *testing.T) {
			f.code = code
			defer func() { f.code = "" }()
			_, err := p.Fetch(t.Context(), f.Ref("app"), "")
			e := wantKind(t, err, want)
			if !strings.Contains(e.Error(), "["+code+"]") || !strings.Contains(e.Error(), "app") {
				t.Errorf("neither code nor secret: %v", e)
			}
			if key := strings.HasPrefix(code, "KMS") || strings.HasSuffix(code, "cryptionFailure"); key != strings.Contains(e.Hint, "kms:Decrypt") {
				t.Errorf("hint %q", e.Hint)
			}
		})
	}
	mustFetch(t, p, f.Ref("app"), "")
}

func TestCodesAreCheckedBeforeTheyAreShown(t *testing.T) {
	f, p := opened(t)
	for _, code := range []string{"Evil\u001b[31m<", "Evil" + strings.Repeat("x", 80)} {
		f.code = code
		_, err := p.Fetch(t.Context(), f.Ref("app"), "")
		if wantKind(t, err, providers.Denied); strings.Contains(err.Error(), "Evil") {
			t.Errorf("shown: %q", err)
		}
	}
}

func TestDescribeForbidden(t *testing.T) {
	f, p := opened(t)
	b := mustFetch(t, p, f.Ref("app"), "")
	f.deny = "DescribeSecret"
	if _, err := p.Fetch(t.Context(), f.Ref("app"), b.Version); !errors.Is(err, providers.ErrUnchanged) {
		t.Errorf("unchanged: %v", err)
	}
	f.Set(t, "app", []byte(`{}`))
	if next := mustFetch(t, p, f.Ref("app"), b.Version); next.Version == b.Version {
		t.Error("the new version was not seen")
	}
	f.Fault(t, providertest.SoftDeleted, "app")
	_, err := p.Fetch(t.Context(), f.Ref("app"), b.Version)
	wantKind(t, err, providers.Deleted)
}

func TestOddStateIsNoDeletion(t *testing.T) {
	f, p := opened(t)
	f.odd = true
	_, err := p.Fetch(t.Context(), f.Ref("app"), "")
	wantKind(t, err, providers.Unsupported)
}

func TestGetForbiddenNamesTheAction(t *testing.T) {
	f, p := opened(t)
	f.deny = "GetSecretValue"
	_, err := p.Fetch(t.Context(), f.Ref("app"), "")
	if e := wantKind(t, err, providers.Denied); e.Hint != "allow secretsmanager:GetSecretValue" {
		t.Errorf("hint %q", e.Hint)
	}
}

func TestStagingLabels(t *testing.T) {
	f, p := opened(t)
	first := mustFetch(t, p, f.Ref("app"), "")
	f.Set(t, "app", []byte(`{"n":2}`))
	ref := f.Ref("app")
	ref.Version = "AWSPREVIOUS"
	old := mustFetch(t, p, ref, "")
	if old.Version != first.Version || old.Created.Unix() != 1_700_000_000 {
		t.Errorf("AWSPREVIOUS is %q of %v, want %q", old.Version, old.Created, first.Version)
	}
	if _, err := p.Fetch(t.Context(), ref, old.Version); !errors.Is(err, providers.ErrUnchanged) {
		t.Error(err)
	}
	ref.Version = "AWSPENDING"
	_, err := p.Fetch(t.Context(), ref, old.Version)
	wantKind(t, err, providers.NotFound)
}

// A rotation puts its new version under AWSPENDING first, and moves AWSCURRENT
// when it has set and tested it: only then is it new.
func TestPendingIsNotServed(t *testing.T) {
	f, p := opened(t)
	first := mustFetch(t, p, f.Ref("app"), "")
	f.mu.Lock()
	pending := f.newID()
	f.store("app", pending, []byte(`{"n":2}`), "AWSPENDING")
	f.mu.Unlock()
	if _, err := p.Fetch(t.Context(), f.Ref("app"), first.Version); !errors.Is(err, providers.ErrUnchanged) {
		t.Errorf("while it is pending: %v", err)
	}
	if b := mustFetch(t, p, f.Ref("app"), ""); b.Version != first.Version {
		t.Errorf("%q is served", b.Version)
	}
	f.mu.Lock()
	f.secrets["app"].move(currentStage, pending)
	f.mu.Unlock()
	if b := mustFetch(t, p, f.Ref("app"), first.Version); string(b.Version) != pending {
		t.Errorf("%q when %q is current", b.Version, pending)
	}
	f.mu.Lock()
	delete(f.secrets["app"].stages, currentStage) // a secret whose first version is still being made
	f.mu.Unlock()
	for _, have := range []providers.Version{"", first.Version} {
		_, err := p.Fetch(t.Context(), f.Ref("app"), have)
		wantKind(t, err, providers.NotFound)
	}
}

func TestOwnLabelsAndIDs(t *testing.T) {
	f, p := opened(t)
	first := mustFetch(t, p, f.Ref("app"), "")
	f.Set(t, "app", []byte(`{"n":2}`))
	f.mu.Lock()
	f.secrets["app"].move("blue", string(first.Version))
	f.mu.Unlock()
	for _, v := range []providers.Version{"blue", "AWSPREVIOUS", first.Version} {
		ref := providers.Ref{Path: "app", Version: v}
		if b := mustFetch(t, p, ref, ""); b.Version != first.Version {
			t.Errorf("%s is %q", v, b.Version)
		}
		if _, err := p.Fetch(t.Context(), ref, first.Version); !errors.Is(err, providers.ErrUnchanged) {
			t.Errorf("%s: %v", v, err)
		}
	}
	_, err := p.Fetch(t.Context(), providers.Ref{Path: "app", Version: "green"}, first.Version)
	wantKind(t, err, providers.NotFound)
}

// What the SDK is given to decode holds no secret.
func TestSDKSeesNoValue(t *testing.T) {
	f, p := opened(t)
	var s slot
	out, err := p.api.GetSecretValue(context.WithValue(t.Context(), slotKey{}, &s), &secretsmanager.GetSecretValueInput{SecretId: new("app"), VersionStage: new(currentStage)})
	if err != nil || s.err != nil {
		t.Fatal(err, s.err)
	}
	if out.SecretString != nil || out.VersionId != nil || s.answer["SecretString"].Empty() {
		t.Errorf("the SDK has the value: %v; we have it: %v", out.SecretString != nil, !s.answer["SecretString"].Empty())
	}
	s.answer.wipe()
	_ = f
}

func TestPutIsAtomic(t *testing.T) {
	f, p := opened(t)
	other := func() { f.store("app", f.newID(), []byte(`{"who":"other"}`), currentStage) }
	for _, hook := range []*func(){&f.before, &f.between} {
		b := mustFetch(t, p, f.Ref("app"), "")
		*hook = other
		_, err := p.Put(t.Context(), f.Ref("app"), map[string]secret.Secret{"who": secret.FromString("us")}, b.Version)
		wantKind(t, err, providers.Conflict)
		now := mustFetch(t, p, f.Ref("app"), "")
		if who, _ := now.Fields["who"].AppendTo(nil); string(who) != "other" {
			t.Errorf("the current version is by %q", who)
		}
	}
}

func TestStalePutStoresNothing(t *testing.T) {
	f, p := opened(t)
	for _, expect := range []providers.Version{"", "stale"} {
		_, err := p.Put(t.Context(), f.Ref("app"), map[string]secret.Secret{"a": secret.FromString("b")}, expect)
		wantKind(t, err, providers.Conflict)
	}
	if n := len(f.secrets["app"].versions); n != 1 {
		t.Errorf("%d versions", n)
	}
}

func TestPutValues(t *testing.T) {
	f, p := opened(t)
	for name, v := range map[string]map[string]string{
		"fields": {"a": "x\"\\\n😀<", "b": ""},
		"text":   {providers.Whole: "one value"},
		"binary": {providers.Whole: "\xff\xfe\x00"},
	} {
		in := map[string]secret.Secret{}
		for k, s := range v {
			in[k] = secret.FromString(s)
		}
		version, err := p.Put(t.Context(), f.Ref(name), in, "")
		if err != nil {
			t.Fatal(name, err)
		}
		b := mustFetch(t, p, f.Ref(name), "")
		if b.Version != version || len(b.Fields) != len(v) {
			t.Errorf("%s: %q, %d fields", name, b.Version, len(b.Fields))
		}
		for k, s := range v {
			if got, _ := b.Fields[k].AppendTo(nil); string(got) != s {
				t.Errorf("%s: %q, want %q", k, got, s)
			}
		}
	}
	bad := map[string]secret.Secret{"a": secret.FromString("\xff" + providertest.Canary)}
	_, err := p.Put(t.Context(), f.Ref("new"), bad, "")
	wantKind(t, err, providers.Unsupported)
	_, err = p.Put(t.Context(), providers.Ref{Path: "text", Version: "AWSPREVIOUS"}, nil, "")
	wantKind(t, err, providers.Unsupported)
}

func TestPutForbidden(t *testing.T) {
	f, p := opened(t)
	b := mustFetch(t, p, f.Ref("app"), "")
	for _, action := range []string{"PutSecretValue", "UpdateSecretVersionStage", "DescribeSecret"} {
		f.deny = action
		_, err := p.Put(t.Context(), f.Ref("app"), map[string]secret.Secret{"a": secret.FromString("1")}, b.Version)
		if e := wantKind(t, err, providers.Denied); e.Hint != "allow secretsmanager:"+action {
			t.Errorf("hint %q", e.Hint)
		}
	}
}

func TestOpenConnectsToNothing(t *testing.T) {
	isolate(t)
	start := time.Now()
	p, err := Open(Config{Region: "cn-north-1", Auth: auth{AssumeRole: &assumeRole{RoleARN: fakeRole}}}, clock.System{})
	if err != nil || time.Since(start) > time.Second {
		t.Fatal(err, time.Since(start))
	}
	want := []string{"secretsmanager.cn-north-1.amazonaws.com.cn:443", "sts.cn-north-1.amazonaws.com.cn:443"}
	if got := p.(providers.Egress).Endpoints(); !slices.Equal(got, want) {
		t.Errorf("endpoints %v, want %v", got, want)
	}
}

func TestEndpointsOfOverrides(t *testing.T) {
	isolate(t)
	p, err := Open(Config{Region: fakeRegion, Endpoint: "https://vpce.example:8443", Auth: auth{Instance: true}}, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.(providers.Egress).Endpoints(); !slices.Equal(got, []string{"vpce.example:8443"}) {
		t.Errorf("endpoints %v", got)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	f, p := opened(t)
	hits := 0
	f.srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits++
		http.Redirect(w, r, f.srv.URL+"/elsewhere", http.StatusSeeOther)
	})
	if _, err := p.Fetch(t.Context(), f.Ref("app"), ""); err == nil || hits != 1 {
		t.Errorf("%v after %d requests", err, hits)
	}
}

func TestHugeAnswer(t *testing.T) {
	f, p := opened(t)
	const huge = 64 << 20
	var sent atomic.Int64
	f.srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range huge >> 16 {
			n, err := w.Write(bytes.Repeat([]byte(" "), 1<<16))
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	for _, have := range []providers.Version{"", "v"} {
		_, err := p.Fetch(t.Context(), f.Ref("app"), have)
		wantKind(t, err, providers.Malformed)
	}
	if n := sent.Load(); n > huge/2 {
		t.Errorf("%d bytes were taken", n)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"VersionId":"v","SecretString":"{\"a\":\"b\"}","CreatedDate":1.7e9}`))
	f.Add([]byte(`{"VersionId":1,"SecretBinary":"!!","CreatedDate":"x"}`))
	f.Add([]byte(`<html>`))
	f.Fuzz(func(_ *testing.T, body []byte) {
		a, err := take(bytes.NewReader(body))
		if err != nil {
			return
		}
		defer a.wipe()
		_, _ = a.text("VersionId"), a.time("CreatedDate")
		if b, err := a.payload(); err == nil {
			if fields, err := providers.Parse(b); err == nil {
				providers.Bundle{Fields: fields}.Wipe()
			}
		}
	})
}
