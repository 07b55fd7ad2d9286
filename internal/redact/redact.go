// Package redact masks known values in a stream of bytes.
package redact

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// Rules of this file:
//   - what may be the beginning of a value waits for the bytes behind it. While
//     it is short it waits for holdFor at most, so that a prompt appears; then
//     it is shown, and remembered: if it was a value after all, the rest of it
//     is masked;
//   - what is so long that it can hardly be anything else waits for as long as
//     it takes, and is masked if the stream ends there.

// Mark stands where a value was.
const Mark = "[redacted]"

const (
	holdFor   = 20 * time.Millisecond
	lookAgain = time.Second // whether the stream has ended otherwise
	bufSize   = 512 << 10
	maxValue  = 128 << 10 // bytes of a pattern
)

// Filter masks patterns. The zero value masks nothing. Its methods may be
// called from many goroutines.
type Filter struct{ table atomic.Pointer[table] }

// Set replaces the patterns; streams that are being copied have them from their
// next read on. The Filter keeps them. Each has 8 bytes to 128 KiB.
func (f *Filter) Set(patterns [][]byte) error {
	t, err := newTable(patterns)
	if err == nil {
		f.table.Store(t)
	}
	return err
}

// Copy copies src, the reading end of a pipe, to dst, masked, until src ends,
// or has nothing for a second after ended was closed: somebody else may hold
// the pipe. The errors are dst's and src's own.
func (f *Filter) Copy(dst io.Writer, src *os.File, ended <-chan struct{}) error {
	s := stream{dst: dst}
	buf := make([]byte, bufSize)
	held, wait := 0, lookAgain
	for {
		if err := src.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		n, err := src.Read(buf[held:])
		quiet := errors.Is(err, os.ErrDeadlineExceeded)
		last := err != nil && !quiet
		if quiet && wait == lookAgain {
			select {
			case <-ended:
				last = true
			default:
			}
		}
		from, writeErr := s.pass(f.table.Load(), buf[:held+n], quiet, last)
		if writeErr != nil {
			return writeErr
		}
		held = copy(buf, buf[from:held+n])
		if wait = lookAgain; n > 0 && held > s.shown {
			wait = holdFor
		}
		switch {
		case errors.Is(err, io.EOF) || last && quiet:
			return nil
		case last:
			return err
		}
	}
}

// stream is what a copy knows from one read to the next.
type stream struct {
	dst    io.Writer
	shown  int  // bytes at the front of what is held that dst has already
	masked bool // the last that dst got was a Mark
}

// pass writes what is decided of b, and says from where it is not.
func (s *stream) pass(t *table, b []byte, quiet, last bool) (int, error) {
	done := 0 // decided; dst has up to max(done, s.shown)
	for {
		m := t.find(b, done)
		if err := s.show(b, done, m.start); err != nil {
			return 0, err
		}
		switch {
		case m.whole, m.firm && last:
			if err := s.mask(); err != nil {
				return 0, err
			}
			done = m.end
			continue
		case quiet && !m.firm, last:
			err := s.show(b, m.start, len(b))
			s.shown = len(b) - m.start
			return m.start, err
		}
		s.shown = max(0, s.shown-m.start)
		return m.start, nil
	}
}

// show writes b[from:to] as far as it is not shown yet.
func (s *stream) show(b []byte, from, to int) error {
	if from = max(from, s.shown); from >= to {
		return nil
	}
	s.masked = false
	_, err := s.dst.Write(b[from:to])
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
