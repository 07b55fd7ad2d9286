package outbound

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// An Exchange is an http.RoundTripper that leaves nothing behind: one HTTP/1.1
// request and its answer on a connection of their own. net/http's own
// transport copies what it sends into buffers that nobody can reach to wipe;
// here the request goes from one buffer, which is wiped, straight into TLS,
// which encrypts it on the way.
//
// It follows no redirect, knows no cookie and retries nothing. A request has
// to say its ContentLength. The answer's body ends the connection when it is
// closed.
type Exchange struct {
	cfg    Config
	tls    *tls.Config
	places *places
}

// places are those of the connections that may be open at a time.
type places struct {
	mu    sync.Mutex
	hosts map[string]chan struct{}
}

const (
	perHost      = 64      // connections: many clients of one issuer that start together wait for each other
	longestReply = 1 << 20 // bytes of an answer, headers included
	maxInterim   = 5       // answers with status 1xx
)

// Exchange makes an Exchange for c.
func (c Config) Exchange() (*Exchange, error) {
	t, err := c.TLS()
	if err != nil {
		return nil, err
	}
	if _, err := c.ProxyURL(); err != nil {
		return nil, err
	}
	t.NextProtos = []string{"http/1.1"}
	return &Exchange{cfg: c, tls: t, places: &places{hosts: map[string]chan struct{}{}}}, nil
}

// WithCertificate gives an Exchange that presents pair to every server that
// asks for a client certificate, whichever authorities the server names: one
// that is not sent silently would fail as a refused client. It shares x's
// places per host; x itself presents nothing. The private key lives as long as
// what is returned.
func (x *Exchange) WithCertificate(pair tls.Certificate) http.RoundTripper {
	t := x.tls.Clone()
	t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	return &Exchange{cfg: x.cfg, tls: t, places: x.places}
}

// RoundTrip implements http.RoundTripper.
func (x *Exchange) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	ctx, cancel := context.WithTimeout(req.Context(), CallTimeout)
	leave, err := x.places.enter(ctx, req.URL.Host)
	if err != nil {
		cancel()
		return nil, err
	}
	end := func() { cancel(); leave() }
	conn, below, err := x.connect(ctx, req)
	if err != nil {
		end()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	c := &connection{Conn: conn, end: func() { stop(); below.Wipe(); end() }}
	resp, err := c.exchange(req)
	if err != nil {
		if ended := ctx.Err(); ended != nil { // asked before Close, which ends it too
			err = ended // rather than that the connection was closed
		}
		_ = c.Close()
		return nil, err
	}
	return resp, nil
}

// enter waits for a place among the connections to host.
func (p *places) enter(ctx context.Context, host string) (leave func(), err error) {
	p.mu.Lock()
	free := p.hosts[host]
	if free == nil {
		free = make(chan struct{}, perHost)
		p.hosts[host] = free
	}
	p.mu.Unlock()
	select {
	case free <- struct{}{}:
		return func() { <-free }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// connect gives the connection, and what is below its TLS.
func (x *Exchange) connect(ctx context.Context, req *http.Request) (net.Conn, *Forgetful, error) {
	host, port := req.URL.Hostname(), req.URL.Port()
	secure := req.URL.Scheme == "https"
	if port == "" {
		if port = "80"; secure {
			port = "443"
		}
	}
	conn, err := x.cfg.Dial(ctx, net.JoinHostPort(host, port))
	if err != nil {
		return nil, nil, err
	}
	if !secure {
		return conn, &Forgetful{}, nil
	}
	below := &Forgetful{Conn: conn}
	cfg := x.tls.Clone()
	cfg.ServerName = host
	t := tls.Client(below, cfg)
	shake, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	if err := t.HandshakeContext(shake); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return t, below, nil
}

// connection carries one exchange. It remembers the buffer that answers are
// read into, to wipe it at the end.
type connection struct {
	net.Conn
	buffer []byte
	once   sync.Once
	end    func()
}

// Read notes the first buffer that it is given: bufio's own.
func (c *connection) Read(p []byte) (int, error) {
	if c.buffer == nil {
		c.buffer = p[:cap(p)]
	}
	return c.Conn.Read(p)
}

// Close ends the exchange.
func (c *connection) Close() (err error) {
	c.once.Do(func() {
		err = c.Conn.Close()
		clear(c.buffer)
		c.end()
	})
	return err
}

func (c *connection) exchange(req *http.Request) (*http.Response, error) {
	if err := c.send(req); err != nil {
		return nil, err
	}
	r := bufio.NewReader(io.LimitReader(c, longestReply))
	for range maxInterim {
		resp, err := http.ReadResponse(r, req)
		if err != nil {
			return nil, noBytes(err)
		}
		if resp.StatusCode >= 200 {
			resp.Body = &body{resp.Body, c}
			return resp, nil
		}
	}
	return nil, errors.New("the server sends nothing but interim answers")
}

// noBytes keeps the server's own words out of a parse error.
func noBytes(err error) error {
	var n net.Error
	if errors.As(err, &n) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return errors.New("the answer is no HTTP")
}

// send writes the request from one buffer, which it wipes.
func (c *connection) send(req *http.Request) error {
	if req.ContentLength < 0 {
		return errors.New("the request does not say its length")
	}
	var head bytes.Buffer // grows: it gets no secret
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n", req.Method, req.URL.RequestURI(), req.URL.Host)
	if req.Header.Get("User-Agent") == "" {
		head.WriteString("User-Agent: credential-broker\r\n")
	}
	if req.Body != nil || req.Method == http.MethodPost {
		fmt.Fprintf(&head, "Content-Length: %d\r\n", req.ContentLength)
	}
	size := head.Len() + 2
	for name, values := range req.Header {
		for _, v := range values {
			size += len(name) + len(v) + 4
		}
	}
	all := make([]byte, 0, size+int(req.ContentLength))
	defer func() { clear(all[:cap(all)]) }()
	all = append(all, head.Bytes()...)
	for name, values := range req.Header {
		for _, v := range values {
			if !plain(name) || !plain(v) {
				return fmt.Errorf("the header %q has a control character", name)
			}
			all = append(append(append(append(all, name...), ": "...), v...), "\r\n"...)
		}
	}
	all = append(all, "\r\n"...)
	if req.Body != nil {
		n := len(all)
		all = all[:n+int(req.ContentLength)]
		if _, err := io.ReadFull(req.Body, all[n:]); err != nil {
			return err
		}
	}
	_ = c.SetWriteDeadline(time.Now().Add(CallTimeout))
	_, err := c.Write(all)
	return err
}

func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// body is an answer's body, whose end is the connection's.
type body struct {
	io.ReadCloser
	c *connection
}

// Close closes the connection first: what is left of the body is not read.
func (b *body) Close() error {
	err := b.c.Close()
	_ = b.ReadCloser.Close()
	return err
}
