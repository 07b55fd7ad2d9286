package leak

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	mail "github.com/wneessen/go-mail"
)

// A Report is the JSON that is attached to each mail: what the text says, for
// programs. Its schema is report.schema.json.
type Report struct {
	// Format is credential-broker-incident-report/1.
	Format   string `json:"format"`
	Incident string `json:"incident"` // the global ID, as 2026-0007@web1
	Revision int    `json:"revision"`
	// Kind is first, follow-up or final.
	Kind       string    `json:"kind"`
	Drill      bool      `json:"drill"`
	Draft      bool      `json:"draft"`
	ReportedAt time.Time `json:"reported_at"`
	// Why is what is new in this revision.
	Why          string       `json:"why,omitempty"`
	Organisation Organisation `json:"organisation"`
	Contact      Contact      `json:"contact"`
	Issuer       string       `json:"issuer"`
	ClientID     string       `json:"client_id,omitempty"`
	KeyID        string       `json:"key_id,omitempty"`
	Environment  string       `json:"environment,omitempty"`
	Severity     Severity     `json:"severity"`
	What         []Credential `json:"what"`
	Happened     string       `json:"happened,omitempty"`
	Where        string       `json:"where,omitempty"`
	Window       Window       `json:"window"`
	PersonalData PersonalData `json:"personal_data"`
	KnownAt      time.Time    `json:"known_at"`
	// Quarantined: on the host that reports the client is not served.
	Quarantined bool `json:"quarantined"`
	// Replaced: a new version serves on the host that reports.
	Replaced bool     `json:"replaced"`
	Actions  []Action `json:"actions,omitempty"`
	// More is how many earlier actions only the record has.
	More int `json:"more_actions,omitempty"`
	// New are the actions since the revision before.
	New    []Action `json:"new_actions,omitempty"`
	Tokens Exposure `json:"tokens"`
	// Traced: the host that reports has looked for its tokens in the audit log.
	// If not, they are not known yet.
	Traced bool `json:"traced"`
	// Hosts are covered.
	Hosts []string `json:"hosts"`
	// AllHosts: by our configuration there are no others. If not, that is not
	// known.
	AllHosts bool `json:"all_hosts"`
	// Serving are those of Hosts on which the client may still be in use with
	// what has leaked.
	Serving []string `json:"serving,omitempty"`
	// Requests are revoke, reissue, confirm; none when nothing is left to do.
	Requests   []string  `json:"requests,omitempty"`
	NextUpdate time.Time `json:"next_update,omitzero"`
	// Own is in copies for the organisation alone.
	Own *Own `json:"own,omitempty"`
	// Closed is the end of the incident.
	Closed *Closing `json:"closed,omitempty"`
}

// Own is what no issuer is told.
type Own struct {
	Clients    []string   `json:"clients"`
	Policy     Policy     `json:"policy"`
	DeclaredAt time.Time  `json:"declared_at"`
	DeclaredBy Declarer   `json:"declared_by"`
	FoundBy    string     `json:"found_by,omitempty"`
	Evidence   []Evidence `json:"evidence"` // of each host, this one first
	// MoreHolders is how many only the record has.
	MoreHolders int `json:"more_holders,omitempty"`
}

// Contact is whom the issuer calls.
type Contact struct {
	Name    string `json:"name"`
	Phone   string `json:"phone"`
	ReplyTo string `json:"reply_to"`
	// DeclaredBy can be called too: name and number of who declared it, as
	// given. New credentials are for the contact alone.
	DeclaredBy string `json:"declared_by,omitempty"`
}

// A Sender is who reports.
type Sender struct {
	Organisation Organisation
	Name, Phone  string // of the person, or the duty, that can be called at any hour
	From         string // a bare address; its domain is in each Message-ID
	ReplyTo      string // a person's or team's bare address; empty: From
}

