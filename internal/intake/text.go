package intake

import (
	"bytes"
	"fmt"
)

// Rules of this file:
//   - a value belongs to a label if nothing else could: on the same line behind
//     a separator, in its row or column of a table, or alone on the next line;
//   - two labels in a row before any value leave it open which value is whose.

// A sheet reads a text line by line.
type sheet struct {
	in      *reader
	name    string
	line    int // 0: the lines are not the file's
	pending []label
	columns []label // of a table whose header was seen; field "" is of no interest
	delim   string
}

func (in *reader) text(text []byte, name string, lines bool) {
	s := sheet{in: in, name: name}
	for line := range bytes.Lines(text) {
		if lines {
			s.line++
		}
		if line = undecorated(line); len(line) > 0 {
			s.read(line)
		}
	}
	s.flush()
}

func place(name string, line int) string {
	switch {
	case line == 0:
		return title(name)
	case name == "":
		return fmt.Sprintf("line %d", line)
	}
	return fmt.Sprintf("%s, line %d", name, line)
}

// flush gives up the labels that wait for a value.
func (s *sheet) flush() {
	s.in.wait(s.pending...)
	s.pending = nil
}

func (s *sheet) add(l label, value []byte, f form) {
	l.place = place(s.name, s.line)
	s.in.add(l, value, f)
}

func (s *sheet) read(line []byte) {
	if s.row(line) || len(bytes.Trim(line, "-=_*~")) == 0 || s.header(line) {
		return
	}
	if all := pairs(line); len(all) > 0 {
		s.pairs(all)
		return
	}
	if l, ok := labelOf(line); ok {
		l.place = place(s.name, s.line)
		if len(s.pending) < maxFinds {
			s.pending = append(s.pending, l)
		}
		return
	}
	if s.cells(line) {
		return
	}
	if bytes.ContainsAny(line, " \t") { // prose
		s.flush()
		return
	}
	if len(s.pending) == 1 {
		s.add(s.pending[0], line, inText)
		s.pending = nil
		return
	}
	s.add(label{}, line, inText)
}

func (s *sheet) pairs(all []pair) {
	s.flush()
	for i, p := range all {
		if len(p.value) == 0 && i == len(all)-1 {
			p.label.place = place(s.name, s.line)
			s.pending = append(s.pending, p.label)
			return
		}
		f := inText
		if p.glued {
			f = inQuery
		}
		s.add(p.label, p.value, f)
	}
}

// delims divide cells, the surest first. Not all of them divide a header.
func delims() []string { return []string{"\t", ";", "|", ",", "  ", " - ", " – ", " is "} }

const headerDelims = 5

// header recognises the first row of a table: two labels, or one that is not
// in the first column.
func (s *sheet) header(line []byte) bool {
	for i, d := range delims()[:headerDelims] {
		all := split(line, d)
		if len(all) < 2 {
			continue
		}
		columns := make([]label, len(all))
		n := 0
		for i, c := range all {
			if l, ok := labelOf(c); ok {
				columns[i] = l
				n++
			}
		}
		// A comma and spaces also stand in sentences.
		if n >= 2 || n == 1 && i < 3 && columns[0].field == "" {
			s.flush()
			s.columns, s.delim = columns, d
			return true
		}
	}
	return false
}

// row reads a line of the table that is open.
func (s *sheet) row(line []byte) bool {
	if s.columns == nil {
		return false
	}
	all := split(line, s.delim)
	if len(all) != len(s.columns) {
		s.columns = nil
		return false
	}
	if len(bytes.Trim(line, "-|+=: \t")) == 0 { // the rule under a header
		return true
	}
	for i, l := range s.columns {
		if l.field != "" {
			s.add(l, all[i], inCell)
		}
	}
	return true
}

// cells reads a row whose first cell is a label.
func (s *sheet) cells(line []byte) bool {
	for _, d := range delims() {
		all := split(line, d)
		if len(all) < 2 {
			continue
		}
		l, ok := labelOf(all[0])
		if !ok {
			continue
		}
		s.flush()
		for _, c := range all[1:] {
			if len(c) > 0 {
				s.add(l, c, inCell)
			}
		}
		return true
	}
	return s.word(line)
}

// word reads "client_id abc123": a label, spaces, and one word, as text from a
// PDF has it. It may also be the start of a sentence.
func (s *sheet) word(line []byte) bool {
	i := bytes.LastIndexAny(line, " \t")
	if i < 0 {
		return false
	}
	l, ok := labelOf(line[:i])
	if !ok || !plausible(line[i+1:]) {
		return false
	}
	s.flush()
	s.add(l, line[i+1:], inSentence)
	return true
}

