package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"credentialbroker/api/client"
)

// printPlan shows what a declaration would do: the mails, then the steps.
func printPlan(out io.Writer, i *client.Incident) {
	heading(out, "What will be sent")
	if len(i.Mails) == 0 {
		fmt.Fprintln(out, "Nothing is sent from here.")
	}
	printMissing(out, i)
	printMails(out, i.Mails)
	heading(out, "What will be done to "+strings.Join(i.Clients, ", "))
	if len(i.Done) == 0 {
		fmt.Fprintln(out, "Nothing: tokens are handed out as before.")
	}
	for n, s := range i.Done {
		text := s.What
		if s.Outcome == "not_possible" {
			text += ": NOT POSSIBLE"
		}
		if s.Detail != "" {
			text += ": " + s.Detail
		}
		fmt.Fprintf(out, "%3d. %s\n", n+1, text)
	}
	printRest(out, i)
}

// printDeclared says what was done; first of all that it is recorded.
func printDeclared(out io.Writer, i *client.Incident, d *client.Declaration) {
	fmt.Fprintf(out, "incident %s: recorded\n", i.ID)
	printSteps(out, i)
	printReport(out, i)
	printRest(out, i)
	if d.Joins != "" {
		fmt.Fprintf(out, "\nGive the host of %s what is known here:\n  broker leak evidence %s > evidence.json   # here\n  broker leak evidence --add evidence.json %s   # there\n",
			d.Joins, i.ID, d.Joins)
	}
	fmt.Fprintf(out, "\nFollow it with broker leak show %s\n", i.ID)
}

// printUnrecorded is for the worst case: a person has to do it by hand. known
// says whether it is certain that nothing was recorded.
func printUnrecorded(out io.Writer, plan *client.Incident, reason string, known bool) {
	if known {
		fmt.Fprintf(out, "NOT RECORDED: %s\nNobody was told and nothing was contained. Do it by hand, now.\n", reason)
	} else {
		fmt.Fprintf(out, "IT IS NOT KNOWN WHETHER THIS WAS RECORDED: %s\nIf broker leak list does not show it, do it by hand, now.\n", reason)
	}
	if plan != nil { // what was planned has not happened
		plan = plan.Unrecorded
	}
	heading(out, "1. Send this from your own mailbox")
	if plan == nil || len(plan.Mails) == 0 {
		fmt.Fprintln(out, "The daemon cannot say what it would send. Write to the issuer's addresses for leaks (broker presets show NAME) and\n"+
			"your own security contact: whose credentials, which client id, since when, what you ask for (revoke, reissue), your\n"+
			"name and telephone number. Never the secret or a token.")
	} else {
		printMissing(out, plan)
		printMails(out, plan.Mails)
	}
	heading(out, "2. Stop the tokens, if that is what you want")
	fmt.Fprintln(out, "This stops all hand-outs of this host, of every client; tokens that are out live on:\n"+
		"  systemctl disable --now credential-broker.socket credential-broker-admin.socket credential-broker-credential.socket credential-broker.service")
	if plan != nil {
		printRest(out, plan)
	}
	fmt.Fprintln(out, "\nThen try again: broker leak declare")
}

// printMissing says what the mails lack.
func printMissing(out io.Writer, i *client.Incident) {
	for _, what := range i.Missing {
		fmt.Fprintf(out, "FILL IN: %s\n", what)
	}
	if len(i.Missing) > 0 {
		fmt.Fprintln(out)
	}
}

// printMails shows each text once, with all who get it.
func printMails(out io.Writer, mails []client.Mail) {
	shown := make([]bool, len(mails))
	for n, m := range mails {
		if shown[n] {
			continue
		}
		var to []string
		for k, other := range mails {
			if other.Subject == m.Subject && other.Text == m.Text {
				shown[k] = true
				to = append(to, other.To+sealed(other))
			}
		}
		if n > 0 {
			fmt.Fprintln(out, "--")
		}
		fmt.Fprintf(out, "To:      %s\nSubject: %s\n\n%s\n", strings.Join(to, ", "), m.Subject, strings.TrimRight(m.Text, "\n"))
	}
}

