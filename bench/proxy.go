package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"credentialbroker/internal/fake"
)

const upstreamAnswer = 1024 // bytes

// upstreamRole: CAFILE. It is the API behind the proxies: HTTP/1.1 over TLS,
// and a constant answer to whoever has a bearer token. It prints where it
// listens.
func upstreamRole(_ context.Context, args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("role-upstream: one argument")
	}
	cert, ca, err := fake.TLS()
	if err != nil {
		return err
	}
	if err := os.WriteFile(args[0], ca, 0o600); err != nil { //nolint:gosec // this program's own argument
		return err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, l.Addr())
	body := bytes.Repeat([]byte("x"), upstreamAnswer)
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write(body)
	})}
	return srv.Serve(l)
}

// proxies compares the reverse proxy with nginx: both on a Unix socket, both
// to the same API over TLS, with connections that are kept.
func (b *bench) proxies() error {
	nginx, err := findNginx()
	if err != nil {
		fmt.Fprintf(b.out, "NOT COMPARED with nginx as a proxy: %v\n", err)
		return nil
	}
	ca := filepath.Join(b.dir, "upstream.pem")
	_, upstream, err := b.startRole("role-upstream", ca)
	if err != nil {
		return err
	}
	b.route = fmt.Sprintf("    reverse_proxy: [{ name: api, upstream: \"https://%s\", ca_file: %s }]\n", upstream, ca)
	d, err := b.startBroker("proxy", 1)
	if err != nil {
		return err
	}
	d.name, d.socket, d.path = "broker", filepath.Join(filepath.Dir(d.socket), "proxy", "api.sock"), "/x"
	n, err := b.startNginxProxy(nginx, upstream, ca)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "\nreverse proxy: answers of %d bytes from an API over TLS; %d rounds of %v; medians\n\n", upstreamAnswer, b.rounds, b.time)
	servers := []*server{d, n}
	for _, s := range servers {
		if err := s.ready(b.ctx, 10*time.Second); err != nil {
			return err
		}
		defer b.end(s.cmd)
	}
	if err := b.throughput(servers); err != nil {
		return err
	}
	t := newTable(b.out, "server", "PSS MiB")
	for _, s := range servers {
		total := 0.0
		for _, pid := range append(children(s.pid()), s.pid()) {
			_, pss, err := size(pid)
			if err != nil {
				return err
			}
			one, _ := strconv.ParseFloat(pss, 64)
			total += one
		}
		t.row(s.name, fmt.Sprintf("%.1f", total))
	}
	t.flush()
	return nil
}

const nginxProxyConf = `daemon off; pid nginx.pid; error_log error.log crit;
worker_processes %d; %s
events { worker_connections 20000; }
http {
  access_log off; keepalive_requests 1000000000;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  upstream api { server %s; keepalive 64; keepalive_requests 1000000000; }
  server { listen unix:%s backlog=4096; location / {
    proxy_pass https://api; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host %[3]s;
    proxy_set_header Authorization "Bearer fixed"; proxy_set_header X-IBM-Client-Id fixed;
    proxy_ssl_verify on; proxy_ssl_trusted_certificate %[5]s; proxy_ssl_name localhost; proxy_ssl_protocols TLSv1.3; } }
}
`

// startNginxProxy passes on to upstream with fixed headers.
func (b *bench) startNginxProxy(path, upstream, ca string) (*server, error) {
	dir := filepath.Join(b.dir, "nginxproxy")
	s := &server{name: "nginx", socket: filepath.Join(dir, "s"), path: "/x"}
	user := ""
	if os.Getuid() == 0 {
		user = "user root root;"
	}
	if _, _, err := net.SplitHostPort(upstream); err != nil {
		return nil, err
	}
	conf := fmt.Sprintf(nginxProxyConf, runtime.GOMAXPROCS(0), user, upstream, s.socket, ca)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o644)); err != nil {
		return nil, err
	}
	s.cmd = b.command(path, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "error.log"))
	s.cmd.Stderr = os.Stderr
	return s, b.start(s.cmd)
}
