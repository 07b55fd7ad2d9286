package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
)

// checkCommand is offline, and so brokerd's, but for --live.
func checkCommand(s *sockets) *cobra.Command {
	return &cobra.Command{Use: "check", Short: "Check the configuration, offline; with --live what the daemon depends on", DisableFlagParsing: true,
		Long: "Check the configuration, offline. With --egress, list every host:port for the firewall request. With --live,\n" +
			"try inside the running daemon what it depends on: sockets, clock, TLS, permissions, mail relay, a login\n" +
			"within the budget.\n\n" +
			"Offline: --config FILE, --replace FILE=NEW, --egress, --json. With --live: --json, --socket PATH, --admin-socket PATH.",
		Example: "  broker check\n  broker check --egress\n  broker check --live",
		RunE: func(cmd *cobra.Command, args []string) error {
			rest, live, asJSON, err := s.liveFlags(args)
			if err != nil {
				return err
			}
			if slices.Contains(args, "--help") || slices.Contains(args, "-h") {
				return cmd.Help()
			}
			if !live {
				return runDaemon(append([]string{"check"}, args...))
			}
			if len(rest) > 0 {
				return usageError{fmt.Errorf("check --live takes --json, --socket and --admin-socket, not %s", rest[0])}
			}
			return liveCheck(cmd.Context(), s, cmd.OutOrStdout(), asJSON)
		}}
}

// liveFlags takes out of args what belongs to --live.
func (s *sockets) liveFlags(args []string) (rest []string, live, asJSON bool, err error) {
	for i := 0; i < len(args); i++ {
		name, value, found := strings.Cut(args[i], "=")
		var to *string
		switch name {
		case "--live":
			live = true
			continue
		case "--json":
			asJSON = true
			continue
		case "--socket":
			to = &s.consumer
		case "--admin-socket":
			to = &s.admin
		default:
			rest = append(rest, args[i])
			continue
		}
		if !found {
			if i++; i == len(args) {
				return nil, live, asJSON, usageError{fmt.Errorf("%s needs a path", name)}
			}
			value = args[i]
		}
		*to = value
	}
	return rest, live, asJSON, nil
}

func liveCheck(ctx context.Context, s *sockets, out io.Writer, asJSON bool) error {
	bad := 0
	for f, err := range s.administration().Check(ctx) {
		if err != nil {
			return err
		}
		if f.Level == client.Error {
			bad++
		}
		if asJSON {
			if err := printJSON(out, f); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(out, "%-8s %-7s %s: %s\n", f.Level, f.Check, f.Target, f.Detail)
	}
	if bad > 0 {
		return quiet(exitUnavailable)
	}
	return nil
}

func reloadCommand(s *sockets) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "reload", Short: "Take the changed configuration, whole or not at all", Args: noArgs,
		Long: "Make the daemon read its configuration anew. It is taken whole, and the difference printed; or, with any\n" +
			"mistake, not at all. What permits more than before is marked, and an audit event of its own.",
		Example: "  broker reload\n  broker reload --json   # with mistakes: the error document",
		RunE: func(cmd *cobra.Command, _ []string) error {
			changes, err := s.administration().Reload(cmd.Context())
			out := cmd.OutOrStdout()
			if err != nil {
				return refusal(out, err, asJSON)
			}
			if asJSON {
				return printJSON(out, client.Changes{Changes: append([]client.Change{}, changes...)})
			}
			if len(changes) == 0 {
				fmt.Fprintln(out, "nothing has changed")
			}
			for _, c := range changes {
				fmt.Fprintln(out, c.What)
			}
			return nil
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// refusal is err, or where JSON is wanted the daemon's error document.
func refusal(out io.Writer, err error, asJSON bool) error {
	var p *client.Problem
	if asJSON && errors.As(err, &p) {
		return errors.Join(printJSON(out, p), quiet(exitCode(err)))
	}
	return err
}

func rotateCommand(s *sockets) *cobra.Command {
	var r client.Rotation
	var asJSON bool
	c := &cobra.Command{Use: "rotate CLIENT", Short: "Look for a new version of the secret now", Args: oneClient,
		Long: "Look for a new version of the client's secret now, prove it and install it. With --accept it is installed\n" +
			"without proof. With --to an older version serves again, if the secrets manager still has it and the issuer takes\n" +
			"it, and newer ones are not looked at until --latest.",
		Example: "  broker rotate vdab\n  broker rotate --accept vdab\n  broker rotate vdab --to 7\n  broker rotate vdab --latest",
		RunE: func(cmd *cobra.Command, args []string) error {
			return outcome(cmd, asJSON, func(ctx context.Context) (*client.Outcome, error) {
				return s.administration().Rotate(ctx, args[0], r)
			})
		}}
	c.Flags().BoolVar(&r.Accept, "accept", false, "install what cannot be proved, on your word")
	c.Flags().StringVar(&r.Version, "to", "", "roll back to this version of the secrets manager, and pin it")
	c.Flags().BoolVar(&r.Latest, "latest", false, "take the pin away: the newest version serves again")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func retryCommand(s *sockets) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "retry CLIENT", Short: "Try a refused version of the secret once more", Args: oneClient,
		Long: "Forget that the issuer has refused versions of the client's secret, and the failures of the last hour: for\n" +
			"when the issuer was wrong. A wrong secret is refused once more, and counts at the issuer.",
		Example: "  broker retry vdab",
		RunE: func(cmd *cobra.Command, args []string) error {
			return outcome(cmd, asJSON, func(ctx context.Context) (*client.Outcome, error) { return s.administration().Retry(ctx, args[0]) })
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func revokeCommand(s *sockets) *cobra.Command {
	var r client.Revocation
	var asJSON bool
	c := &cobra.Command{Use: "revoke CLIENT", Short: "Take the client's tokens back at the issuer", Args: oneClient,
		Long: "Ask the issuer to revoke the client's access tokens (RFC 7009), and forget them: the next request gets a new\n" +
			"one. With --login the refresh token goes too, and a person has to log in again. An issuer without revocation\n" +
			"is said to have none; then its portal is the way.",
		Example: "  broker revoke mijnklantportaal\n  broker revoke mijnklantportaal --login",
		RunE: func(cmd *cobra.Command, args []string) error {
			return outcome(cmd, asJSON, func(ctx context.Context) (*client.Outcome, error) {
				return s.administration().Revoke(ctx, args[0], r)
			})
		}}
	c.Flags().BoolVar(&r.Login, "login", false, "end the login too: revoke the refresh token")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func outcome(cmd *cobra.Command, asJSON bool, do func(context.Context) (*client.Outcome, error)) error {
	o, err := do(cmd.Context())
	switch {
	case err != nil:
		return refusal(cmd.OutOrStdout(), err, asJSON)
	case asJSON:
		return printJSON(cmd.OutOrStdout(), o)
	}
	text := o.Reason
	if o.Version != "" {
		text = "version " + o.Version + " serves: " + text
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}
