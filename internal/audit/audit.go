// Package audit is the durable, tamper-evident record of who got what.
//
// A [Log] is a directory of files of JSON lines. Each line holds the hash of
// the one before, and from time to time the newest line's number and hash go
// to the system's journal: whoever rewrites the files has to rewrite the
// journal too, or [Verify] finds it. One process writes (the directory is
// locked), any number may read with [Read], [Tail], [Denied] and [Export],
// the running daemon's log too.
//
// The rules: an event whose [Log.Record] has returned nil is on the disk.
// Nothing is written but by [Log.Run]. What could not be written is counted,
// and the count is the first thing written once writing works again. Nothing
// that is readable is ever changed; what is not is set aside, never deleted.
package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"credentialbroker/internal/clock"
)

// A Log is the durable, tamper-evident record. Its methods may be called from
// many goroutines; they need Run to be running, before or after the call.
type Log struct {
	cfg    Config
	clock  clock.Clock
	anchor func(context.Context, Anchor) error // nil: none
	limits limits
	disk   disk // Run's alone, once Open has returned

	wake  chan struct{} // somebody waits for a commit
	noted chan struct{} // something may be committed within limits.flush
	done  chan struct{} // closed when Run has ended

	mu     sync.Mutex
	next   *batch
	ended  bool
	gap    gap
	status Status
	err    error // of the last write
}

// Config is the audit section of the configuration.
type Config struct {
	Retention clock.Duration `yaml:"retention" json:"retention,omitempty"`   // how long entries are kept, at least 1d; zero: 400d
	Anchor    string         `yaml:"anchor" json:"anchor,omitempty"`         // "journald", "none"; zero: journald where there is one, else none
	OnFailure string         `yaml:"on_failure" json:"on_failure,omitempty"` // when no entry can be written: "refuse" hand-overs, or "serve" without a record; zero: refuse
}

// Options is what the process gives to Open beside the configuration.
type Options struct {
	Dir    string                              // made (mode 0700) if it is not there; its parent has to be
	Clock  clock.Clock                         // nil: the system's
	Anchor func(context.Context, Anchor) error // where anchors go; nil: as the configuration says
}

// Status is what can be said of a running log.
type Status struct {
	Log         string    `json:"log"`        // the log's own name, made at random with its first entry
	Seq         uint64    `json:"seq"`        // of the last durable entry
	Hash        string    `json:"hash"`       // of the last durable entry
	Entries     uint64    `json:"entries"`    // written since the start
	Syncs       uint64    `json:"syncs"`      // of the disk, since the start: many entries share one
	Lost        uint64    `json:"lost"`       // events that could not be written since the start
	Anchors     string    `json:"anchors"`    // "journald", "none", "none: this machine has no journal", "custom"
	AnchorSeq   uint64    `json:"anchor_seq"` // the last entry that was anchored; zero: none since the start
	AnchorTime  time.Time `json:"anchor_time,omitzero"`
	AnchorError string    `json:"anchor_error,omitempty"`
	Error       string    `json:"error,omitempty"` // of the last write; empty: it worked
}

// limits are the log's measures; only tests have others.
type limits struct {
	segment  int64         // bytes of a file, about
	queue    int           // events that wait for the disk
	flush    time.Duration // how long a Note waits
	entries  uint64        // between two anchors
	every    time.Duration // between two anchors, if anything was written
	patience time.Duration // how long Record waits for a disk that hangs, with on_failure: serve
	send     time.Duration // how long the journal may take for an anchor
}

var (
	errEnded = errors.New("the audit log is closed: the daemon is going down")
	errFull  = errors.New("the audit log is not keeping up: the disk hangs, or is far too slow")
)

// Validate says what is wrong with c, or nil.
func (c Config) Validate() error {
	switch {
	case c.Retention != 0 && c.Retention.D() < 24*time.Hour:
		return fmt.Errorf("audit: retention: %s is too short: at least 1d (an auditor asks for 400d)", c.Retention)
	case c.Anchor != "" && c.Anchor != "journald" && c.Anchor != "none":
		return fmt.Errorf("audit: anchor: %q is unknown: write journald or none", c.Anchor)
	case c.OnFailure != "" && c.OnFailure != "refuse" && c.OnFailure != "serve":
		return fmt.Errorf("audit: on_failure: %q is unknown: write refuse or serve", c.OnFailure)
	}
	return nil
}

func (c Config) retention() time.Duration {
	if c.Retention == 0 {
		return 400 * 24 * time.Hour
	}
	return c.Retention.D()
}

// Open takes the lock on o.Dir and finds the end of the log. It starts
// nothing and changes nothing: what it found unreadable at the end is set
// aside by Run, which also releases the lock. It fails if another process
// writes this log, if others may write to the directory, or if it cannot be
// read; a full disk is no failure.
func Open(c Config, o Options) (*Log, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	l := &Log{
		cfg: c, clock: o.Clock, anchor: o.Anchor,
		limits: limits{segment: 64 << 20, queue: 16384, flush: time.Second,
			entries: 1000, every: 5 * time.Minute, patience: 2 * time.Second, send: 2 * time.Second},
		wake: make(chan struct{}, 1), noted: make(chan struct{}, 1), done: make(chan struct{}),
		next: newBatch(),
	}
	if l.clock == nil {
		l.clock = clock.System{}
	}
	l.status.Anchors = "custom"
	if l.anchor == nil {
		l.anchor, l.status.Anchors = c.anchors(journalSocket)
	}
	l.disk.dir, l.disk.sync = o.Dir, datasync
	if err := l.disk.open(); err != nil {
		return nil, err
	}
	l.status.Log, l.status.Seq, l.status.Hash = l.disk.log, l.disk.end.seq, l.disk.end.hash
	return l, nil
}

// anchors says where anchors go, and what Status calls it.
func (c Config) anchors(socket string) (func(context.Context, Anchor) error, string) {
	if c.Anchor == "none" {
		return nil, "none"
	}
	if _, err := os.Stat(socket); err != nil && c.Anchor == "" {
		return nil, "none: this machine has no journal"
	}
	return journal(socket).send, "journald"
}

// Record returns nil once e is on the disk; many callers share one write. It
// fails when e cannot be written, with the reason and what to do about it, or
// when ctx ends first (then e may still be written). With on_failure: serve it
// returns nil where it would have failed, and the loss is recorded later.
func (l *Log) Record(ctx context.Context, e Event) error {
	serve := l.cfg.OnFailure == "serve"
	wait := ctx
	if serve {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, l.limits.patience)
		defer cancel()
	}
	b, err := l.add(e, true)
	if err == nil {
		select {
		case <-b.done:
			err = b.err
		case <-l.done:
			// The batch may have been the last that Run wrote.
			select {
			case <-b.done:
				err = b.err
			default:
				err = errEnded
			}
		case <-wait.Done():
			err = fmt.Errorf("the audit entry is not on the disk yet: %w", context.Cause(wait))
		}
	}
	if err != nil && serve {
		return ctx.Err()
	}
	return err
}

// Note queues e, to be on the disk within a second. It never waits: beyond
// 16,384 waiting events it counts e as lost, and the count is recorded.
func (l *Log) Note(e Event) {
	// The loss is counted, and recorded: nothing is left to do for the caller.
	_, _ = l.add(e, false)
}

// Healthy returns nil if the last write worked, or nothing was written yet.
func (l *Log) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Status says how the log does.
func (l *Log) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.status
	if l.err != nil {
		s.Error = l.err.Error()
	}
	return s
}
