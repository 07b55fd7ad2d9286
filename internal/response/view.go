package response

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/leak"
)

// Incidents lists them, newest first, without texts.
func (r *Responder) Incidents(context.Context) ([]client.Incident, error) {
	list, err := r.book.List()
	out := make([]client.Incident, 0, len(list))
	for n := range slices.Backward(list) {
		v := r.view(&list[n])
		v.ByHand, v.Clocks, v.Record = nil, nil, nil
		out = append(out, v)
	}
	if err != nil && len(list) == 0 {
		return nil, refuse(client.Internal, "%v", err)
	}
	return out, nil
}

// Incident is one, with its record and its mails: those that are under way as
// they are, and those of a report that is not queued yet as they would be now.
func (r *Responder) Incident(_ context.Context, id string) (client.Incident, error) {
	i, err := r.get(id)
	if err != nil {
		return client.Incident{}, err
	}
	c, list := r.configured(), r.deliveries(i.ID)
	out := view(&c, &i, list)
	for n, d := range list {
		if m, ok := r.posting.Load().outbox.Message(d.MessageID); ok {
			out.Mails[n].Subject, out.Mails[n].Text = m.Subject, m.Body
		}
	}
	if !i.Unqueued() {
		return out, nil
	}
	r.mu.Lock()
	i.Stopped(r.stopped(&i))
	r.mu.Unlock()
	mails, _ := c.mails(leak.Compose(i, c.Sender, c.languages(&i))) // why they cannot be was an alarm
	for _, m := range mails {
		if !slices.ContainsFunc(out.Mails, func(o client.Mail) bool { return o.To == m.To && o.Revision == m.Revision }) {
			out.Mails = append(out.Mails, m)
		}
	}
	return out, nil
}

// A Summary is one incident that is not closed, or whose report has not left.
type Summary struct {
	ID, State, Client string
	Since             time.Time
	Undelivered       int // recipients whose mail no relay has taken in time
}

// Summaries are the incidents that are not closed, or whose report has not
// left; counts are of all, by their state; mails are those of the outbox, by
// theirs, and late: those that should have been taken by now, whether they are
// in the outbox or could not be put there.
// It tells what the last change or look has left, and waits for no disk.
func (r *Responder) Summaries() (open []Summary, counts, mails map[string]int) {
	counts = map[string]int{"draft": 0, "open": 0, "closed": 0}
	mails = map[string]int{"queued": 0, "sent": 0, "refused": 0, "late": 0}
	late := map[string]int{}
	var list []leak.Incident
	if last := r.book.last.Load(); last != nil {
		list = *last
	} else {
		list, _ = r.book.List()
	}
	after, mailing := undeliveredAfter, false // without an outbox a person writes
	if o := r.posting.Load(); o != nil {
		after, mailing = o.late, true
		for _, d := range o.outbox.Deliveries("") {
			mails[string(d.State)]++
		}
		for _, d := range o.undelivered(list) {
			late[d.Incident]++
		}
	}
	for _, i := range list {
		counts[string(i.State)]++
		if mailing && i.Unqueued() && r.now().Sub(i.Revisions[len(i.Revisions)-1].At) >= after {
			late[i.ID] += max(1, len(i.CopyTo))
			if i.State != leak.Draft && !i.Drill {
				late[i.ID] += len(i.Issuer.Contacts)
			}
		}
		mails["late"] += late[i.ID]
		if i.State != leak.Closed || late[i.ID] > 0 && !i.Drill {
			open = append(open, Summary{i.ID, string(i.State), i.Clients[0], i.DeclaredAt, late[i.ID]})
		}
		delete(late, i.ID)
	}
	for _, id := range slices.Sorted(maps.Keys(late)) { // their records cannot be read
		mails["late"] += late[id]
		open = append(open, Summary{ID: id, State: "damaged", Undelivered: late[id]})
	}
	return open, counts, mails
}

// view is an incident as the admin socket shows it.
func (r *Responder) view(i *leak.Incident) client.Incident {
	c := r.configured()
	return view(&c, i, r.deliveries(i.ID))
}

func view(c *Config, i *leak.Incident, deliveries []leak.Delivery) client.Incident {
	out := client.Incident{ID: i.ID, Global: i.GlobalID(), State: string(i.State), Drill: i.Drill, Severity: string(i.Severity), Clients: i.Clients,
		Policy: string(i.Policy), Declared: i.DeclaredAt, ByHand: byHand(c, i)}
	if quarantines(i) {
		out.Quarantined = i.Clients
	}
	for _, a := range i.Actions {
		out.Done = append(out.Done, client.IncidentStep{At: a.At, What: leak.English.Word(a.What), Outcome: string(a.Outcome), Detail: detail(i, a)})
	}
	if i.State != leak.Closed && !i.Drill {
		out.Clocks = paragraphs(leak.Clocks(i.KnownAt, i.PersonalData, leak.English))
	}
	for _, d := range deliveries {
		since := d.QueuedAt
		if d.State == leak.Sent {
			since = d.SentAt
		}
		m := client.Mail{To: d.Recipient, Revision: d.Revision, State: string(d.State), Since: since, Signed: d.Signed, EncryptedTo: d.EncryptedTo}
		for _, code := range d.Remarks {
			m.Remarks = append(m.Remarks, leak.Remark(code))
		}
		undelivered(&m, d)
		out.Mails = append(out.Mails, m)
	}
	record := *i
	if len(deliveries) > 0 {
		record.Deliveries = deliveries // as they are now
	}
	out.Record, _ = json.Marshal(&record)
	return out
}

