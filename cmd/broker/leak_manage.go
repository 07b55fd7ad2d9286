package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
)

const maxEvidence = 1 << 20 // bytes, as the daemon has it

func oneIncident(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("name one incident, as in %s 2026-0007; broker leak list shows them", cmd.CommandPath())}
	}
	return nil
}

func leakList(s *sockets) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "list", Short: "List incidents, newest first", Args: noArgs, Example: "  broker leak list\n  broker leak list --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := s.administration().Incidents(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), client.Incidents{Incidents: append([]client.Incident{}, list...)})
			}
			return printIncidents(cmd.OutOrStdout(), list)
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func leakShow(s *sockets) *cobra.Command {
	var texts bool
	return incidentCommand(&cobra.Command{Use: "show INCIDENT", Short: "Show what was done, who was told, and what is left to do",
		Example: "  broker leak show 2026-0007\n  broker leak show 2026-0007 --mail\n  broker leak show 2026-0007 --json   # with the whole record"},
		func(c *cobra.Command) { c.Flags().BoolVar(&texts, "mail", false, "show the mails, too") },
		func(ctx context.Context, id string) (*client.Incident, error) {
			return s.administration().Incident(ctx, id)
		},
		func(out io.Writer, i *client.Incident) { printIncident(out, i, texts) })
}

func leakRelease(s *sockets) *cobra.Command {
	var how client.IncidentRelease
	return incidentCommand(&cobra.Command{Use: "release INCIDENT", Short: "End the quarantine: tokens are handed out again",
		Long: "End the quarantine of an incident's clients. It is refused until a new version is installed and proved, in which what\n" +
			"has leaked is another, and then says what is missing. Where the old version is not known any more, here or to the\n" +
			"secrets manager, a person has to confirm it; that is recorded.",
		Example: "  broker leak release 2026-0007"},
		func(c *cobra.Command) { confirmedFlag(c, &how) },
		func(ctx context.Context, id string) (*client.Incident, error) {
			return s.administration().Release(ctx, id, how)
		},
		func(out io.Writer, i *client.Incident) {
			fmt.Fprintf(out, "incident %s: released\n", i.ID)
			printIncident(out, i, false)
		})
}

func leakClose(s *sockets) *cobra.Command {
	var how client.IncidentClose
	var told []string
	return incidentCommand(&cobra.Command{Use: "close INCIDENT", Short: "Close an incident, and send the final report",
		Long: "Close an incident: a new version is installed, the issuer refuses the old one (one attempt, within the budget), and\n" +
			"the report was delivered, or told by hand where no relay takes it. What is missing is said. The final report has the timeline; the record is kept.",
		Example: "  broker leak close 2026-0007\n  broker leak close 2026-0007 --old-still-valid 'VDAB ends it on Monday'   # reminds you every week"},
		func(c *cobra.Command) {
			c.Flags().StringVar(&how.OldStillValid, "old-still-valid", "", "close it although the old one still works, and why")
			c.Flags().StringArrayVar(&told, "told-by-hand", nil, "RECIPIENT=HOW: no mail reaches an address, and how it was told (repeatable)")
			c.Flags().StringVar(&how.As, "as", "", `who closes it, as "name, phone"`)
			confirmedFlag(c, &how.IncidentRelease)
		},
		func(ctx context.Context, id string) (*client.Incident, error) {
			for _, t := range told {
				to, text, ok := strings.Cut(t, "=")
				if !ok || to == "" || strings.TrimSpace(text) == "" {
					return nil, usageError{errors.New("--told-by-hand is RECIPIENT=HOW, as in --told-by-hand security@issuer.example='An called Jan, 14:05'")}
				}
				if how.ToldByHand == nil {
					how.ToldByHand = map[string]string{}
				}
				how.ToldByHand[to] = text
			}
			return s.administration().Close(ctx, id, how)
		},
		func(out io.Writer, i *client.Incident) { printIncident(out, i, false) })
}

func confirmedFlag(c *cobra.Command, how *client.IncidentRelease) {
	c.Flags().BoolVar(&how.NewSecretConfirmed, "new-secret-confirmed", false, "you know that what leaked was replaced, where nothing else shows it")
}

// incidentCommand is one that takes an incident and gives it back.
func incidentCommand(c *cobra.Command, flags func(*cobra.Command), do func(context.Context, string) (*client.Incident, error), show func(io.Writer, *client.Incident)) *cobra.Command {
	var asJSON bool
	c.Args = oneIncident
	c.RunE = func(cmd *cobra.Command, args []string) error {
		i, err := do(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), i)
		}
		show(cmd.OutOrStdout(), i)
		return nil
	}
	if flags != nil {
		flags(c)
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func leakDrill(s *sockets) *cobra.Command {
	failed := false
	var wait time.Duration
	c := incidentCommand(&cobra.Command{Use: "drill CLIENT", Short: "Exercise a leak: everything, but to your own addresses",
		Long: "Go through a leak of the client's credentials: the record, the mails, clearly marked as an exercise, to the\n" +
			"organisation's own addresses and never to the issuer's. The client is not contained. Each step is timed, and the\n" +
			"drill is kept as evidence. It waits until a relay has taken the mails. Exit code 69 if a step failed, or that did not\n" +
			"happen in time.",
		Example: "  broker leak drill vdab"},
		func(c *cobra.Command) {
			c.Flags().DurationVar(&wait, "wait", time.Minute, "how long to wait for the mail relay")
		},
		func(ctx context.Context, name string) (*client.Incident, error) {
			i, err := s.administration().Drill(ctx, name)
			if err == nil {
				i, err = followDrill(ctx, s.administration(), i, wait)
			}
			failed = err == nil && (i.State != "closed" || slices.ContainsFunc(i.Done, func(s client.IncidentStep) bool { return s.Outcome == "failed" }))
			return i, err
		},
		func(out io.Writer, i *client.Incident) {
			fmt.Fprintf(out, "drill %s: recorded\n", i.ID)
			printIncident(out, i, false)
		})
	c.Args = oneClient
	run := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := run(cmd, args); err != nil || !failed {
			return err
		}
		return quiet(exitUnavailable)
	}
	return c
}

