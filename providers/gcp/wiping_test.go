package gcp

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
)

func TestCodec(t *testing.T) {
	in := &secretmanagerpb.SecretPayload{Data: []byte("secret")}
	out, err := codec{}.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	line := out[0].ReadOnlyData()
	received := mem.BufferSlice{mem.SliceBuffer(bytes.Clone(line[:3])), mem.SliceBuffer(bytes.Clone(line[3:]))}
	out.Free()
	if bytes.Contains(line, []byte("secret")) {
		t.Errorf("after sending, the buffer holds %q", line)
	}
	var got secretmanagerpb.SecretPayload
	if err := (codec{}).Unmarshal(received, &got); err != nil || string(got.GetData()) != "secret" {
		t.Fatalf("%v, %v", got.GetData(), err)
	}
	for _, b := range received {
		if len(bytes.Trim(b.ReadOnlyData(), "\x00")) != 0 {
			t.Errorf("after receiving, a buffer holds %q", b.ReadOnlyData())
		}
	}
}
