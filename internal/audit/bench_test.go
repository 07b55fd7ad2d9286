package audit

import (
	"errors"
	"io"
	"strconv"
	"sync"
	"testing"
)

func handover() Event {
	return Event{Type: TokenHandover, Client: "vdab", Version: "7", Fingerprint: "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo", JTI: "0d2c1f7e-4f0e-4f39-9a53-0d2c1f7e4f0e",
		Caller: &Caller{PID: 4711, Start: 123456, UID: 33, GID: 33, Unit: "php8.2-fpm.service", LoginUID: 4294967295}, Detail: map[string]string{"surface": "token"}}
}

// BenchmarkRecord is the price of a first hand-over, with 1, 8 and 64 callers
// at once: time, writes to the disk and bytes of log per record.
func BenchmarkRecord(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(strconv.Itoa(callers), func(b *testing.B) {
			l, stop := start(b, quiet, Options{Dir: logDir(b)}, func(l *Log) { l.limits.segment = 1 << 40 })
			record(b, l, handover())
			before, size := l.Status(), l.disk.end.off
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for c := range callers {
				wg.Go(func() {
					for range b.N/callers + min(1, max(0, b.N%callers-c)) {
						if err := l.Record(b.Context(), handover()); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			if err := stop(); err != nil {
				b.Fatal(err)
			}
			s := l.Status()
			b.ReportMetric(float64(s.Syncs-before.Syncs)/float64(b.N), "syncs/op")
			b.ReportMetric(float64(l.disk.end.off-size)/float64(b.N), "B-log/op")
		})
	}
}

// BenchmarkNote is the price of an event that nobody waits for.
func BenchmarkNote(b *testing.B) {
	l, _ := start(b, quiet, Options{Dir: logDir(b)}, func(l *Log) { l.limits.queue = 1 << 30 })
	e := handover()
	b.ReportAllocs()
	for b.Loop() {
		l.Note(e)
	}
}

// BenchmarkVerify is the speed of broker audit verify.
func BenchmarkVerify(b *testing.B) {
	dir := logDir(b)
	l, stop := start(b, quiet, Options{Dir: dir}, nil)
	for range 7000 {
		l.Note(handover())
	}
	if err := stop(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(l.disk.end.off)
	b.ReportAllocs()
	for b.Loop() {
		if r, err := Verify(dir, nil); err != nil || !r.OK() {
			b.Fatal(r, err)
		}
	}
}

// BenchmarkFollow is the price of an entry to whoever follows the log: of
// alarms alone, and of all.
func BenchmarkFollow(b *testing.B) {
	const n = 7000
	dir := logDir(b)
	l, stop := start(b, quiet, Options{Dir: dir}, nil)
	for range n {
		l.Note(handover())
	}
	if err := stop(); err != nil {
		b.Fatal(err)
	}
	size := l.disk.end.off
	b.Run("alarms", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			a, err := AlarmsAfter(dir, 0)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := a.Next(); !errors.Is(err, io.EOF) || a.Seq() < n {
				b.Fatal(err, a.Seq())
			}
			a.Close()
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/entry")
	})
	b.Run("all", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			for _, err := range Read(dir, 0) {
				if err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/entry")
	})
}
