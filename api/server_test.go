package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
)

const get = "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: broker\r\n\r\n"

// childTask is what a copy of the test binary does instead of tests.
const childTask = "API_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childTask) {
	case "":
		os.Exit(m.Run())
	case "pass":
		os.Exit(childPass())
	case "streams":
		os.Exit(childStreams())
	}
	os.Exit(3)
}

// childPass connects to a socket, gives the connection to its parent (file 3),
// and exits when its standard input ends.
func childPass() int {
	c, err := net.Dial("unix", os.Getenv("API_TEST_SOCKET"))
	if err != nil {
		return 1
	}
	// One request, so that the broker has seen this process.
	_, _ = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: broker\r\n\r\n")
	if a, err := readAnswer(c); err != nil || a.status != 200 {
		return 1
	}
	raw, err := c.(*net.UnixConn).File()
	if err != nil {
		return 1
	}
	if unix.Sendmsg(3, []byte{1}, unix.UnixRights(int(raw.Fd())), nil, 0) != nil {
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// A descriptor that is passed on keeps its connector's identity: while that
// lives it serves, and once it has exited nothing comes any more.
func TestPassedDescriptor(t *testing.T) {
	h := newHouse(t, nil)
	for _, path := range []string{"/v1/clients/vdab/token", "/v1/clients/vdab/api-key", "/v1/clients/other/token", "/v1/whoami", "/nonsense"} {
		passDescriptor(t, h, path)
	}
}

func passDescriptor(t *testing.T, h *house, path string) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childTask+"=pass", "API_TEST_SOCKET="+h.consumer)
	cmd.ExtraFiles = []*os.File{theirs}
	hold, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	buf, oob := make([]byte, 1), make([]byte, 64)
	_, n, _, _, err := unix.Recvmsg(int(ours.Fd()), buf, oob, 0)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fds[0]), "passed")
	c, err := net.FileConn(file)
	_ = file.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	whoami := "GET /v1/whoami HTTP/1.1\r\nHost: broker\r\n\r\n"
	if _, err := io.WriteString(c, whoami); err != nil {
		t.Fatal(err)
	}
	if a, err := readAnswer(c); err != nil || !strings.Contains(a.body, "pid "+itoa(cmd.Process.Pid)+",") {
		t.Errorf("while the connector lives: %+v, %v", a, err)
	}
	_ = hold.Close()
	_ = cmd.Wait()
	if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: broker\r\n\r\n"); err == nil {
		if a, err := readAnswer(c); err == nil {
			t.Errorf("%s after the connector's exit: %+v", path, a)
		}
	}
}

// as runs f on a thread that has another uid and one more group. It needs root;
// otherwise f runs as we are, and as says so.
func as(t *testing.T, uid, group int, f func()) bool {
	if os.Getuid() != 0 {
		t.Logf("not root: uid %d is not tried", uid)
		return false
	}
	done := make(chan error, 2)
	go func() {
		defer func() { done <- nil }() // also when f gives up
		runtime.LockOSThread()         // and never unlocked: the thread ends with the goroutine
		groups := [1]uint32{uint32(group)}
		_, _, e1 := unix.RawSyscall(unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&groups[0])), 0)
		_, _, e2 := unix.RawSyscall(unix.SYS_SETRESGID, 1<<16, 1<<16, 1<<16)
		_, _, e3 := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		if e1|e2|e3 != 0 {
			done <- errors.New("the thread cannot change its user")
			return
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return true
}

