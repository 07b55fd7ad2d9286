package access

import "golang.org/x/sys/unix"

// A hold is the one descriptor that all connections of a process share, so
// that a thousand streams of one application take a thousand descriptors and
// not two thousand.
type hold struct {
	pidfd       int
	connections int
}

// share gives the descriptor to use in place of pidfd, whose process has the
// number key; it closes what it does not give. Key 0 is no number: each
// connection then keeps its own.
func (i *Identifier) share(pidfd int, key uint64) int {
	if key == 0 {
		return pidfd
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	h := i.held[key]
	if h == nil {
		if i.held == nil {
			i.held = map[uint64]*hold{}
		}
		h = &hold{pidfd: pidfd}
		i.held[key] = h
	} else {
		_ = unix.Close(pidfd)
	}
	h.connections++
	return h.pidfd
}

// release undoes one share.
func (i *Identifier) release(pidfd int, key uint64) error {
	if key == 0 {
		return unix.Close(pidfd)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	h := i.held[key]
	if h.connections--; h.connections > 0 {
		return nil
	}
	delete(i.held, key)
	return unix.Close(h.pidfd)
}
