package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"credentialbroker/api/client"
)

// converse asks for what the flags did not say, shows what will be done, and
// does it after a yes.
func (l *declaring) converse(ctx context.Context) error {
	c := &conversation{ctx: ctx, in: l.in, out: l.talk}
	st, err := l.admin.Status(ctx)
	if l.stopped = stoppedDaemon(err); err != nil && !l.stopped {
		return err
	}
	if l.stopped && l.d.DryRun {
		return l.show(ctx)
	}
	// Better told now than after ten questions.
	var p *client.Problem
	if _, err := l.admin.Incident(ctx, "0000-0000"); errors.As(err, &p) && p.Code == client.NotAllowed {
		return err
	}
	fmt.Fprint(l.talk, "A leak, or the suspicion of one. One question at a time; Enter takes what stands in [brackets].\n"+
		"Nothing happens before you have seen all of it and typed yes. Ctrl-C ends this: nothing is recorded, nobody is told.\n")
	if l.stopped {
		fmt.Fprint(l.talk, "\nThe daemon does not run. What you say is recorded on this host, and contained and mailed when it starts;\n"+
			"the mail, addresses and telephone numbers are printed, for you to use at once.\n")
	}
	for again := false; ; again = true {
		if err := l.ask(c, st, again); err != nil {
			return ended(ctx, err)
		}
		answer, err := l.settle(c)
		if err != nil {
			return ended(ctx, err)
		}
		switch answer {
		case "yes":
			return l.declare(ctx)
		case "shown":
			return nil
		case "no":
			return failure{exitTryAgain, errNothing}
		}
	}
}

// ended is the end of a conversation by Ctrl-C or Ctrl-D: nothing has happened.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, io.ErrUnexpectedEOF) {
		return failure{exitTryAgain, errNothing}
	}
	return err
}

// settle shows what will be done, and asks whether it shall. A declaration that
// the daemon refuses is to be changed.
func (l *declaring) settle(c *conversation) (string, error) {
	if !l.stopped {
		var p *client.Problem
		err := l.dryRun(c.ctx)
		switch refused := errors.As(err, &p); {
		case refused && p.Code == client.InvalidRequest:
			fmt.Fprintf(l.talk, "\nThe daemon does not take this: %s\nNothing has happened. The questions again, with your answers:\n", p.Detail)
			return "change", nil
		case refused && p.Status < 500, c.ctx.Err() != nil:
			return "", err
		case err == nil && l.d.DryRun:
			return "shown", l.shown()
		case err == nil:
			printPlan(l.talk, l.plan)
			return l.last(c)
		case l.d.DryRun:
			return "", err
		}
		// What cannot be shown can still be declared.
		l.stopped = stoppedDaemon(err)
		fmt.Fprintf(l.talk, "\nThe daemon cannot show what it will do: %s\n", explain(err))
	}
	if l.stopped {
		fmt.Fprint(l.talk, "\nIt will be recorded on this host. Nothing is contained or mailed before the daemon starts.\n")
	}
	answer, err := l.last(c)
	if err != nil || answer != "yes" || !l.stopped {
		return answer, err
	}
	// It may have come back while the person typed.
	if l.stopped = l.gone(c.ctx); !l.stopped {
		fmt.Fprint(l.talk, "\nThe daemon runs now. Nothing has happened yet; this is what it will do.\n")
		return l.settle(c)
	}
	return answer, nil
}

// last asks for the word by which it is done. What is none loses no answers.
func (l *declaring) last(c *conversation) (answer string, err error) {
	fmt.Fprint(l.talk, "\nType yes to do this, change to answer again, or no to end it: nothing is recorded, nobody is told.\n")
	err = c.until("", func(typed string) error {
		if answer = strings.ToLower(typed); !slices.Contains([]string{"yes", "change", "no"}, answer) {
			return errors.New("type yes, change or no")
		}
		return nil
	})
	return answer, err
}

// gone says whether no daemon runs.
func (l *declaring) gone(ctx context.Context) bool {
	_, err := l.admin.Status(ctx)
	return stoppedDaemon(err)
}

