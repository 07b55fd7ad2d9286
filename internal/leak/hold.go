package leak

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Rules of this file: who is quarantined stands in two places, the incident's
// record and here. Here it is the name of a file, in which there is nothing that
// could be damaged. The record is written first, and counts while it can be
// read.

// A Held is a client that an incident keeps from being served, by the word of a
// file alone.
type Held struct {
	Incident, Client string
	File             string // its path
}

// Hold makes the files say what the records do, durably: want has the ID of
// each incident whose record can be read, with the clients that it quarantines.
// lost are the clients of all others, whose record is damaged or gone: they may
// have been released, or not.
func (b *Book) Hold(want map[string][]string) (lost []Held, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	there, err := b.held()
	if err != nil {
		return nil, err
	}
	var errs []error
	changed := false
	for id, clients := range want {
		for _, c := range clients {
			if slices.ContainsFunc(there, func(h Held) bool { return h.Incident == id && h.Client == c }) {
				continue
			}
			changed = true
			errs = append(errs, b.hold.touch(id+"."+c))
		}
	}
	for _, h := range there {
		switch clients, readable := want[h.Incident]; {
		case !readable:
			lost = append(lost, h)
		case !slices.Contains(clients, h.Client):
			changed = true
			errs = append(errs, explain(os.Remove(h.File)))
		}
	}
	if changed {
		b.hold.step("before sync")
		errs = append(errs, explain(syncDir(b.hold.dir)))
		b.hold.step("after hold")
	}
	return lost, errors.Join(errs...)
}

// held are the clients that files name.
func (b *Book) held() ([]Held, error) {
	entries, err := os.ReadDir(b.hold.dir)
	if err != nil {
		return nil, explain(err)
	}
	var list []Held
	for _, e := range entries {
		if id, name, ok := strings.Cut(e.Name(), "."); ok && validID(id) && name != "" {
			list = append(list, Held{id, name, filepath.Join(b.hold.dir, e.Name())})
		}
	}
	return list, nil
}

// touch makes an empty file; to be there for good, its directory has to be
// synced too.
func (s store) touch(name string) error {
	if name != filepath.Base(name) {
		return fmt.Errorf("incidents: %q is no name of a client", line(name))
	}
	s.step("before hold")
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return explain(err)
	}
	return explain(errors.Join(likeParent(f.Name()), f.Sync(), f.Close()))
}
