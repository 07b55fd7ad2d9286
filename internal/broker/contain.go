package broker

import (
	"cmp"
	"fmt"
	"slices"

	"credentialbroker/api/client"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// Rules of this file: who decides, records and remembers a quarantine is not
// the Broker; it keeps to it, from before its first hand-over on.

// Contain sets the clients of which nothing is handed over, by name or by
// [SecretPlace], and the incident that is why, in place of those of before. A place
// holds under whatever name a client has its secret there, from Apply on. What
// is about to leave when Contain returns does not, unless its last check was
// before. Call it before Run, and after a quarantine has become durable.
func (b *Broker) Contain(incidents map[string]string) {
	b.contained.Store(&incidents)
	b.news.tellAll()
	for name, cl := range b.clients.Load().byName {
		if b.incident(name) != "" {
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
	if m == nil || len(*m) == 0 {
		return ""
	}
	if id := (*m)[name]; id != "" {
		return id
	}
	if cl := b.clients.Load().byName[name]; cl != nil {
		for _, place := range cl.places {
			if id := (*m)[place]; id != "" {
				return id
			}
		}
	}
	return ""
}

// SecretPlace names where a secret lies, whatever its version: it holds a space, and
// so is no client's name.
func SecretPlace(provider string, ref providers.Ref) string {
	ref.Version, ref.Mount = "", cmp.Or(ref.Mount, "secret") // as providers.Ref has it
	return provider + " " + ref.String()
}

func places(provider string, spec providers.Spec) (list []string) {
	for _, ref := range spec.Refs() {
		list = append(list, SecretPlace(provider, ref))
	}
	return list
}

// At lists the clients whose secret is, in whole or in part, at a place.
func (b *Broker) At(place string) (names []string) {
	all := b.clients.Load()
	for _, name := range all.names {
		if slices.Contains(all.byName[name].places, place) {
			names = append(names, name)
		}
	}
	return names
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
	if slices.ContainsFunc(a.places, func(place string) bool { return slices.Contains(b.places, place) }) {
		return true
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
