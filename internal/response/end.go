package response

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/leak"
)

// Release lets an incident's clients be served again, once a new version of
// what has leaked is installed and proved; after the leak of a token, once none
// is left that was out.
func (r *Responder) Release(ctx context.Context, who *access.Caller, id string, how client.IncidentRelease) (client.Incident, error) {
	i, err := r.get(id)
	if err != nil {
		return client.Incident{}, err
	}
	if !quarantines(&i) {
		return client.Incident{}, refuse(client.InvalidRequest, "incident %s keeps no client from being served", i.ID)
	}
	versions, err := r.renewed(ctx, &i, how.NewSecretConfirmed)
	if err != nil {
		return client.Incident{}, refuse(client.Quarantined, "incident %s: its clients stay quarantined: %v", i.ID, err)
	}
	i, mine, err := r.change(i.ID, func(i *leak.Incident) error {
		if !quarantines(i) {
			return refuse(client.InvalidRequest, "incident %s keeps no client from being served", i.ID)
		}
		r.free(i, versions, how)
		r.revise(i, "")
		return nil
	})
	if err != nil {
		return client.Incident{}, err
	}
	r.note(&i, "released", actor(who))
	i = r.pursue(context.WithoutCancel(ctx), i.ID, mine)
	return r.view(&i), nil
}

// free notes that the clients are served again, with new versions.
func (r *Responder) free(i *leak.Incident, versions map[string]string, how client.IncidentRelease) {
	add := func(what, detail string) {
		i.Actions = append(i.Actions, leak.Action{At: r.now(), What: what, Outcome: leak.Done, Detail: detail})
	}
	outcome(i, "rotate", leak.Done, "", r.now())
	i.Renewed = versions
	if how.NewSecretConfirmed && !slices.ContainsFunc(i.Actions, func(a leak.Action) bool { return a.What == "confirm_new" }) {
		add("confirm_new", "")
	}
	version := versions[i.Clients[0]]
	if version != "" && !slices.ContainsFunc(i.Actions, func(a leak.Action) bool { return a.What == "install_version" }) {
		add("install_version", version)
	}
	if quarantines(i) {
		add("release", "")
	}
}

// renewed says what is missing until what has leaked is of no use here any
// more: of every client a version that is proved, and in which what has leaked
// is another. versions are theirs. confirmed is a person's word, which counts
// where nothing else can tell.
func (r *Responder) renewed(ctx context.Context, i *leak.Incident, confirmed bool) (versions map[string]string, err error) {
	versions = map[string]string{}
	if tokenOnly(i) {
		over := i.Exposure.LastExpiry.Before(r.now()) && !pending(i, "trace_tokens")
		revoked := slices.ContainsFunc(i.Actions, func(a leak.Action) bool { return a.What == "revoke_tokens" && a.Outcome == leak.Done })
		if !over && !revoked {
			return nil, fmt.Errorf("tokens that were out have not ended: the last one does at %s", i.Exposure.LastExpiry.Format(time.RFC3339))
		}
		return versions, nil
	}
	status := map[string]broker.ClientStatus{}
	for _, s := range r.o.Broker.Status() {
		status[s.Name] = s
	}
	var missing []error
	for _, name := range i.Clients {
		s, there := status[name]
		k := s.Credential
		switch {
		case !there && r.moved(i, name):
			continue
		case !there && !confirmed:
			missing = append(missing, fmt.Errorf("%s is configured no more, so that nothing shows whether its secret was replaced%s", name, sayConfirmed))
		case !there:
			continue
		case k.Version == "":
			missing = append(missing, fmt.Errorf("%s has no version of its secret in use", name))
		default:
			err := r.another(ctx, i, name, string(k.Version), confirmed)
			if err == nil && !k.Works && k.Probed.IsZero() {
				if err = r.o.Broker.Prove(ctx, name); err != nil {
					err = fmt.Errorf("version %s of %s is not proved: %w", k.Version, name, err)
				}
			}
			missing = append(missing, err)
		}
		versions[name] = string(k.Version)
	}
	return versions, errors.Join(missing...)
}

// moved says whether another of i's clients has the secret of this one's place:
// a client that got another name.
func (r *Responder) moved(i *leak.Incident, name string) bool {
	for place, was := range i.Places {
		others := r.o.Broker.At(place)
		if was == name && slices.ContainsFunc(others, func(other string) bool { return other != name && slices.Contains(i.Clients, other) }) {
			return true
		}
	}
	return false
}

const sayConfirmed = "; if you know that it was, say so with --new-secret-confirmed"

// another is nil if a client's version holds nothing of what has leaked: that
// another version serves does not say so.
func (r *Responder) another(ctx context.Context, i *leak.Incident, name, version string, confirmed bool) error {
	old := i.Versions[name]
	switch {
	case i.Renewed[name] == version:
		return nil
	case old == version:
		return fmt.Errorf("%s still has version %s, which has leaked: store a new one, then run broker rotate %s", name, version, name)
	}
	same, err := r.o.Broker.Differs(ctx, name, old, leakedFields(i))
	switch {
	case same != "":
		return fmt.Errorf("version %s of %s has the same %s as version %s, which has leaked: store a new one, then run broker rotate %s", version, name, same, old, name)
	case err != nil && !confirmed:
		return fmt.Errorf("whether version %s of %s still holds what has leaked cannot be told: %w%s", version, name, err, sayConfirmed)
	}
	return nil
}

