package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
	"credentialbroker/internal/intake"
	"credentialbroker/internal/secret"
)

// Rules of the intake (this file, intake_ask.go, intake_store.go):
//   - a value is shown never, but for the client_id, which is no secret;
//   - nothing is sent before a person, or a flag, has said so;
//   - what is still to be done, or has failed, is said last.

// maxIntake is a byte more than package intake takes of a file.
const maxIntake = 4<<20 + 1

func intakeCommand(s *sockets) *cobra.Command {
	in := intakeRun{stdin: os.Stdin}
	c := &cobra.Command{Use: "intake FILE CLIENT", Short: "Take credentials in the form in which the issuer sent them", Args: fileAndClient,
		Long: "Take a client's credentials from the mail of its issuer: a zip with a password, a text, JSON or CSV. They are\n" +
			"found by their labels, proved at the issuer, and only then stored in the secrets manager as one new version:\n" +
			"by the daemon, if its provider names one to write with, else with your own login (vault login, or the tools of\n" +
			"AWS, Azure or Google). Nothing is unpacked to a file, and no secret is shown.\n\n" +
			"FILE - is standard input. The password is asked for; without a terminal it is a line of standard input.\n" +
			"--choose answers what would be asked: the number of a candidate, 0 for none.",
		Example: "  broker intake credentials.zip vdab\n" +
			"  broker intake credentials.zip vdab --yes --json <password.txt\n" +
			"  broker intake mail.txt vdab --field api_key --choose api_key=2 --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			in.admin, in.file, in.client = s.administration(), args[0], args[1]
			in.out, in.say = cmd.OutOrStdout(), cmd.OutOrStdout()
			if in.asJSON {
				in.say = cmd.ErrOrStderr()
			}
			err := in.run(cmd.Context())
			if err != nil && in.asJSON {
				return errors.Join(printJSON(in.out, problemOf(err)), quiet(exitCode(err)))
			}
			return err
		}}
	f := c.Flags()
	f.StringArrayVar(&in.only, "field", nil, "take this field only: client_id, client_secret or api_key (repeatable)")
	f.StringArrayVar(&in.choose, "choose", nil, "take candidate N of a doubtful field, as in client_secret=2 (repeatable)")
	f.BoolVar(&in.yes, "yes", false, "go on without asking")
	f.BoolVar(&in.accept, "accept", false, "store what cannot be proved, on your word")
	f.BoolVar(&in.shred, "shred", false, "overwrite and remove FILE once all its values are stored")
	f.BoolVar(&in.asJSON, "json", false, "print one JSON object; questions go to standard error")
	f.StringVar(&in.config, "config", "", "the daemon's configuration file, if it is not the usual one")
	f.StringVar(&in.tokenFile, "token-file", "", "file with your Vault token (default ~/.vault-token)")
	f.StringVar(&in.identityFile, "identity-file", "", "your age identity, for a store whose own is sealed for the daemon")
	return c
}

func fileAndClient(cmd *cobra.Command, args []string) error {
	if len(args) != 2 {
		return usageError{fmt.Errorf("name the file and the client, as in %s credentials.zip vdab", cmd.CommandPath())}
	}
	return nil
}

type intakeRun struct {
	admin        *client.Admin
	file, client string

	only, choose                    []string
	yes, accept, shred, asJSON      bool
	config, tokenFile, identityFile string

	stdin    *os.File
	out, say io.Writer
	person   *os.File    // a terminal; nil: nobody is there
	read     fs.FileInfo // the file that was read; nil: standard input
	left     []string    // what it has, and was not taken
}

// intakeResult is what --json prints.
type intakeResult struct {
	client.Intake
	StoredBy string `json:"stored_by,omitempty"` // daemon, or operator: by the login of whoever ran this
	Outcome  string `json:"outcome"`             // in words
	Shredded bool   `json:"shredded"`            // the file was overwritten and removed
	// Left is what the file has besides, in words; with it, it is shredded only
	// if a person has said so.
	Left []string `json:"left,omitempty"`
}

func (in *intakeRun) run(ctx context.Context) error {
	choices, err := in.flags()
	if err != nil {
		return err
	}
	if err := secret.Harden(); err != nil {
		return err
	}
	if err := in.known(ctx); err != nil {
		return err
	}
	data, err := in.open(ctx)
	if err != nil {
		return err
	}
	defer clear(data)
	found, err := in.find(ctx, data)
	if err != nil {
		return err
	}
	defer found.Wipe()
	in.show(found)
	fields, err := in.decide(ctx, found, choices)
	if err != nil {
		return err
	}
	defer wipeValues(fields)
	if err := in.confirm(ctx, fields); err != nil {
		return err
	}
	done, err := in.bring(ctx, fields)
	if err != nil {
		return err
	}
	return in.finish(ctx, done)
}

