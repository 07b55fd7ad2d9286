package secret

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Rules of this file:
//   - memory comes from the kernel in chunks; a chunk serves blocks of one
//     power-of-two size and is never given back (the next secret takes it);
//   - a block is wiped before it becomes free, by whoever frees it, once;
//   - a chunk is of the strongest kind that the kernel grants at that moment.

const (
	minBlock  = 32
	chunkSize = 64 << 10
)

// Protection says how strongly memory is kept from other readers, weakest last.
type Protection string

// The kinds of memory.
const (
	MemfdSecret Protection = "memfd_secret" // not even the kernel maps it
	Mlock       Protection = "mlock"        // not swapped, not dumped
	Unlocked    Protection = "unlocked"     // not dumped; RLIMIT_MEMLOCK is too small for more
)

// Protected tells how many bytes are held by each kind of memory.
func Protected() map[Protection]int {
	vault.mu.Lock()
	defer vault.mu.Unlock()
	m := make(map[Protection]int, len(vault.bytes))
	for k, v := range vault.bytes {
		m[k] = v
	}
	return m
}

// vault is the process's only arena: protected memory is a property of the
// process, as its limit is.
var vault arena

type arena struct {
	mu    sync.Mutex
	free  map[int][][]byte // by block size
	bytes map[Protection]int
}

// block is the memory of one secret; it outlives the slot that points to it.
type block struct {
	mem   []byte // whole block
	state atomic.Int64
}

// slot is what handles share. It is apart from block so that the collector can
// tell when the last handle is gone.
type slot struct {
	*block
	mem []byte // the value's bytes
}

// state: the number of Uses in progress, plus dead when it is to be wiped, or
// freed when that is done.
const dead = int64(1) << 32

func (b *block) acquire() bool {
	for {
		n := b.state.Load()
		if n >= dead {
			return false
		}
		if b.state.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (b *block) done() {
	if b.state.Add(-1) == dead {
		vault.put(b)
	}
}

func (b *block) kill() {
	for {
		n := b.state.Load()
		if n >= dead {
			return
		}
		if b.state.CompareAndSwap(n, n+dead) {
			if n == 0 {
				vault.put(b)
			}
			return
		}
	}
}

func (b *block) release() { b.kill() }

func (a *arena) alloc(n int) *slot {
	size := max(minBlock, 1<<bits.Len(uint(n-1)))
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.free == nil {
		a.free, a.bytes = map[int][][]byte{}, map[Protection]int{}
	}
	if len(a.free[size]) == 0 {
		a.grow(size)
	}
	l := a.free[size]
	mem := l[len(l)-1]
	a.free[size] = l[:len(l)-1]
	return &slot{block: &block{mem: mem}, mem: mem[:n:n]}
}

func (a *arena) put(b *block) {
	clear(b.mem)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.free[len(b.mem)] = append(a.free[len(b.mem)], b.mem)
}

func (a *arena) grow(size int) {
	chunk, kind := protectedChunk(max(chunkSize, size))
	a.bytes[kind] += len(chunk)
	for i := 0; i+size <= len(chunk); i += size {
		a.free[size] = append(a.free[size], chunk[i:i+size:i+size])
	}
}

// protectedChunk asks the kernel for memory, strongest kind first.
func protectedChunk(n int) ([]byte, Protection) {
	if mem, err := secretMemory(n); err == nil {
		return mem, MemfdSecret
	}
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(fmt.Sprintf("secret: no memory: %v", err)) // as the runtime does
	}
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP)
	_ = unix.Madvise(mem, unix.MADV_WIPEONFORK)
	if unix.Mlock(mem) != nil {
		return mem, Unlocked
	}
	return mem, Mlock
}

// secretMemory maps memfd_secret(2) memory and touches it, since a limit shows
// only then.
func secretMemory(n int) ([]byte, error) {
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	_ = unix.Madvise(mem, unix.MADV_DONTFORK)
	return mem, nil
}
