package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/internal/redact"
)

// What the command leaves running may write for long, to a slow reader: new
// values, and their loss, are heard all the same, and nothing is cut off.
func TestRenewAfterEnd(t *testing.T) {
	out, stdout, err := os.Pipe()
	told, stderr, err2 := os.Pipe()
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	renew, lost := make(chan struct{}), make(chan error)
	c := &child{cmd: &exec.Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", "head -c 3000000 /dev/zero & echo $$ >&2; exit 3"},
		Stdout: stdout, Stderr: stderr}, mask: &redact.Filter{}, renew: renew, lost: lost, end: true}
	code := make(chan int, 1)
	go func() {
		got, err := c.run()
		if err != nil {
			t.Error(err)
		}
		_ = stdout.Close()
		code <- got
	}()
	var pid int
	if _, err := fmt.Fscanln(told, &pid); err != nil {
		t.Fatal(err)
	}
	tooLong := time.After(time.Minute)
	for unix.Kill(pid, 0) == nil { // until it is waited for
		select {
		case <-time.After(time.Millisecond):
		case <-tooLong:
			t.Fatal("the command does not end")
		}
	}
	for range 1000 { // it may take some before it sees the end
		select {
		case renew <- struct{}{}:
		case <-tooLong:
			t.Fatal("nobody hears of new values")
		}
	}
	select {
	case lost <- errors.New("quarantined"):
	case <-tooLong:
		t.Fatal("nobody hears that the values are gone")
	}
	if n, err := io.Copy(io.Discard, out); err != nil || n != 3000000 {
		t.Errorf("%d bytes, %v", n, err)
	}
	if got := <-code; got != 3 {
		t.Errorf("exit code %d", got)
	}
}
