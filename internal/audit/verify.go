package audit

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// A Report says whether a log is whole and unchanged, as far as it and the
// anchors tell.
type Report struct {
	Log      string    `json:"log"` // the log's own name
	Segments int       `json:"segments"`
	Entries  uint64    `json:"entries"`
	First    uint64    `json:"first"` // number of the first entry; above 1 once entries have expired
	Last     uint64    `json:"last"`
	Since    time.Time `json:"since,omitzero"`
	Until    time.Time `json:"until,omitzero"`
	Hash     string    `json:"hash"`               // of the last entry: what an anchor of one's own would hold
	Anchors  int       `json:"anchors"`            // that fit; zero: the log is consistent in itself, and that is all
	Covered  uint64    `json:"covered"`            // the last entry that a fitting anchor covers
	Lost     int64     `json:"lost"`               // events that the log itself says it could not write
	Torn     int       `json:"torn"`               // unfinished ends that the log itself says it set aside
	Partial  string    `json:"partial,omitempty"`  // where an unfinished last line is: harmless, it is being written or was when the daemon was killed
	Problems []Problem `json:"problems,omitempty"` // at most 100
	More     int       `json:"more,omitempty"`     // problems beyond those
}

// A Problem is one place where the log is not what was written.
type Problem struct {
	File  string `json:"file,omitempty"`
	Line  int    `json:"line,omitempty"`
	Seq   uint64 `json:"seq,omitempty"` // entry, as far as known
	What  string `json:"what"`
	Means string `json:"means"`
}

// OK says whether no problem was found.
func (r Report) OK() bool { return len(r.Problems) == 0 }

// String gives place, finding and meaning in one line.
func (p Problem) String() string {
	switch {
	case p.File != "" && p.Line != 0:
		return fmt.Sprintf("%s:%d: %s: %s", p.File, p.Line, p.What, p.Means)
	case p.File != "":
		return fmt.Sprintf("%s: %s: %s", p.File, p.What, p.Means)
	}
	return p.What + ": " + p.Means
}

// Verify reads the whole log and checks each line's hash, the chain, the
// numbers, the order of the files, that what is missing at the head has
// expired, and that the anchors fit. It returns an error only if it cannot
// read. Without anchors it cannot find that entries are missing at the end, or
// that the log was rewritten as a whole.
func Verify(dir string, anchors []Anchor) (Report, error) {
	v := verifier{anchors: make(map[uint64][]Anchor, len(anchors)), named: make(map[string]bool)}
	c, err := seek(dir, 0)
	if err != nil {
		return v.Report, err
	}
	defer c.close()
	for _, a := range anchors {
		v.anchors[a.Seq] = append(v.anchors[a.Seq], a)
	}
	for {
		e, err := c.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if fatal(err) {
			return v.Report, err
		}
		v.line(e, err)
	}
	if c.rest > 0 {
		v.Partial = fmt.Sprintf("%s:%d", segmentName(c.number), c.line+1)
	}
	v.head()
	v.outside()
	return v.Report, nil
}

type verifier struct {
	Report
	anchors map[uint64][]Anchor // by entry
	named   map[string]bool     // the logs that the segments name
	first   Entry
	last    Entry // the newest entry in order
	claims  []claim
	inLine  bool // the line before was no entry
}

// A claim is what an audit.expired entry says.
type claim struct {
	to        uint64
	hash      string
	retention time.Duration
	at        time.Time
}

func (v *verifier) problem(e Entry, what, means string) {
	if len(v.Problems) == 100 {
		v.More++
		return
	}
	v.Problems = append(v.Problems, Problem{File: e.File, Line: e.Line, Seq: e.Seq, What: what, Means: means})
}

// line takes the next line of the log.
func (v *verifier) line(e Entry, err error) {
	if e.Line == 1 {
		v.Segments++
		v.segment(e)
	}
	if errors.Is(err, errNoEntry) {
		v.inLine = true
		v.problem(e, "this line is no audit entry", "it was damaged or put in by hand; if the next line is in order, nothing is missing")
		return
	}
	if err != nil {
		v.problem(e, fmt.Sprintf("entry %d was changed after it was written", e.Seq), "its text does not fit its hash: do not believe it")
	}
	v.Entries++
	v.place(e)
	v.inLine = false
	v.fits(e)
	v.notes(e)
}

// segment looks at the first line of a file.
func (v *verifier) segment(e Entry) {
	if e.Type != LogSegment {
		v.problem(e, "the file does not begin as a file of the log does", "its first lines were removed, or it is no file of the log")
		return
	}
	if name := e.Detail["log"]; v.Log == "" {
		v.Log = name
	} else if name != v.Log {
		v.problem(e, fmt.Sprintf("the file belongs to another log (%s, not %s)", text(name, maxKey), text(v.Log, maxKey)),
			"it was copied here, or the files before it were")
	}
	v.named[e.Detail["log"]] = true
}

