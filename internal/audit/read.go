package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Read gives the log's entries from number from on, in the order of the files.
// A line that is no entry, or whose hash does not fit, comes with an error
// that names file and line (in the second case with what the line claims);
// reading goes on after it. An unfinished last line is left out: it is being
// written, or was when the daemon was killed.
func Read(dir string, from uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		c, err := seek(dir, from)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer c.close()
		for {
			e, err := c.next()
			if errors.Is(err, io.EOF) {
				return
			}
			if (err != nil || e.Seq >= from) && !yield(e, err) || fatal(err) {
				return
			}
		}
	}
}

// Tail gives the last n entries and, if follow is true, each new one until ctx
// ends; it looks four times a second. Errors are as Read's.
func Tail(ctx context.Context, dir string, n int, follow bool) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		from, err := fromEnd(dir, n)
		var c *cursor
		if err == nil {
			c, err = seek(dir, from)
		}
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer c.close()
		poll := time.NewTicker(250 * time.Millisecond)
		defer poll.Stop()
		for ctx.Err() == nil {
			e, err := c.next()
			switch {
			case !errors.Is(err, io.EOF):
				if (err != nil || e.Seq >= from) && !yield(e, err) || fatal(err) {
					return
				}
				continue
			case !follow:
				return
			}
			select {
			case <-ctx.Done():
			case <-poll.C:
			}
		}
	}
}

// fromEnd is the number of the n-th last entry.
func fromEnd(dir string, n int) (uint64, error) {
	numbers, err := segments(dir)
	for _, number := range slices.Backward(numbers) {
		end, _, err := lastEntry(filepath.Join(dir, segmentName(number)))
		if err != nil {
			return 0, err
		}
		if end.seq != 0 {
			return end.seq + 1 - min(end.seq, uint64(max(n, 0))), nil
		}
	}
	return 0, err
}

// A lineError says which line could not be taken.
type lineError struct {
	file string
	line int
	err  error
}

func (e *lineError) Error() string { return fmt.Sprintf("%s:%d: %v", e.file, e.line, e.err) }
func (e *lineError) Unwrap() error { return e.err }

// fatal errors end the reading: they are about a file, not about a line.
func fatal(err error) bool {
	var l *lineError
	return err != nil && !errors.As(err, &l)
}

// A cursor reads one line after the other, over the boundaries of files.
type cursor struct {
	dir    string
	number int      // of the segment that is read; 0: none yet
	later  int      // the segment after it, once it is known to be there
	file   *os.File // nil: none
	r      *bufio.Reader
	off    int64 // of the next line
	line   int   // number of the last line
	raw    []byte
	skip   func(line []byte) bool // what is not decoded; nil: nothing
	rest   int                    // bytes of an unfinished line at the end, at the last io.EOF
}

// seek begins with the segment that holds entry from.
func seek(dir string, from uint64) (*cursor, error) {
	numbers, err := segments(dir)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	c := &cursor{dir: dir, r: bufio.NewReaderSize(nil, maxLine)}
	for _, n := range slices.Backward(numbers) {
		if head, err := firstEntry(filepath.Join(dir, segmentName(n))); err == nil && head.Seq <= from {
			c.number = n - 1
			break
		}
	}
	return c, nil
}

func (c *cursor) close() {
	if c.file != nil {
		c.file.Close()
	}
}

