package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
)

// Rules of this file: whoever declares a leak is told first whether it is
// recorded; nothing happens before a yes; and what cannot be recorded is
// printed, so that a person can do it by hand.

const maxProse = 2000 // bytes of a text, as the daemon has it

func leakCommand(s *sockets) *cobra.Command {
	c := &cobra.Command{Use: "leak", Short: "Declare a leak, contain it, report it, close it", Args: unknown,
		Long: "Credentials have leaked, or may have: run broker leak declare, and answer its questions. It shows the mail and\n" +
			"what will be done before anything happens.",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Example: "  broker leak declare\n  broker leak list\n  broker leak show 2026-0007\n  broker leak drill vdab"}
	c.AddCommand(leakDeclare(s), leakList(s), leakShow(s), leakRelease(s), leakClose(s), leakEvidence(s), leakDrill(s), leakPreview(s))
	return c
}

// declaring is one run of broker leak declare.
type declaring struct {
	admin    *client.Admin
	d        client.Declaration
	from, to string // as typed

	suspected, confirmed, yes, asJSON bool

	config, state string // of a daemon that does not run
	in            *os.File
	out           io.Writer // what was done
	talk          io.Writer // questions, and what will be done
	now           func() time.Time

	stopped bool             // the daemon does not run
	plan    *client.Incident // of the dry run; nil: there was none
}

func leakDeclare(s *sockets) *cobra.Command {
	l := &declaring{in: os.Stdin, now: time.Now}
	c := &cobra.Command{Use: "declare [CLIENT]", Short: "Declare a leak, or the suspicion of one",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{errors.New("name one client: others that share its secret are found")}
			}
			return nil
		},
		Long: "Declare that credentials have leaked, or may have. On a terminal it asks, one question at a time; then it shows\n" +
			"the mail, its recipients and what will be done, and does it after one yes. Elsewhere nothing is assumed: give\n" +
			"the answers as flags, and --yes.\n\n" +
			"--what is " + strings.Join(whatWords(), ", ") + ". Times are " + timeForms + ".\n\n" +
			"Other users of this machine can read command lines: where that matters, give --happened - and the text on standard\n" +
			"input. Never type a password, key or token. If the daemon does not run, the leak is recorded on this host and\n" +
			"contained and mailed at the next start; the mail, addresses and telephone numbers are printed.\n\n" +
			"Exit code 0: it is recorded. 75: it is not, or that is not known; what to do by hand is printed.",
		Example: "  broker leak declare\n  broker leak declare vdab --suspected --what unknown --happened 'Odd calls in our log' --dry-run\n" +
			"  broker leak declare vdab --confirmed --what client_secret --happened - --policy quarantine --yes < what-happened.txt\n" +
			"  broker leak declare --incident 2026-0007@web1 --no-mail --confirmed --what client_secret --policy quarantine --yes vdab\n" +
			"    # the printed line, on another host that has the same secret",
		RunE: func(cmd *cobra.Command, args []string) error {
			l.admin, l.out, l.talk = s.administration(), cmd.OutOrStdout(), cmd.OutOrStdout()
			if l.asJSON {
				l.talk = cmd.ErrOrStderr()
			}
			l.d.Client = strings.Join(args, "")
			return l.run(cmd.Context())
		}}
	f := c.Flags()
	f.BoolVar(&l.suspected, "suspected", false, "it may have leaked")
	f.BoolVar(&l.confirmed, "confirmed", false, "it has leaked")
	f.StringSliceVar(&l.d.What, "what", nil, "what has leaked (repeatable)")
	f.StringVar(&l.d.Happened, "happened", "", "what happened, in a sentence or two; - for standard input")
	f.StringVar(&l.d.Where, "where", "", "where it showed: a repository, a log, a mail")
	f.StringVar(&l.from, "from", "", "since when strangers may have had it (default: not known)")
	f.StringVar(&l.to, "to", "", "until when (default: it goes on)")
	f.StringVar(&l.d.FoundBy, "found-by", "", "who found it")
	f.StringVar(&l.d.PersonalData, "personal-data", "", "could personal data be reached: yes, no or unknown")
	f.StringVar(&l.d.Policy, "policy", "", "keep-serving, quarantine or rotate (default: the client's own)")
	f.StringVar(&l.d.As, "as", "", `who declares it, as "name, phone"`)
	f.StringVar(&l.d.Joins, "incident", "", "incident of another host that this is a part of, as 2026-0007@web1")
	f.StringVar(&l.d.Draft, "confirm", "", "suspicion of this host, the daemon's or a person's, that this confirms, as 2026-0007")
	f.StringVar(&l.d.Draft, "draft", "", "as --confirm")
	f.BoolVar(&l.d.NoMail, "no-mail", false, "report nothing from here: another host does")
	f.StringVar(&l.d.Language, "lang", "", "language that comes first in the mail: nl or en (default: the issuer's)")
	f.BoolVar(&l.d.DryRun, "dry-run", false, "show what would be done, and do nothing")
	f.BoolVar(&l.yes, "yes", false, "ask nothing, do it")
	f.BoolVar(&l.asJSON, "json", false, "print JSON")
	f.StringVar(&l.config, "config", "", "configuration of a daemon that does not run, if it is not in its usual place")
	f.StringVar(&l.state, "state", "", "state directory of a daemon that does not run, likewise")
	return c
}

