package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
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
		Long: "Show clients, secrets managers and the audit log. Exit code 75 while a leak report is not delivered though\n" +
			"it had its time. With --check, one line for a monitoring plug-in: exit code 0 all well, 1 warning, 2 a client\n" +
			"cannot be served or a leak report is not delivered, 3 unknown.",
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
				switch {
				case err != nil:
					return err
				case !watch && undelivered(st):
					return quiet(exitTryAgain)
				case !watch:
					return nil
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

// undelivered says whether somebody who has to know of a leak is not told.
func undelivered(st *client.Status) bool {
	return slices.ContainsFunc(st.Incidents, func(i client.IncidentLine) bool { return i.Undelivered > 0 })
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
		case !c.DegradedUntil.IsZero():
			say(1, "%s: %s", c.Client, degraded(&c))
		case strings.HasPrefix(c.APIKey, "rejected"):
			say(1, "%s: the API key was %s", c.Client, c.APIKey)
		case c.Candidate != "":
			say(1, "%s: %s", c.Client, waiting(&c))
		case c.Source.State == "failing" || c.Issuer.State == "failing":
			say(1, "%s: serves from memory for %d s", c.Client, c.Runway)
		case c.Login != nil && c.Login.State != "ok":
			say(1, "%s: %s", c.Client, loginText(&c))
		}
		if c.KeepError != "" && c.DegradedUntil.IsZero() {
			say(1, "%s: no copy for a start in an outage: %s", c.Client, c.KeepError)
		}
		for _, text := range narrowed(&c) {
			say(1, "%s: %s", c.Client, text)
		}
		for _, text := range fileTexts(&c) {
			say(1, "%s: %s", c.Client, text)
		}
		if level, text := age(&c); level > 0 {
			say(level, "%s: %s", c.Client, text)
		}
	}
	for _, i := range st.Incidents {
		level := 1
		if i.Undelivered > 0 {
			level = 2
		}
		say(level, "%s", incidentText(&i))
	}
	if !st.Audit.Healthy {
		say(2, "the audit log cannot be written: %s", st.Audit.Error)
	}
	return code, problems
}

