package aws

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

// gathering opens a provider that batches, and n secrets.
func gathering(t *testing.T, n int) (*fake, *provider) {
	f := newFake(t)
	c := f.config()
	c.Auth.Environment, c.Batch = true, true
	setKey(t, f, "AKIA0")
	for i := range n {
		f.Set(t, secretName(i), fmt.Appendf(nil, `{"client_secret":"%s-%d"}`, providertest.Canary, i))
	}
	return f, f.open(t, c).(*provider)
}

func secretName(i int) string { return fmt.Sprintf("app-%d", i) }

// together fetches all refs at once.
func together(t *testing.T, p providers.Provider, refs []providers.Ref) ([]providers.Bundle, []error) {
	t.Helper()
	bundles, errs := make([]providers.Bundle, len(refs)), make([]error, len(refs))
	var wg sync.WaitGroup
	for i, ref := range refs {
		wg.Go(func() { bundles[i], errs[i] = p.Fetch(t.Context(), ref, "") })
	}
	wg.Wait()
	return bundles, errs
}

func refs(n int) (list []providers.Ref) {
	for i := range n {
		list = append(list, providers.Ref{Path: secretName(i)})
	}
	return list
}

func wantSecret(t *testing.T, b providers.Bundle, i int) {
	t.Helper()
	if got, _ := b.Fields["client_secret"].AppendTo(nil); string(got) != fmt.Sprintf("%s-%d", providertest.Canary, i) || b.Version == "" || b.Created.IsZero() {
		t.Errorf("secret %d: %d bytes at %q of %v", i, len(got), b.Version, b.Created)
	}
}

// First reads that come together share calls; each gets its own secret, or the
// error that a single read would have given.
func TestBatch(t *testing.T) {
	const n = 50
	f, p := gathering(t, n)
	f.Fault(t, providertest.SoftDeleted, secretName(3))
	list := refs(n)
	list[4].Path = "arn:aws:secretsmanager:" + fakeRegion + ":123456789012:secret:" + secretName(4) + "-abcdef"
	list = append(list, list[5], providers.Ref{Path: "nowhere"}) // two clients may share one secret
	bundles, errs := together(t, p, list)
	for i, err := range errs {
		switch {
		case i == 3:
			wantKind(t, err, providers.Deleted)
		case i == n+1:
			wantKind(t, err, providers.NotFound)
		case err != nil:
			t.Errorf("secret %d: %v", i, err)
		default:
			wantSecret(t, bundles[i], i%n+i/n*5)
		}
	}
	if len(f.batches) < 3 || len(f.batches) > 6 {
		t.Errorf("%d batches: %v", len(f.batches), f.batches)
	}
	if n := f.Calls().Values; n > 3 { // the two that no batch gave, and one that came alone
		t.Errorf("%d single reads", n)
	}
	before := len(f.batches)
	for i := range 5 { // looks are not batched, and neither is one that is alone
		if _, err := p.Fetch(t.Context(), list[i+6], bundles[i+6].Version); !errors.Is(err, providers.ErrUnchanged) {
			t.Error(err)
		}
	}
	wantSecret(t, mustFetch(t, p, list[0], ""), 0)
	if len(f.batches) != before {
		t.Errorf("%v", f.batches[before:])
	}
}

// A policy without the permission costs one denial, and no secret.
func TestBatchForbidden(t *testing.T) {
	const n = 40
	f, p := gathering(t, n)
	f.deny = "BatchGetSecretValue"
	for range 2 {
		bundles, errs := together(t, p, refs(n))
		for i, err := range errs {
			if err != nil {
				t.Fatal(i, err)
			}
			wantSecret(t, bundles[i], i)
		}
	}
	if !p.gather.off || f.Calls().Values != 2*n {
		t.Errorf("off: %v, %d single reads", p.gather.off, f.Calls().Values)
	}
}

