// Package files puts tokens, headers and API keys into files on a tmpfs, for
// programs that can read a file and nothing else.
//
// A file is whole at any time, is replaced by a rename, and never holds a
// token with less life than its min_ttl: before that it is replaced or
// removed. It is removed at once when its client is quarantined.
package files

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
)

// Rules of this file:
//   - one goroutine writes and removes a file: the follower of its entry, or
//     Run itself while there is none;
//   - what is in place and is none of the configuration's any more goes at once;
//   - when Run ends the files go too, but for those in a directory that the
//     service manager itself removes when the daemon is stopped, and keeps when
//     it is restarted.

// A Writer keeps the files of one configuration after the other.
type Writer struct {
	o      Options
	record *record
	wake   chan struct{}

	mu      sync.Mutex
	want    []Entry            // of the newest Apply
	running map[string]*follow // by path; Run's alone to change

	said map[string]string // of files that cannot be removed; Run's alone
}

// Options are what a Writer works with.
type Options struct {
	Broker *broker.Broker
	Audit  *audit.Log
	Clock  clock.Clock
	Log    *slog.Logger
	Dir    string // of durable state; it must exist
	// Preserved are directories that the service manager removes when the daemon
	// is stopped, and not when it is restarted ($RUNTIME_DIRECTORY). Empty: Run
	// removes all files when it ends.
	Preserved []string
}

// An Entry is one file of one client.
type Entry struct {
	Client string
	// Origin changes with where the client's tokens come from: a file of before
	// then goes.
	Origin string
	Config
}

// New makes a Writer. It writes nothing before Run. An error is about the
// record of an earlier run, which is then taken as empty: the Writer works.
func New(o Options) (*Writer, error) {
	r, err := openRecord(o.Dir)
	return &Writer{o: o, record: r, wake: make(chan struct{}, 1), running: map[string]*follow{}, said: map[string]string{}}, err
}

// Apply replaces the list of files. Those that are the same stay as they are.
func (w *Writer) Apply(list []Entry) {
	list = slices.Clone(list)
	for i := range list {
		list[i].Config = list[i].filled()
	}
	w.mu.Lock()
	w.want = list
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run keeps the files until ctx ends. What could not be removed, and names
// that could not be resolved, are tried again every minute.
func (w *Writer) Run(ctx context.Context) error {
	again := time.NewTicker(time.Minute)
	defer again.Stop()
	for ctx.Err() == nil {
		w.reconcile(ctx)
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-again.C:
		}
	}
	for p, f := range w.snapshot() {
		<-f.done
		if !w.preserved(p) {
			f.remove("the daemon has stopped")
		}
	}
	return nil
}

// reconcile makes the running followers those of the configuration.
func (w *Writer) reconcile(ctx context.Context) {
	w.mu.Lock()
	want := make(map[string]Entry, len(w.want))
	for _, e := range w.want {
		want[e.Path] = e
	}
	w.mu.Unlock()
	running, old := w.snapshot(), map[string]*follow{}
	for p, f := range running {
		e, ok := want[p]
		if ok && e == f.Entry && f.whoErr == nil {
			continue
		}
		f.cancel()
		<-f.done
		old[p] = f
		delete(running, p)
	}
	for _, p := range w.record.paths() { // of an earlier run
		if _, ok := want[p]; !ok {
			w.forget(p)
		}
	}
	names := access.SystemNames()
	for p, e := range want {
		if running[p] == nil {
			running[p] = w.begin(ctx, e, old[p], names)
		}
	}
	w.mu.Lock()
	w.running = running
	w.mu.Unlock()
}

func (w *Writer) snapshot() map[string]*follow {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.running)
}

// forget removes a file that no configuration names.
func (w *Writer) forget(p string) {
	err := removeFile(p)
	if err == nil {
		err = w.record.drop(p)
	}
	if err == nil {
		delete(w.said, p)
		return
	}
	if w.said[p] != err.Error() {
		w.said[p] = err.Error()
		w.o.Log.Error("a file that is not configured any more stays; this is tried again", "file", p, "error", err)
	}
}

// clear looks at what is there and is not on record. That is not ours, unless
// the record could not be read: then it may be, and goes if it can be.
func (w *Writer) clear(file string, owner who) error {
	p, err := openPlace(file, false)
	switch {
	case errors.Is(err, errGone):
		return nil
	case err != nil:
		return err
	}
	defer p.close()
	if err := p.replaceable(owner); err != nil {
		return err
	}
	if !w.record.lost {
		return p.vacant()
	}
	return p.remove()
}

func (w *Writer) preserved(p string) bool {
	return slices.ContainsFunc(w.o.Preserved, func(dir string) bool {
		return path.IsAbs(dir) && strings.HasPrefix(p, path.Clean(dir)+"/")
	})
}

// spec changes with whatever a file depends on but its life.
func (e Entry) spec() string {
	e.MinTTL = 0
	sum := sha256.Sum256(fmt.Appendf(nil, "%#v", e))
	return hex.EncodeToString(sum[:])
}

// State is how a file does.
type State string

// The states of files.
const (
	OK      State = "ok"      // it is in place
	Kept    State = "kept"    // it is in place and still good, and what replaces it cannot be had or written
	Waiting State = "waiting" // nothing has come for it yet
	Missing State = "missing" // it is not in place
)

// States lists all of them.
func States() []State { return []State{OK, Kept, Waiting, Missing} }

// A Status is one file's state, for administrators.
type Status struct {
	Client, Path string
	State        State
	Reason       string        // in words; empty: nothing is wrong
	Until        clock.Reading // the end of what it holds; zero: it has none, or nothing is in place
}

// Status tells the state of every file, by client and path.
func (w *Writer) Status() []Status {
	running := w.snapshot()
	list := make([]Status, 0, len(running))
	for _, f := range running {
		list = append(list, f.current())
	}
	slices.SortFunc(list, func(a, b Status) int {
		return strings.Compare(a.Client+"\x00"+a.Path, b.Client+"\x00"+b.Path)
	})
	return list
}
