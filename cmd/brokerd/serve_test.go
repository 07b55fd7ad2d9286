package main

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

// By hand, the socket's directory may be missing: a client with a route does
// not change that.
func TestRouteInNewDirectory(t *testing.T) {
	s := newSite(t)
	s.write("broker.yaml", strings.Replace(s.config(), "    secret: {", "    reverse_proxy: [{ name: vdab, upstream: 'https://api.example' }]\n    secret: {", 1))
	_, consumer, admin, err := prepare(paths{config: s.path("broker.yaml"), consumer: s.path("run/broker.sock"), state: s.path("state")}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.path("run/proxy/vdab.sock")); err != nil {
		t.Error(err)
	}
	if err := errors.Join(consumer.Close(), admin.Close()); err != nil {
		t.Error(err)
	}
}
