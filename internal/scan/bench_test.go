package scan

import (
	"bytes"
	"fmt"
	"testing"
)

func BenchmarkSieve(b *testing.B) {
	for name, text := range map[string][]byte{"zeros": make([]byte, 1<<20), "noise": noise(1 << 20), "lines": bytes.Repeat(noise(997), 1040)} {
		for _, n := range []int{150} {
			values := []string{client, apiKey}
			for i := range n {
				values = append(values, token(uint64(i)))
			}
			s, err := New(config(b, index(b, values...)))
			if err != nil {
				b.Fatal(err)
			}
			w := s.worker()
			for i := range w.sieves {
				s := &w.sieves[i]
				b.Run(fmt.Sprintf("%s/%d values/width %d stride %d", name, len(values), s.h.width, s.stride), func(b *testing.B) {
					b.SetBytes(int64(len(text)))
					for b.Loop() {
						s.find(text, 0, len(text), nil)
					}
				})
			}
			b.Run(fmt.Sprintf("%s/%d values/stream", name, len(values)), func(b *testing.B) {
				b.SetBytes(int64(len(text)))
				for b.Loop() {
					if err := w.stream(b.Context(), spot{}, bytes.NewReader(text)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
