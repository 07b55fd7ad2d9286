package proxy

import (
	"crypto/tls"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"

	"credentialbroker/internal/broker"
	"credentialbroker/internal/outbound"
)

// Rules of this file:
//   - connections to the API are kept: what passes over them is tokens and API
//     keys, never a client secret, and a new TLS handshake for each call would
//     cost more than all the rest;
//   - no two routes share a connection, nor do two certificates.

// route is a Route that is open.
type route struct {
	Route
	socket   string
	server   *Server
	base     *url.URL // Path and RawPath without the slash at their end
	prefixes []string // clean, likewise
	timeout  time.Duration
	proxy    *httputil.ReverseProxy
	plain    *http.Transport // presents no certificate
	counts   *counts

	mu    sync.Mutex
	bound struct { // the transport of tokens that are bound to a certificate (RFC 8705 §3)
		to        string // x5t#S256; empty: there were none
		transport *http.Transport
	}
	state Status
}

// open makes a route; it connects to nothing.
func (s *Server) open(r Route, socket string) (*route, error) {
	base, err := parseUpstream(r.Upstream)
	if err != nil {
		return nil, err
	}
	rt := &route{Route: r, socket: socket, server: s, timeout: r.Timeout.D(),
		base:  &url.URL{Scheme: base.Scheme, Host: base.Host, Path: strings.TrimSuffix(base.Path, "/"), RawPath: strings.TrimSuffix(base.EscapedPath(), "/")},
		state: Status{Client: r.Client, Name: r.Name, Socket: socket, Upstream: r.Upstream}}
	if rt.timeout == 0 {
		rt.timeout = DefaultTimeout
	}
	for _, p := range r.Paths {
		path, _ := cleanPath(p) // Validate saw to it
		rt.prefixes = append(rt.prefixes, strings.TrimSuffix(path, "/"))
	}
	if rt.plain, err = rt.transport(); err != nil {
		return nil, err
	}
	rt.proxy = &httputil.ReverseProxy{Transport: rt, Rewrite: rewrite, ModifyResponse: clean, ErrorHandler: failed,
		BufferPool: &s.buffers, ErrorLog: log.New(discard{}, "", 0)}
	return rt, nil
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// transport keeps connections, and speaks HTTP/2 where the API does.
func transport(c outbound.Config) (*http.Transport, error) {
	t, err := c.Transport()
	if err != nil {
		return nil, err
	}
	t.DisableKeepAlives, t.ForceAttemptHTTP2 = false, true
	t.MaxIdleConnsPerHost, t.IdleConnTimeout = 64, time.Minute
	t.ResponseHeaderTimeout = 0 // the call's own clock says when
	return t, nil
}

// grantKey finds the grant in the context of a request whose token is bound.
type grantKey struct{}

// via is the transport for a grant. A token that is bound to a certificate is
// worth nothing without it.
func (rt *route) via(g *broker.Grant) (*http.Transport, error) {
	if g.Token.Bound == "" {
		return rt.plain, nil
	}
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.bound.to == g.Token.Bound {
		return rt.bound.transport, nil
	}
	t, err := rt.transport()
	if err != nil {
		return nil, err
	}
	// The key is read for each handshake, from the grant of the call that makes
	// it, and kept by nobody.
	t.TLSClientConfig.GetClientCertificate = func(i *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		rt.server.o.Broker.SecretUsed()
		return i.Context().Value(grantKey{}).(*broker.Grant).Certificate()
	}
	if rt.bound.transport != nil {
		rt.bound.transport.CloseIdleConnections()
	}
	rt.bound.to, rt.bound.transport = g.Token.Bound, t
	return t, nil
}

// retire closes connections that nobody uses. Those in use end soon after.
func (rt *route) retire() {
	rt.plain.CloseIdleConnections()
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.bound.transport != nil {
		rt.bound.transport.CloseIdleConnections()
	}
}

// note counts a request for the status.
func (rt *route) note(problem string) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.state.Requests++
	if problem != "" {
		rt.state.Failed++
		rt.state.Error, rt.state.ErrorAt = problem, time.Now().UTC()
	}
}

func (rt *route) status() Status {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.state
}

// goOn takes the figures of the same route before a reload.
func (rt *route) goOn(old Status) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if now := rt.state; now.Client == old.Client && now.Name == old.Name && now.Upstream == old.Upstream {
		rt.state = old
	}
}

// buffers are httputil's.
type buffers struct{ pool sync.Pool }

const bufferSize = 32 << 10

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return p[:]
	}
	return make([]byte, bufferSize)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(buf []byte) { b.pool.Put((*[bufferSize]byte)(buf)) }
