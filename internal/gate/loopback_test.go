package gate

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/access"
)

func TestLoopbackAddress(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1:8085":           "",
		"127.1.2.3:1024":           "",
		"[::1]:8085":               "",
		"0.0.0.0:8085":             "not an address of this machine alone",
		"[::]:8085":                "not an address of this machine alone",
		"192.0.2.1:8085":           "not an address of this machine alone",
		"[::ffff:127.0.0.1]:8085":  "not an address of this machine alone",
		"[::1%lo]:8085":            "not an address of this machine alone",
		"[fe80::1%lo]:8085":        "not an address of this machine alone",
		"127.0.0.1:80":             "from 1024",
		"127.0.0.1:0":              "from 1024",
		"127.0.0.1":                "no address with a port",
		"localhost:8085":           "no address with a port",
		":8085":                    "no address with a port",
		"127.0.0.1:70000":          "no address with a port",
		"127.0.0.1:8085/v1":        "no address with a port",
		"http://127.0.0.1:8085":    "no address with a port",
		"127.0.0.1:8085,[::1]:808": "no address with a port",
	} {
		_, err := LoopbackAddress(addr)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", addr, err, want)
		}
	}
}

func sockDiag(t *testing.T) *access.SockDiag {
	t.Helper()
	d, err := access.OpenSockDiag()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// free is a port of this moment.
func free(t *testing.T, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestListenLoopback(t *testing.T) {
	d := sockDiag(t)
	for _, host := range []string{"127.0.0.1", "::1"} {
		l, err := ListenLoopback(t.Context(), free(t, host), "vdab", d)
		if err != nil {
			t.Fatal(err)
		}
		p := New(Limits{}, slog.New(slog.DiscardHandler))
		closing, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer closing.Close()
		if err := closing.(*net.TCPConn).CloseWrite(); err != nil { // it is passed over
			t.Fatal(err)
		}
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c, err := p.Gate(l).Accept()
		if err != nil {
			t.Fatal(err)
		}
		if c.RemoteAddr().String() != client.LocalAddr().String() {
			t.Fatalf("%s: a connection that is closing was let in", host)
		}
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		who := c.(*Conn).Caller()
		if who.UID != uint32(os.Getuid()) || who.Client != "vdab" || who.Place != "loopback "+l.Addr().String() || !who.Alive() {
			t.Errorf("%s: %+v", host, who)
		}
		_ = client.Close()
		if who.Alive() {
			t.Errorf("%s: it is gone", host)
		}
		_, _ = c.Close(), l.Close()
		if p.Traffic().Connections != 0 {
			t.Errorf("%s: %+v", host, p.Traffic())
		}
	}
}

// Whoever has the port first is named, since callers would take it for the
// broker.
func TestTakenPort(t *testing.T) {
	d := sockDiag(t)
	for _, addr := range []string{"127.0.0.1:0", "0.0.0.0:0"} {
		other, err := net.Listen("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		port := strconv.Itoa(other.Addr().(*net.TCPAddr).Port)
		_, err = ListenLoopback(t.Context(), "127.0.0.1:"+port, "vdab", d)
		if err == nil || !strings.Contains(err.Error(), "port "+port+" is taken by user ") || !strings.Contains(err.Error(), "pid "+strconv.Itoa(os.Getpid())) {
			t.Errorf("%s: %v", addr, err)
		}
		_ = other.Close()
	}
}

// What the kernel cannot tell about is not let in.
func TestConnectionsOfNobody(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := New(Limits{}, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() {
		_, err := p.Gate(l).Accept()
		done <- err
	}()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d, %v", n, err)
	}
	_ = l.Close()
	if err := <-done; err == nil {
		t.Error("a plain TCP connection was let in")
	}
	if s := p.Traffic(); s.Unidentified != 1 || s.Connections != 0 {
		t.Errorf("%+v", s)
	}
}

func TestUnknowableListener(t *testing.T) {
	d := sockDiag(t)
	_ = d.Close()
	if l, err := ListenLoopback(t.Context(), free(t, "127.0.0.1"), "vdab", d); err == nil {
		_ = l.Close()
		t.Error("nobody would know who connects")
	} else if !strings.Contains(err.Error(), "does not say who listens") {
		t.Error(err)
	}
}
