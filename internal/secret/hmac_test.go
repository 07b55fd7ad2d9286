package secret

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"slices"
	"strings"
	"testing"
)

func TestHMAC(t *testing.T) {
	for _, h := range []func() hash.Hash{sha256.New, sha512.New384, sha512.New} {
		for n := range 300 {
			key, message := bytes.Repeat([]byte{byte(n), 7}, n)[:n], []byte(strings.Repeat("m", n))
			m := hmac.New(h, key)
			m.Write(message)
			got, err := New(slices.Clone(key)).HMAC(h(), message)
			if err != nil || !bytes.Equal(got, m.Sum(nil)) {
				t.Fatalf("a key of %d bytes: %x, %v", n, got, err)
			}
		}
	}
	s := FromString("key")
	s.Wipe()
	if _, err := s.HMAC(sha256.New(), nil); err == nil {
		t.Error("a wiped key signs")
	}
}
