package scan

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// Rules of this file:
//   - a window's strong hash is AES-CBC-MAC, of a fixed length for each key
//     (each width has its own), which is a pseudorandom function;
//   - the quick hash is not cryptographic: few bits of it are kept, and it
//     always covers the whole window, so that no piece can be guessed alone;
//   - a filter is made anew for each scan: what it shows of a hash is a function
//     of that hash and of the scan's own key.

const (
	minWidth  = 8
	maxWidth  = 32
	maxStride = 16

	quickBits   = 24 // of the quick hash
	quickFactor = 64 // bits of a bitmap for each window: one place in 64 passes by chance
	spare       = 24 // bits of an entry beyond log2 of their number: of these, one in 2^24
)

// Filter tells a scanner where to look. It is made for one scan, by
// [Index.Filter], and has a JSON form.
//
// What its reader learns: how many windows there are, their widths, the
// length of the longest form, and for each window about 33 bits that depend on
// 15 or 16 bytes of a value together (on the whole of a shorter one). No
// smaller piece can be tried alone: an offline guess needs the entropy of 15
// bytes of that secret. For a random secret that is out of reach; a secret that
// a person has thought up can be tried against a word list, as against a hash.
// Hand it only to administrators, and never store it.
type Filter struct {
	Key     []byte  `json:"key"`    // this scan's
	Hash    []byte  `json:"hash"`   // the key of the hashes, one daemon's life long
	Before  int     `json:"before"` // bytes of context that a candidate needs before its window
	After   int     `json:"after"`  // and behind it
	Classes []Class `json:"classes"`
}

// Class is the windows of one width.
type Class struct {
	Width  int    `json:"width"`  // bytes of a window
	Stride int    `json:"stride"` // every place that is a multiple of it is looked at
	Entry  int    `json:"entry"`  // bytes of an entry in Table
	Quick  []byte `json:"quick"`  // a bitmap over the quick hash, little-endian words; a power of two of them
	Table  []byte `json:"table"`  // the truncated hashes
}

// check refuses what no Index makes.
func (f *Filter) check() error {
	if len(f.Key) != 32 || len(f.Hash) != 32 || f.Before < 0 || f.After < 0 || f.Before > maxForm || f.After > maxForm {
		return errors.New("scan: the filter is not one that this version understands: are broker and brokerd of one version?")
	}
	for _, c := range f.Classes {
		words := len(c.Quick) / 8
		switch {
		case c.Width < minWidth || c.Width > maxWidth,
			c.Stride < 1 || c.Stride > maxStride || bits.OnesCount(uint(c.Stride)) != 1,
			c.Entry < 1 || c.Entry > 8 || len(c.Table)%c.Entry != 0,
			len(c.Quick)%8 != 0 || bits.OnesCount(uint(words)) != 1 || words > 1<<(quickBits-6):
			return fmt.Errorf("scan: the filter has an impossible class of width %d: are broker and brokerd of one version?", c.Width)
		}
	}
	return nil
}

// derive makes a key for one purpose.
func derive(key []byte, purpose string, width int) []byte {
	h := hmac.New(sha256.New, key)
	fmt.Fprintf(h, "credential-broker scan 1 %s %d", purpose, width)
	return h.Sum(nil)
}

// window is what is known of one window.
type window [16]byte

// hasher computes the hashes of windows of one width. It is not for
// concurrent use.
type hasher struct {
	width int
	quick [4]uint64
	mac   cipher.Block
	buf   [maxWidth]byte
}

func newHasher(key []byte, width int) *hasher {
	h := &hasher{width: width}
	k := derive(key, "quick", width)
	for i := range h.quick {
		h.quick[i] = binary.LittleEndian.Uint64(k[8*i:])
	}
	var err error
	if h.mac, err = aes.NewCipher(derive(key, "mac", width)[:16]); err != nil {
		panic(err) // a key of 16 bytes is right
	}
	return h
}

// fast is the quick hash of b[:width], in quickBits bits. The scanner's loop
// (class.find) says the same in line.
func (h *hasher) fast(b []byte) uint32 {
	q := fold(binary.LittleEndian.Uint64(b)^h.quick[0], binary.LittleEndian.Uint64(b[h.width-8:])^h.quick[1])
	if h.width > 16 {
		q ^= fold(binary.LittleEndian.Uint64(b[8:])^h.quick[2], binary.LittleEndian.Uint64(b[h.width-16:])^h.quick[3])
	}
	return uint32(q >> (64 - quickBits))
}

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// strong is the hash of b[:width].
func (h *hasher) strong(b []byte) window {
	clear(h.buf[copy(h.buf[:], b[:h.width]):])
	h.mac.Encrypt(h.buf[:16], h.buf[:16])
	if h.width > 16 {
		for i := range 16 {
			h.buf[i] ^= h.buf[16+i]
		}
		h.mac.Encrypt(h.buf[:16], h.buf[:16])
	}
	w := window(h.buf[:16])
	clear(h.buf[:])
	return w
}

// view is what one scan sees of hashes.
type view struct {
	quick uint32 // odd, times 1<<(32-quickBits): a product's top bits are the place
	table [2]uint64
	mask  uint64
}

func newView(key []byte, width, entry int) view {
	k := derive(key, "view", width)
	return view{
		quick: (binary.LittleEndian.Uint32(k) | 1) << (32 - quickBits),
		table: [2]uint64{binary.LittleEndian.Uint64(k[8:]), binary.LittleEndian.Uint64(k[16:])},
		mask:  ^uint64(0) >> (64 - 8*entry),
	}
}

// bit is the place of a quick hash in a bitmap of 1<<n bits.
func (v *view) bit(quick uint32, n int) uint32 {
	return quick * v.quick >> (32 - n)
}

// entry is the place of a hash in the table.
func (v *view) entry(w window) uint64 {
	return fold(binary.LittleEndian.Uint64(w[:])^v.table[0], binary.LittleEndian.Uint64(w[8:])^v.table[1]) & v.mask
}
