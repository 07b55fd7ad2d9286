package configs

import (
	"os"
	"regexp"
	"testing"
)

// TestSample loads the configuration that packages install: as it is, it serves
// nobody; with its comments taken away, it is what they say.
func TestSample(t *testing.T) {
	b, err := os.ReadFile("../packaging/broker.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := load(t, map[string]string{"broker.yaml": string(b)})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Clients) != 0 || c.Audit.Anchor != "journald" {
		t.Errorf("%d clients, anchors in %q", len(c.Clients), c.Audit.Anchor)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "/run/credentials/test")
	shown := regexp.MustCompile(`(?m)^# ( *(- |[a-z_]+:).*)$`).ReplaceAllString(string(b), "$1")
	if c, err = load(t, map[string]string{"broker.yaml": shown}); err != nil {
		t.Fatalf("%v\n%s", err, shown)
	}
	if len(c.Providers) != 1 || len(c.Clients["vdab"].Allow) != 1 {
		t.Errorf("it shows %d secrets managers and %+v", len(c.Providers), c.Clients)
	}
}
