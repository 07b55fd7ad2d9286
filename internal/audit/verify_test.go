package audit

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// written is a log of three files, and its anchors.
func written(t *testing.T) (dir string, anchors []Anchor) {
	t.Helper()
	dir = logDir(t)
	for range 3 {
		l, stop := start(t, Config{}, Options{Dir: dir, Anchor: func(_ context.Context, a Anchor) error {
			anchors = append(anchors, a)
			return nil
		}}, func(l *Log) { l.limits.segment = 3000 })
		for i := range 10 {
			record(t, l, Event{Type: TokenHandover, Client: "c" + strconv.Itoa(i), Caller: &Caller{UID: 33}})
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	if r := verified(t, dir, anchors); r.Segments < 3 || r.Anchors != len(anchors) || r.Covered != r.Last || !r.OK() {
		t.Fatalf("%+v", r)
	}
	return dir, anchors
}

// A tampering changes the lines of one file; lines end with a newline.
type tampering struct {
	name   string
	change func(lines [][]byte) [][]byte
	says   string // of what Verify finds
	line   int    // where; 0: somewhere
}

func TestTamperedFile(t *testing.T) {
	rewrite := func(line []byte, f func(*Entry)) []byte {
		e, err := parseLine(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			t.Fatal(err)
		}
		f(&e)
		return forged(e)
	}
	for _, c := range []tampering{
		{"a byte changed", func(ls [][]byte) [][]byte {
			ls[3] = bytes.Replace(ls[3], []byte(`"time":"2`), []byte(`"time":"1`), 1)
			return ls
		}, "was changed after it was written", 4},
		{"a line changed, its hash too", func(ls [][]byte) [][]byte {
			ls[3] = rewrite(ls[3], func(e *Entry) { e.Boot++ })
			return ls
		}, "does not follow from entry", 5},
		{"a line deleted", func(ls [][]byte) [][]byte { return append(ls[:3], ls[4:]...) }, "are missing before this line", 4},
		{"two lines swapped", func(ls [][]byte) [][]byte { ls[3], ls[4] = ls[4], ls[3]; return ls }, "stands after entry", 5},
		{"a line repeated", func(ls [][]byte) [][]byte { return append(ls[:4:4], ls[3:]...) }, "stands after entry", 5},
		{"text put in", func(ls [][]byte) [][]byte { ls[3] = append([]byte("hello\n"), ls[3]...); return ls }, "is no audit entry", 4},
		{"a line blanked", func(ls [][]byte) [][]byte { ls[3] = []byte("\n"); return ls }, "is no audit entry", 4},
		{"an endless line", func(ls [][]byte) [][]byte {
			ls[3] = append(bytes.Repeat([]byte("x"), 3*maxLine), '\n')
			return ls
		}, "is no audit entry", 4},
		{"an entry put in", func(ls [][]byte) [][]byte {
			more := rewrite(ls[3], func(e *Entry) { e.Prev, e.Seq = e.Hash, e.Seq+1 })
			return append(ls[:4:4], append([][]byte{more}, ls[4:]...)...)
		}, "stands after entry", 6},
		{"the head of the file deleted", func(ls [][]byte) [][]byte { return ls[1:] }, "does not begin as a file of the log does", 1},
		{"the end of the file deleted", func(ls [][]byte) [][]byte { return ls[:len(ls)-1] }, "are missing before this line", 0},
		{"the end of the file cut", func(ls [][]byte) [][]byte {
			last := &ls[len(ls)-1]
			*last = (*last)[:len(*last)-9]
			return ls
		}, "is no audit entry", 0},
		{"the whole file emptied", func([][]byte) [][]byte { return nil }, "are missing before this line", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, anchors := written(t)
			path := filepath.Join(dir, segmentName(2))
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			lines := bytes.SplitAfter(b, []byte("\n"))
			lines = lines[:len(lines)-1] // nothing follows the last newline
			if err := os.WriteFile(path, bytes.Join(c.change(lines), nil), 0o600); err != nil {
				t.Fatal(err)
			}
			// The chain alone finds it, and so it does with the anchors.
			for _, as := range [][]Anchor{nil, anchors} {
				r, err := Verify(dir, as)
				if err != nil {
					t.Fatal(err)
				}
				found := false
				for _, p := range r.Problems {
					found = found || strings.Contains(p.What, c.says) && (c.line == 0 || p.Line == c.line && p.File == segmentName(2)) && p.Means != ""
				}
				if !found || r.OK() {
					t.Errorf("nothing says %q in line %d: %v", c.says, c.line, r.Problems)
				}
			}
		})
	}
}

// rewritten writes the log anew from entry seq on, as one would who may write
// to the files: every hash fits.
func rewritten(t *testing.T, dir string, seq uint64, change func(*Entry)) {
	t.Helper()
	es := entries(t, dir)
	files, prev := make(map[string][]byte), ""
	for _, e := range es {
		if e.Seq == seq {
			change(&e)
		}
		e.Prev = prev
		line := forged(e)
		again, err := parseLine(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			t.Fatal(err)
		}
		prev = again.Hash
		files[e.File] = append(files[e.File], line...)
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAnchorsFindWhatTheChainCannot: each of these leaves a chain in order.
func TestAnchorsFindWhatTheChainCannot(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, dir string)
		says   string
	}{
		"rewritten": {func(t *testing.T, dir string) {
			rewritten(t, dir, 5, func(e *Entry) { e.Client = "somebody else" })
		}, "is not the one that was anchored"},
		"cut at the end": {func(t *testing.T, dir string) {
			numbers, _ := segments(dir)
			path := filepath.Join(dir, segmentName(numbers[len(numbers)-1]))
			b, _ := os.ReadFile(path)
			b = b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1]
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "was anchored at"},
		"the last file deleted": {func(t *testing.T, dir string) {
			numbers, _ := segments(dir)
			if err := os.Remove(filepath.Join(dir, segmentName(numbers[len(numbers)-1]))); err != nil {
				t.Fatal(err)
			}
		}, "cut off at the end"},
		"begun anew": {func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			l, stop := start(t, quiet, Options{Dir: dir}, nil)
			record(t, l, Event{Type: TokenHandover})
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		}, "of another log"},
		"everything deleted": {func(t *testing.T, dir string) {
			if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, "the log ends at entry 0"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, anchors := written(t)
			c.change(t, dir)
			verified(t, dir, nil)
			wants(t, dir, anchors, c.says)
		})
	}
}

