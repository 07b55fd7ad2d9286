package response

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/leak"
	"credentialbroker/providers"
)

// Rules of this file:
//   - a step is pending until its outcome is recorded, and may be taken twice;
//   - nothing here holds mu over the network.

// claim is for who wants to take the steps of an incident: one does at a time,
// and looks again for what another one has added meanwhile. The caller holds mu.
func (r *Responder) claim(id string) (mine bool) {
	_, busy := r.busy[id]
	r.busy[id] = busy
	return !busy
}

// pursue takes the pending steps of an incident that the caller has claimed,
// each within its time, records their outcome, and queues the report. What fails
// is left for the next round. If the steps are somebody else's, it queues the
// report alone. It returns the incident as it then is.
func (r *Responder) pursue(ctx context.Context, id string, mine bool) leak.Incident {
	if !mine {
		return r.reported(id)
	}
	i, err := r.book.Get(id)
	if err != nil {
		r.release(id)
		return leak.Incident{ID: id, Clients: []string{""}}
	}
	limit := stepTime
	if !i.Unqueued() {
		limit = patientTime
	}
	steps, cancel := context.WithTimeout(ctx, limit)
	quick, looked := context.WithTimeout(steps, limit/2) // a secrets manager and an issuer that hang do not add up
	r.complete(quick, &i)
	looked()
	found := r.take(steps, &i)
	cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.busy[id] {
		r.tried[id] = r.o.Clock.Now().Add(retryTime)
	}
	delete(r.busy, id)
	next, err := r.book.Update(id, func(now *leak.Incident) error { r.merge(now, &i, found); return nil })
	if err == nil {
		_ = r.contain() // a client more may share the secret
		next, err = r.report(next)
	}
	if err != nil && !r.often(id) {
		r.alarm(i.Clients[0], "unreported", id, "the report could not be queued, and is tried again: "+err.Error())
	}
	if len(next.Clients) == 0 { // the record cannot be read any more
		return i
	}
	return next
}

// reported queues the report of an incident whose steps are under way.
func (r *Responder) reported(id string) leak.Incident {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, err := r.book.Get(id)
	if err == nil {
		i, err = r.report(i)
	}
	if len(i.Clients) == 0 {
		i = leak.Incident{ID: id, Clients: []string{""}}
	}
	if err != nil && !r.often(id) {
		r.alarm(i.Clients[0], "unreported", id, "the report could not be queued, and is tried again: "+err.Error())
	}
	return i
}

func (r *Responder) release(id string) {
	r.mu.Lock()
	delete(r.busy, id)
	r.mu.Unlock()
}

// found is what the steps of a round have come to.
type found struct {
	withdrawn *broker.Withdrawal
	traced    *traced
	rotated   error // why the secrets manager gave no other version
}

// take takes the pending steps at once. Where a new secret ends the old one,
// the tokens are revoked with the new one, else with what minted them.
func (r *Responder) take(ctx context.Context, i *leak.Incident) (f found) {
	c := r.configured()
	var steps sync.WaitGroup
	var later *traced
	if pending(i, "trace_tokens") || i.Unqueued() && !i.Drill { // there may be more by now
		steps.Go(func() {
			if t, ok := r.trace(ctx, i); ok {
				f.traced = &t
			}
		})
	}
	rotate := func() {
		if pending(i, "rotate") {
			for _, name := range i.Clients {
				_, err := r.o.Broker.Rotate(ctx, name, broker.Rotation{}) // what serves then is looked at
				f.rotated = cmp.Or(f.rotated, err)
			}
			if f.rotated != nil {
				r.o.Log.Warn("no other version could be had for an incident", "incident", i.ID, "error", f.rotated)
			}
		}
	}
	steps.Go(func() {
		one := c.client(i.Clients[0]).OneSecret
		if one {
			rotate()
		}
		if pending(i, "revoke_tokens") {
			w := r.withdraw(ctx, i.Clients)
			f.withdrawn = &w
			if w.Revoked+w.Kept == 0 && !pending(i, "trace_tokens") { // somebody else may have revoked them
				if t, ok := r.trace(ctx, i); ok {
					later = &t
				}
			}
		}
		if !one {
			rotate()
		}
	})
	steps.Wait()
	if later != nil {
		f.traced = later
	}
	return f
}

func (r *Responder) withdraw(ctx context.Context, clients []string) broker.Withdrawal {
	all := make([]broker.Withdrawal, len(clients))
	var g sync.WaitGroup
	for n, name := range clients {
		g.Go(func() { all[n] = r.o.Broker.Withdraw(ctx, name) })
	}
	g.Wait()
	sum := broker.Withdrawal{Possible: true}
	for _, w := range all {
		sum.Revoked, sum.Kept = sum.Revoked+w.Revoked, sum.Kept+w.Kept
		sum.Possible = sum.Possible && (w.Possible || w.Kept == 0)
		if w.Last.After(sum.Last) {
			sum.Last = w.Last
		}
	}
	return sum
}

