package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/file"
)

// Test data, as everything that the issuer of this program knows.
const (
	clientID     = "bench-client"
	clientSecret = "bench-secret"

	plainPath     = "/v1/clients/vdab/token"
	mallocsMetric = "go_memstats_mallocs_total"
)

// server is one of those that are compared.
type server struct {
	name    string
	cmd     *exec.Cmd
	socket  string
	path    string // what is asked for
	metrics string // socket and path that tell the allocations; "": none
	admin   string
}

func (s *server) pid() int { return s.cmd.Process.Pid }

// startBroker starts the daemon with so many clients, the first of them vdab,
// each with a token from the issuer of this program. They share one secret.
func (b *bench) startBroker(name string, clients int) (*server, error) {
	dir := filepath.Join(b.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if err := b.startIssuer(); err != nil {
		return nil, err
	}
	if err := keep(dir); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "broker.yaml")
	if err := b.configure(conf, clients); err != nil {
		return nil, err
	}
	s := &server{name: "broker", socket: filepath.Join(dir, "broker.sock"), path: plainPath, metrics: "/metrics", admin: filepath.Join(dir, "admin.sock")}
	var said bytes.Buffer
	s.cmd = b.command(filepath.Join(b.dist, "brokerd"), "serve", "--config", conf, "--socket", s.socket, "--state", filepath.Join(dir, "state"))
	s.cmd.Stderr = &said
	if err := b.start(s.cmd); err != nil {
		return nil, fmt.Errorf("%w: run make build", err)
	}
	if err := s.ready(b.ctx, 2*time.Minute); err != nil {
		b.end(s.cmd)
		return nil, fmt.Errorf("%w\n%s", err, said.String())
	}
	return s, nil
}

