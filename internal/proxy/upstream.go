package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/outbound"
)

// Rules of this file:
//   - a certificate says who serves https. A port of this machine is whose came
//     first, so over http the kernel says it;
//   - it is asked before the connection and after: a listener that was the right
//     one both times, and the same, accepted what came in between.

// upstreamProblems says what is wrong with how c reaches its API.
func (c Config) upstreamProblems() error {
	u, err := parseUpstream(c.Upstream)
	switch {
	case err != nil:
		return fmt.Errorf("upstream: %w", err)
	case u.Scheme == "http" && c.UpstreamUser == "":
		return errors.New("upstream: over http, whoever has the port gets the token: add upstream_user, who runs the API, as in upstream_user: tomcat; or use https")
	case u.Scheme == "http" && c.Proxy != "":
		return errors.New("proxy: an API on this machine is not behind one")
	case u.Scheme == "https" && c.UpstreamUser != "":
		return errors.New("upstream_user: it is for http on loopback alone: over https the certificate says who serves")
	}
	return nil
}

// transport keeps connections, and speaks HTTP/2 where the API does.
func (rt *route) transport() (*http.Transport, error) {
	t, err := transport(rt.Config.Config)
	if err == nil && rt.base.Scheme == "http" {
		t.DialContext = rt.dialUser
	}
	return t, err
}

// dialUser connects to what UpstreamUser listens on.
func (rt *route) dialUser(ctx context.Context, network, addr string) (net.Conn, error) {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	uid, err := access.SystemNames().User(rt.UpstreamUser)
	if err != nil {
		return nil, foreign("upstream_user: " + err.Error())
	}
	diag, err := rt.server.sockDiag()
	if err != nil {
		return nil, foreign(err.Error())
	}
	before, unknown := diag.Listening(at)
	if unknown == nil && before.UID != uid {
		return nil, foreign(fmt.Sprintf("uid %d listens on %s, which is not upstream_user (%s)", before.UID, addr, rt.UpstreamUser))
	}
	d := net.Dialer{Timeout: outbound.DialTimeout}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	after, err := diag.Listening(at)
	if err = errors.Join(unknown, err); err != nil || after != before {
		_ = conn.Close()
		return nil, foreign("the kernel does not say for certain who listens on " + addr)
	}
	return conn, nil
}

func foreign(detail string) *broker.Error {
	return &broker.Error{Code: client.APIUnavailable, Detail: detail + ": nothing was sent there"}
}

// sockDiag is opened by the first who needs it, and closed by Run.
func (s *Server) sockDiag() (*access.SockDiag, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.diag == nil {
		diag, err := access.OpenSockDiag()
		if err != nil {
			return nil, err
		}
		s.diag = diag
	}
	return s.diag, nil
}
