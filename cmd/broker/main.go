// Broker is the credential broker's command line. It links no SDK and starts
// in milliseconds: scripts call it for each request. What needs more, it finds
// and runs brokerd for.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
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
	ctx, stop := signal.NotifyContext(context.Background(), heeded(syscall.SIGINT, syscall.SIGTERM)...)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		var q quiet
		if !errors.As(err, &q) {
			fmt.Fprintln(os.Stderr, "broker: "+explain(err))
		}
		os.Exit(exitCode(err))
	}
}

// heeded leaves out what whoever started us wants to be ignored, as nohup and
// a script's & do.
func heeded(signals ...os.Signal) []os.Signal { return slices.DeleteFunc(signals, signal.Ignored) }

// quiet is an exit code whose reason is on the screen already.
type quiet int

func (quiet) Error() string { return "" }

// failure is an error with an exit code of its own.
type failure struct {
	code int
	error
}

// usageError is a mistake on the command line.
type usageError struct{ error }

// explain says what a person needs: the sentence, and what to do.
func explain(err error) string {
	var p *client.Problem
	if !errors.As(err, &p) {
		return err.Error()
	}
	text := p.Detail
	if p.Identity != "" {
		text += "\n  you are seen as: " + p.Identity
	}
	for i, c := range p.Clients {
		if i == 0 {
			text += "\n  you may use:"
		}
		text += " " + c
	}
	if p.RetryAfter > 0 {
		text += fmt.Sprintf("\n  try again in %d s", p.RetryAfter)
	}
	return text
}

// exitCode is the one table from failures to exit codes.
func exitCode(err error) int {
	var p *client.Problem
	var u usageError
	var q quiet
	var f failure
	switch {
	case errors.As(err, &q):
		return int(q)
	case errors.As(err, &f):
		return f.code
	case errors.As(err, &u):
		return exitUsage
	case !errors.As(err, &p):
		return exitUnavailable
	}
	switch p.Code {
	case client.CredentialsRejected:
		if p.RetryAfter > 0 { // not judged, or not now
			return exitTryAgain
		}
	case client.InvalidRequest, client.NotFound, client.MethodNotAllowed:
		return exitUsage
	case client.NotAllowed, client.Quarantined, client.APIKeyRejected, client.LoginRequired:
		return exitNotAllowed
	case client.RateLimited, client.IssuerUnavailable, client.ProviderUnavailable, client.AuditUnavailable:
		return exitTryAgain
	case client.InvalidConfiguration:
		return exitConfig
	case client.IssuerProtocolError, client.APIUnavailable, client.APITimeout, client.Internal:
	}
	return exitUnavailable
}

// sockets are the flags that every command has.
type sockets struct{ consumer, admin string }

func command() *cobra.Command {
	s := &sockets{}
	root := &cobra.Command{
		Use:   "broker",
		Short: "Tokens for local processes, from credentials that they never see",
		Long: "The credential broker reads client credentials from a secrets manager, keeps access tokens fresh and\n" +
			"hands them to the local processes that may have them.",
		Example:       "  broker token vdab\n  broker headers vdab | curl -sSf -H @- https://api.vdab.be/services/openservices/\n  broker status",
		Version:       version,
		Args:          unknown,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&s.consumer, "socket", "", "consumer socket (default: $"+client.Environment+", else, if it is there,\n$XDG_RUNTIME_DIR/credential-broker/broker.sock, else /run/credential-broker/broker.sock)")
	root.PersistentFlags().StringVar(&s.admin, "admin-socket", "", "administrators' socket (default: admin.sock beside the consumer socket)")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(tokenCommand(s), headersCommand(s), apiKeyCommand(s), jwtCommand(s), whoamiCommand(s), execCommand(s),
		statusCommand(s), checkCommand(s), reloadCommand(s), rotateCommand(s), retryCommand(s), keysCommand(s), intakeCommand(s), setupCommand(s), loginCommand(s), revokeCommand(s), auditCommand(s), leakCommand(s), whoisCommand(s),
		scanCommand(s),
		forward("serve", "Run the daemon", "  broker serve\n  broker serve --config ./broker.yaml"),
		forward("presets", "List what is known of issuers, each value with its source", "  broker presets\n  broker presets show vdab-production"),
		forward("demo", "Run a whole broker with an issuer to play with", "  broker demo\n  broker demo --once\n  broker demo --fault 503"),
		versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "version", Short: "Print the version", Example: "  broker version\n  broker version --json", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]string{"version": version})
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version)
			return err
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (s *sockets) client() *client.Client { return &client.Client{Socket: s.consumer} }

func (s *sockets) administration() *client.Admin {
	a := &client.Admin{Socket: s.admin}
	if a.Socket == "" && s.consumer != "" {
		a.Socket = besideOf(s.consumer)
	}
	return a
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

func oneClient(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("name one client, as in %s vdab; broker whoami lists those that you may use", cmd.CommandPath())}
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
