package aws

import (
	"context"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"credentialbroker/providers"
)

// First reads that come together share a BatchGetSecretValue, where the
// configuration says so. Nothing else is batched: a look for a new version is
// a DescribeSecret, which reads no value, and a batch has no such form.
//
// One of those who gather leads: it waits, calls, and hands out. What a batch
// does not give, for whatever reason of its own, is read singly, which finds
// out the reason.

const (
	batchSize = 20                    // what AWS takes
	gatherFor = 60 * time.Millisecond // first reads are 3 ms apart when there are many
)

// gatherer keeps the group that can still be joined.
type gatherer struct {
	mu   sync.Mutex
	open *group // nil: none
	off  bool   // policy forbids it: each denial is an alarm somewhere
}

// group is some first reads, and what they got.
type group struct {
	paths   []string // distinct
	members int      // who have not left; the last one wipes
	full    chan struct{}
	done    chan struct{} // closed when the next two are there
	read    []answer
	err     *providers.Error // of the call, where to try again would be wrong
}

// join gives the group for path; leads is true for who opened it; nil if there
// is no gathering.
func (g *gatherer) join(path string) (in *group, leads bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.off {
		return nil, false
	}
	if leads = g.open == nil; leads {
		g.open = &group{full: make(chan struct{}), done: make(chan struct{})}
	}
	in = g.open
	in.members++
	for _, p := range in.paths {
		if p == path {
			return in, leads
		}
	}
	if in.paths = append(in.paths, path); len(in.paths) == batchSize {
		g.open = nil
		close(in.full)
	}
	return in, leads
}

// shut lets nobody join any more.
func (g *gatherer) shut(in *group) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == in {
		g.open = nil
	}
}

func (g *gatherer) leave(in *group) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if in.members--; in.members > 0 {
		return
	}
	wipeAll(in.read)
}

// readTogether reads ref's current version with others; ok is false if it has
// to be read singly.
func (p *provider) readTogether(ctx context.Context, ref providers.Ref) (b providers.Bundle, ok bool, err error) {
	in, leads := p.gather.join(ref.Path)
	if in == nil {
		return b, false, nil
	}
	defer p.gather.leave(in)
	if leads {
		timer := time.NewTimer(gatherFor)
		select {
		case <-timer.C:
		case <-in.full:
		case <-ctx.Done():
		}
		timer.Stop()
		p.gather.shut(in)
		if len(in.paths) > 1 && ctx.Err() == nil {
			in.read, in.err = p.readMany(ctx, in.paths)
		}
		close(in.done)
	}
	select {
	case <-in.done:
	case <-ctx.Done():
		return b, false, nil
	}
	if in.err != nil {
		e := *in.err
		e.Ref = ref
		return b, true, &e
	}
	for _, a := range in.read {
		if ref.Path == a.text("Name") || ref.Path == a.text("ARN") {
			b, err = a.bundle(ref)
			return b, true, err
		}
	}
	return b, false, nil
}

// readMany makes the call.
func (p *provider) readMany(ctx context.Context, paths []string) ([]answer, *providers.Error) {
	many, err := call(ctx, p, func() ([]answer, error) {
		var s slot
		if _, err := p.api.BatchGetSecretValue(context.WithValue(ctx, slotKey{}, &s), &secretsmanager.BatchGetSecretValueInput{SecretIdList: paths}); err != nil {
			wipeAll(s.many)
			return nil, err
		}
		return s.many, s.err
	})
	switch {
	case err == nil:
		return many, nil
	case ctx.Err() == nil:
		e := fault(err, providers.Ref{}, "secretsmanager:BatchGetSecretValue")
		switch e.Kind {
		case providers.Throttled, providers.Unavailable, providers.LoginFailed:
			return nil, e
		case providers.Denied:
			p.gather.mu.Lock()
			p.gather.off = true
			p.gather.mu.Unlock()
		default: // one of them may be the cause
		}
	default: // the leader has given up, not those who wait
	}
	return nil, nil
}

func wipeAll(many []answer) {
	for _, a := range many {
		a.wipe()
	}
}
