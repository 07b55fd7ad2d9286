package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"credentialbroker/internal/intake"
	"credentialbroker/internal/secret"
)

// password asks for the password of an archive. Without a person each archive
// has one line of standard input.
func (in *intakeRun) password(ctx context.Context, archive string, try int) (secret.Secret, error) {
	if archive == "" {
		archive = in.file
	}
	from := in.person
	switch {
	case from == nil && in.file == "-":
		return secret.Secret{}, failure{exitData, errors.New("the archive has a password, and nobody is there to give it: name the file instead of -")}
	case from == nil && try > 1:
		return secret.Secret{}, failure{exitData, fmt.Errorf("the password does not open %s: look at the SMS again, upper and lower case; nothing was stored", archive)}
	case from == nil:
		from = in.stdin
	case try > 1:
		fmt.Fprintln(in.say, "That does not open it. Upper and lower case matter; O and 0, l and 1 look alike.")
	}
	if in.person != nil {
		show, err := hide(from)
		if err != nil {
			return secret.Secret{}, err
		}
		defer show()
		fmt.Fprintf(in.say, "Password of %s (nothing shows): ", archive)
	}
	line, err := readBytes(ctx, from)
	if err != nil {
		if ctx.Err() == nil {
			err = failure{exitData, errors.New("no password was given; nothing was stored")}
		}
		return secret.Secret{}, err
	}
	return secret.New(line), nil
}

// show says what was found.
func (in *intakeRun) show(found intake.Found) {
	fmt.Fprintf(in.say, "Found in %s:\n", in.file)
	for _, field := range slices.Sorted(maps.Keys(found.Fields)) {
		if !in.wanted(field) {
			fmt.Fprintf(in.say, "  %s: left out (--field)\n", field)
			continue
		}
		fmt.Fprintf(in.say, "  %s: %s, from %s\n", field, described(field, found.Fields[field]), placed(found.Places[field], in.file))
	}
	for _, n := range found.Notes {
		fmt.Fprintln(in.say, "  note: "+n)
	}
}

// described is a client_id itself, and how long a secret is.
func described(field string, v secret.Secret) (text string) {
	_ = v.Use(func(b []byte) error {
		if text = characters(b); field == intake.ClientID {
			text = string(b)
		}
		return nil
	})
	return text
}

func characters(b []byte) string { return fmt.Sprintf("%d characters", utf8.RuneCount(b)) }

func placed(place, file string) string {
	if place == "" {
		return file
	}
	return place
}

func (in *intakeRun) wanted(field string) bool {
	return len(in.only) == 0 || slices.Contains(in.only, field)
}

// A question is about one field.
type question struct {
	field, why string
	candidates []intake.Candidate
}

// questions are what has to be decided. Values without any label may be any of
// the fields that are not known.
func (in *intakeRun) questions(found intake.Found) (list []question) {
	asked := func(field string) bool {
		return slices.ContainsFunc(list, func(q question) bool { return q.field == field })
	}
	for _, d := range found.Doubts {
		if d.Field != "" && in.wanted(d.Field) {
			list = append(list, question{d.Field, d.Why, d.Candidates})
		}
	}
	for _, d := range found.Doubts {
		for _, field := range []string{intake.ClientID, intake.ClientSecret, intake.APIKey} {
			if _, sure := found.Fields[field]; d.Field == "" && !sure && !asked(field) && in.wanted(field) {
				list = append(list, question{field, d.Why, d.Candidates})
			}
		}
	}
	return list
}

