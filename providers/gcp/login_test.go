package gcp

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/gcp/gcptest"
	"credentialbroker/providers/providertest"
)

// noDefaults hides the machine's own credentials from the default chain.
func noDefaults(t *testing.T) (home string) {
	home = t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("CLOUDSDK_CONFIG", "")
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
	t.Setenv("GCE_METADATA_HOST", "127.0.0.1:1")
	return home
}

func TestLogins(t *testing.T) {
	for _, c := range []struct {
		name, way string
		setup     func(t *testing.T, w wire, home string, a *Auth)
	}{
		{"service account", "service account", func(t *testing.T, w wire, _ string, a *Auth) { a.CredentialsFile = w.Tokens.ServiceAccount(t) }},
		{"workload identity", "workload identity", func(t *testing.T, w wire, _ string, a *Auth) {
			a.WorkloadIdentity = &WorkloadIdentity{w.Tokens.ExternalAccount(t)}
		}},
		{"metadata", "metadata", func(t *testing.T, w wire, _ string, a *Auth) {
			a.Metadata = true
			t.Setenv("GCE_METADATA_HOST", w.Tokens.MetadataHost)
			t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere") // not looked at
		}},
		{"default: named file", "workload identity", func(t *testing.T, w wire, _ string, _ *Auth) {
			t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", w.Tokens.ExternalAccount(t))
		}},
		{"default: gcloud's file", "service account", func(t *testing.T, w wire, home string, _ *Auth) {
			dir := filepath.Join(home, ".config", "gcloud")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(w.Tokens.ServiceAccount(t), filepath.Join(dir, "application_default_credentials.json")); err != nil {
				t.Fatal(err)
			}
		}},
		{"default: metadata", "metadata", func(t *testing.T, w wire, _ string, _ *Auth) {
			t.Setenv("GCE_METADATA_HOST", w.Tokens.MetadataHost)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := noDefaults(t)
			w := newWire(t)
			conf := w.config(t)
			conf.Auth = Auth{}
			c.setup(t, w, home, &conf.Auth)
			p := mustOpen(t, conf)
			mustFetch(t, p, app)
			mustFetch(t, p, app)
			if n := w.Tokens.Issued(c.way); n != 1 {
				t.Errorf("%d tokens issued, want 1", n)
			}
			// What is no refusal is no failed login; what is, is.
			w.Server.Fault(t, providertest.LoginExpired, "")
			w.Tokens.FailWith(http.StatusServiceUnavailable)
			_, err := p.Fetch(t.Context(), app, "")
			wantKind(t, err, providers.Unavailable, "status 503")
			w.Tokens.FailWith(0)
			mustFetch(t, p, app)
			w.Server.Fault(t, providertest.LoginRefused, "")
			_, err = p.Fetch(t.Context(), app, "")
			wantKind(t, err, providers.LoginFailed, "")
		})
	}
}