// Twenty reads are no answer to too many calls.
func TestBatchThrottled(t *testing.T) {
	f, p := gathering(t, 10)
	f.deny, f.denial = "BatchGetSecretValue", "ThrottlingException"
	_, errs := together(t, p, refs(10))
	for i, err := range errs {
		if e := wantKind(t, err, providers.Throttled); e.Ref.Path != secretName(i) {
			t.Errorf("about %v", e.Ref)
		}
	}
	if p.gather.off || f.Calls().Values != 0 {
		t.Errorf("off: %v, %d single reads", p.gather.off, f.Calls().Values)
	}
}

// Who leads and gives up takes nobody along, and leaves nothing unwiped.
func TestBatchLeaderGivesUp(t *testing.T) {
	_, p := gathering(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var wg sync.WaitGroup
	in, leads := p.gather.join("app-0")
	if !leads {
		t.Fatal("somebody else leads")
	}
	var b providers.Bundle
	var err error
	wg.Go(func() { b, err = p.Fetch(t.Context(), providers.Ref{Path: "app-1"}, "") })
	for p.members(in) < 2 {
		runtime.Gosched()
	}
	// As readTogether does for a leader whose caller has gone.
	p.gather.shut(in)
	if in.read, in.err = p.readMany(ctx, in.paths); in.read != nil || in.err != nil {
		t.Errorf("%v, %v", in.read, in.err)
	}
	close(in.done)
	wg.Wait()
	p.gather.leave(in)
	if err != nil {
		t.Fatal(err)
	}
	wantSecret(t, b, 1)
}

func (p *provider) members(in *group) int {
	p.gather.mu.Lock()
	defer p.gather.mu.Unlock()
	return in.members
}

func TestBatchIsWiped(t *testing.T) {
	_, p := gathering(t, 2)
	in, _ := p.gather.join("app-0")
	_, leads := p.gather.join("app-1")
	if p.gather.join("app-1"); len(in.paths) != 2 {
		t.Errorf("asked for: %v", in.paths)
	}
	in.read, in.err = p.readMany(t.Context(), in.paths)
	if leads || len(in.read) != 2 || in.err != nil {
		t.Fatalf("%v, %d, %v", leads, len(in.read), in.err)
	}
	p.gather.leave(in)
	p.gather.leave(in)
	if in.read[1]["SecretString"].Empty() {
		t.Error("wiped before the last one has left")
	}
	p.gather.leave(in)
	for _, a := range in.read {
		if _, err := a["SecretString"].AppendTo(nil); err == nil {
			t.Error("not wiped")
		}
	}
}

func TestOddBatches(t *testing.T) {
	for body, want := range map[string]int{
		`{"SecretValues":[{"Name":"a","VersionId":"v","SecretString":"s"},5,null,"x",{"Name":"b"}],"Errors":[]}`: 5,
		`{"SecretValues":[]}`: 0, `{}`: 0, `{"SecretValues":5}`: -1, `<html>`: -1, `{"SecretValues":[{"Name":"a"`: -1,
	} {
		many, err := takeMany(strings.NewReader(body), int64(len(body)))
		if (err != nil) != (want < 0) || err == nil && len(many) != want {
			t.Errorf("%s: %d, %v", body, len(many), err)
		}
		wipeAll(many)
	}
	long := `{"SecretValues":[` + strings.Repeat(" ", batchSize*maxAnswer) + `]}`
	for _, length := range []int64{-1, 10, int64(len(long))} {
		if _, err := takeMany(strings.NewReader(long), length); err == nil {
			t.Errorf("an answer of %d bytes is taken", len(long))
		}
	}
}

func FuzzBatch(f *testing.F) {
	f.Add([]byte(`{"SecretValues":[{"Name":"a","VersionId":"v","SecretString":"{\"a\":\"b\"}","CreatedDate":1.7e9}]}`))
	f.Add([]byte(`{"SecretValues":[1,{"SecretBinary":"!!"},[]],"NextToken":"x"}`))
	f.Fuzz(func(_ *testing.T, body []byte) {
		many, err := takeMany(strings.NewReader(string(body)), int64(len(body)))
		if err != nil {
			return
		}
		defer wipeAll(many)
		for _, a := range many {
			if b, err := a.bundle(providers.Ref{}); err == nil {
				b.Wipe()
			}
		}
	})
}
