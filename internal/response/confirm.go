package response

import (
	"cmp"
	"maps"
	"slices"

	"credentialbroker/api/client"
	"credentialbroker/internal/leak"
)

// confirmable refuses a declaration that does not make more of a suspicion. now
// is what is declared.
func confirmable(old, now *leak.Incident) error {
	no := func(format string, args ...any) error { return refuse(client.InvalidRequest, format, args...) }
	switch {
	case old.State == leak.Closed || old.Severity != leak.Suspected || old.Drill:
		return no("incident %s is no suspicion that waits to be confirmed: declare a new one, without it", old.ID)
	case old.Clients[0] != now.Clients[0]:
		return no("incident %s is about %s, and not about %s", old.ID, old.Clients[0], now.Clients[0])
	case old.Joins != "":
		return no("incident %s is a part of %s: confirm it there", old.ID, old.Joins)
	case old.State == leak.Open && now.Severity != leak.Confirmed:
		return no("incident %s is declared as a suspicion already: say that it is confirmed", old.ID)
	case quarantines(old) && now.Policy != leak.Quarantine:
		return no("policy: incident %s keeps %s from being served: leave it quarantined; broker leak release %s ends that", old.ID, old.Clients[0], old.ID)
	}
	return nil
}

// confirm makes of a suspicion what is declared: a new revision of the same
// incident, which keeps what was found and done until now.
func (r *Responder) confirm(old *leak.Incident, i leak.Incident, noMail bool) {
	why := ""
	if old.State == leak.Open {
		why = "Het vermoeden is bevestigd.\nThe suspicion is confirmed."
	}
	i.Format, i.ID, i.Host, i.KnownAt = old.Format, old.ID, old.Host, old.KnownAt
	i.DeclaredAt, i.Revisions, i.Deliveries = r.now(), slices.Clone(old.Revisions), old.Deliveries
	i.Exposure, i.Holders, i.Others = old.Exposure, old.Holders, old.Others
	i.ClientID, i.KeyID = cmp.Or(i.ClientID, old.ClientID), cmp.Or(i.KeyID, old.KeyID)
	// What served when it was suspected has leaked, whatever serves now.
	versions := maps.Clone(i.Versions)
	if versions == nil {
		versions = map[string]string{}
	}
	maps.Copy(versions, old.Versions)
	i.Versions = versions
	for _, name := range old.Clients {
		if !slices.Contains(i.Clients, name) && !tokenOnly(&i) {
			i.Clients = append(slices.Clip(i.Clients), name)
		}
	}
	i.Actions = further(old, i.Actions)
	*old = i
	old.Revise(r.now(), why, noMail)
}

// further are the steps of a suspicion, and of what follows those that are not
// done or under way.
func further(old *leak.Incident, steps []leak.Action) []leak.Action {
	list := slices.Clone(old.Actions)
	for _, s := range steps {
		if s.What == "quarantine" && quarantines(old) || s.Outcome == leak.Pending && pending(old, s.What) {
			continue
		}
		list = append(list, s)
	}
	return list
}
