package main

import (
	"cmp"
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
	"golang.org/x/sys/unix"

	"credentialbroker/api/client"
)

// Rules of this file:
//   - the key, or JSON, goes to standard output; what is said to a person, to
//     standard error;
//   - nothing is kept here: each step is the daemon's, and may be repeated.

func keysRotate(s *sockets) *cobra.Command {
	r := keyRotation{in: os.Stdin}
	formats := []string{"jwk", "jwks", "pem", "certificate"}
	c := &cobra.Command{Use: "rotate CLIENT", Short: "Replace the key, without a gap", Args: oneClient,
		Long: "Make a new key beside the one in use, print its public half for the issuer, wait until the issuer takes it, and\n" +
			"make it the key. The issuer is asked once a minute at most, and within the budget of failed authentications; the\n" +
			"old key serves until the new one has given a token.\n\n" +
			"Everything is kept in the secrets manager, so that this may be interrupted anywhere. Run again, it goes on with\n" +
			"the key that waits; if none waits, it makes one. With --resume it makes none: if the rotation is complete already,\n" +
			"it says so and ends well. A script begins with --start, has the key uploaded, and runs --resume until that ends with 0.\n" +
			"Exit code 75: interrupted, nothing is lost.",
		Example: "  broker keys rotate acm\n  broker keys rotate acm --start > acm.jwk.json && broker keys rotate acm --resume\n  broker keys rotate acm --abandon",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := r.check(formats); err != nil {
				return usageError{err}
			}
			r.admin, r.client, r.out, r.talk = s.administration(), args[0], cmd.OutOrStdout(), cmd.ErrOrStderr()
			return r.run(cmd.Context())
		}}
	f := c.Flags()
	f.StringVar(&r.want.Kind, "kind", "", "kind of key (default: that of the key in use)")
	f.BoolVar(&r.want.Certificate, "certificate", false, "put a self-signed certificate beside it (default: if the key in use has one)")
	f.StringVar(&r.want.Subject, "subject", "", "common name of the certificate (default: the client's name)")
	f.StringVar(&r.want.KeyID, "key-id", "", "the issuer's own name for the new key (default: its thumbprint)")
	f.StringVar(&r.format, "format", "jwk", "how the public half is printed: one of "+strings.Join(formats, ", "))
	f.BoolVar(&r.start, "start", false, "end after printing the key: --resume goes on")
	f.BoolVar(&r.resume, "resume", false, "go on, and never make a key")
	f.BoolVar(&r.want.Abandon, "abandon", false, "give the new key up: the old one stays")
	f.BoolVar(&r.asJSON, "json", false, "print one JSON object for each step")
	return c
}

type keyRotation struct {
	admin  *client.Admin
	client string
	want   client.KeyRotation
	format string
	start  bool
	resume bool
	asJSON bool
	in     *os.File
	out    io.Writer
	talk   io.Writer
	kid    string // of the key that is waited for; empty: not known yet
	old    string // of the key that it replaces; empty: not known yet
}

func (r *keyRotation) check(formats []string) error {
	kinds := []string{"rsa-2048", "rsa-3072", "rsa-4096", "p-256", "ed25519"}
	about := r.want.NewKey != client.NewKey{} || r.want.KeyID != ""
	switch {
	case r.start && r.resume, (r.start || r.resume) && r.want.Abandon:
		return errors.New("--start, --resume and --abandon exclude each other")
	case r.want.Kind != "" && !slices.Contains(kinds, r.want.Kind):
		return fmt.Errorf("--kind %s is unknown: one of %s", r.want.Kind, strings.Join(kinds, ", "))
	case !slices.Contains(formats, r.format):
		return fmt.Errorf("--format %s is unknown: one of %s", r.format, strings.Join(formats, ", "))
	case about && (r.resume || r.want.Abandon):
		return errors.New("--kind, --certificate, --subject and --key-id are about a key that is made: leave them out with --resume and --abandon")
	}
	return nil
}

func (r *keyRotation) run(ctx context.Context) error {
	if r.resume {
		return r.wait(ctx)
	}
	step, err := r.admin.RotateKey(ctx, r.client, r.want)
	switch {
	case ctx.Err() != nil:
		return r.interrupted()
	case err != nil:
		return err
	}
	if r.want.Abandon {
		r.say("%s; %s has the key %s", step.Reason, r.client, step.Key.KeyID)
		return r.json(step)
	}
	r.kid, r.old = step.Key.KeyID, step.Old
	if err := r.show(step); err != nil || r.start {
		return err
	}
	if err := r.uploaded(ctx, time.Duration(step.RetryAfter)*time.Second); err != nil {
		return r.interrupted()
	}
	return r.wait(ctx)
}

