package aws

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"

	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

// metadata is the instance metadata service (version 2 only), and the
// container endpoints of ECS and EKS.
type metadata struct {
	srv    *httptest.Server
	status int  // what it answers; 0: by itself
	v1     bool // has no sessions, and needs none
	mu     sync.Mutex
	seen   []string
}

func newMetadata(t *testing.T, f *fake) *metadata {
	m := &metadata{}
	m.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serve(f, w, r) }))
	t.Cleanup(m.srv.Close)
	return m
}

func (m *metadata) serve(f *fake, w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	m.seen = append(m.seen, r.Method+" "+r.URL.Path)
	m.mu.Unlock()
	give := func(c awssdk.Credentials, keyName string) {
		_ = json.NewEncoder(w).Encode(map[string]any{"Code": "Success", keyName: c.AccessKeyID, "SecretAccessKey": c.SecretAccessKey,
			"Token": c.SessionToken, "Expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)})
	}
	switch {
	case m.status >= 500 || m.status != 0 && r.Method == http.MethodGet:
		http.Error(w, providertest.Canary, m.status)
	case m.v1 && r.Method == http.MethodPut:
		http.Error(w, "what?", http.StatusNotFound)
	case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token":
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
		_, _ = io.WriteString(w, "imds-session")
	case r.URL.Path == "/container" && r.Header.Get("Authorization") == "container-auth":
		give(f.accept("CONTAINER"), "AccessKeyId")
	case !m.v1 && r.Header.Get("X-Aws-Ec2-Metadata-Token") != "imds-session":
		http.Error(w, "no session", http.StatusUnauthorized)
	case r.URL.Path == "/latest/meta-data/iam/security-credentials/":
		_, _ = io.WriteString(w, "broker-role")
	case r.URL.Path == "/latest/meta-data/iam/security-credentials/broker-role":
		give(f.accept("INSTANCE"), "AccessKeyId")
	default:
		http.NotFound(w, r)
	}
}

// withInstance makes t run on an EC2 instance with a role.
func withInstance(t *testing.T, f *fake) *metadata {
	m := newMetadata(t, f)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "false")
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", m.srv.URL)
	return m
}

func profileText(c awssdk.Credentials, name string) string {
	return "[" + name + "]\naws_access_key_id=" + c.AccessKeyID + "\naws_secret_access_key=" + c.SecretAccessKey + "\naws_session_token=" + c.SessionToken + "\n"
}

func staticFiles(t *testing.T, c awssdk.Credentials) *static {
	return &static{AccessKeyIDFile: write(t, "id", c.AccessKeyID+"\n"), SecretAccessKeyFile: write(t, "key", c.SecretAccessKey+"\n"),
		SessionTokenFile: write(t, "token", c.SessionToken)}
}

func TestLogins(t *testing.T) {
	for _, c := range []struct {
		name  string
		setup func(t *testing.T, f *fake) auth
		asked []string // of STS
	}{
		{"environment", func(t *testing.T, f *fake) auth {
			setKey(t, f, "AKIAENV")
			return auth{Environment: true}
		}, nil},
		{"profile", func(t *testing.T, f *fake) auth {
			file := write(t, "credentials", profileText(f.accept("AKIAPROFILE"), "broker"))
			return auth{Profile: &profile{Name: "broker", CredentialsFile: file, ConfigFile: write(t, "config", "")}}
		}, nil},
		{"profile of the environment", func(t *testing.T, f *fake) auth {
			t.Setenv("AWS_SHARED_CREDENTIALS_FILE", write(t, "credentials", profileText(f.accept("AKIAPROFILE"), "other")))
			t.Setenv("AWS_PROFILE", "other")
			return auth{Profile: &profile{}}
		}, nil},
		{"web identity", func(_ *testing.T, f *fake) auth {
			return auth{WebIdentity: &webIdentity{RoleARN: fakeRole, TokenFile: f.token, SessionName: "vdab"}}
		}, []string{"AssumeRoleWithWebIdentity " + fakeRole + " vdab"}},
		{"web identity of the environment", func(t *testing.T, f *fake) auth {
			t.Setenv("AWS_ROLE_ARN", fakeRole)
			t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", f.token)
			return auth{WebIdentity: &webIdentity{}}
		}, []string{"AssumeRoleWithWebIdentity " + fakeRole + " credential-broker"}},
		{"container", func(t *testing.T, f *fake) auth {
			t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", newMetadata(t, f).srv.URL+"/container")
			t.Setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "container-auth")
			return auth{Container: true}
		}, nil},
		{"pod identity", func(t *testing.T, f *fake) auth {
			t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", newMetadata(t, f).srv.URL+"/container")
			t.Setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", write(t, "eks", "container-auth\n"))
			return auth{Container: true}
		}, nil},
		{"instance", func(t *testing.T, f *fake) auth {
			withInstance(t, f)
			return auth{Instance: true}
		}, nil},
		{"static", func(t *testing.T, f *fake) auth {
			return auth{Static: staticFiles(t, f.accept("AKIASTATIC"))}
		}, nil},
		{"a role on top", func(t *testing.T, f *fake) auth {
			return auth{Static: staticFiles(t, f.accept("AKIASTATIC")),
				AssumeRole: &assumeRole{RoleARN: fakeRole, ExternalIDFile: write(t, "external", "ext-7\n")}}
		}, []string{"AssumeRole " + fakeRole + " credential-broker ext-7"}},
		{"default chain: environment", func(t *testing.T, f *fake) auth {
			setKey(t, f, "AKIAENV")
			return auth{}
		}, nil},
		{"default chain: web identity", func(t *testing.T, f *fake) auth {
			t.Setenv("AWS_ROLE_ARN", fakeRole)
			t.Setenv("AWS_ROLE_SESSION_NAME", "irsa")
			t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", f.token)
			return auth{}
		}, []string{"AssumeRoleWithWebIdentity " + fakeRole + " irsa"}},
		{"default chain: profile", func(t *testing.T, f *fake) auth {
			t.Setenv("AWS_SHARED_CREDENTIALS_FILE", write(t, "credentials", profileText(f.accept("AKIAPROFILE"), "default")))
			return auth{}
		}, nil},
		{"default chain: container", func(t *testing.T, f *fake) auth {
			t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", newMetadata(t, f).srv.URL+"/container")
			t.Setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "container-auth")
			return auth{}
		}, nil},
		{"default chain: instance", func(t *testing.T, f *fake) auth {
			withInstance(t, f)
			return auth{}
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			cfg := f.config()
			cfg.Auth = c.setup(t, f)
			f.Set(t, "app", []byte(`{"a":"b"}`))
			p := f.open(t, cfg)
			mustFetch(t, p, f.Ref("app"), "")
			if !slices.Equal(f.asked, c.asked) {
				t.Errorf("STS was asked %q, want %q", f.asked, c.asked)
			}
			// Keys that the source has meanwhile replaced are fetched anew.
			if c.name != "environment" && c.name != "default chain: environment" && !strings.Contains(c.name, "profile") && !strings.Contains(c.name, "static") && c.name != "a role on top" {
				f.Fault(t, providertest.LoginExpired, "")
				mustFetch(t, p, f.Ref("app"), "")
			}
		})
	}
}

