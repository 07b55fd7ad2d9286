// Package secret holds values that must not be printed by accident and that
// are wiped when done.
//
// The bytes of a [Secret] live outside the Go heap, in memory that the kernel
// neither swaps nor dumps and, where it offers memfd_secret(2), that no other
// reader of the process's memory can see. The only way to the bytes is
// [Secret.Use], which makes every place where a secret leaves easy to find:
// search for ".Use(".
package secret

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
)

// Redacted is what every printing of a Secret shows.
const Redacted = "[secret]"

// ErrWiped is returned by Use once the value has been wiped.
var ErrWiped = errors.New("secret: already wiped")

// A Secret is a value that cannot be printed by accident. It is a handle:
// copies share the bytes, and wiping one wipes all. The zero Secret is empty.
// All methods may be called from many goroutines.
type Secret struct{ s *slot }

// New moves b into protected memory, and wipes b itself.
func New(b []byte) Secret {
	defer clear(b)
	if len(b) == 0 {
		return Secret{}
	}
	s := vault.alloc(len(b))
	copy(s.mem, b)
	// A value that is forgotten rather than wiped is wiped by the collector.
	runtime.AddCleanup(s, (*block).release, s.block)
	return Secret{s}
}

// FromString moves a copy of v into protected memory. The string itself cannot
// be wiped: this is for values that arrive as strings from an SDK or a test.
func FromString(v string) Secret { return New([]byte(v)) }

// Use calls f with the bytes. They must not be kept, changed or passed to
// another goroutine beyond the call; a wipe that happens meanwhile takes
// effect when f returns. It returns f's error, or ErrWiped.
func (s Secret) Use(f func(b []byte) error) error {
	if s.s == nil {
		return f(nil)
	}
	if !s.s.acquire() {
		return ErrWiped
	}
	defer func() {
		s.s.done()
		runtime.KeepAlive(s.s)
	}()
	return f(s.s.mem)
}

// AppendTo appends the bytes to dst, whose owner then has to wipe it.
func (s Secret) AppendTo(dst []byte) ([]byte, error) {
	err := s.Use(func(b []byte) error { dst = append(dst, b...); return nil })
	return dst, err
}

// Len is the number of bytes, also after a wipe.
func (s Secret) Len() int {
	if s.s == nil {
		return 0
	}
	return len(s.s.mem)
}

// Empty says whether there are no bytes.
func (s Secret) Empty() bool { return s.Len() == 0 }

// Equal compares in constant time. A wiped value equals nothing.
func (s Secret) Equal(o Secret) bool {
	equal := false
	_ = s.Use(func(a []byte) error {
		return o.Use(func(b []byte) error {
			equal = subtle.ConstantTimeCompare(a, b) == 1
			return nil
		})
	})
	return equal
}

// Clone makes an independent copy, which is wiped on its own.
func (s Secret) Clone() (Secret, error) {
	b, err := s.AppendTo(nil)
	if err != nil {
		return Secret{}, err
	}
	return New(b), nil
}

// Wipe overwrites the bytes, at once or when the last Use in progress returns.
func (s Secret) Wipe() {
	if s.s != nil {
		s.s.kill()
		runtime.KeepAlive(s.s)
	}
}

// Format prints Redacted for every verb, %#v and %x included.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, Redacted) }

// String returns Redacted.
func (Secret) String() string { return Redacted }

// LogValue returns Redacted.
func (Secret) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalText returns Redacted, so that no encoder writes the value.
func (Secret) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// MarshalJSON returns Redacted, so that no encoder writes the value.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + Redacted + `"`), nil }
