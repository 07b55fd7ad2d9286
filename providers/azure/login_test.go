package azure

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

// redirect dials addr, whatever is asked for.
func redirect(addr string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
}

// identity is the endpoint of a managed identity: App Service's, or IMDS.
type identity struct {
	srv    *httptest.Server
	status int // what it answers; 0: a token
	mu     sync.Mutex
	seen   []string
}

func newIdentity(t *testing.T, f *fake) *identity {
	m := &identity{}
	m.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		m.seen = append(m.seen, r.Host+r.URL.Path+" client_id="+r.URL.Query().Get("client_id")+" resource="+r.URL.Query().Get("resource"))
		status := m.status
		m.mu.Unlock()
		if r.Header.Get("X-Identity-Header") != "id-header" && r.Header.Get("Metadata") != "true" {
			status = http.StatusBadRequest
		}
		if status != 0 {
			http.Error(w, providertest.Canary, status)
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		_ = json.NewEncoder(w).Encode(map[string]string{"access_token": f.newToken(), "token_type": "Bearer", "resource": "https://vault.azure.net",
			"expires_on": strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10), "expires_in": "3600"})
	}))
	t.Cleanup(m.srv.Close)
	return m
}

func newCertificate(t *testing.T) (string, *rsa.PublicKey) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "broker"},
		NotAfter: time.Now().Add(time.Hour)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	_ = pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	return write(t, "cert.pem", b.String()), &key.PublicKey
}

// assertedBy accepts a client assertion that key has signed (RFC 7523 §3).
func assertedBy(t *testing.T, f *fake, key *rsa.PublicKey) func(*http.Request) bool {
	return func(r *http.Request) bool {
		token, err := jwt.ParseSigned(r.PostForm.Get("client_assertion"), []jose.SignatureAlgorithm{jose.RS256, jose.PS256})
		if err != nil {
			t.Error(err)
			return false
		}
		var c jwt.Claims
		err = token.Claims(key, &c)
		return err == nil && c.Subject == fakeClient && c.Issuer == fakeClient && c.Audience.Contains(f.srv.URL+"/"+fakeTenant+"/oauth2/v2.0/token")
	}
}

func TestLogins(t *testing.T) {
	workload := func(t *testing.T, f *fake) string {
		f.check = func(r *http.Request) bool { return r.PostForm.Get("client_assertion") == "kubernetes-token" }
		return write(t, "token", "kubernetes-token")
	}
	appService := func(t *testing.T, f *fake) {
		t.Setenv("IDENTITY_ENDPOINT", newIdentity(t, f).srv.URL+"/msi/token")
		t.Setenv("IDENTITY_HEADER", "id-header")
	}
	for name, setup := range map[string]func(t *testing.T, f *fake) auth{
		"client secret": func(t *testing.T, _ *fake) auth {
			return auth{ClientSecret: &clientSecret{TenantID: fakeTenant, ClientID: fakeClient, ClientSecretFile: write(t, "s", fakeSecret)}}
		},
		"client certificate": func(t *testing.T, f *fake) auth {
			file, key := newCertificate(t)
			f.check = assertedBy(t, f, key)
			return auth{ClientCertificate: &clientCertificate{TenantID: fakeTenant, ClientID: fakeClient, CertificateFile: file}}
		},
		"workload identity": func(t *testing.T, f *fake) auth {
			return auth{WorkloadIdentity: &workloadIdentity{TenantID: fakeTenant, ClientID: fakeClient, TokenFile: workload(t, f)}}
		},
		"workload identity of the environment": func(t *testing.T, f *fake) auth {
			t.Setenv("AZURE_TENANT_ID", fakeTenant)
			t.Setenv("AZURE_CLIENT_ID", fakeClient)
			t.Setenv("AZURE_FEDERATED_TOKEN_FILE", workload(t, f))
			return auth{WorkloadIdentity: &workloadIdentity{}}
		},
		"managed identity": func(t *testing.T, f *fake) auth {
			appService(t, f)
			return auth{ManagedIdentity: &managedIdentity{}}
		},
		"user-assigned managed identity": func(t *testing.T, f *fake) auth {
			appService(t, f)
			return auth{ManagedIdentity: &managedIdentity{ClientID: "user-assigned"}}
		},
		"environment: secret": func(t *testing.T, _ *fake) auth {
			t.Setenv("AZURE_TENANT_ID", fakeTenant)
			t.Setenv("AZURE_CLIENT_ID", fakeClient)
			t.Setenv("AZURE_CLIENT_SECRET", fakeSecret)
			return auth{Environment: true}
		},
		"environment: certificate": func(t *testing.T, f *fake) auth {
			file, key := newCertificate(t)
			f.check = assertedBy(t, f, key)
			t.Setenv("AZURE_TENANT_ID", fakeTenant)
			t.Setenv("AZURE_CLIENT_ID", fakeClient)
			t.Setenv("AZURE_CLIENT_CERTIFICATE_PATH", file)
			return auth{Environment: true}
		},
		"default chain: environment": func(t *testing.T, _ *fake) auth {
			t.Setenv("AZURE_TENANT_ID", fakeTenant)
			t.Setenv("AZURE_CLIENT_ID", fakeClient)
			t.Setenv("AZURE_CLIENT_SECRET", fakeSecret)
			return auth{}
		},
		"default chain: workload identity": func(t *testing.T, f *fake) auth {
			t.Setenv("AZURE_TENANT_ID", fakeTenant)
			t.Setenv("AZURE_CLIENT_ID", fakeClient)
			t.Setenv("AZURE_FEDERATED_TOKEN_FILE", workload(t, f))
			return auth{}
		},
		"default chain: managed identity": func(t *testing.T, f *fake) auth {
			t.Setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
			appService(t, f)
			return auth{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			c := f.config()
			c.Auth = setup(t, f)
			f.Set(t, "app", []byte(`{"a":"b"}`))
			p := f.open(t, c)
			mustFetch(t, p, f.Ref("app"), "")
			f.Fault(t, providertest.LoginExpired, "")
			mustFetch(t, p, f.Ref("app"), "")
			if f.issued != 2 {
				t.Errorf("%d tokens were issued, want one and a new one", f.issued)
			}
		})
	}
}

