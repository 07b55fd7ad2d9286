package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	agefile "filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"

	"credentialbroker/api/client"
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

// TestErrorsPage holds the page of errors against the code: each code has a
// row, with the status and the exit code that it really has, and none is made up.
func TestErrorsPage(t *testing.T) {
	source, err1 := os.ReadFile("../../api/client/problem.go")
	page, err2 := os.ReadFile("../../docs/errors.md")
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(string(page)) {
		if m := regexp.MustCompile("^\\| <a id=\"([a-z_]+)\"></a>`([a-z_]+)` \\|").FindStringSubmatch(line); m != nil && m[1] == m[2] {
			cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
			rows[m[1]] = cells
		}
	}
	codes := regexp.MustCompile(`Code = "([a-z_]+)"`).FindAllStringSubmatch(string(source), -1)
	if len(codes) < 17 || len(rows) != len(codes) {
		t.Errorf("%d codes, %d rows", len(codes), len(rows))
	}
	for _, m := range codes {
		code := client.Code(m[1])
		cells := rows[m[1]]
		if len(cells) != 5 {
			t.Errorf("%s has no row of five cells: %q", code, cells)
			continue
		}
		if exit := fmt.Sprint(exitCode(&client.Problem{Code: code})); cells[1] != fmt.Sprint(code.Status()) || !strings.HasPrefix(strings.TrimSpace(cells[4]), exit) {
			t.Errorf("%s: status %d, exit code %s; the page says %s, %s", code, code.Status(), exit, cells[1], cells[4])
		}
	}
}
