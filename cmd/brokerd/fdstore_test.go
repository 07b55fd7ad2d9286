package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
)

// A manager is what systemd is to the daemon: it passes sockets and stored
// descriptors on, and takes notifications.
type manager struct {
	s       *site
	notify  *net.UnixConn
	sockets []*os.File
	sayings chan struct{} // one for each notification

	mu     sync.Mutex
	said   []string
	stored []*os.File
}

func newManager(s *site) *manager {
	s.t.Helper()
	m := &manager{s: s, sayings: make(chan struct{}, 1000)}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.path("notify"), Net: "unixgram"})
	if err != nil {
		s.t.Fatal(err)
	}
	m.notify = conn
	for _, name := range []string{"broker.sock", "admin.sock"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path(name), Net: "unix"})
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = l.Close() })
		if err := os.Chmod(s.path(name), socketMode); err != nil {
			s.t.Fatal(err)
		}
		f, err := l.File()
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = f.Close() })
		m.sockets = append(m.sockets, f)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); m.listen() }()
	s.t.Cleanup(func() { _ = conn.Close(); <-ended; m.drop() })
	return m
}

// listen does what sd_notify(3) says of FDSTORE and FDSTOREREMOVE.
func (m *manager) listen() {
	data, oob := make([]byte, 4096), make([]byte, 4096)
	for {
		n, k, _, _, err := m.notify.ReadMsgUnix(data, oob)
		if err != nil {
			return
		}
		lines := strings.Split(string(data[:n]), "\n")
		var files []*os.File
		messages, _ := unix.ParseSocketControlMessage(oob[:k])
		for i := range messages {
			fds, _ := unix.ParseUnixRights(&messages[i])
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				files = append(files, os.NewFile(uintptr(fd), "stored"))
			}
		}
		mine := slices.Contains(lines, "FDNAME=tokens")
		if mine && slices.Contains(lines, "FDSTOREREMOVE=1") {
			m.drop()
		}
		m.mu.Lock()
		m.said = append(m.said, string(data[:n]))
		if mine && slices.Contains(lines, "FDSTORE=1") {
			m.stored = append(m.stored, files...)
		}
		m.mu.Unlock()
		m.sayings <- struct{}{}
	}
}

func (m *manager) drop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.stored {
		_ = f.Close()
	}
	m.stored = nil
}

func (m *manager) store() []*os.File {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.stored)
}

// await waits for a notification that has the line.
func (m *manager) await(line string) {
	m.s.t.Helper()
	for end := time.After(30 * time.Second); ; {
		m.mu.Lock()
		for i, s := range m.said {
			if slices.Contains(strings.Split(s, "\n"), line) {
				m.said = m.said[i+1:]
				m.mu.Unlock()
				return
			}
		}
		m.mu.Unlock()
		select {
		case <-m.sayings:
		case <-end:
			m.mu.Lock()
			defer m.mu.Unlock()
			m.s.t.Fatalf("the daemon does not say %s, but %q\n%s", line, m.said, m.s.stderr)
		}
	}
}

// start runs the daemon with the sockets and whatever is stored.
func (m *manager) start(s *site) {
	s.t.Helper()
	name, err := daemonProgram()
	if err != nil {
		s.t.Fatal(err)
	}
	files, names := slices.Clone(m.sockets), []string{"broker", "admin"}
	for _, f := range m.store() {
		files, names = append(files, f), append(names, "tokens")
	}
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", name, "serve", "--config", s.path("broker.yaml"), "--state", s.path("state"))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NOTIFY_SOCKET=" + s.path("notify"),
		"LISTEN_FDS=" + strconv.Itoa(len(files)), "LISTEN_FDNAMES=" + strings.Join(names, ":")}
	cmd.ExtraFiles = files
	s.stderr = &output{}
	cmd.Stdout, cmd.Stderr = s.stderr, s.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = cmd
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	m.await("READY=1")
}

func (s *site) token() client.Token {
	s.t.Helper()
	code, body := s.do("broker.sock", "GET", "/v1/clients/vdab/token", "")
	var token client.Token
	if err := json.Unmarshal([]byte(body), &token); code != http.StatusOK || err != nil {
		s.t.Fatalf("%d %s\n%s", code, body, s.stderr)
	}
	return token
}

