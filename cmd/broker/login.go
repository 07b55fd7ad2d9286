package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
)

func loginCommand(s *sockets) *cobra.Command {
	l := login{in: os.Stdin}
	c := &cobra.Command{Use: "login CLIENT", Short: "Have a person give consent, once", Args: oneClient,
		Long: "Log a person in at the client's issuer (authorization code, with PKCE). The address to open is printed; no browser\n" +
			"is started, for whoever gives consent may sit elsewhere. Then the answer is awaited on a port of this machine;\n" +
			"or, with --paste and where no port will do, what the browser shows afterwards is pasted here, and does not show.\n\n" +
			"The daemon exchanges the code, and keeps the refresh token in the secrets manager.",
		Example: "  broker login mijnklantportaal\n  broker login mijnklantportaal --paste   # on a server without a browser",
		RunE: func(cmd *cobra.Command, args []string) error {
			l.admin, l.client, l.out = s.administration(), args[0], cmd.OutOrStdout()
			done, err := l.run(cmd.Context())
			if err != nil {
				return err
			}
			return outcome(cmd, false, func(context.Context) (*client.Outcome, error) { return done, nil })
		}}
	c.Flags().BoolVar(&l.paste, "paste", false, "paste the address or code that the browser shows, instead of awaiting it")
	return c
}

type login struct {
	admin  *client.Admin
	client string
	paste  bool
	in     *os.File
	out    io.Writer
}

func (l *login) run(ctx context.Context) (*client.Outcome, error) {
	start, listener, err := l.start(ctx)
	if err != nil {
		return nil, err
	}
	until, cancel := context.WithDeadline(ctx, start.Expires)
	defer cancel()
	var answer redirected
	if listener != nil {
		l.explainAwait(start, listener)
		answer, err = await(until, listener, start)
	} else {
		answer, err = l.pasted(until, start)
	}
	switch {
	case ctx.Err() != nil:
		return nil, failure{exitTryAgain, errors.New("the login was not finished: nothing has changed")}
	case errors.Is(err, context.DeadlineExceeded):
		return nil, failure{exitTryAgain, fmt.Errorf("nobody finished the login in time: run broker login %s again", l.client)}
	case err != nil:
		return nil, err
	}
	return l.admin.FinishLogin(ctx, l.client, client.LoginFinish{State: start.State, Code: answer.code, Issuer: answer.issuer})
}

// start begins the login, and listens where the issuer will send the browser.
// Without a listener the answer has to be pasted.
func (l *login) start(ctx context.Context) (*client.Login, net.Listener, error) {
	start, err := l.admin.StartLogin(ctx, l.client, client.LoginStart{})
	if err != nil || l.paste {
		return start, nil, err
	}
	listener, whole, reason := listen(ctx, start.RedirectURI)
	if strings.HasPrefix(reason, taken) {
		return nil, nil, failure{exitTryAgain, fmt.Errorf("%s: another program would get the answer; end it, or paste the answer with broker login %s --paste on a machine where nothing has the port", reason, l.client)}
	}
	if listener == nil {
		fmt.Fprintf(l.out, "The answer cannot be awaited: %s.\n\n", reason)
		return start, nil, nil
	}
	if whole == start.RedirectURI {
		return start, listener, nil
	}
	// The port is known only now, and the issuer has to be told.
	if start, err = l.admin.StartLogin(ctx, l.client, client.LoginStart{RedirectURI: whole}); err != nil {
		_ = listener.Close()
		return nil, nil, err
	}
	return start, listener, nil
}

func (l *login) explainAwait(start *client.Login, listener net.Listener) {
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	host, err := os.Hostname()
	if err != nil {
		host = "this-machine"
	}
	l.explain(start)
	fmt.Fprintf(l.out, "The answer is awaited on %s until %s.\nIf the browser is on another machine, run there first:\n\n  ssh -L %s:%s %s\n\n"+
		"or end this with Ctrl-C, and run broker login %s --paste. If the issuer says that the address is not known,\n"+
		"register the redirect URI there, or set redirect_uri to the registered one.\n", start.RedirectURI, clockTime(start.Expires), port, listener.Addr(), host, l.client)
}

func (l *login) explainPaste(start *client.Login) {
	l.explain(start)
	fmt.Fprintf(l.out, "Afterwards the browser goes to %s, where nothing may answer: that is all right.\n"+
		"Paste the whole address that it shows then, or the code in it, and press Enter (nothing shows; until %s):\n", start.RedirectURI, clockTime(start.Expires))
}

func (l *login) explain(start *client.Login) {
	fmt.Fprintf(l.out, "Whoever gives consent for %s has to open this address in a browser:\n\n  %s\n\n", l.client, start.URL)
}

func clockTime(t time.Time) string { return t.Local().Format("15:04:05") }

// pasted reads the answer from the terminal, or standard input.
func (l *login) pasted(ctx context.Context, start *client.Login) (redirected, error) {
	show, err := hide(l.in)
	if err != nil {
		return redirected{}, err
	}
	defer show()
	l.explainPaste(start)
	line, err := readLine(ctx, l.in)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return redirected{}, failure{exitData, errors.New("standard input holds no code: nothing has changed")}
	case err != nil:
		return redirected{}, err
	}
	answer, err := parsePasted(line, start.State)
	if err != nil {
		return redirected{}, failure{exitData, err}
	}
	return answer, answer.err
}
