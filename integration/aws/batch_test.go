//go:build real

package aws

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/providers"
	"credentialbroker/providers/aws"
	"credentialbroker/providers/providertest"
)

// A hundred first reads, singly and by the batch, from moto's own
// BatchGetSecretValue.
func TestBatch(t *testing.T) {
	real.Row(t, "provider aws", server, "first reads of 100 clients in batches of 20")
	const n = 100
	m := newManager(t, startMoto(t))
	for i := range n {
		m.Set(t, fmt.Sprintf("app-%d", i), fmt.Appendf(nil, `{"client_secret":"%s-%d"}`, providertest.Canary, i))
	}
	for _, batch := range []bool{false, true} {
		before := m.Calls()
		start := time.Now()
		readAll(t, m.batching(t, batch), n)
		took, calls := time.Since(start), m.Calls()
		t.Logf("batch: %v: %d calls in %v", batch, calls.Values-before.Values, took.Round(time.Millisecond))
		if got := calls.Values - before.Values; !batch && got != n || batch && got > n/10 {
			t.Errorf("batch: %v: %d calls for %d secrets", batch, got, n)
		}
	}
}

// readAll reads every secret once, all at the same time.
func readAll(t *testing.T, p providers.Provider, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			b, err := p.Fetch(t.Context(), providers.Ref{Path: fmt.Sprintf("app-%d", i)}, "")
			if err != nil {
				t.Error(err)
				return
			}
			if got, _ := b.Fields["client_secret"].AppendTo(nil); string(got) != fmt.Sprintf("%s-%d", providertest.Canary, i) {
				t.Errorf("secret %d is another one's", i)
			}
			b.Wipe()
		})
	}
	wg.Wait()
}

// batching opens the adapter from a configuration as people write it.
func (m *manager) batching(t *testing.T, on bool) providers.Provider {
	t.Helper()
	var c aws.Config
	text := fmt.Sprintf("region: eu-west-1\nendpoint: %s\nca_file: %q\nbatch: %v\nauth: { static: { access_key_id_file: %q, secret_access_key_file: %q } }\n",
		m.front.URL, m.ca, on, filepath.Join(m.dir, "id"), filepath.Join(m.dir, "key"))
	if err := yaml.UnmarshalWithOptions([]byte(text), &c, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	p, err := aws.Open(c, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}
