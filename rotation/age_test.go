package rotation

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/fake"
	"credentialbroker/providers"
)

// dated is a manager that says when a version was made.
type dated struct {
	*fake.Store
	made time.Time
}

func (d dated) Fetch(ctx context.Context, r providers.Ref, have providers.Version) (providers.Bundle, error) {
	b, err := d.Store.Fetch(ctx, r, have)
	b.Created = d.made
	return b, err
}

// Each step of a version's age is recorded once, also over restarts.
func TestAgeIsRecordedOnce(t *testing.T) {
	cfg := Config{MaxAge: 100 * time.Hour}
	inBench(t, cfg, func(b *bench) {
		t := b.t
		made := b.clock.Now().Wall
		for _, want := range []struct {
			after time.Duration
			steps string
		}{{79 * time.Hour, ""}, {81 * time.Hour, "due "}, {99 * time.Hour, "due "}, {101 * time.Hour, "due overdue "}, {200 * time.Hour, "due overdue "}} {
			time.Sleep(time.Until(made.Add(want.after)))
			b.restart(cfg)
			b.c.deps.Provider = dated{b.store, made}
			for range 2 {
				if err := b.c.Check(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := b.ages(); got != want.steps {
				t.Errorf("after %s: %q is recorded, want %q", want.after, got, want.steps)
			}
		}
	})
}

// ages are the steps of age in the audit log; what is overdue is an alarm.
func (b *bench) ages() (steps string) {
	b.t.Helper()
	time.Sleep(time.Minute) // until they are written
	for e, err := range audit.Read(filepath.Join(b.dir, "audit"), 0) {
		if err != nil {
			b.t.Fatal(err)
		}
		if e.Type != audit.SecretAge {
			continue
		}
		if (e.Detail["alarm"] != "") != (e.Code == "overdue") {
			b.t.Errorf("%s: alarm %q", e.Code, e.Detail["alarm"])
		}
		steps += e.Code + " "
	}
	return steps
}

// A version that brings another field is as old as what authenticates the
// client, over a restart too.
func TestAgeIsTheCredentials(t *testing.T) {
	inBench(t, Config{}, func(b *bench) {
		t := b.t
		made := b.clock.Now().Wall
		check := func(at time.Time) {
			t.Helper()
			b.c.deps.Provider = dated{b.store, at}
			if err := b.c.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		check(made)
		time.Sleep(time.Hour)
		b.store.Set("app", map[string]string{"client_id": "id", "client_secret": "one", "api_key": "new"})
		check(b.clock.Now().Wall)
		b.wantVersion("2")
		if got := b.c.Status().Created; !got.Equal(made) {
			t.Errorf("made %s, want %s", got, made)
		}
		second := b.clock.Now().Wall
		b.restart(Config{})
		check(second)
		if got := b.c.Status().Created; !got.Equal(made) {
			t.Errorf("after a restart: made %s, want %s", got, made)
		}
		b.store.Set("app", map[string]string{"client_id": "id", "client_secret": "two", "api_key": "new"})
		b.issuer.SetSecret("id", "two", true)
		check(second)
		b.wantVersion("3")
		if got := b.c.Status().Created; !got.Equal(second) {
			t.Errorf("a new secret: made %s, want %s", got, second)
		}
	})
}

// What could not be noted is noted with the next look.
func TestAgeOutlivesAFullDisk(t *testing.T) {
	cfg := Config{MaxAge: time.Hour}
	inBench(t, cfg, func(b *bench) {
		t := b.t
		b.c.deps.Provider = dated{b.store, b.clock.Now().Wall.Add(-2 * time.Hour)}
		file := b.c.ledger.file
		b.c.ledger.file = filepath.Join(b.dir, "gone", "app.json")
		_ = b.c.Check(t.Context())
		b.c.ledger.file = file
		if got := b.ages(); got != "" {
			t.Fatalf("%q was recorded without being noted", got)
		}
		_ = b.c.Check(t.Context())
		if got := b.ages(); got != "overdue " {
			t.Errorf("%q is recorded, want overdue", got)
		}
	})
}
