package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"credentialbroker/internal/broker"
)

// scrub gives the memory through which secrets passed back to the kernel,
// within a minute of their use: the collector alone leaves the bytes where
// they were until something else needs the place.
func scrub(ctx context.Context, b *broker.Broker) error {
	const pause = 15 * time.Second
	tick := time.NewTicker(pause)
	defer tick.Stop()
	const rounds = 2 // on a busy machine cleanups may run after the collections of the first
	var done uint64
	left := 0
	for {
		pace()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if n := b.SecretUses(); n != done {
			done, left = n, rounds
		}
		if left > 0 {
			left--
			runtime.GC() // what has a cleanup is free after the second collection alone
			debug.FreeOSMemory()
		}
	}
}

// pace gives the collector room: with a heap of a few megabytes it would run a
// hundred times a second under load, for answers that are garbage at once. A
// large heap is left to the runtime's own measure.
func pace() {
	const room = 32 << 20
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	percent := uint64(100)
	if n := live[0].Value.Uint64(); n > 0 {
		percent = min(max(100, room*100/n), 800)
	}
	debug.SetGCPercent(int(percent))
}
