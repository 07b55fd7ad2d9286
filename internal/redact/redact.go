// Package redact masks known values in a stream of bytes.
package redact

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Rules of this file:
//   - 16 bytes in a row of a value are masked wherever they are, with as many
//     around them as are the value's too, over line ends; of a value that is
//     shorter, all of it;
//   - what may be the beginning of that waits for the bytes behind it, for
//     holdFor at most, so that a prompt appears; then it is shown, and
//     remembered: if it was one after all, the rest of it is masked.

// Mark stands where a value was.
const Mark = "[redacted]"

const (
	holdFor   = 20 * time.Millisecond
	lookAgain = time.Second // whether the stream has ended otherwise
	bufSize   = 512 << 10
	lastWords = 5 * time.Second // for whoever else writes to the pipe
	remember  = 32              // bytes that dst has: what comes may belong to them
	maxValue  = 128 << 10       // bytes of a value
)

// Filter masks values. The zero value masks nothing. Its methods may be
// called from many goroutines.
type Filter struct{ table atomic.Pointer[table] }

// Set replaces the values; streams that are being copied have them from their
// next read on. The Filter keeps them. Each has 8 bytes to 128 KiB.
func (f *Filter) Set(values [][]byte) error {
	t, err := newTable(values)
	if err == nil {
		f.table.Store(t)
	}
	return err
}

// Copy copies src, the reading end of a pipe, to dst, masked, until src ends.
// After ended was closed somebody else may hold the pipe: it copies until there
// is nothing for a second, or what is there after five. The errors are dst's
// and src's own.
func (f *Filter) Copy(dst io.Writer, src *os.File, ended <-chan struct{}) error {
	s := stream{dst: dst}
	end := ending{ended: ended, left: -1}
	buf := make([]byte, bufSize)
	held, wait := 0, lookAgain
	for {
		if err := src.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		n, err := src.Read(end.room(buf[held:]))
		quiet := errors.Is(err, os.ErrDeadlineExceeded)
		last := err != nil && !quiet || end.is(src, n, quiet && wait == lookAgain)
		from, writeErr := s.pass(f.table.Load(), buf[:held+n], quiet || last)
		if writeErr != nil {
			return writeErr
		}
		held = copy(buf, buf[from:held+n])
		if wait = lookAgain; n > 0 && held > s.shown {
			wait = holdFor
		}
		switch {
		case last && (err == nil || quiet || errors.Is(err, io.EOF)):
			return nil
		case last:
			return err
		}
	}
}

// ending is how a copy ends when the pipe does not.
type ending struct {
	ended <-chan struct{}
	since time.Time // when that was seen; zero: not yet
	left  int       // bytes to be read; 0: no limit
}

// room is the part of buf that may be read into.
func (e *ending) room(buf []byte) []byte {
	if e.left > 0 {
		return buf[:min(len(buf), e.left)]
	}
	return buf
}

// is says whether n bytes, or a second without any, were the last.
func (e *ending) is(src *os.File, n int, nothing bool) bool {
	select {
	case <-e.ended:
	default:
		return false
	}
	switch {
	case e.since.IsZero():
		e.since = time.Now()
	case e.left > 0:
		e.left -= n
		return e.left == 0
	case time.Since(e.since) > lastWords:
		// Dst may have been slow: what the command itself wrote is not lost.
		e.left = unread(src)
		return e.left == 0
	}
	return nothing
}

// unread is how much is in a pipe; 0 if it does not say.
func unread(src *os.File) (n int) {
	raw, err := src.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n
}

// stream is what a copy knows from one read to the next.
type stream struct {
	dst    io.Writer
	shown  int  // bytes at the front of what is held that dst has already
	masked bool // the last that dst got was a Mark
}

// pass writes what is decided of b, or all of it, and says from where to keep
// it.
func (s *stream) pass(t *table, b []byte, all bool) (int, error) {
	done := s.shown // dst has this much of b
	for p := 0; ; {
		start, end, next := t.find(b, p)
		if start == len(b) {
			break
		}
		if p = next; end <= done {
			continue
		}
		err := s.show(b[done:max(done, start)])
		if err == nil {
			err = s.mask()
		}
		if err != nil {
			return 0, err
		}
		done = end
	}
	to := len(b)
	if !all {
		to = max(done, to-t.open(b))
	}
	if err := s.show(b[done:to]); err != nil {
		return 0, err
	}
	from := max(0, to-remember)
	s.shown = to - from
	return from, nil
}

func (s *stream) show(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	s.masked = false
	_, err := s.dst.Write(b)
	return err
}

// mask writes one Mark for values that follow one another.
func (s *stream) mask() error {
	if s.masked {
		return nil
	}
	s.masked = true
	_, err := io.WriteString(s.dst, Mark)
	return err
}
