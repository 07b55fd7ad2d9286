package response

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/durable"
	"credentialbroker/internal/leak"
)

// Rules of this file: here is what a person sends where the daemon cannot. It
// says nothing of what was not done, and marks what is not known.

// fillIn stands in addresses that nobody has configured; it leads nowhere (RFC
// 2606).
const fillIn = "fill-in@example.invalid"

// undone is an incident that could not be recorded: nothing was done.
func undone(i leak.Incident) leak.Incident {
	i.Policy, i.NextUpdate = leak.KeepServing, time.Time{}
	i.Actions = slices.DeleteFunc(slices.Clone(i.Actions), func(a leak.Action) bool { return a.What != "trace_tokens" || a.Outcome != leak.Done })
	return i
}

// byPerson puts into out the mails for a person to send, and what they lack.
func byPerson(c *Config, i leak.Incident, languages []leak.Language, out *client.Incident) error {
	s := c.Sender
	for _, f := range []struct {
		to               *string
		instead, missing string
	}{
		{&s.Organisation.Name, "FILL IN", "the organisation (leak: organisation: in the configuration)"},
		{&s.Name, "FILL IN", "who can be called (leak: on_call:)"},
		{&s.Phone, "FILL IN", "the telephone number of who can be called (leak: on_call:)"},
		{&s.From, fillIn, "the sender and the mail relay (leak: smtp:); without them nothing is ever mailed"},
	} {
		if *f.to == "" {
			*f.to = f.instead
			out.Missing = append(out.Missing, f.missing)
		}
	}
	if i.ClientID == "" {
		out.Missing = append(out.Missing, fmt.Sprintf("the client id of %s at %s", i.Clients[0], i.Issuer.Name))
	}
	if len(i.Issuer.Contacts) == 0 {
		out.Missing = append(out.Missing, fmt.Sprintf("the addresses of %s (leak_contacts: of the client); broker presets show NAME has those of known issuers", i.Issuer.Name))
	}
	if len(i.CopyTo) == 0 {
		i.CopyTo = []string{fillIn}
	}
	var err error
	out.Mails, err = (&Config{}).mails(leak.ComposeByHand(i, s, languages)) // from a person's mailbox, as it is
	return err
}

// mails are messages as they would leave.
func (c *Config) mails(messages []leak.Message, err error) (list []client.Mail, _ error) {
	for _, m := range messages {
		sealing, subject := c.Protection.For(m)
		list = append(list, client.Mail{To: m.Recipient, Revision: m.Revision, Subject: subject, Text: m.Body, Signed: sealing.Signed, EncryptedTo: sealing.EncryptedTo})
	}
	return list, err
}

// idsFile holds the public client_id of each client, for when neither the
// secrets manager nor the daemon is there.
func idsFile(dir string) string { return filepath.Join(dir, "client-ids.json") }

// readIDs is empty if the file cannot be read: then a person fills it in.
func readIDs(dir string) map[string]string {
	ids := map[string]string{}
	data, err := os.ReadFile(idsFile(dir))
	if err == nil {
		err = json.Unmarshal(data, &ids)
	}
	if err != nil {
		return map[string]string{}
	}
	return ids
}

func (r *Responder) clientIDs() map[string]string { return *r.ids.Load() }

// keepIDs makes the identifiers durable that are new. One goroutine calls it.
func (r *Responder) keepIDs() {
	ids := maps.Clone(r.clientIDs())
	maps.Copy(ids, r.o.Broker.ClientIDs())
	maps.DeleteFunc(ids, func(name, _ string) bool { return !r.o.Broker.Has(name) })
	if maps.Equal(ids, r.clientIDs()) {
		return
	}
	data, err := json.Marshal(ids)
	if err == nil {
		err = durable.Replace(idsFile(r.o.Dir), append(data, '\n'))
	}
	if err == nil {
		r.ids.Store(&ids)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.often("client ids") {
		r.o.Log.Warn("the public identifiers of the clients could not be kept, so that a mail that is made while no daemon runs has to be filled in", "error", err)
	}
}
