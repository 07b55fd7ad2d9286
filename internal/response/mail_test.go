package response

import (
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/leak"
	"credentialbroker/providers"
)

// textOf is the text of a mail, on one line.
func textOf(t *testing.T, data string) string {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	part, err := multipart.NewReader(m.Body, params["boundary"]).NextRawPart()
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(quotedprintable.NewReader(part))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(text)), " ")
}

// toIssuer are the texts of the mails to the issuer.
func (d *desk) toIssuer() (list []string) {
	for _, m := range d.relay.taken() {
		if strings.Contains(m, "To: <ict_iam@issuer.example>") {
			list = append(list, textOf(d.t, m))
		}
	}
	return list
}

// Two incidents of one client tell its issuer the same of it.
func TestTwoIncidentsAgree(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		one := d.config.Clients["vdab"]
		one.Hosts = 1
		d.config.Clients["vdab"] = one
		if err := d.r.SetConfig(d.config); err != nil {
			t.Fatal(err)
		}
		d.declare(confirmed("quarantine"))
		time.Sleep(time.Minute)
		second := confirmed("keep-serving")
		second.DryRun = true
		plan := d.declare(second)
		second.DryRun = false
		d.declare(second)
		time.Sleep(time.Minute)
		mails := append(d.toIssuer(), strings.Join(strings.Fields(plan.Mails[0].Text), " "))
		if len(mails) != 3 {
			t.Fatalf("%d mails", len(mails))
		}
		for _, m := range mails {
			if !strings.Contains(m, "we have stopped the client, you interrupt nothing") || strings.Contains(m, "still in use") {
				t.Errorf("the client is stopped, and this says:\n%s", m)
			}
		}
	})
}

func flat(s string) string { return strings.Join(strings.Fields(s), " ") }

// A person is given to send what is true when nothing was recorded and nothing
// was done: by a daemon whose disk is full, and by the command of a time without
// a daemon.
func TestUnrecordedSaysNothingWasDone(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		time.Sleep(time.Minute)
		c := confirmed("quarantine")
		c.DryRun = true
		plan := d.declare(c)
		if plan.Unrecorded == nil || len(plan.Missing) != 0 {
			t.Fatalf("%+v", plan)
		}
		d.stop()
		if err := os.RemoveAll(filepath.Join(d.dir, "incidents")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d.dir, "incidents"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Spool(d.dir, "web1", d.config, d.clock, confirmed("quarantine"), leak.Declarer{Claimed: "An, 1234"})
		if err != nil || s.Err == nil || s.Look() != nil {
			t.Fatal(err, s)
		}
		for name, i := range map[string]*client.Incident{"daemon": plan.Unrecorded, "spool": &s.Incident} {
			if len(i.Mails) != 2 || len(i.Missing) != 0 || len(i.Quarantined) != 0 {
				t.Fatalf("%s: %+v", name, i)
			}
			for _, m := range i.Mails {
				for _, wrong := range []string{"you interrupt nothing", "have stopped", "stop the client:", "2000-0000", "You hear from us", "automatically", "attachment names"} {
					if strings.Contains(flat(m.Text)+m.Subject, wrong) {
						t.Errorf("%s: %q in\n%s", name, wrong, m.Text)
					}
				}
				for _, want := range []string{"still in use on web1: call", "Client id " + theID, "1 token was issued"} {
					if !strings.Contains(flat(m.Text), want) {
						t.Errorf("%s: no %q in\n%s", name, want, m.Text)
					}
				}
			}
			if all := strings.Join(i.ByHand, "\n"); strings.Contains(all, "2000-0000") || strings.Contains(all, "quarantine stops") || !strings.Contains(all, "whoever has it can use the API") {
				t.Errorf("%s: %s", name, all)
			}
		}
		if all := strings.Join(plan.ByHand, "\n"); strings.Contains(all, "2000-0000") {
			t.Errorf("by hand, of what is not recorded yet: %s", all)
		}
		_ = os.Remove(filepath.Join(d.dir, "incidents"))
		d.start()
	})
}

// While no daemon runs, what is not known is not said to be nothing, and what is
// missing stands above the mail.
func TestSpooledWithoutState(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.stop()
		dir := t.TempDir() // of a daemon that never ran
		if err := os.Mkdir(filepath.Join(dir, "audit"), 0o700); err != nil {
			t.Fatal(err)
		}
		s, err := Spool(dir, "web1", d.config, d.clock, confirmed("quarantine"), leak.Declarer{})
		if err != nil || s.Err != nil || s.Look() != nil {
			t.Fatal(err, s)
		}
		text := flat(s.Incident.Mails[0].Text + s.Incident.Mails[1].Text)
		if strings.Contains(text, "No tokens were issued") || strings.Contains(text, "nobody, as far") || !strings.Contains(text, "issued on web1 has not been determined yet") {
			t.Errorf("%s", text)
		}
		if fmt.Sprint(s.Incident.Missing) != "[the client id of vdab at VDAB]" || !strings.Contains(text, "Client id FILL IN") {
			t.Errorf("%s\n%s", s.Incident.Missing, text)
		}
		if !strings.Contains(text, "On web1 we have stopped the client.") { // recorded: the next daemon does not serve
			t.Errorf("%s", text)
		}
		d.start()
	})
}

