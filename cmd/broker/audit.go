package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
)

func auditCommand(s *sockets) *cobra.Command {
	c := &cobra.Command{Use: "audit", Short: "Read, check and export the audit log", Args: unknown,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Example: "  broker audit tail --follow\n  broker audit verify\n  broker audit denied\n  broker audit export --from 2026-01-01 --format csv"}
	c.AddCommand(auditTail(s), auditVerify(s), auditDenied(s), auditExport(s))
	return c
}

func auditTail(s *sockets) *cobra.Command {
	last, follow := 20, false
	c := &cobra.Command{Use: "tail", Short: "Print the newest entries, as JSON lines", Args: noArgs,
		Example: "  broker audit tail\n  broker audit tail --follow -n 0",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for line, err := range s.administration().Tail(cmd.Context(), last, follow) {
				if err != nil {
					return err
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n", line); err != nil {
					return err
				}
			}
			return nil
		}}
	c.Flags().IntVarP(&last, "lines", "n", last, "how many")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new ones, until Ctrl-C")
	return c
}

func auditVerify(s *sockets) *cobra.Command {
	var asJSON bool
	var dir string
	c := &cobra.Command{Use: "verify", Short: "Check that nothing was changed, removed or put in", Args: noArgs,
		Long: "Check the hash chain of the whole log. With --dir, which needs no daemon, the log is also compared with its\n" +
			"anchors in the system journal, which somebody who rewrites the log would have to rewrite too; for root\n" +
			"that is the default. Exit code 65 if something is wrong.",
		Example: "  broker audit verify\n  broker audit verify --dir " + auditDir,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := os.Stat(auditDir); dir == "" && err == nil && os.Geteuid() == 0 && *s == (sockets{}) && os.Getenv(client.Environment) == "" {
				dir = auditDir
			}
			v, err := s.verify(cmd.Context(), dir)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				err = printJSON(out, v)
			} else {
				printVerdict(out, v)
			}
			if err == nil && len(v.Problems) > 0 {
				return quiet(exitData)
			}
			return err
		}}
	c.Flags().StringVar(&dir, "dir", "", "directory of the log, to read it without the daemon and compare it with its anchors")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

const auditDir = "/var/lib/credential-broker/audit"

// verify has the daemon check the chain, or reads the log itself.
func (s *sockets) verify(ctx context.Context, dir string) (*client.Verdict, error) {
	if dir == "" {
		return s.administration().Verify(ctx)
	}
	// The anchors first: entries that are written meanwhile have later ones.
	anchors, err := journalAnchors(ctx)
	if err != nil {
		return nil, err
	}
	report, err := audit.Verify(dir, anchors)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(report) // one form on the wire and here
	if err != nil {
		return nil, err
	}
	v := &client.Verdict{}
	return v, json.Unmarshal(b, v)
}

// journalAnchors reads what the daemon's own unit has put into the journal:
// anybody may write to it, but not in that unit's name.
func journalAnchors(ctx context.Context) ([]audit.Anchor, error) {
	name, _ := exec.LookPath("journalctl")
	if name == "" {
		return nil, nil
	}
	// No journal is no anchor, which printVerdict says.
	cmd := exec.CommandContext(ctx, name, "--quiet", "--no-pager", "--output=json",
		"MESSAGE_ID="+audit.AnchorMessageID, "_SYSTEMD_UNIT=credential-broker.service")
	out, _ := cmd.Output()
	return audit.ParseAnchors(bytes.NewReader(out))
}

func printVerdict(out io.Writer, v *client.Verdict) {
	fmt.Fprintf(out, "entries %d to %d in %d files, %s to %s\n", v.First, v.Last, v.Segments, day(v.Since), day(v.Until))
	if v.Lost > 0 || v.Torn > 0 {
		fmt.Fprintf(out, "the log says itself that %d events could not be written and %d unfinished ends were set aside\n", v.Lost, v.Torn)
	}
	if v.Partial != "" {
		fmt.Fprintf(out, "%s: an unfinished line at the end, as a killed daemon leaves behind; the next start sets it aside\n", v.Partial)
	}
	for _, p := range v.Problems {
		fmt.Fprintf(out, "WRONG: %s\n", audit.Problem{File: p.File, Line: p.Line, What: p.What, Means: p.Means})
	}
	if v.More > 0 {
		fmt.Fprintf(out, "and %d more\n", v.More)
	}
	switch {
	case len(v.Problems) > 0:
	case v.Anchors == 0:
		fmt.Fprintln(out, "intact in itself; there was no anchor to compare it with: root reads them from the system journal, with audit: { anchor: journald }")
	default:
		fmt.Fprintf(out, "intact; %d anchors fit, up to entry %d\n", v.Anchors, v.Covered)
	}
}

func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

