package leak

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"credentialbroker/internal/clock"
)

// A Book is the directory of all incidents of a host, one file each. Every
// change is durable before its method returns. The daemon is its only writer,
// but for [Book.Spool]. All methods may be called from many goroutines.
type Book struct {
	host  string
	clock clock.Clock
	mu    sync.Mutex // one writer at a time
	store store
	spool store
	hold  store // see Hold
}

// ErrNotFound is returned for an incident that there is not.
var ErrNotFound = errors.New("there is no such incident")

// OpenBook opens the incidents in dir, and makes the directory if it is not
// there; the one above it has to be. host names this machine in every record.
func OpenBook(dir, host string, c clock.Clock) (*Book, error) {
	host = strings.ToLower(host)
	if !validHost(host) {
		return nil, fmt.Errorf("incidents: %q is no name of a host", host)
	}
	b := &Book{host: host, clock: c, store: store{dir: dir}, spool: store{dir: filepath.Join(dir, "spool")}, hold: store{dir: filepath.Join(dir, "contained")}}
	for _, s := range []store{b.store, b.spool, b.hold} {
		if err := s.open(); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Declare records a new incident and its first revision. It fills in Format,
// ID, Host, State (if empty: open), DeclaredAt, KnownAt and Revisions.
func (b *Book) Declare(i Incident, noMail bool) (Incident, error) {
	return b.declare(b.store, i, noMail)
}

// Spool records an incident while no daemon runs; the next one absorbs it. The
// ID is final. A command may call it while a daemon writes all the same.
func (b *Book) Spool(i Incident, noMail bool) (Incident, error) {
	return b.declare(b.spool, i, noMail)
}

func (b *Book) declare(s store, i Incident, noMail bool) (Incident, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.clock.Now().Wall.UTC().Truncate(time.Second)
	i.Format, i.ID, i.Host, i.DeclaredAt, i.Revisions = format, fmt.Sprintf("%04d-0000", now.Year()), b.host, now, nil
	if i.State == "" {
		i.State = Open
	}
	if i.KnownAt.IsZero() {
		i.KnownAt = now
	}
	i.tidy()
	i.Revise(now, "", noMail)
	if err := i.Validate(); err != nil {
		return Incident{}, fmt.Errorf("the declaration: %w", err)
	}
	id, err := b.number(now.Year())
	if err != nil {
		return Incident{}, err
	}
	i.ID = id
	return i, put(s, &i)
}

// number takes the next free number. The empty file that holds it keeps two
// processes from taking the same one; it becomes the record itself.
func (b *Book) number(year int) (string, error) {
	names, err := b.store.names()
	if err != nil {
		return "", err
	}
	spooled, err := b.spool.names()
	if err != nil {
		return "", err
	}
	held, _ := b.held() // the number of a record that is gone is not given again; nothing depends on it
	for _, h := range held {
		names = append(names, h.Incident+".json")
	}
	last := 0
	for _, n := range slices.Concat(names, spooled) {
		var y, number int
		if id := strings.TrimSuffix(n, ".json"); validID(id) {
			if _, err := fmt.Sscanf(id, "%d-%d", &y, &number); err == nil && y == year {
				last = max(last, number)
			}
		}
	}
	for n := last + 1; ; n++ {
		id := fmt.Sprintf("%04d-%04d", year, n)
		if !validID(id) {
			return "", errors.New("incidents: no number is left for this year")
		}
		mine, err := b.store.reserve(id + ".json")
		if mine || err != nil {
			return id, err
		}
	}
}

func put(s store, i *Incident) error {
	data, err := seal(i)
	if err != nil {
		return err
	}
	if len(data) > mostBytes {
		return fmt.Errorf("incident %s: the record is longer than %d bytes", i.ID, mostBytes)
	}
	return s.put(i.ID+".json", data)
}

// Get reads one incident: ErrNotFound if there is none.
func (b *Book) Get(id string) (Incident, error) {
	id = strings.TrimSuffix(id, "@"+b.host)
	if !validID(id) {
		return Incident{}, fmt.Errorf("incident %q: %w: write year and number, as 2026-0007", line(id), ErrNotFound)
	}
	i, err := read(b.store, id)
	if errors.Is(err, ErrNotFound) {
		i, err = read(b.spool, id) // a daemon has yet to absorb it
	}
	return i, err
}

// read reads a record; an empty file is a number that was taken, and no more.
func read(s store, id string) (Incident, error) {
	data, err := s.get(id + ".json")
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
		return Incident{}, fmt.Errorf("incident %s: %w", id, ErrNotFound)
	}
	var i Incident
	if err == nil {
		i, err = parseIncident(data, id)
	}
	if err != nil {
		return Incident{}, fmt.Errorf("incident %s: %s cannot be read: %w; it is left as it is", id, filepath.Join(s.dir, id+".json"), err)
	}
	return i, nil
}

func parseIncident(data []byte, id string) (Incident, error) {
	var i Incident
	if err := unseal(data, &i); err != nil {
		return i, err
	}
	if i.ID != id {
		return i, fmt.Errorf("it says that it is %q", line(i.ID))
	}
	i.tidy()
	return i, i.Validate()
}

// decode reads strictly: every key known, one value, nothing after it.
func decode(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	return nil
}

// List reads all incidents, oldest first, the spooled ones included. Those that
// cannot be read are in the error, which does not keep the others back.
func (b *Book) List() ([]Incident, error) {
	names, err := b.store.names()
	spooled, err2 := b.spool.names()
	names, errs := slices.Concat(names, spooled), []error{err, err2}
	slices.Sort(names)
	var list []Incident
	for _, n := range slices.Compact(names) {
		i, err := b.Get(strings.TrimSuffix(n, ".json"))
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, i)
	}
	return list, errors.Join(errs...)
}

