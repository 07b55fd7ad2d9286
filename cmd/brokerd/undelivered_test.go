package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// badRelay is a mail relay that refuses every recipient, or never says a word.
func badRelay(t *testing.T, hangs bool) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	serve := func(c net.Conn) {
		defer c.Close()
		in := bufio.NewScanner(c)
		if !hangs {
			fmt.Fprint(c, "220 relay.example\r\n")
		}
		for in.Scan() {
			switch verb, _, _ := strings.Cut(strings.ToUpper(in.Text()), " "); {
			case hangs:
			case verb == "RCPT":
				fmt.Fprint(c, "550 5.1.1 canary words of the relay\r\n")
			default:
				fmt.Fprint(c, "250 relay.example\r\n")
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// alarmed is a site whose reports nobody takes, with all that tells of it.
type alarmed struct {
	*site
	receiver *receiver
	lines    string // the command's
}

func newAlarmed(t *testing.T, hangs bool) *alarmed {
	s := newSite(t)
	s.journal = true
	a := &alarmed{site: s, receiver: newReceiver(t)}
	command, dir := script(t, `cat >> $D/lines`)
	a.lines = filepath.Join(dir, "lines")
	s.write("broker.yaml", s.config()+strings.Replace(leakYAML, "port: 1,", fmt.Sprintf("port: %d,", badRelay(t, hangs)), 1)+
		fmt.Sprintf("alarm: { command: [%s], webhook: { url: %q, ca_file: %s, secret: { provider: local, path: hook } } }\n",
			command, a.receiver.URL+"/alarm?to=1", a.receiver.trust(t, s.path("receiver.pem"))))
	return a
}

func (a *alarmed) putKey() {
	a.t.Helper()
	if _, err := a.store.Put(a.t.Context(), providers.Ref{Path: "hook"}, map[string]secret.Secret{"key": secret.FromString(theWebhookKey)}, ""); err != nil {
		a.t.Fatal(err)
	}
}

func (a *alarmed) declare() {
	a.t.Helper()
	for _, file := range []string{"alarm.json", "alarm-webhook.json"} {
		a.until("places are kept", func() bool { _, err := os.Stat(a.path("state", file)); return err == nil })
	}
	if code, body := a.do("admin.sock", "POST", "/v1/incidents", `{"client":"vdab","severity":"suspected","what":["unknown"],"happened":"Odd calls."}`); code != 200 {
		a.t.Fatalf("%d %s", code, body)
	}
}

// told are the lines of the command that say that a report is not delivered.
func (a *alarmed) told() (list []string) {
	b, _ := os.ReadFile(a.lines)
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, `"code":"undelivered"`) {
			list = append(list, strings.TrimSuffix(line, "\n"))
		}
	}
	return list
}

// posted are the bodies of the webhook that say so, and their ids.
func (a *alarmed) posted() (ids, bodies []string) {
	a.receiver.mu.Lock()
	defer a.receiver.mu.Unlock()
	for i, body := range a.receiver.bodies {
		if strings.Contains(body, `"code":"undelivered"`) {
			ids, bodies = append(ids, a.receiver.ids[i]), append(bodies, body)
		}
	}
	return ids, bodies
}

// seen checks the ways that are neither command nor webhook.
func (a *alarmed) seen(why string) {
	a.t.Helper()
	alert := regexp.MustCompile(`(?m)^<1>level=ALERT msg="an incident needs somebody" incident=\d{4}-0001 client=vdab why="no mail relay takes the report to ict_iam@vdab.be, security@vdab.be, security@corp.example: .*` + why)
	a.until("the journal has it", func() bool { return alert.MatchString(a.stderr.String()) })
	broker := filepath.Join(a.dir, "broker")
	if out, err := exec.Command("go", "build", "-o", broker, "../broker").CombinedOutput(); err != nil {
		a.t.Fatalf("%v\n%s", err, out)
	}
	status := func(args ...string) (int, string) {
		out, err := exec.Command(broker, append([]string{"status", "--admin-socket", a.path("admin.sock")}, args...)...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			a.t.Fatalf("%v\n%s", err, out)
		}
		return exit.ExitCode(), string(out)
	}
	if code, out := status(); code != 75 || !strings.Contains(out, "-0001 HAS NOT REACHED 3 recipients") {
		a.t.Errorf("%d\n%s", code, out)
	}
	if code, out := status("--check"); code != 2 || !strings.Contains(out, "HAS NOT REACHED 3 recipients") {
		a.t.Errorf("%d\n%s", code, out)
	}
	if _, text := a.do("admin.sock", "GET", "/metrics", ""); !strings.Contains(text, `credential_broker_incident_mails{state="late"} 3`) {
		a.t.Error(regexp.MustCompile(`.*incident_mails.*`).FindAllString(text, -1))
	}
	for _, secret := range []string{theWebhookKey, strings.TrimPrefix(theWebhookKey, "whsec_"), "canary words"} {
		if strings.Contains(a.stderr.String(), secret) || strings.Contains(strings.Join(a.told(), ""), secret) {
			a.t.Errorf("%q is in the log or the alarm", secret)
		}
	}
}

// TestReportRefused: each way of telling tells, once, the same; one
// whose daemon dies before it could take note is told again, by the same id.
func TestReportRefused(t *testing.T) {
	a := newAlarmed(t, false)
	a.putKey()
	a.receiver.first = func() { _ = a.cmd.Process.Kill() }
	a.start()
	a.declare()
	_ = a.cmd.Wait() // the webhook kills it
	a.start()
	a.until("the webhook is called again", func() bool { ids, _ := a.posted(); return len(ids) >= 2 })
	a.until("the command is run", func() bool { return len(a.told()) >= 1 })
	a.until("that is recorded", func() bool { return strings.Contains(read(t, a.path("state", "alarm-webhook.json")), "undelivered") })
	a.seen("refused it \\(550 5.1.1\\), at the stage recipient")
	a.stop(syscall.SIGTERM)
	ids, bodies := a.posted()
	if len(ids) != 2 || ids[0] != ids[1] || bodies[0] != bodies[1] || bodies[0] != a.told()[0] {
		t.Errorf("%q %q, the command %q", ids, bodies, a.told())
	}
	var m alarmMessage
	if err := json.Unmarshal([]byte(bodies[0]), &m); err != nil || m.Client != "vdab" || !strings.HasSuffix(m.Detail["incident"], "-0001") || !strings.Contains(m.Alarm, "tell them in another way") {
		t.Errorf("%v, %+v", err, m)
	}
	a.receiver.got(t)
}

// TestReportHangs: a relay that hangs, for as long as is configured; the
// webhook's key comes when it can be read.
func TestReportHangs(t *testing.T) {
	a := newAlarmed(t, true)
	a.start()
	a.declare()
	a.stop(syscall.SIGTERM)
	if len(a.told()) != 0 {
		t.Errorf("too early: %q", a.told())
	}
	// Nine minutes pass, and ten.
	for _, ago := range []time.Duration{9 * time.Minute, 11 * time.Minute} {
		files, err := filepath.Glob(a.path("state", "outbox", "*.json"))
		if err != nil || len(files) != 3 {
			t.Fatalf("%v, %v", files, err)
		}
		queued, sum := regexp.MustCompile(`"queued_at": "[^"]*"`), regexp.MustCompile(`,\s*"checksum": "[^"]*"`)
		for _, f := range files {
			before := read(t, f)
			text := queued.ReplaceAllString(sum.ReplaceAllString(before, ""), `"queued_at": "`+time.Now().Add(-ago).UTC().Format(time.RFC3339)+`"`)
			if text == before {
				t.Fatalf("not of that form: %s", text)
			}
			if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		a.start()
		if ago < 10*time.Minute {
			if _, text := a.do("admin.sock", "GET", "/v1/status", ""); !strings.Contains(text, `"undelivered":0`) {
				t.Errorf("too early: %s", text)
			}
			a.stop(syscall.SIGTERM)
			if len(a.told()) != 0 {
				t.Errorf("too early: %q", a.told())
			}
		}
	}
	a.until("the command is run", func() bool { return len(a.told()) == 1 })
	a.until("the webhook waits for its key", func() bool {
		return strings.Contains(a.stderr.String(), `<4>level=WARN msg="an alarm waits" via=webhook`)
	})
	a.seen(".")
	a.putKey()
	if code, body := a.do("admin.sock", "POST", "/v1/reload", ""); code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	a.until("the webhook is called", func() bool { ids, _ := a.posted(); return len(ids) == 1 })
	a.stop(syscall.SIGTERM)
	if _, bodies := a.posted(); bodies[0] != a.told()[0] {
		t.Errorf("the webhook %q, the command %q", bodies, a.told())
	}
	a.receiver.got(t)
}
