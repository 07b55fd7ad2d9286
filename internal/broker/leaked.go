package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// Rules of this file: a version's name says nothing of what is in it. What has
// leaked is kept while its incident is open, in memory alone, so that what
// comes after it can be compared with it; a new process asks the secrets
// manager for the old version. No record holds anything that was made of it.

// leaked are the secret fields of versions that have leaked.
type leaked struct {
	mu sync.Mutex
	m  map[leakedVersion]map[string]secret.Secret
}

type leakedVersion struct{ client, version string }

// Leaked says which versions have leaked, by client, in place of those of
// before. Those of them that serve are known from then on.
func (b *Broker) Leaked(versions map[string][]string) {
	l := &b.leaked
	l.mu.Lock()
	defer l.mu.Unlock()
	for v, fields := range l.m {
		if !slices.Contains(versions[v.client], v.version) {
			wipeFields(fields)
			delete(l.m, v)
		}
	}
	set := b.clients.Load()
	for name, list := range versions {
		cl := set.byName[name]
		if cl == nil {
			continue
		}
		live := cl.cred.Current()
		if live == nil || !slices.Contains(list, string(live.Version)) || l.m[leakedVersion{name, string(live.Version)}] != nil {
			continue
		}
		if fields, err := secretFields(live.Fields); err == nil { // else it was replaced and wiped meanwhile
			if l.m == nil {
				l.m = map[leakedVersion]map[string]secret.Secret{}
			}
			l.m[leakedVersion{name, string(live.Version)}] = fields
		}
	}
}

func secretFields(from map[string]secret.Secret) (map[string]secret.Secret, error) {
	out := map[string]secret.Secret{}
	for _, field := range rotation.SecretFields() {
		v := from[field]
		if v.Empty() {
			continue
		}
		own, err := v.Clone()
		if err != nil {
			wipeFields(out)
			return nil, err
		}
		out[field] = own
	}
	return out, nil
}

// Differs says whether what serves of a client holds nothing of the fields that
// have leaked with an older version of it; fields may be empty: all that are
// secret. same names one that it still holds; empty: none. An error means that
// it cannot be told: the version is not known any more, here or to the secrets
// manager.
func (b *Broker) Differs(ctx context.Context, name, version string, fields []string) (same string, err error) {
	cl := b.clients.Load().byName[name]
	if cl == nil {
		return "", noClient(name)
	}
	live, err := cl.cred.Bundle(ctx)
	switch {
	case err != nil:
		return "", explain(err)
	case version == "":
		return "", errors.New("which version has leaked is not known")
	}
	l := &b.leaked
	l.mu.Lock()
	old := l.m[leakedVersion{name, version}]
	if old != nil {
		defer l.mu.Unlock()
		return shared(old, live.Fields, fields)
	}
	l.mu.Unlock()
	older, err := cl.cred.Older(ctx, providers.Version(version))
	if err != nil {
		return "", fmt.Errorf("the secrets manager does not give version %s any more: %w", version, err)
	}
	defer older.Wipe()
	return shared(older.Fields, live.Fields, fields)
}

// shared names a field of old that have has, under any name.
func shared(old, have map[string]secret.Secret, fields []string) (string, error) {
	named := slices.ContainsFunc(fields, func(f string) bool { return !old[f].Empty() })
	for _, field := range rotation.SecretFields() {
		v := old[field]
		if v.Empty() || named && !slices.Contains(fields, field) {
			continue
		}
		for _, other := range rotation.SecretFields() {
			err := errors.Join(v.Use(usable), have[other].Use(usable))
			switch {
			case err != nil: // a wiped value equals nothing
				return "", err
			case v.Equal(have[other]):
				return field, nil
			}
		}
	}
	return "", nil
}

func usable([]byte) error { return nil }
