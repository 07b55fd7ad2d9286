package leak

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/wneessen/go-mail/smtp"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
)

// A relay is a Relay with what is known of it.
type relay struct {
	Relay
	login *login
	// proving holds whoever tries a login that has not worked yet: several
	// tries at once of a wrong password would lock the account.
	proving chan struct{}

	// Guarded by the outbox.
	proved  bool
	refused clock.Reading // until when the login is not tried again
}

func newRelay(r Relay, l *login) *relay {
	return &relay{Relay: r, login: l, proving: make(chan struct{}, 1)}
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

// deliver hands m to a relay, as data. The session is left open only if it was accepted.
func (o *Outbox) deliver(ctx context.Context, r *relay, m *Message, data []byte) (*session, Attempt) {
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
		if _, err := w.Write(data); err != nil {
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
	a := Attempt{At: now.Wall.UTC().Truncate(time.Second), Relay: r.Address(), Result: Temporary, Stage: "connect"}
	release, ok := o.mayLogin(ctx, r, &a)
	if !ok {
		return nil, a
	}
	defer release()
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
	if r.login != nil {
		ok := s.do(&a, "login", stageTime, func() error { return s.authenticate(r) })
		o.mu.Lock()
		if r.proved = ok; a.Code/100 == 5 {
			a.Cause, a.Result = "login_refused", Permanent
			r.refused = now.Add(refusedWait)
		}
		o.mu.Unlock()
		if !ok {
			return nil, a
		}
	}
	a.Result = Accepted
	return s, a
}

// mayLogin says whether r may be used now: with a login that was refused, not
// for an hour, since each try brings the account nearer to its lock. Until a
// login has worked, one attempt at a time uses it; the caller releases it.
func (o *Outbox) mayLogin(ctx context.Context, r *relay, a *Attempt) (release func(), ok bool) {
	release = func() {}
	if !r.Login && r.login == nil {
		return release, true
	}
	if a.Stage = "login"; r.login == nil {
		a.Cause = "login_missing"
		return nil, false
	}
	state := func() (proved, refused bool) {
		now := o.clock.Now()
		o.mu.Lock()
		defer o.mu.Unlock()
		return r.proved, !r.refused.IsZero() && r.refused.Until(now) > 0
	}
	proved, refused := state()
	if !proved && !refused {
		waited, cancel := context.WithTimeout(ctx, stageTime)
		defer cancel()
		select {
		case r.proving <- struct{}{}:
			release = func() { <-r.proving }
		case <-waited.Done():
			a.Cause = "login_busy"
			return nil, false
		}
		if proved, refused = state(); proved {
			release() // the others need not wait for this one
			release = func() {}
		}
	}
	if refused {
		release()
		a.Cause, a.Result = "login_refused", Permanent
		return nil, false
	}
	a.Stage = "connect"
	return release, true
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
