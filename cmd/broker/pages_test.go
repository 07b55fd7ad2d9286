package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	agefile "filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"
)

// installed are the places of an installed host that a page's commands name.
var installed = regexp.MustCompile(`(^|[\s"'=:@<>(])/(etc|var/lib|srv)\b`)

// offline are the commands that read the configuration at its usual place.
var offline = regexp.MustCompile(`(?m)^broker (check|check --egress|intake .*)$`)

// runPage is "page FILE SKIP…": it runs the commands that a page of the
// documentation shows, as they stand there: each line of a console block, and
// each block of sh as a whole. Those that are skipped, by their line or the
// block's first, have to be there too. With $ROOT set, the files of an installed
// host are below it, and its sockets beside $SOCKET.
func runPage(ts *testscript.TestScript, _ bool, args []string) {
	skip := args[1:]
	text, err := os.ReadFile(filepath.Join(ts.Getenv("SRC"), "docs", args[0]))
	ts.Check(err)
	ran := 0
	for n, block := range strings.Split(string(text), "```") {
		kind, block, _ := strings.Cut(block, "\n")
		if n%2 == 0 || kind != "console" && kind != "sh" {
			continue
		}
		commands := []string{block}
		if kind == "console" {
			commands = strings.Split(block, "\n")
		}
		for _, command := range commands {
			if command = strings.TrimSpace(command); command == "" {
				continue
			}
			line, _, _ := strings.Cut(command, "\n")
			line, _, _ = strings.Cut(line, " #")
			if i := slices.Index(skip, strings.TrimSpace(line)); i >= 0 {
				skip = slices.Delete(slices.Clone(skip), i, i+1)
				continue
			}
			ts.Logf("$ %s", command)
			if err := ts.Exec("bash", "-ec", onRoot(ts, command)); err != nil {
				ts.Fatalf("%s: %v", command, err)
			}
			ran++
		}
	}
	if ran == 0 || len(skip) > 0 {
		ts.Fatalf("%d commands ran; not found: %q", ran, skip)
	}
}

// onRoot is a command for the host whose files are below $ROOT.
func onRoot(ts *testscript.TestScript, command string) string {
	root := ts.Getenv("ROOT")
	if root == "" {
		return command
	}
	command = strings.ReplaceAll(command, "/run/credential-broker", filepath.Dir(ts.Getenv("SOCKET")))
	command = offline.ReplaceAllString(command, "broker $1 --config /etc/credential-broker/broker.yaml")
	return installed.ReplaceAllString(command, "${1}"+root+"/$2")
}

// writeRecipient is "recipient IDENTITY FILE": what age-keygen -y prints.
func writeRecipient(ts *testscript.TestScript, _ bool, args []string) {
	identity, err := agefile.ParseX25519Identity(strings.TrimSpace(ts.ReadFile(args[0])))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(identity.Recipient().String()+"\n"), 0o600))
}