// The metadata service of a virtual machine has a fixed address.
func TestVirtualMachine(t *testing.T) {
	f := newFake(t)
	m := newIdentity(t, f)
	c := f.config()
	c.Auth.ManagedIdentity = &managedIdentity{ClientID: "vm"}
	f.Set(t, "app", []byte(`{}`))
	p := f.open(t, c)
	p.login.local.Transport.(*http.Transport).DialContext = redirect(providertest.HostPort(t, m.srv.URL))
	mustFetch(t, p, f.Ref("app"), "")
	if len(m.seen) != 1 || !strings.HasPrefix(m.seen[0], "169.254.169.254/metadata/identity/oauth2/token client_id=vm") {
		t.Errorf("asked %q", m.seen)
	}
}

// Metadata services are asked directly, Entra ID through the proxy.
func TestProxyOfLogins(t *testing.T) {
	f := newFake(t)
	m := newIdentity(t, f)
	t.Setenv("IDENTITY_ENDPOINT", m.srv.URL+"/msi/token")
	t.Setenv("IDENTITY_HEADER", "id-header")
	f.Set(t, "app", []byte(`{}`))
	for _, a := range []auth{{ManagedIdentity: &managedIdentity{ClientID: "proxied"}}, {}} {
		t.Setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
		proxy := providertest.NewProxy(t)
		c := f.config()
		c.Auth, c.Proxy = a, proxy.URL
		mustFetch(t, f.open(t, c), f.Ref("app"), "")
		if n := proxy.Tunnels(providertest.HostPort(t, m.srv.URL)); n != 0 || proxy.Tunnels(f.Addr()) == 0 {
			t.Errorf("%d tunnels to the identity, %d to the vault", n, proxy.Tunnels(f.Addr()))
		}
	}
	proxy := providertest.NewProxy(t)
	c := f.config()
	c.Proxy, c.VaultURL = proxy.URL, "https://127.0.0.1:1" // only the login gets through
	c.Auth.ClientSecret = &clientSecret{TenantID: fakeTenant, ClientID: fakeClient, ClientSecretFile: write(t, "s", fakeSecret)}
	cred, err := f.open(t, c).login.credential(false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cred.GetToken(t.Context(), scope()); err != nil || proxy.Tunnels(f.Addr()) == 0 {
		t.Errorf("%v, %d tunnels to Entra ID", err, proxy.Tunnels(f.Addr()))
	}
}

func TestNoLogin(t *testing.T) {
	app := func(file string) auth {
		return auth{ClientSecret: &clientSecret{TenantID: fakeTenant, ClientID: fakeClient, ClientSecretFile: file}}
	}
	for _, c := range []struct {
		name  string
		setup func(t *testing.T, f *fake) auth
		kind  providers.Kind
		says  string
	}{
		{"no secret file", func(*testing.T, *fake) auth { return app("/nowhere/secret") }, providers.LoginFailed, "/nowhere/secret"},
		{"empty secret file", func(t *testing.T, _ *fake) auth { return app(write(t, "s", "\n")) }, providers.LoginFailed, "is empty"},
		{"wrong secret", func(t *testing.T, _ *fake) auth { return app(write(t, "s", "wrong")) }, providers.LoginFailed, "[invalid_client] [AADSTS7000215]"},
		{"no certificate in the file", func(t *testing.T, _ *fake) auth {
			return auth{ClientCertificate: &clientCertificate{fakeTenant, fakeClient, write(t, "c", "junk "+providertest.Canary)}}
		}, providers.LoginFailed, "no certificate"},
		{"no workload", func(*testing.T, *fake) auth { return auth{WorkloadIdentity: &workloadIdentity{}} }, providers.LoginFailed, "AZURE_FEDERATED_TOKEN_FILE"},
		{"no tenant", func(t *testing.T, _ *fake) auth {
			return auth{WorkloadIdentity: &workloadIdentity{TokenFile: write(t, "t", "x")}}
		}, providers.LoginFailed, "no login"},
		{"empty environment", func(*testing.T, *fake) auth { return auth{Environment: true} }, providers.LoginFailed, "AZURE_TENANT_ID"},
		{"nothing at all", func(t *testing.T, _ *fake) auth {
			t.Setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
			return auth{}
		}, providers.LoginFailed, "default chain"},
		{"identity fails", func(t *testing.T, f *fake) auth {
			m := newIdentity(t, f)
			m.status = 500
			t.Setenv("IDENTITY_ENDPOINT", m.srv.URL+"/msi/token")
			t.Setenv("IDENTITY_HEADER", "id-header")
			return auth{ManagedIdentity: &managedIdentity{ClientID: "fails"}}
		}, providers.Unavailable, "cannot be reached"},
		{"identity is throttled", func(t *testing.T, f *fake) auth {
			m := newIdentity(t, f)
			m.status = 429
			t.Setenv("IDENTITY_ENDPOINT", m.srv.URL+"/msi/token")
			t.Setenv("IDENTITY_HEADER", "id-header")
			return auth{ManagedIdentity: &managedIdentity{ClientID: "throttled"}}
		}, providers.Throttled, "too many logins"},
		{"no identity", func(t *testing.T, f *fake) auth {
			m := newIdentity(t, f)
			m.status = 400
			t.Setenv("IDENTITY_ENDPOINT", m.srv.URL+"/msi/token")
			t.Setenv("IDENTITY_HEADER", "id-header")
			return auth{ManagedIdentity: &managedIdentity{ClientID: "none"}}
		}, providers.LoginFailed, "no token"},
		{"Entra ID is down", func(t *testing.T, f *fake) auth {
			f.check = func(*http.Request) bool { panic(http.ErrAbortHandler) }
			return app(write(t, "s", fakeSecret))
		}, providers.Unavailable, "cannot be reached"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			cfg := f.config()
			cfg.Auth = c.setup(t, f)
			f.Set(t, "app", []byte(`{}`))
			_, err := f.open(t, cfg).Fetch(t.Context(), f.Ref("app"), "")
			wantKind(t, err, c.kind)
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not say %q", err, c.says)
			}
		})
	}
}

