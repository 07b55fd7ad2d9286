package response

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/leak"
)

// round looks at every incident, and does what its time has come for.
func (r *Responder) round(ctx context.Context) {
	status := map[string]broker.ClientStatus{}
	for _, s := range r.o.Broker.Status() {
		status[s.Name] = s
		if s.Credential.Works {
			r.mu.Lock()
			r.worked[s.Name] = string(s.Credential.Version)
			r.mu.Unlock()
		}
	}
	r.keepIDs()
	r.mu.Lock()
	if r.book.Spooled() {
		r.absorb()
	} else if r.unheld {
		_ = r.contain() // it was an alarm
	}
	list, err := r.book.List() // what cannot be read was an alarm at the start
	r.know(list, err == nil)
	r.mu.Unlock()
	for n := range list {
		if ctx.Err() != nil {
			return
		}
		i := list[n]
		if r.due(&i) {
			i = r.pursue(ctx, i.ID, true)
		}
		r.follow(ctx, &i, status)
	}
	r.undelivered()
}

// due takes an incident whose steps or report are to be tried now.
func (r *Responder) due(i *leak.Incident) bool {
	n := len(i.Revisions)
	fresh := i.Unqueued() && r.now().Sub(i.Revisions[n-1].At) < retryTime/2 // one of a moment ago
	open := i.State != leak.Closed && (pending(i, "revoke_tokens") || pending(i, "trace_tokens") || i.Unchecked ||
		slices.ContainsFunc(i.Actions, func(a leak.Action) bool {
			return a.What == "rotate" && a.Outcome == leak.Pending && a.Detail == unread
		}))
	r.mu.Lock()
	defer r.mu.Unlock()
	at, tried := r.tried[i.ID]
	waits := tried && at.Until(r.o.Clock.Now()) > 0 && (open || !fresh)
	if _, busy := r.busy[i.ID]; busy || waits || !open && !i.Unqueued() {
		return false
	}
	return r.claim(i.ID)
}

// follow notes what has happened to an incident since.
func (r *Responder) follow(ctx context.Context, i *leak.Incident, status map[string]broker.ClientStatus) {
	now := r.now()
	change := func(code string, f func(*leak.Incident) error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if _, busy := r.busy[i.ID]; busy {
			return
		}
		if code != "" {
			r.queue(i.ID)
		}
		next, err := r.book.Update(i.ID, f)
		if err != nil {
			r.o.Log.Error("an incident could not be written; this is tried again", "incident", i.ID, "error", err)
			return
		}
		*i = next
		if code != "" {
			r.note(i, code, nil)
		}
		_ = r.contain()
	}
	if sent := r.delivered(i); sent != nil {
		before := i.Deliveries
		change("", func(i *leak.Incident) error { i.Deliveries = sent; return nil })
		r.remark(i, before)
	}
	switch {
	case i.State == leak.Closed:
		if at := lastReminder(i); !at.IsZero() && now.Sub(at) >= weekly {
			change("reminded", func(i *leak.Incident) error {
				i.Actions = append(i.Actions, leak.Action{At: now, What: "remind", Outcome: leak.Done})
				return nil
			})
			r.alarm(i.Clients[0], "old_still_valid", i.ID, "the old credentials still work at the issuer, by what was said when the incident was closed: "+i.Closing.StillValid)
		}
		return
	case i.Drill:
		r.endDrill(i, change)
		return
	case i.State == leak.Draft:
		return
	}
	r.learn(ctx, i, status, change)
	if versions := r.replaced(ctx, i, status); versions != nil {
		change("installed", func(i *leak.Incident) error {
			outcome(i, "rotate", leak.Done, "", now)
			i.Renewed = versions
			i.Actions = append(i.Actions, leak.Action{At: now, What: "install_version", Outcome: leak.Done, Detail: versions[i.Clients[0]]})
			r.revise(i, "")
			return nil
		})
	}
	r.readdress(i, change)
	if !i.NextUpdate.IsZero() && !now.Before(i.NextUpdate) {
		change("updated", func(i *leak.Incident) error {
			r.revise(i, "Er zijn geen nieuwe feiten.\nThere is nothing new.")
			return nil
		})
	}
}

