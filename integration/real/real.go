//go:build real

// Package real runs the servers that nobody here wrote, for the integration
// suite, and keeps the list of what ran.
package real

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Root is the top of the project.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Path names something that integration/install.d has put below .real.
func Path(elem ...string) string {
	return filepath.Join(append([]string{Root(), ".real"}, elem...)...)
}

// Row says, when the test ends, that it ran and how: one line of the table
// that make test-real prints. Every row stands in integration/expected.d.
func Row(t *testing.T, area, server, what string) {
	t.Helper()
	start := time.Now()
	t.Cleanup(func() {
		result := "ok"
		switch {
		case t.Failed():
			result = "FAILED"
		case t.Skipped():
			result = "SKIPPED"
		}
		line, _ := json.Marshal(map[string]string{"area": area, "server": server, "what": what,
			"result": result, "took": time.Since(start).Round(time.Millisecond).String()})
		_ = os.MkdirAll(Path("results"), 0o755)
		f, err := os.OpenFile(Path("results", "rows.jsonl"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		if _, err := f.Write(append(line, '\n')); err != nil {
			t.Error(err)
		}
	})
}

// FreeAddr gives a loopback address that nothing listens on.
func FreeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A Process is a server that was started for one test.
type Process struct {
	Cmd    *exec.Cmd
	Exited chan struct{} // closed when it has ended

	mu  sync.Mutex
	out bytes.Buffer
}

// Write keeps the server's output for the test's report.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

// Output is what the server has written so far.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// Start runs a server, waits until addr accepts connections, and ends it (and
// what it started) with the test. If the test fails, its output is logged.
func Start(t testing.TB, addr string, cmd *exec.Cmd) *Process {
	t.Helper()
	return start(t, "tcp", addr, cmd)
}

// StartUnix is Start for a server on a Unix socket.
func StartUnix(t testing.TB, path string, cmd *exec.Cmd) *Process {
	t.Helper()
	return start(t, "unix", path, cmd)
}

func start(t testing.TB, network, addr string, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, Exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p, p
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", cmd.Path, err)
	}
	go func() { _ = cmd.Wait(); close(p.Exited) }()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-p.Exited
		if t.Failed() {
			t.Logf("output of %s:\n%s", filepath.Base(cmd.Path), p.Output())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		select {
		case <-p.Exited:
			t.Fatalf("%s ended before it listened:\n%s", filepath.Base(cmd.Path), p.Output())
		case <-time.After(50 * time.Millisecond):
		}
		if c, err := net.Dial(network, addr); err == nil {
			_ = c.Close()
			return p
		}
	}
	t.Fatalf("%s does not listen on %s:\n%s", filepath.Base(cmd.Path), addr, p.Output())
	return nil
}

// Must fails the test if a command does not succeed, and gives its output.
func Must(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out))
	}
	return string(out)
}

// Block is a file that stands in a page of the documents: the fenced block that
// has its name after the language.
func Block(t testing.TB, page, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(Root(), "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range strings.Split(string(text), "\n```") {
		head, body, _ := strings.Cut(b, "\n")
		if _, file, _ := strings.Cut(head, " "); i%2 == 1 && file == name {
			return body + "\n"
		}
	}
	t.Fatalf("docs/%s has no file %q", page, name)
	return ""
}
