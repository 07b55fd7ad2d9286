package outbound

import (
	"net"
	"sync"
)

// Forgetful is a connection below TLS. It remembers the buffers that it was
// asked to read into, since TLS decrypts in the very buffer that it reads into,
// to wipe them when nobody reads any more. It hands out a record's header
// (RFC 8446 §5.1) and its content apart: read together, they could be moved to
// a larger buffer, of which only the free part would be shown here.
type Forgetful struct {
	net.Conn
	header []byte // of the record to come, as far as it was read
	left   int    // bytes left of the current record

	mu    sync.Mutex
	given [][]byte
}

// Read is called by one goroutine at a time.
func (f *Forgetful) Read(p []byte) (int, error) {
	const headerLen = 5
	f.remember(p)
	want := headerLen - len(f.header)
	if f.left > 0 {
		want = f.left
	}
	n, err := f.Conn.Read(p[:min(want, len(p))])
	if f.left > 0 {
		f.left -= n
	} else if f.header = append(f.header, p[:n]...); len(f.header) == headerLen {
		f.left, f.header = int(f.header[3])<<8|int(f.header[4]), f.header[:0]
	}
	return n, err
}

// Wipe clears every buffer that was read into. Nobody may read any more.
func (f *Forgetful) Wipe() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.given {
		clear(b)
	}
	f.given = nil
}

// remember keeps the largest part seen of each buffer; parts of the same one
// end at the same place.
func (f *Forgetful) remember(p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p = p[:cap(p)]
	for i, b := range f.given {
		if &b[len(b)-1] == &p[len(p)-1] {
			if len(p) > len(b) {
				f.given[i] = p
			}
			return
		}
	}
	f.given = append(f.given, p)
}
