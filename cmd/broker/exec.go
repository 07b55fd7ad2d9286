package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"credentialbroker/api/client"
	"credentialbroker/internal/redact"
)

// Exit codes of env(1) and shells.
const (
	exitNotRunnable = 126
	exitNotFound    = 127
	exitBySignal    = 128 // and the number
)

// execFlags are what broker exec was asked to do.
type execFlags struct {
	o           client.Options
	wait        time.Duration
	signal      string
	quarantine  string
	env, redact bool
}

func execCommand(s *sockets) *cobra.Command {
	var f execFlags
	c := &cobra.Command{Use: "exec CLIENT -- COMMAND [ARG…]", Short: "Run a command with files that always hold a token",
		Long: "Run a command, and keep a token, the headers and, where an allow entry names api-key, the API key in\n" +
			"files for it: " + envToken + "_FILE, " + envHeaders + "_FILE and\n" + envKey + "_FILE name them. The files are memory of this process: nothing is\n" +
			"left of them when it ends, however it ends. Read them for each call: a new token replaces the old one\n" +
			"while the command runs. (PHP's file functions do not open them: there, use clients/CredentialBroker.php, or\n" +
			"cat in a shell.) Signals are passed on; the exit code is the command's, or 128 and the number of\n" +
			"the signal that ended it; 127 if there is no such command, 126 if it cannot be run.\n\n" +
			"After a quarantine, or when access is taken away, the files cannot be opened any more, and the command\n" +
			"gets SIGTERM. An allow entry that lists surfaces has to list exec.",
		Example: "  broker exec vdab -- sh -c 'curl -sSf -H @$" + envHeaders + "_FILE https://api.vdab.be/services/openservices/'\n" +
			"  broker exec --signal HUP --redact vdab -- ./feed --token-file-from-env",
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return usageError{errors.New("name one client, and the command behind two dashes, as in broker exec vdab -- ./feed")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), s.client(), args[0], args[1:])
		}}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; if it is the command's: the command stands behind two dashes, as in broker exec vdab -- ./feed", err)}
	})
	c.Flags().StringVar(&f.o.Scope, "scope", "", "scopes, with a space between (default: the allow entry's, else the client's)")
	c.Flags().StringVar(&f.o.Audience, "audience", "", "audience of the token")
	c.Flags().StringVar(&f.o.Resource, "resource", "", "resource of the token, a URI (RFC 8707)")
	c.Flags().DurationVar(&f.o.MinTTL, "min-ttl", 0, "how much life the token must have left, as in 30s")
	c.Flags().DurationVar(&f.wait, "wait", 30*time.Second, "how long to wait for the first token, if the broker or the issuer is not ready")
	c.Flags().StringVar(&f.signal, "signal", "", "signal that tells the command of new values, as in HUP")
	c.Flags().StringVar(&f.quarantine, "on-quarantine", "term", "what the command gets when its values are taken away: term or none")
	c.Flags().BoolVar(&f.env, "env", false, "put the first values into the environment too ("+envToken+" …): they are\nnever renewed there, and every process of the same user can read them")
	c.Flags().BoolVar(&f.redact, "redact", false, "mask every live value in the command's output, also as base64, percent-encoded, hex;\nthe command then writes to pipes, to no terminal")
	return c
}

func (f *execFlags) run(ctx context.Context, c *client.Client, name string, argv []string) error {
	renewal, err := f.check()
	if err != nil {
		return err
	}
	path, err := findCommand(argv[0])
	if err != nil {
		return err
	}
	// The files are readable for other processes of this user only while this
	// one is dumpable.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("open this process for the command: %w", err)
	}
	cores, err := withoutMemory()
	if err != nil {
		return err
	}
	renew, lost := make(chan struct{}), make(chan error)
	s := &supply{client: c, name: name, o: f.o, renew: renew, lost: lost, files: map[string]*memoryFile{}, contents: map[string]string{}}
	s.o.Surface = "exec"
	if f.redact {
		s.mask = &redact.Filter{}
	}
	if err := s.first(ctx, f.wait); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return quiet(exitBySignal + int(unix.SIGTERM))
	}
	child := &child{cmd: &exec.Cmd{Path: path, Args: argv, Env: f.environment(s), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr},
		mask: s.mask, renewal: renewal, renew: renew, lost: lost, cores: cores, end: f.quarantine == "term"}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx)) // signals are the command's from here on
	defer stop()
	done := make(chan struct{})
	go func() { defer close(done); s.run(ctx) }()
	code, err := child.run()
	stop()
	<-done
	if err != nil || code == 0 {
		return err
	}
	return quiet(code)
}

func (f *execFlags) check() (renewal unix.Signal, err error) {
	if f.signal != "" {
		name := strings.ToUpper(f.signal)
		if renewal = unix.SignalNum("SIG" + strings.TrimPrefix(name, "SIG")); renewal == 0 {
			return 0, usageError{fmt.Errorf("--signal %s is no signal: write its name, as in HUP", f.signal)}
		}
	}
	if f.quarantine != "term" && f.quarantine != "none" {
		return 0, usageError{fmt.Errorf("--on-quarantine %s is not known: term or none", f.quarantine)}
	}
	if f.wait < 0 || f.o.MinTTL < 0 {
		return 0, usageError{errors.New("--wait and --min-ttl cannot be negative")}
	}
	return renewal, nil
}

// findCommand looks before anything is asked for.
func findCommand(name string) (string, error) {
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path, nil
	case errors.Is(err, fs.ErrPermission):
		return "", failure{exitNotRunnable, fmt.Errorf("%s cannot be run: %w", name, cause(err))}
	case errors.Is(err, exec.ErrDot):
		return "", failure{exitNotFound, fmt.Errorf("%s is found in the current directory alone: write ./%s", name, name)}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, exec.ErrNotFound):
		return "", failure{exitNotFound, fmt.Errorf("there is no command %s", name)}
	}
	return "", failure{exitNotRunnable, fmt.Errorf("%s cannot be run: %w", name, cause(err))}
}

// cause is an error without the name that it begins with.
func cause(err error) error { return cmp.Or(errors.Unwrap(err), err) }

// environment is that of this process, with the names of the files; what an
// outer broker exec has left there is its own.
func (f *execFlags) environment(s *supply) []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		ours := false
		for _, n := range suppliedNames() {
			ours = ours || name == n || name == n+"_FILE"
		}
		if !ours {
			env = append(env, e)
		}
	}
	for _, name := range suppliedNames() {
		if file := s.files[name]; file != nil {
			env = append(env, name+"_FILE="+file.path)
			if f.env {
				env = append(env, name+"="+s.contents[name])
			}
		}
	}
	return env
}
