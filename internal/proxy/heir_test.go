package proxy

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// lend opens a connection, gives it to the test by its third descriptor, and
// exits when the test says so.
func lend(socket string) int {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return 1
	}
	f, err := c.(*net.UnixConn).File()
	if err != nil || unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(f.Fd())), nil, 0) != nil {
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// lent is a connection that another process has opened, and its exit.
func (w *world) lent() (c net.Conn, exit func()) {
	w.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "pair")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childTask+"=lend "+w.socket)
	cmd.ExtraFiles = []*os.File{theirs}
	leave, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	_ = theirs.Close()
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	_ = unix.Close(pair[0])
	if err != nil {
		w.t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		w.t.Fatal(len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		w.t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "lent")
	if c, err = net.FileConn(f); err != nil {
		w.t.Fatal(err)
	}
	_ = f.Close()
	w.t.Cleanup(func() { _ = c.Close() })
	return c, func() {
		_ = leave.Close()
		_ = cmd.Wait()
	}
}

// Who has a connection after its opener's exit sends nothing to the API, not
// even the end of a body, and hears nothing.
func TestHeirSendsNothing(t *testing.T) {
	for name, speaks := range protocols {
		for _, more := range []string{"6\r\nsecond\r\n", "0\r\n\r\n"} {
			began, rest := make(chan struct{}), make(chan error)
			w := newWorld(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				first := make([]byte, 5)
				_, _ = io.ReadFull(r.Body, first)
				close(began)
				_, err := io.ReadFull(r.Body, first[:1])
				rest <- err
			}), nil, speaks...)
			c, exit := w.lent()
			if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"); err != nil {
				t.Fatal(err)
			}
			<-began
			exit()
			if _, err := io.WriteString(c, more); err != nil {
				t.Fatal(err)
			}
			if err := <-rest; err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%s, %q: the API took it: %v", name, more, err)
				continue
			}
			if answer, _ := io.ReadAll(c); len(answer) > 0 {
				t.Errorf("%s, %q: the heir heard %q", name, more, answer)
			}
		}
	}
}

// An answer may have no body.
func TestHeirHearsNoHeader(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"no content": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"no length":  func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "0") },
		"none":       func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, // the broker's own
	} {
		began, exited := make(chan struct{}), make(chan struct{})
		w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(began)
			<-exited
			answer(w, r)
		}), nil)
		c, exit := w.lent()
		if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		<-began
		exit()
		close(exited)
		if heard, _ := io.ReadAll(c); len(heard) > 0 {
			t.Errorf("%s: the heir heard %q", name, heard)
		}
	}
}