// readdress takes changed addresses from the configuration, and tells whoever
// was not told yet.
func (r *Responder) readdress(i *leak.Incident, change func(string, func(*leak.Incident) error)) {
	c := r.configured()
	contacts, copyTo := c.addresses(i)
	if slices.Equal(contacts, i.Issuer.Contacts) && slices.Equal(copyTo, i.CopyTo) {
		return
	}
	had := slices.Concat(i.Issuer.Contacts, i.CopyTo)
	change("readdressed", func(i *leak.Incident) error {
		r.o.Log.Info("whom an incident is reported to changes with the configuration", "incident", i.ID, "before", had, "now", slices.Concat(contacts, copyTo))
		i.Issuer.Contacts, i.CopyTo = contacts, copyTo
		if slices.ContainsFunc(slices.Concat(contacts, copyTo), func(a string) bool { return !slices.Contains(had, a) }) {
			r.revise(i, "Deze melding gaat nu ook naar iemand die ze nog niet kreeg.\nThis report goes to somebody now who did not have it yet.")
		}
		return nil
	})
}

// delivered are the incident's deliveries, if more are there than it says.
func (r *Responder) delivered(i *leak.Incident) []leak.Delivery {
	list := r.deliveries(i.ID)
	if len(list) > 0 && slices.EqualFunc(list, i.Deliveries, func(a, b leak.Delivery) bool { return a.MessageID == b.MessageID && a.State == b.State }) {
		return nil
	}
	return list
}

// remark notes mails that have left otherwise than they were to, since before.
func (r *Responder) remark(i *leak.Incident, before []leak.Delivery) {
	for _, d := range i.Deliveries {
		known := slices.ContainsFunc(before, func(b leak.Delivery) bool { return b.MessageID == d.MessageID && b.State == leak.Sent })
		if known || d.State != leak.Sent {
			continue
		}
		for _, code := range d.Remarks {
			r.o.Log.Warn("a report of an incident has left, and "+leak.Remark(code), "incident", i.ID, "to", d.Recipient)
			e := event(i, code, nil)
			e.Detail["recipient"] = d.Recipient
			r.o.Audit.Note(e)
		}
	}
}

func (r *Responder) deliveries(id string) []leak.Delivery {
	o := r.posting.Load()
	if o == nil {
		return nil
	}
	return o.outbox.Deliveries(id)
}

// lastReminder is when somebody was last reminded that the old credentials
// work; zero: they do not, or nobody knows.
func lastReminder(i *leak.Incident) (at time.Time) {
	if i.Closing == nil || i.Closing.OldRefused || i.Closing.StillValid == "" {
		return at
	}
	at = i.Closing.At
	for _, a := range i.Actions {
		if a.What == "remind" && a.At.After(at) {
			at = a.At
		}
	}
	return at
}

// learn fills in what could not be known before: who else has the secret, and
// what had leaked while the secrets manager gave nothing.
func (r *Responder) learn(ctx context.Context, i *leak.Incident, status map[string]broker.ClientStatus, change func(string, func(*leak.Incident) error)) {
	lacks := slices.ContainsFunc(i.Clients, func(name string) bool {
		return i.Versions[name] == "" && i.Renewed[name] == "" && status[name].Credential.Version != ""
	})
	if !lacks && len(r.sharing(i)) == len(i.Clients) {
		return
	}
	quick, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	next := *i
	if r.complete(quick, &next); len(next.Clients) == len(i.Clients) && maps.Equal(next.Versions, i.Versions) && next.ClientID == i.ClientID {
		return
	}
	change("extended", func(i *leak.Incident) error {
		news := i.ClientID == "" && next.ClientID != ""
		i.Clients, i.Versions, i.Places, i.ClientID = next.Clients, next.Versions, next.Places, next.ClientID
		if news && !i.Unqueued() { // without it the issuer may not know whom it is about
			r.revise(i, "")
		}
		return nil
	})
}

func installed(i *leak.Incident) bool {
	return slices.ContainsFunc(i.Actions, func(a leak.Action) bool { return a.What == "install_version" })
}

