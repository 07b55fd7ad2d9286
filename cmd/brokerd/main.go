// Brokerd is the credential broker's daemon. People run broker, which finds
// and runs it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
	"credentialbroker/configs"
	"credentialbroker/internal/secret"
)

// version is set when the program is linked.
var version = "unknown"

// Exit codes, as sysexits.h has them.
const (
	exitUsage       = 64
	exitData        = 65
	exitUnavailable = 69
	exitTryAgain    = 75
	exitNotAllowed  = 77
	exitConfig      = 78
)

func main() {
	// Before anything else can be read: no cores, no other reader.
	if err := secret.Harden(); err != nil {
		fmt.Fprintln(os.Stderr, "brokerd:", err)
		os.Exit(exitUnavailable)
	}
	// net/http prints the first bytes of an answer that nobody asked for through
	// the standard logger: an upstream's bytes are never logged.
	log.SetOutput(io.Discard)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, failed(os.Stderr, explain(err)))
		os.Exit(exitCode(err))
	}
}

// explain leaves a list of mistakes as it is: its lines name their files.
func explain(err error) string {
	var p configs.Problems
	if errors.As(err, &p) {
		return err.Error()
	}
	return "broker: " + err.Error()
}

func exitCode(err error) int {
	var p configs.Problems
	var u usageError
	var p503 *client.Problem
	var f storeError
	switch {
	case errors.As(err, &f):
		return f.exit()
	case errors.As(err, &p), errors.Is(err, errConfig):
		return exitConfig
	case errors.As(err, &u):
		return exitUsage
	case errors.Is(err, errUnrecorded):
		return exitTryAgain
	case errors.As(err, &p503):
		if p503.Status == 503 {
			return exitTryAgain
		}
	}
	return exitUnavailable
}

var errConfig = errors.New("configuration")

// usageError is a mistake on the command line.
type usageError struct{ error }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "broker", // what people type: broker finds and runs this program
		Short:         "The credential broker's daemon",
		Long:          "The credential broker's daemon. People run broker, which finds and runs it.",
		Args:          unknown,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(serveCommand(), checkCommand(), presetsCommand(), demoCommand(), hostCommand(), spoolCommand(), storeCommand())
	return root
}

func presetsCommand() *cobra.Command {
	var asJSON bool
	list := func(cmd *cobra.Command, _ []string) error {
		if asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(configs.Presets())
		}
		for _, name := range configs.Presets() {
			fmt.Fprintln(cmd.OutOrStdout(), name)
		}
		return nil
	}
	c := &cobra.Command{Use: "presets", Short: "List what is known of issuers", Args: unknown, RunE: list,
		Example: "  broker presets\n  broker presets show vdab-production"}
	show := &cobra.Command{Use: "show NAME", Short: "Print a preset, each value with its source", Args: oneArg,
		Example: "  broker presets show vdab-production --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := configs.Show(cmd.OutOrStdout(), args[0], asJSON); err != nil {
				return usageError{err}
			}
			return nil
		}}
	show.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	names := &cobra.Command{Use: "list", Short: "List the names", Args: noArgs, RunE: list, Example: "  broker presets list --json"}
	names.Flags().BoolVar(&asJSON, "json", false, "print one JSON array")
	c.AddCommand(show, names)
	return c
}

// unknown is the arguments of a command that has subcommands: a mistyped one.
func unknown(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s has no command %q: %s --help lists them", cmd.CommandPath(), args[0], cmd.CommandPath())}
	}
	return nil
}

func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return usageError{err}
	}
	return nil
}

func oneArg(cmd *cobra.Command, args []string) error {
	if err := cobra.ExactArgs(1)(cmd, args); err != nil {
		return usageError{err}
	}
	return nil
}

// printf writes to a command's output; a closed pipe is no news.
func printf(w io.Writer, format string, args ...any) { fmt.Fprintf(w, format, args...) }
