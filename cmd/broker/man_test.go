package main

import (
	"os"
	"testing"

	"credentialbroker/api/client"
	"credentialbroker/packaging/man"
)

//go:generate env UPDATE=1 go test -count=1 -run TestManualPage .

// TestManualPage: broker(1) is made from the commands, as --help is.
func TestManualPage(t *testing.T) {
	t.Setenv(client.Environment, "") // defaults as on an installed host
	t.Setenv("XDG_RUNTIME_DIR", "")
	root := command()
	p := man.New("broker", 1, "tokens for local processes, from credentials that they never see")
	p.Section("SYNOPSIS")
	p.Text("broker COMMAND [ARG...]")
	p.Section("DESCRIPTION")
	p.Text(root.Long)
	p.Code(root.Example)
	p.Section("OPTIONS")
	p.Text("Every command has these, and --help.")
	p.Flags(root.PersistentFlags())
	p.Section("COMMANDS")
	p.Commands(root, "The daemon's program does this; brokerd(8) lists the flags.")
	p.Sub("broker completion bash|zsh|fish|powershell")
	p.Text("Print the completion of a shell. Packages install those of the first three.")
	p.Section("EXIT STATUS")
	for _, e := range []struct{ code, text string }{
		{"0", "Success."}, {"64", "Wrong usage."}, {"65", "Bad data."}, {"69", "Unavailable: the daemon does not run, or it failed."}, {"75", "Try again later."},
		{"77", "Not allowed, or an administrator has to act first."}, {"78", "A mistake in the configuration."},
	} {
		p.Term(e.code, "", e.text)
	}
	p.Section("ENVIRONMENT")
	p.Term(client.Environment, "", "Another consumer socket.")
	p.Section("FILES")
	p.Term("/run/credential-broker/broker.sock", "", "Where applications ask.")
	p.Term("/run/credential-broker/admin.sock", "", "Where administrators ask.")
	p.Section("SEE ALSO")
	p.Text("brokerd(8), credential-broker.yaml(5)")
	file, same, err := p.Check(os.Getenv("UPDATE") != "")
	if err != nil || !same {
		t.Errorf("%s is out of date: go generate ./... (%v)", file, err)
	}
}
