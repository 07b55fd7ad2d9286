// Package outbound is the one way out of the process: connections with a
// deadline, verified TLS of at least 1.2, a certificate authority and a proxy
// of the operator's choice, and no memory of what passed.
//
// No TLS session is kept or resumed: each connection authenticates both sides
// anew, so that one client's certificate never stands for another client.
package outbound

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"
)

// Config says how to reach one outside system. Its keys stand beside the
// system's own in the configuration.
type Config struct {
	// CAFile is a PEM file of certificate authorities that replaces the
	// system's. Empty: the system's.
	CAFile string `yaml:"ca_file,omitempty" json:"ca_file,omitempty"`
	// Proxy is the URL of an HTTP proxy (http://host:port) that tunnels with
	// CONNECT. Empty: direct; the environment's proxies are not used.
	Proxy string `yaml:"proxy,omitempty" json:"proxy,omitempty"`
}

// ErrProxy is in the errors of Dial, and of an Exchange, that are the proxy's
// fault.
var ErrProxy = errors.New("proxy")

// Timeouts of every outbound call; a context may be stricter.
const (
	DialTimeout = 10 * time.Second
	CallTimeout = 30 * time.Second
)

// TLS makes the client configuration for c.
func (c Config) TLS() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	t.RootCAs = x509.NewCertPool()
	if !t.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca_file: %s holds no PEM certificate", c.CAFile)
	}
	return t, nil
}

// ProxyURL parses Proxy; nil means direct.
func (c Config) ProxyURL() (*url.URL, error) {
	if c.Proxy == "" {
		return nil, nil
	}
	u, err := url.Parse(c.Proxy)
	if err != nil {
		return nil, errors.New("proxy: not a URL") // the error would repeat a password
	}
	if u.Scheme != "http" || u.Host == "" {
		return nil, errors.New("proxy: want http://host:port")
	}
	return u, nil
}

// Transport makes an HTTP transport for c. It follows no environment, keeps no
// cookie, and closes each connection after its response: an idle connection's
// buffers keep copies of what passed through them. A caller that sends and
// receives nothing secret may set DisableKeepAlives to false.
func (c Config) Transport() (*http.Transport, error) {
	t, err := c.TLS()
	if err != nil {
		return nil, err
	}
	proxy, err := c.ProxyURL()
	if err != nil {
		return nil, err
	}
	return &http.Transport{
		Proxy:                  http.ProxyURL(proxy),
		DialContext:            (&net.Dialer{Timeout: DialTimeout}).DialContext,
		TLSClientConfig:        t,
		TLSHandshakeTimeout:    DialTimeout,
		ResponseHeaderTimeout:  CallTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableKeepAlives:      true,
		DisableCompression:     true,
	}, nil
}

// Dial connects to addr (host:port) over TCP, through the proxy if there is
// one: for protocols that are not HTTP/1.1.
func (c Config) Dial(ctx context.Context, addr string) (net.Conn, error) {
	proxy, err := c.ProxyURL()
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: DialTimeout}
	if proxy == nil {
		return d.DialContext(ctx, "tcp", addr)
	}
	host := proxy.Host
	if proxy.Port() == "" {
		host = net.JoinHostPort(proxy.Hostname(), "80")
	}
	conn, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProxy, err)
	}
	tunnelled, err := connect(ctx, conn, proxy, addr)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%w: %w", ErrProxy, err)
	}
	return tunnelled, nil
}

const longestHead = 64 << 10 // bytes of a proxy's answer

// connect asks the proxy for a tunnel (RFC 9110 §9.3.6).
func connect(ctx context.Context, conn net.Conn, proxy *url.URL, addr string) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	_ = conn.SetDeadline(time.Now().Add(DialTimeout))
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: addr}, Host: addr, Header: http.Header{}}
	if u := proxy.User; u != nil {
		p, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+p)))
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	r := bufio.NewReader(io.LimitReader(conn, longestHead))
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("refused the tunnel to %s: %s", addr, http.StatusText(resp.StatusCode))
	}
	if !stop() {
		return nil, ctx.Err()
	}
	if r.Buffered() > 0 {
		return nil, errors.New("sent data before the tunnel was used")
	}
	return conn, conn.SetDeadline(time.Time{})
}