// Update changes an incident, durably, unless change fails. Its identity and
// its past revisions cannot change. Of one that cannot be read it gives the ID
// alone, beside the error.
func (b *Book) Update(id string, change func(*Incident) error) (Incident, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	id = strings.TrimSuffix(id, "@"+b.host)
	if !validID(id) {
		return Incident{}, fmt.Errorf("incident %q: %w: write year and number, as 2026-0007", line(id), ErrNotFound)
	}
	old, err := read(b.store, id)
	if err != nil {
		return Incident{ID: id}, err
	}
	i := old
	i.Revisions = slices.Clone(old.Revisions)
	if err := change(&i); err != nil {
		return old, err
	}
	i.tidy()
	if i.ID != old.ID || i.Host != old.Host || i.Drill != old.Drill || len(i.Revisions) < len(old.Revisions) {
		return old, fmt.Errorf("incident %s: what it is cannot change: declare another", id)
	}
	if err := i.Validate(); err != nil {
		return old, fmt.Errorf("incident %s: %w", id, err)
	}
	return i, put(b.store, &i)
}

// Spooled says whether something waits to be absorbed; it is a cheap look.
func (b *Book) Spooled() bool {
	names, err := b.spool.names()
	return err == nil && len(names) > 0
}

// Absorb takes in what was spooled, and returns it: to be contained and
// reported. A crash anywhere in it neither loses nor doubles an incident. What
// cannot be read stays, and is in the error.
func (b *Book) Absorb() ([]Incident, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.store.sweep()
	b.spool.sweep()
	names, err := b.spool.names()
	errs := []error{err}
	var list []Incident
	for _, n := range names {
		id := strings.TrimSuffix(n, ".json")
		i, err := read(b.spool, id)
		if err == nil {
			_, err = read(b.store, id)
			if err == nil {
				err = fmt.Errorf("incident %s: %s has a number that is taken; it is left as it is", id, filepath.Join(b.spool.dir, n))
			}
		}
		if !errors.Is(err, ErrNotFound) {
			errs = append(errs, err)
			continue
		}
		b.store.step("before absorb")
		// One rename is all: the record is in one place or in the other.
		if err := os.Rename(filepath.Join(b.spool.dir, n), filepath.Join(b.store.dir, n)); err != nil { //nolint:gosec // the name was checked
			errs = append(errs, explain(err))
			continue
		}
		b.store.step("before sync")
		errs = append(errs, explain(errors.Join(syncDir(b.store.dir), syncDir(b.spool.dir))))
		list = append(list, i)
	}
	return list, errors.Join(errs...)
}

