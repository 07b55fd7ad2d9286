package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// outdated is a run of segments at the head of the log.
type outdated struct {
	files       []string // names, the oldest first, with what was set aside from them
	from, to    uint64   // entries; from is 0 if the first segment's head is unreadable
	hash        string   // of entry to
	first, last time.Time
}

func (o outdated) count() int64 { return int64(o.to - o.from + 1) }

// expired finds the segments whose last entry is older than cut. The segment
// that follows says when that was at the latest; one that cannot be dated
// keeps those before it.
func (d *disk) expired(cut time.Time) (outdated, error) {
	var o outdated
	numbers, err := segments(d.dir)
	if err != nil {
		return o, err
	}
	keep := 0
	for i := 1; i < len(numbers); i++ {
		next, err := firstEntry(filepath.Join(d.dir, segmentName(numbers[i])))
		if err != nil || !next.Time.Before(cut) {
			break
		}
		keep, o.to, o.hash, o.last = i, next.Seq-1, next.Prev, next.Time
	}
	if keep == 0 {
		return outdated{}, nil
	}
	if head, err := firstEntry(filepath.Join(d.dir, segmentName(numbers[0]))); err == nil {
		o.from, o.first = head.Seq, head.Time
	}
	names, err := os.ReadDir(d.dir)
	if err != nil {
		return outdated{}, err
	}
	limit := fmt.Sprintf("%08d.", numbers[keep])
	for _, n := range names { // sorted by name
		if name := n.Name(); name < limit && (number(name) != 0 || strings.Contains(name, ".torn-")) {
			o.files = append(o.files, name)
		}
	}
	return o, nil
}

// remove deletes, the oldest first, so that what is left is always one piece.
func (d *disk) remove(o outdated) error {
	for _, name := range o.files {
		if err := os.Remove(filepath.Join(d.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return d.lock.Sync()
}