// ask goes through the questions: those that have no answer yet, or again all.
func (l *declaring) ask(c *conversation, st *client.Status, again bool) error {
	d := &l.d
	text := func(to *string, need bool) func() error { return func() error { return c.prose(to, need) } }
	for _, q := range []struct {
		answered bool
		apart    bool // another host's report says it: not asked of a part
		title    string
		ask      func() error
	}{
		{d.Client != "", false, "Whose credentials are they?", func() error { return c.client(&d.Client, st) }},
		{d.Severity != "", false, "How sure is it?", func() error { return c.choose(&d.Severity, l.preset("suspected"), severityChoices()) }},
		{len(d.What) > 0, false, "What has leaked, or may have? Several as 1 3.", func() error { return c.several(&d.What, "unknown", whatChoices()) }},
		{d.Happened != "", false, "What happened? One or two sentences that a stranger understands. No password, key or token.", text(&d.Happened, true)},
		{d.Where != "", true, "Where did it show? A repository, a log, a mail. Enter: leave it out.", text(&d.Where, false)},
		{!d.From.IsZero(), false, "Since when may strangers have had it? As 14:05, yesterday 14:00, 3h ago, now. Enter: not known.",
			func() error { return c.when(&d.From, time.Time{}, l.now) }},
		{!d.To.IsZero(), false, "Until when? Enter: it goes on.", func() error { return c.when(&d.To, d.From, l.now) }},
		{d.FoundBy != "", true, "Who found it? Enter: leave it out.", text(&d.FoundBy, false)},
		{d.PersonalData != "", true, "Could personal data be reached with it?", func() error { return c.choose(&d.PersonalData, "unknown", personalChoices()) }},
		{d.Policy != "", false, "What is to be done with the client, besides telling people?", func() error { return c.policy(d, l.preset("configured")) }},
		{d.As != "", true, "Your name and telephone number, for those who will call. Enter: the person of the configuration.", text(&d.As, false)},
	} {
		if !again && (q.answered || q.apart && d.Joins != "") {
			continue
		}
		fmt.Fprintf(c.out, "\n%s\n", q.title)
		if err := q.ask(); err != nil {
			return err
		}
	}
	return nil
}

// preset is what Enter takes: nothing where another host knows the answer, so
// that no part of an incident is left as it is by Enter alone.
func (l *declaring) preset(word string) string {
	if l.d.Joins != "" {
		return ""
	}
	return word
}

type choice struct{ value, text string }

func severityChoices() []choice {
	return []choice{{"suspected", "it may have leaked"}, {"confirmed", "it has leaked"}}
}

func whatChoices() []choice {
	return []choice{{"token", "an access token"}, {"client_secret", "the client secret"}, {"api_key", "the API key"}, {"private_key", "the private key"},
		{"manager_login", "the login at the secrets manager"}, {"host", "somebody was on a machine that has them"}, {"unknown", "nobody knows yet"}}
}

func personalChoices() []choice {
	return []choice{{"yes", "it could"}, {"no", "it could not"}, {"unknown", "nobody knows yet"}}
}

// A conversation asks one question at a time on a terminal.
type conversation struct {
	ctx context.Context
	in  *os.File
	out io.Writer
}

// line asks for one line.
func (c *conversation) line(prompt string) (string, error) {
	fmt.Fprint(c.out, prompt)
	line, err := readLine(c.ctx, c.in)
	if err != nil {
		fmt.Fprintln(c.out)
	}
	return strings.TrimSpace(line), err
}

// until asks until take is content. Enter takes preset, which is shown unless
// it is empty.
func (c *conversation) until(preset string, take func(answer string) error) error {
	prompt := "> "
	if preset != "" {
		prompt = "[" + preset + "] > "
	}
	for {
		answer, err := c.line(prompt)
		if err != nil {
			return err
		}
		if answer == "" {
			answer = preset
		}
		if err = take(answer); err == nil {
			return nil
		}
		fmt.Fprintf(c.out, "  %v\n", err)
	}
}

