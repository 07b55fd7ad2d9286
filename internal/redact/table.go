package redact

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// Rules of this file:
//   - eight bytes are looked at together, at every stride-th place. A pattern
//     has its first stride windows of eight bytes in the table, so that one of
//     them lies at such a place wherever it begins;
//   - a window that is in the bitmap may be one; the map says of which patterns.

const (
	window    = 8
	maxStride = 8
	sieveBits = 18 // 32 KiB: it stays in the first cache
	firmAt    = 16 // bytes that are hardly there by chance
)

// table finds patterns. It is immutable.
type table struct {
	stride  int
	sieve   [1 << sieveBits / 64]uint64
	windows map[uint64][]at
	// begins are the beginnings of patterns, by first byte: as much as windows
	// may miss at the end of a buffer.
	begins [256][]begin
}

// begin is the beginning of patterns, and how much of them is firm.
type begin struct {
	text []byte
	firm int
}

// at is a window's place in a pattern.
type at struct {
	pattern []byte
	offset  int
}

// match is what find has found: b[start:end] is a pattern, or, if it is not
// whole, the beginning of one at the end of b.
type match struct {
	start, end int
	whole      bool
	firm       bool // hardly there by chance
}

func newTable(patterns [][]byte) (*table, error) {
	t := &table{stride: maxStride, windows: map[uint64][]at{}}
	for _, p := range patterns {
		if len(p) < window || len(p) > maxValue {
			return nil, errors.New("a value of fewer than 8 bytes, or more than 128 KiB, cannot be masked")
		}
		t.stride = min(t.stride, len(p)-window+1)
	}
	for _, p := range patterns {
		for o := range t.stride {
			w := binary.LittleEndian.Uint64(p[o:])
			h := hash(w)
			t.sieve[h>>6] |= 1 << (h & 63)
			t.windows[w] = append(t.windows[w], at{p, o})
		}
		t.begin(p)
	}
	return t, nil
}

func (t *table) begin(p []byte) {
	text, list := p[:min(len(p), window+maxStride-2)], t.begins[p[0]]
	for i := range list {
		if bytes.Equal(list[i].text, text) {
			list[i].firm = min(list[i].firm, firm(p))
			return
		}
	}
	t.begins[p[0]] = append(list, begin{text, firm(p)})
}

// firm is how many bytes of a pattern are hardly there by chance.
func firm(p []byte) int { return min(firmAt, max(window, len(p)/4)) }

func hash(w uint64) uint32 { return uint32(w * 0x9E3779B97F4A7C15 >> (64 - sieveBits)) }

// find gives the first match in b[from:], the longest if several begin there.
// One that may still become longer than b is not whole. Without any, start is
// len(b).
func (t *table) find(b []byte, from int) match {
	none := match{start: len(b), end: len(b)}
	if t == nil || len(t.windows) == 0 {
		return none
	}
	stride, sieve := t.stride, &t.sieve
	for p := from; p+window <= len(b); p += stride {
		w := binary.LittleEndian.Uint64(b[p:])
		h := uint32(w * 0x9E3779B97F4A7C15 >> (64 - sieveBits)) // hash, in line
		if sieve[h>>6]>>(h&63)&1 != 0 {
			if m := t.look(b, from, p, w); m.start < len(b) {
				return m
			}
		}
	}
	for s := max(from, len(b)-(window+maxStride-2)); s < len(b); s++ {
		rest, m := b[s:], none
		for _, begin := range t.begins[rest[0]] {
			if bytes.HasPrefix(begin.text, rest) {
				m = match{start: s, end: len(b), firm: m.firm || len(rest) >= begin.firm}
			}
		}
		if m.start < len(b) {
			return m
		}
	}
	return none
}

// look says what the window w at p is part of.
func (t *table) look(b []byte, from, p int, w uint64) match {
	best := match{start: len(b), end: len(b)}
	for _, a := range t.windows[w] {
		s := p - a.offset
		if s < from || s > best.start {
			continue
		}
		n := common(a.pattern, b[s:])
		m := match{start: s, end: s + n, whole: n == len(a.pattern)}
		switch m.firm = m.whole || n >= firm(a.pattern); {
		case !m.whole && m.end < len(b):
			continue
		case s < best.start:
			best = m
		case !m.whole || !best.whole:
			best = match{start: s, end: len(b), firm: best.firm || m.firm}
		case m.end > best.end:
			best = m
		}
	}
	return best
}

// common is how many bytes a and b begin with together.
func common(a, b []byte) int {
	n := min(len(a), len(b))
	if bytes.Equal(a[:n], b[:n]) {
		return n
	}
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
