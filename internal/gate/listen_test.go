package gate

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestListen(t *testing.T) {
	unix.Umask(0o077) // the mode is as asked for all the same
	defer unix.Umask(0o022)
	dir := filepath.Join(t.TempDir(), "made")
	path := filepath.Join(dir, "s")
	l, err := Listen(path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o666 {
		t.Errorf("%v, %v", info, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new-*")); left != nil {
		t.Errorf("left behind: %v", left)
	}
	if _, err := Listen(path, 0o666); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second daemon: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket stays: %v", err)
	}
	again, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

func TestListenReplacesAStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close() // as after SIGKILL
	l, err := Listen(path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestListenLeavesOthersAlone(t *testing.T) {
	dir := t.TempDir()
	living := filepath.Join(dir, "living")
	other, err := net.Listen("unix", living)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	sticky := filepath.Join(dir, "sticky")
	if err := errors.Join(os.Mkdir(sticky, 0o777), os.Chmod(sticky, 0o777|os.ModeSticky)); err != nil { // #nosec G302 -- that is the case
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(sticky, "s"):            "a directory of its own",
		living:                                "in use by a running",
		file:                                  "is no socket",
		filepath.Join(open, "s"):              "chmod go-w",
		filepath.Join(dir, "no", "such", "s"): filepath.Join(dir, "no") + " is not there: create that one, or choose another --socket",
		filepath.Join(file, "s", "s"):         "create it, or choose another --socket",
		filepath.Join(dir, strings.Repeat("x", 120)): "",
	} {
		l, err := Listen(path, 0o666)
		if want == "" { // bound under a short name: clients may use a relative path
			if err == nil {
				_ = l.Close()
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
	if c, err := net.Dial("unix", living); err != nil {
		t.Errorf("the living daemon lost its socket: %v", err)
	} else {
		_ = c.Close()
	}
}

// Whoever comes after keeps its socket when the one before closes late.
func TestCloseLeavesASuccessorsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	next, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	_ = l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

// childTask is what a copy of the test binary does instead of tests.
const childTask = "GATE_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childTask) {
	case "":
		os.Exit(m.Run())
	case "inherited":
		os.Exit(childInherited())
	}
	os.Exit(3)
}

// childInherited reports what Inherited makes of the descriptors of this
// process.
func childInherited() int {
	_ = os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	got, stored, err := Inherited(map[string]os.FileMode{"broker": 0o666, "admin": 0o666}, "kept")
	if err != nil {
		_, _ = io.WriteString(os.Stdout, err.Error())
		return 1
	}
	for _, name := range []string{"broker", "admin"} {
		if l := got[name]; l != nil {
			_, _ = io.WriteString(os.Stdout, name+" "+l.Addr().String()+"\n")
			_ = l.Close()
		}
	}
	for _, f := range stored {
		b, err := io.ReadAll(f)
		_, _ = fmt.Fprintln(os.Stdout, f.Name(), string(b), err)
	}
	return 0
}

func TestInherited(t *testing.T) {
	dir := t.TempDir()
	socket := func(name string, mode os.FileMode) *os.File {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tcpFile, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer tcpFile.Close()
	kept := func() *os.File {
		f, err := os.CreateTemp(dir, "kept")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		if _, err := f.WriteString("left"); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		return f
	}
	b, a, closed := socket("b", 0o666), socket("a", 0o666), socket("closed", 0o600)
	for _, c := range []struct {
		names string
		files []*os.File
		want  string
	}{
		{"", nil, ""},
		{"broker:admin", []*os.File{b, a}, "broker " + filepath.Join(dir, "b") + "\nadmin " + filepath.Join(dir, "a") + "\n"},
		{"admin", []*os.File{a}, "admin " + filepath.Join(dir, "a") + "\n"},
		{"admin:kept", []*os.File{a, kept()}, "admin " + filepath.Join(dir, "a") + "\nkept left <nil>\n"},
		{"kept:kept", []*os.File{kept(), kept()}, "kept left <nil>\nkept left <nil>\n"},
		{"other:admin", []*os.File{kept(), a}, "admin " + filepath.Join(dir, "a") + "\n"},
		{"broker", []*os.File{closed}, "has mode 0600 and should have 0666"},
		{"broker", []*os.File{tcpFile}, "no Unix stream socket"},
		{"what", []*os.File{b}, "FileDescriptorName=what"},
		{"broker:broker", []*os.File{a, b}, "2 sockets"},
	} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childTask+"=inherited", "LISTEN_FDS="+strconv.Itoa(len(c.files)), "LISTEN_FDNAMES="+c.names)
		cmd.ExtraFiles = c.files
		out, _ := cmd.Output()
		if (c.want == "") != (len(out) == 0) || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %q, want %q", c.names, out, c.want)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "b")); err != nil {
		t.Errorf("an inherited socket was removed: %v", err)
	}
}
