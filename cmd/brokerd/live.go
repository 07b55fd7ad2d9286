package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io/fs"
	"net"
	"net/smtp"
	"os"
	"strconv"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/configs"
)

// liveSocket looks at a socket as a consumer finds it.
func (s *server) liveSocket(path, who string) client.Finding {
	f := client.Finding{Check: "socket", Target: path, Level: client.Error}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		f.Detail = err.Error()
	case info.Mode().Type() != fs.ModeSocket:
		f.Detail = "this is no socket"
	case info.Mode().Perm() != 0o666:
		f.Level, f.Detail = client.Warning, fmt.Sprintf("mode %o instead of 666: some consumers cannot connect", info.Mode().Perm())
	default:
		f.Level, f.Detail = client.OK, "anyone may connect; "+who
	}
	return f
}

const relayTimeout = 15 * time.Second

// liveRelay greets the mail relay and sees whether it offers TLS. It sends no
// mail and shows no password.
func liveRelay(ctx context.Context, c configs.SMTP) client.Finding {
	port := c.Port
	if port == 0 {
		port = 587
	}
	addr := net.JoinHostPort(c.Host, strconv.Itoa(int(port)))
	f := client.Finding{Check: "mail", Target: addr, Level: client.Error}
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	t, err := c.TLS()
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	t.ServerName = c.Host
	conn, err := c.Dial(ctx, addr)
	if err != nil {
		f.Detail = "cannot connect: " + err.Error()
		return f
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(relayTimeout))
	if port == 465 {
		conn = tls.Client(conn, t)
	}
	m, err := smtp.NewClient(conn, c.Host)
	if err != nil {
		f.Detail = "it does not greet as a mail relay: " + err.Error()
		return f
	}
	defer m.Close()
	if port != 465 {
		if ok, _ := m.Extension("STARTTLS"); !ok {
			f.Detail = "the relay offers no STARTTLS: a report would travel in the clear"
			return f
		}
		if err := m.StartTLS(t); err != nil {
			f.Detail = "STARTTLS: " + err.Error()
			return f
		}
	}
	f.Level, f.Detail = client.OK, "greets, with TLS"
	return f
}
