package audit

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/clock"
)

func TestNoLog(t *testing.T) {
	dir := logDir(t)
	if _, err := Verify(dir, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Verify: %v", err)
	}
	for _, err := range Read(dir, 0) {
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Read: %v", err)
		}
	}
	for _, err := range Tail(t.Context(), dir, 1, false) {
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Tail: %v", err)
		}
	}
}

func TestReadFrom(t *testing.T) {
	dir, _ := written(t)
	all := entries(t, dir)
	for from := range uint64(len(all) + 3) {
		var got []Entry
		for e, err := range Read(dir, from) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e)
		}
		want := all[min(len(all), int(max(from, 1))-1):]
		if len(got) != len(want) || len(got) > 0 && got[0].Hash != want[0].Hash {
			t.Fatalf("from %d: %d entries, want %d", from, len(got), len(want))
		}
	}
	numbers, _ := segments(dir)
	if c, err := seek(dir, uint64(len(all))); err != nil || c.number != numbers[len(numbers)-1]-1 {
		t.Errorf("the last entry is sought after file %d of %v, %v", c.number, numbers, err)
	}
	for range Read(dir, 0) {
		break // may be left at any time
	}
}

func TestTail(t *testing.T) {
	dir, _ := written(t)
	all := entries(t, dir)
	for n := range len(all) + 3 {
		got := 0
		for e, err := range Tail(t.Context(), dir, n, false) {
			if err != nil {
				t.Fatal(err)
			}
			if want := all[max(0, len(all)-n)+got]; e.Hash != want.Hash {
				t.Fatalf("n %d: entry %d, want %d", n, e.Seq, want.Seq)
			}
			got++
		}
		if got != min(n, len(all)) {
			t.Errorf("the last %d: %d", n, got)
		}
	}
}

// TestTailFollows a running log over the boundaries of files, and over a line
// that is half written when it looks.
func TestTailFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := logDir(t)
		l, stop := start(t, quiet, Options{Dir: dir, Clock: clock.NewBubble()}, func(l *Log) { l.limits.segment = 1000 })
		record(t, l, Event{Type: TokenHandover})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		var seen []uint64
		go func() {
			defer close(done)
			for e, err := range Tail(ctx, dir, 1, true) {
				if err != nil {
					t.Error(err)
				}
				seen = append(seen, e.Seq)
			}
		}()
		synctest.Wait()
		for range 20 {
			record(t, l, Event{Type: TokenHandover})
			time.Sleep(300 * time.Millisecond)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		// By hand: half an entry, and a second later the rest of it.
		all := entries(t, dir)
		last := all[len(all)-1]
		line := forged(Entry{Seq: last.Seq + 1, Prev: last.Hash, Event: Event{Type: TokenHandover}})
		path := filepath.Join(dir, last.File)
		appendFile(t, path, line[:40])
		time.Sleep(time.Second)
		appendFile(t, path, line[40:])
		time.Sleep(time.Second)
		cancel()
		<-done
		for i, seq := range seen {
			if seq != seen[0]+uint64(i) {
				t.Fatalf("seen %v", seen)
			}
		}
		if n := len(seen); n < 21 || seen[0] != 2 || seen[n-1] != last.Seq+1 {
			t.Errorf("seen %v of %d", seen, last.Seq)
		}
	})
}

// FuzzParseLine: whatever stands in a file, reading it neither fails badly nor
// takes a line whose hash does not fit.
func FuzzParseLine(f *testing.F) {
	f.Add(bytes.TrimSuffix(forged(Entry{Seq: 1, Event: Event{Type: TokenHandover, Caller: &Caller{}, Detail: map[string]string{"a": "b"}}}), []byte("\n")))
	f.Add([]byte(`{"seq":1,"type":"x","hash":"` + strings.Repeat("0", 64) + `"}`))
	f.Add([]byte("{}"))
	f.Add(bytes.TrimSuffix(forged(Entry{Event: Event{Type: TokenHandover}}), []byte("\n")))
	f.Add(bytes.TrimSuffix(forged(Entry{Seq: 1}), []byte("\n")))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := parseLine(line)
		if err == nil && (e.Seq == 0 || e.Type == "" || len(e.Hash) != hashLen) {
			t.Errorf("taken: %+v", e)
		}
	})
}

// FuzzRead puts anything between two good files.
func FuzzRead(f *testing.F) {
	head := forged(Entry{Seq: 1, Event: Event{Type: LogSegment, Detail: map[string]string{"format": "1", "log": "L"}}})
	f.Add([]byte("hello\n\n{"))
	f.Add(head)
	f.Add(bytes.Repeat([]byte("x"), maxLine+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		for name, content := range map[string][]byte{segmentName(1): head, segmentName(2): b, segmentName(3): head} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		read := 0
		for _, err := range Read(dir, 0) {
			if fatal(err) {
				t.Fatal(err)
			}
			read++
		}
		if most := bytes.Count(b, []byte("\n")) + 3; read > most || read < 2 {
			t.Errorf("%d lines read, at most %d", read, most)
		}
		if _, err := Verify(dir, nil); err != nil {
			t.Error(err)
		}
		if _, _, err := lastEntry(filepath.Join(dir, segmentName(2))); err != nil {
			t.Error(err)
		}
	})
}