// merge writes what was found into the record as it is now. A change after the
// first report is one that the recipients are told.
func (r *Responder) merge(now, was *leak.Incident, f found) {
	at, changed := r.now(), false
	known := !slices.ContainsFunc(now.Clients, func(name string) bool { return !r.o.Broker.Knows(name) })
	r.redact(now)
	if now.Unchecked && known {
		now.Unchecked, changed = false, true
	}
	for _, name := range was.Clients {
		if !slices.Contains(now.Clients, name) {
			now.Clients = append(now.Clients, name)
		}
	}
	now.ClientID, now.KeyID = cmp.Or(now.ClientID, was.ClientID), cmp.Or(now.KeyID, was.KeyID)
	if now.Versions == nil {
		now.Versions = map[string]string{}
	}
	for name, v := range was.Versions {
		if now.Renewed[name] == "" {
			now.Versions[name] = cmp.Or(now.Versions[name], v)
		}
	}
	r.config.extend(now, now.Clients)
	if f.traced != nil {
		f.traced.into(now)
		changed = outcome(now, "trace_tokens", leak.Done, fmt.Sprint(now.Exposure.Count), at) || changed
	}
	if w := f.withdrawn; w != nil && pending(now, "revoke_tokens") {
		result, detail := leak.Done, fmt.Sprintf("%d/%d", w.Revoked, w.Revoked+w.Kept)
		switch {
		case w.Kept > 0 && !w.Possible:
			result, detail = leak.NotPossible, leak.NoRevocation
		case w.Kept > 0 || w.Revoked == 0 && f.traced == nil: // if nobody knows what there was, nothing is said of it
			result = leak.Pending
		case w.Revoked == 0 && now.Exposure.LastExpiry.After(at) && !f.traced.allRevoked(at):
			// Their values went with an earlier process: nobody can revoke them.
			result, detail = leak.NotPossible, leak.ValuesGone
		}
		changed = outcome(now, "revoke_tokens", result, detail, at) || changed
	}
	switch { // a person has to make or ask for another; follow sees that it is there
	case !pending(now, "rotate") || tokenOnly(now):
	case f.rotated == nil:
		changed = rotateByHand(r.config.client(now.Clients[0]), now, at) || changed
	case providers.KindOf(f.rotated).Temporary() || errors.Is(f.rotated, context.DeadlineExceeded):
		outcome(now, "rotate", leak.Pending, unread, at)
	default:
		changed = outcome(now, "rotate", leak.Failed, unread, at) || changed
	}
	if changed && !now.Unqueued() {
		r.revise(now, "")
	}
}

// unread is the detail of a rotation that found the secrets manager silent; the
// issuer reads it, too.
const unread = "secrets manager"

// rotateByHand says whether the issuer alone can give another secret: then this
// host cannot rotate it.
func rotateByHand(c Client, i *leak.Incident, at time.Time) bool {
	if i.Issuer.Rotation == "by-request" && !c.Keys {
		return outcome(i, "rotate", leak.NotPossible, i.Issuer.Name, at)
	}
	outcome(i, "rotate", leak.Pending, "", at)
	return false
}

// revise tells the recipients again, and when the next time is.
func (r *Responder) revise(i *leak.Incident, why string) {
	now := r.now()
	if i.NextUpdate.Before(now.Add(firstUpdate)) && !i.NextUpdate.IsZero() {
		i.NextUpdate = now.Add(laterUpdate)
	}
	i.Issuer.Contacts, i.CopyTo = r.config.addresses(i)
	noMail := len(i.Revisions) > 0 && i.Revisions[len(i.Revisions)-1].NoMail
	i.Revise(now, why, noMail)
}

// redact takes secrets out of what a person typed while they were not known.
func (r *Responder) redact(i *leak.Incident) {
	list := []*string{&i.Happened, &i.Where, &i.FoundBy, &i.DeclaredBy.Claimed}
	if i.Closing != nil {
		c := *i.Closing
		i.Closing = &c
		list = append(list, &c.By.Claimed, &c.StillValid)
	}
	for _, s := range list {
		if r.holds(*s) {
			*s = "[removed: it held a secret]"
		}
	}
}

// holds says whether a person's text holds a secret or token, as it was typed
// or as it would be mailed.
func (r *Responder) holds(text string) bool {
	return text != "" && slices.ContainsFunc(append(leak.Forms(text), text), func(s string) bool { return r.o.Broker.Holds([]byte(s)) })
}

// report composes the newest revision and queues it. The caller holds mu.
func (r *Responder) report(i leak.Incident) (leak.Incident, error) {
	if !i.Unqueued() {
		return i, nil
	}
	if r.outbox == nil {
		return i, errors.New("no mail relay is configured: set leak: in the configuration, and tell the recipients in another way until then")
	}
	stopped := r.stopped(&i)
	i.Stopped(stopped)
	messages, err := leak.Compose(i, r.config.Sender, r.config.languages(&i))
	if err != nil {
		return i, err
	}
	if err := r.outbox.Enqueue(messages); err != nil {
		return i, err
	}
	return r.book.Update(i.ID, func(now *leak.Incident) error { now.Stopped(stopped); now.Queued(); return nil })
}

// addresses are whom i is reported to by the configuration as it is now: one
// that was wrong can be put right.
func (c *Config) addresses(i *leak.Incident) (contacts, copyTo []string) {
	contacts, copyTo = i.Issuer.Contacts, i.CopyTo
	if one, ok := c.Clients[i.Clients[0]]; ok {
		contacts = one.Issuer.Contacts
	}
	if len(c.CopyTo) > 0 {
		copyTo = c.CopyTo
	}
	return contacts, copyTo
}

// tells says whether the report of i is for that address.
func (c *Config) tells(i *leak.Incident, address string) bool {
	contacts, copyTo := c.addresses(i)
	return slices.Contains(contacts, address) || slices.Contains(copyTo, address)
}

// undelivered are the mails that no relay has taken in time, but for those to an
// address that is configured no more; all are the incidents.
func (p *posting) undelivered(all []leak.Incident) (list []leak.Delivery) {
	for _, d := range p.outbox.Undelivered(p.late) {
		n := slices.IndexFunc(all, func(i leak.Incident) bool { return i.ID == d.Incident })
		if n < 0 || p.config.tells(&all[n], d.Recipient) {
			list = append(list, d)
		}
	}
	return list
}

// queue queues what is not yet, before another revision overtakes it: where it
// cannot be, the next one tells its news. The caller holds mu.
func (r *Responder) queue(id string) {
	if i, err := r.book.Get(id); err == nil {
		_, _ = r.report(i) // it is tried again, with an alarm
	}
}

func pending(i *leak.Incident, what string) bool {
	return slices.ContainsFunc(i.Actions, func(a leak.Action) bool { return a.What == what && a.Outcome == leak.Pending })
}

// outcome writes how the pending step ended, and says whether that is news.
func outcome(i *leak.Incident, what string, result leak.Outcome, detail string, at time.Time) bool {
	i.Actions = slices.Clone(i.Actions)
	for n := range i.Actions {
		if a := &i.Actions[n]; a.What == what && a.Outcome == leak.Pending {
			if result == leak.Pending {
				a.Detail = detail
				return false
			}
			*a = leak.Action{At: at, What: what, Outcome: result, Detail: detail}
			return true
		}
	}
	return false
}

// traced is what the audit log knows of an incident.
type traced struct{ audit.Trace }

// trace reads the audit log; ok is false if it took too long, or failed. One
// does at a time.
func (r *Responder) trace(ctx context.Context, i *leak.Incident) (t traced, ok bool) {
	select {
	case r.tracing <- struct{}{}:
		defer func() { <-r.tracing }()
	case <-ctx.Done():
		return traced{}, false
	}
	t, err := looking(ctx, r.o.AuditDir, i, r.now())
	if err != nil && ctx.Err() == nil {
		r.o.Log.Error("the audit log could not be read for an incident", "error", err)
	}
	return t, err == nil
}

// looking reads the audit log in dir for an incident.
func looking(ctx context.Context, dir string, i *leak.Incident, now time.Time) (traced, error) {
	to := i.Window.To
	if to.IsZero() {
		to = now.Add(time.Minute)
		for _, a := range i.Actions { // what is issued for another secret has not leaked with this one
			if a.What == "install_version" && a.Outcome == leak.Done && a.At.Before(to) {
				to = a.At
			}
		}
	}
	t, err := audit.TraceClients(ctx, dir, i.Clients, i.Window.From, to)
	return traced{t}, err
}

// into writes what was found into the record.
func (t traced) into(i *leak.Incident) {
	i.Exposure, i.Holders = leak.Exposure{}, nil
	if t.Begins.After(i.Window.From) {
		i.Exposure.LogBegins = t.Begins.UTC().Truncate(time.Second)
	}
	hold := func(held string, h audit.Holder) {
		i.Holders = append(i.Holders, leak.Holder{UID: h.UID, PID: h.PID, Unit: cmp.Or(h.Unit, h.UserUnit, h.Place), Held: held, First: h.First, Last: h.Last})
	}
	for _, token := range t.Tokens {
		i.Exposure.Add(leak.IssuedToken{JTI: token.JTI, Fingerprint: token.Fingerprint, Issued: token.Issued, Expires: token.Expires})
		for _, h := range token.Holders {
			hold(cmp.Or(token.JTI, token.Fingerprint, "jwt"), h)
		}
	}
	i.Exposure.Count += t.More
	if t.Last.After(i.Exposure.LastExpiry) {
		i.Exposure.LastExpiry = t.Last
	}
	for _, h := range t.Keys {
		hold("api-key", h)
	}
}

// allRevoked says whether no token is left that somebody could use.
func (t *traced) allRevoked(now time.Time) bool {
	return t != nil && t.More == 0 && !slices.ContainsFunc(t.Tokens, func(one audit.TracedToken) bool {
		return one.Revoked.IsZero() && one.Expires.After(now)
	})
}
