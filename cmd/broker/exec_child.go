package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"credentialbroker/internal/redact"
)

// Rules of this file:
//   - the command is in our process group, so that job control and pipelines
//     are the shell's as ever; what the terminal sends, it sends to both of us;
//   - the command does not outlive us: SIGKILL of us is SIGKILL of it.

// child is the command while it runs.
type child struct {
	cmd     *exec.Cmd
	mask    *redact.Filter // nil: its output is ours
	renewal unix.Signal    // 0: none
	end     bool           // it ends when its values are taken away
	renew   <-chan struct{}
	lost    <-chan error
	cores   coreFilter // the command's; this process has none
}

// run starts the command, waits for it and gives its exit code.
func (c *child) run() (int, error) {
	// Linux sends Pdeathsig when the thread ends that has started the command.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, heeded(passed()...)...)
	defer signal.Stop(signals)
	copies, err := c.pipes()
	if err != nil {
		return 0, err
	}
	if err := c.cmd.Start(); err != nil {
		copies.close()
		return 0, failure{exitNotRunnable, fmt.Errorf("%s cannot be run: %w", c.cmd.Path, cause(err))}
	}
	c.cores.giveBack(c.cmd.Process.Pid)
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err = c.cmd.Wait()
	}()
	c.wait(signals, ended, copies.start(c.mask, ended))
	return exitOf(c.cmd.ProcessState, err)
}

// wait waits for the command, and for what is still to be written then: others
// may hold its pipes, so new values are heard of to the end. A signal that
// would end the command ends that second waiting.
func (c *child) wait(signals <-chan os.Signal, ended, copied <-chan struct{}) {
	for ended != nil || copied != nil {
		select {
		case <-ended:
			ended = nil
		case <-copied:
			copied = nil
		case s := <-signals:
			if ended == nil && (s == unix.SIGINT || s == unix.SIGTERM || s == unix.SIGHUP || s == unix.SIGQUIT) {
				return
			}
			c.pass(s.(syscall.Signal))
		case <-c.renew:
			if c.renewal != 0 {
				_ = c.cmd.Process.Signal(c.renewal)
			}
		case err := <-c.lost:
			c.tell(err, ended == nil)
		}
	}
}

func exitOf(state *os.ProcessState, err error) (int, error) {
	if state == nil {
		return 0, err
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return exitBySignal + int(status.Signal()), nil
	}
	return state.ExitCode(), nil
}

// tell says that the values are gone.
func (c *child) tell(err error, over bool) {
	what := "they will be there again when the broker gives them"
	switch {
	case over:
		what = "it has ended, and what it left running is not told"
	case c.end:
		what = "the command gets SIGTERM"
		_ = c.cmd.Process.Signal(unix.SIGTERM)
	}
	fmt.Fprintf(os.Stderr, "broker: %s\nbroker: the command's files are removed; %s\n", explain(err), what)
}

// passed are the signals that go on to the command. What stops us for reading
// or writing on a terminal stays: it is for our group.
func passed() []os.Signal {
	list := []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGWINCH,
		unix.SIGTSTP, unix.SIGCONT,
		unix.SIGPIPE} // ours alone: whoever reads the masked output has gone
	for rt := syscall.Signal(34); rt <= 64; rt++ {
		list = append(list, rt)
	}
	return list
}

// pass gives a signal to the command, unless the terminal has.
func (c *child) pass(s syscall.Signal) {
	switch s {
	case unix.SIGPIPE:
		return
	case unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGWINCH:
		if !inForeground() {
			_ = c.cmd.Process.Signal(s)
		}
	default:
		_ = c.cmd.Process.Signal(s)
	}
	if s == unix.SIGTSTP {
		_ = unix.Kill(os.Getpid(), unix.SIGSTOP) // as we would have without looking
	}
}

// inForeground says whether the terminal sends its signals to our group.
func inForeground() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// copies carry masked output.
type copies struct {
	wg   sync.WaitGroup
	list []*outputCopy
}

type outputCopy struct {
	dst       io.Writer
	src, pipe *os.File // the command has pipe
}

// pipes puts a pipe in place of each output, if it is to be masked.
func (c *child) pipes() (*copies, error) {
	out := &copies{}
	if c.mask == nil {
		return out, nil
	}
	for _, w := range []*io.Writer{&c.cmd.Stdout, &c.cmd.Stderr} {
		src, pipe, err := os.Pipe()
		if err != nil {
			out.close()
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		const size = 1 << 20 // fewer, larger reads; the default does if it is too much
		_, _ = unix.FcntlInt(pipe.Fd(), unix.F_SETPIPE_SZ, size)
		out.list = append(out.list, &outputCopy{*w, src, pipe})
		*w = pipe
	}
	return out, nil
}

// start copies until the pipes end, which closes the channel. When the reader of our output has gone, the
// command notices as if it had written there itself.
func (c *copies) start(mask *redact.Filter, ended <-chan struct{}) <-chan struct{} {
	for _, o := range c.list {
		_ = o.pipe.Close()
		c.wg.Go(func() {
			defer o.src.Close()
			if err := mask.Copy(o.dst, o.src, ended); err != nil && !errors.Is(err, syscall.EPIPE) {
				fmt.Fprintln(os.Stderr, "broker: the command's output cannot be passed on: "+err.Error())
			}
		})
	}
	done := make(chan struct{})
	go func() { defer close(done); c.wg.Wait() }()
	return done
}

func (c *copies) close() {
	for _, o := range c.list {
		_ = o.src.Close()
		_ = o.pipe.Close()
	}
}

// A coreFilter is what of its memory a process writes into a core, as in
// core(5): hexadecimal.
type coreFilter string

// withoutMemory keeps this process's memory out of cores, also where they go
// to a program, for which the kernel sets no limit. It gives what was before:
// children inherit the filter, and a command may want its cores.
func withoutMemory() (coreFilter, error) {
	const file = "/proc/self/coredump_filter"
	before, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte("0"), 0)
	}
	if err != nil {
		return "", fmt.Errorf("keep values out of cores: %w", err)
	}
	return coreFilter("0x" + strings.TrimSpace(string(before))), nil
}

// giveBack is for a command that has just started; one of another user keeps
// no memory in its cores.
func (f coreFilter) giveBack(pid int) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/coredump_filter", pid), []byte(f), 0)
}
