package azure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

func TestConformance(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Manager { return newFake(t) }, providertest.Lacks{
		providertest.AbsentMount: "a vault is a host name: an absent one cannot be reached",
		providertest.Binary:      "Key Vault holds text",
	})
}

func opened(t *testing.T) (*fake, *provider) {
	f := newFake(t)
	f.Set(t, "app", []byte(`{"client_secret":"`+providertest.Canary+`"}`))
	return f, f.Open(t, providertest.Options{}).(*provider)
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
	if strings.Contains(err.Error(), providertest.Canary) || strings.ContainsAny(err.Error(), "\r\n") || e.Provider != "azure" || e.Ref.Path == "" {
		t.Errorf("leaks, has lines or is nobody's: %q", err)
	}
	return e
}

func TestErrorCodes(t *testing.T) {
	f, p := opened(t)
	for _, c := range []struct {
		e    fakeError
		kind providers.Kind
		says string
	}{
		{fakeError{403, "Forbidden", "ForbiddenByPolicy", nil}, providers.Denied, "secret permission get"},
		{fakeError{403, "Forbidden", "ForbiddenByRbac", nil}, providers.Denied, "Key Vault Secrets User"},
		{fakeError{403, "Forbidden", "ForbiddenByFirewall", nil}, providers.Denied, "firewall"},
		{fakeError{403, "Forbidden", "SecretDisabled", nil}, providers.Disabled, "disabled"},
		{fakeError{403, "SecretDisabled", "", nil}, providers.Disabled, "disabled"},
		{fakeError{404, "SecretNotFound", "", nil}, providers.NotFound, "[SecretNotFound]"},
		{fakeError{429, "Throttled", "", http.Header{"Retry-After": {"7"}}}, providers.Throttled, "too many"},
		{fakeError{400, "BadParameter", "", nil}, providers.Malformed, "[BadParameter]"},
		{fakeError{500, "InternalServerError", "", nil}, providers.Unavailable, "fails"},
		{fakeError{409, "Conflict", "ObjectIsDeletedButRecoverable", nil}, providers.Deleted, "has this name"},
		{fakeError{409, "Conflict", "", nil}, providers.Conflict, "writer"},
		{fakeError{403, "Evil\x1b[31m" + strings.Repeat("x", 80), "", nil}, providers.Denied, "policy"},
	} {
		f.refuse = func(*http.Request) *fakeError { return &c.e }
		_, err := p.Fetch(t.Context(), f.Ref("app"), "")
		e := wantKind(t, err, c.kind)
		if !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "Evil") {
			t.Errorf("%q does not say %q, or too much", err, c.says)
		}
		if c.kind == providers.Throttled && e.RetryAfter != 7*time.Second {
			t.Errorf("Retry-After %v", e.RetryAfter)
		}
	}
}

// The list decides only where it can.
func TestCheapCheck(t *testing.T) {
	f, p := opened(t)
	for n := range 6 { // several pages
		f.Set(t, "app", fmt.Appendf(nil, `{"n":%d}`, n))
	}
	b := mustFetch(t, p, f.Ref("app"), "")
	values := f.Calls().Values
	unchanged := func(ref providers.Ref) {
		t.Helper()
		if _, err := p.Fetch(t.Context(), ref, b.Version); !errors.Is(err, providers.ErrUnchanged) {
			t.Error(err)
		}
	}
	unchanged(f.Ref("app"))
	unchanged(providers.Ref{Path: "app", Version: b.Version})
	if n := f.Calls().Values - values; n != 0 {
		t.Errorf("%d values were read", n)
	}

	f.now-- // the next version has the same creation time: only reading tells
	f.Set(t, "app", []byte(`{"n":"last"}`))
	next := mustFetch(t, p, f.Ref("app"), b.Version)
	if next.Version == b.Version {
		t.Error("a version of the same second was not seen")
	}
	b = next
	values = f.Calls().Values
	unchanged(f.Ref("app"))
	if n := f.Calls().Values - values; n != 1 {
		t.Errorf("%d values were read to tell two versions of one second apart", n)
	}

	f.refuse = func(r *http.Request) *fakeError {
		if strings.HasSuffix(r.URL.Path, "/versions") {
			return &fakeError{status: 403, code: "Forbidden", inner: "ForbiddenByPolicy"}
		}
		return nil
	}
	unchanged(f.Ref("app"))
}

