package scan

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"strings"
	"time"
)

const (
	chunk    = 256 << 10 // bytes that are sieved at a time: they stay in the cache
	batch    = 16        // candidates that are asked about at a time
	maxMemos = 4096
	mask     = "[secret]"
)

// worker is the state of one goroutine.
type worker struct {
	s      *Scanner
	sieves []sieve
	buf    []byte
	hits   []hit
	misses map[memoKey]int // in this file: places that passed and held no value
	passed bool            // places were left out for that
}

const (
	// maxMisses bounds the places of one file that pass by one entry of the
	// filter and hold no value. By chance there is hardly one; whoever knows a
	// value can write pieces of it, each of which costs a question.
	maxMisses = 64
	// maxAllMisses bounds them in all files, of which there may be many.
	maxAllMisses = 16 * maxMisses
)

// begin is for a new file, repository or journal; end says, at its end, if not
// all of it was looked at.
func (w *worker) begin() { w.misses, w.passed = map[memoKey]int{}, false }

func (w *worker) end(at spot) {
	if w.passed {
		w.s.unread(at, "it was not wholly read, for it holds many pieces of a value that are not the whole: look at it")
	}
}

// worn says whether an entry has passed too much that was nothing.
func (w *worker) worn(h hit) bool {
	key := memoKey{h.width, h.entry}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	return w.misses[key] >= maxMisses || w.s.misses[key] >= maxAllMisses
}

func (w *worker) missed(h hit) {
	key := memoKey{h.width, h.entry}
	w.misses[key]++
	w.s.mu.Lock()
	w.s.misses[key]++
	w.s.mu.Unlock()
}

// spot is where a text comes from.
type spot struct {
	source, path, member, object, unit string

	time   time.Time
	inName bool
	depth  int             // archives around the text
	left   *int64          // bytes that may still be unpacked; nil outside archives
	inside map[inside]bool // what was found in this file so far, if it is an archive
	packed bool            // the text is an archive, whose members have been scanned
}

type inside struct{ client, field, version, form string }

func (m *Match) inside() inside { return inside{m.Client, m.Field, m.Version, m.Form} }

func (s *Scanner) worker() *worker {
	w := &worker{s: s, sieves: slices.Clone(s.sieves)}
	w.begin()
	for i := range w.sieves {
		w.sieves[i].h = newHasher(s.cfg.Filter.Hash, w.sieves[i].h.width)
	}
	return w
}

// stream scans r to its end. A failure to read is noted; the error is one that
// ends the scan.
func (w *worker) stream(ctx context.Context, at spot, r io.Reader) error {
	before, after := w.s.cfg.Filter.Before, w.s.cfg.Filter.After+maxWidth
	if w.buf == nil {
		w.buf = make([]byte, chunk+before+after)
	}
	var (
		n, next int   // bytes in buf; the first place that was not looked at
		base    int64 // offset of buf
		lines   int   // before buf
		last    = map[inside]int64{}
	)
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		got, err := readFull(r, w.buf[n:])
		n += got
		to := n
		if err == nil {
			to = n - after
		}
		matches, fatal := w.look(ctx, w.buf[:n], next, to)
		if fatal != nil {
			return fatal
		}
		for _, m := range matches {
			offset := base + int64(m.Start)
			if end, ok := last[m.inside()]; ok && offset < end {
				continue // a value that repeats itself matches more than once
			}
			last[m.inside()] = offset + int64(m.End-m.Start)
			w.found(at, m, lines+bytes.Count(w.buf[:m.Start], []byte("\n"))+1, offset)
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				w.s.unread(at, reason(err))
			}
			return nil
		}
		drop := max(0, to-before)
		lines += bytes.Count(w.buf[:drop], []byte("\n"))
		n = copy(w.buf, w.buf[drop:n])
		next, base = to-drop, base+int64(drop)
	}
}

// readFull fills b; err is nil only if it did.
func readFull(r io.Reader, b []byte) (n int, err error) {
	empty := 0
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
		if empty++; m > 0 {
			empty = 0
		} else if empty > 100 && err == nil {
			err = io.ErrNoProgress
		}
	}
	return n, err
}

// found notes a match, unless it is the packed form of one in a member.
func (w *worker) found(at spot, m Match, line int, offset int64) {
	if at.packed && !at.inName && at.inside[m.inside()] {
		return
	}
	if at.inside != nil {
		at.inside[m.inside()] = true
	}
	w.s.add(at, m, line, offset)
}