// sealed says how a mail leaves, or has left.
func sealed(m client.Mail) string {
	var parts []string
	if m.Signed {
		parts = append(parts, "signed")
	}
	if m.EncryptedTo != "" {
		parts = append(parts, "encrypted to "+m.EncryptedTo)
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

func printSteps(out io.Writer, i *client.Incident) {
	if len(i.Done) == 0 {
		return
	}
	heading(out, "What was done")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, s := range i.Done {
		text := s.What
		if s.Detail != "" {
			text += ": " + s.Detail
		}
		at := ""
		if !s.At.IsZero() {
			at = s.At.UTC().Format("15:04:05 UTC")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", strings.ToUpper(strings.ReplaceAll(s.Outcome, "_", " ")), at, text)
	}
	_ = w.Flush()
	if len(i.Quarantined) > 0 {
		fmt.Fprintf(out, "Nothing is handed out of %s.\n", strings.Join(i.Quarantined, ", "))
	}
}

// printReport says how far each mail is.
func printReport(out io.Writer, i *client.Incident) {
	if len(i.Mails) == 0 {
		return
	}
	heading(out, "Who is told")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, m := range i.Mails {
		since := ""
		if !m.Since.IsZero() {
			since = "since " + spoken(m.Since)
		}
		fmt.Fprintf(w, "%s\t%s\trevision %d\t%s\n", orDash(m.State), m.To, m.Revision, since+sealed(m))
	}
	_ = w.Flush()
	for _, m := range i.Mails {
		if len(m.Why) > 0 {
			fmt.Fprintf(out, "Revision %d to %s, after %d attempts: %s. Next attempt: %s.\n", m.Revision, m.To, m.Attempts, strings.Join(m.Why, "; "), spoken(m.NextAttempt))
		}
		for _, r := range m.Remarks {
			fmt.Fprintf(out, "The mail to %s, revision %d: %s.\n", m.To, m.Revision, r)
		}
	}
}

// printRest is what a person has to do, and by when.
func printRest(out io.Writer, i *client.Incident) {
	for _, part := range []struct {
		title string
		list  []string
	}{{"To be done by hand", i.ByHand}, {"Legal deadlines that may run; the broker decides nothing", i.Clocks}} {
		if len(part.list) == 0 {
			continue
		}
		heading(out, part.title)
		for _, text := range part.list {
			fmt.Fprintf(out, "  - %s\n", text)
		}
	}
}

func heading(out io.Writer, text string) { fmt.Fprintf(out, "\n== %s\n", text) }

// printIncident shows one for people.
func printIncident(out io.Writer, i *client.Incident, texts bool) {
	fmt.Fprintf(out, "incident %s: %s\n", i.ID, incidentState(i))
	if i.Global != "" {
		fmt.Fprintf(out, "on other hosts it is %s\n", i.Global)
	}
	fmt.Fprintf(out, "clients: %s; policy %s\n", strings.Join(i.Clients, ", "), orDash(i.Policy))
	if !i.Declared.IsZero() {
		fmt.Fprintf(out, "declared %s\n", spoken(i.Declared))
	}
	printSteps(out, i)
	printReport(out, i)
	if texts {
		heading(out, "The mails")
		printMails(out, i.Mails)
	}
	printRest(out, i)
	if i.State == "draft" {
		fmt.Fprintln(out, "\nThe daemon suspects this; a person decides.")
	}
}

func incidentState(i *client.Incident) string {
	text := i.State + ", " + i.Severity
	if i.Drill {
		text += ", a drill"
	}
	return text
}

func printIncidents(out io.Writer, list []client.Incident) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "no incidents")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "INCIDENT\tSTATE\tCLIENTS\tPOLICY\tDECLARED\tTOLD\tQUARANTINED")
	for _, i := range list {
		sent := len(slices.DeleteFunc(slices.Clone(i.Mails), func(m client.Mail) bool { return m.State != "sent" }))
		told := "-"
		if len(i.Mails) > 0 {
			told = fmt.Sprintf("%d of %d", sent, len(i.Mails))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", i.ID, incidentState(&i), strings.Join(i.Clients, ","), orDash(i.Policy), day(i.Declared), told,
			orDash(strings.Join(i.Quarantined, ",")))
	}
	return w.Flush()
}