func TestRotatedKeyFileIsReadAgain(t *testing.T) {
	f := newFake(t)
	f.Set(t, "app", []byte(`{}`))
	s := staticFiles(t, f.accept("AKIAOLD"))
	cfg := f.config()
	cfg.Auth.Static = s
	p := f.open(t, cfg)
	mustFetch(t, p, f.Ref("app"), "")
	f.Fault(t, providertest.LoginExpired, "")
	c := f.accept("AKIANEW")
	for file, text := range map[string]string{s.AccessKeyIDFile: c.AccessKeyID, s.SecretAccessKeyFile: c.SecretAccessKey, s.SessionTokenFile: c.SessionToken} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustFetch(t, p, f.Ref("app"), "")
}

// The key below a role is read again too, once STS has refused it.
func TestCorrectedKeyFileIsReadAgain(t *testing.T) {
	f := newFake(t)
	f.Set(t, "app", []byte(`{}`))
	good := f.accept("AKIA")
	wrong := good
	wrong.SecretAccessKey = "mistyped"
	s := staticFiles(t, wrong)
	cfg := f.config()
	cfg.Auth = auth{Static: s, AssumeRole: &assumeRole{RoleARN: fakeRole}}
	p := f.open(t, cfg)
	_, err := p.Fetch(t.Context(), f.Ref("app"), "")
	if wantKind(t, err, providers.LoginFailed); !strings.Contains(err.Error(), "[InvalidSignatureException]") {
		t.Error(err)
	}
	if err := os.WriteFile(s.SecretAccessKeyFile, []byte(good.SecretAccessKey), 0o600); err != nil {
		t.Fatal(err)
	}
	mustFetch(t, p, f.Ref("app"), "")
}

