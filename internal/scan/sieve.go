package scan

import (
	"encoding/binary"
	"math/bits"
)

// sieve finds the windows of one class. The maps are shared, the hasher is not.
type sieve struct {
	h      *hasher
	v      view
	stride int
	size   int // bits of an index into quick
	quick  []uint64
	table  map[uint64]struct{}
}

// hit is a window that passed.
type hit struct {
	at, width int
	entry     uint64
}

func newSieve(f *Filter, c *Class) sieve {
	s := sieve{
		h: newHasher(f.Hash, c.Width), v: newView(f.Key, c.Width, c.Entry), stride: c.Stride,
		quick: make([]uint64, len(c.Quick)/8), table: make(map[uint64]struct{}, len(c.Table)/c.Entry),
	}
	s.size = bits.Len(uint(len(s.quick))) - 1 + 6
	for i := range s.quick {
		s.quick[i] = binary.LittleEndian.Uint64(c.Quick[8*i:])
	}
	for t := c.Table; len(t) > 0; t = t[c.Entry:] {
		var e [8]byte
		copy(e[:], t[:c.Entry])
		s.table[binary.LittleEndian.Uint64(e[:])] = struct{}{}
	}
	return s
}

// find appends the hits at from, from+stride, … before to.
func (s *sieve) find(b []byte, from, to int, hits []hit) []hit {
	to = min(to, len(b)-s.h.width+1)
	if s.h.width > 16 {
		return s.wide(b, from, to, hits)
	}
	width, far := s.h.width, s.h.width-8
	k0, k1 := s.h.quick[0], s.h.quick[1]
	factor, shift, quick := s.v.quick, 32-s.size, s.quick
	for p := from; p < to; p += s.stride {
		w := b[p : p+width]
		hi, lo := bits.Mul64(binary.LittleEndian.Uint64(w)^k0, binary.LittleEndian.Uint64(w[far:])^k1)
		q := uint32((hi^lo)>>(64-quickBits)) * factor >> shift
		if quick[q>>6]>>(q&63)&1 != 0 {
			hits = s.pass(w, p, hits)
		}
	}
	return hits
}

// wide is find for windows of more than 16 bytes.
func (s *sieve) wide(b []byte, from, to int, hits []hit) []hit {
	width := s.h.width
	k0, k1, k2, k3 := s.h.quick[0], s.h.quick[1], s.h.quick[2], s.h.quick[3]
	factor, shift, quick := s.v.quick, 32-s.size, s.quick
	for p := from; p < to; p += s.stride {
		w := b[p : p+width]
		hi, lo := bits.Mul64(binary.LittleEndian.Uint64(w)^k0, binary.LittleEndian.Uint64(w[width-8:])^k1)
		hi2, lo2 := bits.Mul64(binary.LittleEndian.Uint64(w[8:])^k2, binary.LittleEndian.Uint64(w[width-16:])^k3)
		q := uint32((hi^lo^hi2^lo2)>>(64-quickBits)) * factor >> shift
		if quick[q>>6]>>(q&63)&1 != 0 {
			hits = s.pass(w, p, hits)
		}
	}
	return hits
}

// pass looks at a window whose quick hash is in the bitmap.
func (s *sieve) pass(w []byte, at int, hits []hit) []hit {
	e := s.v.entry(s.h.strong(w))
	if _, ok := s.table[e]; ok {
		hits = append(hits, hit{at, s.h.width, e})
	}
	return hits
}