// next gives the next entry, or io.EOF where the log ends for now: it may be
// called again. The line itself is in raw until then.
func (c *cursor) next() (Entry, error) {
	for {
		err := c.readLine()
		at := lineError{segmentName(c.number), c.line, err}
		switch {
		case err == nil && c.skip != nil && c.skip(c.raw):
			continue
		case err == nil:
			var e Entry
			e, at.err = parseLine(c.raw)
			e.File, e.Line = at.file, at.line
			if at.err != nil {
				return e, &at
			}
			return e, nil
		case errors.Is(err, bufio.ErrBufferFull):
			at.err = errNoEntry
			return Entry{File: at.file, Line: at.line}, &at
		case !errors.Is(err, io.EOF):
			return Entry{}, fmt.Errorf("audit log: %w", err)
		case c.later == 0:
			// A segment is complete once a later one exists: look again then.
			if c.later, err = following(c.dir, c.number); err != nil {
				return Entry{}, fmt.Errorf("audit log: %w", err)
			}
			if c.later == 0 {
				return Entry{}, io.EOF
			}
			continue
		}
		rest := c.rest
		if err := c.move(); err != nil {
			return Entry{}, fmt.Errorf("audit log: %w", err)
		}
		if rest > 0 {
			at.line, at.err = at.line+1, errNoEntry
			return Entry{File: at.file, Line: at.line}, &at
		}
	}
}

// move goes on to the later segment. One that was deleted meanwhile is empty.
func (c *cursor) move() error {
	c.close()
	c.number, c.later, c.file, c.off, c.line, c.rest = c.later, 0, nil, 0, 0, 0
	f, err := os.OpenFile(filepath.Join(c.dir, segmentName(c.number)), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	c.file = f
	c.r.Reset(f)
	return nil
}

// readLine reads one line into raw, without its newline: io.EOF if there is no
// whole one, bufio.ErrBufferFull if it is longer than any entry.
func (c *cursor) readLine() error {
	if c.file == nil {
		return io.EOF
	}
	line, err := c.r.ReadSlice('\n')
	n, long := len(line), false
	for errors.Is(err, bufio.ErrBufferFull) {
		var more []byte
		more, err = c.r.ReadSlice('\n')
		n, long = n+len(more), true
	}
	if err != nil {
		c.rest = n
		_, again := c.file.Seek(c.off, io.SeekStart)
		c.r.Reset(c.file)
		return cmp.Or(again, err)
	}
	c.off += int64(n)
	c.line++
	if c.raw = line[:len(line)-1]; long {
		return bufio.ErrBufferFull
	}
	return nil
}

// segments lists the numbers of the segments, in order.
func segments(dir string) ([]int, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, n := range names {
		if i := number(n.Name()); i != 0 {
			numbers = append(numbers, i)
		}
	}
	return numbers, nil
}

// following is the first segment after number n, or 0.
func following(dir string, n int) (int, error) {
	numbers, err := segments(dir)
	i, _ := slices.BinarySearch(numbers, n+1)
	if err != nil || i == len(numbers) {
		return 0, err
	}
	return numbers[i], nil
}

// number reads a segment's number from its name, or gives 0.
func number(name string) int {
	digits, ok := strings.CutSuffix(name, ".jsonl")
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || len(digits) != 8 || segmentName(n) != name {
		return 0
	}
	return n
}

// firstEntry reads the first line of a segment.
func firstEntry(path string) (Entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return Entry{}, err
	}
	defer f.Close()
	line, err := bufio.NewReaderSize(f, 4<<10).ReadSlice('\n')
	if err != nil {
		return Entry{}, err
	}
	return parseLine(line[:len(line)-1])
}

// lastEntry finds the last whole entry of a segment, and the segment's size.
// Without one, the position is zero.
func lastEntry(path string) (position, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return position{}, 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return position{}, 0, err
	}
	size := st.Size()
	for window := int64(4 * maxLine); ; window *= 8 {
		start := max(0, size-window)
		b := make([]byte, size-start)
		if _, err := f.ReadAt(b, start); err != nil && !errors.Is(err, io.EOF) {
			return position{}, 0, err
		}
		for end := bytes.LastIndexByte(b, '\n'); end >= 0; {
			begin := bytes.LastIndexByte(b[:end], '\n')
			if e, err := parseLine(b[begin+1 : end]); err == nil {
				return position{seq: e.Seq, hash: e.Hash, off: start + int64(end) + 1}, size, nil
			}
			end = begin
		}
		if start == 0 {
			return position{}, size, nil
		}
	}
}
