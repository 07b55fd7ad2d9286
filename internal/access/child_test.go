package access

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The test binary plays the other processes itself: with ROLE set it is one of
// them. Each prints a line when it is where the test wants it, and goes when
// its standard input ends.
func TestMain(m *testing.M) {
	role, ok := os.LookupEnv("ROLE")
	if !ok {
		os.Exit(withCopy(m.Run))
	}
	if err := play(role, os.Args[1:]); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// withCopy makes a copy of this binary that every user can run, as the one of
// go test is not.
func withCopy(run func() int) int {
	dir, err := os.MkdirTemp("", "access")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	self, err := os.ReadFile("/proc/self/exe")
	err = errors.Join(err, os.Chmod(dir, 0o755), os.WriteFile(dir+"/child", self, 0o755), os.Setenv("CHILD", dir+"/child"))
	if err != nil {
		panic(err)
	}
	return run()
}

func play(role string, args []string) error {
	switch role {
	case "login": // with another login uid
		if err := os.WriteFile("/proc/self/loginuid", []byte("4242"), 0); err != nil {
			return err
		}
		fallthrough
	case "connect":
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		defer c.Close()
	case "drop": // connects, then becomes another user
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		defer c.Close()
		if err := syscall.Setuid(12399); err != nil {
			return err
		}
	case "exec": // connects, and when told becomes args[1], which connects
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Println("ready")
		if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
			return err
		}
		return syscall.Exec(args[1], []string{args[1], args[0]}, []string{"ROLE=connect"}) // #nosec G204 -- a test's own
	case "pass": // hands its connection to args[1]
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		to, err := net.Dial("unix", args[1])
		if err != nil {
			return err
		}
		f, err := c.(*net.UnixConn).File()
		if err != nil {
			return err
		}
		if _, _, err := to.(*net.UnixConn).WriteMsgUnix([]byte("x"), unix.UnixRights(int(f.Fd())), nil); err != nil {
			return err
		}
	case "identify": // is the daemon: as uid args[1], identifies the first connection
		return daemon(args)
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// answer of the role identify.
type identified struct {
	Caller *Caller
	Text   string
	Error  string
}

func daemon(args []string) error {
	l, err := net.Listen("unix", args[0])
	if err != nil {
		return err
	}
	if err := os.Chmod(args[0], 0o666); err != nil {
		return err
	}
	uid, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	if len(args) > 3 {
		if err := withoutPeerPidfd(); err != nil {
			return err
		}
	}
	if len(args) > 2 && args[2] != "" { // a /proc that shows nobody else's processes
		if err := unix.Mount("proc", "/proc", "proc", 0, args[2]); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
	}
	if uid != os.Getuid() {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	c, err := l.Accept()
	if err != nil {
		return err
	}
	var answer identified
	caller, err := Identify(c.(*net.UnixConn))
	if err != nil {
		answer.Error = err.Error()
	} else {
		answer.Caller, answer.Text = caller, caller.String()
	}
	return json.NewEncoder(os.Stdout).Encode(answer)
}

// withoutPeerPidfd makes SO_PEERPIDFD an unknown option for this goroutine.
func withoutPeerPidfd() error {
	runtime.LockOSThread() // for good: the filter is the thread's
	if _, err := unix.GetsockoptInt(0, unix.SOL_SOCKET, unix.SO_PEERPIDFD); errors.Is(err, unix.ENOPROTOOPT) {
		return nil // an old kernel indeed
	}
	word := func(offset uint32) unix.SockFilter { // of struct seccomp_data
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	equal := func(k uint32, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: no}
	}
	filter := []unix.SockFilter{
		word(0), equal(unix.SYS_GETSOCKOPT, 3),
		word(32), equal(unix.SO_PEERPIDFD, 1), // the third argument
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOPROTOOPT)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err := errors.Join(
		unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), // without this only root may
		unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0))
	if err != nil {
		return err
	}
	if _, err := unix.GetsockoptInt(0, unix.SOL_SOCKET, unix.SO_PEERPIDFD); !errors.Is(err, unix.ENOPROTOOPT) {
		return errors.New("the kernel still knows SO_PEERPIDFD")
	}
	return nil
}

// child is one of the other processes.
type child struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

// start runs role and waits until it is ready.
func start(t *testing.T, attr *syscall.SysProcAttr, role string, args ...string) *child {
	t.Helper()
	c := launch(t, attr, role, args...)
	if l := c.line(); l != "ready" {
		t.Fatalf("role %s: %s", role, l)
	}
	return c
}

func launch(t *testing.T, attr *syscall.SysProcAttr, role string, args ...string) *child {
	t.Helper()
	cmd := exec.Command(os.Getenv("CHILD"), args...)
	cmd.Env = append(os.Environ(), "ROLE="+role)
	cmd.SysProcAttr = attr
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	c := &child{t: t, cmd: cmd, stdin: in, out: bufio.NewReader(out)}
	t.Cleanup(c.stop)
	return c
}

func (c *child) line() string {
	l, err := c.out.ReadString('\n')
	if err != nil {
		c.t.Errorf("the child says nothing: %v", err)
	}
	return strings.TrimSpace(l)
}

func (c *child) pid() int32 { return int32(c.cmd.Process.Pid) }

// stop ends the child, and returns when its number is free.
func (c *child) stop() {
	if c.cmd.ProcessState == nil {
		c.stdin.Close()
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
	}
}

// socket is a listener that any user may connect to.
type socket struct {
	t    *testing.T
	l    net.Listener
	path string
}

func listen(t *testing.T) *socket {
	t.Helper()
	path := filepath.Join(open755(t), "s")
	l, err := net.Listen("unix", path)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	must(t, os.Chmod(path, 0o666))
	return &socket{t, l, path}
}

func (s *socket) accept() *net.UnixConn {
	s.t.Helper()
	c, err := s.l.Accept()
	must(s.t, err)
	s.t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

// open755 is a directory that other users may enter, as t.TempDir's are not.
func open755(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "access")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// weaker is said where the machine forbids a whole test.
func weaker(t *testing.T, why string) {
	t.Helper()
	t.Logf("WEAKER: %s", why)
}

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
