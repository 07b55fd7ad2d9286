package leak

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var at = time.Date(2026, 11, 21, 2, 12, 0, 0, time.UTC)

func sample() Incident {
	return Incident{Format: format, ID: "2026-0007", Host: "web1", State: Open, Severity: Confirmed, What: []Credential{ClientSecret, APIKey},
		Happened: "A developer pushed the configuration to a public repository.\nIt was there for a night.", Where: "github.com, public repository",
		FoundBy: "the scanner of repositories", Window: Window{From: at.Add(-5 * time.Hour), To: at.Add(-10 * time.Minute)}, PersonalData: PersonalUnknown,
		KnownAt: at.Add(-4 * time.Minute), DeclaredAt: at, DeclaredBy: Declarer{UID: 0, LoginUID: 1000, PID: 4321, Claimed: "Jan Peeters, +32 470 00 00 00"},
		Clients: []string{"vdab", "vdab-batch"}, ClientID: "kCVy8fpVSU50zFzi8TIC", KeyID: "version 7", Environment: "production",
		Issuer:       Issuer{Name: "VDAB", Contacts: []string{"ict_iam@issuer.example", "security@issuer.example"}, Rotation: "by-request"},
		Organisation: Organisation{Name: "Voorbeeld nv", KBO: "0123.456.789"}, CopyTo: []string{"security@corp.example"}, Policy: Quarantine,
		Actions: []Action{{At: at, What: "quarantine", Outcome: Done}, {At: at.Add(time.Second), What: "trace_tokens", Outcome: Done, Detail: "3"}, {At: at.Add(time.Second), What: "revoke_tokens", Outcome: NotPossible}},
		Exposure: Exposure{Count: 3, LastExpiry: at.Add(13 * time.Minute), Tokens: []IssuedToken{
			{JTI: "98a52cad-f20b-45b0-a228-b10a0c24de58", Issued: at.Add(-time.Hour), Expires: at.Add(-45 * time.Minute)},
			{Fingerprint: "n4bQgYhMfWWaL-qgxVrQFaO_TxsrC4Is0V1sFbDwCgg", Issued: at.Add(-2 * time.Minute), Expires: at.Add(13 * time.Minute)}}},
		Holders:    []Holder{{UID: 33, PID: 812, Unit: "php8.2-fpm.service", Held: "token", First: at.Add(-time.Hour), Last: at.Add(-2 * time.Minute)}},
		Revisions:  []Revision{{N: 1, At: at, Stopped: true}},
		NextUpdate: at.Add(4 * time.Hour)}
}

func sender() Sender {
	return Sender{Organisation: Organisation{Name: "Voorbeeld nv", KBO: "0123.456.789"}, Name: "Wachtdienst", Phone: "+32 2 000 00 00", From: "broker@corp.example", ReplyTo: "security@corp.example"}
}

// stage makes the sample what a case asks for.
func stage(severity Severity, rotation, kind string) Incident {
	i := sample()
	i.Severity, i.Issuer.Rotation = severity, rotation
	if severity == Suspected {
		i.Policy, i.Actions, i.What = KeepServing, i.Actions[1:2], []Credential{Unknown}
		i.Exposure.LogBegins = at.Add(-2 * time.Hour)
	}
	i.Stopped(severity == Confirmed && kind != "drill")
	if rotation == "self-service" {
		i.KnownHosts = 1
	}
	later := at.Add(3 * time.Hour)
	if kind == "follow-up" || kind == "final" {
		i.Others = []Evidence{{Format: format, Incident: "2026-0007@web1", Host: "web2", ExportedAt: later,
			Actions:  []Action{{At: later.Add(-time.Minute), What: "quarantine", Outcome: Done}},
			Exposure: Exposure{Count: 1, LastExpiry: at.Add(14 * time.Minute), Tokens: []IssuedToken{{JTI: "d2a7", Issued: at, Expires: at.Add(14 * time.Minute)}}},
			Holders:  []Holder{{UID: 1001, Unit: "batch.service", Held: "token", First: at, Last: at}}}}
		i.Actions = append(i.Actions, Action{At: later, What: "merge_evidence", Outcome: Done, Detail: "web2"})
		i.Queued()
		i.Revise(later, "A second host had the same credentials.", false)
		i.Stopped(severity == Confirmed)
	}
	if kind == "final" {
		end := at.Add(30 * time.Hour)
		i.State, i.Closing = Closed, &Closing{At: end, By: i.DeclaredBy, OldRefused: severity == Confirmed, NewVersion: "8"}
		if severity == Suspected {
			i.Closing.StillValid = "The issuer keeps the old secret until Monday."
		}
		i.Actions = append(i.Actions, Action{At: end, What: "install_version", Outcome: Done, Detail: "8"})
		i.Queued()
		i.Revise(end, "", false)
	}
	i.Drill = kind == "drill"
	return i
}

