package fake

import (
	"context"
	"strconv"
	"sync"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// A Store is a secrets manager in memory. It is a providers.Provider.
type Store struct {
	mu      sync.Mutex
	secrets map[string][]map[string]string // by path, one element a version
	fault   providers.Kind
	stats   StoreStats
}

// StoreStats counts what a Store has been asked.
type StoreStats struct {
	Fetches int // all
	Values  int // those that gave a bundle
	Faults  int // those that met a fault
}

// HangStore is the fault of a Store that never answers.
const HangStore providers.Kind = "hang"

// NewStore makes an empty store.
func NewStore() *Store { return &Store{secrets: map[string][]map[string]string{}} }

// Set stores a new version of a secret: 1, 2 and so on.
func (s *Store) Set(path string, fields map[string]string) providers.Version {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[path] = append(s.secrets[path], fields)
	return version(len(s.secrets[path]))
}

func version(n int) providers.Version { return providers.Version(strconv.Itoa(n)) }

// SetFault makes every Fetch fail with kind, or hang; "" ends that.
func (s *Store) SetFault(kind providers.Kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = kind
}

// Stats gives the counts so far.
func (s *Store) Stats() StoreStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Fetch implements providers.Provider.
func (s *Store) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	fail := func(kind providers.Kind, message string, cause error) (providers.Bundle, error) {
		return providers.Bundle{}, &providers.Error{Kind: kind, Provider: "fake", Ref: ref, Message: message, Err: cause}
	}
	if err := ctx.Err(); err != nil {
		return fail(providers.Unavailable, "the call was ended", err)
	}
	fault := s.enter()
	if fault == HangStore {
		<-ctx.Done()
		return fail(providers.Unavailable, "no answer in time", ctx.Err())
	}
	if fault != "" {
		return fail(fault, "a fault was switched on", nil)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	versions := s.secrets[ref.Path]
	n := len(versions)
	if ref.Version != "" {
		pinned, err := strconv.Atoi(string(ref.Version))
		if err != nil || pinned > n {
			pinned = 0
		}
		n = pinned
	}
	if n < 1 {
		return fail(providers.NotFound, "no such secret", nil)
	}
	if version(n) == have {
		return providers.Bundle{}, providers.ErrUnchanged
	}
	s.stats.Values++
	b := providers.Bundle{Version: version(n), Fields: map[string]secret.Secret{}}
	for k, v := range versions[n-1] {
		b.Fields[k] = secret.FromString(v)
	}
	return b, nil
}

func (s *Store) enter() providers.Kind {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Fetches++
	if s.fault != "" {
		s.stats.Faults++
	}
	return s.fault
}

// Close implements providers.Provider; nothing is to be closed.
func (s *Store) Close() error { return nil }
