package scan

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Rules of this file: git and journalctl run with an environment of our own; a
// repository is data, so nothing that its configuration names may run or be
// fetched.

// child runs a command and gives its output to read. What it says on standard
// error may quote a file, and is dropped. A failure is the reason for a person.
func child(ctx context.Context, args []string, read func(*bufio.Reader) error) (failure string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = []string{
		"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C", "HOME=/nonexistent",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_NO_REPLACE_OBJECTS=1", "GIT_OPTIONAL_LOCKS=0",
		"GIT_TERMINAL_PROMPT=0", "GIT_NO_LAZY_FETCH=1", "GIT_ALLOW_PROTOCOL=none",
	}
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return args[0] + " cannot be run: is it installed?", nil
	}
	if err := read(bufio.NewReaderSize(out, 64<<10)); err != nil {
		cancel()
		_ = cmd.Wait()
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return args[0] + " failed: " + err.Error(), context.Cause(ctx)
	}
	return "", nil
}

func gitCommand(dir string, args ...string) []string {
	return append([]string{"git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "--git-dir=" + dir}, args...)
}

// git scans every object of a repository, packed or loose, reachable or not.
func (w *worker) git(ctx context.Context, dir, shown string) error {
	at := spot{source: SourceGit, path: shown}
	w.s.current.Store(&shown)
	w.begin()
	defer w.end(at)
	failure, err := child(ctx, gitCommand(dir, "cat-file", "--batch-all-objects", "--batch", "--unordered", "--buffer"),
		func(r *bufio.Reader) error { return w.objects(ctx, at, r) })
	if err != nil {
		return err
	}
	if failure != "" {
		w.s.unread(at, failure)
	}
	objects := w.s.objects(shown)
	if len(objects) == 0 {
		return nil
	}
	failure, err = child(ctx, gitCommand(dir, "rev-list", "--objects", "--all", "--reflog"),
		func(r *bufio.Reader) error { return w.treePaths(ctx, at, objects, r) })
	if failure != "" {
		w.s.unread(at, "the paths of objects are not known: "+failure)
	}
	return err
}

// objects reads the output of git cat-file --batch: "<object> <type> <size>",
// the contents, a line end.
func (w *worker) objects(ctx context.Context, at spot, r *bufio.Reader) error {
	for {
		line, ok := readLine(r)
		if !ok {
			return nil // how it ended, the exit status says
		}
		f := strings.Fields(line)
		if len(f) != 3 {
			w.s.unread(at, "git shows an object that is missing or damaged")
			continue
		}
		size, _ := strconv.ParseInt(f[2], 10, 64)
		at.object = f[0]
		at.inside = nil
		left := max(freeUnpacked, maxRatio*size)
		at.left = &left
		body := io.LimitReader(r, size)
		if err := w.content(ctx, at, &counted{r: body, n: &w.s.inside}); err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, body)
		_, _ = r.Discard(1)
	}
}

// readLine reads a line; of one that is longer than r's buffer, the beginning.
// ok is false at the end.
func readLine(r *bufio.Reader) (line string, ok bool) {
	b, err := r.ReadSlice('\n')
	line = strings.TrimSuffix(string(b), "\n")
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = r.ReadSlice('\n')
	}
	return line, err == nil
}

// objects returns those of a repository in which something was found.
func (s *Scanner) objects(path string) map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := map[string]bool{}
	for _, f := range s.report.Findings {
		if f.Source == SourceGit && f.Path == path {
			list[f.Object] = true
		}
	}
	return list
}

// treePaths reads the output of git rev-list --objects, and says under which
// path the objects were committed first found.
func (w *worker) treePaths(ctx context.Context, at spot, objects map[string]bool, r *bufio.Reader) error {
	for {
		line, ok := readLine(r)
		if !ok {
			return nil
		}
		object, name, _ := strings.Cut(line, " ")
		if name == "" || !objects[object] {
			continue
		}
		delete(objects, object)
		at.object = object
		name, err := w.name(ctx, at, name)
		if err != nil {
			return err
		}
		w.s.mu.Lock()
		for i := range w.s.report.Findings {
			f := &w.s.report.Findings[i]
			if f.Object != object || f.Path != at.path || f.InName && f.Member == name {
				continue
			}
			if f.Member != "" {
				f.Member = name + "!" + f.Member
			} else {
				f.Member = name
			}
		}
		w.s.mu.Unlock()
	}
}

// maxEntry bounds an entry of the journal in memory; what is longer is scanned
// in pieces.
const maxEntry = 4 << 20

