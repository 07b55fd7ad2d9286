// Package exec makes any command a secrets manager: for each read it runs the
// command, gives it one request as a line of JSON on standard input, and takes
// one answer as JSON from standard output, in the form that wire.go of package
// providers describes and example.sh shows.
//
// The command is run without a shell, in an empty environment but for PATH and
// what the configuration says, in a process group of its own, which is killed
// at the deadline. What it writes to standard error is counted and dropped,
// and the texts in its errors are not shown: both may hold secrets.
package exec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/providers"
)

// command is the provider. It holds nothing.
type command struct {
	c   Config
	clk clock.Clock
}

// Config is one command.
type Config struct {
	// Command is the absolute path of a program, and its arguments. Nobody but
	// root and the broker's own user may be able to write it. Required.
	Command []string `yaml:"command" json:"command"`
	// Timeout is how long one read may take. Zero: 30 seconds.
	Timeout clock.Duration `yaml:"timeout,omitempty" json:"timeout,omitempty"`
	// Environment is the command's environment, to which PATH is added. No
	// secret belongs here. Empty: PATH alone.
	Environment map[string]string `yaml:"environment,omitempty" json:"environment,omitempty"`
}

const (
	defaultTimeout = 30 * time.Second
	// maxAnswer leaves room for escapes and base64.
	maxAnswer = 2 * providers.MaxPayload
)

// Validate finds every mistake that can be seen without running the command.
func (c Config) Validate() error {
	var errs []error
	switch {
	case len(c.Command) == 0:
		errs = append(errs, errors.New("command: missing: the absolute path of a program, and its arguments"))
	case !filepath.IsAbs(c.Command[0]):
		errs = append(errs, errors.New("command: want the absolute path of a program first"))
	}
	if c.Timeout < 0 || c.Timeout.D() > 10*time.Minute {
		errs = append(errs, errors.New("timeout: want at most 10m"))
	}
	for k, v := range c.Environment {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			errs = append(errs, errors.New("environment: want names without = and values without NUL"))
			break
		}
	}
	return errors.Join(errs...)
}

// Open makes the provider. It runs nothing.
func Open(c Config, clk clock.Clock) (providers.Provider, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Timeout == 0 {
		c.Timeout = clock.Duration(defaultTimeout)
	}
	return &command{c, clk}, nil
}

// Close has nothing to end: a read waits for its command.
func (*command) Close() error { return nil }

// Fetch runs the command once.
func (p *command) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	b, err := p.fetch(ctx, ref, have)
	if e := (*providers.Error)(nil); errors.As(err, &e) {
		out := *e
		out.Provider, out.Ref = "exec", ref
		err = &out
	}
	return b, err
}

func (p *command) fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	request, err := json.Marshal(providers.Request{Version: 1, Operation: "fetch", Ref: ref, Have: have})
	if err != nil {
		return providers.Bundle{}, &providers.Error{Kind: providers.Unsupported, Message: "the request cannot be written"}
	}
	out, err := p.run(ctx, append(request, '\n'))
	defer out.wipe()
	if err != nil && len(out.b) == 0 {
		return providers.Bundle{}, err
	}
	b, answered := providers.DecodeAnswer(out.b)
	said := (*providers.Error)(nil)
	errors.As(answered, &said)
	switch {
	case err != nil && (said == nil || said.Kind == providers.Malformed):
		b.Wipe() // of a command that fails in the end, only the reason is taken
		return providers.Bundle{}, err
	case said != nil && said.Kind == providers.Malformed:
		return b, p.failure(providers.Malformed, out, said.Message, said.Hint)
	case said != nil:
		// The command's own words may hold what it read.
		e := p.failure(said.Kind, out, "the command reports: "+strings.ReplaceAll(string(said.Kind), "_", " "), "")
		e.RetryAfter = said.RetryAfter
		return b, e
	case errors.Is(answered, providers.ErrUnchanged) && have == "":
		return b, p.failure(providers.Malformed, out, "the command says unchanged, and nothing was held before", "")
	case answered != nil:
		return b, answered
	}
	if err := b.CheckValidity(p.clk.Now().Wall); err != nil {
		b.Wipe()
		return providers.Bundle{}, err
	}
	return b, nil
}