func TestValidityOfWhatIsUnchanged(t *testing.T) {
	f, p := opened(t)
	b := mustFetch(t, p, f.Ref("app"), "")
	for _, c := range []struct {
		set  func(v *fakeVersion)
		kind providers.Kind
	}{
		{func(v *fakeVersion) { v.exp = time.Now().Unix() - 5 }, providers.Expired},
		{func(v *fakeVersion) { v.exp, v.nbf = 0, time.Now().Unix()+60 }, providers.NotYetValid},
		{func(v *fakeVersion) { v.nbf, v.enabled = 0, false }, providers.Disabled},
	} {
		c.set(f.newest("app"))
		for _, have := range []providers.Version{"", b.Version} {
			_, err := p.Fetch(t.Context(), f.Ref("app"), have)
			wantKind(t, err, c.kind)
		}
	}
	f.lax = true
	_, err := p.Fetch(t.Context(), f.Ref("app"), "")
	wantKind(t, err, providers.Disabled)
	f.newest("app").enabled, f.newest("app").exp = true, time.Now().Unix()+3600
	if b := mustFetch(t, p, f.Ref("app"), ""); time.Until(b.Expires) < 59*time.Minute || b.Created.Unix() != f.newest("app").created {
		t.Errorf("expires %v, created %v", b.Expires, b.Created)
	}
}

func TestDeletedIsNotAsked(t *testing.T) {
	f, p := opened(t)
	f.Fault(t, providertest.SoftDeleted, "app")
	_, err := p.Fetch(t.Context(), f.Ref("app"), "")
	if e := wantKind(t, err, providers.Deleted); !strings.Contains(e.Hint, "recover") {
		t.Errorf("hint %q", e.Hint)
	}
	f.refuse = func(r *http.Request) *fakeError { // not allowed to see deleted secrets
		if strings.HasPrefix(r.URL.Path, "/deletedsecrets") {
			return &fakeError{status: 403, code: "Forbidden"}
		}
		return nil
	}
	_, err = p.Fetch(t.Context(), f.Ref("app"), "")
	wantKind(t, err, providers.NotFound)
}

func TestNamesThatCannotBe(t *testing.T) {
	f, p := opened(t)
	for _, ref := range []providers.Ref{{Path: ""}, {Path: "vdab/prod"}, {Path: "../keys/x"}, {Path: "a.b"}, {Path: "app", Version: "1/2"}, {Path: strings.Repeat("a", 128)}} {
		_, err := p.Fetch(t.Context(), ref, "")
		if providers.KindOf(err) != providers.NotFound {
			t.Errorf("%v: %v", ref, err)
		}
		if _, err := p.Put(t.Context(), ref, nil, ""); providers.KindOf(err) != providers.NotFound {
			t.Errorf("put %v: %v", ref, err)
		}
	}
	if f.issued != 0 {
		t.Error("the vault was asked")
	}
}

// What the SDK is given to decode holds no secret.
func TestSDKSeesNoValue(t *testing.T) {
	f, p := opened(t)
	api, _, err := p.client()
	if err != nil {
		t.Fatal(err)
	}
	var out azsecrets.GetSecretResponse
	a, err := captured(t.Context(), func(ctx context.Context) (err error) {
		out, err = api.GetSecret(ctx, "app", "", nil)
		return err
	})
	if err != nil || out.Value != nil || a["value"].Empty() {
		t.Errorf("%v; the SDK has the value: %v", err, out.Value != nil)
	}
	a.wipe()
	if f.Calls().Values != 1 {
		t.Errorf("%d reads", f.Calls().Values)
	}
}

func one(k, v string) map[string]secret.Secret {
	return map[string]secret.Secret{k: secret.FromString(v)}
}

func TestPut(t *testing.T) {
	f, p := opened(t)
	b := mustFetch(t, p, f.Ref("app"), "")
	f.after = func() { f.store("app", `{"who":"other"}`) }
	_, err := p.Put(t.Context(), f.Ref("app"), one("who", "us"), b.Version)
	wantKind(t, err, providers.Conflict)

	v, err := p.Put(t.Context(), f.Ref("text"), one(providers.Whole, "one value"), "")
	if err != nil {
		t.Fatal(err)
	}
	if b := mustFetch(t, p, f.Ref("text"), ""); b.Version != v || b.Fields[providers.Whole].Len() != 9 || f.newest("text").contentTyp != "" {
		t.Errorf("version %q, want %q", b.Version, v)
	}
	if _, err = p.Put(t.Context(), f.Ref("json"), one("a", "x\"\\\n😀<"), ""); err != nil {
		t.Fatal(err)
	}
	if got, _ := mustFetch(t, p, f.Ref("json"), "").Fields["a"].AppendTo(nil); string(got) != "x\"\\\n😀<" || f.newest("json").contentTyp != "application/json" {
		t.Errorf("read back %q of type %q", got, f.newest("json").contentTyp)
	}
	_, err = p.Put(t.Context(), f.Ref("bin"), one(providers.Whole, "\xff"), "")
	wantKind(t, err, providers.Unsupported)
	_, err = p.Put(t.Context(), f.Ref("bin"), one("a", "\xff"+providertest.Canary), "")
	wantKind(t, err, providers.Unsupported)
	_, err = p.Put(t.Context(), providers.Ref{Path: "app", Version: "1"}, one("a", "b"), "")
	wantKind(t, err, providers.Unsupported)
	f.Fault(t, providertest.SoftDeleted, "text")
	_, err = p.Put(t.Context(), f.Ref("text"), one("a", "b"), "")
	wantKind(t, err, providers.Deleted)
	f.refuse = func(r *http.Request) *fakeError {
		if r.Method == http.MethodPut {
			return &fakeError{status: 403, code: "Forbidden", inner: "ForbiddenByPolicy"}
		}
		return nil
	}
	_, err = p.Put(t.Context(), f.Ref("new"), one("a", "b"), "")
	if e := wantKind(t, err, providers.Denied); !strings.Contains(e.Hint, "Officer") {
		t.Errorf("hint %q", e.Hint)
	}
}