// A login that failed is made of the files as they are at the next call.
func TestReplacedFileIsReadAgain(t *testing.T) {
	f := newFake(t)
	f.Set(t, "app", []byte(`{}`))
	file := write(t, "s", "old")
	c := f.config()
	c.Auth.ClientSecret = &clientSecret{TenantID: fakeTenant, ClientID: fakeClient, ClientSecretFile: file}
	p := f.open(t, c)
	_, err := p.Fetch(t.Context(), f.Ref("app"), "")
	wantKind(t, err, providers.LoginFailed)
	if err := os.WriteFile(file, []byte(fakeSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	mustFetch(t, p, f.Ref("app"), "")
}

// A certificate is the one login whose end can be seen.
func TestLoginEnd(t *testing.T) {
	f := newFake(t)
	file, _ := newCertificate(t)
	c := f.config()
	c.Auth.ClientCertificate = &clientCertificate{TenantID: fakeTenant, ClientID: fakeClient, CertificateFile: file}
	what, end, err := f.open(t, c).LoginEnd(t.Context())
	if err != nil || end.IsZero() || what != "the certificate in auth.client_certificate.certificate_file" {
		t.Error(what, end, err)
	}
	c.Auth.ClientCertificate.CertificateFile = write(t, "junk", "junk "+providertest.Canary)
	if _, _, err = f.open(t, c).LoginEnd(t.Context()); providers.KindOf(err) != providers.LoginFailed || strings.Contains(err.Error(), providertest.Canary) {
		t.Error(err)
	}
	if _, end, err = f.Open(t, providertest.Options{}).(*provider).LoginEnd(t.Context()); !end.IsZero() || err != nil {
		t.Error(end, err)
	}
}