// known asks the daemon whether it has the client, before anybody answers
// questions for nothing.
func (in *intakeRun) known(ctx context.Context) error {
	status, err := in.admin.Status(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, c := range status.Clients {
		if c.Client == in.client {
			return nil
		}
		names = append(names, c.Client)
	}
	return usageError{fmt.Errorf("no client is called %s: the daemon has %s", in.client, strings.Join(names, ", "))}
}

// flags checks what can be checked before anything is read.
func (in *intakeRun) flags() (map[string]int, error) {
	known := []string{intake.ClientID, intake.ClientSecret, intake.APIKey}
	for _, f := range in.only {
		if !slices.Contains(known, f) {
			return nil, usageError{fmt.Errorf("--field %s is unknown: one of %s", f, strings.Join(known, ", "))}
		}
	}
	if in.shred && in.file == "-" {
		return nil, usageError{errors.New("--shred is for a file: standard input is none")}
	}
	choices := map[string]int{}
	for _, c := range in.choose {
		field, number, _ := strings.Cut(c, "=")
		n, ok := smallNumber(number)
		if !ok || !slices.Contains(known, field) {
			return nil, usageError{fmt.Errorf("--choose %s is not understood: write client_secret=2, for example", c)}
		}
		choices[field] = n
	}
	return choices, nil
}

// open reads the file, and finds out who is there to answer.
func (in *intakeRun) open(ctx context.Context) ([]byte, error) {
	if isTerminal(in.stdin) {
		in.person = in.stdin
	}
	if in.file == "-" {
		return in.openStdin(ctx)
	}
	f, err := os.Open(in.file)
	if err != nil {
		return nil, failure{exitData, fmt.Errorf("%s cannot be read: %w", in.file, reasonOf(err))}
	}
	defer f.Close()
	if in.read, err = f.Stat(); err != nil {
		return nil, err
	}
	if in.read.IsDir() {
		return nil, failure{exitData, fmt.Errorf("%s is a directory: name the file that the issuer sent", in.file)}
	}
	return readAll(ctx, f, maxIntake)
}

// openStdin leaves answers to the terminal, wherever standard input is from.
func (in *intakeRun) openStdin(ctx context.Context) ([]byte, error) {
	if in.person != nil {
		show, err := hide(in.stdin)
		if err != nil {
			return nil, err
		}
		defer show()
		fmt.Fprintln(in.say, "Paste the text, then press Enter and Ctrl-D (nothing shows):")
	}
	data, err := readAll(ctx, in.stdin, maxIntake)
	if err == nil && in.person == nil {
		if tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
			in.person = tty // closed when the program ends
		}
	}
	return data, err
}

// find looks for credentials, and asks for a password where there is one.
func (in *intakeRun) find(ctx context.Context, data []byte) (intake.Found, error) {
	found, err := intake.Read(bytes.NewReader(data), int64(len(data)), func(archive string, try int) (secret.Secret, error) {
		return in.password(ctx, archive, try)
	})
	var e *intake.Error
	var f failure
	switch {
	case err == nil:
		return found, nil
	case errors.As(err, &f): // of the question
		return found, f
	case ctx.Err() != nil:
		return found, failure{exitTryAgain, errors.New("interrupted: nothing was stored")}
	case errors.As(err, &e):
		return found, failure{exitData, fmt.Errorf("%s: %w; nothing was stored", in.file, e)}
	}
	return found, failure{exitData, fmt.Errorf("%s: %w; nothing was stored", in.file, err)}
}

// bring has the values proved and stored.
func (in *intakeRun) bring(ctx context.Context, fields map[string]secret.Secret) (*intakeResult, error) {
	values := make(map[string][]byte, len(fields))
	defer func() {
		for _, v := range values {
			clear(v)
		}
	}()
	for name, s := range fields {
		v, err := s.AppendTo(make([]byte, 0, s.Len()))
		if err != nil {
			return nil, err
		}
		values[name] = v
	}
	fmt.Fprintln(in.say, "Proving them …")
	answer, err := in.admin.Intake(ctx, in.client, values, in.accept)
	if err != nil {
		return nil, err
	}
	done := &intakeResult{Intake: *answer}
	switch {
	case len(done.Changed) == 0:
		done.Outcome = "the secrets manager has these values already, as version " + done.Version + ": nothing was stored"
		return done, nil
	case done.Stored:
		done.StoredBy = "daemon"
	default:
		fmt.Fprintf(in.say, "Storing them in %s (%s), with your own login …\n", done.Secret, done.Kind)
		if err := in.storeOwn(ctx, done, fields); err != nil {
			return nil, err
		}
	}
	done.Outcome = in.taken(ctx, done)
	return done, nil
}

// taken has the daemon take the version at once, and says what became of it.
// What went wrong is no failure: it is stored, and an interruption keeps that
// from no record.
func (in *intakeRun) taken(ctx context.Context, done *intakeResult) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	r := client.Rotation{Accept: done.Unprovable}
	if done.StoredBy == "operator" {
		r.Stored, r.Fields = done.Version, done.Changed
	}
	o, err := in.admin.Rotate(ctx, in.client, r)
	if err != nil {
		return "the daemon does not serve it yet: " + explain(err)
	}
	if o.Version == "" {
		return o.Reason
	}
	return "version " + o.Version + " serves: " + o.Reason
}

// problemOf is the error document of what did not come from the daemon, too.
func problemOf(err error) *client.Problem {
	var p *client.Problem
	if errors.As(err, &p) {
		return p
	}
	code := map[int]client.Code{exitUsage: client.InvalidRequest, exitData: client.InvalidRequest, exitTryAgain: client.ProviderUnavailable,
		exitNotAllowed: client.NotAllowed, exitConfig: client.InvalidConfiguration}[exitCode(err)]
	if code == "" {
		code = client.ProviderUnavailable
	}
	return &client.Problem{Type: "about:blank", Title: code.Title(), Status: code.Status(), Code: code, Detail: err.Error()}
}

func wipeValues(m map[string]secret.Secret) {
	for _, v := range slices.Collect(maps.Values(m)) {
		v.Wipe()
	}
}

// smallNumber reads 0 to 99.
func smallNumber(s string) (n int, ok bool) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, s != "" && len(s) <= 2
}
