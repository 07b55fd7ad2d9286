package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/configs"
)

const (
	alarmTimeout = 30 * time.Second
	alarmGrace   = 2 * time.Second // between SIGTERM and SIGKILL
)

// runAlarm runs the command once. The error says how it ended; what it printed
// is dropped. The process group is ended with it when it takes too long or ctx
// ends: SIGTERM, then SIGKILL when the command itself has gone, or will not.
func runAlarm(ctx context.Context, c configs.Alarm, _ string, line []byte) error {
	if err := c.Runnable(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(c.Timeout.D(), alarmTimeout))
	defer cancel()
	if err := ctx.Err(); err != nil {
		return err
	}
	// Not CommandContext: it would reap the leader before the group is ended,
	// and the group's number could be another's.
	cmd := exec.Command(c.Command[0], c.Command[1:]...) //nolint:noctx // see above
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(line)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = alarmGrace // for a process left behind that holds standard input
	if err := cmd.Start(); err != nil {
		return err
	}
	late := await(ctx, cmd.Process.Pid)
	err := cmd.Wait()
	exit := (*exec.ExitError)(nil)
	switch {
	case late:
		return fmt.Errorf("%s did not end in time: %w", c.Command[0], ctx.Err())
	case errors.As(err, &exit) && exit.Exited():
		return fmt.Errorf("%s ended with exit code %d: run it by hand to see why", c.Command[0], exit.ExitCode())
	case errors.As(err, &exit):
		return fmt.Errorf("%s was ended by a signal: %w", c.Command[0], err)
	case errors.Is(err, exec.ErrWaitDelay):
		return nil // it has ended well, and somebody else reads on
	}
	return err
}

// await returns when the process has ended, which is not reaped yet: until
// then its number, and its group's, is no other's. late is true if ctx ended
// first, and with it the group.
func await(ctx context.Context, pid int) (late bool) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for errors.Is(unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
		}
	}()
	select {
	case <-ended:
		return false
	case <-ctx.Done():
	}
	_ = syscall.Kill(-pid, syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(alarmGrace):
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	<-ended
	return true
}
