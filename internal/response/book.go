package response

import (
	"slices"
	"sync"
	"sync/atomic"

	"credentialbroker/internal/leak"
)

// A book is the incidents on the disk, whose only writer is this process: what
// was read once is known until it is changed.
type book struct {
	*leak.Book

	// last is what was read last, for those who do not wait for a disk.
	last atomic.Pointer[[]leak.Incident]

	mu    sync.Mutex
	known bool
	list  []leak.Incident
	err   error
}

// List reads all incidents, oldest first. They are not to be changed.
func (b *book) List() ([]leak.Incident, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.known {
		b.list, b.err = b.Book.List()
		b.known = true
		list := b.list
		b.last.Store(&list)
	}
	return slices.Clone(b.list), b.err
}

// forget is for who has changed something, or could have.
func (b *book) forget() {
	b.mu.Lock()
	b.known, b.list = false, nil
	b.mu.Unlock()
}

func (b *book) Declare(i leak.Incident, noMail bool) (leak.Incident, error) {
	defer b.forget()
	return b.Book.Declare(i, noMail)
}

func (b *book) Update(id string, f func(*leak.Incident) error) (leak.Incident, error) {
	defer b.forget()
	return b.Book.Update(id, f)
}

func (b *book) Merge(id string, evidence []byte) (leak.Incident, error) {
	defer b.forget()
	return b.Book.Merge(id, evidence)
}

func (b *book) Absorb() ([]leak.Incident, error) {
	defer b.forget()
	return b.Book.Absorb()
}