// The client id outlives the daemon, and a secrets manager that is down.
func TestClientIDIsKept(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		time.Sleep(time.Minute)
		d.stop()
		d.store.SetFault(providers.Unavailable)
		d.start()
		d.declare(confirmed("quarantine"))
		time.Sleep(time.Minute)
		if mails := d.toIssuer(); len(mails) == 0 || !strings.Contains(mails[0], "Client id "+theID) {
			t.Errorf("%s", mails)
		}
		d.store.SetFault("")
	})
}

// Without leak: in the configuration there is a mail all the same, and what is
// missing is said.
func TestPreviewWithoutRelay(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		d.stop()
		d.config = Config{Clients: d.config.Clients}
		d.start()
		c := confirmed("keep-serving")
		c.DryRun = true
		plan := d.declare(c)
		if len(plan.Mails) != 2 || !strings.Contains(flat(plan.Mails[0].Text), "Contact, day and night: FILL IN, FILL IN") {
			t.Errorf("%+v", plan.Mails)
		}
		if all := strings.Join(plan.Missing, "\n"); len(plan.Missing) != 4 || !strings.Contains(all, "leak: smtp:") {
			t.Errorf("%s", all)
		}
		s, err := Spool(d.dir, "web1", d.config, d.clock, c, leak.Declarer{})
		if err != nil || s.Look() != nil || len(s.Incident.Mails) != 2 || len(s.Incident.Missing) != 4 {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

// How far back the log goes is said where the window begins before it does, and
// times are in both zones.
func TestLogBegins(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		time.Sleep(time.Minute)
		c := confirmed("keep-serving")
		c.From = time.Now().Add(-24 * time.Hour)
		i := d.declare(c)
		time.Sleep(time.Minute)
		c.From = time.Now().Add(-time.Minute)
		late := d.declare(c)
		time.Sleep(time.Minute)
		mails := d.toIssuer()
		const begins = "The log of this begins on 1 January 2000, 01:00 in Brussels (00:00 UTC): what was issued earlier is not known."
		if !strings.Contains(mails[0], begins) || strings.Contains(mails[len(mails)-1], "The log of this begins") {
			t.Errorf("%s\n%s", mails[0], mails[len(mails)-1])
		}
		if _, detail := d.step(i.ID, "trace_tokens"); detail != "1" {
			t.Errorf("recorded: %q", detail)
		}
		for id, want := range map[string]bool{i.ID: true, late.ID: false} {
			shown, err := d.r.Incident(t.Context(), id)
			if err != nil || strings.Contains(fmt.Sprint(shown.Done), "1; the log begins on 1 January 2000, 01:00 in Brussels (00:00 UTC), earlier is not known") != want {
				t.Errorf("%+v, %v", shown.Done, err)
			}
			if all := strings.Join(shown.ByHand, "\n"); !strings.Contains(all, "work until 1 January 2000, 01:10 in Brussels (00:10 UTC), unless VDAB") {
				t.Errorf("%s", all)
			}
		}
	})
}

// A revocation that is not possible says why, in both languages.
func TestWhyNotRevoked(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		d.stop()
		d.start() // the token's value is gone
		i := d.declare(confirmed("quarantine"))
		if o, why := d.step(i.ID, "revoke_tokens"); o != leak.NotPossible || why != leak.ValuesGone {
			t.Errorf("%s %q", o, why)
		}
		time.Sleep(time.Minute)
		if mails := d.toIssuer(); !strings.Contains(mails[0], "not possible (the broker was restarted") || !strings.Contains(mails[0], "niet mogelijk (de broker is herstart") {
			t.Errorf("%s", mails[0])
		}
		if shown, err := d.r.Incident(t.Context(), i.ID); err != nil || !strings.Contains(fmt.Sprint(shown.Done), "the broker was restarted") {
			t.Errorf("%+v, %v", shown.Done, err)
		}
	})
}

// An API key is identified by its version; what has leaked no key has no
// identifier.
func TestKeyID(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		c := confirmed("keep-serving")
		d.declare(c)
		c.What = []string{"api_key"}
		d.declare(c)
		time.Sleep(time.Minute)
		mails := d.toIssuer()
		if len(mails) != 2 || strings.Contains(mails[0], "Key identifier") || !strings.Contains(mails[1], "Key identifier version 1 ") {
			t.Errorf("%s", mails)
		}
	})
}
