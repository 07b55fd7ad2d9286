//go:build real

package leak

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
	"credentialbroker/internal/leak"
)

const ( // exit codes
	tryAgain   = 75 // of a declaration that is not recorded, or may not be
	notAllowed = 77 // of a token of a client that is quarantined
)

// broker runs the command line as it ships. Its output is searched, too.
func (s *site) broker(args ...string) (out, errs string, code int) {
	s.t.Helper()
	var o, e bytes.Buffer
	cmd := exec.CommandContext(s.t.Context(), s.path("broker"), append([]string{"--socket", s.path("broker.sock")}, args...)...)
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	if args[0] != "token" {
		s.said(o.String() + e.String())
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// ask runs a command that has to succeed and answers in JSON.
func (s *site) ask(into any, args ...string) {
	s.t.Helper()
	out, errs, code := s.broker(append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil || code != 0 {
		s.t.Fatalf("broker %s: exit code %d, %v\n%s%s", strings.Join(args, " "), code, err, out, errs)
	}
}

// show is an incident as it is now.
func (s *site) show(id string) (i client.Incident) {
	s.t.Helper()
	s.ask(&i, "leak", "show", id)
	return i
}

// declare says how it was answered. recorded: it was, by the daemon or, as no
// daemon ran, in the spool; else a person was told that it may not be.
func (s *site) declare() (how string, recorded bool) {
	s.t.Helper()
	out, errs, code := s.broker("leak", "declare", "vdab", "--confirmed", "--what", "client_secret", "--happened", "It stood in a repository.",
		"--policy", "quarantine", "--yes", "--json", "--config", s.path("broker.yaml"), "--state", s.path("state"))
	var i client.Incident
	switch {
	case code == 0 && json.Unmarshal([]byte(out), &i) == nil && i.ID != "":
		return "recorded", true
	case code == 0 && strings.HasPrefix(out, "incident ") && strings.Contains(out, ": recorded\n"):
		return "recorded in the spool", true
	case code == tryAgain && strings.Contains(errs, "IT IS NOT KNOWN WHETHER"):
		return "not known", false
	case code == tryAgain && strings.Contains(out+errs, "NOT RECORDED"):
		return "not recorded", false
	}
	s.t.Errorf("broker leak declare: exit code %d\n%s%s", code, out, errs)
	return "nothing", false
}

// fresh starts a daemon that knows of nothing, for an empty mailbox; what there
// was before is kept under another name.
func (s *site) fresh(n int) (kill func(), token string) {
	s.t.Helper()
	for _, name := range []string{s.path("state"), filepath.Join(s.x.dir, "Maildir")} {
		if err := os.Rename(name, fmt.Sprintf("%s-%d", name, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.t.Fatal(err)
		}
	}
	kill = s.start()
	token, errs, code := s.broker("token", "vdab")
	if code != 0 {
		s.t.Fatalf("exit code %d: %s", code, errs)
	}
	return kill, strings.TrimSpace(token)
}

// delivered waits until the relay has taken every mail of an incident.
func (s *site) delivered(id string) (i client.Incident) {
	s.t.Helper()
	for range 300 {
		i = s.show(id)
		waits := len(i.Mails) == 0
		for _, m := range i.Mails {
			waits = waits || m.State != "sent"
		}
		if !waits {
			return i
		}
		<-time.After(100 * time.Millisecond)
	}
	s.t.Errorf("incident %s is not delivered: %+v", id, i.Mails)
	return i
}

// reported checks that each recipient has the report under one Message-ID.
func (s *site) reported(i client.Incident) (twice int, text string) {
	s.t.Helper()
	s.delivered(i.ID)
	ids := map[string]map[string]int{}
	for range 100 { // the relay has taken them; it also has to put them there
		clear(ids)
		if files, _ := filepath.Glob(filepath.Join(s.x.dir, "Maildir", "new", "*")); len(files) >= 3 {
			text = ""
			for _, m := range s.x.read() {
				if ids[m.To[0]] == nil {
					ids[m.To[0]] = map[string]int{}
				}
				ids[m.To[0]][m.MessageID]++
				text += m.Raw + m.Subject + m.Text
				for _, a := range m.Attachments {
					text += string(a.JSON)
					if !strings.Contains(string(a.JSON), i.Global) {
						s.t.Errorf("the report to %s is of another incident than %s", m.To, i.Global)
					}
				}
			}
		}
		if len(ids) == 3 {
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	for _, to := range []string{"ict_iam@issuer.example", "security@issuer.example", "security@corp.example"} {
		if len(ids[to]) != 1 {
			s.t.Errorf("%s has Message-IDs %v, want one", to, ids[to])
		}
		for _, count := range ids[to] {
			if count > 2 {
				s.t.Errorf("%s has it %d times", to, count)
			}
			twice += count - 1
		}
	}
	return twice, text
}

// The daemon is killed ten times while it answers broker leak declare.
func TestDeclareKilled(t *testing.T) {
	real.Row(t, "leak", server, "incident declared: brokerd killed by SIGKILL at ten points of broker leak declare: what was recorded is reported under one Message-ID per recipient and contained, the audit log intact, no secret anywhere")
	s := newSite(t)
	values := []string{leaked, apiKey, password}
	kill, token := s.fresh(0)
	begin := time.Now()
	if how, recorded := s.declare(); !recorded {
		t.Fatal(how)
	}
	took := time.Since(begin)
	_, mailbox := s.reported(s.show(s.onlyOne()))
	values = append(values, token)
	kill()
	for n := range 10 {
		kill, token := s.fresh(n + 1)
		values = append(values, token)
		after := took * time.Duration(n) / 9
		dead := make(chan time.Duration, 1)
		begin := time.Now()
		go func() { <-time.After(after); after := time.Since(begin); kill(); dead <- after }()
		how, recorded := s.declare()
		after = <-dead
		kill = s.start()
		out, errs, code := s.broker("token", "vdab") // first of all: containment is there before anything is handed out
		id := s.onlyOne()
		switch {
		case recorded && id == "":
			t.Fatalf("kill %d: answered as %s, and it is not there", n, how)
		case id == "":
			again, recorded := s.declare()
			if !recorded {
				t.Fatalf("kill %d: declared again, it is %s", n, again)
			}
			how += ", it was not, declared again"
			id = s.onlyOne()
			out, errs, code = s.broker("token", "vdab")
		case !recorded:
			how += ", it was"
		}
		contained := func() {
			t.Helper()
			if code != notAllowed || out != "" || !strings.Contains(errs, "quarantined") {
				t.Errorf("kill %d, %s: broker token: exit code %d: %s", n, how, code, errs)
			}
		}
		contained()
		i := s.show(id)
		if len(i.Quarantined) != 1 || i.State != "open" {
			t.Errorf("kill %d: %+v", n, i)
		}
		twice, text := s.reported(i)
		mailbox += text
		t.Logf("killed after %s of %s: %s; %d mails twice", after.Round(time.Millisecond), took.Round(time.Millisecond), how, twice)
		kill()
		kill = s.start() // nothing is left to do now, and still it is contained
		out, errs, code = s.broker("token", "vdab")
		contained()
		if out, errs, code := s.broker("audit", "verify"); code != 0 || !strings.Contains(out, "intact") {
			t.Errorf("kill %d: broker audit verify: exit code %d: %s%s", n, code, out, errs)
		}
		kill()
	}
	s.search(values, mailbox)
}

// onlyOne is the one incident there is; empty: there is none.
func (s *site) onlyOne() string {
	s.t.Helper()
	var list client.Incidents
	s.ask(&list, "leak", "list")
	switch len(list.Incidents) {
	case 0:
		return ""
	case 1:
		return list.Incidents[0].ID
	}
	s.t.Fatalf("%d incidents, want one: %+v", len(list.Incidents), list.Incidents)
	return ""
}

// search looks for values in all states, all mailboxes, what the programs said
// and the mails as a reader decodes them.
func (s *site) search(values []string, mailbox string) {
	s.t.Helper()
	places := map[string]string{"the decoded mails": mailbox, "the output": s.log.String()}
	for _, pattern := range []string{s.path("state*"), filepath.Join(s.x.dir, "Maildir*")} {
		roots, _ := filepath.Glob(pattern)
		for _, root := range roots {
			err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
				if err != nil || !e.Type().IsRegular() {
					return err
				}
				b, err := os.ReadFile(name)
				places[name] = string(b)
				return err
			})
			if err != nil {
				s.t.Error(err)
			}
		}
	}
	if mailbox == "" || s.log.Len() == 0 || len(places) < 5 {
		s.t.Fatalf("only %d places were searched", len(places))
	}
	for _, v := range values {
		for _, form := range forms(v) {
			for name, text := range places {
				if strings.Contains(text, form) || strings.Contains(strings.ToLower(text), form) {
					s.t.Errorf("a secret stands in %s", name)
				}
			}
		}
	}
}

// forms are a value in clear, in hex, and in base64 wherever it begins in what
// is encoded.
func forms(v string) []string {
	list := []string{v, hex.EncodeToString([]byte(v))}
	for before := range 3 {
		whole := base64.StdEncoding.EncodeToString([]byte(strings.Repeat(" ", before) + v + "   "))
		from, to := (before*8+5)/6, (before+len(v))*8/6 // digits that hold bits of v alone
		std := whole[from:to]
		list = append(list, std, strings.NewReplacer("+", "-", "/", "_").Replace(std))
	}
	return list
}

// A drill goes the whole way, and only to the organisation's own address.
func TestDrill(t *testing.T) {
	real.Row(t, "leak", server, "drill: broker leak drill goes to the organisation's own address alone, marked in both languages, stops nothing, and keeps the time of each step")
	s := newSite(t)
	kill, token := s.fresh(0)
	out, errs, code := s.broker("leak", "drill", "vdab")
	if code != 0 || !strings.HasPrefix(out, "drill ") || !strings.Contains(out, ": recorded\n") {
		t.Fatalf("exit code %d\n%s%s", code, out, errs)
	}
	id := s.onlyOne()
	served := func() {
		t.Helper()
		if again, errs, code := s.broker("token", "vdab"); code != 0 || strings.TrimSpace(again) != token {
			t.Errorf("a drill has stopped or revoked something: exit code %d: %s", code, errs)
		}
	}
	served()
	m := s.x.mails(1)[0]
	if m.EnvelopeTo != "security@corp.example" || m.To[0] != m.EnvelopeTo || len(m.To) != 1 || len(m.Defects) != 0 {
		t.Errorf("to %s (%s), defects %v", m.To, m.EnvelopeTo, m.Defects)
	}
	if !strings.Contains(m.Subject, "[OEFENING / DRILL]") || !strings.HasPrefix(m.Text, "*** OEFENING. ") || !strings.Contains(m.Text, "\n*** DRILL. ") ||
		len(m.Attachments) != 1 || !drilled(m.Attachments[0].JSON) {
		t.Errorf("it looks real: %s\n%s", m.Subject, m.Text)
	}
	var i client.Incident
	for range 200 { // it closes itself in the round after the delivery
		if i = s.show(id); i.State == "closed" {
			break
		}
		<-time.After(100 * time.Millisecond)
	}
	if !i.Drill || i.State != "closed" || len(i.Quarantined) != 0 || len(i.Mails) != 1 || i.Mails[0].State != "sent" {
		t.Errorf("%+v", i)
	}
	shown, _, _ := s.broker("leak", "show", id)
	for _, name := range []string{"record", "trace_tokens", "deliver"} {
		what, found := leak.English.Word(name), false
		for _, step := range i.Done {
			if step.What == what && step.Outcome == "done" {
				_, err := time.ParseDuration(step.Detail)
				found = err == nil && !step.At.IsZero() && strings.Contains(shown, step.At.UTC().Format("15:04:05 UTC")+"  "+what+": "+step.Detail)
			}
		}
		if !found {
			t.Errorf("%s has no time:\n%s", what, shown)
		}
	}
	served()
	kill()
	s.x.mails(1)
	log, err := os.ReadFile(filepath.Join(s.x.dir, "log", "mainlog"))
	if err != nil || !strings.Contains(string(log), "=> ") || strings.Contains(string(log), "issuer.example") {
		t.Errorf("what the relay took: %v\n%s", err, log)
	}
	s.search([]string{leaked, apiKey, password, token}, m.Raw+m.Text+string(m.Attachments[0].JSON))
}

func drilled(report []byte) bool {
	var r struct {
		Drill bool `json:"drill"`
	}
	return json.Unmarshal(report, &r) == nil && r.Drill
}
