package configs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// A Problem is one mistake, as a compiler would tell it. No text in it holds a
// value that looks like a secret.
type Problem struct { //nolint:errname // a warning is one too
	File     string `json:"file"`
	Line     int    `json:"line,omitempty"`     // from 1; 0: the file as a whole
	Column   int    `json:"column,omitempty"`   // from 1, in characters
	Source   string `json:"source,omitempty"`   // the line itself, secrets masked
	Message  string `json:"message"`            // what is wrong
	Expected string `json:"expected,omitempty"` // what may stand there
	Hint     string `json:"hint,omitempty"`     // what to do; did you mean …
}

// Error is file:line:column: message, the line with a caret below the place,
// what was expected, and the hint.
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": " + p.Message)
	if p.Line > 0 && p.Source != "" {
		fmt.Fprintf(&b, "\n%6d | %s\n       | %s^", p.Line, p.Source, caretIndent(p.Source, p.Column))
	}
	if p.Expected != "" {
		b.WriteString("\n         expected " + p.Expected)
	}
	if p.Hint != "" {
		b.WriteString("\n         " + p.Hint)
	}
	return b.String()
}

// caretIndent is the white space that a caret below column needs; tabs stay.
func caretIndent(line string, column int) string {
	var b strings.Builder
	for _, r := range line {
		if column--; column <= 0 {
			break
		}
		if r != '\t' {
			r = ' '
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Problems is every mistake of every file, in reading order.
type Problems []Problem //nolint:errname // as Problem

// Error prints all of them.
func (ps Problems) Error() string {
	texts := make([]string, len(ps), len(ps)+1)
	for i, p := range ps {
		texts[i] = p.Error()
	}
	if len(ps) > 1 {
		texts = append(texts, fmt.Sprintf("%d mistakes; nothing was changed", len(ps)))
	}
	return strings.Join(texts, "\n")
}

func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// maxSource is how much of a line is shown, in characters.
const maxSource = 160

// problem makes a Problem whose texts are safe to print.
func (p *patterns) problem(at place, message, expected, hint string) Problem {
	out := Problem{Message: printable(p.maskWords(message)), Expected: printable(p.maskWords(expected)), Hint: printable(p.maskWords(hint))}
	if at.file == nil {
		return out
	}
	out.File, out.Line, out.Column = at.file.name, at.line, at.column
	out.Source = printable(p.maskLine(at.file.line(at.line)))
	if runes := []rune(out.Source); len(runes) > maxSource {
		out.Source = string(runes[:maxSource]) + "…"
	}
	return out
}

// printable replaces what a terminal might obey, one character by one.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, s)
}

// quote shows a key or value that somebody wrote.
func quote(s string) string {
	if runes := []rune(s); len(runes) > 60 {
		s = string(runes[:60]) + "…"
	}
	return `"` + s + `"`
}

// list writes names as a sentence does: a, b or c.
func list(names []string, last string) string {
	switch n := len(names); n {
	case 0:
		return ""
	case 1:
		return names[0]
	default:
		return strings.Join(names[:n-1], ", ") + " " + last + " " + names[n-1]
	}
}

// didYouMean is a hint, or empty if nothing in names is near.
func didYouMean(word string, names []string) string {
	best, least := "", 1+min(3, 1+len(word)/4)
	for _, name := range names {
		if len(word) >= 3 && strings.HasPrefix(name, word) {
			return "did you mean " + quote(name) + "?"
		}
		if d := distance(strings.ToLower(word), strings.ToLower(name), least); d < least {
			best, least = name, d
		}
	}
	if best == "" {
		return ""
	}
	return "did you mean " + quote(best) + "?"
}

// distance is the number of edits (insert, delete, replace, swap neighbours)
// from a to b, or limit if it is not below.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	var before, row []int
	next := make([]int, len(b)+1)
	for i := range next {
		next[i] = i
	}
	for i := range len(a) {
		before, row, next = row, next, make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next[j+1] = min(row[j]+cost, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
	}
	return min(next[len(b)], limit)
}