// leakedFields are the fields of a bundle that have leaked; nil: all that are
// secret.
func leakedFields(i *leak.Incident) (fields []string) {
	for _, w := range i.What {
		switch w {
		case leak.ClientSecret, leak.APIKey, leak.PrivateKey:
			fields = append(fields, string(w))
		case leak.Token:
		case leak.ManagerLogin, leak.Host, leak.Unknown:
			return nil
		}
	}
	return fields
}

// Close ends an incident: a new version has to be in use, the issuer has to
// refuse the old one (which one attempt shows) unless there is a reason why
// not, and the report has to be delivered. A suspicion, or a drill, just ends.
func (r *Responder) Close(ctx context.Context, who *access.Caller, id string, how client.IncidentClose) (client.Incident, error) {
	i, err := r.get(id)
	switch {
	case err != nil:
		return client.Incident{}, err
	case i.State == leak.Closed:
		return client.Incident{}, refuse(client.InvalidRequest, "incident %s is closed", i.ID)
	case r.holds(how.OldStillValid) || r.holds(how.As) || obvious(how.OldStillValid) || obvious(how.As):
		return client.Incident{}, r.refuseText(who, i.Clients[0], "close", "the text holds a secret or token that is in use, or was: say in words which one it is")
	case len(how.OldStillValid) > longestText || len(how.As) > longestText:
		return client.Incident{}, refuse(client.InvalidRequest, "a text is longer than %d bytes", longestText)
	case r.told(how.ToldByHand) != nil:
		return client.Incident{}, r.told(how.ToldByHand)
	case i.State == leak.Draft || i.Drill:
		return r.drop(who, &i, how)
	}
	if missing := r.unreported(&i, how.ToldByHand); missing != "" {
		return client.Incident{}, refuse(client.InvalidRequest, "incident %s stays open: %s", i.ID, missing)
	}
	closing := leak.Closing{By: declarer(who, how.As), StillValid: how.OldStillValid, ToldByHand: how.ToldByHand}
	versions, err := r.renewed(ctx, &i, how.NewSecretConfirmed)
	if err != nil {
		return client.Incident{}, refuse(client.InvalidRequest, "incident %s stays open: %v", i.ID, err)
	}
	closing.NewVersion = versions[i.Clients[0]]
	if how.OldStillValid == "" {
		if err := r.oldRefused(ctx, &i); err != nil {
			return client.Incident{}, refuse(client.InvalidRequest, "incident %s stays open: %v", i.ID, err)
		}
		closing.OldRefused = true
	}
	i, mine, err := r.change(i.ID, func(i *leak.Incident) error {
		if i.State != leak.Open {
			return refuse(client.InvalidRequest, "incident %s is closed", i.ID)
		}
		r.free(i, versions, how.IncidentRelease)
		closing.At = r.now()
		i.State, i.Closing, i.NextUpdate = leak.Closed, &closing, time.Time{}
		r.revise(i, "")
		return nil
	})
	if err != nil {
		return client.Incident{}, err
	}
	r.note(&i, "closed", actor(who))
	i = r.pursue(context.WithoutCancel(ctx), i.ID, mine)
	return r.view(&i), nil
}

// drop ends what no issuer was told of.
func (r *Responder) drop(who *access.Caller, i *leak.Incident, how client.IncidentClose) (client.Incident, error) {
	closed, mine, err := r.change(i.ID, func(i *leak.Incident) error {
		i.State, i.NextUpdate = leak.Closed, time.Time{}
		i.Closing = &leak.Closing{At: r.now(), By: declarer(who, how.As), OldRefused: true} // nothing is left to refuse
		i.Revise(r.now(), how.OldStillValid, true)
		return nil
	})
	if err != nil {
		return client.Incident{}, err
	}
	if mine {
		r.release(closed.ID)
	}
	r.note(&closed, "closed", actor(who))
	return r.view(&closed), nil
}

// unreported says what of the report is neither delivered nor told by hand, of
// the addresses that are configured now; empty: nothing.
func (r *Responder) unreported(i *leak.Incident, told map[string]string) string {
	c := r.configured()
	var left []string
	add := func(to string) {
		if told[to] == "" && c.tells(i, to) && !slices.Contains(left, to) {
			left = append(left, to)
		}
	}
	for _, to := range slices.Concat(c.addresses(i)) {
		if i.Unqueued() || !slices.Contains(i.Issuer.Contacts, to) && !slices.Contains(i.CopyTo, to) { // it is new
			add(to)
		}
	}
	for _, d := range r.deliveries(i.ID) {
		if d.State != leak.Sent {
			add(d.Recipient)
		}
	}
	switch {
	case len(left) == 0:
		return ""
	case i.Unqueued():
		return "its report to " + strings.Join(left, ", ") + " is not queued yet; if that cannot be, tell them, and say so with --told-by-hand RECIPIENT=HOW"
	}
	return "its report is not delivered to " + strings.Join(left, ", ") + ": broker leak show " + i.ID +
		" says why; if no relay takes it, tell them, and say so with --told-by-hand RECIPIENT=HOW"
}