// journal scans the systemd journal.
func journal(ctx context.Context, w *worker) error {
	shown := "the journal"
	at := spot{source: SourceJournal, path: shown}
	w.s.current.Store(&shown)
	w.begin()
	defer w.end(at)
	failure, err := child(ctx, []string{"journalctl", "--no-pager", "--quiet", "--output=export"},
		func(r *bufio.Reader) error { return w.entries(ctx, at, r) })
	if failure != "" {
		w.s.unread(at, failure)
	}
	return err
}

// entries reads systemd's Journal Export Format: fields as "NAME=value" lines,
// or the name, a 64-bit little-endian length and the value; an empty line ends
// an entry.
func (w *worker) entries(ctx context.Context, at spot, r *bufio.Reader) error {
	e := entry{}
	for {
		from := len(e.text)
		after := e.field(r)
		w.s.inside.Add(int64(len(e.text) - from))
		if after == inEntry && len(e.text) < maxEntry {
			continue
		}
		if err := w.entry(ctx, at, &e); err != nil {
			return err
		}
		switch after {
		case inEntry:
			w.s.unread(e.where(at), "an entry of more than 4 MiB was scanned in pieces")
			e.text = append(e.text[:0], e.text[len(e.text)-maxForm:]...)
		case endOfEntry:
			e = entry{text: e.text[:0]}
		case notUnderstood:
			w.s.unread(at, "the journal's output is not understood")
			return nil
		default:
			return nil // how it ended, the exit status says
		}
	}
}

// entry is one entry of the journal.
type entry struct {
	text []byte
	unit string
	time time.Time
	open bool // text ends within a line of a value
}

// after says where the reading of a field ended.
type after int

const (
	inEntry after = iota
	endOfEntry
	endOfJournal
	notUnderstood
)

func (e *entry) where(at spot) spot {
	at.unit, at.time = e.unit, e.time
	return at
}

// field appends the next field, or a piece of a long one.
func (e *entry) field(r *bufio.Reader) after {
	from := len(e.text)
	piece, err := r.ReadSlice('\n')
	for e.text = append(e.text, piece...); err != nil; e.text = append(e.text, piece...) {
		if !errors.Is(err, bufio.ErrBufferFull) {
			return endOfJournal
		}
		if len(e.text) >= maxEntry {
			e.open = true
			return inEntry
		}
		piece, err = r.ReadSlice('\n')
	}
	line := e.text[from : len(e.text)-1]
	if e.open {
		e.open = false
		return inEntry
	}
	if len(line) == 0 {
		return endOfEntry
	}
	name, value, text := bytes.Cut(line, []byte("="))
	if !text {
		return e.binary(r)
	}
	switch string(name) {
	case "_SYSTEMD_UNIT":
		if e.unit == "" {
			e.unit = string(value)
		}
	case "_SYSTEMD_USER_UNIT":
		if e.unit == "" || strings.HasPrefix(e.unit, "user@") {
			e.unit = string(value)
		}
	case "__REALTIME_TIMESTAMP":
		if n, err := strconv.ParseInt(string(value), 10, 64); err == nil {
			e.time = time.UnixMicro(n).UTC()
		}
	}
	return inEntry
}

// binary appends the value of a field whose name has been read.
func (e *entry) binary(r *bufio.Reader) after {
	var size [8]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return endOfJournal
	}
	n := binary.LittleEndian.Uint64(size[:])
	if n > 1<<40 {
		return notUnderstood
	}
	kept := min(int64(n), maxEntry) // the note of an entry in pieces stands for the rest
	from := len(e.text)
	e.text = slices.Grow(e.text, int(kept))[:from+int(kept)]
	got, err := io.ReadFull(r, e.text[from:])
	e.text = e.text[:from+got]
	if err == nil {
		_, err = io.CopyN(io.Discard, r, int64(n)-kept+1)
	}
	if err != nil {
		return endOfJournal
	}
	return inEntry
}

// entry scans an entry.
func (w *worker) entry(ctx context.Context, at spot, e *entry) error {
	matches, err := w.look(ctx, e.text, 0, len(e.text))
	if err != nil || len(matches) == 0 {
		return err
	}
	if e.unit, err = w.name(ctx, spot{source: SourceJournal, path: "the journal"}, e.unit); err != nil {
		return err
	}
	for _, m := range matches {
		w.s.add(e.where(at), m, 0, int64(m.Start))
	}
	return nil
}
