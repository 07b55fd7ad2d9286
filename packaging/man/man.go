// Package man writes the manual pages from what the programs know of
// themselves: their trees of commands, and the schema of their configuration.
// Tests use it, which compare the pages of this directory with it.
package man

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// A Page is a manual page in the man(7) macros. It has no date and no version:
// the same text gives the same page.
type Page struct {
	name    string
	section int
	b       strings.Builder
}

// New starts a page with its first section. what completes "name - ".
func New(name string, section int, what string) *Page {
	p := &Page{name: name, section: section}
	p.b.WriteString(".\\\" Generated: go generate ./...\n")
	p.line(`.TH "` + strings.ToUpper(name) + `" "` + strconv.Itoa(section) + `" "" "Credential broker" ""`)
	p.Section("NAME")
	p.line(escape(name) + ` \- ` + escape(what))
	return p
}

// Section starts a section.
func (p *Page) Section(title string) { p.line(`.SH "` + escape(title) + `"`) }

// Sub starts a part of a section.
func (p *Page) Sub(title string) {
	p.line(`.SS "` + strings.ReplaceAll(escape(title), `"`, `\(dq`) + `"`)
}

// Text writes paragraphs, parted by empty lines. Lines that are indented are
// shown as they are.
func (p *Page) Text(text string) {
	for para := range strings.SplitSeq(strings.Trim(text, "\n"), "\n\n") {
		if strings.HasPrefix(para, "  ") {
			p.Code(para)
			continue
		}
		p.line(".PP")
		p.flow(para)
	}
}

// Term writes one entry of a list: a word, what kind of thing it is (may be
// empty), and its explanation.
func (p *Page) Term(word, kind, text string) {
	p.line(".TP")
	head := `\fB` + escape(word) + `\fR`
	if kind != "" {
		head += ` \fI` + escape(kind) + `\fR`
	}
	p.line(head)
	p.flow(text)
}

// Code shows lines as they are, less the indentation of the first.
func (p *Page) Code(text string) {
	text = strings.Trim(text, "\n")
	indent := text[:len(text)-len(strings.TrimLeft(text, " "))]
	p.line(".PP\n.RS 4\n.EX")
	for l := range strings.SplitSeq(text, "\n") {
		p.line(start(escape(strings.TrimPrefix(l, indent))))
	}
	p.line(".EE\n.RE")
}

// Bytes is the page.
func (p *Page) Bytes() []byte { return []byte(p.b.String()) }

// Check compares the page with its file in this directory, and writes that
// instead if update is set. It says whether they were the same.
func (p *Page) Check(update bool) (file string, same bool, err error) {
	_, self, _, _ := runtime.Caller(0)
	file = p.name + "." + strconv.Itoa(p.section)
	path := filepath.Join(filepath.Dir(self), file)
	if update {
		return file, true, os.WriteFile(path, p.Bytes(), 0o644)
	}
	got, err := os.ReadFile(path)
	return file, bytes.Equal(got, p.Bytes()), err
}

// flow writes running text, a line a sentence or so: a change of one word is a
// change of one line.
func (p *Page) flow(text string) {
	text = strings.Join(strings.Fields(text), " ")
	for {
		at := strings.Index(text, ". ")
		if at < 0 {
			p.line(start(escape(text)))
			return
		}
		p.line(start(escape(text[:at+1])))
		text = text[at+2:]
	}
}

func (p *Page) line(s string) { p.b.WriteString(s + "\n") }

// escape keeps what troff would take as its own: backslashes, and hyphens that
// are to be copied.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\e`, `-`, `\-`, `'`, `\(aq`, "`", `\(ga`, `^`, `\(ha`, `~`, `\(ti`).Replace(s)
}

// start keeps the start of a line from being a request.
func start(s string) string {
	if strings.HasPrefix(s, ".") {
		return `\&` + s
	}
	return s
}