func printStatus(out io.Writer, st *client.Status) error {
	fmt.Fprintf(out, "broker %s, up %s, secrets in %s\n", st.Version, time.Duration(st.Uptime)*time.Second, memory(st.SecretMemory))
	if len(st.Platform) > 0 {
		fmt.Fprintf(out, "platform: %s\n", platform(st.Platform))
	}
	audit := "written"
	if !st.Audit.Healthy {
		audit = "NOT WRITTEN: " + st.Audit.Error
	}
	fmt.Fprintf(out, "audit log %s, entry %d, anchors: %s\n\n", audit, st.Audit.Seq, st.Audit.Anchors)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CLIENT\tSTATE\tRUNWAY\tVERSION\tAGE\tMANAGER\tOWNER")
	for _, c := range st.Clients {
		state := "ready"
		switch {
		case !c.Ready:
			state = string(c.Code)
		case !c.DegradedUntil.IsZero():
			state = "DEGRADED"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s (%s)\t%s\n", c.Client, state, time.Duration(c.Runway)*time.Second, orDash(c.Version), days(c.Age), c.Provider, c.Source.State, c.Owner)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, c := range st.Clients {
		for _, text := range remarks(&c) {
			fmt.Fprintf(out, "\n%s: %s", c.Client, text)
		}
	}
	for _, r := range st.Routes {
		fmt.Fprintf(out, "\n%s: route %s: %s -> %s, %d requests", r.Client, r.Route, r.Socket, r.Upstream, r.Requests)
		if r.Failed > 0 {
			fmt.Fprintf(out, ", %d without an answer, last at %s: %s", r.Failed, r.ErrorAt.UTC().Format(time.RFC3339), r.Error)
		}
	}
	for _, i := range st.Incidents {
		fmt.Fprintf(out, "\n%s", incidentText(&i))
	}
	for _, f := range st.Warnings {
		fmt.Fprintf(out, "\nwarning: %s: %s", f.Target, f.Detail)
	}
	_, err := fmt.Fprintln(out)
	return err
}

// incidentText says of an incident what somebody has to do.
func incidentText(i *client.IncidentLine) string {
	switch {
	case i.State == "damaged":
		return fmt.Sprintf("THE REPORT of incident %s HAS NOT REACHED %d recipients, and its record cannot be read: the daemon's journal says why", i.ID, i.Undelivered)
	case i.Undelivered == 1:
		return fmt.Sprintf("%s: THE REPORT of incident %s HAS NOT REACHED 1 recipient: broker leak show %[2]s", i.Client, i.ID)
	case i.Undelivered > 1:
		return fmt.Sprintf("%s: THE REPORT of incident %s HAS NOT REACHED %d recipients: broker leak show %[2]s", i.Client, i.ID, i.Undelivered)
	case i.State == "draft":
		return fmt.Sprintf("%s: the daemon suspects a leak, incident %s, since %s: broker leak show %[2]s", i.Client, i.ID, day(i.Since))
	}
	return fmt.Sprintf("%s: incident %s is %s since %s: broker leak show %[2]s", i.Client, i.ID, i.State, day(i.Since))
}

// remarks are what is to be said of a client beyond its line in the table.
func remarks(c *client.StatusClient) []string {
	reason := c.Reason
	if c.Login != nil && c.Login.Reason == reason {
		reason = "" // it is said below
	}
	var list []string
	for _, line := range []struct{ what, text string }{{"", reason}, {"", degraded(c)}, {"no copy for a start in an outage: ", c.KeepError}, {"", loginText(c)}, {"", waiting(c)}, {"", pinned(c)}, {"", pendingKey(c)},
		{"API key: ", c.APIKey}, {"secrets manager: ", c.Source.Reason}} {
		if line.text != "" {
			list = append(list, line.what+line.text)
		}
	}
	list = append(list, narrowed(c)...)
	for _, f := range c.Files {
		if f.State == "ok" {
			text := fmt.Sprintf("file %s: ok", f.Path)
			if !f.Expires.IsZero() {
				text += ", good until " + f.Expires.UTC().Format(time.RFC3339)
			}
			list = append(list, text)
		}
	}
	list = append(list, fileTexts(c)...)
	if _, text := age(c); text != "" {
		list = append(list, text)
	}
	if len(c.Steps) > 0 {
		text := "to replace the secret:"
		for i, step := range c.Steps {
			text += fmt.Sprintf("\n  %d. %s", i+1, step)
		}
		list = append(list, text)
	}
	return list
}

func waiting(c *client.StatusClient) string {
	if c.Candidate == "" {
		return ""
	}
	return fmt.Sprintf("version %s waits: %s", c.Candidate, cmp.Or(c.Waiting, "it has not been tried yet"))
}

func pinned(c *client.StatusClient) string {
	if c.Pinned == "" {
		return ""
	}
	return fmt.Sprintf("version %s is pinned: broker rotate --latest %s lets go", c.Pinned, c.Client)
}

func pendingKey(c *client.StatusClient) string {
	if c.PendingKey == "" {
		return ""
	}
	return fmt.Sprintf("a new key (%s) waits for the issuer: broker keys rotate %s", c.PendingKey, c.Client)
}

// degraded says by what a client lives while its secrets manager is down, if by
// nothing else; empty: it does not.
func degraded(c *client.StatusClient) string {
	if c.DegradedUntil.IsZero() || c.Reason != "" && c.DegradedReason == c.Reason {
		return ""
	}
	return "DEGRADED until " + c.DegradedUntil.UTC().Format(time.RFC3339) + " at most: " + c.DegradedReason
}

// age says how a secret does that has a limit of age: level 1 from 80 % of it,
// 2 past it, as monitoring counts.
func age(c *client.StatusClient) (level int, text string) {
	switch {
	case c.MaxAge == 0 || c.Version == "":
		return 0, ""
	case c.Due.IsZero():
		return 1, "the secret's age is not known: its manager does not say when it was made, so max_age cannot be watched"
	case c.Age >= c.MaxAge:
		return 2, fmt.Sprintf("the secret is %s old, %s are allowed: it was due on %s", days(c.Age), days(c.MaxAge), c.Due.Format(time.DateOnly))
	case c.Age > c.MaxAge*8/10:
		return 1, fmt.Sprintf("the secret is %s old and due in %s, on %s", days(c.Age), days(c.MaxAge-c.Age), c.Due.Format(time.DateOnly))
	}
	return 0, fmt.Sprintf("the secret is due on %s", c.Due.Format(time.DateOnly))
}

// days is an age for people; zero is not known.
func days(seconds int64) string {
	switch {
	case seconds <= 0:
		return "-"
	case seconds < 2*86400:
		return fmt.Sprintf("%d hours", seconds/3600)
	}
	return fmt.Sprintf("%d days", seconds/86400)
}

// loginText says what a client needs of a person; empty: nothing.
func loginText(c *client.StatusClient) string {
	if c.Login == nil {
		return ""
	}
	switch c.Login.State {
	case "required":
		return "login required: " + cmp.Or(c.Login.Reason, "run broker login "+c.Client)
	case "pending":
		return "login pending: " + cmp.Or(c.Login.Reason, "the newest refresh token is sealed on this host, and goes into the secrets manager when that can be written")
	}
	return ""
}

// fileTexts tells of files that are not as they should be.
func fileTexts(c *client.StatusClient) []string {
	var list []string
	for _, f := range c.Files {
		if f.State != "ok" {
			list = append(list, fmt.Sprintf("file %s: %s: %s", f.Path, f.State, cmp.Or(f.Reason, "nothing has come for it yet")))
		}
	}
	return list
}

// narrowed tells of tokens with less scope than was asked for.
func narrowed(c *client.StatusClient) []string {
	var list []string
	for _, t := range c.Tokens {
		if t.Narrowed {
			list = append(list, fmt.Sprintf("scope: asked for %s, granted %s", orDash(t.Scope), cmp.Or(t.Granted, "none")))
		}
	}
	return list
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

// platform is what of this machine is used, in the order of the names.
func platform(m map[string]string) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		words = append(words, name+"="+m[name])
	}
	return strings.Join(words, " ")
}

func orDash(s string) string { return cmp.Or(s, "-") }
