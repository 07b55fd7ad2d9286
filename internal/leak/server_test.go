package leak

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A server is a mail relay that misbehaves where its script says so.
//
// The stages are connect, greeting, ehlo, starttls, handshake, login, mail,
// rcpt, data, body and quit. A stage does hang, close, slow (a second a
// reply), flood, or answers with the reply that stands there; body may also
// "keep and close": take the mail and die before its reply.
type server struct {
	tls      string // starttls, implicit or none
	auth     string // "", PLAIN or LOGIN
	password string
	cert     tls.Certificate
	at       func(stage string) // called before each stage

	mu       sync.Mutex
	script   map[string]string
	mails    [][]byte
	to       []string
	dialled  int
	logins   int
	stages   []string
	clear    bool // something of a login or mail came without TLS
	sessions sync.WaitGroup
}

func (s *server) set(script map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = script
}

// counts are connections, logins that were tried and mails that were taken.
func (s *server) counts() (dialled, logins, mails int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dialled, s.logins, len(s.mails)
}

// A line is one session's end of the connection.
type conversation struct {
	s    *server
	conn net.Conn
	r    *bufio.Reader
	safe bool
}

// say does what the script wants at a stage, or sends the normal reply.
func (c *conversation) say(stage, normal string) bool {
	if c.s.at != nil {
		c.s.at(stage)
	}
	c.s.mu.Lock()
	act := c.s.script[stage]
	c.s.stages = append(c.s.stages, stage)
	c.s.mu.Unlock()
	switch act {
	case "":
	case "close":
		return false
	case "hang":
		_, _ = io.Copy(io.Discard, c.r)
		return false
	case "slow":
		time.Sleep(time.Second)
	case "flood":
		for {
			if _, err := io.WriteString(c.conn, "250-"+strings.Repeat("x", 1000)+"\r\n"); err != nil {
				return false
			}
		}
	default:
		_, err := io.WriteString(c.conn, act+"\r\n")
		return err == nil && !strings.HasPrefix(act, "421")
	}
	if normal != "" {
		_, err := io.WriteString(c.conn, normal+"\r\n")
		return err == nil
	}
	return true
}

// normal says whether a stage is to go on.
func (c *conversation) normal(stage string) bool {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	act := c.s.script[stage]
	return act == "" || act == "slow"
}

func (s *server) serve(conn net.Conn) {
	defer s.sessions.Done()
	defer func() { _ = conn.Close() }()
	s.mu.Lock()
	s.dialled++
	s.mu.Unlock()
	c := &conversation{s: s, conn: conn, r: bufio.NewReader(conn)}
	if s.tls == "implicit" && !c.handshake() {
		return
	}
	if !c.say("greeting", "220 relay.example ESMTP") {
		return
	}
	var to string
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return
		}
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		ok := false
		switch strings.ToUpper(verb) {
		case "EHLO", "HELO":
			ok = c.say("ehlo", c.features())
		case "STARTTLS":
			ok = c.say("starttls", "220 go ahead") && (!c.normal("starttls") || c.handshake())
		case "AUTH":
			ok = c.login(rest)
		case "MAIL":
			ok = c.say("mail", "250 2.1.0 fine")
		case "RCPT":
			to = strings.Trim(strings.TrimPrefix(rest, "TO:"), "<>")
			ok = c.say("rcpt", "250 2.1.5 fine")
		case "DATA":
			ok = c.say("data", "354 go on") && (!c.normal("data") || c.body(to))
		case "QUIT":
			c.say("quit", "221 bye")
		}
		if !ok {
			return
		}
	}
}

func (c *conversation) features() string {
	lines := []string{"250-relay.example"}
	if c.s.tls == "starttls" && !c.safe {
		lines = append(lines, "250-STARTTLS")
	}
	if c.s.auth != "" {
		lines = append(lines, "250-AUTH "+c.s.auth)
	}
	return strings.Join(append(lines, "250 8BITMIME"), "\r\n")
}

func (c *conversation) handshake() bool {
	if !c.say("handshake", "") {
		return false
	}
	t := tls.Server(c.conn, &tls.Config{Certificates: []tls.Certificate{c.s.cert}})
	c.conn, c.r, c.safe = t, bufio.NewReader(t), true
	return t.Handshake() == nil
}

// login takes the user "user" with the server's password.
func (c *conversation) login(rest string) bool {
	mechanism, initial, _ := strings.Cut(rest, " ")
	c.s.mu.Lock()
	c.s.logins++
	c.s.clear = c.s.clear || !c.safe
	c.s.mu.Unlock()
	got := []string{initial}
	if mechanism == "LOGIN" {
		got = nil
		for _, ask := range []string{"Username:", "Password:"} {
			_, _ = io.WriteString(c.conn, "334 "+base64.StdEncoding.EncodeToString([]byte(ask))+"\r\n")
			line, err := c.r.ReadString('\n')
			if err != nil {
				return false
			}
			got = append(got, strings.TrimSpace(line))
		}
	}
	var all []string
	for _, g := range got {
		b, _ := base64.StdEncoding.DecodeString(g)
		all = append(all, string(b))
	}
	if strings.Trim(strings.Join(all, "\x00"), "\x00") != "user\x00"+c.s.password {
		return c.say("login", "535 5.7.8 the password hunter2 is wrong")
	}
	return c.say("login", "235 2.7.0 welcome")
}

func (c *conversation) body(to string) bool {
	var b bytes.Buffer
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return false
		}
		if line == ".\r\n" {
			break
		}
		b.WriteString(strings.TrimPrefix(line, "."))
	}
	c.s.mu.Lock()
	act := c.s.script["body"]
	if act == "" || act == "slow" || act == "keep and close" {
		c.s.mails, c.s.to = append(c.s.mails, b.Bytes()), append(c.s.to, to)
		c.s.clear = c.s.clear || !c.safe
	}
	c.s.mu.Unlock()
	if act == "keep and close" {
		return false
	}
	return c.say("body", "250 2.0.0 taken")
}

// pipe connects to the server without a network, for bubbles.
func (s *server) pipe() net.Conn {
	ours, theirs := net.Pipe()
	s.sessions.Add(1)
	go s.serve(theirs)
	return ours
}

// listen serves on loopback until the test ends.
func (s *server) listen(t *testing.T) (port uint16) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.sessions.Add(1)
			go s.serve(conn)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done; s.sessions.Wait() })
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// certificates make an authority's file, and a certificate for a host that it
// signs.
func certificates(t *testing.T, host string) (caFile string, cert tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{host}}
	if ip := net.ParseIP(host); ip != nil {
		template.DNSNames, template.IPAddresses = nil, []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return caFile, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A pipes is a dial function that leads to servers by the relay's name.
func pipes(servers map[string]*server) func(context.Context, Relay) (net.Conn, error) {
	return func(_ context.Context, r Relay) (net.Conn, error) {
		s, ok := servers[r.Host]
		if !ok {
			return nil, &net.DNSError{Err: "no such host", Name: r.Host, IsNotFound: true}
		}
		return s.pipe(), nil
	}
}
