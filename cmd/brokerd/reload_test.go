package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"credentialbroker/configs"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/leak"
	"credentialbroker/internal/response"
	"credentialbroker/providers"
)

// TestReloadWholeOrNot: what cannot be taken of the part about leaks lets
// nothing of the rest be taken either.
func TestReloadWholeOrNot(t *testing.T) {
	s := newSite(t)
	d, consumer, admin, err := prepare(paths{config: s.path("broker.yaml"), state: s.path("state"), consumer: s.path("broker.sock"), admin: s.path("admin.sock")}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close()
	defer admin.Close()
	if err := os.Remove(s.path("state", "outbox")); err != nil {
		t.Fatal(err)
	}
	s.write("state/outbox", "in the way")
	s.write("broker.yaml", strings.Replace(s.config(), "  closed:", "  opened:", 1)+leakYAML)
	if _, err := d.reload(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "the old configuration stays") {
		t.Fatalf("%v", err)
	}
	if !d.broker.Has("closed") || d.broker.Has("opened") || d.current.config.Leak != nil {
		t.Error("half of the new configuration is in use")
	}
	if err := os.Remove(s.path("state", "outbox")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.reload(t.Context(), nil); err != nil || !d.broker.Has("opened") {
		t.Errorf("%v", err)
	}
}

// slowStore gives a reload the time to come between.
type slowStore struct {
	providers.Provider
	fetch func()
}

func (s slowStore) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	s.fetch()
	return s.Provider.Fetch(ctx, ref, have)
}

// TestLoginOfAnotherRelay: a login that was read for the relays of before is
// none of the relays of now, whose order may be another.
func TestLoginOfAnotherRelay(t *testing.T) {
	store := fake.NewStore()
	store.Set("relay-a", map[string]string{"username": "a", "password": "password-of-a"})
	a, b := leak.Relay{Host: "127.0.0.1", Port: 1, TLS: "none", Login: true}, leak.Relay{Host: "127.0.0.1", Port: 2, TLS: "none", Login: true}
	var err error
	s := &server{clock: clock.System{}, log: slog.New(slog.DiscardHandler)}
	s.response, err = response.New(response.Options{Dir: t.TempDir(), Host: "web1", Broker: broker.New(broker.Options{Clock: s.clock}), Clock: s.clock, Log: s.log},
		response.Config{Relays: []leak.Relay{a, b}})
	if err != nil {
		t.Fatal(err)
	}
	reload := func() {}
	with := configs.Relay{Relay: a, Secret: &configs.Secret{Provider: "store", Spec: providers.Spec{Ref: providers.Ref{Path: "relay-a"}}}}
	before := &configs.Config{Leak: &configs.Leak{SMTP: configs.SMTP{Relay: with}, Fallback: []configs.Relay{{Relay: b}}}}
	after := &configs.Config{Leak: &configs.Leak{SMTP: configs.SMTP{Relay: configs.Relay{Relay: b}}, Fallback: []configs.Relay{with}}}
	old := &opened{config: before, providers: map[string]providers.Provider{"store": slowStore{store, func() { reload() }}}}
	s.current = old
	logins := func() (have []bool) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		for _, a := range s.response.CheckRelays(ctx) {
			have = append(have, a.Cause != "login_missing")
		}
		return have
	}
	reload = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.current = &opened{config: after, providers: old.providers}
		if err := s.response.SetConfig(response.Config{Relays: []leak.Relay{b, a}}); err != nil {
			t.Error(err)
		}
	}
	if err := s.readLogins(t.Context()); err != nil {
		t.Fatal(err)
	}
	if have := logins(); have[0] || have[1] {
		t.Errorf("a relay has a login that was read for another: %v", have)
	}
	reload = func() {}
	if err := s.readLogins(t.Context()); err != nil {
		t.Fatal(err)
	}
	if have := logins(); have[0] || !have[1] {
		t.Errorf("logins: %v", have)
	}
}
