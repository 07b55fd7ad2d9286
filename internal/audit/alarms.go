package audit

import (
	"bytes"
	"errors"
	"io"
)

// AlarmKey is the key of Detail that makes an entry an alarm: something that a
// person has to see to. Its value says what.
const AlarmKey = "alarm"

// Alarms reads the alarms of a log, and no other entries: what lies between
// them is passed over undecoded, so that to follow the log of a busy daemon
// costs next to nothing. It keeps its place and holds nothing else.
type Alarms struct {
	c     *cursor
	after uint64
	seq   uint64
}

// AlarmsAfter begins after the entry of that number. Close it.
func AlarmsAfter(dir string, seq uint64) (*Alarms, error) {
	c, err := seek(dir, seq+1)
	if err != nil {
		return nil, err
	}
	a := &Alarms{c: c, after: seq, seq: seq}
	marker := []byte(`"` + AlarmKey + `":"`)
	c.skip = func(line []byte) bool {
		a.seq = max(a.seq, number64(line))
		return !bytes.Contains(line, marker)
	}
	return a, nil
}

// number64 is an entry's number, which its line begins with; 0: it does not.
func number64(line []byte) (n uint64) {
	digits, ok := bytes.CutPrefix(line, []byte(`{"seq":`))
	for i := 0; ok && i < len(digits) && digits[i] >= '0' && digits[i] <= '9'; i++ {
		n = n*10 + uint64(digits[i]-'0')
	}
	return n
}

// Next gives the next alarm, or io.EOF where the log ends for now: it may be
// called again. A line that is no entry, or whose hash does not fit, is passed
// over: Verify finds it. Another error is about a file; it ends the reading.
func (a *Alarms) Next() (Entry, error) {
	for {
		e, err := a.c.next()
		switch {
		case errors.Is(err, io.EOF) || fatal(err):
			return Entry{}, err
		case err != nil || e.Seq <= a.after || e.Detail[AlarmKey] == "":
			continue
		}
		return e, nil
	}
}

// Seq is the number of the last entry that was passed, as the files have it.
func (a *Alarms) Seq() uint64 { return a.seq }

// Close lets the file go.
func (a *Alarms) Close() { a.c.close() }
