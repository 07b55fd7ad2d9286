package fake

import (
	"context"
	"strconv"
	"sync"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// A Store is a secrets manager in memory. It is a providers.Provider, a
// providers.Writer and a rotation.Keeper.
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
	Faults  int // those that met a fault, writes included
	Puts    int // writes that succeeded
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

// SetFault makes every Fetch and Put fail with kind, or hang; "" ends that.
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
	if err := s.trouble(ctx, ref, 1); err != nil {
		return providers.Bundle{}, err
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
		return providers.Bundle{}, failure(ref, providers.NotFound, "no such secret", nil)
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

// Put implements providers.Writer.
func (s *Store) Put(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret, expect providers.Version) (providers.Version, error) {
	if err := s.trouble(ctx, ref, 0); err != nil {
		return "", err
	}
	payload, err := providers.Encode(fields) // the rules that every manager has
	clear(payload)
	if err != nil {
		return "", err
	}
	values := make(map[string]string, len(fields))
	for k, v := range fields {
		b, err := v.AppendTo(nil)
		if err != nil {
			return "", failure(ref, providers.Malformed, "a value was wiped before it was written", err)
		}
		values[k] = string(b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	current := providers.Version("")
	if n := len(s.secrets[ref.Path]); n > 0 {
		current = version(n)
	}
	if current != expect || ref.Version != "" {
		return "", failure(ref, providers.Conflict, "the secret has been changed by another writer", nil)
	}
	s.stats.Puts++
	s.secrets[ref.Path] = append(s.secrets[ref.Path], values)
	return version(len(s.secrets[ref.Path])), nil
}

// Replace writes a new version in place of whatever is there.
func (s *Store) Replace(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret) error {
	s.mu.Lock()
	expect := providers.Version("")
	if n := len(s.secrets[ref.Path]); n > 0 {
		expect = version(n)
	}
	s.mu.Unlock()
	_, err := s.Put(ctx, ref, fields, expect)
	return err
}

// Remove takes a secret away, with all its versions.
func (s *Store) Remove(ctx context.Context, ref providers.Ref) error {
	if err := s.trouble(ctx, ref, 0); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.secrets[ref.Path]) == 0 {
		return failure(ref, providers.NotFound, "no such secret", nil)
	}
	delete(s.secrets, ref.Path)
	return nil
}

func failure(ref providers.Ref, kind providers.Kind, message string, cause error) *providers.Error {
	return &providers.Error{Kind: kind, Provider: "fake", Ref: ref, Message: message, Err: cause}
}

// trouble counts a call, and is the current fault or a context that has ended.
func (s *Store) trouble(ctx context.Context, ref providers.Ref, fetches int) error {
	if err := ctx.Err(); err != nil {
		return failure(ref, providers.Unavailable, "the call was ended", err)
	}
	fault := s.enter(fetches)
	if fault == HangStore {
		<-ctx.Done()
		return failure(ref, providers.Unavailable, "no answer in time", ctx.Err())
	}
	if fault != "" {
		return failure(ref, fault, "a fault was switched on", nil)
	}
	return nil
}

func (s *Store) enter(fetches int) providers.Kind {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Fetches += fetches
	if s.fault != "" {
		s.stats.Faults++
	}
	return s.fault
}

// Close implements providers.Provider; nothing is to be closed.
func (s *Store) Close() error { return nil }