func auditDenied(s *sockets) *cobra.Command {
	var asJSON bool
	since := "24h"
	c := &cobra.Command{Use: "denied", Short: "Show who was refused what, with the YAML that would allow it", Args: noArgs,
		Example: "  broker audit denied\n  broker audit denied --since 2026-11-01",
		RunE: func(cmd *cobra.Command, _ []string) error {
			from, err := moment(since)
			if err != nil {
				return err
			}
			list, err := s.administration().Denied(cmd.Context(), from)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return printJSON(out, client.Denials{Denials: append([]client.Denial{}, list...)})
			}
			if len(list) == 0 {
				fmt.Fprintln(out, "nobody was refused anything since "+day(from))
			}
			for _, d := range list {
				printDenial(out, d)
			}
			return nil
		}}
	c.Flags().StringVar(&since, "since", since, "a duration back from now, a date or an RFC 3339 time")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printDenial(out io.Writer, d client.Denial) {
	who := "uid " + strconv.FormatUint(uint64(d.Caller.UID), 10)
	if name := userName(d.Caller.UID); name != "" {
		who += " (" + name + ")"
	}
	for _, u := range []struct{ name, value string }{{", unit ", d.Caller.Unit}, {", user unit ", d.Caller.UserUnit}, {", at ", d.Caller.Place}} {
		if u.value != "" {
			who += u.name + u.value
		}
	}
	what := orDash(d.Surface)
	if d.Client != "" {
		what += " of " + d.Client
	}
	fmt.Fprintf(out, "%s was refused %s %d times, last at %s (%s)\n", who, what, d.Count, day(d.Last), d.Code)
	switch d.Code {
	case "identity", "container", "surface", "restart":
		if d.Surface == "credential" && d.Caller.UID != 0 {
			fmt.Fprintln(out, "  nothing allows it: that socket answers systemd alone, which connects as root when it starts a unit")
			return
		}
		fmt.Fprintf(out, "  to allow it, if that client exists:\n  clients:\n    %s:\n      allow:\n        - %s\n", d.Client, allowEntry(d))
	case "path":
		fmt.Fprintln(out, "  it is outside of the route's paths: add it there if that is meant")
	case "scope", "audience":
		fmt.Fprintf(out, "  the %s lies outside of the entry: name it in scopes: or audiences: of the client, and of the entry if that lists any\n", d.Code)
	}
}

func userName(uid uint32) string {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return ""
	}
	return u.Username
}

// allowEntry is the narrowest entry that would have allowed it.
func allowEntry(d client.Denial) string {
	var keys []string
	add := func(key, value string) {
		if value != "" {
			keys = append(keys, key+": "+value)
		}
	}
	add("unit", quoted(d.Caller.Unit))
	add("user_unit", quoted(d.Caller.UserUnit))
	if d.Surface == "credential" && d.Caller.UID == 0 && d.Caller.Unit != "" {
		restart := ""
		if d.Code == "restart" {
			restart = ", restart: true"
		}
		return "{ " + keys[0] + ", surfaces: [credential]" + restart + " }"
	}
	if name := userName(d.Caller.UID); name != "" {
		add("user", quoted(name))
	} else {
		add("user", strconv.Quote(strconv.FormatUint(uint64(d.Caller.UID), 10)))
	}
	if d.Caller.Container {
		add("container", "allow")
	}
	if d.Scope != "" {
		add("scopes", "["+strings.Join(strings.Fields(d.Scope), ", ")+"]")
	}
	switch d.Surface {
	case "":
	case "token", "headers": // the same token either way
		add("surfaces", "[token, headers]")
	default:
		add("surfaces", "["+d.Surface+"]")
	}
	return "{ " + strings.Join(keys, ", ") + " }"
}

// quoted quotes what YAML would take for something else than text.
func quoted(s string) string {
	if s == "" || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == "" && s[0] > '9' {
		return s
	}
	return strconv.Quote(s)
}

// moment reads a point in time: how long ago, a day, or a time.
func moment(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usageError{fmt.Errorf("%q is no time: write 24h, 2026-11-21 or 2026-11-21T08:00:00Z", s)}
}

func auditExport(s *sockets) *cobra.Command {
	var from, to string
	format := "json"
	c := &cobra.Command{Use: "export", Short: "Write entries for an auditor", Args: noArgs,
		Example: "  broker audit export --from 2026-01-01 --to 2026-02-01 > january.jsonl\n  broker audit export --format csv",
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := moment(from)
			if err != nil {
				return err
			}
			t, err := moment(to)
			if err != nil {
				return err
			}
			if format != "json" && format != "csv" {
				return usageError{fmt.Errorf("--format %s is unknown: json or csv", format)}
			}
			return s.administration().Export(cmd.Context(), cmd.OutOrStdout(), f, t, format)
		}}
	c.Flags().StringVar(&from, "from", "", "a duration back from now, a date or an RFC 3339 time (default: the beginning)")
	c.Flags().StringVar(&to, "to", "", "likewise (default: now)")
	c.Flags().StringVar(&format, "format", format, "json (lines) or csv")
	return c
}