// Who was told by hand, and by whom, is the organisation's own.
func TestToldByHandIsOurs(t *testing.T) {
	i := stage(Confirmed, "by-request", "final")
	i.Closing.ToldByHand = map[string]string{"security@issuer.example": "An called."}
	if r := newReport(&i, sender(), false); len(r.Closed.ToldByHand) != 0 {
		t.Error("the issuer is told")
	}
	if r := newReport(&i, sender(), true); len(r.Closed.ToldByHand) != 1 {
		t.Error("we are not told")
	}
}

// A parsed mail, as the standard library reads it.
type parsed struct {
	header mail.Header
	text   string
	report []byte
}

func parse(t testing.TB, data []byte) parsed {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/mixed" {
		t.Fatalf("it is %s: %v", kind, err)
	}
	p := parsed{header: m.Header}
	r := multipart.NewReader(m.Body, params["boundary"])
	for n := 0; ; n++ {
		part, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			if n != 2 {
				t.Fatalf("%d parts", n)
			}
			return p
		}
		if err != nil {
			t.Fatal(err)
		}
		switch part.Header.Get("Content-Transfer-Encoding") {
		case "quoted-printable":
			text, err := io.ReadAll(quotedprintable.NewReader(part))
			if err != nil || part.Header.Get("Content-Type") != "text/plain; charset=UTF-8" {
				t.Fatal(err, part.Header)
			}
			p.text = strings.ReplaceAll(string(text), "\r\n", "\n")
		case "base64":
			if p.report, err = io.ReadAll(base64.NewDecoder(base64.StdEncoding, part)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// show is a mail as a golden file has it.
func (p parsed) show() string {
	var b strings.Builder
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for k := range p.header {
			if !yield(k) {
				return
			}
		}
	}) {
		fmt.Fprintf(&b, "%s: %s\n", name, strings.Join(p.header[name], " | "))
	}
	fmt.Fprintf(&b, "\n%s\n-- attachment --\n%s\n", p.text, p.report)
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	is := strings.Split(got, "\n")
	for n, l := range strings.Split(string(want), "\n") {
		if n >= len(is) || is[n] != l {
			t.Errorf("%s:%d is not what is sent now (UPDATE=1 writes it): %s", file, n+1, l)
			return
		}
	}
}

func TestMails(t *testing.T) {
	for _, severity := range []Severity{Suspected, Confirmed} {
		for _, rotation := range []string{"by-request", "self-service"} {
			for _, kind := range []string{"first", "follow-up", "final", "drill"} {
				i := stage(severity, rotation, kind)
				dutch := mails(t, i, Dutch, English)
				english := mails(t, i, English, Dutch)
				for n, d := range dutch {
					e := english[n]
					name := fmt.Sprintf("%s.%s.%s.%s", severity, rotation, kind, map[bool]string{true: "copy", false: "issuer"}[d.Copy])
					if d.Copy || d.Recipient == i.Issuer.Contacts[0] {
						golden(t, "nl-en."+name, parse(t, d.Data).show())
					}
					if severity == Confirmed && rotation == "by-request" && (d.Recipient == i.Issuer.Contacts[0] || kind == "drill") {
						golden(t, "en-nl."+name, parse(t, e.Data).show()) // these show the order; the words are the same
					}
					if d.Body == e.Body || !slices.Equal(anyOrder(d.Body), anyOrder(e.Body)) || d.Subject == e.Subject {
						t.Errorf("%s: English first, it is not the same text in the other order", name)
					}
				}
			}
		}
	}
}