// Export writes this host's evidence, for the incident that it joined or its
// own.
func (b *Book) Export(id string) ([]byte, error) {
	i, err := b.Get(id)
	if err != nil {
		return nil, err
	}
	e := Evidence{Format: format, Incident: i.GlobalID(), Host: i.Host, ExportedAt: b.clock.Now().Wall.UTC().Truncate(time.Second),
		Actions: i.Actions, Exposure: i.Exposure, Holders: i.Holders}
	if i.Joins != "" {
		e.Incident = i.Joins
	}
	data, err := json.MarshalIndent(e, "", "  ")
	return append(data, '\n'), err
}

// Merge adds what [Book.Export] wrote on another host to an incident of this
// one, in place of what that host sent before, and revises the incident. The
// same evidence again changes nothing.
func (b *Book) Merge(id string, evidence []byte) (Incident, error) {
	e, err := parseEvidence(evidence)
	if err != nil {
		return Incident{}, fmt.Errorf("the evidence: %w", err)
	}
	current, err := b.Get(id)
	switch {
	case err != nil:
		return Incident{}, err
	case e.Incident != current.GlobalID():
		return Incident{}, fmt.Errorf("the evidence is for the incident %s, and this is %s: declare on the other host with --incident %s", e.Incident, current.GlobalID(), current.GlobalID())
	case e.Host == b.host:
		return Incident{}, fmt.Errorf("the evidence is of this host, %s, which has it already", b.host)
	case slices.ContainsFunc(current.Others, func(o Evidence) bool { return equal(o, e) }):
		return current, nil
	}
	return b.Update(id, func(i *Incident) error {
		if i.State == Closed {
			return fmt.Errorf("incident %s is closed: declare another", i.ID)
		}
		i.Others = slices.DeleteFunc(slices.Clone(i.Others), func(o Evidence) bool { return o.Host == e.Host })
		i.Others = append(i.Others, e)
		now := b.clock.Now().Wall.UTC().Truncate(time.Second)
		i.Actions = append(i.Actions, Action{At: now, What: "merge_evidence", Outcome: Done, Detail: e.Host})
		n := len(i.Revisions)
		i.Revise(now, "", n > 0 && i.Revisions[n-1].NoMail) // who reports it does not change
		return nil
	})
}

func equal(a, b Evidence) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// parseEvidence reads what another host wrote.
func parseEvidence(data []byte) (Evidence, error) {
	var e Evidence
	if len(data) > mostBytes {
		return e, fmt.Errorf("it is longer than %d bytes", mostBytes)
	}
	if err := decode(data, &e); err != nil {
		return e, err
	}
	switch {
	case e.Format != format:
		return e, fmt.Errorf("it has format %d, and this version reads %d: export it with the same version", e.Format, format)
	case !validGlobal(e.Incident):
		return e, fmt.Errorf("%q is no incident: want one as 2026-0007@web1", line(e.Incident))
	case !validHost(e.Host):
		return e, fmt.Errorf("%q is no name of a host", line(e.Host))
	case e.Exposure.Count < 0 || e.Exposure.Count < len(e.Exposure.Tokens) || len(e.Actions) > mostItems:
		return e, errors.New("its counts do not fit its lists")
	}
	tidyLists(e.Actions, &e.Exposure, &e.Holders)
	return e, validActions(e.Actions)
}
