package main

import (
	"io"
	"os"
	"strings"
	"testing"
)

// TestReloadWholeOrNot: what cannot be taken of the part about leaks lets
// nothing of the rest be taken either.
func TestReloadWholeOrNot(t *testing.T) {
	s := newSite(t)
	d, consumer, admin, err := prepare(paths{config: s.path("broker.yaml"), state: s.path("state"), consumer: s.path("broker.sock"), admin: s.path("admin.sock")}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close()
	defer admin.Close()
	s.write("state/outbox", "in the way")
	s.write("broker.yaml", strings.Replace(s.config(), "  closed:", "  opened:", 1)+leakYAML)
	if _, err := d.reload(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "the old configuration stays") {
		t.Fatalf("%v", err)
	}
	if !d.broker.Has("closed") || d.broker.Has("opened") || d.current.config.Leak != nil {
		t.Error("half of the new configuration is in use")
	}
	if err := os.Remove(s.path("state", "outbox")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.reload(t.Context(), nil); err != nil || !d.broker.Has("opened") {
		t.Errorf("%v", err)
	}
}
