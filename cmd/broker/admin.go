package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
)

func statusCommand(s *sockets) *cobra.Command {
	var asJSON, watch, check bool
	c := &cobra.Command{Use: "status", Short: "Show how the broker does", Args: noArgs,
		Long: "Show clients, secrets managers and the audit log. With --check, one line for a monitoring plug-in:\n" +
			"exit code 0 all well, 1 warning, 2 a client cannot be served, 3 unknown.",
		Example: "  broker status\n  broker status --watch\n  broker status --check\n  broker status --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			if check {
				return monitor(cmd.Context(), s, out)
			}
			for {
				st, err := s.administration().Status(cmd.Context())
				if err != nil {
					return err
				}
				switch {
				case asJSON:
					err = printJSON(out, st)
				default:
					if watch {
						fmt.Fprint(out, "\x1b[H\x1b[2J")
					}
					err = printStatus(out, st)
				}
				if err != nil || !watch {
					return err
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(2 * time.Second):
				}
			}
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&watch, "watch", false, "show it anew every two seconds, until Ctrl-C")
	c.Flags().BoolVar(&check, "check", false, "one line and exit code 0, 1, 2 or 3, for monitoring")
	return c
}

// monitor is the plug-in convention: one line, four exit codes.
func monitor(ctx context.Context, s *sockets, out io.Writer) error {
	st, err := s.administration().Status(ctx)
	if err != nil {
		fmt.Fprintln(out, "UNKNOWN: "+strings.ReplaceAll(explain(err), "\n", " "))
		return quiet(3)
	}
	code, problems := judge(st)
	word := [...]string{"OK", "WARNING", "CRITICAL"}[code]
	text := fmt.Sprintf("%d clients, all can be served", len(st.Clients))
	if len(problems) > 0 {
		text = strings.Join(problems, "; ")
	}
	fmt.Fprintf(out, "%s: %s | clients=%d\n", word, strings.ReplaceAll(text, "|", "/"), len(st.Clients))
	if code > 0 {
		return quiet(code)
	}
	return nil
}

// judge says how bad it is: 0, 1 or 2, and why.
func judge(st *client.Status) (code int, problems []string) {
	say := func(c int, format string, args ...any) {
		code = max(code, c)
		problems = append(problems, fmt.Sprintf(format, args...))
	}
	for _, c := range st.Clients {
		switch {
		case !c.Ready:
			say(2, "%s: %s", c.Client, c.Reason)
		case strings.HasPrefix(c.APIKey, "rejected"):
			say(1, "%s: the API key was %s", c.Client, c.APIKey)
		case c.Candidate != "":
			say(1, "%s: version %s of the secret waits", c.Client, c.Candidate)
		case c.Source.State == "failing" || c.Issuer.State == "failing":
			say(1, "%s: serves from memory for %d s", c.Client, c.Runway)
		}
		switch {
		case c.MaxAge == 0:
		case c.Age > c.MaxAge:
			say(2, "%s: the secret is %d days old, %d are allowed", c.Client, c.Age/86400, c.MaxAge/86400)
		case c.Age > c.MaxAge*8/10:
			say(1, "%s: the secret is due in %d days", c.Client, (c.MaxAge-c.Age)/86400)
		}
	}
	if !st.Audit.Healthy {
		say(2, "the audit log cannot be written: %s", st.Audit.Error)
	}
	return code, problems
}

func printStatus(out io.Writer, st *client.Status) error {
	fmt.Fprintf(out, "broker %s, up %s, secrets in %s\n", st.Version, time.Duration(st.Uptime)*time.Second, memory(st.SecretMemory))
	audit := "written"
	if !st.Audit.Healthy {
		audit = "NOT WRITTEN: " + st.Audit.Error
	}
	fmt.Fprintf(out, "audit log %s, entry %d, anchors: %s\n\n", audit, st.Audit.Seq, st.Audit.Anchors)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CLIENT\tSTATE\tRUNWAY\tVERSION\tMANAGER\tOWNER")
	for _, c := range st.Clients {
		state := "ready"
		if !c.Ready {
			state = string(c.Code)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s (%s)\t%s\n", c.Client, state, time.Duration(c.Runway)*time.Second, orDash(c.Version), c.Provider, c.Source.State, c.Owner)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, c := range st.Clients {
		for _, line := range []struct{ what, text string }{{"", c.Reason}, {"a new version waits", c.Candidate},
			{"API key", strings.TrimPrefix(c.APIKey, "unproved")}, {"secrets manager", c.Source.Reason}} {
			if line.text == "" {
				continue
			}
			if line.what != "" {
				line.text = line.what + ": " + line.text
			}
			fmt.Fprintf(out, "\n%s: %s", c.Client, line.text)
		}
	}
	for _, f := range st.Warnings {
		fmt.Fprintf(out, "\nwarning: %s: %s", f.Target, f.Detail)
	}
	_, err := fmt.Fprintln(out)
	return err
}

func memory(m map[string]int) string {
	var kinds []string
	for _, kind := range []string{"memfd_secret", "mlock", "unlocked"} {
		if m[kind] > 0 {
			kinds = append(kinds, fmt.Sprintf("%s (%d KiB)", kind, m[kind]>>10))
		}
	}
	return orDash(strings.Join(kinds, ", "))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// checkCommand is offline, and so brokerd's, but for --live.
func checkCommand(s *sockets) *cobra.Command {
	return &cobra.Command{Use: "check", Short: "Check the configuration, offline; with --live what the daemon depends on", DisableFlagParsing: true,
		Long: "Check the configuration, offline. With --egress, list every host:port for the firewall request. With --live,\n" +
			"try inside the running daemon what it depends on: sockets, clock, TLS, permissions, mail relay, a login\n" +
			"within the budget.\n\n" +
			"Offline: --config FILE, --egress, --json. With --live: --json, --socket PATH, --admin-socket PATH.",
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
		Example: "  broker reload",
		RunE: func(cmd *cobra.Command, _ []string) error {
			changes, err := s.administration().Reload(cmd.Context())
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
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

func rotateCommand(s *sockets) *cobra.Command {
	var r client.Rotation
	c := &cobra.Command{Use: "rotate CLIENT", Short: "Look for a new version of the secret now", Args: oneClient,
		Long: "Look for a new version of the client's secret now, prove it and install it. With --accept it is installed\n" +
			"without proof.",
		Example: "  broker rotate vdab\n  broker rotate --accept vdab",
		RunE: func(cmd *cobra.Command, args []string) error {
			return outcome(cmd, func(ctx context.Context) (*client.Outcome, error) {
				return s.administration().Rotate(ctx, args[0], r)
			})
		}}
	c.Flags().BoolVar(&r.Accept, "accept", false, "install what cannot be proved, on your word")
	return c
}

func retryCommand(s *sockets) *cobra.Command {
	return &cobra.Command{Use: "retry CLIENT", Short: "Try a refused version of the secret once more", Args: oneClient,
		Long: "Forget that the issuer has refused versions of the client's secret, and the failures of the last hour: for\n" +
			"when the issuer was wrong. A wrong secret is refused once more, and counts at the issuer.",
		Example: "  broker retry vdab",
		RunE: func(cmd *cobra.Command, args []string) error {
			return outcome(cmd, func(ctx context.Context) (*client.Outcome, error) { return s.administration().Retry(ctx, args[0]) })
		}}
}

func outcome(cmd *cobra.Command, do func(context.Context) (*client.Outcome, error)) error {
	o, err := do(cmd.Context())
	if err != nil {
		return err
	}
	text := o.Reason
	if o.Version != "" {
		text = "version " + o.Version + " serves: " + text
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}