// show prints the new key, and what to do with it.
func (r *keyRotation) show(step *client.RotatedKey) error {
	found := "a new key waits in the secrets manager"
	if step.RetryAfter > 0 {
		found = "a new key was made, and is in the secrets manager"
	}
	r.say("%s: kid %s, %s, version %s of the secret; %s goes on with the old one", found, step.Key.KeyID, step.Key.Algorithm, step.Key.Version, r.client)
	err := r.json(step)
	if !r.asJSON {
		err = export(r.out, &step.Key, r.format)
	}
	r.say("Give the issuer this public half, beside the old one if it takes two.")
	for i, text := range step.Steps {
		r.say("  %d. %s", i+1, text)
	}
	if r.start {
		r.say("Then: broker keys rotate %s --resume", r.client)
	}
	return err
}

// uploaded waits for the person at the terminal; or else for a moment.
func (r *keyRotation) uploaded(ctx context.Context, moment time.Duration) error {
	if _, err := unix.IoctlGetTermios(int(r.in.Fd()), unix.TCGETS); err != nil {
		if moment > 0 {
			r.say("the issuer is asked at %s", clockTime(time.Now().Add(moment)))
		}
		return sleep(ctx, moment)
	}
	fmt.Fprint(r.talk, "Upload it, then press Enter (Ctrl-C: later): ")
	_, err := readLine(ctx, r.in)
	return err
}

// wait asks until the new key is the key.
func (r *keyRotation) wait(ctx context.Context) error {
	for {
		step, err := r.admin.RotateKey(ctx, r.client, client.KeyRotation{Probe: true})
		if ctx.Err() != nil {
			return r.interrupted()
		}
		if err == nil {
			if err := r.json(step); err != nil {
				return err
			}
			if r.kid != "" && r.kid != step.Key.KeyID {
				return failure{exitData, fmt.Errorf("the key %s is not there any more: somebody has given it up, or replaced it; %s has %s now", r.kid, r.client, step.Key.KeyID)}
			}
			if step.State == client.KeyRotated {
				r.done(step)
				return nil
			}
			r.kid, r.old = step.Key.KeyID, cmp.Or(step.Old, r.old)
		}
		again, reason := pace(step, err, r.kid != "")
		if again == 0 {
			r.say("the new key stays where it is: broker keys rotate %s --resume goes on", r.client)
			return err
		}
		r.say("%s  %s; asked again at %s", clockTime(time.Now()), reason, clockTime(time.Now().Add(again)))
		if sleep(ctx, again) != nil {
			return r.interrupted()
		}
	}
}

// pace says when to ask again, and why; zero: somebody has to act first. A
// daemon that has answered before may be starting anew.
func pace(step *client.RotatedKey, err error, known bool) (time.Duration, string) {
	var p *client.Problem
	switch {
	case err == nil:
		return time.Duration(max(step.RetryAfter, 1)) * time.Second, step.Reason
	case errors.As(err, &p) && p.Status == 503:
		return time.Duration(max(p.RetryAfter, 1)) * time.Second, p.Detail
	case errors.As(err, &p), !known:
		return 0, ""
	}
	return time.Minute, err.Error()
}

// done says what a person has to do yet.
func (r *keyRotation) done(step *client.RotatedKey) {
	if step.Old == "" {
		step.Old = r.old // an answer was lost on the way
	}
	if step.Old == "" {
		r.say("%s (kid %s, version %s of the secret)", step.Reason, step.Key.KeyID, step.Key.Version)
		return
	}
	r.say("%s: kid %s, version %s of the secret", step.Reason, step.Key.KeyID, step.Key.Version)
	r.say("What remains to be done by hand:\n"+
		"  1. remove the old key at the issuer: %s (tokens that it gave run out by themselves)\n"+
		"  2. older versions of the secret still hold the old private key: destroy them in the secrets manager\n"+
		"     when nobody will want to go back", step.Old)
}

func (r *keyRotation) interrupted() error {
	return failure{exitTryAgain, fmt.Errorf("interrupted, and nothing is lost: broker keys rotate %s --resume goes on; --abandon gives the new key up", r.client)}
}

func (r *keyRotation) say(format string, args ...any) {
	fmt.Fprintf(r.talk, format+"\n", args...)
}

// json prints a step as one line, if JSON is wanted.
func (r *keyRotation) json(step *client.RotatedKey) error {
	if !r.asJSON {
		return nil
	}
	e := json.NewEncoder(r.out)
	e.SetEscapeHTML(false)
	return e.Encode(step)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