// decide gives the fields that are to be taken, as copies.
func (in *intakeRun) decide(ctx context.Context, found intake.Found, choices map[string]int) (map[string]secret.Secret, error) {
	taken, settled := map[string]secret.Secret{}, map[string]bool{}
	for field, v := range found.Fields {
		if in.wanted(field) {
			taken[field] = v
		}
	}
	var open strings.Builder
	for _, q := range in.questions(found) {
		n, answered := choices[q.field]
		delete(choices, q.field)
		switch {
		case len(q.candidates) == 0:
			fmt.Fprintf(in.say, "  %s: not found: %s\n", q.field, q.why)
			continue
		case answered && n > len(q.candidates):
			return nil, usageError{fmt.Errorf("--choose %s=%d: there are %d candidates\n%s", q.field, n, len(q.candidates), q.list())}
		case answered:
		case in.person == nil:
			open.WriteString("\n" + q.list())
			continue
		default:
			var err error
			if n, err = in.ask(ctx, q); err != nil {
				return nil, err
			}
		}
		if n > 0 {
			taken[q.field] = q.candidates[n-1].Value
		}
		settled[q.field] = n > 0
	}
	if open.Len() > 0 {
		return nil, failure{exitData, fmt.Errorf("nothing was stored: say which it is, with --choose FIELD=NUMBER (0: none)%s", strings.TrimRight(open.String(), "\n"))}
	}
	for field := range choices {
		return nil, usageError{fmt.Errorf("--choose %s answers no question: that field is not in doubt", field)}
	}
	in.left = in.remainder(found, taken, settled)
	return copied(taken)
}

// remainder says what the file has that is not taken. A doubt that was answered
// with a candidate leaves nothing: the others are not that field.
func (in *intakeRun) remainder(found intake.Found, taken map[string]secret.Secret, settled map[string]bool) (left []string) {
	for _, field := range slices.Sorted(maps.Keys(found.Fields)) {
		if !in.wanted(field) {
			left = append(left, field+" (left out by --field)")
		}
	}
	for _, d := range found.Doubts {
		isLeft := func(c intake.Candidate) bool {
			return !slices.ContainsFunc(slices.Collect(maps.Values(taken)), c.Value.Equal)
		}
		if what := cmp.Or(d.Field, "a credential"); !settled[d.Field] && slices.ContainsFunc(d.Candidates, isLeft) {
			left = append(left, "what may be "+what)
		}
	}
	return append(left, found.Left...)
}

// copied clones the values, and refuses one value under two names.
func copied(taken map[string]secret.Secret) (map[string]secret.Secret, error) {
	if len(taken) == 0 {
		return nil, failure{exitData, errors.New("no field is left to be taken; nothing was stored")}
	}
	names := slices.Sorted(maps.Keys(taken))
	for i, a := range names {
		for _, b := range names[:i] {
			if taken[a].Equal(taken[b]) {
				return nil, failure{exitData, fmt.Errorf("%s and %s would be the same value; nothing was stored", b, a)}
			}
		}
	}
	own := map[string]secret.Secret{}
	for _, field := range names {
		v, err := taken[field].Clone()
		if err != nil {
			wipeValues(own)
			return nil, err
		}
		own[field] = v
	}
	return own, nil
}

// list shows the candidates by everything but their values.
func (q question) list() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Which is the %s? (%s)\n", q.field, q.why)
	for i, c := range q.candidates {
		label := "without a label"
		if c.Label != "" {
			label = "“" + c.Label + "”"
		}
		fmt.Fprintf(&b, "  %d  %s, %s, %s\n", i+1, label, placed(c.Place, "the text"), described("", c.Value))
	}
	return b.String()
}

func (in *intakeRun) ask(ctx context.Context, q question) (int, error) {
	fmt.Fprint(in.say, q.list()+"  0  none of these\n")
	for {
		answer, err := in.answer(ctx, "Number: ")
		if err != nil {
			return 0, err
		}
		if n, ok := smallNumber(answer); ok && n <= len(q.candidates) {
			return n, nil
		}
	}
}