// A Message is one mail to one recipient.
type Message struct {
	Incident  string `json:"incident"` // 2026-0007
	Revision  int    `json:"revision"`
	Recipient string `json:"recipient"` // a bare address
	Copy      bool   `json:"copy"`      // to the organisation itself; else to the issuer
	ID        string `json:"message_id"`
	From      string `json:"from"` // of the envelope
	Subject   string `json:"subject"`
	Body      string `json:"text"` // for people to look at
	Data      []byte `json:"data"` // the mail as it is sent (RFC 5322)
}

// Compose makes the messages of the incident's newest revision, each to one
// recipient: the issuer's contacts and the organisation's own addresses. A
// drill, or a draft, is not addressed to an issuer. The same incident makes the
// same bytes. languages says which come in the text, in this order. A revision
// that is not mailed has no messages.
func Compose(i Incident, s Sender, languages []Language) ([]Message, error) {
	return composeAll(i, s, languages, false)
}

// ComposeByHand makes the messages for a person to send: the text speaks of no
// attachment, and says what has to be filled in. An incident whose number ends
// in 0000 is not recorded, and the text gives none.
func ComposeByHand(i Incident, s Sender, languages []Language) ([]Message, error) {
	return composeAll(i, s, languages, true)
}

func composeAll(i Incident, s Sender, languages []Language, byHand bool) ([]Message, error) {
	if s.ReplyTo == "" {
		s.ReplyTo = s.From
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	if i.Unchecked {
		i.withhold()
	}
	i.tidy()
	if err := i.Validate(); err != nil {
		return nil, fmt.Errorf("incident %s: %w", line(i.ID), err)
	}
	if len(i.Revisions) == 0 || len(languages) == 0 {
		return nil, fmt.Errorf("incident %s: there is no revision, or no language, to report", i.ID)
	}
	if i.Revisions[len(i.Revisions)-1].NoMail {
		return nil, nil
	}
	if i.Drill {
		if err := ownOnly(&i, s); err != nil {
			return nil, err
		}
	}
	var messages []Message
	seen := map[string]bool{}
	for _, to := range []struct {
		addresses []string
		copies    bool
	}{{i.Issuer.Contacts, false}, {i.CopyTo, true}} {
		for _, a := range to.addresses {
			if key := strings.ToLower(a); seen[key] || !to.copies && (i.Drill || i.State == Draft) {
				continue
			}
			seen[strings.ToLower(a)] = true
			m, err := compose(&i, s, languages, a, to.copies, byHand)
			if err != nil {
				return nil, fmt.Errorf("incident %s: the mail to %s: %w", i.ID, a, err)
			}
			messages = append(messages, m)
		}
	}
	if len(messages) == 0 {
		return nil, fmt.Errorf("incident %s: there is nobody to report it to: set copy_to, and the client's leak_contacts", i.ID)
	}
	return messages, nil
}

func (s *Sender) check() error {
	s.Organisation = Organisation{line(s.Organisation.Name), line(s.Organisation.KBO)}
	s.Name, s.Phone = line(s.Name), line(s.Phone)
	if s.Organisation.Name == "" || s.Name == "" || s.Phone == "" {
		return errors.New("a report needs an organisation, and a person with a telephone number: set leak.organisation and leak.on_call")
	}
	return errors.Join(validAddress(s.From), validAddress(s.ReplyTo))
}

// ownOnly sees to it that a drill reaches no issuer, under any name.
func ownOnly(i *Incident, s Sender) error {
	for _, a := range i.CopyTo {
		for _, c := range i.Issuer.Contacts {
			if strings.EqualFold(a, c) || domain(a) == domain(c) && domain(a) != domain(s.From) {
				return fmt.Errorf("incident %s: %s is the issuer's, and a drill is not for it: take it out of copy_to", i.ID, a)
			}
		}
	}
	return nil
}

// newReport gathers what one role is told.
func newReport(i *Incident, s Sender, own bool) Report {
	last := i.Revisions[len(i.Revisions)-1]
	r := Report{Format: "credential-broker-incident-report/1", Incident: i.GlobalID(), Revision: last.N, Kind: "follow-up",
		Drill: i.Drill, Draft: i.State == Draft, ReportedAt: last.At, Why: last.Why, Organisation: s.Organisation,
		Contact: Contact{s.Name, s.Phone, s.ReplyTo, i.DeclaredBy.caller()}, Issuer: i.Issuer.Name, ClientID: i.ClientID, KeyID: i.KeyID, Environment: i.Environment,
		Severity: i.Severity, What: i.What, Happened: i.Happened, Where: i.Where, Window: i.Window, PersonalData: i.PersonalData,
		KnownAt: i.KnownAt, Actions: slices.Clone(i.Actions), Hosts: i.Hosts(), NextUpdate: i.NextUpdate, Closed: i.Closing}
	first, before := i.first(own), time.Time{}
	switch {
	case i.State == Closed:
		r.Kind = "final"
	case first == last.N:
		r.Kind, r.Why = "first", ""
	}
	for _, v := range i.Revisions[:len(i.Revisions)-1] {
		if i.mailed(v, own) {
			before = v.At
		}
	}
	evidence := append([]Evidence{{Format: format, Incident: i.GlobalID(), Host: i.Host, ExportedAt: last.At, Exposure: i.Exposure, Holders: i.Holders}}, i.Others...)
	for n, e := range evidence {
		r.Tokens.Count += e.Exposure.Count - len(e.Exposure.Tokens)
		for _, t := range e.Exposure.Tokens {
			r.Tokens.Add(t)
		}
		if e.Exposure.LastExpiry.After(r.Tokens.LastExpiry) {
			r.Tokens.LastExpiry = e.Exposure.LastExpiry
		}
		if e.Exposure.LogBegins.After(r.Tokens.LogBegins) {
			r.Tokens.LogBegins = e.Exposure.LogBegins
		}
		if n > 0 {
			for _, a := range e.Actions {
				a.Detail = e.elsewhere(a.Detail, own)
				r.Actions = append(r.Actions, a)
			}
		}
	}
	r.Quarantined, r.Replaced, r.Traced = last.Stopped, replaced(i), done(i.Actions, "trace_tokens")
	r.AllHosts = i.KnownHosts > 0 && len(r.Hosts) >= i.KnownHosts
	for n, e := range evidence {
		idle := n == 0 && (r.Quarantined || r.Replaced) || n > 0 && (quarantined(e.Actions) || done(e.Actions, "install_version"))
		if !idle {
			r.Serving = append(r.Serving, e.Host)
		}
	}
	slices.SortStableFunc(r.Actions, func(a, b Action) int { return a.At.Compare(b.At) })
	if r.Kind == "follow-up" {
		for _, a := range r.Actions {
			if a.At.After(before) {
				r.New = append(r.New, a)
			}
		}
	}
	if i.Closing == nil || !i.Closing.OldRefused {
		r.Requests = []string{"revoke", "reissue", "confirm"}
		if r.Replaced {
			r.Requests = []string{"revoke", "confirm"}
		}
	}
	if own {
		r.Own = &Own{Clients: i.Clients, Policy: i.Policy, DeclaredAt: i.DeclaredAt, DeclaredBy: i.DeclaredBy, FoundBy: i.FoundBy, Evidence: evidence}
	} else if i.Closing != nil {
		c := *i.Closing
		c.By, c.ToldByHand = Declarer{}, nil
		r.Closed = &c
	}
	return r
}

// caller is who can be called, by what was claimed: not somebody who gave no
// number.
func (d *Declarer) caller() string {
	if !strings.ContainsAny(d.Claimed, "0123456789") {
		return ""
	}
	return d.Claimed
}

// first is the number of the first revision that a role was mailed.
func (i *Incident) first(own bool) int {
	for _, r := range i.Revisions {
		if i.mailed(r, own) {
			return r.N
		}
	}
	return 0
}

// mailed says whether a role was mailed a revision, or is now: one that another
// overtook before it could be queued never was.
func (i *Incident) mailed(r Revision, own bool) bool {
	return !r.NoMail && (own || !r.Draft) && (r.Queued || r.N == len(i.Revisions))
}

func compose(i *Incident, s Sender, languages []Language, to string, own, byHand bool) (Message, error) {
	r := newReport(i, s, own)
	m := Message{Incident: i.ID, Revision: r.Revision, Recipient: to, Copy: own, From: s.From,
		ID: messageID(i, r.Revision, to, s.From), Subject: subject(&r, i.ID, languages)}
	attached, err := attach(&r)
	if err != nil {
		return Message{}, err
	}
	for n, l := range languages {
		text, err := l.text("", newView(&r, i, l, byHand))
		if err != nil {
			return Message{}, err
		}
		if n > 0 {
			m.Body += "\n" + strings.Repeat("=", 72) + "\n\n"
		}
		m.Body += text
	}
	sum := sha256.Sum256([]byte(m.ID))
	msg := mail.NewMsg(mail.WithNoDefaultUserAgent(), mail.WithBoundary("incident-"+hex.EncodeToString(sum[:12])))
	if err := errors.Join(msg.From(s.From), msg.To(to), msg.ReplyTo(s.ReplyTo)); err != nil {
		return Message{}, err
	}
	msg.Subject(m.Subject)
	msg.SetMessageIDWithValue(strings.Trim(m.ID, "<>"))
	msg.SetDateWithValue(r.ReportedAt)
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834 §5
	if first := i.first(own); first != r.Revision {
		msg.SetGenHeader(mail.HeaderInReplyTo, messageID(i, first, to, s.From))
		msg.SetGenHeader(mail.HeaderReferences, messageID(i, first, to, s.From))
	}
	msg.SetBodyString(mail.TypeTextPlain, m.Body)
	name := fmt.Sprintf("incident-%s-%d.json", i.ID, r.Revision)
	if err := msg.AttachReader(name, bytes.NewReader(attached), mail.WithFileContentType("application/json")); err != nil {
		return Message{}, err
	}
	var b bytes.Buffer
	if _, err := msg.WriteTo(&b); err != nil {
		return Message{}, err
	}
	m.Data = b.Bytes()
	return m, nil
}

// messageID is the same for each copy of a message, and another for each host,
// incident, revision and recipient.
func messageID(i *Incident, revision int, to, from string) string {
	sum := sha256.Sum256([]byte(i.Host + "\x00" + strings.ToLower(to)))
	return fmt.Sprintf("<%s.%d.%s@%s>", i.ID, revision, hex.EncodeToString(sum[:8]), domain(from))
}

// unnumbered says whether the incident is not recorded: no record has this
// number.
func unnumbered(id string) bool { return strings.HasSuffix(id, "-0000") }

// subject tells nothing that a passer-by should not read.
func subject(r *Report, id string, languages []Language) string {
	var words []string
	for _, l := range languages {
		dutch, english := "Beveiligingsmelding", "Security notice"
		switch {
		case r.Draft:
			dutch, english = "Vermoeden, te bevestigen", "Suspicion, to be confirmed"
		case r.Kind == "follow-up":
			dutch, english = "Beveiligingsmelding, aanvulling", "Security notice, update"
		case r.Kind == "final":
			dutch, english = "Beveiligingsmelding, afsluiting", "Security notice, closure"
		}
		if l == Dutch {
			words = append(words, dutch)
		} else {
			words = append(words, english)
		}
	}
	text := fmt.Sprintf("[incident %s] %s", id, strings.Join(words, " / "))
	if unnumbered(id) {
		text = "[incident] " + strings.Join(words, " / ")
	}
	if r.Drill {
		text = "[OEFENING / DRILL] " + text
	}
	return text
}