// choose takes one of a list, by its number or word.
func (c *conversation) choose(to *string, preset string, of []choice) error {
	c.list(of)
	if *to != "" {
		preset = *to
	}
	return c.until(preset, func(answer string) error {
		value, err := pick(answer, of)
		if err == nil {
			*to = value
		}
		return err
	})
}

func (c *conversation) several(to *[]string, preset string, of []choice) error {
	c.list(of)
	if len(*to) > 0 {
		preset = strings.Join(*to, " ")
	}
	return c.until(preset, func(answer string) error {
		var list []string
		for _, word := range strings.FieldsFunc(answer, func(r rune) bool { return r == ' ' || r == ',' }) {
			value, err := pick(word, of)
			if err != nil {
				return err
			}
			if !slices.Contains(list, value) {
				list = append(list, value)
			}
		}
		*to = list
		return nil
	})
}

func (c *conversation) list(of []choice) {
	wide := 0
	for _, o := range of {
		wide = max(wide, len(o.value))
	}
	for n, o := range of {
		fmt.Fprintf(c.out, "%3d  %-*s  %s\n", n+1, wide, o.value, o.text)
	}
}

func pick(answer string, of []choice) (string, error) {
	n, err := strconv.Atoi(answer)
	for i, o := range of {
		if err == nil && n == i+1 || strings.EqualFold(answer, o.value) {
			return o.value, nil
		}
	}
	return "", fmt.Errorf("type a number from 1 to %d", len(of))
}

// client takes one of the daemon's clients; if it does not run, a name.
func (c *conversation) client(to *string, st *client.Status) error {
	if st == nil {
		return c.until(*to, func(answer string) error {
			if *to = answer; answer == "" {
				return errors.New("type the client's name, as in the configuration")
			}
			return nil
		})
	}
	var of []choice
	for _, one := range st.Clients {
		of = append(of, choice{one.Client, one.Purpose})
	}
	if len(of) == 0 {
		return failure{exitConfig, errors.New("the daemon has no clients")}
	}
	return c.choose(to, "", of)
}

// prose takes a text of one line; - leaves it out.
func (c *conversation) prose(to *string, need bool) error {
	return c.until(*to, func(answer string) error {
		switch {
		case answer == "-" && !need:
			answer = ""
		case need && (answer == "" || answer == "-"):
			return errors.New("this one is needed: a few words will do")
		case len(answer) > maxProse:
			return errors.New("that is too long: 2,000 bytes at most")
		case strings.ContainsFunc(answer, unicode.IsControl) && answer != *to:
			return errors.New("that has characters that do not print: type it again")
		}
		*to = answer
		return nil
	})
}

// when takes a time that is not before from, and says it back; - leaves it out.
func (c *conversation) when(to *time.Time, from time.Time, now func() time.Time) error {
	preset := ""
	if !to.IsZero() {
		preset = to.Format(time.RFC3339)
	}
	return c.until(preset, func(answer string) error {
		if answer == "" || answer == "-" {
			*to = time.Time{}
			return nil
		}
		t, err := parseWhen(answer, now())
		if err == nil && t.Before(from) {
			err = fmt.Errorf("%s is before the time that you gave first", spoken(t))
		}
		if err != nil {
			return err
		}
		*to = t
		fmt.Fprintf(c.out, "  %s\n", spoken(t))
		return nil
	})
}

// policy takes what is to be done; Enter takes ifAsked of a suspicion. Of a
// confirmed leak nothing is assumed.
func (c *conversation) policy(d *client.Declaration, ifAsked string) error {
	of := []choice{{"keep-serving", "tokens are handed out as before"}, {"quarantine", "nothing is handed out any more, tokens are revoked where the issuer can: applications stop"},
		{"rotate", "the secret is replaced where the issuer lets us, tokens are revoked where it can"}}
	preset := ""
	if d.Severity == "suspected" {
		of = append(of, choice{"configured", "what the configuration says for a suspicion; without a word, keep-serving"})
		preset = ifAsked
	}
	policy := d.Policy
	if err := c.choose(&policy, preset, of); err != nil {
		return err
	}
	if d.Policy = policy; policy == "configured" {
		d.Policy = ""
	}
	return nil
}
