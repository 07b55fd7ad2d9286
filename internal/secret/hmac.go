package secret

import "hash"

// HMAC is that of RFC 2104 §2 over message, with the hash h and s as its key.
// crypto/hmac would keep the key, with a mask that everybody knows, in memory
// that nobody can reach to wipe.
func (s Secret) HMAC(h hash.Hash, message []byte) ([]byte, error) {
	const inner, outer = 0x36, 0x5c
	block := make([]byte, h.BlockSize())
	defer clear(block)
	err := s.Use(func(k []byte) error {
		if len(k) <= len(block) {
			copy(block, k)
			return nil
		}
		h.Write(k)
		long := h.Sum(nil)
		copy(block, long)
		clear(long)
		h.Write(make([]byte, len(block))) // the hash holds the key's end until something takes its place
		h.Reset()
		return nil
	})
	if err != nil {
		return nil, err
	}
	mask := func(with byte) {
		for i := range block {
			block[i] ^= with
		}
	}
	mask(inner)
	h.Write(block)
	h.Write(message)
	digest := h.Sum(nil)
	mask(inner ^ outer)
	h.Reset()
	h.Write(block)
	h.Write(digest)
	return h.Sum(digest[:0]), nil
}
