package main

import (
	"os"
	"testing"

	"credentialbroker/packaging/man"
)

//go:generate env UPDATE=1 go test -count=1 -run TestManualPage .

// TestManualPage: brokerd(8) is made from the commands, as --help is.
func TestManualPage(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", "/var/lib/credential-broker") // defaults as on an installed host
	root := command()
	root.Use = "brokerd" // the page is its own
	p := man.New("brokerd", 8, "daemon of the credential broker")
	p.Section("SYNOPSIS")
	p.Text("/usr/libexec/credential-broker/brokerd serve [FLAG...]\n\nbroker serve|check|presets|demo [ARG...]")
	p.Section("DESCRIPTION")
	p.Text(`The daemon reads client credentials from a secrets manager, keeps access tokens fresh and hands them over a Unix socket to the local processes that may have them. People run broker(1), which finds and runs this program.

systemd runs it as credential-broker.service, for the first that connects to one of its sockets. It is ready when it says so (sd_notify(3)), and answers the watchdog. systemctl reload takes a changed configuration, and fails with the error if there is one. A restart loses no connection: they wait in the sockets, which are units of their own.`)
	p.Section("COMMANDS")
	p.Commands(root, "")
	p.Section("SIGNALS")
	p.Term("SIGHUP", "", "Read the configuration anew; if it has a mistake, the journal has the error and the old one stays.")
	p.Term("SIGTERM, SIGINT", "", "End.")
	p.Section("FILES")
	p.Term("/etc/credential-broker/broker.yaml, clients.d/*.yaml", "", "Configuration: credential-broker.yaml(5).")
	p.Term("/run/credential-broker/", "", "Sockets; files with tokens, which go when the daemon stops.")
	p.Term("/var/lib/credential-broker/", "", "Audit log, incidents, budgets. Never a secret or token in the clear.")
	p.Term("/usr/share/credential-broker/", "", "Examples: configurations, drop-ins of the unit, a polkit rule, alert rules, clients in several languages.")
	p.Section("SEE ALSO")
	p.Text("broker(1), credential-broker.yaml(5), systemd.socket(5), journalctl(1)")
	file, same, err := p.Check(os.Getenv("UPDATE") != "")
	if err != nil || !same {
		t.Errorf("%s is out of date: go generate ./... (%v)", file, err)
	}
}
