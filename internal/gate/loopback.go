package gate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"credentialbroker/internal/access"
)

// A Loopback is a TCP listener for the users of this machine, each of whom the
// kernel names. It is weaker than a Unix socket: docs/applications.md says how.
type Loopback struct {
	*net.TCPListener
	diag   *access.SockDiag
	place  string
	client string
}

// A Port configures a Loopback: a TCP port, for users of this machine that the
// kernel names; only allow entries without unit, user_unit and executable count
// there. docs/applications.md says in what it is weaker than the socket.
type Port struct {
	// Address is 127.0.0.1 or [::1] with a port.
	Address string `yaml:"address" check:"required" hint:"as in address: 127.0.0.1:8085"`
	// InsecureLoopback is true, and says that whoever wrote it knows that.
	InsecureLoopback bool `yaml:"insecure_loopback"`
}

// LoopbackAddress reads an address to listen on: 127.0.0.1:8085 or [::1]:8085.
// Whatever others could reach is none.
func LoopbackAddress(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	switch {
	case err != nil:
		return a, fmt.Errorf("%q is no address with a port: write numbers, as in 127.0.0.1:8085 or [::1]:8085", s)
	case !a.Addr().IsLoopback() || a.Addr().Is4In6() || a.Addr().Zone() != "":
		return a, fmt.Errorf("%s is not an address of this machine alone: write 127.0.0.1 or [::1]", a.Addr())
	case a.Port() < 1024:
		return a, fmt.Errorf("port %d is not one that the broker can take: write one from 1024", a.Port())
	}
	return a, nil
}

// ListenLoopback listens on addr. client is the only one that callers find
// there; empty: all. diag stays open for as long as there are connections.
func ListenLoopback(ctx context.Context, addr string, client string, diag *access.SockDiag) (*Loopback, error) {
	at, err := LoopbackAddress(addr)
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // its subflows have sockets that nobody made
	network := "tcp4"
	if at.Addr().Is6() {
		network = "tcp6"
	}
	l, err := lc.Listen(ctx, network, at.String())
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		who := diag.Listener(at)
		if who == "" {
			who = "a connection, or a program of another kind"
		}
		return nil, fmt.Errorf("port %d is taken by %s: whoever listens there can pass for the broker; stop that program, or choose another port", at.Port(), who)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", at, err)
	}
	tcp, ok := l.(*net.TCPListener)
	if err = diag.Knows(at); err != nil || !ok {
		_ = l.Close()
		return nil, err
	}
	return &Loopback{TCPListener: tcp, diag: diag, place: "loopback " + at.String(), client: client}, nil
}

// Accept gives connections whose peer is known already: what happens to its
// socket later on gives the connection to nobody else.
func (l *Loopback) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP()
	if err != nil {
		return nil, err //nolint:wrapcheck // net/http looks at it
	}
	peer, err := l.diag.Peer(c)
	return &local{TCPConn: c, listener: l, peer: peer, err: err}, nil
}

// local is a connection by a Loopback.
type local struct {
	*net.TCPConn
	listener *Loopback
	peer     access.Peer
	err      error // why there is no peer
}

func (c *local) caller() *access.Caller {
	return c.listener.diag.Caller(c.peer, c.listener.place, c.listener.client)
}