// run runs the command, and returns what it wrote. The error says why it did
// not succeed; the caller wipes the output even so.
func (p *command) run(ctx context.Context, request []byte) (*output, error) {
	out := &output{}
	if err := ctx.Err(); err != nil {
		return out, &providers.Error{Kind: providers.Unavailable, Message: "there was no time left to run the command", Err: err}
	}
	argv := p.c.Command
	info, err := os.Stat(argv[0])
	if err == nil {
		err = providers.CheckOwner(info)
	}
	if err != nil {
		return out, p.cannotRun(err)
	}
	ctx, cancel := context.WithTimeout(ctx, p.c.Timeout.D())
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	for k, v := range p.c.Environment {
		cmd.Env = append(cmd.Env, k+"="+v) // the last of a name counts, so PATH can be set
	}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(request), out, &out.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return out, p.cannotRun(err)
	}
	err = cmd.Wait()
	exit := (*exec.ExitError)(nil)
	switch {
	case ctx.Err() != nil:
		e := p.failure(providers.Unavailable, out, "the command did not answer in time", "it has "+p.c.Timeout.String()+", see timeout")
		e.Err = ctx.Err()
		return out, e
	case out.tooLong:
		return out, p.failure(providers.Malformed, out, fmt.Sprintf("the command wrote more than %d bytes", maxAnswer), "")
	case errors.As(err, &exit) && exit.Exited():
		return out, p.failure(providers.Unavailable, out, fmt.Sprintf("the command failed with status %d", exit.ExitCode()), "run it by hand to see why")
	case errors.As(err, &exit):
		return out, p.failure(providers.Unavailable, out, "the command was ended by a signal", "")
	case errors.Is(err, exec.ErrWaitDelay):
		return out, p.failure(providers.Unavailable, out, "the command ended and left a process that holds its output open", "")
	case err != nil:
		return out, p.failure(providers.Unavailable, out, "the command's answer could not be read", "")
	}
	return out, nil
}

func (p *command) cannotRun(err error) error {
	e := (*providers.Error)(nil)
	if errors.As(err, &e) {
		return &providers.Error{Kind: e.Kind, Message: p.c.Command[0] + ": " + e.Message, Hint: e.Hint}
	}
	why := "it cannot be run"
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		why = errno.Error()
	}
	return &providers.Error{Kind: providers.Unavailable, Message: p.c.Command[0] + ": " + why, Err: err,
		Hint: "it has to be a program that the broker's user may execute"}
}

// failure names the command and says how much it complained.
func (p *command) failure(kind providers.Kind, out *output, message, hint string) *providers.Error {
	message = p.c.Command[0] + ": " + message
	if n := out.stderr.n; n > 0 {
		message += fmt.Sprintf("; it wrote %d bytes to standard error, which are not shown", n)
	}
	return &providers.Error{Kind: kind, Message: message, Hint: hint}
}

// output takes what the command writes, in one buffer that is wiped.
type output struct {
	b       []byte
	tooLong bool // and dropped
	stderr  counter
}

// ReadFrom is what os/exec uses: the bytes pass through no other buffer.
func (o *output) ReadFrom(r io.Reader) (int64, error) {
	o.b = make([]byte, maxAnswer+1)
	n, err := io.ReadFull(r, o.b)
	switch {
	case err == nil:
		o.wipe()
		o.tooLong = true
		return int64(n), io.ErrShortBuffer // so that the command's next write fails
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = nil
	}
	o.b = o.b[:n]
	return int64(n), err
}

// Write is there to make output an io.Writer.
func (o *output) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func (o *output) wipe() {
	clear(o.b)
	o.b = o.b[:0]
}

// counter counts bytes and wipes them.
type counter struct{ n int64 }

// ReadFrom is what os/exec uses.
func (c *counter) ReadFrom(r io.Reader) (int64, error) {
	buf := make([]byte, 4096)
	defer clear(buf)
	for {
		n, err := r.Read(buf)
		c.n += int64(n)
		if errors.Is(err, io.EOF) {
			return c.n, nil
		}
		if err != nil {
			return c.n, err
		}
	}
}

// Write is there to make counter an io.Writer.
func (c *counter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }
