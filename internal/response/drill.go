package response

import (
	"context"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/leak"
)

// Drill goes through a declared leak, clearly marked, with the organisation's
// own addresses alone. The client is not contained, and nothing is revoked. How
// long each step took is in the record, which closes itself when the mails are
// delivered.
func (r *Responder) Drill(ctx context.Context, who *access.Caller, name string) (client.Incident, error) {
	c := r.configured()
	if len(c.Relays) == 0 {
		return client.Incident{}, refuse(client.InvalidRequest, "no mail relay is configured, so that a leak could not be reported either: set leak: in the configuration")
	}
	policy := c.client(name).policy(leak.Confirmed)
	if policy == "" {
		policy = leak.Quarantine
	}
	i, err := incidentOf(&c, client.Declaration{Client: name, Severity: string(leak.Confirmed), What: []string{string(leak.ClientSecret)},
		Happened: "Oefening: er is niets gebeurd.\nDrill: nothing has happened.", PersonalData: "no", Policy: string(policy)}, r.now())
	if err != nil {
		return client.Incident{}, err
	}
	i.Drill, i.NextUpdate, i.DeclaredBy = true, time.Time{}, declarer(who, "")
	r.complete(ctx, &i)
	i.Actions = drilled(i.Actions)
	begin := r.o.Clock.Now()
	r.mu.Lock()
	i, err = r.book.Declare(i, false)
	if err == nil {
		r.claim(i.ID)
	}
	r.mu.Unlock()
	if err != nil {
		return client.Incident{}, unrecorded(err)
	}
	id := i.ID
	r.note(&i, "drill", actor(who))
	recorded := r.o.Clock.Now()
	_, _ = r.trace(ctx, &i) // for its time: a drill's report names no tokens
	traced := r.o.Clock.Now()
	i, _, err = r.change(i.ID, func(i *leak.Incident) error {
		took := func(what string, d time.Duration, o leak.Outcome) {
			i.Actions = append(i.Actions, leak.Action{At: r.now(), What: what, Outcome: o, Detail: d.Round(time.Millisecond).String()})
		}
		took("record", recorded.Sub(begin), leak.Done)
		took("trace_tokens", traced.Sub(recorded), leak.Done)
		i.Actions = append(i.Actions, leak.Action{At: r.now(), What: "deliver", Outcome: leak.Pending})
		return nil
	})
	if err != nil { // the next round sends its mails
		r.release(id)
		return client.Incident{}, refuse(client.Internal, "drill %s is recorded, and its mails are sent; but how long its steps took could not be: %v", id, err)
	}
	i = r.pursue(context.WithoutCancel(ctx), i.ID, true)
	return r.view(&i), nil
}

// drilled are the steps of a real leak, none of which is taken.
func drilled(steps []leak.Action) (list []leak.Action) {
	for _, a := range steps {
		if a.What != "trace_tokens" {
			a.Outcome, a.Detail = leak.NotPossible, "drill"
			list = append(list, a)
		}
	}
	return list
}

// endDrill closes a drill whose mails are delivered.
func (r *Responder) endDrill(i *leak.Incident, change func(string, func(*leak.Incident) error)) {
	list := r.deliveries(i.ID)
	var took time.Duration
	for _, d := range list {
		if d.State != leak.Sent {
			return
		}
		took = max(took, d.SentAt.Sub(d.QueuedAt))
	}
	if len(list) == 0 || i.Unqueued() {
		return
	}
	change("closed", func(i *leak.Incident) error {
		outcome(i, "deliver", leak.Done, took.String(), r.now())
		i.State, i.Closing = leak.Closed, &leak.Closing{At: r.now(), OldRefused: true} // nothing had leaked
		return nil
	})
}

// LastDrill is when the last drill that ended well was; zero: none did.
func (r *Responder) LastDrill() (at time.Time) {
	list, _ := r.book.List()
	for n := range list {
		i := &list[n]
		if i.Drill && i.State == leak.Closed && !pending(i, "deliver") && i.DeclaredAt.After(at) {
			at = i.DeclaredAt
		}
	}
	return at
}
