package response

import (
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"strings"
	"testing"
	"time"
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
