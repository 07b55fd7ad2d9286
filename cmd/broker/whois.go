package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
)

func whoisCommand(s *sockets) *cobra.Command {
	var asJSON bool
	var name string
	c := &cobra.Command{Use: "whois", Short: "Say whose a token is, and who got it",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 { // not repeated: it may be a token
				return usageError{errors.New("give the token or fingerprint on standard input: others can read a command line")}
			}
			return nil
		},
		Long: "Read a token, or the fingerprint or jti of one, from standard input, and say from the audit log of this host whose\n" +
			"it is, when it was issued, who got it, and whether it is still valid.\n\n" +
			"A token that the log does not know is judged by the daemon: if it carries the signature of a client's issuer, and\n" +
			"this host certainly never issued it, somebody else may have the client's secret; then there is a draft of an\n" +
			"incident, and your organisation's own contacts are told. With --client the client's issuer is asked about the token,\n" +
			"which goes there: for tokens that are no JWT. Else only the daemon sees it, and no record holds it.\n" +
			"Exit code 65: nobody knows it, or it cannot be judged; the message says why.",
		Example: "  broker whois < found-token.txt\n  broker whois --client acm < opaque-token.txt\n  printf %s 47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU | broker whois",
		RunE: func(cmd *cobra.Command, _ []string) error {
			given, err := readToken(cmd.Context(), os.Stdin, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			who, err := askWhois(cmd.Context(), s.administration(), given, name)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), who)
			}
			printWhois(cmd.OutOrStdout(), who, time.Now())
			return nil
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().StringVar(&name, "client", "", "client whose issuer may be asked about the token")
	return c
}

// readToken reads a token or fingerprint; what is typed does not show.
func readToken(ctx context.Context, in *os.File, prompt io.Writer) (string, error) {
	show, err := hide(in)
	if err != nil {
		return "", err
	}
	defer show()
	if isTerminal(in) {
		fmt.Fprint(prompt, "Token, fingerprint or jti; nothing shows > ")
	}
	line, err := readLine(ctx, in)
	given := strings.TrimSpace(line)
	if len(given) > 7 && strings.EqualFold(given[:7], "bearer ") {
		given = strings.TrimSpace(given[7:])
	}
	switch {
	case ctx.Err() != nil:
		return "", failure{exitTryAgain, errors.New("nothing was asked")}
	case errors.Is(err, io.ErrUnexpectedEOF), err == nil && given == "":
		return "", failure{exitData, errors.New("standard input holds no token and no fingerprint")}
	case err != nil:
		return "", failure{exitData, err}
	case strings.ContainsFunc(given, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", failure{exitData, errors.New("that is no token and no fingerprint: give one alone, on one line")}
	}
	return given, nil
}

// askWhois takes what was given for a token or a jti, which the daemon knows by
// their fingerprints, and if neither is known, for a fingerprint: 43 characters
// may be all three. What is known as none is judged as a token.
func askWhois(ctx context.Context, a *client.Admin, given, name string) (*client.Whois, error) {
	sum := sha256.Sum256([]byte(given))
	who, err := a.Whois(ctx, base64.RawURLEncoding.EncodeToString(sum[:]))
	var p *client.Problem
	unknown := func() bool { return errors.As(err, &p) && p.Code == client.NotFound }
	if b, bad := base64.RawURLEncoding.DecodeString(given); unknown() && bad == nil && len(b) == sha256.Size {
		who, err = a.Whois(ctx, given)
	}
	if unknown() {
		who, err = a.WhoisToken(ctx, given, name)
	}
	if unknown() {
		return nil, failure{exitData, errors.New(p.Detail)}
	}
	return who, err
}

func printWhois(out io.Writer, w *client.Whois, now time.Time) {
	line := func(name, text string) { fmt.Fprintf(out, "%-12s %s\n", name, text) }
	name := w.Client
	if w.Version != "" {
		name += ", version " + w.Version + " of its secret"
	}
	line("client", name)
	line("fingerprint", w.Fingerprint)
	for _, f := range []struct{ name, text string }{{"jti", w.JTI}, {"scope", w.Scope}} {
		if f.text != "" {
			line(f.name, f.text)
		}
	}
	line("issued", orUnknown(w.Issued))
	line("expires", orUnknown(w.Expires))
	switch {
	case !w.Revoked.IsZero():
		line("valid", "no: it was revoked "+spoken(w.Revoked))
	case w.Valid && w.Current:
		line("valid", "yes, and handed out now")
	case w.Valid && w.Foreign:
		line("valid", "yes, as far as is known here")
	case w.Valid:
		line("valid", "yes, as far as is known here; it is not handed out any more")
	case !w.Expires.IsZero() && now.After(w.Expires):
		line("valid", "no: it has expired")
	default:
		line("valid", "not known")
	}
	if w.Foreign {
		line("suspicion", w.Reason)
		if w.Incident != "" {
			line("incident", w.Incident+", a draft: broker leak show "+w.Incident)
		}
		return
	}
	if len(w.Holders) == 0 {
		line("got by", "nobody on this host, as far as the audit log says")
	}
	for n, h := range w.Holders {
		line(map[bool]string{true: "got by"}[n == 0], fmt.Sprintf("%s: %d times, %s to %s", holder(h), h.Count, day(h.First), day(h.Last)))
	}
}

// holder says who got something: a place has no process, and a file a group.
func holder(h client.Holder) string {
	who := "uid " + strconv.FormatUint(uint64(h.UID), 10)
	if name := userName(h.UID); name != "" {
		who += " (" + name + ")"
	}
	switch {
	case h.Place == "":
		who = fmt.Sprintf("pid %d, %s", h.PID, who)
	case h.Surface == "files":
		if h.GID != 1<<32-1 {
			who += ", gid " + strconv.FormatUint(uint64(h.GID), 10)
		}
		who += ", at " + h.Place
	default:
		who += ", at " + h.Place
	}
	if h.Unit != "" {
		who += ", unit " + h.Unit
	}
	if h.Surface != "" {
		who += ", " + h.Surface
	}
	return who
}

func orUnknown(t time.Time) string {
	if t.IsZero() {
		return "not known"
	}
	return spoken(t)
}
