package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"credentialbroker/api/client"
)

// The scripts run the programs as they ship: broker, and the brokerd that it
// finds beside itself. In a script, "demo [ARG…]" starts a broker with an
// issuer on $SOCKET, and "finish SIGNAL" ends it; issuer_test.go has commands
// for other issuers.
func TestScripts(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/", ".", "../brokerd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE") != "", // what cmp compares with
		Setup: func(env *testscript.Env) error {
			run, err := os.MkdirTemp("", "broker-script-") // short: a socket's path may have 90 bytes
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(run) })
			env.Setenv("PATH", dir+":"+env.Getenv("PATH"))
			env.Setenv("SOCKET", filepath.Join(run, "broker.sock"))
			env.Setenv("XDG_RUNTIME_DIR", run)
			env.Setenv("LONG", strings.Repeat("x", 256))
			env.Setenv("TAB", "\t")
			env.Setenv("UID", fmt.Sprint(os.Getuid()))
			env.Setenv("SRC", mustAbs(filepath.Join("..", "..")))
			env.Values["daemon"] = &daemonOf{}
			env.Values["issuer"] = &issuerOf{}
			env.Values["incidents"] = &incidentsOf{}
			env.Setenv("BIN", dir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"demo": startDemo, "finish": killDaemon, "code": exitsWith,
			"issuer": startIssuer, "serve": startServe, "register": registerKey, "call": callAPI, "person": playPerson, "talk": talk, "converse": talkWith, "incidents": startIncidents, "page": runPage, "rotates": playRotation,
			"pack": packFile, "shown": runShown, "run": runPageOf, "recipient": writeRecipient,
		},
	})
}

// runPageOf is "run PAGE": it runs the commands of a page's console blocks with
// the script's socket in place of the installed one, and keeps what they say in
// out.
func runPageOf(ts *testscript.TestScript, _ bool, args []string) {
	var out []byte
	inside := false
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "```") {
			inside = line == "```console"
			continue
		}
		if !inside {
			continue
		}
		cmd := exec.Command("sh", "-c", strings.ReplaceAll(line, "/run/credential-broker/", filepath.Dir(ts.Getenv("SOCKET"))+"/"))
		cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"), client.Environment+"="+ts.Getenv("SOCKET"))
		said, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		const timedOut = 28 // curl was told when to leave a stream
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != timedOut || !strings.Contains(line, "--max-time")) {
			ts.Fatalf("%s: %v: %s", line, err, said)
		}
		out = append(out, said...)
	}
	ts.Check(os.WriteFile(ts.MkAbs("out"), out, 0o600))
}

func mustAbs(p string) string {
	a, err := filepath.Abs(p)
	if err != nil {
		panic(err)
	}
	return a
}

type daemonOf struct {
	cmd *exec.Cmd
	out output
}

// output is written by a process while it is read.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func startDemo(ts *testscript.TestScript, _ bool, args []string) {
	startDaemon(ts, append([]string{"demo"}, args...), func() bool {
		dirs, _ := filepath.Glob(filepath.Join(ts.Getenv("XDG_RUNTIME_DIR"), "credential-broker-demo-*"))
		if len(dirs) == 0 {
			return false
		}
		ts.Setenv("DEMO", dirs[len(dirs)-1])
		// It calls the API once: whoever ends it before that sees an error. With
		// some faults that takes long.
		return strings.Contains(ts.Value("daemon").(*daemonOf).out.String(), "Press Ctrl-C") || len(args) > 0
	})
}

// startDaemon runs brokerd on $SOCKET, and sets $ADMIN once it serves.
func startDaemon(ts *testscript.TestScript, args []string, ready func() bool) {
	d := ts.Value("daemon").(*daemonOf)
	d.cmd = exec.Command(filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], "brokerd"), append(args, "--socket", ts.Getenv("SOCKET"))...)
	d.cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "XDG_RUNTIME_DIR=" + ts.Getenv("XDG_RUNTIME_DIR")}
	d.out.mu.Lock()
	d.out.b.Reset()
	d.out.mu.Unlock()
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.out
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ts.Check(d.cmd.Start())
	cmd := d.cmd
	ts.Defer(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	admin := filepath.Join(filepath.Dir(ts.Getenv("SOCKET")), "admin.sock")
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-time.After(20 * time.Millisecond) {
		if c, err := net.Dial("unix", ts.Getenv("SOCKET")); err == nil {
			_ = c.Close()
			if _, err := os.Stat(admin); err == nil && ready() {
				ts.Setenv("ADMIN", admin)
				return
			}
		}
	}
	ts.Fatalf("brokerd does not serve:\n%s", d.out.String())
}

func killDaemon(ts *testscript.TestScript, _ bool, args []string) {
	d := ts.Value("daemon").(*daemonOf)
	sig := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "HUP": syscall.SIGHUP}[args[0]]
	ts.Check(d.cmd.Process.Signal(sig))
	if sig == syscall.SIGHUP {
		return
	}
	err := d.cmd.Wait()
	var exit *exec.ExitError
	if sig == syscall.SIGTERM && errors.As(err, &exit) {
		ts.Fatalf("it ended with %v:\n%s", err, d.out.String())
	}
}

// exitsWith runs a command that has to end with a code: code 77 broker token x.
func exitsWith(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// Every command explains itself with an example.
func TestHelp(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Name() == "help" || c.Name() == "completion" || c.Parent() != nil && c.Parent().Name() == "completion" {
			return
		}
		if c.Short == "" || !strings.Contains(c.Example, "broker") {
			t.Errorf("%s has no description or no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(command())
}
