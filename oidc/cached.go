package oidc

import (
	"context"
	"sync/atomic"
	"time"

	"credentialbroker/internal/clock"
)

const (
	cacheFresh   = time.Hour
	cachePause   = time.Minute      // between fetches while there is a value
	cacheTimeout = 10 * time.Second // of a fetch, so that a mint's own time is left
)

// A cached is a public document of the issuer: fetched when first needed,
// again after an hour, and at most once a minute if it does not serve. Once
// there is one, a failing fetch keeps it.
type cached[T any] struct {
	clock clock.Clock
	host  string // for errors
	fetch func(context.Context) (T, error)

	current atomic.Pointer[fetched[T]]
	turn    chan struct{} // holds one element; whoever takes it may fetch
	tried   clock.Reading // belongs to whoever has the turn
}

type fetched[T any] struct {
	value T
	at    clock.Reading
	stale atomic.Bool
}

func newCached[T any](c clock.Clock, host string, fetch func(context.Context) (T, error)) *cached[T] {
	return &cached[T]{clock: c, host: host, fetch: fetch, turn: make(chan struct{}, 1)}
}

// get gives the document: another one if it is old, or if serves, which may be
// nil, says that it will not do.
func (s *cached[T]) get(ctx context.Context, serves func(T) bool) (none T, err error) {
	good := func(f *fetched[T]) bool {
		return f != nil && s.clock.Now().Sub(f.at) < cacheFresh && !f.stale.Load() && (serves == nil || serves(f.value))
	}
	if f := s.current.Load(); good(f) {
		return f.value, nil
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return none, transportError(s.host, ctx.Err())
	}
	defer func() { <-s.turn }()
	now, f := s.clock.Now(), s.current.Load()
	if f != nil && now.Sub(s.tried) < cachePause {
		return f.value, nil // another caller's fetch, which has just ended, included
	}
	s.tried = now
	ctx, cancel := context.WithTimeout(ctx, cacheTimeout)
	defer cancel()
	value, err := s.fetch(ctx)
	switch {
	case err == nil:
		s.current.Store(&fetched[T]{value: value, at: now})
		return value, nil
	case f != nil:
		return f.value, nil
	}
	return none, err
}

// expire makes the next get fetch.
func (s *cached[T]) expire() {
	if f := s.current.Load(); f != nil {
		f.stale.Store(true)
	}
}
