package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
	"credentialbroker/configs"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/leak"
	"credentialbroker/internal/response"
)

// errUnrecorded is for an incident that could not be made durable.
var errUnrecorded = errors.New("the incident is not recorded: tell everybody above yourself, now")

const maxDeclaration = 64 << 10 // bytes

// spoolCommand is what broker leak declare runs while no daemon does.
func spoolCommand() *cobra.Command {
	var p paths
	c := &cobra.Command{Use: "leak-spool", Short: "Record a leak while no daemon runs", Args: noArgs, Hidden: true,
		Long: "Read a declaration as JSON from standard input and record it for the next start of the daemon, which then\n" +
			"contains the client and sends the mail. Prints the mail, its recipients and whom to call. Exits with 75 if\n" +
			"the incident could not be recorded.",
		Example: "  broker leak declare vdab",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return spool(p, cmd.InOrStdin(), cmd.OutOrStdout())
		}}
	c.Flags().StringVar(&p.config, "config", defaultConfig(), "configuration file; clients.d is looked for beside it")
	c.Flags().StringVar(&p.state, "state", "", "directory of the audit log and other state")
	return c
}

func spool(p paths, in io.Reader, out io.Writer) error {
	var d client.Declaration
	dec := json.NewDecoder(io.LimitReader(in, maxDeclaration))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return usageError{fmt.Errorf("the declaration: %w", err)}
	}
	c, err := configs.Load(p.config, configs.Options{Credentials: os.Getenv("CREDENTIALS_DIRECTORY"), Offline: true})
	if err != nil {
		printf(out, "NOT RECORDED: the configuration cannot be used, so that neither the recipients nor the state directory are known.\n"+
			"Call the issuer, and your own security team, now.\n\n")
		return err
	}
	p.fillState(c)
	s, err := response.Spool(p.state, leakHost(), responseConfig(c), clock.System{}, d, whoDeclares(d.As))
	var mistake *broker.Error
	if errors.As(err, &mistake) {
		return usageError{errors.New(mistake.Detail)}
	}
	if err != nil {
		return err
	}
	tellSpooled(out, c, d, s)
	if s.Err != nil {
		return errUnrecorded
	}
	return nil
}

// tellSpooled says first whether the incident is recorded.
func tellSpooled(out io.Writer, c *configs.Config, d client.Declaration, s response.Spooled) {
	switch {
	case s.Err != nil:
		printf(out, "NOT RECORDED: %v\nNobody is told, and nothing is stopped, unless you do it: send the mail below, and call.\n\n", s.Err)
	case d.DryRun:
		printf(out, "Nothing is recorded: this is what would be.\n\n")
	default:
		printf(out, "incident %s: recorded\n\nNo daemon runs: nothing is handed over now. At its next start it contains what is to be contained, and sends\n"+
			"the mail below. If that is not at once, send it yourself, and call.\n\n", s.Incident.ID)
	}
	if l := c.Leak; l != nil {
		printf(out, "On call for %s: %s, %s\n", l.Organisation.Name, l.OnCall.Name, l.OnCall.Phone)
	}
	if one := c.Clients[d.Client]; len(one.LeakContacts) > 0 && !d.NoMail {
		printf(out, "At the issuer of %s: %s\n", d.Client, strings.Join(one.LeakContacts, ", "))
	}
	for _, line := range s.Incident.ByHand {
		printf(out, "- %s\n", line)
	}
	if s.MailErr != nil {
		printf(out, "\nThere is no mail: %v\nTell them: client %s, %s, leaked: %s. %s\n", s.MailErr, d.Client, d.Severity, strings.Join(d.What, ", "), d.Happened)
	}
	for n, m := range s.Mails {
		printf(out, "\n%s\nTo: %s\nSubject: %s\n", strings.Repeat("-", 72), m.Recipient, m.Subject)
		if n > 0 && m.Copy == s.Mails[n-1].Copy {
			printf(out, "\n(the same text)\n")
			continue
		}
		printf(out, "\n%s", m.Body)
	}
	for _, line := range s.Incident.Clocks {
		printf(out, "\n%s\n", line)
	}
}

// whoDeclares is the process that does, as the kernel has it.
func whoDeclares(as string) leak.Declarer {
	d := leak.Declarer{UID: uint32(os.Getuid()), LoginUID: 1<<32 - 1, PID: int32(os.Getppid()), Claimed: as} // #nosec G115 -- as the kernel has them
	if text, err := os.ReadFile("/proc/self/loginuid"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32); err == nil {
			d.LoginUID = uint32(n)
		}
	}
	return d
}
