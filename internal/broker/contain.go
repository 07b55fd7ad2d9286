package broker

import (
	"fmt"
	"slices"

	"credentialbroker/api/client"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// Rules of this file: who decides, records and remembers a quarantine is not
// the Broker; it keeps to it, from before its first hand-over on.

// Contain sets the clients of which nothing is handed over, and the incident
// that is why, in place of those of before. What is about to leave when it
// returns does not, unless its last check was before. Call it before Run, and
// after a quarantine has become durable.
func (b *Broker) Contain(incidents map[string]string) {
	b.contained.Store(&incidents)
	b.news.tellAll()
	for name, cl := range b.clients.Load().byName {
		if _, contained := incidents[name]; contained {
			continue
		}
		for _, e := range cl.all() { // what was let go may be renewed again
			b.sched.at(e, b.o.Clock.Now())
		}
	}
}

// incident is why a client is quarantined; empty: it is not.
func (b *Broker) incident(name string) string {
	m := b.contained.Load()
	if m == nil {
		return ""
	}
	return (*m)[name]
}

// Quarantined says whether nothing of the client may be handed over, without
// any I/O.
func (b *Broker) Quarantined(name string) bool { return b.incident(name) != "" }

func quarantined(name, incident string) *Error {
	return &Error{Code: client.Quarantined, Detail: fmt.Sprintf(
		"%s is quarantined because of incident %s: nothing of it is handed over until an administrator releases it", name, incident)}
}

// Sharing lists the clients that a leak of name's secret concerns, itself
// among them: those whose bundle is, in whole or in part, in the same place,
// or has one of the same secret values. Sorted.
func (b *Broker) Sharing(name string) []string {
	all := b.clients.Load()
	one := all.byName[name]
	if one == nil {
		return nil
	}
	var list []string
	for _, other := range all.names {
		if other == name || shares(one, all.byName[other]) {
			list = append(list, other)
		}
	}
	return list
}

func shares(a, b *cachedClient) bool {
	if a.cfg.ProviderName == b.cfg.ProviderName {
		theirs := b.cfg.Rotation.Spec.Refs()
		for _, r := range a.cfg.Rotation.Spec.Refs() {
			if slices.ContainsFunc(theirs, func(o providers.Ref) bool { return o.Path == r.Path && o.Mount == r.Mount }) {
				return true
			}
		}
	}
	x, y := a.cred.Current(), b.cred.Current()
	if x == nil || y == nil {
		return false
	}
	for _, field := range []string{"client_secret", "private_key", "api_key"} {
		if s := x.Fields[field]; !s.Empty() && hasValue(y.Fields, s) {
			return true
		}
	}
	return false
}

func hasValue(fields map[string]secret.Secret, s secret.Secret) bool {
	for _, v := range fields {
		if v.Equal(s) {
			return true
		}
	}
	return false
}
