package outbound_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"credentialbroker/internal/outbound"
	"credentialbroker/providers/providertest"
)

// clientPair is a self-signed certificate with its key.
func clientPair(t *testing.T) tls.Certificate {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "client"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// whose answers with the names in the client's certificates.
func whose(w http.ResponseWriter, r *http.Request) {
	for _, c := range r.TLS.PeerCertificates {
		fmt.Fprint(w, c.Subject.CommonName, " ", c.SerialNumber)
	}
	if r.TLS.DidResume {
		fmt.Fprint(w, "resumed")
	}
}

func TestExchangeWithCertificate(t *testing.T) {
	pair := clientPair(t)
	others := x509.NewCertPool() // a server that names authorities of which ours is none
	others.AddCert(&x509.Certificate{Raw: []byte("another"), RawSubject: []byte("another authority")})
	for _, c := range []struct {
		name    string
		server  *tls.Config
		with    string // what the certified exchange gets
		without string // and the plain one; "" is an error
	}{
		{"required, TLS 1.3", &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13}, "200 client 7", ""},
		{"required, TLS 1.2", &tls.Config{ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12}, "200 client 7", ""},
		{"of authorities that are not ours", &tls.Config{ClientAuth: tls.RequireAnyClientCert, ClientCAs: others}, "200 client 7", ""},
		{"asked for", &tls.Config{ClientAuth: tls.RequestClientCert}, "200 client 7", "200 "},
		{"not asked for", &tls.Config{}, "200 ", "200 "},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(http.HandlerFunc(whose))
			s.Config.ErrorLog = log.New(t.Output(), "", 0)
			s.TLS = c.server
			s.StartTLS()
			defer s.Close()
			x := exchange(t, outbound.Config{CAFile: providertest.CAFileOf(t, s)})
			certified := x.WithCertificate(pair)
			for range 2 { // and no session is resumed
				if got, err := post(t, certified, s.URL, "x"); err != nil || got != c.with {
					t.Errorf("with a certificate: %q, %v, want %q", got, err, c.with)
				}
				if got, err := post(t, x, s.URL, "x"); got != c.without || (err == nil) != (c.without != "") {
					t.Errorf("without: %q, %v, want %q", got, err, c.without)
				} else if err != nil && errors.Is(err, context.Canceled) {
					t.Errorf("without: %v, which does not say what the server refused", err)
				}
			}
		})
	}
}

// Clients with certificates count among the connections to a host.
func TestCertifiedExchangesShareTheirPlaces(t *testing.T) {
	var now, most atomic.Int64
	s, c := server(t, func(_ http.ResponseWriter, _ *http.Request) {
		most.Store(max(most.Load(), now.Add(1)))
		<-time.After(5 * time.Millisecond)
		now.Add(-1)
	})
	x := exchange(t, c)
	ways := []http.RoundTripper{x, x.WithCertificate(clientPair(t)), x.WithCertificate(clientPair(t))}
	var wg sync.WaitGroup
	for i := range 240 {
		wg.Go(func() {
			if _, err := post(t, ways[i%len(ways)], s.URL, ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := most.Load(); n > 64 {
		t.Errorf("%d connections at a time, want 64 at most", n)
	}
}
