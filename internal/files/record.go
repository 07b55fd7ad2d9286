package files

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/durable"
)

// Rules of this file: the record outlives the daemon, so that the next one
// knows which files are its own and for how long each may stay. It errs to
// less: a file is in it before it is made, and its life after. It holds no
// secret.

const recordFormat = 1

type record struct {
	file string
	lost bool // there was one that could not be read

	disk    sync.Mutex // before mu; mu is never held over the disk, which may be slow
	written uint64     // the newest change that it has

	mu      sync.Mutex
	m       map[string]placed
	changes uint64
}

// placed is a file that is there, or may be.
type placed struct {
	// Spec changes with whatever a file depends on but its life.
	Spec string `json:"spec"`
	// Until is the end of what the file holds. Both clocks are of this boot: no
	// tmpfs outlives it. Zero: unknown, or nothing is in place.
	Until clock.Reading `json:"until"`
	// Forever: what it holds does not end.
	Forever bool `json:"forever,omitempty"`
}

// openRecord reads the record; one that cannot be read is as good as none.
func openRecord(dir string) (*record, error) {
	r := &record{file: filepath.Join(dir, "files.json"), m: map[string]placed{}}
	b, err := os.ReadFile(r.file)
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	var in struct {
		Format int               `json:"format"`
		Files  map[string]placed `json:"files"`
	}
	if err == nil {
		err = json.Unmarshal(b, &in)
	}
	if err == nil && in.Format != recordFormat {
		err = fmt.Errorf("it has the format %d, and this version knows %d", in.Format, recordFormat)
	}
	if err != nil {
		r.lost = true
		return r, fmt.Errorf("the record of written files cannot be read: %s: %w", r.file, err)
	}
	if in.Files != nil {
		r.m = in.Files
	}
	return r, nil
}

func (r *record) get(path string) (placed, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.m[path]
	return p, ok
}

func (r *record) paths() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.m))
}

// set waits until the disk has p.
func (r *record) set(path string, p placed) error { return r.write(r.put(path, p)) }

// put is set without the disk; write makes up for it, with what it returns.
func (r *record) put(path string, p placed) (change uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.m[path] = p
	r.changes++
	return r.changes
}

func (r *record) drop(path string) error {
	r.mu.Lock()
	_, there := r.m[path]
	delete(r.m, path)
	r.changes++
	change := r.changes
	r.mu.Unlock()
	if !there {
		return nil
	}
	return r.write(change)
}

// write waits until the disk has a change. Whoever writes takes the newest, so
// that others need not.
func (r *record) write(change uint64) error {
	r.disk.Lock()
	defer r.disk.Unlock()
	if r.written >= change {
		return nil
	}
	r.mu.Lock()
	newest := r.changes
	b, err := json.Marshal(map[string]any{"format": recordFormat, "files": r.m})
	r.mu.Unlock()
	if err == nil {
		err = durable.Replace(r.file, b)
	}
	if err == nil {
		r.written = newest
	}
	return err
}
