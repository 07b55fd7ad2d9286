package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// playRotation is "rotates PLAY CODE ARG…": it runs broker, and wants the exit
// code. interrupt: Ctrl-C once the issuer has refused the key. enter: a person
// at a terminal has the issuer learn the key that is printed, and presses
// Enter. What the command prints is in out.
func playRotation(ts *testscript.TestScript, _ bool, args []string) {
	play, code := args[0], args[1]
	cmd := exec.Command(filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], "broker"), args[2:]...)
	cmd.Env = []string{"CREDENTIAL_BROKER_SOCKET=" + ts.Getenv("SOCKET")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, theirs := input(ts, play == "enter")
	cmd.Stdin = theirs
	var stdout, said bytes.Buffer
	cmd.Stdout = &stdout
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Check(theirs.Close())
	defer time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() }).Stop()
	marker := map[string]string{"interrupt": "asked again at", "enter": "press Enter"}[play]
	for one := make([]byte, 1); !strings.Contains(said.String(), marker); {
		if n, err := stderr.Read(one); err != nil || n == 0 {
			break
		}
		said.Write(one)
	}
	switch play {
	case "interrupt":
		ts.Check(cmd.Process.Signal(syscall.SIGINT))
	case "enter":
		i := ts.Value("issuer").(*issuerOf)
		i.client.Keys = []string{stdout.String()}
		ts.Check(i.Register(i.client))
		_, err = io.WriteString(stdin, "\n")
		ts.Check(err)
	}
	_, _ = io.Copy(&said, stderr)
	err = cmd.Wait()
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	}
	text := stdout.String() + said.String()
	ts.Check(os.WriteFile(ts.MkAbs("out"), []byte(text), 0o600))
	ts.Logf("%s", text)
	if code != fmt.Sprint(got) {
		ts.Fatalf("exit code %d, want %s", got, code)
	}
}
