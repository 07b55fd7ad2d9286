package oidc

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/outbound"
)

// tlsServer serves h with a certificate of its own authority, whose file it gives.
func tlsServer(t *testing.T, h http.Handler, change func(*tls.Config), addr ...string) (srv *httptest.Server, caFile string) {
	t.Helper()
	cert, ca, err := fake.TLS()
	if err != nil {
		t.Fatal(err)
	}
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	srv = httptest.NewUnstartedServer(h)
	for _, a := range addr {
		l, err := net.Listen("tcp", a)
		if err != nil {
			t.Fatal(err)
		}
		_ = srv.Listener.Close()
		srv.Listener = l
	}
	srv.Config.ErrorLog = quiet(t)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	if change != nil {
		change(srv.TLS)
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv, caFile
}

func TestRealTLS(t *testing.T) {
	issuer := fake.NewIssuer(fake.Client{ID: clientID, Secret: clientSecret})
	srv, ca := tlsServer(t, issuer, nil)
	for _, auth := range []ClientAuth{SecretPost, SecretBasic} {
		p := Profile{TokenEndpoint: srv.URL + fake.TokenPath, Issuer: fake.IssuerName, JWKSURI: srv.URL + fake.JWKSPath, ClientAuth: auth, Config: outbound.Config{CAFile: ca}}
		client := open(t, p, nil, clock.System{})
		for range 2 { // the second would fail with the first one's cookies
			if _, err := client.Mint(t.Context(), material(), Request{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s := issuer.Stats(); s.Requests != 4 || s.Minted != 4 || s.JWKS != 2 {
		t.Errorf("%+v", s)
	}
}

func TestTransportErrors(t *testing.T) {
	issuer := fake.NewIssuer(fake.Client{ID: clientID, Secret: clientSecret})
	srv, ca := tlsServer(t, issuer, nil)
	old, oldCA := tlsServer(t, issuer, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 })
	expired, expiredCA := expiredServer(t, issuer)
	plain := httptest.NewServer(issuer)
	t.Cleanup(plain.Close)
	gone := httptest.NewServer(issuer)
	gone.Close()
	other, otherCA := tlsServer(t, issuer, nil, "127.0.0.2:0")
	for _, c := range []struct {
		name, url string
		out       outbound.Config
		says      []string
	}{
		{"unknown authority", srv.URL, outbound.Config{}, []string{"unknown authority", "ca_file"}},
		{"another host", other.URL, outbound.Config{CAFile: otherCA}, []string{"another host name"}},
		{"expired", expired.URL, outbound.Config{CAFile: expiredCA}, []string{"expired", "clock"}},
		{"no TLS", strings.Replace(plain.URL, "http:", "https:", 1), outbound.Config{CAFile: ca}, []string{"TLS", "port"}},
		{"old TLS", old.URL, outbound.Config{CAFile: oldCA}, []string{"TLS 1.2"}},
		{"refused", gone.URL, outbound.Config{}, []string{"refused", "firewall"}},
		{"no such host", "https://issuer.invalid", outbound.Config{}, []string{"resolved"}},
		{"proxy gone", srv.URL, outbound.Config{CAFile: ca, Proxy: strings.Replace(gone.URL, "//", "//user:hunter2@", 1)}, []string{"proxy"}},
		{"proxy refuses", srv.URL, outbound.Config{CAFile: ca, Proxy: strings.Replace(plain.URL, "//", "//user:hunter2@", 1)}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := mint(t, Profile{TokenEndpoint: c.url + fake.TokenPath, Config: c.out}, nil, Request{})
			e := wantKind(t, err, Unavailable)
			for _, w := range c.says {
				if !strings.Contains(e.Error(), w) {
					t.Errorf("%q does not say %q (%v)", e, w, e.Err)
				}
			}
			if strings.Contains(e.Error(), "hunter2") || strings.Contains(e.Error(), clientSecret) {
				t.Errorf("a secret shows in %q", e)
			}
		})
	}
	if n := issuer.Stats().Minted; n != 0 {
		t.Errorf("%d tokens were issued", n)
	}
}

// A connection that is cut after the request was sent: net/http must not send
// it a second time, nor must it follow where a redirect points.
func TestOneRequestOnly(t *testing.T) {
	for _, kind := range []fake.FaultKind{fake.Reset, fake.Redirect, fake.InvalidClient, fake.Throttled} {
		var elsewhere atomic.Int32
		issuer := fake.NewIssuer(fake.Client{ID: clientID, Secret: clientSecret})
		srv, ca := tlsServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != fake.TokenPath {
				elsewhere.Add(1)
			}
			issuer.ServeHTTP(w, r)
		}), nil)
		issuer.Set(fake.Fault{Kind: kind, RetryAfter: time.Second})
		_, err := mint(t, Profile{TokenEndpoint: srv.URL + fake.TokenPath, Config: outbound.Config{CAFile: ca}}, nil, Request{})
		if err == nil {
			t.Errorf("%s: a token", kind)
		}
		if n := issuer.Stats().Requests; n != 1 || elsewhere.Load() != 0 {
			t.Errorf("%s: %d requests, %d elsewhere", kind, n, elsewhere.Load())
		}
	}
}

// A server that answers while the request is still being written, and one that
// accepts and says nothing: what is wiped must not race with what is sent (run
// with -race).
func TestAnswerBeforeTheRequestIsWritten(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	log.SetOutput(io.Discard) // net/http logs an answer that it did not expect
	t.Cleanup(func() { log.SetOutput(os.Stderr) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
			_ = c.Close()
		}
	}()
	client := open(t, Profile{TokenEndpoint: "http://" + l.Addr().String(), ClientAuth: SecretBasic}, nil, clock.System{})
	for range 50 {
		_, err := client.Mint(t.Context(), material(), Request{})
		wantKind(t, err, Unavailable)
	}
	_ = l.Close()
	<-done
}

// The certificate is presented in the token request alone, on a real
// connection, and the token is bound to it.
func TestRealClientCertificate(t *testing.T) {
	var presented atomic.Int32
	srv, ca := tlsServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.Method == http.MethodGet {
			if len(r.TLS.PeerCertificates) != 0 {
				t.Error("public keys were fetched with the client's certificate")
			}
			_, _ = io.WriteString(w, jwks(t, listed()...))
			return
		}
		if len(r.TLS.PeerCertificates) == 1 {
			presented.Add(1)
		}
		_, _ = io.WriteString(w, strings.Replace(good, `"tok"`, `"`+signJWT(t, jose.ES256, keysOnce().ec, "e", claimsNow(map[string]any{"cnf": map[string]string{"x5t#S256": pair().thumbprint}}))+`"`, 1))
	}), func(c *tls.Config) { c.ClientAuth = tls.RequestClientCert })
	p := Profile{TokenEndpoint: srv.URL, Issuer: iss, JWKSURI: srv.URL, ClientAuth: SelfSignedTLS, Config: outbound.Config{CAFile: ca}}
	tok, err := open(t, p, nil, clock.System{}).Mint(t.Context(), everything(), Request{})
	if err != nil || tok.Bound != pair().thumbprint || presented.Load() != 1 {
		t.Errorf("bound to %q, %v, presented %d times", tok.Bound, err, presented.Load())
	}
}