func TestHeadDeleted(t *testing.T) {
	dir, anchors := written(t)
	if err := os.Remove(filepath.Join(dir, segmentName(1))); err != nil {
		t.Fatal(err)
	}
	wants(t, dir, nil, "they did not expire")
	wants(t, dir, anchors, "before their time")
}

// TestFalseExpiry: an entry that says that those before expired has to know
// the last one's hash.
func TestFalseExpiry(t *testing.T) {
	dir, _ := written(t)
	numbers, _ := segments(dir)
	next, err := firstEntry(filepath.Join(dir, segmentName(numbers[1])))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, segmentName(numbers[0]))); err != nil {
		t.Fatal(err)
	}
	all := entries(t, dir)
	last := all[len(all)-1]
	claims := func(hash string) {
		appendFile(t, filepath.Join(dir, last.File), forged(Entry{Seq: last.Seq + 1, Time: last.Time, Prev: last.Hash, Event: Event{Type: LogExpired,
			Detail: map[string]string{"to": strconv.FormatUint(next.Seq-1, 10), "hash": hash, "retention": "24h0m0s"}}}))
	}
	claims(strings.Repeat("0", hashLen))
	wants(t, dir, nil, "did not expire")
	path := filepath.Join(dir, last.File)
	b, _ := os.ReadFile(path)
	if err := os.WriteFile(path, b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1], 0o600); err != nil {
		t.Fatal(err)
	}
	claims(next.Prev)
	verified(t, dir, nil)
}

func TestFirstEntryWithAPredecessor(t *testing.T) {
	dir := logDir(t)
	line := forged(Entry{Seq: 1, Prev: strings.Repeat("a", hashLen), Event: Event{Type: LogSegment, Detail: map[string]string{"format": "1", "log": "L"}}})
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, segmentName(1)), line, 0o600)); err != nil {
		t.Fatal(err)
	}
	wants(t, dir, nil, "the head of the log was replaced")
}

func TestFileOfAnotherLog(t *testing.T) {
	dir, _ := written(t)
	other, _ := written(t)
	if err := os.Rename(filepath.Join(other, segmentName(2)), filepath.Join(dir, segmentName(2))); err != nil {
		t.Fatal(err)
	}
	wants(t, dir, nil, "belongs to another log")
}

func TestDamagedEntryOfAnchor(t *testing.T) {
	dir, anchors := written(t)
	numbers, _ := segments(dir)
	path := filepath.Join(dir, segmentName(numbers[1]))
	b, _ := os.ReadFile(path)
	b = bytes.ReplaceAll(b, []byte(`"type":"audit.anchor"`), []byte(`"type":7`))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	wants(t, dir, anchors, "anchored entries are not in the log")
}

func TestManyProblemsAreBounded(t *testing.T) {
	dir := logDir(t)
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, segmentName(1)), bytes.Repeat([]byte("x\n"), 5000), 0o600)); err != nil {
		t.Fatal(err)
	}
	r, err := Verify(dir, nil)
	if err != nil || len(r.Problems) != 100 || r.More < 4900 {
		t.Errorf("%d problems and %d more, %v", len(r.Problems), r.More, err)
	}
}

// TestPartialLineIsNoProblem: the daemon is writing while somebody reads.
func TestPartialLineIsNoProblem(t *testing.T) {
	dir, anchors := written(t)
	numbers, _ := segments(dir)
	newest := segmentName(numbers[len(numbers)-1])
	appendFile(t, filepath.Join(dir, newest), []byte(`{"seq":`))
	all := entries(t, dir)
	if r := verified(t, dir, anchors); r.Partial != newest+":"+strconv.Itoa(all[len(all)-1].Line+1) {
		t.Errorf("partial: %q", r.Partial)
	}
}