func TestOversizedAndMalformed(t *testing.T) {
	h := newHouse(t, nil)
	for request, status := range map[string]int{
		"GET /v1/clients/vdab/token HTTP/1.1\r\nHost: b\r\nX: " + strings.Repeat("x", 32<<10) + "\r\n\r\n": 431,
		"GET /" + strings.Repeat("x", 32<<10) + " HTTP/1.1\r\nHost: b\r\n\r\n":                             431,
		"GET /v1/clients/vdab/token HTTP/1.1\r\n\r\n":                                                      400,
		"nonsense\r\n\r\n": 400,
		"GET /v1/clients/vdab/token HTTP/3.0\r\n\r\n":                                                                           505,
		"POST /v1/clients/vdab/reject HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: gzip\r\n\r\n":                                   501,
		"OPTIONS * HTTP/1.1\r\nHost: b\r\n\r\n":                                                                                 404,
		"POST /v1/clients/vdab/reject HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: 9999999\r\n\r\n": 400,
	} {
		a, err := raw(t, h.consumer, request)
		if err != nil || a.status != status {
			t.Errorf("%.60q: %d, %v, want %d", request, a.status, err, status)
		}
	}
	chunks := "POST /v1/clients/vdab/reject HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" +
		strings.Repeat("1000\r\n"+strings.Repeat(" ", 0x1000)+"\r\n", 17) + "0\r\n\r\n"
	if a, err := raw(t, h.consumer, chunks); err != nil || a.status != 400 || !strings.Contains(a.body, "64 KiB") {
		t.Errorf("chunks: %+v, %v", a, err)
	}
	if a := ask(t, h.http, "GET", "/v1/clients/vdab/token", ""); a.status != 200 {
		t.Errorf("afterwards: %+v", a)
	}
}

// A request that never ends is ended, and costs nobody else.
func TestSlowRequests(t *testing.T) {
	h := newHouse(t, func(s *Server) { s.times.Header, s.times.body = 50*time.Millisecond, 50*time.Millisecond })
	for name, request := range map[string]string{
		"header": "GET /v1/clients/vdab/token HTTP/1.1\r\nHost: b\r\n",
		"body":   "POST /v1/clients/vdab/reject HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{",
	} {
		c := dial(t, h.consumer)
		defer c.Close()
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		a, err := readAnswer(c)
		if name == "body" && (err != nil || a.status != 400 || !strings.Contains(a.body, "slowly")) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
		if name == "header" && err == nil && a.status < 400 {
			t.Errorf("%s: %+v", name, a)
		}
		if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection stays open", name)
		}
	}
}

// The time for a body is not the time for the answer.
func TestSlowAnswerToABody(t *testing.T) {
	h := newHouse(t, func(s *Server) { s.times.body = 50 * time.Millisecond })
	h.inner.Rotate = func(ctx context.Context, _ string, _ client.Rotation) (client.Outcome, error) {
		select {
		case <-ctx.Done():
			return client.Outcome{Reason: "cut short"}, nil
		case <-time.After(200 * time.Millisecond):
			return client.Outcome{Reason: "done"}, nil
		}
	}
	a := client.Admin{Socket: h.admin}
	if out, err := a.Rotate(t.Context(), "vdab", client.Rotation{}); err != nil || out.Reason != "done" {
		t.Errorf("%+v, %v", out, err)
	}
}

// What is in flight is answered, then everything ends; what is idle does not
// hold it up.
func TestShutdown(t *testing.T) {
	gate := make(chan struct{})
	h := newHouse(t, behind(gate))
	silent := dial(t, h.consumer)
	defer silent.Close()
	inFlight := dial(t, h.consumer)
	defer inFlight.Close()
	if _, err := io.WriteString(inFlight, get); err != nil {
		t.Fatal(err)
	}
	until(t, "the request is in flight", func() bool { return h.server.pools.consumer.Busy() == 1 })
	stopped := make(chan error, 1)
	go func() { stopped <- h.stop() }()
	until(t, "nobody else gets in", func() bool { c, err := connect(h.consumer); return err != nil || c.Close() != nil })
	until(t, "the idle connection is closed", func() bool { return h.server.Traffic().Connections == 1 })
	close(gate)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if a, err := readAnswer(inFlight); err != nil || a.status != 200 {
		t.Errorf("in flight: %+v, %v", a, err)
	}
	if _, err := os.Lstat(h.consumer); !os.IsNotExist(err) {
		t.Errorf("the socket stays: %v", err)
	}
	if !isClosed(silent) {
		t.Error("the idle connection stays open")
	}
}