// followDrill waits for the end of a drill: when its mails are taken, or one is
// refused for good, or the time is over.
func followDrill(ctx context.Context, a *client.Admin, i *client.Incident, wait time.Duration) (*client.Incident, error) {
	ends := time.Now().Add(wait)
	progress := isTerminal(os.Stderr)
	for i.State != "closed" && time.Now().Before(ends) && !slices.ContainsFunc(i.Mails, func(m client.Mail) bool { return m.State == "refused" }) {
		if progress {
			fmt.Fprintf(os.Stderr, "\r\x1b[Kdrill %s is recorded; waiting for the mail relay, %d s at most", i.ID, int(time.Until(ends).Seconds()))
		}
		select {
		case <-ctx.Done():
			return nil, failure{exitTryAgain, fmt.Errorf("drill %s is recorded, and goes on: broker leak show %s", i.ID, i.ID)}
		case <-time.After(500 * time.Millisecond):
		}
		next, err := a.Incident(ctx, i.ID)
		if err != nil {
			return nil, err
		}
		i = next
	}
	if progress {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	return i, nil
}

func leakEvidence(s *sockets) *cobra.Command {
	var add string
	c := &cobra.Command{Use: "evidence INCIDENT", Short: "Print what this host knows of an incident, or add what another one does", Args: oneIncident,
		Long: "Print, as JSON, which tokens this host had in the time of an incident, and who had them. --add takes that into the\n" +
			"incident that it belongs to, on the host that reports: it is in the next revision of the report. It holds no secret\n" +
			"and no token, but names users and services.",
		Example: "  broker leak evidence 2026-0003 > web2.json   # on web2\n  broker leak evidence --add web2.json 2026-0007   # on web1",
		RunE: func(cmd *cobra.Command, args []string) error {
			out := cmd.OutOrStdout()
			if add == "" {
				e, err := s.administration().Evidence(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return printJSON(out, e)
			}
			e, err := readEvidence(add, cmd.InOrStdin())
			if err != nil {
				return err
			}
			i, err := s.administration().AddEvidence(cmd.Context(), args[0], e)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "incident %s: the evidence is in\n", i.ID)
			printReport(out, i)
			return nil
		}}
	c.Flags().StringVar(&add, "add", "", "file of another host's evidence; - for standard input")
	return c
}

func readEvidence(name string, in io.Reader) (json.RawMessage, error) {
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, failure{exitData, err}
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxEvidence+1))
	switch {
	case err != nil:
		return nil, failure{exitData, err}
	case len(b) > maxEvidence:
		return nil, failure{exitData, errors.New("the evidence is larger than 1 MiB")}
	case !json.Valid(b):
		return nil, failure{exitData, errors.New("that is no evidence: give the file that broker leak evidence printed on the other host")}
	}
	return b, nil
}

func leakPreview(s *sockets) *cobra.Command {
	var asJSON, confirmed bool
	d := client.Declaration{Severity: "suspected", What: []string{"unknown"}, Policy: "keep-serving", DryRun: true}
	c := &cobra.Command{Use: "preview CLIENT", Short: "Show the mail that a leak would send", Args: oneClient,
		Long:    "Show the mail and its recipients, with placeholders for what you would say. Nothing is recorded, sent or contained.",
		Example: "  broker leak preview vdab --lang nl\n  broker leak preview vdab --confirmed",
		RunE: func(cmd *cobra.Command, args []string) error {
			d.Client, d.Happened = args[0], "(what happened)"
			switch d.Language {
			case "nl":
				d.Happened = "(wat er gebeurd is)"
			case "", "en":
			default:
				return usageError{fmt.Errorf("--lang %s is unknown: nl or en", d.Language)}
			}
			if confirmed {
				d.Severity = "confirmed"
			}
			i, err := s.administration().Declare(cmd.Context(), d)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), i)
			}
			printMissing(cmd.OutOrStdout(), i)
			printMails(cmd.OutOrStdout(), i.Mails)
			return nil
		}}
	c.Flags().BoolVar(&confirmed, "confirmed", false, "as of a leak that is certain")
	c.Flags().StringVar(&d.Language, "lang", "", "language that comes first: nl or en (default: the issuer's)")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
