package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const leakYAML = `leak:
  organisation: { name: Voorbeeld nv, kbo: 0123.456.789 }
  on_call: { name: Wachtdienst, phone: +32 2 000 00 00 }
  smtp: { host: 127.0.0.1, port: 1, tls: none, from: broker@corp.example }
  copy_to: [security@corp.example]
`

// spool runs the command as broker does.
func (s *site) spool(declaration string) (code int, out string) {
	s.t.Helper()
	name, err := daemonProgram()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(name, "leak-spool", "--config", s.path("broker.yaml"), "--state", s.path("state"))
	cmd.Stdin = strings.NewReader(declaration)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), b.String()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return 0, b.String()
}

// TestSpool: with no daemon a leak is recorded, and everybody's address is
// shown; the next daemon hands nothing out from its first answer on.
func TestSpool(t *testing.T) {
	s := newSite(t)
	s.write("broker.yaml", s.config()+leakYAML)
	const declaration = `{"client":"vdab","severity":"confirmed","what":["client_secret"],"happened":"It stood in a repository.","policy":"quarantine","as":"An, 1234"}`
	code, out := s.spool(declaration)
	if code != exitTryAgain || !strings.HasPrefix(out, "NOT RECORDED: ") || !strings.Contains(out, "ict_iam@vdab.be") || !strings.Contains(out, "BEVEILIGINGSMELDING") || !strings.Contains(out, "+32 2 000 00 00") {
		t.Errorf("without a state directory: %d\n%s", code, out)
	}
	for _, want := range []string{"systemctl disable --now credential-broker.socket credential-broker-admin.socket credential-broker-credential.socket credential-broker.service", "FILL IN: the client id of vdab at VDAB\n", "issued on", "still in use"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for _, wrong := range []string{"-0000", "you interrupt nothing", "stop the client:", "broker leak close", "No tokens were issued"} {
		if strings.Contains(out, wrong) {
			t.Errorf("%q in\n%s", wrong, out)
		}
	}
	if err := os.Mkdir(s.path("state"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		declaration, want string
		code              int
	}{
		{"{", "the declaration:", exitUsage},
		{`{"client":"vdab","sure":true}`, "unknown field", exitUsage},
		{strings.Replace(declaration, `"quarantine"`, `""`, 1), "policy: say what", exitUsage},
		{strings.Replace(declaration, `"vdab"`, `"other"`, 1), "no client is called", exitUsage},
	} {
		if code, out := s.spool(c.declaration); code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%s: %d\n%s", c.declaration, code, out)
		}
	}
	code, out = s.spool(declaration)
	if code != 0 || !strings.HasPrefix(out, "incident 20") || !strings.Contains(out, "-0001: recorded\n") || !strings.Contains(out, "security@vdab.be") || !strings.Contains(out, "SECURITY NOTICE") {
		t.Errorf("%d\n%s", code, out)
	}
	s.start()
	if code, body := s.do("broker.sock", "GET", "/v1/clients/vdab/token", ""); code != 409 || !strings.Contains(body, "-0001") {
		t.Errorf("%d %s", code, body)
	}
	s.stop(syscall.SIGTERM)
	s.write("broker.yaml", "clients: {")
	if code, out = s.spool(declaration); code != exitConfig || !strings.HasPrefix(out, "NOT RECORDED: ") || !strings.Contains(out, "--config FILE") || !strings.Contains(out, "- VDAB: ict_iam@vdab.be, security@vdab.be\n") ||
		!strings.Contains(out, "systemctl disable --now credential-broker.socket") {
		t.Errorf("without a configuration: %d\n%s", code, out)
	}
}

// Whoever stops hand-outs stops every socket that starts the daemon.
func TestStopByHandStopsEverySocket(t *testing.T) {
	sockets, err := filepath.Glob("../../configs/systemd/*.socket")
	if err != nil || len(sockets) < 3 {
		t.Fatal(sockets, err)
	}
	for _, s := range sockets {
		if !strings.Contains(stopByHand, " "+filepath.Base(s)+" ") {
			t.Errorf("%s would start it again: %s", filepath.Base(s), stopByHand)
		}
	}
}

// TestSpoolBeside: it came back, or was there on another socket. It is
// named, and acts.
func TestSpoolBeside(t *testing.T) {
	s := newSite(t)
	s.write("broker.yaml", s.config()+leakYAML)
	s.start()
	defer s.stop(syscall.SIGTERM)
	code, out := s.spool(`{"client":"vdab","severity":"confirmed","what":["client_secret"],"happened":"It stood in a repository.","policy":"quarantine"}`)
	if code != 0 || !strings.Contains(out, "-0001: recorded\n") || !strings.Contains(out, "A daemon runs after all") {
		t.Errorf("%d\n%.300s", code, out)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if code, _ := s.do("broker.sock", "GET", "/v1/clients/vdab/token", ""); code == 409 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the daemon does not contain it")
		}
	}
}
