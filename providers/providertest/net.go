package providertest

import (
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"credentialbroker/internal/outbound"
	"credentialbroker/providers"
)

func (s suite) caFile(t *testing.T) {
	m := s.newManager(t)
	m.Set(t, "app", payload(1))
	good := m.Open(t, Options{Outbound: &outbound.Config{CAFile: m.CA()}})
	t.Cleanup(func() { _ = good.Close() })
	mustFetch(t, good, m.Ref("app"), "")
	bare := m.Open(t, Options{Outbound: &outbound.Config{}})
	t.Cleanup(func() { _ = bare.Close() })
	_, err := bare.Fetch(ctx(t), m.Ref("app"), "")
	wantError(t, err, providers.Unavailable)
}

func (s suite) proxy(t *testing.T) {
	m := s.newManager(t)
	m.Set(t, "app", payload(1))
	p := NewProxy(t)
	through := m.Open(t, Options{Outbound: &outbound.Config{CAFile: m.CA(), Proxy: p.URL}})
	t.Cleanup(func() { _ = through.Close() })
	mustFetch(t, through, m.Ref("app"), "")
	if p.Tunnels(m.Addr()) == 0 {
		t.Errorf("no tunnel to %s went through the proxy", m.Addr())
	}
}

// A TunnelProxy is a CONNECT proxy on loopback that counts its tunnels.
type TunnelProxy struct {
	URL string

	mu      sync.Mutex
	tunnels map[string]int
}

// NewProxy starts a proxy that ends with the test.
func NewProxy(t testing.TB) *TunnelProxy {
	p := &TunnelProxy{tunnels: map[string]int{}}
	srv := httptest.NewServer(http.HandlerFunc(p.serve))
	t.Cleanup(srv.Close)
	p.URL = srv.URL
	return p
}

// Tunnels says how many tunnels to host:port were opened.
func (p *TunnelProxy) Tunnels(addr string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tunnels[addr]
}

func (p *TunnelProxy) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		http.Error(w, "only CONNECT", http.StatusMethodNotAllowed)
		return
	}
	up, err := net.DialTimeout("tcp", r.Host, 5*time.Second)
	if err != nil {
		http.Error(w, "no", http.StatusBadGateway)
		return
	}
	defer up.Close()
	p.mu.Lock()
	p.tunnels[r.Host]++
	p.mu.Unlock()
	down, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer down.Close()
	if _, err := io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(up, down)
		_ = up.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(down, up)
	_ = down.Close()
	<-done
}

// CAFileOf writes the certificate of a TLS test server as a PEM file.
func CAFileOf(t testing.TB, srv *httptest.Server) string {
	t.Helper()
	return WritePEM(t, srv.Certificate().Raw)
}

// HostPort gives the host:port of a URL.
func HostPort(t testing.TB, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		t.Fatal(errors.Join(err, errors.New("no host in "+raw)))
	}
	return u.Host
}

// WritePEM writes a DER certificate as a PEM file.
func WritePEM(t testing.TB, der []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