// told judges what is said of recipients that were told by hand.
func (r *Responder) told(list map[string]string) error {
	for to, how := range list {
		switch {
		case strings.TrimSpace(how) == "" || len(how) > longestText:
			return refuse(client.InvalidRequest, "told_by_hand: say in a few words how %.100q was told: when, by whom, in which way", to)
		case r.holds(how) || obvious(how):
			return refuse(client.InvalidRequest, "told_by_hand: the text holds a secret or token: say in words which one it is")
		}
	}
	return nil
}

// oldRefused asks the issuer about the version that has leaked, once.
func (r *Responder) oldRefused(ctx context.Context, i *leak.Incident) error {
	if tokenOnly(i) {
		return nil
	}
	const otherwise = "; if you know it in another way, or it cannot be, say so with --old-still-valid REASON"
	if slices.Contains(i.What, leak.APIKey) {
		return errors.New("no request shows whether an API key is refused without being one to the API" + otherwise)
	}
	for _, name := range i.Clients {
		version := i.Versions[name]
		if !r.o.Broker.Has(name) && r.moved(i, name) {
			continue // it is asked by its new name
		}
		if version == "" {
			return fmt.Errorf("which version of %s has leaked is not known, so that the issuer cannot be asked about it%s", name, otherwise)
		}
		switch taken, err := r.o.Broker.StillTaken(ctx, name, version); {
		case err != nil:
			return fmt.Errorf("whether the issuer still takes version %s of %s is not known: %w%s", version, name, err, otherwise)
		case taken:
			return fmt.Errorf("the issuer still takes version %s of %s: have it revoked%s", version, name, otherwise)
		}
	}
	return nil
}

// Evidence is what this host knows of an incident by now, for another one.
func (r *Responder) Evidence(ctx context.Context, id string) (json.RawMessage, error) {
	i, err := r.get(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	if t, ok := r.trace(ctx, &i); ok && i.State != leak.Closed && !i.Drill {
		r.mu.Lock()
		_, err = r.book.Update(i.ID, func(i *leak.Incident) error { t.into(i); return nil })
		r.mu.Unlock()
		if err != nil {
			return nil, unrecorded(err)
		}
	}
	return r.book.Export(i.ID)
}

// AddEvidence takes what another host knows into the next report.
func (r *Responder) AddEvidence(ctx context.Context, who *access.Caller, id string, evidence json.RawMessage) (client.Incident, error) {
	i, err := r.get(id)
	if err != nil {
		return client.Incident{}, err
	}
	var value any
	if json.Unmarshal(evidence, &value) != nil || r.o.Broker.Holds(evidence) || r.holdsAny(value) {
		return client.Incident{}, r.refuseText(who, i.Clients[0], "evidence", "the evidence is no JSON, or holds a secret or token that is in use, or was: look at how it was made")
	}
	before, mine := len(i.Revisions), false
	r.mu.Lock()
	r.queue(i.ID)
	i, err = r.book.Merge(i.ID, evidence)
	if err == nil {
		mine = r.claim(i.ID)
	}
	r.mu.Unlock()
	if err != nil {
		return client.Incident{}, refuse(client.InvalidRequest, "%v", err)
	}
	if len(i.Revisions) > before {
		r.note(&i, "merged", actor(who))
	}
	i = r.pursue(context.WithoutCancel(ctx), i.ID, mine)
	return r.view(&i), nil
}

// holdsAny looks for secrets in the strings of a JSON value, as they are decoded.
func (r *Responder) holdsAny(value any) bool {
	switch v := value.(type) {
	case string:
		return r.holds(v)
	case []any:
		return slices.ContainsFunc(v, r.holdsAny)
	case map[string]any:
		for name, one := range v {
			if r.holds(name) || r.holdsAny(one) {
				return true
			}
		}
	}
	return false
}

// get reads an incident, by its ID here or among all hosts.
func (r *Responder) get(id string) (leak.Incident, error) {
	i, err := r.book.Get(id)
	if errors.Is(err, leak.ErrNotFound) {
		return i, &broker.Error{Code: client.NotFound, Detail: err.Error() + "; broker leak list shows them"}
	}
	if err != nil {
		return i, &broker.Error{Code: client.Internal, Detail: err.Error()}
	}
	return i, nil
}

// change makes a change durable, lets the Broker know, and claims the incident,
// to be pursued.
func (r *Responder) change(id string, f func(*leak.Incident) error) (_ leak.Incident, mine bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue(id)
	i, err := r.book.Update(id, f)
	if err != nil {
		return i, false, unrecorded(err)
	}
	mine = r.claim(i.ID)
	if err := r.contain(); err != nil {
		r.alarm("", "damaged", "", err.Error())
	}
	return i, mine, nil
}

func refuse(code client.Code, format string, args ...any) error {
	return &broker.Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}
