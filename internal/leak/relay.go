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

	"credentialbroker/internal/outbound"
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

// Address is host:port.
func (r Relay) Address() string {
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
	Relay  string    `json:"relay"` // host:port; empty: it came to none
	Result Result    `json:"result"`
	// Stage is how far it came: encrypt, connect, greeting, tls, login, sender,
	// recipient, data, body or done.
	Stage string `json:"stage"`
	// Cause is reply, timeout, closed, name, connect, proxy, configuration,
	// certificate, tls, no_starttls, no_login, login_missing, login_busy,
	// login_refused, protocol or encryption; empty if it was accepted.
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
	if a.Cause == "encryption" {
		return "it cannot be encrypted, and does not leave in the clear: check the recipient's key under leak.encrypt"
	}
	text := map[string]string{
		"reply": "refused it", "timeout": "did not answer in time", "closed": "closed the connection", "name": "has no address: check the name and DNS",
		"connect": "cannot be reached: check host, port and firewall", "proxy": "cannot be reached through the proxy", "configuration": "cannot be used: check ca_file and proxy",
		"certificate": "has a certificate that does not hold: check host and ca_file", "tls": "failed at TLS", "no_starttls": "offers no STARTTLS: check port and tls",
		"no_login": "offers neither AUTH PLAIN nor LOGIN", "login_missing": "needs a login that has not been fetched yet", "login_busy": "has yet to answer to its login in another attempt", "login_refused": "refused the login: renew the secret",
		"protocol": "does not speak SMTP",
	}[a.Cause]
	if a.Code != 0 {
		text += " (" + strings.TrimSpace(strconv.Itoa(a.Code)+" "+a.Enhanced) + ")"
	}
	return fmt.Sprintf("%s %s, at the stage %s", a.Relay, text, a.Stage)
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