// mails composes i twice, and checks what holds for every mail.
func mails(t *testing.T, i Incident, order ...Language) []Message {
	t.Helper()
	name := fmt.Sprint(order, i.Severity, i.Issuer.Rotation, len(i.Revisions), i.Drill)
	messages, err := Compose(i, sender(), order)
	if err != nil {
		t.Fatal(name, err)
	}
	again, err := Compose(i, sender(), order)
	if err != nil || !equalMessages(messages, again) {
		t.Errorf("%s: composed again it is another mail: %v", name, err)
	}
	for _, m := range messages {
		p := parse(t, m.Data)
		if p.text != m.Body {
			t.Errorf("%s: the text that is shown is not the one that is sent", name)
		}
		check(t, name, i, m, p)
	}
	return messages
}

// anyOrder are the words of a text, sorted.
func anyOrder(text string) []string { return slices.Sorted(strings.FieldsSeq(text)) }

func equalMessages(a, b []Message) bool {
	return slices.EqualFunc(a, b, func(a, b Message) bool { return a.ID == b.ID && bytes.Equal(a.Data, b.Data) })
}

// check holds for every mail.
func check(t *testing.T, name string, i Incident, m Message, p parsed) {
	t.Helper()
	if got := p.header.Get("Message-ID"); got != m.ID || !strings.HasSuffix(got, "@corp.example>") || !strings.HasPrefix(got, fmt.Sprintf("<2026-0007.%d.", m.Revision)) {
		t.Errorf("%s: Message-ID %s, want %s", name, got, m.ID)
	}
	if p.header.Get("Auto-Submitted") != "auto-generated" || p.header.Get("Reply-To") != "<security@corp.example>" || p.header.Get("To") != "<"+m.Recipient+">" {
		t.Errorf("%s: headers %v", name, p.header)
	}
	thread := ""
	if m.Revision > 1 {
		thread = strings.Replace(m.ID, fmt.Sprintf(".%d.", m.Revision), ".1.", 1)
	}
	if p.header.Get("In-Reply-To") != thread || p.header.Get("References") != thread {
		t.Errorf("%s: In-Reply-To %q, want %q", name, p.header.Get("In-Reply-To"), thread)
	}
	for _, private := range []string{"php8.2-fpm", "batch.service", "4321", "scanner", "vdab-batch", "GDPR"} {
		if in := strings.Contains(p.text+string(p.report), private); in != m.Copy && (private != "batch.service" || m.Revision > 1) {
			t.Errorf("%s: %q in the mail to %s: %t", name, private, m.Recipient, in)
		}
	}
	for _, detail := range []string{"github", i.ClientID, "VDAB"} {
		if strings.Contains(m.Subject, detail) {
			t.Errorf("%s: the subject tells %s", name, detail)
		}
	}
	first, _, _ := strings.Cut(p.text, "\n")
	if i.Drill && (!m.Copy || !strings.Contains(m.Subject, "DRILL") || !strings.HasPrefix(first, "*** ") || strings.Count(p.text, "\n*** ")+1 != 2) {
		t.Errorf("%s: a drill to %s that looks real:\n%s", name, m.Recipient, first)
	}
	for l := range strings.Lines(p.text) {
		if n := len([]rune(l)); n > 78 {
			t.Errorf("%s: a line of %d characters: %s", name, n, l)
		}
	}
	var r Report
	if err := decode(p.report, &r); err != nil || r.Incident != "2026-0007@web1" || r.Revision != m.Revision {
		t.Errorf("%s: the attachment is not its own struct: %v", name, err)
	}
	if strings.Contains(p.text, unbroken) || strings.Count(p.text, "+32 2 000 00 00") != strings.Count(p.text, "+32 2") {
		t.Errorf("%s: a telephone number is broken", name)
	}
	if strings.Contains(p.text, "<no value>") || strings.Contains(p.text, "%!") {
		t.Errorf("%s: a hole in the text", name)
	}
}