// undelivered says why a mail has not been taken, and when it is tried again.
func undelivered(m *client.Mail, d leak.Delivery) {
	if d.State == leak.Sent {
		return
	}
	m.Attempts, m.NextAttempt = d.Attempts, d.NextAttempt
	for _, a := range d.Last {
		m.Why = append(m.Why, a.String())
	}
}

// detail is that of a step, for people here.
func detail(i *leak.Incident, a leak.Action) string {
	text := leak.English.Detail(a.Detail)
	if begins := i.Exposure.LogBegins; a.What == "trace_tokens" && a.Outcome == leak.Done && !begins.IsZero() {
		text += "; the log begins on " + leak.English.When(begins) + ", earlier is not known"
	}
	return text
}

// byHand is what a person has to do.
func byHand(c *Config, i *leak.Incident) (list []string) {
	if i.State == leak.Closed || i.Drill {
		return nil
	}
	one := c.client(i.Clients[0])
	name := i.Clients[0]
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	if i.State == leak.Draft {
		add("If it is a leak, or may be one: broker leak declare --confirm %s %s", i.ID, name)
		add("If it came to nothing: broker leak close %s", i.ID)
		return list
	}
	if i.Severity == leak.Suspected && i.Joins == "" {
		add("When it is certain: broker leak declare --confirm %s --confirmed %s", i.ID, name)
	}
	if len(c.Relays) == 0 {
		add("No mail is sent, for no relay is configured: call or write to %s (%s) yourself.", i.Issuer.Name, strings.Join(i.Issuer.Contacts, ", "))
	}
	serving := !quarantines(i)
	switch {
	case tokenOnly(i):
	case i.Issuer.Rotation == "by-request" && serving:
		add("%s must issue a new secret. Until it revokes the old one, whoever has it can use the API.", i.Issuer.Name)
	case i.Issuer.Rotation == "by-request":
		add("%s must issue a new secret; quarantine stops the API until then.", i.Issuer.Name)
	}
	if one.Keys && !tokenOnly(i) {
		add("Make a new key: broker keys rotate %s.", name)
	}
	if !tokenOnly(i) {
		list = append(list, one.Steps...)
	}
	if end := i.Exposure.LastExpiry; end.After(i.DeclaredAt) && !revoked(i) {
		add("Tokens that were issued work until %s, unless %s ends them before.", leak.English.When(end), i.Issuer.Name)
	}
	if strings.HasSuffix(i.ID, "-0000") { // there is no such record
		return list
	}
	if i.Joins == "" {
		add("On each other host with these credentials, which are not known here: %s", elsewhere(i))
	} else {
		add("Take this host's evidence to the other: broker leak evidence %s > FILE; there: broker leak evidence --add FILE %s", i.ID, i.Joins)
	}
	if !serving {
		add("When a new version is installed: broker leak release %s", i.ID)
	}
	add("At the end: broker leak close %s", i.ID)
	return list
}

// elsewhere is the command line that contains the incident on another host, and
// asks nothing there.
func elsewhere(i *leak.Incident) string {
	words := []string{"broker leak declare --incident", i.GlobalID(), "--no-mail", "--" + string(i.Severity)}
	for _, w := range i.What {
		words = append(words, "--what", string(w))
	}
	words = append(words, "--policy", string(i.Policy))
	for _, f := range []struct {
		name string
		at   time.Time
	}{{"--from", i.Window.From}, {"--to", i.Window.To}} {
		if !f.at.IsZero() {
			words = append(words, f.name, f.at.UTC().Format(time.RFC3339))
		}
	}
	return strings.Join(append(words, "--yes", i.Clients[0]), " ")
}

func revoked(i *leak.Incident) bool {
	return slices.ContainsFunc(i.Actions, func(a leak.Action) bool { return a.What == "revoke_tokens" && a.Outcome == leak.Done })
}

// paragraphs undoes the lines of a mail: what it says as a list is one.
func paragraphs(text string) (list []string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		item, begins := strings.CutPrefix(line, "- ")
		switch {
		case line == "":
		case begins || len(list) == 0:
			list = append(list, item)
		default:
			list[len(list)-1] += " " + line
		}
	}
	return list
}
