package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// An answer of the secrets manager, as far as it differs in calls.
type answer int

const (
	first  answer = iota // a value, to one who had none
	same                 // nothing new
	fresh                // a new version's value
	failed               // an error
	answers
)

// managers is what an adapter spends on each answer, and what its manager
// allows (docs/providers.md). The adapters' own tests hold them to it, and to
// the 300 metadata calls a minute that are GCP's beside these.
var managers = []struct {
	name, call string
	cost       [answers]int
	limit      int // 0: none is published
	window     time.Duration
}{
	{"Vault", "read", [...]int{1, 1, 2, 1}, 0, time.Second},
	{"AWS", "DescribeSecret", [...]int{0, 1, 1, 1}, 40_000, time.Second},
	{"AWS", "GetSecretValue", [...]int{1, 0, 1, 1}, 10_000, time.Second},
	{"Azure", "any, on one vault", [...]int{1, 1, 2, 1}, 4_000, 10 * time.Second},
	{"GCP", "AccessSecretVersion", [...]int{1, 1, 1, 1}, 90_000, time.Minute},
}

// counted is a store that notes when it was asked, and what it answered.
type counted struct {
	*fake.Store
	start time.Time

	mu   sync.Mutex
	each [answers][]int // by tick since start
}

// tick is the resolution of the windows.
const tick = 100 * time.Millisecond

func (c *counted) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	b, err := c.Store.Fetch(ctx, ref, have)
	a := failed
	switch {
	case errors.Is(err, providers.ErrUnchanged):
		a = same
	case err == nil && have == "":
		a = first
	case err == nil:
		a = fresh
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i := int(time.Since(c.start) / tick)
	for len(c.each[a]) <= i {
		c.each[a] = append(c.each[a], make([]int, i+1)...)
	}
	c.each[a][i]++
	return b, err
}

// peak is the most that any window between two moments has cost.
func (c *counted) peak(cost [answers]int, from, to time.Time, window time.Duration) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	spent := func(i int) (n int) {
		for a, ticks := range c.each {
			if i >= 0 && i < len(ticks) {
				n += cost[a] * ticks[i]
			}
		}
		return n
	}
	width := int(window / tick)
	begin, end := int(from.Sub(c.start)/tick), int(to.Sub(c.start)/tick)
	sum, most := 0, 0
	for i := begin; i <= end; i++ {
		sum += spent(i)
		if i-width >= begin {
			sum -= spent(i - width)
		}
		most = max(most, sum)
	}
	return most
}

// Ten thousand clients on one secrets manager stay within what it allows, with
// all of the broker above the adapter. What is printed with -v is this run's.
func TestCallBudget(t *testing.T) {
	const clients = 10_000
	dir := t.TempDir()
	var out bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		store := &counted{Store: fake.NewStore(), start: time.Now()}
		write := func(version string) {
			for i := range clients {
				store.Set(clientName(i), map[string]string{"api_key": version})
			}
		}
		write("1")
		var skew atomic.Int64
		clk := clock.NewBubble()
		clk.Skew = func() time.Duration { return time.Duration(skew.Load()) }
		stop := startClients(t, dir, store, clk, clients)
		defer stop()
		table := newTable(&out, "10,000 clients", "secrets manager", "call", "peak", "allowed", "in")
		for _, phase := range []struct {
			name  string
			begin func()
			lasts time.Duration
		}{
			{"start", func() {}, time.Minute},
			{"an hour of nothing new", func() {}, time.Hour},
			{"a new version of each at once", func() { write("2") }, 10 * time.Minute},
			{"a jump of the clock", func() { skew.Store(int64(time.Hour)) }, 10 * time.Minute},
			{"an outage of ten minutes", func() { store.SetFault(providers.Unavailable) }, 10 * time.Minute},
			{"its end", func() { store.SetFault("") }, 10 * time.Minute},
		} {
			begin := time.Now()
			phase.begin()
			time.Sleep(phase.lasts)
			synctest.Wait()
			for _, m := range managers {
				n := store.peak(m.cost, begin, time.Now(), m.window)
				if m.limit > 0 && n > m.limit {
					t.Errorf("%s: %d calls of %s %s in %v, which allows %d", phase.name, n, m.name, m.call, m.window, m.limit)
				}
				allowed := "no limit"
				if m.limit > 0 {
					allowed = fmt.Sprint(m.limit)
				}
				table.row(phase.name, m.name, m.call, fmt.Sprint(n), allowed, m.window.String())
			}
		}
		table.flush()
		wantCalls(t, store, clients, time.Since(store.start))
	})
	t.Log("\n" + out.String())
}

// wantCalls guards the count itself: nobody was forgotten, and nobody was read
// more often than there was something to read.
func wantCalls(t *testing.T, store *counted, clients int, took time.Duration) {
	t.Helper()
	var sum [answers]int
	for a, ticks := range store.each {
		for _, n := range ticks {
			sum[a] += n
		}
	}
	if sum[first] != clients || sum[fresh] != clients {
		t.Errorf("%d first reads and %d of the new version, want %d each", sum[first], sum[fresh], clients)
	}
	// A look every five minutes, a tenth more or less.
	if looks := int(took/(5*time.Minute)) * clients; sum[same] < looks*8/10 || sum[same] > looks*12/10 {
		t.Errorf("%d looks that found nothing, want about %d", sum[same], looks)
	}
	if all := store.Stats().Fetches; all != sum[first]+sum[same]+sum[fresh]+sum[failed] {
		t.Errorf("%d calls, of which %v were counted", all, sum)
	}
}

// startClients runs a broker with clients that have an API key each.
func startClients(t *testing.T, dir string, store providers.Provider, clk clock.Clock, n int) (stop func()) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, "credentials"), 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := audit.Open(audit.Config{Anchor: "none"}, audit.Options{Dir: filepath.Join(dir, "audit"), Clock: clk})
	if err != nil {
		t.Fatal(err)
	}
	b := broker.New(broker.Options{Audit: log, Clock: clk, Dir: dir})
	ctx, cancel := context.WithCancel(t.Context())
	logCtx, logCancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = log.Run(logCtx) })
	wg.Go(func() { _ = b.Run(ctx); logCancel() })
	synctest.Wait()
	list := make([]broker.Client, n)
	for i := range list {
		list[i] = broker.Client{Name: clientName(i), Provider: store, ProviderName: "store",
			Rotation: rotation.Config{Spec: providers.Spec{Ref: providers.Ref{Path: clientName(i)}}, Required: []string{"api_key"}}}
	}
	if err := b.Apply(list); err != nil {
		t.Fatal(err)
	}
	return func() { cancel(); wg.Wait() }
}
