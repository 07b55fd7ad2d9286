package gcp

import (
	"context"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"credentialbroker/internal/outbound"
)

// Rules of this file: a value that is read passes through the buffers of gRPC
// and of TLS. None of them may keep it, as memory that the collector has freed
// stays readable until somebody happens to overwrite it. TestNoCopyIsLeft
// searches the memory of a process. A value that is written (Put) may leave a
// copy in a buffer of TLS that nobody outside can reach.

// forgetting makes a client connection that forgets what passed, and how to
// close it.
func forgetting(c outbound.Config, addr string, opts ...grpc.DialOption) (*grpc.ClientConn, func(), error) {
	var mu sync.Mutex
	var below []*forgetful
	opts = append(opts,
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := c.Dial(ctx, addr)
			if err != nil {
				return nil, err
			}
			f := &forgetful{Conn: conn}
			mu.Lock()
			defer mu.Unlock()
			below = append(below, f)
			return f, nil
		}),
		grpc.WithReadBufferSize(0),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{})))
	// passthrough: names are resolved where the connection is made, by the
	// proxy if there is one.
	conn, err := grpc.NewClient("passthrough:///"+addr, opts...)
	if err != nil {
		return nil, nil, err
	}
	return conn, func() {
		_ = conn.Close() // waits for its readers
		mu.Lock()
		defer mu.Unlock()
		for _, f := range below {
			f.wipe()
		}
	}, nil
}

// wiping is the pool of the codec's buffers: none is used twice or left with
// content.
type wiping struct{}

// Get makes a buffer.
func (wiping) Get(n int) *[]byte {
	b := make([]byte, n)
	return &b
}

// Put wipes a buffer.
func (wiping) Put(b *[]byte) { clear((*b)[:cap(*b)]) }

// codec is protobuf, as gRPC's own, but for what it leaves behind.
type codec struct{}

// Name is of the content type that servers know.
func (codec) Name() string { return "proto" }

// Marshal writes into a buffer that goes back to the pool: smaller ones gRPC
// leaves to the collector.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	m := v.(proto.Message)
	const pooled = 4 << 10
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 0, max(proto.Size(m), pooled)), m)
	return mem.BufferSlice{mem.NewBuffer(&b, wiping{})}, err
}

// Unmarshal wipes what it has read: it is its last reader.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	whole := data.Materialize()
	defer clear(whole)
	for _, b := range data {
		clear(b.ReadOnlyData())
	}
	return proto.Unmarshal(whole, v.(proto.Message))
}

// forgetful is the connection below TLS. It remembers the buffers that it was
// asked to read into, since TLS decrypts in the very buffer that it reads into,
// to wipe them when nobody reads any more. It hands out a record's header
// (RFC 8446 §5.1) and its content apart: read together, they could be moved to
// a larger buffer, of which only the free part would be shown here.
type forgetful struct {
	net.Conn
	header []byte // of the record to come, as far as it was read
	left   int    // bytes left of the current record

	mu    sync.Mutex
	given [][]byte
}

// Read is called by one goroutine at a time.
func (f *forgetful) Read(p []byte) (int, error) {
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

func (f *forgetful) wipe() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.given {
		clear(b)
	}
	f.given = nil
}

// remember keeps the largest part seen of each buffer; parts of the same one
// end at the same place.
func (f *forgetful) remember(p []byte) {
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