// A vault that lies must not make the SDK panic, or send the token away.
func TestLyingVault(t *testing.T) {
	const huge = 64 << 20
	var sent atomic.Int64
	elsewhere := 0
	other := newFake(t)
	other.srv.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere++ })
	for name, serve := range map[string]http.HandlerFunc{
		"a challenge without a tenant": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer authorization="x" resource="https://vault.azure.net"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
		"no challenge": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
		"next page elsewhere": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"value":[],"nextLink":%q}`, other.srv.URL+"/secrets/app/versions?api-version=7.5")
		},
		"pages without end": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"value":[],"nextLink":"https://%s/secrets/app/versions?api-version=7.5"}`, r.Host)
		},
		"items of nothing": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"value":[{}]}`) },
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.srv.URL, http.StatusTemporaryRedirect)
		},
		"endless answer": func(w http.ResponseWriter, _ *http.Request) {
			for range huge >> 16 {
				n, err := w.Write(bytes.Repeat([]byte(" "), 1<<16))
				sent.Add(int64(n))
				if err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, p := opened(t)
			f.srv.Config.Handler = serve
			_, err := p.Fetch(t.Context(), f.Ref("app"), "v")
			wantKind(t, err, providers.Malformed)
		})
	}
	if n := sent.Load(); n == 0 || n > huge/2 {
		t.Errorf("%d bytes of an endless answer were taken", n)
	}
	if elsewhere != 0 {
		t.Errorf("%d requests went elsewhere", elsewhere)
	}
}

// Away from loopback a vault cannot ask for another service's token.
func TestForeignResource(t *testing.T) {
	f := newFake(t)
	c := f.config()
	c.VaultURL = "https://name.vault.example"
	c.Auth.ClientSecret = &clientSecret{TenantID: fakeTenant, ClientID: fakeClient, ClientSecretFile: write(t, "secret", fakeSecret)}
	p := f.open(t, c)
	tr := p.vault.client.Transport.(*http.Transport)
	tr.DialContext = redirect(f.Addr())
	tr.TLSClientConfig.ServerName = "127.0.0.1"
	_, err := p.Fetch(t.Context(), f.Ref("app"), "")
	wantKind(t, err, providers.Malformed)
	if f.issued != 0 {
		t.Error("a token was asked for")
	}
}

func TestOpenConnectsToNothing(t *testing.T) {
	newFake(t) // for its environment
	for _, c := range []struct {
		c    Config
		want []string
	}{
		{Config{VaultURL: "https://name.vault.azure.net/"}, []string{"name.vault.azure.net:443", "login.microsoftonline.com:443"}},
		{Config{VaultURL: "https://name.vault.azure.cn", Authority: "https://login.chinacloudapi.cn"}, []string{"name.vault.azure.cn:443", "login.chinacloudapi.cn:443"}},
		{Config{VaultURL: "https://name.vault.azure.net", Auth: auth{ManagedIdentity: &managedIdentity{}}}, []string{"name.vault.azure.net:443"}},
	} {
		p, err := Open(c.c, clock.System{})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.(providers.Egress).Endpoints(); !slices.Equal(got, c.want) {
			t.Errorf("%v, want %v", got, c.want)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"value":"{\"a\":\"b\"}","id":"https://v/secrets/n/1","attributes":{"enabled":true,"created":1,"exp":2}}`))
	f.Add([]byte(`{"value":1,"id":[],"attributes":"x"}`))
	f.Fuzz(func(_ *testing.T, body []byte) {
		a, err := take(strings.NewReader(string(body)))
		if err != nil {
			return
		}
		defer a.wipe()
		_, attr, _ := a.describe()
		_ = attr.bundle()
	})
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer authorization="https://login.example/t", resource="https://vault.azure.net"`)
	f.Add(`Bearer authorization="x" resource="https://vault.azure.net"`)
	f.Add(`Bearer authorization="a/b//c" authorization=x`)
	f.Fuzz(func(t *testing.T, header string) {
		if !usableChallenge(header) {
			return
		}
		// What the SDK does with it must not panic.
		vals := map[string]string{}
		for _, part := range strings.Split(strings.ReplaceAll(header, "Bearer ", ""), " ") {
			if sub := strings.Split(part, "="); len(sub) == 2 {
				vals[sub[0]] = strings.TrimSuffix(strings.ReplaceAll(sub[1], `"`, ""), ",")
			}
		}
		if u := vals["authorization"]; u != "" {
			_ = strings.Split(u, "/")[3]
		}
		_ = t
	})
}