func TestWhoIsTold(t *testing.T) {
	recipients := func(i Incident) string {
		messages, err := Compose(i, sender(), []Language{Dutch})
		if err != nil {
			return err.Error()
		}
		var list []string
		for _, m := range messages {
			list = append(list, m.Recipient)
		}
		return strings.Join(list, " ")
	}
	for _, c := range []struct {
		name   string
		change func(*Incident)
		want   string
	}{
		{"everybody", func(*Incident) {}, "ict_iam@issuer.example security@issuer.example security@corp.example"},
		{"a draft", func(i *Incident) { i.State = Draft; i.Revisions[0].Draft = true }, "security@corp.example"},
		{"a drill", func(i *Incident) { i.Drill = true }, "security@corp.example"},
		{"a drill with the issuer's address", func(i *Incident) { i.Drill = true; i.CopyTo = []string{"Security@Issuer.example"} }, "incident 2026-0007: Security@Issuer.example is the issuer's, and a drill is not for it: take it out of copy_to"},
		{"a drill with another of the issuer", func(i *Incident) { i.Drill = true; i.CopyTo = []string{"x@issuer.example"} }, "incident 2026-0007: x@issuer.example is the issuer's, and a drill is not for it: take it out of copy_to"},
		{"one address twice", func(i *Incident) { i.CopyTo = []string{"SECURITY@issuer.example"} }, "ict_iam@issuer.example security@issuer.example"},
		{"no mail", func(i *Incident) { i.Revisions[0].NoMail = true }, ""},
		{"nobody", func(i *Incident) { i.CopyTo, i.Issuer.Contacts = nil, nil }, "incident 2026-0007: there is nobody to report it to: set copy_to, and the client's leak_contacts"},
		{"a header in an address", func(i *Incident) { i.CopyTo = []string{"a@b.example\r\nBcc: c@d.example"} }, `incident 2026-0007: "a@b.example Bcc: c@d.example" is no mail address: write name@host`},
	} {
		i := sample()
		c.change(&i)
		if got := recipients(i); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// A draft goes to the organisation alone; the issuer's thread begins when a
// person confirms it.
func TestConfirmedDraftIsTheIssuersFirstMail(t *testing.T) {
	i := sample()
	i.Revisions[0].Draft = true
	i.Queued()
	i.Revise(at.Add(time.Minute), "Confirmed by a person.", false)
	messages, err := Compose(i, sender(), []Language{English})
	if err != nil {
		t.Fatal(err)
	}
	draft := sample()
	draft.State, draft.Revisions[0].Draft, draft.Severity, draft.Actions = Draft, true, Suspected, nil
	told, err := Compose(draft, sender(), []Language{Dutch, English})
	if err != nil || len(told) != 1 {
		t.Fatal(err, len(told))
	}
	golden(t, "nl-en.draft.copy", parse(t, told[0].Data).show())
	for _, m := range messages {
		p := parse(t, m.Data)
		if thread := p.header.Get("In-Reply-To"); (thread != "") != m.Copy || strings.Contains(m.Subject, "update") != m.Copy {
			t.Errorf("to %s: %q in reply to %q", m.Recipient, m.Subject, thread)
		}
	}
}

func TestMessageIDsDiffer(t *testing.T) {
	i := sample()
	ids := map[string]bool{}
	for _, host := range []string{"web1", "web2"} {
		for n := range 3 {
			for _, to := range []string{"a@x.example", "b@x.example"} {
				i.Host = host
				ids[messageID(&i, n, to, "c@d.example")] = true
			}
		}
	}
	if len(ids) != 12 || messageID(&i, 1, "A@x.example", "c@D.example") != messageID(&i, 1, "a@X.example", "c@d.example") {
		t.Errorf("%d Message-IDs of 12 messages: %v", len(ids), ids)
	}
}

func TestHostileTextStaysText(t *testing.T) {
	i := sample()
	hostile := "x\r\nBcc: thief@evil.example\r\n\r\n.\r\nMAIL FROM:<a@b>\u202e\x00\x1b[31m eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl end"
	i.Happened, i.Where, i.FoundBy, i.ClientID, i.KeyID, i.Environment, i.Issuer.Name = hostile, hostile, hostile, hostile, hostile, hostile, hostile
	i.DeclaredBy.Claimed = hostile
	i.Actions[0].Detail, i.Holders[0].Unit = hostile, hostile
	i.Queued()
	i.Revisions = append(i.Revisions, Revision{N: 2, At: at, Why: clean(hostile, longText)})
	s := sender()
	s.Name, s.Phone, s.Organisation.Name = hostile, hostile, hostile
	messages, err := Compose(i, s, []Language{Dutch, English})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		p := parse(t, m.Data)
		if p.header.Get("Bcc") != "" || len(p.header) != 11 {
			t.Errorf("headers: %v", p.header)
		}
		all := p.text + string(p.report)
		if strings.ContainsAny(all, "\x00\x1b\u202e\r") || strings.Contains(all, "eyJ") || !strings.Contains(all, removed) {
			t.Errorf("the text has what it should not:\n%s", all)
		}
		for l := range strings.Lines(p.text) {
			if strings.HasPrefix(l, "Bcc:") {
				t.Errorf("free text that passes for ours: %s", l)
			}
		}
	}
}

func TestClocks(t *testing.T) {
	for _, c := range []struct {
		known    time.Time
		contains []string
	}{
		{at, []string{"24 November 2026, 03:12 in Brussels (02:12 UTC)", "22 November 2026, 03:12", "24 December 2026, 03:12", "decides nothing"}},
		// The month after has 28 days; and summer time ends in between.
		{time.Date(2027, 1, 28, 12, 0, 0, 0, time.UTC), []string{"31 January 2027, 13:00", "28 February 2027, 13:00"}},
		{time.Date(2026, 10, 24, 12, 0, 0, 0, time.UTC), []string{"24 October 2026, 14:00 in Brussels (12:00 UTC)", "27 October 2026, 13:00 in Brussels (12:00 UTC)"}},
		{time.Date(2026, 7, 1, 22, 30, 0, 0, time.UTC), []string{"2 July 2026, 00:30 in Brussels (1 July 2026, 22:30 UTC)"}},
	} {
		got := strings.Join(strings.Fields(Clocks(c.known, PersonalYes, English)), " ")
		for _, want := range c.contains {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", c.known, want, got)
			}
		}
	}
}

func TestExposureIsCapped(t *testing.T) {
	var e Exposure
	for n := range mostTokens + 12 {
		e.Add(IssuedToken{JTI: fmt.Sprint(n), Expires: at.Add(time.Duration(n) * time.Second)})
	}
	if e.Count != mostTokens+12 || len(e.Tokens) != mostTokens || !e.LastExpiry.Equal(at.Add((mostTokens+11)*time.Second)) {
		t.Errorf("%d, %d, %s", e.Count, len(e.Tokens), e.LastExpiry)
	}
	i := sample()
	i.Exposure = e
	messages, err := Compose(i, sender(), []Language{English})
	if text := strings.Join(strings.Fields(messages[0].Body), " "); err != nil || !strings.Contains(text, "names 500 of them") || !strings.Contains(text, "512 tokens") {
		t.Errorf("%v\n%s", err, text)
	}
	var r Report
	if err := json.Unmarshal(parse(t, messages[0].Data).report, &r); err != nil || len(r.Tokens.Tokens) != mostTokens {
		t.Error(err, len(r.Tokens.Tokens))
	}
}
