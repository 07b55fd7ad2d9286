package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"credentialbroker/api"
	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/gate"
)

// incidentsOf is a daemon behind its real admin socket, whose incidents obey
// the script. What it was asked for is in the file asked, a line each.
type incidentsOf struct {
	ts   *testscript.TestScript
	mu   sync.Mutex
	mode string
}

// startIncidents is "incidents [MODE]": the daemon on $ADMIN, or another mode
// of the one that runs.
func startIncidents(ts *testscript.TestScript, _ bool, args []string) {
	d := ts.Value("incidents").(*incidentsOf)
	d.mu.Lock()
	d.mode = strings.Join(args, " ")
	running := d.ts != nil
	d.ts = ts
	d.mu.Unlock()
	if running {
		return
	}
	socket := filepath.Join(filepath.Dir(ts.Getenv("SOCKET")), "admin.sock")
	ts.Setenv("ADMIN", socket)
	ts.Setenv(client.Environment, ts.Getenv("SOCKET"))
	l, err := gate.Listen(socket, 0o666)
	ts.Check(err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	server := api.New(api.Config{Admin: l, Administration: d.administration()})
	go func() { done <- server.Run(ctx) }()
	ts.Defer(func() { stop(); <-done })
}

func (d *incidentsOf) administration() api.Administration {
	return api.Administration{
		Roles: func() api.Roles { return nil },
		Act: func(_ context.Context, _ *access.Caller, act, name string, detail map[string]string) error {
			d.note("act", act+" "+name+detail["incident"])
			if d.is("full") {
				return errors.New("no space left on device")
			}
			return nil
		},
		Denied: func(*access.Caller, string, string) {},
		Status: func() client.Status {
			st := client.Status{Audit: client.AuditStatus{Healthy: true}, Clients: []client.StatusClient{{Client: "mkp", Purpose: "letters to citizens", Ready: true},
				{Client: "vdab", Purpose: "vacancies feed", Ready: true}}, Incidents: []client.IncidentLine{{ID: "2026-0007", State: "open", Client: "vdab"}}}
			if d.is("undelivered") {
				st.Incidents[0].Undelivered = 2
			}
			return st
		},
		Declare: func(_ context.Context, _ *access.Caller, w client.Declaration) (client.Incident, error) {
			return d.declare(w)
		},
		Incidents: func(context.Context) ([]client.Incident, error) {
			if d.is("none") {
				return nil, nil
			}
			i := incidentOf(client.Declaration{Client: "vdab", Severity: "confirmed", Policy: "quarantine"})
			i.Mails[0].State = "sent"
			return []client.Incident{{ID: "2026-0008", State: "closed", Drill: true, Severity: "suspected", Clients: []string{"mkp"}, Policy: "keep-serving"}, i}, nil
		},
		Incident: func(_ context.Context, id string) (client.Incident, error) { return d.known(id, nil) },
		Release: func(_ context.Context, _ *access.Caller, id string, _ client.IncidentRelease) (client.Incident, error) {
			return d.known(id, "release")
		},
		Close: func(_ context.Context, _ *access.Caller, id string, how client.IncidentClose) (client.Incident, error) {
			return d.known(id, how)
		},
		Drill: func(_ context.Context, _ *access.Caller, name string) (client.Incident, error) {
			i, err := d.known("2026-0007", "drill "+name)
			i.Drill = true
			if d.is("failing") {
				i.State, i.Done[0].Outcome = "closed", "failed"
			}
			return i, err
		},
		Evidence: func(_ context.Context, id string) (json.RawMessage, error) {
			return json.RawMessage(`{"incident":"` + id + `"}`), nil
		},
		AddEvidence: func(_ context.Context, _ *access.Caller, id string, e json.RawMessage) (client.Incident, error) {
			return d.known(id, e)
		},
		Whois: func(_ context.Context, fingerprint string) (client.Whois, error) {
			d.note("whois", fingerprint)
			return client.Whois{Client: "vdab", Fingerprint: fingerprint}, nil
		},
		Metrics: http.NotFoundHandler(),
	}
}

func (d *incidentsOf) is(mode string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mode == mode
}

func (d *incidentsOf) note(what string, v any) {
	b, _ := json.Marshal(v)
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := os.OpenFile(d.ts.MkAbs("asked"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintf(f, "%s %s\n", what, b)
}

func (d *incidentsOf) declare(w client.Declaration) (client.Incident, error) {
	d.note("declare", w)
	switch {
	case d.is("observer"):
		return client.Incident{}, &broker.Error{Code: client.NotAllowed, Detail: "for this you have to be root"}
	case strings.Contains(w.Happened, "hunter2"):
		return client.Incident{}, &broker.Error{Code: client.InvalidRequest, Detail: "happened holds a secret of vdab: describe it instead"}
	case w.Severity == "confirmed" && w.Policy == "":
		return client.Incident{}, &broker.Error{Code: client.InvalidRequest, Detail: "policy is missing: a confirmed leak needs one"}
	case d.is("blind"), d.is("hang up") && !w.DryRun:
		panic(http.ErrAbortHandler)
	}
	i := incidentOf(w)
	if w.DryRun {
		i.ID, i.Global, i.Declared = "", "", time.Time{}
		unrecorded := incidentOf(w)
		for n := range unrecorded.Mails {
			unrecorded.Mails[n].Text += "Nothing was done.\n"
		}
		i.Unrecorded, unrecorded.Missing, unrecorded.ByHand = &unrecorded, []string{"the client id of vdab"}, []string{"Ask VDAB for a new secret, now."}
		if w.Client == "mkp" {
			i.Missing = []string{"the mail relay"}
		}
	}
	return i, nil
}

func (d *incidentsOf) known(id string, asked any) (client.Incident, error) {
	if asked != nil {
		d.note(id, asked)
	}
	switch {
	case d.is("observer"):
		return client.Incident{}, &broker.Error{Code: client.NotAllowed, Detail: "for this you have to be root"}
	case !strings.HasPrefix(id, "2026-0007"):
		return client.Incident{}, &broker.Error{Code: client.NotFound, Detail: "there is no incident " + id}
	}
	i := incidentOf(client.Declaration{Client: "vdab", Severity: "confirmed", Policy: "quarantine", Happened: "It stood in a repository."})
	switch {
	case d.is("draft"):
		i.State = "draft"
	case d.is("delivered"):
		i.State = "closed"
	case d.is("unreachable"):
		i.Mails[0].Attempts, i.Mails[0].NextAttempt, i.Mails[0].Why = 3, i.Declared.Add(time.Hour), []string{"mail.corp.example:587 cannot be reached", "mx2:25 refused it (550)"}
	case d.is("refused"):
		i.Mails[0].State = "refused"
	}
	return i, nil
}

// incidentOf is what a daemon might answer.
func incidentOf(w client.Declaration) client.Incident {
	at := time.Date(2026, 11, 20, 13, 0, 0, 0, time.UTC)
	i := client.Incident{ID: "2026-0007", Global: "2026-0007@web1", State: "open", Severity: w.Severity, Clients: []string{w.Client}, Policy: w.Policy, Declared: at,
		ByHand: []string{"Ask VDAB for a new secret."}, Clocks: []string{"GDPR art. 33: 72 hours, until 23 November 2026, 14:00 in Brussels."}}
	if i.Policy == "" {
		i.Policy = "keep-serving"
	}
	if i.Policy != "keep-serving" {
		i.Quarantined = i.Clients
		i.Done = []client.IncidentStep{{At: at, What: "stop hand-outs", Outcome: "done"}, {At: at, What: "revoke tokens", Outcome: "not_possible", Detail: "the issuer offers no revocation"}}
	}
	if !w.NoMail {
		for _, to := range []string{"ict_iam@issuer.example", "security@issuer.example", "security@corp.example"} {
			m := client.Mail{To: to, Revision: 1, Subject: "Leak of credentials", Text: w.Happened + "\n"}
			if to == "security@corp.example" {
				m.Text += "Only for us: who had it.\n"
			}
			if !w.DryRun {
				m.State, m.Since = "queued", at
			}
			i.Mails = append(i.Mails, m)
		}
	}
	return i
}

// talkWith is "talk ANSWERS CODE COMMAND…": it runs a command on a terminal,
// types the next line of the file ANSWERS at each prompt, and wants the exit
// code. What the person sees is in the file screen, without blanks at the ends
// of lines. ^C and ^D are the keys; ^up starts the daemon before the next answer.
func talkWith(ts *testscript.TestScript, _ bool, args []string) {
	program := args[2]
	if !filepath.IsAbs(program) {
		program = filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], program)
	}
	ours, theirs := input(ts, true)
	cmd := exec.Command(program, args[3:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), client.Environment + "=" + ts.Getenv("SOCKET"), "WORK=" + ts.Getenv("WORK")}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}
	ts.Check(cmd.Start())
	defer theirs.Close()
	defer time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() }).Stop()
	// The other end stays open for a last byte: what a terminal still holds when
	// it is closed may be lost.
	const end = "\x1e"
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		_, _ = io.WriteString(theirs, end)
		ended <- err
	}()
	var answers []string
	if text := ts.ReadFile(args[0]); text != "" {
		answers = strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	}
	screen, left := play(ts, ours, answers, end, cmd.Process)
	err := <-ended
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	}
	var text strings.Builder
	for line := range strings.Lines(strings.ReplaceAll(strings.TrimSuffix(screen, end), "\r\n", "\n")) {
		text.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	ts.Check(os.WriteFile(ts.MkAbs("screen"), []byte(text.String()), 0o600))
	ts.Logf("%s", text.String())
	switch {
	case fmt.Sprint(got) != args[1]:
		ts.Fatalf("exit code %d, want %s", got, args[1])
	case len(left) > 0:
		ts.Fatalf("%d answers were not asked for: %q", len(left), left)
	}
	if state, err := unix.IoctlGetTermios(int(theirs.Fd()), unix.TCGETS); err != nil || state.Lflag&unix.ECHO == 0 {
		ts.Fatalf("the terminal is left as it was hidden: %v", err)
	}
}