// What hangs is cut off after the drain time.
func TestShutdownOfWhatHangs(t *testing.T) {
	h := newHouse(t, func(s *Server) { s.times.Drain = 50 * time.Millisecond; behind(nil)(s) })
	c := dial(t, h.consumer)
	defer c.Close()
	if _, err := io.WriteString(c, get); err != nil {
		t.Fatal(err)
	}
	until(t, "the request is in flight", func() bool { return h.server.pools.consumer.Busy() == 1 })
	if err := h.stop(); err != nil {
		t.Error(err)
	}
	if a, err := readAnswer(c); err == nil {
		t.Errorf("%+v", a)
	}
}

// gated stands for a broker that waits for an issuer.
type gated struct {
	*broker.Broker
	gate chan struct{} // nil: for ever
}

func (g gated) Token(ctx context.Context, c *access.Caller, r broker.Request) (*broker.Grant, error) {
	select {
	case <-g.gate:
		return g.Broker.Token(ctx, c, r)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func behind(gate chan struct{}) func(*Server) {
	return func(s *Server) { s.cfg.Broker = gated{s.cfg.Broker.(*broker.Broker), gate} }
}

// exploding stands for a broker with a bug.
type exploding struct{ *broker.Broker }

func (exploding) Token(context.Context, *access.Caller, broker.Request) (*broker.Grant, error) {
	panic("value: " + theSecret)
}

func TestPanic(t *testing.T) {
	h := newHouse(t, func(s *Server) { s.cfg.Broker = exploding{s.cfg.Broker.(*broker.Broker)} })
	if a, err := raw(t, h.consumer, get); err == nil {
		t.Errorf("answered: %+v", a)
	}
	if a := ask(t, h.http, "GET", "/healthz", ""); a.status != 200 {
		t.Errorf("afterwards: %+v", a)
	}
	log := h.log.String()
	if !strings.Contains(log, "please report") || !strings.Contains(log, "exploding") || strings.Contains(log, theSecret) {
		t.Errorf("log: %s", log)
	}
}

// failing stands for an error that is no *broker.Error.
type failing struct{ *broker.Broker }

func (failing) Token(context.Context, *access.Caller, broker.Request) (*broker.Grant, error) {
	return nil, errors.New("some inner detail")
}

func TestInternalErrorKeepsItsText(t *testing.T) {
	h := newHouse(t, func(s *Server) { s.cfg.Broker = failing{s.cfg.Broker.(*broker.Broker)} })
	a := ask(t, h.http, "GET", "/v1/clients/vdab/token", "")
	if a.status != 500 || strings.Contains(a.body, "inner") || !strings.Contains(h.log.String(), "inner") {
		t.Errorf("%d %s; log: %s", a.status, a.body, h.log.String())
	}
}

// Connections that come and go leave no descriptor behind.
func TestNoDescriptorLeaks(t *testing.T) {
	h := newHouse(t, nil)
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if _, err := raw(t, h.consumer, get); err != nil {
		t.Fatal(err)
	}
	until(t, "it is closed", func() bool { return h.server.Traffic().Connections == 0 })
	before := open()
	for range 200 {
		if _, err := raw(t, h.consumer, "GET /healthz HTTP/1.1\r\nHost: b\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "all are closed", func() bool { return h.server.Traffic().Connections == 0 && open() <= before+2 })
}

func dial(t *testing.T, socket string) net.Conn {
	t.Helper()
	c, err := connect(socket)
	if err != nil {
		t.Error(err)
		runtime.Goexit()
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func wantAnswer(t *testing.T, c net.Conn, status int) {
	t.Helper()
	if _, err := io.WriteString(c, get); err != nil {
		t.Errorf("ask: %v", err)
		return
	}
	if a, err := readAnswer(c); err != nil || a.status != status {
		t.Errorf("%+v, %v, want %d", a, err, status)
	}
}

// isClosed says whether the other end has closed.
func isClosed(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	defer func() { _ = c.SetReadDeadline(time.Now().Add(20 * time.Second)) }()
	_, err := bufio.NewReader(c).ReadByte()
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// until waits for a state that others bring about.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !is() {
		select {
		case <-deadline:
			t.Fatalf("it never came to this: %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}