// TestRestartWithoutTheIssuer: a planned restart costs no token, nothing of it
// is on the disk, and nothing stays with the service manager.
func TestRestartWithoutTheIssuer(t *testing.T) {
	s := newSite(t)
	m := newManager(s)
	m.start(s)
	first := s.token()
	for range 2 {
		s.stop(syscall.SIGTERM)
		m.await("FDNAME=tokens")
		stored := m.store()
		if len(stored) != 1 {
			t.Fatalf("%d descriptors are stored", len(stored))
		}
		checkSealed(t, stored[0])
		s.nowhere(first.AccessToken)
		m.start(s)
		if left := m.store(); len(left) != 0 {
			t.Fatalf("%d descriptors linger in the store", len(left))
		}
		if again := s.token(); again.AccessToken != first.AccessToken || again.ExpiresAt != first.ExpiresAt {
			t.Fatalf("another token, or another end: %s", s.stderr)
		}
	}
	if n := s.issuer.Stats().Minted; n != 1 {
		t.Errorf("%d tokens fetched, want 1", n)
	}
	s.nowhere(first.AccessToken)
	// SIGKILL leaves nothing.
	s.stop(syscall.SIGKILL)
	m.start(s)
	if again := s.token(); again.AccessToken == first.AccessToken || s.issuer.Stats().Minted != 2 {
		t.Errorf("a token survived SIGKILL; %d fetched", s.issuer.Stats().Minted)
	}
	s.stop(syscall.SIGTERM)
	carried, left := 0, 0
	for e, err := range audit.Read(s.path("state", "audit"), 0) {
		switch {
		case err != nil:
			t.Fatal(err)
		case e.Type == audit.TokenCarried && e.Fingerprint == first.Fingerprint:
			carried++
		case e.Type == audit.DaemonStop && e.Detail["tokens_left"] == "1":
			left++
		}
	}
	if carried != 2 || left != 3 {
		t.Errorf("on record: %d carried, want 2; %d left, want 3", carried, left)
	}
}

func checkSealed(t *testing.T, f *os.File) {
	t.Helper()
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("it can be written")
	}
	if err := f.Truncate(0); err == nil {
		t.Error("it can be cut")
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); !errors.Is(err, unix.EPERM) {
		t.Errorf("its seals are not the last word: %v", err)
	}
}

// nowhere searches the state, the log and the daemon's directory.
func (s *site) nowhere(token string) {
	s.t.Helper()
	forms := []string{token, hex.EncodeToString([]byte(token))}
	for shift := range 3 { // base64 of it, wherever it begins
		coded := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + token))
		forms = append(forms, coded[4:len(coded)-4])
	}
	look := func(where string, b []byte) {
		for _, form := range forms {
			if bytes.Contains(b, []byte(form)) {
				s.t.Errorf("%s holds the token", where)
			}
		}
	}
	look("the log", []byte(s.stderr.String()))
	seen := 0
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		look(path, b)
		seen++
		return err
	})
	if err != nil || seen < 3 {
		s.t.Errorf("%d files, %v", seen, err)
	}
}

// Whatever is in the store, the daemon starts, fetches, and clears it.
func TestStrangeStore(t *testing.T) {
	s := newSite(t)
	m := newManager(s)
	memory := func(flags int, data string) *os.File {
		fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC|flags)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "x")
		if _, err := f.WriteString(data); err != nil {
			t.Fatal(err)
		}
		return f
	}
	good := func(data string) *os.File {
		f, err := sealed([]byte(data))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	half := memory(unix.MFD_ALLOW_SEALING, "x")
	if _, err := unix.FcntlInt(half.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
		t.Fatal(err)
	}
	plain, err := os.Create(s.path("plain"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		files []*os.File
		why   string
	}{
		{"a file", []*os.File{plain}, "no sealed memory"},
		{"memory without seals", []*os.File{memory(0, "x")}, "no sealed memory"},
		{"half sealed", []*os.File{half}, "no sealed memory"},
		{"empty", []*os.File{good("")}, "0 bytes"},
		{"too large", []*os.File{good(strings.Repeat("x", broker.MaxCarried+1))}, "bytes"},
		{"another version", []*os.File{good("credential-broker tokens 2\n")}, "another version"},
		{"damaged", []*os.File{good("credential-broker tokens 1\n" + strings.Repeat("x", 100))}, "damaged"},
		{"two", []*os.File{good("x"), good("x")}, "2 of them"},
	} {
		m.mu.Lock()
		m.stored = c.files
		m.mu.Unlock()
		before := s.issuer.Stats().Minted
		m.start(s)
		s.token()
		if n := s.issuer.Stats().Minted - before; n != 1 || len(m.store()) != 0 {
			t.Errorf("%s: %d tokens fetched, %d descriptors left", c.name, n, len(m.store()))
		}
		if !strings.Contains(s.stderr.String(), "are not used") || !strings.Contains(s.stderr.String(), c.why) {
			t.Errorf("%s: the log does not say %q:\n%s", c.name, c.why, s.stderr)
		}
		s.stop(syscall.SIGKILL)
	}
}