// play types an answer at each prompt, until end comes.
func play(ts *testscript.TestScript, terminal *os.File, answers []string, end string, p *os.Process) (screen string, left []string) {
	var all bytes.Buffer
	buf := make([]byte, 4096)
	for !bytes.HasSuffix(all.Bytes(), []byte(end)) {
		n, err := terminal.Read(buf)
		ts.Check(err)
		all.Write(buf[:n])
		if !bytes.HasSuffix(all.Bytes(), []byte("> ")) {
			continue
		}
		if len(answers) == 0 {
			_ = p.Kill()
			continue
		}
		if answers[0] == "^up" { // the daemon starts meanwhile
			startIncidents(ts, false, nil)
			answers = answers[1:]
		}
		typed := answers[0] + "\n"
		if key := map[string]string{"^C": "\x03", "^D": "\x04"}[answers[0]]; key != "" {
			typed = key
		}
		answers = answers[1:]
		_, err = io.WriteString(terminal, typed)
		ts.Check(err)
	}
	return all.String(), answers
}

// A daemon that has gone is told from one that does not let us in.
func TestStoppedDaemon(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "left.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	for socket, want := range map[string]bool{left: true, filepath.Join(dir, "none.sock"): true, filepath.Join(dir, strings.Repeat("x", 200)): false} {
		a := client.Admin{Socket: socket}
		if _, err := a.Status(t.Context()); err == nil || stoppedDaemon(err) != want {
			t.Errorf("%s: %v", filepath.Base(socket), err)
		}
	}
	if stoppedDaemon(&client.Problem{Code: client.NotFound}) || stoppedDaemon(nil) {
		t.Error("an answer is no stopped daemon")
	}
}
