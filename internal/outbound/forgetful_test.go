package outbound_test

import (
	"bytes"
	"net"
	"testing"

	"credentialbroker/internal/outbound"
)

// A record's header and content come apart, whatever the network does, and the
// buffers that took them are wiped to their ends.
func TestForgetful(t *testing.T) {
	stream := []byte("\x17\x03\x03\x00\x06secret\x15\x03\x03\x00\x00\x17\x03\x03\x01\x00" + string(bytes.Repeat([]byte("s"), 256)))
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		defer theirs.Close()
		for _, n := range []int{3, 8, 2, 3, 100, len(stream)} { // odd pieces
			n = min(n, len(stream))
			if _, err := theirs.Write(stream[:n]); err != nil {
				return
			}
			stream = stream[n:]
		}
	}()
	f := &outbound.Forgetful{Conn: ours}
	small, large := make([]byte, 16), make([]byte, 512)
	var whole []byte
	for _, want := range []string{"\x17\x03\x03", "\x00\x06", "secret", "\x15\x03", "\x03\x00\x00", "\x17\x03\x03\x01\x00"} {
		n, err := f.Read(small[5:])
		if err != nil || string(small[5:5+n]) != want {
			t.Fatalf("read %q, %v, want %q", small[5:5+n], err, want)
		}
		whole = append(whole, small[5:5+n]...)
	}
	n, err := f.Read(small)
	for err == nil {
		whole = append(whole, small[:n]...)
		small = large // TLS moves to a larger one
		n, err = f.Read(small)
	}
	if len(whole) != 277 {
		t.Errorf("read %d bytes", len(whole))
	}
	f.Wipe()
	if bytes.ContainsAny(large, "s") {
		t.Errorf("left %q", large)
	}
}
