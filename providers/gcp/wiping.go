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
	var below []*outbound.Forgetful
	opts = append(opts,
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := c.Dial(ctx, addr)
			if err != nil {
				return nil, err
			}
			f := &outbound.Forgetful{Conn: conn}
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
			f.Wipe()
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