// look returns the matches for windows in b[from:to], sorted, with Start and
// End in b.
func (w *worker) look(ctx context.Context, b []byte, from, to int) ([]Match, error) {
	w.hits = w.hits[:0]
	for i := range w.sieves {
		w.hits = w.sieves[i].find(b, from, to, w.hits)
	}
	if len(w.hits) == 0 {
		return nil, nil
	}
	var matches []Match
	for hits := w.hits; len(hits) > 0; {
		var ask []Candidate
		var asked []hit
		for len(hits) > 0 && len(ask) < batch {
			h := hits[0]
			hits = hits[1:]
			if known := w.s.remember(b, h); known != nil {
				matches = append(matches, known...)
				continue
			}
			if w.worn(h) {
				w.passed = true
				continue
			}
			lo, hi := max(0, h.at-w.s.cfg.Filter.Before), min(len(b), h.at+h.width+w.s.cfg.Filter.After)
			ask = append(ask, Candidate{At: h.at - lo, Text: slices.Clone(b[lo:hi])})
			asked = append(asked, h)
		}
		if len(ask) == 0 {
			break
		}
		at := make([]int, len(ask)) // ask belongs to Confirm now
		size := make([]int, len(ask))
		for i := range ask {
			at[i], size[i] = ask[i].At, len(ask[i].Text)
		}
		answers, err := w.s.answer(ctx, ask)
		if err != nil {
			return nil, err
		}
		for i, h := range asked {
			if len(answers[i]) == 0 {
				w.missed(h)
			}
			for _, m := range answers[i] {
				if m.Start < 0 || m.Start > at[i] || m.End < m.Start || m.End > size[i] {
					return nil, errors.New("the scan stopped: the daemon's answer does not fit the question")
				}
				m.Start, m.End = m.Start+h.at-at[i], m.End+h.at-at[i]
				matches = append(matches, m)
				w.s.memorise(b, h, m)
			}
		}
	}
	// Forms that resemble each other lead to one place by several windows.
	slices.SortStableFunc(matches, func(a, b Match) int {
		return cmp.Or(a.Start-b.Start, cmp.Compare(a.Client, b.Client), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Version, b.Version))
	})
	return slices.CompactFunc(matches, func(a, b Match) bool { return a.Start == b.Start && a.inside() == b.inside() }), nil
}

// A memo lets a scanner recognise a value that was confirmed before: a log may
// hold the same one a million times. It is a plain hash of a value that the
// file in hand shows in clear.
type memo struct {
	before int // bytes of the value before the window
	sum    [sha256.Size]byte
	match  Match // Start is 0, End the length
}

type memoKey struct {
	width int
	entry uint64
}

// remember returns what is known to stand around h.
func (s *Scanner) remember(b []byte, h hit) (list []Match) {
	s.mu.Lock()
	memos := s.memos[memoKey{h.width, h.entry}]
	s.mu.Unlock()
	for _, m := range memos {
		start := h.at - m.before
		end := start + m.match.End
		if start >= 0 && end <= len(b) && sha256.Sum256(b[start:end]) == m.sum {
			found := m.match
			found.Start, found.End = start, end
			list = append(list, found)
		}
	}
	return list
}

func (s *Scanner) memorise(b []byte, h hit, m Match) {
	memo := memo{before: h.at - m.Start, sum: sha256.Sum256(b[m.Start:m.End]), match: m}
	memo.match.Start, memo.match.End = 0, m.End-m.Start
	s.mu.Lock()
	defer s.mu.Unlock()
	key := memoKey{h.width, h.entry}
	if len(s.memos) < maxMemos && !slices.Contains(s.memos[key], memo) {
		s.memos[key] = append(slices.Clip(s.memos[key]), memo)
	}
}

// name returns a name as it may be shown: without what it holds of our values.
// That its last component holds one is a finding.
func (w *worker) name(ctx context.Context, at spot, name string) (string, error) {
	matches, err := w.look(ctx, []byte(name), 0, len(name))
	if err != nil || len(matches) == 0 {
		return name, err
	}
	var shown strings.Builder
	end := 0
	for _, m := range matches {
		if m.Start >= end {
			shown.WriteString(name[end:m.Start])
			shown.WriteString(mask)
		}
		end = max(end, m.End)
	}
	shown.WriteString(name[end:])
	if at.path == "" {
		at.path = shown.String()
	} else {
		at.member = shown.String()
	}
	at.inName = true
	last := strings.LastIndexByte(strings.TrimRight(name, "/"), '/')
	for _, m := range matches {
		if m.End > last {
			w.found(at, m, 0, int64(m.Start))
		}
	}
	return shown.String(), nil
}
