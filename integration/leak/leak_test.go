//go:build real

package leak

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/leak"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
)

var (
	sender = leak.Sender{Organisation: leak.Organisation{Name: "Voorbeeld nv", KBO: "0123.456.789"}, Name: "Wachtdienst", Phone: "+32 2 000 00 00",
		From: "broker@corp.example", ReplyTo: "security@corp.example"}
	languages = []leak.Language{leak.Dutch, leak.English}
)

// A desk is a book and an outbox, as a daemon has them.
type desk struct {
	t    *testing.T
	dir  string
	book *leak.Book
	out  *leak.Outbox
}

func newDesk(t *testing.T, relays ...leak.Relay) *desk {
	t.Helper()
	d := &desk{t: t, dir: t.TempDir()}
	var err error
	if d.book, err = leak.OpenBook(filepath.Join(d.dir, "incidents"), "web1", clock.System{}); err != nil {
		t.Fatal(err)
	}
	if d.out, err = leak.OpenOutbox(filepath.Join(d.dir, "outbox"), "web1", relays, clock.System{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- d.out.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return d
}

func (d *desk) declare() leak.Incident {
	d.t.Helper()
	i, err := d.book.Declare(leak.Incident{Severity: leak.Confirmed, What: []leak.Credential{leak.ClientSecret}, Happened: "Een geheim stond één nacht op een publieke plaats.\n.\nEinde",
		PersonalData: leak.PersonalNo, Clients: []string{"vdab"}, ClientID: "kCVy8fpVSU50zFzi8TIC", Environment: "production", Policy: leak.Quarantine,
		Issuer: leak.Issuer{Name: "VDAB", Contacts: []string{"ict_iam@issuer.example", "security@issuer.example"}, Rotation: "by-request"},
		CopyTo: []string{"security@corp.example"}, Holders: []leak.Holder{{UID: 33, Unit: "php8.2-fpm.service", Held: "token"}}}, false)
	if err != nil {
		d.t.Fatal(err)
	}
	d.report(i)
	return i
}

// report composes the newest revision and queues it.
func (d *desk) report(i leak.Incident) {
	d.t.Helper()
	messages, err := leak.Compose(i, sender, languages)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := d.out.Enqueue(messages); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) login(n int, word string) {
	d.t.Helper()
	if err := d.out.SetLogin(n, "broker", secret.FromString(word)); err != nil {
		d.t.Fatal(err)
	}
}

// settled waits until every message was tried, and returns how they fare.
func (d *desk) settled() []leak.Delivery {
	d.t.Helper()
	for range 400 {
		list := d.out.Deliveries("")
		if len(list) > 0 && !slices.ContainsFunc(list, func(d leak.Delivery) bool { return d.Attempts == 0 }) {
			return list
		}
		<-time.After(25 * time.Millisecond)
	}
	d.t.Fatal("nothing is tried")
	return nil
}

func (x *exim) relay(tls string) leak.Relay {
	r := leak.Relay{Host: "127.0.0.1", Port: x.starttls, TLS: tls, Login: true, Config: outbound.Config{CAFile: x.caFile}}
	if tls == "implicit" {
		r.Port = x.implicit
	}
	return r
}

func TestReportsArrive(t *testing.T) {
	real.Row(t, "leak", server, "STARTTLS with AUTH PLAIN, and implicit TLS, into a Maildir: Python's email library reads every mail, its thread and its attachment")
	x := startExim(t)
	for n, tls := range []string{"starttls", "implicit"} {
		d := newDesk(t, x.relay(tls))
		d.login(0, password)
		i := d.declare()
		d.settled()
		x.mails(6*n + 3)
		later, err := d.book.Update(i.ID, func(i *leak.Incident) error {
			i.Queued()
			i.Actions = append(i.Actions, leak.Action{At: time.Now(), What: "quarantine", Outcome: leak.Done})
			i.Revise(time.Now(), "De client ligt stil.", false)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		d.report(later)
		for _, m := range x.mails(6*n + 6)[6*n:] {
			check(t, d, m)
		}
		for _, s := range d.out.Deliveries(i.ID) {
			if s.State != leak.Sent {
				t.Errorf("%+v", s)
			}
		}
		nothingSecret(t, d.dir)
	}
	nothingSecret(t, filepath.Join(x.dir, "Maildir"))
}

func check(t *testing.T, d *desk, m mail) {
	t.Helper()
	if len(m.Defects) != 0 || m.Charset != "utf-8" || m.AutoSubmitted != "auto-generated" || len(m.Attachments) != 1 || !strings.Contains(m.Received, "esmtpsa") {
		t.Errorf("%+v", m)
		return
	}
	if m.From[0] != sender.From || m.ReplyTo[0] != sender.ReplyTo || m.EnvelopeTo != m.To[0] || m.ReturnPath != "<"+sender.From+">" {
		t.Errorf("from %s (%s), to %s (%s), reply to %s", m.From, m.ReturnPath, m.To, m.EnvelopeTo, m.ReplyTo)
	}
	var queued *leak.Delivery
	for _, s := range d.out.Deliveries("") {
		if s.MessageID == m.MessageID && s.Recipient == m.To[0] {
			queued = &s
		}
	}
	if queued == nil {
		t.Errorf("%s to %s was never queued", m.MessageID, m.To)
		return
	}
	root := ""
	if queued.Revision == 2 {
		root = strings.Replace(m.MessageID, ".2.", ".1.", 1)
	}
	if m.InReplyTo != root {
		t.Errorf("%s is in reply to %q, want %q", m.MessageID, m.InReplyTo, root)
	}
	a := m.Attachments[0]
	if a.Type != "application/json" || a.Name != fmt.Sprintf("incident-%s-%d.json", queued.Incident, queued.Revision) || !strings.Contains(string(a.JSON), `"credential-broker-incident-report/1"`) {
		t.Errorf("attachment %s (%s): %s", a.Name, a.Type, a.JSON)
	}
	if !strings.Contains(m.Text, "één nacht op een publieke plaats.\n  | .\n  | Einde\n") || strings.Contains(m.Text+string(a.JSON), "php8.2-fpm") != queued.Copy {
		t.Errorf("the mail to %s:\n%s", m.To, m.Text)
	}
}

// nothingSecret looks for the login in every file below dir.
func nothingSecret(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), password) {
			t.Errorf("%s holds the password", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	real.Row(t, "leak", server, "a wrong password, a foreign certificate, a relay without TLS and an unknown recipient, each told from the others, and a login only under TLS")
	x, other := startExim(t), startExim(t)
	foreign := x.relay("starttls")
	foreign.CAFile = other.caFile
	open := x.relay("none")
	open.Login = false
	wrongPort := x.relay("implicit")
	wrongPort.Port = x.starttls
	for name, c := range map[string]struct {
		relay    leak.Relay
		password string
		cause    string
		code     int
		enhanced string
		state    leak.DeliveryState
	}{
		"password":    {x.relay("starttls"), "wrong", "login_refused", 535, "", leak.Refused},
		"certificate": {foreign, password, "certificate", 0, "", leak.Queued},
		"no TLS":      {open, "", "reply", 550, "5.7.0", leak.Refused},
		"port":        {wrongPort, password, "tls", 0, "", leak.Queued},
	} {
		d := newDesk(t, c.relay)
		if c.password != "" {
			d.login(0, c.password)
		}
		d.declare()
		for _, s := range d.settled() {
			a := s.Last[0]
			if s.State != c.state || a.Cause != c.cause || c.enhanced != "" && a.Enhanced != c.enhanced || a.Code != c.code && a.Code != 0 {
				t.Errorf("%s: %s: %+v", name, s.State, a)
			}
		}
	}
	d := newDesk(t, x.relay("starttls"))
	d.login(0, password)
	if c := d.out.Check(t.Context()); c[0].Result != leak.Accepted {
		t.Errorf("check: %v", c[0])
	}
	i := d.declare()
	d.settled()
	got, err := d.book.Update(i.ID, func(i *leak.Incident) error {
		i.Issuer.Contacts, i.CopyTo = []string{"nobody@issuer.example"}, nil
		i.Revise(time.Now(), "", false)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	d.report(got)
	for _, s := range d.settled() {
		if s.Revision == 2 && (s.State != leak.Refused || s.Last[0].Stage != "recipient" || s.Last[0].Enhanced != "5.1.1") {
			t.Errorf("%+v", s)
		}
	}
	x.mails(3)
}

func TestNextRelay(t *testing.T) {
	real.Row(t, "leak", server, "takes what a relay before it refused, dropped or never answered")
	x := startExim(t)
	var relays []leak.Relay
	for _, answer := range []string{"220 hello\r\n451 4.3.0 later\r\n451 4.3.0 later\r\n", "554 5.0.0 no\r\n", ""} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(answer))
				_ = c.Close()
			}
		}()
		t.Cleanup(func() { l.Close(); <-done })
		relays = append(relays, leak.Relay{Host: "127.0.0.1", Port: port(t, l.Addr().String()), TLS: "none"})
	}
	gone := leak.Relay{Host: "127.0.0.1", Port: port(t, real.FreeAddr(t))}
	d := newDesk(t, append(relays, gone, x.relay("starttls"))...)
	d.login(4, password)
	d.declare()
	x.mails(3)
	for _, s := range d.settled() {
		if s.State != leak.Sent || len(s.Last) != 5 || s.Last[3].Cause != "connect" {
			t.Errorf("%+v", s)
		}
	}
}