// confirm says what will happen, and asks once.
func (in *intakeRun) confirm(ctx context.Context, fields map[string]secret.Secret) error {
	names := strings.Join(slices.Sorted(maps.Keys(fields)), ", ")
	fmt.Fprintf(in.say, "%s will be tried at the issuer of %s, and then stored as a new version of its secret.\n", names, in.client)
	switch {
	case in.yes:
		return nil
	case in.person == nil:
		return usageError{errors.New("nobody is there to ask: say --yes; nothing was stored")}
	}
	answer, err := in.answer(ctx, "Go on? [y/N] ")
	if err == nil && !yes(answer) {
		err = failure{exitTryAgain, errors.New("nothing was sent or stored")}
	}
	return err
}

func yes(answer string) bool {
	return strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes")
}

func (in *intakeRun) answer(ctx context.Context, prompt string) (string, error) {
	fmt.Fprint(in.say, prompt)
	line, err := readLine(ctx, in.person)
	if err != nil {
		return "", failure{exitTryAgain, errors.New("interrupted: nothing was stored")}
	}
	return strings.TrimSpace(line), nil
}

// finish says what was done and what remains, and shreds the file.
func (in *intakeRun) finish(ctx context.Context, done *intakeResult) error {
	if done.Stored {
		how := "not proved, on your word"
		if done.Proved != "" {
			how = "proved by " + done.Proved
		}
		fmt.Fprintf(in.say, "Stored as version %s of %s (%s), %s.\n", done.Version, done.Secret, strings.Join(done.Changed, ", "), how)
	}
	fmt.Fprintln(in.say, strings.ToUpper(done.Outcome[:1])+done.Outcome[1:]+".")
	done.Left = in.left
	shredded := in.shredFile(ctx)
	done.Shredded = in.read != nil && shredded == nil && in.shred
	fmt.Fprintln(in.say, "What remains for you:")
	if len(done.Missing) > 0 {
		fmt.Fprintf(in.say, "  - %s: still missing; bring it with a further broker intake, or add it to the same secret\n", strings.Join(done.Missing, ", "))
	}
	fmt.Fprintln(in.say, "  - delete the mail and the SMS, also from the bin; have others who got a copy do so")
	if in.read != nil && !done.Shredded {
		if len(in.left) > 0 {
			fmt.Fprintf(in.say, "  - see to what else is in %s: %s\n", in.file, strings.Join(in.left, "; "))
		}
		fmt.Fprintf(in.say, "  - remove %s\n", in.file)
	}
	if in.asJSON {
		if err := printJSON(in.out, done); err != nil {
			return err
		}
	}
	if shredded != nil {
		text := fmt.Errorf("%s was not shredded: %w; its values are stored", in.file, shredded)
		if in.asJSON {
			fmt.Fprintln(in.say, text)
			return quiet(exitUnavailable)
		}
		return failure{exitUnavailable, text}
	}
	return nil
}

// shredFile shreds the file if that is wanted, and asks where somebody is there.
func (in *intakeRun) shredFile(ctx context.Context) error {
	if in.read == nil {
		return nil
	}
	question := "Shred " + in.file + "? "
	if len(in.left) > 0 {
		question = in.file + " still has what was not taken: " + strings.Join(in.left, "; ") + ".\nShred it all the same? "
	}
	nobody := in.person == nil || in.yes
	switch {
	case in.shred && len(in.left) == 0:
	case in.shred && nobody:
		in.shred = false
		fmt.Fprintf(in.say, "%s is not shredded: it still has what was not taken: %s.\n", in.file, strings.Join(in.left, "; "))
		return nil
	case nobody || !in.shred && mayShred(in.read) != nil:
		return nil //nolint:nilerr // then it is not offered
	default:
		// Who does not answer does not want it.
		answer, _ := in.answer(ctx, question+"Its blocks are overwritten; "+shredLimits+". [y/N] ")
		if in.shred = yes(answer); !in.shred {
			return nil
		}
	}
	if err := shred(in.file, in.read); err != nil {
		return err
	}
	fmt.Fprintf(in.say, "Shredded %s; %s.\n", in.file, shredLimits)
	return nil
}
