package leak

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail/smtp"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
)

// A Relay takes mail (RFC 6409, RFC 5321). Where its login is kept, the
// configuration says.
type Relay struct {
	// Host is the relay's name, which its certificate has to carry.
	Host string `yaml:"host" check:"required"`
	// Port is 587, 465 or another. Zero: 465 with tls: implicit, else 587.
	Port uint16 `yaml:"port"`
	// TLS is starttls (RFC 3207), implicit (RFC 8314) or none. Missing:
	// implicit on port 465, else starttls. Without TLS the report, and the
	// relay, are anybody's on the way.
	TLS string `yaml:"tls" check:"starttls|implicit|none"`
	// Login says that the relay asks for one: nothing is sent before
	// [Outbox.SetLogin].
	Login bool `yaml:"-"`
	// CAFile and Proxy as everywhere.
	outbound.Config `yaml:",inline"`
}

// Validate says what is wrong with r, or nil.
func (r Relay) Validate() error {
	switch {
	case !validHost(r.Host) && net.ParseIP(r.Host) == nil:
		return fmt.Errorf("smtp: host: %q is no name of a host", r.Host)
	case !slices.Contains([]string{"", "starttls", "implicit", "none"}, r.TLS):
		return fmt.Errorf("smtp: tls: %q is unknown: write starttls, implicit or none", r.TLS)
	case r.TLS == "none" && r.Login && !loopback(r.Host):
		return fmt.Errorf("smtp: the login of %s would travel in the clear: take tls: none away, or the secret", r.Host)
	}
	_, err := r.ProxyURL()
	return err
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (r Relay) implicit() bool { return r.TLS == "implicit" || r.TLS == "" && r.Port == 465 }

func (r Relay) addr() string {
	port := r.Port
	if port == 0 {
		port = 587
		if r.implicit() {
			port = 465
		}
	}
	return net.JoinHostPort(r.Host, strconv.Itoa(int(port)))
}

// An Attempt is how one relay answered. It holds nothing of the relay's own
// words.
type Attempt struct {
	At     time.Time `json:"at"`
	Relay  string    `json:"relay"` // host:port
	Result Result    `json:"result"`
	// Stage is how far it came: connect, greeting, tls, login, sender,
	// recipient, data, body or done.
	Stage string `json:"stage"`
	// Cause is reply, timeout, closed, name, connect, proxy, configuration,
	// certificate, tls, no_starttls, no_login, login_missing, login_refused or
	// protocol; empty if it was accepted.
	Cause string `json:"cause,omitempty"`
	// Code is the reply's (RFC 5321 §4.2), and Enhanced the code beside it
	// (RFC 3463), as 5.1.1.
	Code     int    `json:"code,omitempty"`
	Enhanced string `json:"enhanced,omitempty"`
}

// A Result is what an attempt means for the message.
type Result string

// The results. Permanent is an answer 5yz.
const (
	Accepted  Result = "accepted"
	Temporary Result = "temporary"
	Permanent Result = "permanent"
)

// String says it for people.
func (a Attempt) String() string {
	if a.Result == Accepted {
		return a.Relay + " took it"
	}
	text := map[string]string{
		"reply": "refused it", "timeout": "did not answer in time", "closed": "closed the connection", "name": "has no address: check the name and DNS",
		"connect": "cannot be reached: check host, port and firewall", "proxy": "cannot be reached through the proxy", "configuration": "cannot be used: check ca_file and proxy",
		"certificate": "has a certificate that does not hold: check host and ca_file", "tls": "failed at TLS", "no_starttls": "offers no STARTTLS: check port and tls",
		"no_login": "offers neither AUTH PLAIN nor LOGIN", "login_missing": "needs a login that has not been fetched yet", "login_refused": "refused the login: renew the secret",
		"protocol": "does not speak SMTP",
	}[a.Cause]
	if a.Code != 0 {
		text += " (" + strings.TrimSpace(strconv.Itoa(a.Code)+" "+a.Enhanced) + ")"
	}
	return fmt.Sprintf("%s %s, at the stage %s", a.Relay, text, a.Stage)
}

// A relay is a Relay with what is known of it. It is not changed once it is in
// use, but for refused.
type relay struct {
	Relay
	login   *login
	refused clock.Reading // until when the login is not tried again; guarded by the outbox
}

type login struct {
	username string
	password secret.Secret
}

// Deadlines of each stage. RFC 5321 §4.5.3.2 asks for more patience; here the
// next relay, or the next attempt, is better than to wait.
const (
	stageTime = 30 * time.Second
	bodyTime  = 3 * time.Minute // some relays look for viruses before they answer
	quitTime  = 2 * time.Second
	mostReply = 256 << 10 // bytes of all replies of one connection, TLS included
)

// A session is a connection to a relay, after its greeting, TLS and login.
type session struct {
	conn net.Conn
	c    *smtp.Client
	stop func() bool
}

// deliver hands m to a relay. The session is left open only if it was accepted.
func (o *Outbox) deliver(ctx context.Context, r *relay, m *Message) (*session, Attempt) {
	s, a := o.open(ctx, r)
	if s == nil {
		return nil, a
	}
	for _, step := range []struct {
		stage string
		do    func() error
	}{
		{"sender", func() error { return s.c.Mail("<" + m.From + ">") }},
		{"recipient", func() error { return s.c.Rcpt("<" + m.Recipient + ">") }},
	} {
		if !s.do(&a, step.stage, stageTime, step.do) {
			return nil, a
		}
	}
	var w io.WriteCloser
	if !s.do(&a, "data", stageTime, func() (err error) { w, err = s.c.Data(); return err }) {
		return nil, a
	}
	o.store.step("in body")
	if !s.do(&a, "body", bodyTime, func() error {
		if _, err := w.Write(m.Data); err != nil {
			return err
		}
		return w.Close() // it waits for the reply
	}) {
		return nil, a
	}
	o.store.step("accepted")
	a.Stage = "done"
	return s, a
}

// open goes as far as the login. The attempt says accepted if it got there.
func (o *Outbox) open(ctx context.Context, r *relay) (*session, Attempt) {
	now := o.clock.Now()
	a := Attempt{At: now.Wall.UTC().Truncate(time.Second), Relay: r.addr(), Result: Temporary, Stage: "connect"}
	o.mu.Lock()
	waits := !r.refused.IsZero() && r.refused.Until(now) > 0
	o.mu.Unlock()
	switch {
	case r.Login && r.login == nil:
		a.Stage, a.Cause = "login", "login_missing"
		return nil, a
	case waits: // each try with a wrong password brings the account nearer to its lock
		a.Stage, a.Cause, a.Result = "login", "login_refused", Permanent
		return nil, a
	}
	config, err := r.Config.TLS()
	if err != nil {
		a.Cause = "configuration"
		return nil, a
	}
	config.ServerName = r.Host
	dialled, cancel := context.WithTimeout(ctx, stageTime)
	conn, err := o.dial(dialled, r.Relay)
	cancel()
	if err != nil {
		a.fail(err)
		return nil, a
	}
	conn = &bounded{Conn: conn, left: mostReply}
	s := &session{conn: conn, stop: context.AfterFunc(ctx, func() { _ = conn.Close() })}
	if !s.greet(&a, r, config, o.name(conn)) {
		return nil, a
	}
	if r.login != nil && !s.do(&a, "login", stageTime, func() error { return s.authenticate(r) }) {
		if a.Code/100 == 5 {
			a.Cause, a.Result = "login_refused", Permanent
			o.mu.Lock()
			r.refused = now.Add(refusedWait)
			o.mu.Unlock()
		}
		return nil, a
	}
	a.Result = Accepted
	return s, a
}

// greet takes the relay's greeting, and gets TLS where it is wanted.
func (s *session) greet(a *Attempt, r *relay, config *tls.Config, name string) bool {
	raw := s.conn
	if r.implicit() {
		t := tls.Client(raw, config)
		if !s.do(a, "tls", stageTime, t.Handshake) {
			return false
		}
		s.conn = t
	}
	if !s.do(a, "greeting", stageTime, func() (err error) {
		if s.c, err = smtp.NewClient(s.conn, r.Host); err != nil {
			return err
		}
		s.c.SkipSMTPUTF8(true) // addresses are ASCII
		return s.c.Hello(name)
	}) {
		return false
	}
	if r.implicit() || r.TLS == "none" {
		return true
	}
	return s.do(a, "tls", stageTime, func() error {
		if ok, _ := s.c.Extension("STARTTLS"); !ok {
			return errNoStartTLS
		}
		return s.c.StartTLS(config)
	})
}

var (
	errNoStartTLS = errors.New("no STARTTLS")
	errNoLogin    = errors.New("no AUTH that is known")
	errTooMuch    = errors.New("the relay says too much")
)

func (s *session) authenticate(r *relay) error {
	_, offered := s.c.Extension("AUTH")
	mechanisms := strings.Fields(strings.ToUpper(offered))
	return r.login.password.Use(func(b []byte) error {
		// The library's strings cannot be wiped; they go with the connection.
		switch loose := r.TLS == "none"; { // on loopback
		case slices.Contains(mechanisms, "PLAIN"):
			return s.c.Auth(smtp.PlainAuth("", r.login.username, string(b), r.Host, loose))
		case slices.Contains(mechanisms, "LOGIN"):
			return s.c.Auth(smtp.LoginAuth(r.login.username, string(b), r.Host, loose))
		}
		return errNoLogin
	})
}

// name is what to say in EHLO (RFC 5321 §4.1.4).
func (o *Outbox) name(conn net.Conn) string {
	if strings.Contains(o.helo, ".") && validHost(o.helo) {
		return o.helo
	}
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	ip := net.ParseIP(host)
	switch {
	case err != nil || ip == nil:
		return "localhost"
	case ip.To4() == nil:
		return "[IPv6:" + ip.String() + "]"
	}
	return "[" + ip.String() + "]"
}

// do runs one stage within its time. If it fails, the connection is closed and
// the attempt says why.
func (s *session) do(a *Attempt, stage string, limit time.Duration, f func() error) bool {
	a.Stage = stage
	err := s.conn.SetDeadline(time.Now().Add(limit))
	if err == nil {
		err = f()
	}
	if err == nil {
		return true
	}
	a.fail(err)
	s.stop()
	_ = s.conn.Close()
	return false
}

// quit ends the session politely, for a short while.
func (s *session) quit() {
	_ = s.conn.SetDeadline(time.Now().Add(quitTime))
	_ = s.c.Quit() // nothing depends on it
	s.stop()
	_ = s.conn.Close()
}

// fail classifies an error, once.
func (a *Attempt) fail(err error) {
	a.Result = Temporary
	var reply *textproto.Error
	var dns *net.DNSError
	var timeout net.Error
	var certificate *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	var authority x509.UnknownAuthorityError
	switch {
	case errors.As(err, &reply):
		a.reply(reply)
	case errors.Is(err, errNoStartTLS):
		a.Cause = "no_starttls"
	case errors.Is(err, errNoLogin):
		a.Cause = "no_login"
	case errors.Is(err, outbound.ErrProxy):
		a.Cause = "proxy"
	case errors.As(err, &certificate), errors.As(err, &authority):
		a.Cause = "certificate"
	case errors.As(err, &dns):
		a.Cause = "name"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		a.Cause = "timeout"
	case a.Stage == "connect":
		a.Cause = "connect"
	case errors.As(err, &header), a.Stage == "tls":
		a.Cause = "tls"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.As(err, new(*net.OpError)), errors.Is(err, io.ErrClosedPipe):
		a.Cause = "closed"
	default:
		a.Cause = "protocol"
	}
}

// reply keeps the codes of a refusal, and none of its words.
func (a *Attempt) reply(e *textproto.Error) {
	if e.Code < 400 || e.Code > 599 {
		a.Cause = "protocol"
		return
	}
	a.Cause, a.Code = "reply", e.Code
	enhanced := regexp.MustCompile(`^[45]\.\d{1,3}\.\d{1,3}\b`).FindString(e.Msg)
	if strings.HasPrefix(enhanced, strconv.Itoa(e.Code/100)) {
		a.Enhanced = enhanced
	}
	if e.Code >= 500 {
		a.Result = Permanent
	}
}

// bounded is a connection that gives up on a relay that never stops talking.
type bounded struct {
	net.Conn
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooMuch
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