var errNothing = errors.New("nothing was recorded, nobody was told")

func (l *declaring) run(ctx context.Context) error {
	asks := !l.yes && l.d.Happened != "-" && isTerminal(l.in)
	if err := l.readFlags(ctx); err != nil {
		return err
	}
	if asks {
		return l.converse(ctx)
	}
	if missing := l.missing(); len(missing) > 0 {
		return usageError{fmt.Errorf("%w. This is no terminal, or --yes was given, so nothing is asked; missing:\n  %s", errNothing, strings.Join(missing, "\n  "))}
	}
	if l.d.DryRun {
		return l.show(ctx)
	}
	return l.declare(ctx)
}

// show is the dry run alone.
func (l *declaring) show(ctx context.Context) error {
	err := l.dryRun(ctx)
	if stoppedDaemon(err) {
		return failure{exitUnavailable, fmt.Errorf("%w: the daemon does not run, so there is no dry run; without --dry-run it is recorded on this host", errNothing)}
	}
	if err != nil {
		return err
	}
	return l.shown()
}

func (l *declaring) shown() error {
	if l.asJSON {
		return printJSON(l.out, l.plan)
	}
	printPlan(l.out, l.plan)
	_, err := fmt.Fprintln(l.out, "\nThis was a dry run: "+errNothing.Error()+".")
	return err
}

func (l *declaring) dryRun(ctx context.Context) (err error) {
	d := l.d
	d.DryRun = true
	l.plan, err = l.admin.Declare(ctx, d)
	return err
}

// declare does it, and prints first whether it is recorded.
func (l *declaring) declare(ctx context.Context) error {
	i, err := l.admin.Declare(ctx, l.d)
	var p *client.Problem
	switch {
	case err == nil && l.asJSON:
		return printJSON(l.out, i)
	case err == nil:
		printDeclared(l.out, i, &l.d)
		return nil
	case stoppedDaemon(err):
		return l.spool()
	case errors.As(err, &p) && p.Status < 500 && p.Code != client.RateLimited:
		return err
	}
	known := errors.As(err, &p)
	if l.plan == nil {
		// The mail is for a person to send; without it, at least the reason is there.
		looking, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = l.dryRun(looking)
	}
	printUnrecorded(l.talk, l.plan, explain(err), known)
	return quiet(exitTryAgain)
}

// spool has brokerd record it where its daemon finds it at the next start. The
// declaration goes by standard input: others can read a command line.
func (l *declaring) spool() error {
	name, err := findDaemon()
	args := []string{"leak-spool"}
	for _, f := range []struct{ name, value string }{{"--config", l.config}, {"--state", l.state}} {
		if f.value != "" {
			args = append(args, f.name, f.value)
		}
	}
	if err == nil {
		var in []byte
		if in, err = json.Marshal(l.d); err != nil {
			return err
		}
		cmd := exec.Command(name, args...) //nolint:noctx // it is not to be ended halfway
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(append(in, '\n')), l.out, os.Stderr
		err = cmd.Run()
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return quiet(exit.ExitCode())
	}
	printUnrecorded(l.talk, nil, "the daemon does not run, and brokerd leak-spool failed: "+err.Error(), !errors.As(err, &exit))
	return quiet(exitTryAgain)
}