func TestNoLogin(t *testing.T) {
	for _, c := range []struct {
		name  string
		setup func(t *testing.T, f *fake) auth
		kind  providers.Kind
		says  string
	}{
		{"empty environment", func(*testing.T, *fake) auth { return auth{Environment: true} }, providers.LoginFailed, "AWS_ACCESS_KEY_ID"},
		{"no such profile", func(*testing.T, *fake) auth { return auth{Profile: &profile{Name: "nobody"}} }, providers.LoginFailed, `no profile "nobody"`},
		{"no token file", func(*testing.T, *fake) auth {
			return auth{WebIdentity: &webIdentity{RoleARN: fakeRole, TokenFile: "/nowhere/token"}}
		}, providers.LoginFailed, "/nowhere/token"},
		{"no role", func(_ *testing.T, f *fake) auth { return auth{WebIdentity: &webIdentity{TokenFile: f.token}} }, providers.LoginFailed, "role_arn"},
		{"wrong web token", func(t *testing.T, _ *fake) auth {
			return auth{WebIdentity: &webIdentity{RoleARN: fakeRole, TokenFile: write(t, "token", "forged")}}
		}, providers.LoginFailed, "[InvalidIdentityToken]"},
		{"STS is down", func(_ *testing.T, f *fake) auth {
			f.code = "sts down"
			return auth{WebIdentity: &webIdentity{RoleARN: fakeRole, TokenFile: f.token}}
		}, providers.Unavailable, "cannot be reached"},
		{"no container", func(*testing.T, *fake) auth { return auth{Container: true} }, providers.LoginFailed, "AWS_CONTAINER_CREDENTIALS"},
		{"container elsewhere", func(t *testing.T, _ *fake) auth {
			t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://10.1.2.3/creds")
			return auth{Container: true}
		}, providers.LoginFailed, "neither https nor"},
		{"container refuses", func(t *testing.T, f *fake) auth {
			t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", newMetadata(t, f).srv.URL+"/container")
			return auth{Container: true}
		}, providers.LoginFailed, "no credentials"},
		{"instance without role", func(t *testing.T, f *fake) auth {
			withInstance(t, f).status = 404
			return auth{Instance: true}
		}, providers.LoginFailed, "the instance has no role"},
		{"instance fails", func(t *testing.T, f *fake) auth {
			withInstance(t, f).status = 500
			return auth{Instance: true}
		}, providers.Unavailable, ""},
		{"instance without sessions", func(t *testing.T, f *fake) auth {
			withInstance(t, f).v1 = true
			return auth{Instance: true}
		}, providers.Unavailable, ""},
		{"empty key file", func(t *testing.T, _ *fake) auth {
			return auth{Static: &static{AccessKeyIDFile: write(t, "id", "\n"), SecretAccessKeyFile: "/nowhere/key"}}
		}, providers.LoginFailed, "secret_access_key_file"},
		{"nothing at all", func(*testing.T, *fake) auth { return auth{} }, providers.LoginFailed, "default chain"},
		{"foreign bundle", func(t *testing.T, f *fake) auth {
			t.Setenv("AWS_CA_BUNDLE", f.ca)
			return auth{}
		}, providers.LoginFailed, "ca_file"},
		{"no external id", func(t *testing.T, f *fake) auth {
			return auth{Static: staticFiles(t, f.accept("AKIA")), AssumeRole: &assumeRole{RoleARN: fakeRole, ExternalIDFile: "/nowhere/id"}}
		}, providers.LoginFailed, "external_id_file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			cfg := f.config()
			cfg.Auth = c.setup(t, f)
			f.Set(t, "app", []byte(`{}`))
			_, err := f.open(t, cfg).Fetch(t.Context(), f.Ref("app"), "")
			e := wantKind(t, err, c.kind)
			if !strings.Contains(err.Error(), c.says) || e.Ref.Path != "app" || strings.ContainsAny(err.Error(), "\n") {
				t.Errorf("%q does not say %q", err, c.says)
			}
			if f.Calls() != (providertest.Calls{}) {
				t.Error("a call was made without a login")
			}
		})
	}
}

