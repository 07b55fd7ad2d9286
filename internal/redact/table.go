package redact

import (
	"encoding/binary"
	"errors"
)

// Rules of this file:
//   - eight bytes are looked at together, at every stride-th place; every eight
//     bytes of a value are in the table, so that one such place lies in
//     whatever is long enough to be masked;
//   - a window that is in the bitmap may be one; the map says of which values.

const (
	window    = 8
	maxStride = firmAt - window + 1
	sieveBits = 20 // 128 KiB: it stays in the second cache
	firmAt    = 16 // bytes in a row that are hardly there by chance
	joinAt    = 4  // bytes of a value that go on behind a line end
)

// table finds pieces of values. It is immutable.
type table struct {
	stride   int
	sieve    [1 << sieveBits / 64]uint64
	windows  map[uint64]int // the first of its places
	places   []place
	patterns [][]byte
	bytes    [256]bool // that are in a value
}

// place is where a window lies in a pattern.
type place struct {
	pattern, offset int
	next            int // place of the same window; 0: none
}

func newTable(patterns [][]byte) (*table, error) {
	t := &table{stride: maxStride, windows: map[uint64]int{}, places: make([]place, 1), patterns: patterns}
	for i, p := range patterns {
		if len(p) < window || len(p) > maxValue {
			return nil, errors.New("a value of fewer than 8 bytes, or more than 128 KiB, cannot be masked")
		}
		t.stride = min(t.stride, len(p)-window+1)
		for o := range len(p) - window + 1 {
			w := binary.LittleEndian.Uint64(p[o:])
			h := hash(w)
			t.sieve[h>>6] |= 1 << (h & 63)
			t.places = append(t.places, place{i, o, t.windows[w]})
			t.windows[w] = len(t.places) - 1
		}
		for _, c := range p {
			t.bytes[c] = true
		}
	}
	return t, nil
}

func hash(w uint64) uint32 { return uint32(w * 0x9E3779B97F4A7C15 >> (64 - sieveBits)) }

// find gives the first piece of a value that has a window in b[from:], and
// from where to go on. It may begin before from. Without any, start is len(b).
func (t *table) find(b []byte, from int) (start, end, next int) {
	if t == nil || len(t.windows) == 0 {
		return len(b), len(b), len(b)
	}
	stride, sieve := t.stride, &t.sieve
	for p := from; p+window <= len(b); p += stride {
		w := binary.LittleEndian.Uint64(b[p:])
		h := uint32(w * 0x9E3779B97F4A7C15 >> (64 - sieveBits)) // hash, in line
		if sieve[h>>6]>>(h&63)&1 != 0 {
			if start, end = t.look(b, p, w); start < end {
				// Another one may overlap the end of this.
				return start, end, max(p+stride, end-firmAt)
			}
		}
	}
	return len(b), len(b), len(b)
}

// look says what the window w at p is part of.
func (t *table) look(b []byte, p int, w uint64) (start, end int) {
	start, end = p, p
	for i := t.windows[w]; i != 0; i = t.places[i].next {
		pattern, o := t.patterns[t.places[i].pattern], t.places[i].offset
		before, after := back(pattern[:o], b[:p]), ahead(pattern[o:], b[p:])
		if before+after < min(firmAt, len(pattern)) {
			continue
		}
		start = min(start, p-before-joinBack(pattern[:o-before], b[:p-before]))
		end = max(end, p+after+joinAhead(pattern[o+after:], b[p+after:]))
	}
	return start, end
}

// ahead is how many bytes a and b begin with together.
func ahead(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// back is how many bytes a and b end with together.
func back(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[len(a)-1-i] != b[len(b)-1-i] {
			return i
		}
	}
	return n
}

// joinAhead is how much of b belongs to the rest of a value whose lines were
// broken by the writer.
func joinAhead(rest, b []byte) int {
	n := 0
	for len(rest) > 0 {
		gap := lineEnd(b[n:])
		more := ahead(rest, b[n+gap:])
		if gap == 0 || more < min(joinAt, len(rest)) {
			break
		}
		n += gap + more
		rest = rest[more:]
	}
	return n
}

// joinBack is joinAhead for what comes before.
func joinBack(rest, b []byte) int {
	n := 0
	for len(rest) > 0 {
		left := b[:len(b)-n]
		gap := 0
		for gap < 2 && gap < len(left) && lineEnd(left[len(left)-gap-1:]) == gap+1 {
			gap++
		}
		more := back(rest, left[:len(left)-gap])
		if gap == 0 || more < min(joinAt, len(rest)) {
			break
		}
		n += gap + more
		rest = rest[:len(rest)-more]
	}
	return n
}

// lineEnd is the length of the line end at the front of b.
func lineEnd(b []byte) int {
	switch {
	case len(b) > 0 && b[0] == '\n':
		return 1
	case len(b) > 1 && b[0] == '\r' && b[1] == '\n':
		return 2
	}
	return 0
}

// open is how many bytes at the end of b may be the beginning of a piece.
func (t *table) open(b []byte) int {
	n := 0
	for t != nil && n < min(len(b), firmAt-1) && t.bytes[b[len(b)-1-n]] {
		n++
	}
	return n
}