// readFlags checks what the flags say, all of it at once.
func (l *declaring) readFlags(ctx context.Context) error {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	switch {
	case l.suspected && l.confirmed:
		say("--suspected and --confirmed: it is one of them")
	case l.suspected:
		l.d.Severity = "suspected"
	case l.confirmed:
		l.d.Severity = "confirmed"
	}
	for _, w := range l.d.What {
		if !slices.Contains(whatWords(), w) {
			say("--what %s is unknown: one of %s", w, strings.Join(whatWords(), ", "))
		}
	}
	for _, f := range []struct {
		name, value string
		of          []string
	}{{"--personal-data", l.d.PersonalData, []string{"yes", "no", "unknown"}},
		{"--policy", l.d.Policy, []string{"keep-serving", "quarantine", "rotate"}}, {"--lang", l.d.Language, []string{"nl", "en"}}} {
		if f.value != "" && !slices.Contains(f.of, f.value) {
			say("%s %s is unknown: one of %s", f.name, f.value, strings.Join(f.of, ", "))
		}
	}
	for _, f := range []struct {
		name, value string
		to          *time.Time
	}{{"--from", l.from, &l.d.From}, {"--to", l.to, &l.d.To}} {
		var err error
		if f.value == "" {
			continue
		}
		if *f.to, err = parseWhen(f.value, l.now()); err != nil {
			say("%s: %v", f.name, err)
		}
	}
	if l.d.Happened == "-" {
		var err error
		if l.d.Happened, err = readProse(ctx, l.in); err != nil {
			say("--happened -: %v", err)
		}
	}
	if l.d.Joins != "" && l.d.Happened == "" {
		l.d.Happened = "Part of incident " + l.d.Joins + "."
	}
	if len(wrong) > 0 {
		return usageError{fmt.Errorf("%w:\n  %s", errNothing, strings.Join(wrong, "\n  "))}
	}
	return nil
}

// missing names what has to be said where nothing can be asked.
func (l *declaring) missing() []string {
	var list []string
	for _, m := range []struct {
		gone bool
		text string
	}{
		{l.d.Client == "", "CLIENT: whose credentials they are"},
		{l.d.Severity == "", "--suspected or --confirmed"},
		{len(l.d.What) == 0, "--what: " + strings.Join(whatWords(), ", ")},
		{strings.TrimSpace(l.d.Happened) == "", "--happened: what happened, in a sentence or two"},
		{!l.yes && !l.d.DryRun, "--yes to do it, or --dry-run to see what would be done"},
	} {
		if m.gone {
			list = append(list, m.text)
		}
	}
	// The client's configuration may say it, so it is not missing by itself.
	if len(list) > 0 && l.d.Policy == "" && l.d.Severity != "suspected" {
		list = append(list, "--policy: keep-serving, quarantine or rotate, of a confirmed leak; unless the client's configuration says it")
	}
	return list
}

// readProse reads a text from standard input.
func readProse(ctx context.Context, in *os.File) (string, error) {
	if err := readable(ctx, int(in.Fd())); err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(in, maxProse+1))
	switch {
	case err != nil:
		return "", err
	case len(b) > maxProse:
		return "", errors.New("the text is longer than 2,000 bytes")
	}
	text := strings.TrimSpace(strings.ReplaceAll(string(b), "\r\n", "\n"))
	if text == "" {
		return "", errors.New("standard input is empty")
	}
	return text, nil
}

// stoppedDaemon says whether err means that no daemon runs.
func stoppedDaemon(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

func whatWords() []string {
	var list []string
	for _, c := range whatChoices() {
		list = append(list, c.value)
	}
	return list
}