// replaced are the versions of all clients if none holds what has leaked any
// more, and the record does not say so yet; else nil.
func (r *Responder) replaced(ctx context.Context, i *leak.Incident, status map[string]broker.ClientStatus) map[string]string {
	if tokenOnly(i) || installed(i) {
		return nil
	}
	versions := map[string]string{}
	for _, name := range i.Clients {
		s, there := status[name]
		if !there && r.moved(i, name) {
			continue
		}
		k := s.Credential
		if k.Version == "" || i.Versions[name] == "" || string(k.Version) == i.Versions[name] || !k.Works && k.Probed.IsZero() {
			return nil
		}
		versions[name] = string(k.Version)
	}
	key := "renewed " + i.ID
	r.mu.Lock()
	at, tried := r.tried[key]
	wait := tried && at.Until(r.o.Clock.Now()) > 0
	if !wait {
		r.tried[key] = r.o.Clock.Now().Add(retryTime)
	}
	r.mu.Unlock()
	if wait {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	for name, version := range versions {
		if r.another(ctx, i, name, version, false) != nil { // broker leak release says why
			return nil
		}
	}
	return versions
}

// undelivered alarms for each incident with mails that no relay takes, at most
// once an hour for each mail.
func (r *Responder) undelivered() {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.posting.Load()
	if o == nil {
		return
	}
	list, _ := r.book.List()
	told, why := map[string][]string{}, map[string]string{}
	for _, d := range o.undelivered(list) {
		if r.often(d.MessageID) {
			continue
		}
		var all []string
		for _, a := range d.Last {
			all = append(all, a.String())
		}
		if !slices.Contains(told[d.Incident], d.Recipient) { // with an earlier revision
			told[d.Incident] = append(told[d.Incident], d.Recipient)
		}
		why[d.Incident] = cmp.Or(strings.Join(all, "; "), why[d.Incident], "it was not tried yet")
	}
	for _, id := range slices.Sorted(maps.Keys(told)) {
		name := ""
		if i, err := r.book.Get(id); err == nil {
			name = i.Clients[0]
		}
		r.alarm(name, "undelivered", id, fmt.Sprintf("no mail relay takes the report to %s: %s: tell them in another way", strings.Join(told[id], ", "), why[id]))
	}
}

// A watcher follows the alarms of the audit log, for what may mean a leak.
type watcher struct {
	alarms *audit.Alarms
	later  []refusal
}

// A refusal of a secret is looked at again a while later: its replacement may
// be on its way.
type refusal struct {
	client, version string
	at              clock.Reading
}

const refusalTime = time.Minute

func (r *Responder) watch() *watcher {
	alarms, err := audit.AlarmsAfter(r.o.AuditDir, r.o.Audit.Status().Seq)
	if err != nil {
		r.o.Log.Error("the audit log cannot be followed: no suspicion is raised from it", "error", err)
		return &watcher{}
	}
	return &watcher{alarms: alarms}
}

func (w *watcher) close() {
	if w.alarms != nil {
		w.alarms.Close()
	}
}

func (w *watcher) look(r *Responder) {
	now := r.o.Clock.Now()
	for w.alarms != nil {
		e, err := w.alarms.Next()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				r.o.Log.Error("the audit log cannot be followed any more", "error", err)
				w.close()
				w.alarms = nil
			}
			break
		}
		switch e.Type { //nolint:exhaustive // the others are no suspicion of a leak
		case audit.TokenRefused:
			w.later = append(w.later, refusal{e.Client, e.Version, now.Add(refusalTime)})
		case audit.SecretFound:
			r.found(&e)
		}
	}
	w.later = slices.DeleteFunc(w.later, func(f refusal) bool {
		if f.at.Until(now) > 0 {
			return false
		}
		r.refused(f)
		return true
	})
}

// refused raises a suspicion if a version that had worked was refused, still
// serves, and nothing newer is there.
func (r *Responder) refused(f refusal) {
	r.mu.Lock()
	had := r.worked[f.client] == f.version
	r.mu.Unlock()
	for _, s := range r.o.Broker.Status() {
		if k := s.Credential; had && s.Name == f.client && string(k.Version) == f.version && k.Dead && k.Candidate == "" && s.Quarantined == "" {
			r.Suspect(f.client, causeRefused, fmt.Sprintf("The issuer refuses version %s of the secret, which had worked and was not replaced here: somebody else may have replaced or revoked it.", f.version))
		}
	}
}