// place checks number and chain against the entry before.
func (v *verifier) place(e Entry) {
	last := v.last
	switch {
	case last.Seq == 0:
		v.first = e
		v.First, v.Since = e.Seq, e.Time
		if e.Seq == 1 && e.Prev != "" {
			v.problem(e, "the first entry names one before it", "the head of the log was replaced")
		}
	case e.Seq <= last.Seq:
		v.problem(e, fmt.Sprintf("entry %d stands after entry %d", e.Seq, last.Seq), "lines were moved or repeated, or an older copy of a file was put back")
		return
	case e.Seq > last.Seq+1:
		means := "they were deleted, or moved"
		if v.inLine {
			means = "the damaged line before may be one of them; the others were deleted"
		}
		v.problem(e, fmt.Sprintf("entries %d to %d are missing before this line", last.Seq+1, e.Seq-1), means)
	case e.Prev != last.Hash:
		v.problem(e, fmt.Sprintf("entry %d does not follow from entry %d", e.Seq, last.Seq),
			fmt.Sprintf("entry %d (%s:%d) was replaced by another with a hash of its own, or everything from here on was written anew", last.Seq, last.File, last.Line))
	}
	v.last = e
	v.Last, v.Until, v.Hash = e.Seq, e.Time, e.Hash
}

// fits compares an entry with the anchors for it.
func (v *verifier) fits(e Entry) {
	var others []Anchor
	for _, a := range v.anchors[e.Seq] {
		switch {
		case a.Log != "" && a.Log != v.Log:
			others = append(others, a)
		case a.Hash == e.Hash:
			v.Anchors++
			v.Covered = max(v.Covered, e.Seq)
		default:
			v.problem(e, fmt.Sprintf("entry %d is not the one that was anchored at %s", e.Seq, stamp(a.Time)),
				"the log was rewritten: entries up to this one cannot be believed beyond the last anchor that fits")
		}
	}
	if v.anchors[e.Seq] = others; len(others) == 0 {
		delete(v.anchors, e.Seq)
	}
}

// notes takes what the log says about itself.
func (v *verifier) notes(e Entry) {
	switch e.Type {
	case LogLost:
		v.Lost += e.Count
	case LogTorn:
		v.Torn++
	case LogBroken:
		v.problem(e, fmt.Sprintf("the daemon found %s changed under it (%s)", text(e.Detail["file"], maxKey), e.Code),
			"somebody removed, cut or appended to that file at the time of this entry")
	case LogExpired:
		to, err := strconv.ParseUint(e.Detail["to"], 10, 64)
		keep, err2 := time.ParseDuration(e.Detail["retention"])
		if e.Code == "" && err == nil && err2 == nil {
			v.claims = append(v.claims, claim{to, e.Detail["hash"], keep, e.Time})
		}
	default:
	}
}

// head checks that what is missing before the first entry has expired.
func (v *verifier) head() {
	if v.First <= 1 {
		return
	}
	for _, c := range v.claims {
		if c.to >= v.First || c.to == v.First-1 && c.hash == v.first.Prev {
			return
		}
	}
	v.problem(v.first, fmt.Sprintf("entries 1 to %d are missing", v.First-1), "they did not expire: no entry says so; their files were deleted by hand")
}

// outside looks at the anchors for which no entry was found.
func (v *verifier) outside() {
	type group struct {
		n    int
		last Anchor
	}
	var cut, early, gone group
	others := make(map[string]group)
	count := func(g group, a Anchor) group {
		if g.n++; a.Seq >= g.last.Seq {
			g.last = a
		}
		return g
	}
	for _, as := range v.anchors {
		for _, a := range as {
			switch {
			case a.Log != "" && v.Log != "" && !v.named[a.Log]:
				others[a.Log] = count(others[a.Log], a)
			case a.Seq > v.Last:
				cut = count(cut, a)
			case a.Seq >= v.First:
				gone = count(gone, a)
			case !v.mayBeGone(a):
				early = count(early, a)
			}
		}
	}
	if cut.n > 0 {
		v.problem(Entry{Seq: cut.last.Seq}, fmt.Sprintf("the log ends at entry %d, but entry %d was anchored at %s", v.Last, cut.last.Seq, stamp(cut.last.Time)),
			"entries were cut off at the end, or an older copy of the log was put back")
	}
	if gone.n > 0 {
		v.problem(Entry{Seq: gone.last.Seq}, fmt.Sprintf("%d anchored entries are not in the log, the last is entry %d of %s", gone.n, gone.last.Seq, stamp(gone.last.Time)),
			"their lines were deleted or damaged")
	}
	if early.n > 0 {
		v.problem(Entry{Seq: early.last.Seq}, fmt.Sprintf("%d anchored entries before the first one were deleted before their time, the last is entry %d of %s", early.n, early.last.Seq, stamp(early.last.Time)),
			"no retention explains that they are gone")
	}
	for name, g := range others {
		v.problem(Entry{}, fmt.Sprintf("the journal has %d anchors of another log (%s), up to entry %d at %s", g.n, text(name, maxKey), g.last.Seq, stamp(g.last.Time)),
			"if this daemon never had another state directory, that log was removed and this one begun in its place")
	}
}

// mayBeGone says whether an anchored entry from before the first one had
// reached its retention when it was deleted.
func (v *verifier) mayBeGone(a Anchor) bool {
	for _, c := range v.claims {
		if c.to >= a.Seq && (a.Time.IsZero() || !a.Time.Add(c.retention).After(c.at.Add(time.Minute))) {
			return true
		}
	}
	return false
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return "an unknown time"
	}
	return t.UTC().Format(time.RFC3339)
}