func TestNoLogin(t *testing.T) {
	for _, c := range []struct {
		name  string
		setup func(t *testing.T, w wire, conf *Config)
		kind  providers.Kind
		says  string
	}{
		{"no credentials at all", func(*testing.T, wire, *Config) {}, providers.LoginFailed, "there are no credentials"},
		{"metadata does not answer", func(_ *testing.T, _ wire, c *Config) { c.Auth.Metadata = true }, providers.Unavailable, "metadata server"},
		{"metadata that is none", func(t *testing.T, _ wire, c *Config) {
			c.Auth.Metadata = true
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			srv := &http.Server{Handler: http.NotFoundHandler()}
			go func() { _ = srv.Serve(l) }()
			t.Cleanup(func() { _ = srv.Close() })
			t.Setenv("GCE_METADATA_HOST", l.Addr().String())
		}, providers.LoginFailed, "status 404"},
		{"no file", func(_ *testing.T, _ wire, c *Config) { c.Auth.CredentialsFile = "/nowhere/key.json" }, providers.LoginFailed, "/nowhere/key.json cannot be used: it does not exist"},
		{"file of another type", func(t *testing.T, w wire, c *Config) { c.Auth.CredentialsFile = w.Tokens.ExternalAccount(t) }, providers.LoginFailed, "right type"},
		{"federation of another type", func(t *testing.T, w wire, c *Config) {
			c.Auth.WorkloadIdentity = &WorkloadIdentity{w.Tokens.ServiceAccount(t)}
		}, providers.LoginFailed, "right type"},
		{"file that is no JSON", func(_ *testing.T, w wire, c *Config) {
			c.Auth.CredentialsFile = w.CAFile
		}, providers.LoginFailed, "right type"},
		{"no subject token", func(t *testing.T, w wire, c *Config) {
			f := w.Tokens.ExternalAccount(t)
			_ = os.Remove(filepath.Join(filepath.Dir(f), "subject"))
			c.Auth.WorkloadIdentity = &WorkloadIdentity{f}
		}, providers.LoginFailed, "subject"},
		{"another authority", func(t *testing.T, w wire, c *Config) {
			c.Auth.CredentialsFile = w.Tokens.ServiceAccount(t)
			c.CAFile = ""
		}, providers.Unavailable, "ca_file"},
		{"throttled login", func(t *testing.T, w wire, c *Config) {
			c.Auth.CredentialsFile = w.Tokens.ServiceAccount(t)
			w.Tokens.FailWith(http.StatusTooManyRequests)
		}, providers.Unavailable, "status 429"},
		{"redirected login", func(t *testing.T, w wire, c *Config) {
			c.Auth.CredentialsFile = w.Tokens.ServiceAccount(t)
			w.Tokens.FailWith(http.StatusFound)
		}, providers.LoginFailed, "refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			noDefaults(t)
			w := newWire(t)
			conf := w.config(t)
			conf.Auth = Auth{}
			c.setup(t, w, &conf)
			_, err := mustOpen(t, conf).Fetch(t.Context(), app, "")
			wantKind(t, err, c.kind, c.says)
		})
	}
}

// The token is renewed before it ends, on the clock that goes on in suspend.
func TestTokenIsRenewed(t *testing.T) {
	w := newWire(t)
	clk := &manual{}
	p, err := Open(w.config(t), clk)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		d    time.Duration
		want int
	}{{0, 1}, {58 * time.Minute, 1}, {time.Minute, 2}, {30 * time.Minute, 2}} {
		clk.add(step.d)
		mustFetch(t, p, app)
		if n := w.Tokens.Issued("service account"); n != step.want {
			t.Errorf("%v later: %d logins, want %d", step.d, n, step.want)
		}
	}
}

// However many reads find the session ended, each token is got once.
func TestOneLoginForMany(t *testing.T) {
	w := newWire(t)
	p := w.Open(t, providertest.Options{})
	for round := range 2 {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := p.Fetch(t.Context(), app, ""); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := w.Tokens.Issued("service account"); n != round+1 {
			t.Errorf("%d logins, want %d", n, round+1)
		}
		w.Server.Fault(t, providertest.LoginExpired, "")
	}
}

// A login that hangs holds up others no longer than they want to wait.
func TestLoginIsBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	noDefaults(t)
	t.Setenv("GCE_METADATA_HOST", l.Addr().String())
	p := mustOpen(t, Config{Project: gcptest.Project, Auth: Auth{Metadata: true}})
	long, cancelLong := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := p.Fetch(long, app, "")
		done <- err
	}()
	conn, err := l.Accept() // the first is on its way
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = p.Fetch(short, app, "")
	wantKind(t, err, providers.Unavailable, "in time")
	cancelLong()
	wantKind(t, <-done, providers.Unavailable, "in time")
}

func TestCloseForgets(t *testing.T) {
	w := newWire(t)
	p := w.Open(t, providertest.Options{})
	mustFetch(t, p, app)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if !p.(*manager).login.token.Empty() {
		t.Error("the token is still held")
	}
}

// A token that another read has got meanwhile is not the one that was refused.
func TestForgetOnlyWhatWasRefused(t *testing.T) {
	l := newLogin(Config{}, clock.System{})
	l.token = secret.FromString("new")
	l.forget(secret.FromString("old"))
	if l.token.Empty() {
		t.Error("the new token is gone")
	}
	l.forget(secret.FromString("new"))
	if !l.token.Empty() {
		t.Error("the refused token is still there")
	}
}