// The machine's own metadata services are never asked through a proxy.
func TestMetadataIsAskedDirectly(t *testing.T) {
	f := newFake(t)
	m := withInstance(t, f)
	f.Set(t, "app", []byte(`{}`))
	for _, a := range []auth{{Instance: true}, {}, {Container: true}} {
		if a.Container {
			t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", m.srv.URL+"/container")
			t.Setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "container-auth")
		}
		// This proxy takes CONNECT alone: plain HTTP through it would fail.
		proxy := providertest.NewProxy(t)
		cfg := f.config()
		cfg.Auth, cfg.Proxy = a, proxy.URL
		mustFetch(t, f.open(t, cfg), f.Ref("app"), "")
		if proxy.Tunnels(f.Addr()) == 0 {
			t.Error("Secrets Manager was not asked through the proxy")
		}
	}
	if m.seen[0] != "PUT /latest/api/token" {
		t.Errorf("asked %q", m.seen)
	}
}

// However many calls find their session ended, one new login is made.
func TestOneLoginForMany(t *testing.T) {
	f := newFake(t)
	f.Set(t, "app", []byte(`{}`))
	p := f.Open(t, providertest.Options{})
	mustFetch(t, p, f.Ref("app"), "")
	l := p.(*provider).login
	gen := l.generation()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { l.renew(gen) })
	}
	wg.Wait()
	mustFetch(t, p, f.Ref("app"), "")
	before := f.issued
	l.renew(gen) // a latecomer, whose session is already replaced
	mustFetch(t, p, f.Ref("app"), "")
	if l.generation() != gen+1 || f.issued != before {
		t.Errorf("%d renewals, %d sessions too many", l.generation()-gen, f.issued-before)
	}
	f.issued = 0
	f.Fault(t, providertest.LoginExpired, "")
	for range 8 {
		wg.Go(func() {
			if _, err := p.Fetch(t.Context(), f.Ref("app"), ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if f.issued != 1 {
		t.Errorf("%d sessions were asked for", f.issued)
	}
}

func TestLoginEndsWithItsContext(t *testing.T) {
	f := newFake(t)
	f.fault = providertest.Hangs
	p := f.Open(t, providertest.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := p.Fetch(ctx, f.Ref("app"), "")
	wantKind(t, err, providers.Unavailable)
	f.srv.Close() // which waits for what is under way
	if time.Since(start) > 4*time.Second {
		t.Errorf("took %v", time.Since(start))
	}
}
