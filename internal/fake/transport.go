package fake

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"syscall"
	"time"
)

// Local reaches h without a network, in the caller's own goroutine: inside a
// testing/synctest bubble no real socket works. It honours the request's
// context. What it returns also has the method
// WithCertificate(tls.Certificate) http.RoundTripper, for a client certificate.
func Local(h http.Handler) http.RoundTripper { return local{h: h} }

type local struct {
	h    http.Handler
	cert *tls.Certificate
}

// WithCertificate presents c to the handler, as a TLS connection would.
func (l local) WithCertificate(c tls.Certificate) http.RoundTripper { return local{l.h, &c} }

// state is the TLS connection that a handler sees.
func (l local) state(host string) (*tls.ConnectionState, error) {
	st := &tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true, ServerName: host}
	if l.cert != nil {
		for _, der := range l.cert.Certificate {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, err
			}
			st.PeerCertificates = append(st.PeerCertificates, c)
		}
	}
	return st, nil
}

// RoundTrip implements http.RoundTripper.
func (l local) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	r := req.Clone(req.Context())
	if r.Body == nil {
		r.Body = http.NoBody
	}
	r.Host, r.RequestURI, r.RemoteAddr = req.URL.Host, req.URL.RequestURI(), "127.0.0.1:1"
	if req.URL.Scheme == "https" {
		if r.TLS, err = l.state(req.URL.Hostname()); err != nil {
			return nil, err
		}
	}
	w := &recorder{header: http.Header{}}
	defer func() {
		switch p := recover(); {
		case p == http.ErrAbortHandler: //nolint:errorlint // a panic's value, which is this very one
			resp, err = nil, &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
		case p != nil:
			panic(p)
		}
	}()
	l.h.ServeHTTP(w, r)
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return &http.Response{Status: fmt.Sprint(w.status, " ", http.StatusText(w.status)), StatusCode: w.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, Body: io.NopCloser(&w.body), ContentLength: int64(w.body.Len()), Request: req}, nil
}

type recorder struct {
	header, sent http.Header
	status       int
	body         bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status, r.sent = status, r.header.Clone()
	}
}

func (r *recorder) Write(b []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	return r.body.Write(b)
}

// TLS makes a certificate authority and a server certificate of it, for
// 127.0.0.1, ::1, localhost and hosts. It lasts 30 days; its keys are nowhere else.
func TLS(hosts ...string) (cert tls.Certificate, caPEM []byte, err error) {
	now := time.Now()
	template := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(30 * 24 * time.Hour), BasicConstraintsValid: true}
	}
	ca, server := template(1, "Throwaway CA"), template(2, "localhost")
	ca.IsCA, ca.KeyUsage = true, x509.KeyUsageCertSign
	server.KeyUsage, server.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server.DNSNames = append([]string{"localhost"}, hosts...)
	server.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cert, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cert, nil, err
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return cert, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, server, ca, &key.PublicKey, caKey)
	if err != nil {
		return cert, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der, caDER}, PrivateKey: key},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), nil
}
