package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
	"credentialbroker/configs"
	"credentialbroker/internal/audit"
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
		tellUnknown(out)
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
	tellRecorded(out, d, s, audit.Written(filepath.Join(p.state, "audit")))
	err = s.Look() // after that: it reads the whole audit log
	tellSpooled(out, c, d, s.Incident, err)
	if s.Err != nil {
		return errUnrecorded
	}
	return nil
}

// stopByHand is what a person does where nothing is contained. The sockets have
// to go, too: a connection starts the daemon again.
const stopByHand = "systemctl disable --now credential-broker.socket credential-broker-admin.socket credential-broker-credential.socket credential-broker.service"

// tellUnknown is for a configuration that cannot be read: what is known without
// one.
func tellUnknown(out io.Writer) {
	printf(out, "NOT RECORDED: the configuration cannot be used, so that neither the recipients nor the state directory are known.\n"+
		"Nobody is told, and nothing is stopped, unless you do it. If the configuration is elsewhere, run this again with\n"+
		"--config FILE, and with --state DIRECTORY if the state is. Else call the issuer, and your own security team, now.\n"+
		"Hand-outs of this host stop, of every client, and stay so: %s\n\nAddresses for a leak, by what the broker knows of issuers:\n", stopByHand)
	for _, p := range configs.LeakContacts() {
		printf(out, "- %s: %s\n", p.Issuer, strings.Join(p.Addresses, ", "))
	}
	printf(out, "\n")
}

// tellRecorded says first whether the incident is recorded, and who acts on it.
func tellRecorded(out io.Writer, d client.Declaration, s *response.Spooled, runs bool) {
	switch {
	case s.Err != nil:
		printf(out, "NOT RECORDED: %v\nNobody is told, and nothing is stopped, unless you do it: send the mail below, and call.\n"+
			"No daemon runs, so nothing is handed over now. It stays so, for every client of this host, with\n  %s\n\n", s.Err, stopByHand)
	case d.DryRun:
		printf(out, "Nothing is recorded: this is what would be.\n\n")
	case runs:
		printf(out, "incident %s: recorded\n\nA daemon runs after all: within seconds it contains what is to be contained, and sends the mail below.\n"+
			"Make sure with: broker leak show %s\nIf that does not show it, send the mail yourself, and call.\n\n", s.Incident.ID, s.Incident.ID)
	default:
		printf(out, "incident %s: recorded\n\nNo daemon runs: nothing is handed over now. At its next start it contains what is to be contained, and sends\n"+
			"its mail. If that is not at once, send the one below yourself, and call.\n\n", s.Incident.ID)
	}
}

// tellSpooled says whom to tell, and what.
func tellSpooled(out io.Writer, c *configs.Config, d client.Declaration, i client.Incident, mailErr error) {
	if l := c.Leak; l != nil {
		printf(out, "On call for %s: %s, %s\n", l.Organisation.Name, l.OnCall.Name, l.OnCall.Phone)
	}
	if one := c.Clients[d.Client]; len(one.LeakContacts) > 0 && !d.NoMail {
		printf(out, "At the issuer of %s: %s\n", d.Client, strings.Join(one.LeakContacts, ", "))
	}
	for _, line := range i.ByHand {
		printf(out, "- %s\n", line)
	}
	if len(i.Mails) > 0 {
		for _, line := range i.Missing {
			printf(out, "FILL IN: %s\n", line)
		}
	}
	if mailErr != nil {
		printf(out, "\nThere is no mail: %v\nTell them: client %s, %s, leaked: %s. %s\n", mailErr, d.Client, d.Severity, strings.Join(d.What, ", "), d.Happened)
	}
	for n, m := range i.Mails {
		printf(out, "\n%s\nTo: %s\nSubject: %s\n", strings.Repeat("-", 72), m.To, m.Subject)
		if n > 0 && m.Text == i.Mails[n-1].Text {
			printf(out, "\n(the same text)\n")
			continue
		}
		printf(out, "\n%s", m.Text)
	}
	for _, line := range i.Clocks {
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