// split divides a line into trimmed cells. Quotes protect a divider (RFC 4180
// §2).
func split(line []byte, delim string) [][]byte {
	if delim == "|" {
		line = bytes.Trim(line, "| ")
	}
	if !bytes.Contains(line, []byte(delim)) {
		return nil
	}
	var all [][]byte
	for {
		rest := bytes.TrimLeft(line, " ")
		if cell, after, ok := quoted(rest, delim); ok {
			all = append(all, cell)
			if after == nil {
				return all
			}
			line = after
			continue
		}
		cell, after, more := bytes.Cut(line, []byte(delim))
		all = append(all, bytes.TrimSpace(cell))
		if !more {
			return all
		}
		if delim == "  " {
			after = bytes.TrimLeft(after, " ")
		}
		line = after
	}
}

// quoted reads a quoted cell, with its quotes; after is nil at the end of the
// line.
func quoted(line []byte, delim string) (cell, after []byte, ok bool) {
	if len(line) == 0 || line[0] != '"' {
		return nil, nil, false
	}
	end := -1
	for i := 1; i < len(line); i++ {
		if line[i] != '"' {
			continue
		}
		if i+1 < len(line) && line[i+1] == '"' {
			i++
			continue
		}
		end = i
		break
	}
	if end < 0 {
		return nil, nil, false
	}
	tail := bytes.TrimLeft(line[end+1:], " ")
	if len(tail) > 0 && !bytes.HasPrefix(tail, []byte(delim)) {
		return nil, nil, false
	}
	cell = line[:end+1] // judge takes the quotes off
	if len(tail) > 0 {
		return cell, tail[len(delim):], true
	}
	return cell, nil, true
}

// A pair is a label and what follows it on the line.
type pair struct {
	label label
	value []byte
	glued bool // to another one, without a space: client_id=a&client_secret=b
}

// pairs finds the labels of a line that a colon or an equals sign follows.
// After the first, or behind other words, only a label that cannot mean
// anything else counts.
func pairs(line []byte) []pair {
	var all []pair
	start := 0 // of the line, or of the last value
	for i, c := range line {
		if c != ':' && c != '=' {
			continue
		}
		l, from, ok := labelBefore(line[start:i], len(all) == 0)
		if !ok {
			continue
		}
		from += start
		glued := from > 0 && line[from-1] != ' ' && line[from-1] != '\t'
		if n := len(all); n > 0 {
			all[n-1].value = ended(line[start:from])
			all[n-1].glued = all[n-1].glued || glued
		}
		bold := bytes.HasPrefix(line[from:], []byte("**")) && !bytes.HasSuffix(line[from:i], []byte("**"))
		all = append(all, pair{l, value(line[i+1:], bold), glued})
		start = i + 1
	}
	return all
}

// labelBefore finds the longest label that segment ends with, and where it
// starts.
func labelBefore(segment []byte, first bool) (label, int, bool) {
	if first {
		if l, ok := labelOf(segment); ok {
			return l, 0, true
		}
	}
	for from := max(1, len(segment)-maxLabel); from < len(segment); from++ {
		if bytes.IndexByte([]byte(" \t&,;({|?\"'"), segment[from-1]) < 0 || !startsLabel(segment[from]) {
			continue
		}
		if l, ok := labelOf(segment[from:]); ok && l.strength == strong {
			return l, from, true
		}
	}
	return label{}, 0, false
}

func startsLabel(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80 || bytes.IndexByte([]byte("\"'`*_"), c) >= 0
}

// value takes off what belongs to the separator: "=>", ":=", the end of bold
// type.
func value(v []byte, bold bool) []byte {
	v = bytes.TrimSpace(v)
	if bold {
		v = bytes.TrimSpace(bytes.TrimPrefix(v, []byte("**")))
	}
	if len(v) > 1 && (v[0] == '>' || v[0] == '=') && v[1] == ' ' {
		v = bytes.TrimSpace(v[1:])
	}
	return v
}

// ended takes off what joins a value to the label after it.
func ended(v []byte) []byte {
	v = value(v, false)
	for _, word := range []string{" en", " and", " /", " (", " -"} {
		v = bytes.TrimSpace(bytes.TrimSuffix(v, []byte(word)))
	}
	if n := len(v); n > 0 && bytes.IndexByte([]byte(",;&|"), v[n-1]) >= 0 {
		v = bytes.TrimSpace(v[:n-1])
	}
	return v
}

// undecorated takes off a list's bullet or number, a heading's or quoted
// mail's mark, if a space follows it: else it may be part of a value.
func undecorated(line []byte) []byte {
	line = bytes.Trim(line, " \t\n")
	for {
		mark, rest, ok := bytes.Cut(line, []byte(" "))
		if !ok || !isMark(mark) {
			return line
		}
		line = bytes.TrimSpace(rest)
	}
}

func isMark(word []byte) bool {
	switch string(word) {
	case "-", "*", "•", "·", "–", "o", "+", ">", ">>", ">>>", "#", "##", "###":
		return true
	}
	digits := bytes.TrimRight(word, ".)")
	return len(digits) < len(word) && len(digits) <= 2 && len(bytes.Trim(digits, "0123456789")) == 0
}