// configure writes the daemon's configuration, a file for each client, without
// the limits that a benchmark is to meet.
func (b *bench) configure(conf string, clients int) error {
	dir := filepath.Dir(conf)
	text := fmt.Sprintf("providers:\n  local:\n    file: { path: %s/secrets, identity_file: %s/identity, insecure_identity: true }\n", dir, dir) +
		"limits: { connections_per_user: 100000, connections: 100000, requests_per_second: 10000000 }\n"
	if err := errors.Join(os.WriteFile(conf, []byte(text), 0o600), os.Mkdir(filepath.Join(dir, "clients.d"), 0o700)); err != nil {
		return err
	}
	for i := range clients {
		text := fmt.Sprintf("clients:\n  %s:\n    preset: vdab-test\n    token_endpoint: %s\n    ca_file: %s\n    keep_warm: true\n", clientName(i), b.issuer, b.ca()) +
			fmt.Sprintf("    secret: { provider: local, path: vdab }\n    owner: { contact: bench@example.org, purpose: benchmark }\n    allow: [{ user: \"%d\" }]\n", os.Getuid())
		if i == 0 {
			text += b.route
		}
		if err := os.WriteFile(filepath.Join(dir, "clients.d", clientName(i)+".yaml"), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func clientName(i int) string {
	if i == 0 {
		return "vdab"
	}
	return "c" + strconv.Itoa(i)
}

// keep makes the store of the one secret.
func keep(dir string) error {
	store := filepath.Join(dir, "secrets")
	identity, err := file.Create(store)
	if err != nil {
		return err
	}
	key := filepath.Join(dir, "identity")
	if err := identity.Use(func(b []byte) error { return os.WriteFile(key, b, 0o600) }); err != nil {
		return err
	}
	p, err := file.Open(file.Config{Path: store, IdentityFile: key, InsecureIdentity: true}, clock.System{})
	if err != nil {
		return err
	}
	defer p.Close()
	fields := map[string]secret.Secret{}
	for name, value := range map[string]string{"client_id": clientID, "client_secret": clientSecret, "api_key": "bench-key"} {
		fields[name] = secret.New([]byte(value))
	}
	w, ok := p.(providers.Writer)
	if !ok {
		return errors.New("the file provider does not write")
	}
	_, err = w.Put(context.Background(), providers.Ref{Path: "vdab"}, fields, "")
	return err
}

func (b *bench) ca() string { return filepath.Join(b.dir, "ca.pem") }

// startIssuer starts the issuer that all daemons of a run share.
func (b *bench) startIssuer() error {
	if b.issuer != "" {
		return nil
	}
	_, addr, err := b.startRole("role-issuer", b.ca())
	b.issuer = "https://" + addr + fake.TokenPath
	return err
}

func fakeIssuer() (net.Listener, []byte, error) {
	cert, ca, err := fake.TLS()
	if err != nil {
		return nil, nil, err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	return l, ca, err
}

// startPlain starts the bare net/http handler on a socket of that name.
func (b *bench) startPlain(socket string, size int) (*server, error) {
	s := &server{name: "net/http", socket: filepath.Join(b.dir, socket), path: plainPath, metrics: "/mallocs"}
	s.admin = s.socket
	var err error
	s.cmd, _, err = b.startRole("role-plain", s.socket, strconv.Itoa(size))
	return s, err
}

// findNginx looks where integration/install.d/nginx.sh puts it, then where a
// distribution does.
func findNginx() (string, error) {
	for _, name := range []string{".real/nginx/usr/sbin/nginx", "nginx", "/usr/sbin/nginx"} {
		if path, err := exec.LookPath(name); err == nil || errors.Is(err, exec.ErrDot) {
			return filepath.Abs(path)
		}
	}
	return "", errors.New("it is not here; integration/install.d/nginx.sh gets it")
}

const nginxConf = `daemon off; pid nginx.pid; error_log error.log crit;
worker_processes %d; %s
events { worker_connections 20000; }
http {
  access_log off; keepalive_requests 1000000000; default_type application/json;
  sendfile on; tcp_nopush on; open_file_cache max=10;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  server { listen unix:%s backlog=4096; root html; add_header Cache-Control no-store; }
}
`

// startNginx serves a file of that size, with as many workers as the others
// have processors.
func (b *bench) startNginx(path string, size int) (*server, error) {
	dir := filepath.Join(b.dir, "nginx")
	s := &server{name: "nginx", socket: filepath.Join(dir, "s"), path: "/token"}
	user := ""
	if os.Getuid() == 0 {
		user = "user root root;" // it would have to be let into dir otherwise
	}
	conf := fmt.Sprintf(nginxConf, runtime.GOMAXPROCS(0), user, s.socket)
	err := errors.Join(os.MkdirAll(filepath.Join(dir, "html"), 0o755),
		os.WriteFile(filepath.Join(dir, "html", "token"), bytes.Repeat([]byte("x"), size), 0o644),
		os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o644))
	if err != nil {
		return nil, err
	}
	s.cmd = b.command(path, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "error.log"))
	s.cmd.Stderr = os.Stderr
	if err := b.start(s.cmd); err != nil {
		return nil, err
	}
	return s, s.ready(b.ctx, 10*time.Second)
}

// ready waits until s answers.
func (s *server) ready(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		_, err := fetch(ctx, s.socket, s.path)
		if err == nil {
			return nil
		}
		if s.cmd != nil && exited(s.pid()) {
			return fmt.Errorf("%s has ended: %w", s.name, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer in %v: %w", s.name, limit, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// exited looks at a child that nobody has waited for yet.
func exited(pid int) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err != nil || info.Signo != 0
}

// load runs a load generator against s.
func (b *bench) load(s *server, consumers int, keep bool, d time.Duration) (r result, err error) {
	mode := map[bool]string{true: "keep", false: "each"}[keep]
	cmd := b.self("role-load", s.socket, s.path, strconv.Itoa(consumers), mode, d.String())
	out, err := cmd.Output()
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(out, &r)
}

// answerSize is how long the body of an answer is.
func answerSize(s *server) (int, error) {
	body, err := fetch(context.Background(), s.socket, s.path)
	return len(body), err
}

// fetch asks once, on a connection of its own.
func fetch(ctx context.Context, socket, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })
	defer stop()
	return get(c, path)
}

// get asks on c; anything but a 200 is an error.
func get(c net.Conn, path string) ([]byte, error) {
	if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("it answers %s: %s", resp.Status, strings.TrimSpace(string(body[:min(len(body), 500)])))
	}
	return body, err
}

// self is this program in one of its roles.
func (b *bench) self(args ...string) *exec.Cmd {
	cmd := b.command("/proc/self/exe", args...)
	cmd.Stderr = os.Stderr
	return cmd
}

func (b *bench) command(path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(b.ctx, path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // nginx then ends its workers
	return cmd
}

func (b *bench) start(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	b.started = append(b.started, cmd)
	return nil
}

// startRole starts a role and returns its first line.
func (b *bench) startRole(args ...string) (*exec.Cmd, string, error) {
	cmd := b.self(args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := b.start(cmd); err != nil {
		return nil, "", err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", args[0], err)
	}
	return cmd, strings.TrimSpace(line), nil
}

// end stops a process and waits for it; nginx takes its workers along.
func (b *bench) end(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
	}
}

func (b *bench) stop() {
	for _, cmd := range b.started {
		b.end(cmd)
	}
}
