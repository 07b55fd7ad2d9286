package intake

import (
	"bytes"
	"strconv"
	"unicode/utf8"
)

// isHTML tells the HTML part of a mail or a saved page: it starts with a tag
// and has one that such texts have.
func isHTML(text []byte) bool {
	if text[0] != '<' {
		return false
	}
	head := bytes.ToLower(text[:min(len(text), 4<<10)]) // a copy
	defer clear(head)
	for _, tag := range []string{"<html", "<!doctype html", "<body", "<table", "<p>", "<p ", "<div", "<span", "<br", "<tr", "<ul", "<ol", "<meta"} {
		if bytes.Contains(head, []byte(tag)) {
			return true
		}
	}
	return false
}

// stripTags gives the text of HTML as a reader sees it, roughly: cells are
// divided by tabs, blocks by line ends; scripts, styles and comments are gone.
// The caller wipes it.
func stripTags(html []byte) []byte {
	out := make([]byte, 0, len(html)+utf8.UTFMax) // text never grows
	for len(html) > 0 {
		switch html[0] {
		case '<':
			html = tag(&out, html)
		case '&':
			r, n := entity(html)
			if r == '\u00a0' {
				r = ' '
			}
			if r != '\u00ad' && r != '\u200b' {
				out = utf8.AppendRune(out, r)
			}
			html = html[n:]
		case '\n', '\t':
			out = append(out, ' ') // only tags divide
			html = html[1:]
		default:
			out = append(out, html[0])
			html = html[1:]
		}
	}
	return out
}

// tag reads the tag that html starts with, and gives the rest.
func tag(out *[]byte, html []byte) []byte {
	if bytes.HasPrefix(html, []byte("<!--")) {
		return after(html, "-->")
	}
	end := bytes.IndexByte(html[:min(len(html), 4<<10)], '>') // longer is no tag
	if end < 0 || len(html) > 1 && !isTagStart(html[1]) {
		*out = append(*out, '<')
		return html[1:]
	}
	name := html[1:end]
	closing := bytes.HasPrefix(name, []byte("/"))
	name = bytes.TrimPrefix(name, []byte("/"))
	if i := bytes.IndexAny(name, " \t\n/"); i >= 0 {
		name = name[:i]
	}
	rest := html[end+1:]
	switch low := string(bytes.ToLower(name[:min(len(name), 10)])); low {
	case "script", "style", "title":
		if !closing {
			return after(rest, "</"+low)
		}
	case "td", "th":
		if closing {
			*out = append(*out, '\t')
		}
	case "br", "p", "div", "tr", "li", "ul", "ol", "table", "h1", "h2", "h3", "h4", "h5", "h6", "body", "dt", "dd", "hr", "pre":
		*out = append(*out, '\n')
	}
	return rest
}

func isTagStart(c byte) bool {
	return c == '/' || c == '!' || c == '?' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// after gives what follows the end of something, whatever its case.
func after(html []byte, end string) []byte {
	for i := 0; i+len(end) <= len(html); i++ {
		if bytes.EqualFold(html[i:i+len(end)], []byte(end)) {
			return html[i+len(end):]
		}
	}
	return nil
}

// entity reads the character reference that html starts with, and its length.
// An unknown one is an ampersand.
func entity(html []byte) (rune, int) {
	end := bytes.IndexByte(html[:min(len(html), 12)], ';')
	if end < 2 {
		return '&', 1
	}
	name := html[1:end]
	if name[0] == '#' {
		base, digits := 10, name[1:]
		if len(digits) > 0 && (digits[0] == 'x' || digits[0] == 'X') {
			base, digits = 16, digits[1:]
		}
		n, err := strconv.ParseUint(string(digits), base, 21)
		if r := rune(n); err == nil && utf8.ValidRune(r) && n >= ' ' {
			return r, end + 1
		}
		return '&', 1
	}
	switch string(name) {
	case "amp":
		return '&', end + 1
	case "lt":
		return '<', end + 1
	case "gt":
		return '>', end + 1
	case "quot":
		return '"', end + 1
	case "apos":
		return '\'', end + 1
	case "nbsp":
		return '\u00a0', end + 1
	case "shy":
		return '\u00ad', end + 1
	case "euml":
		return 'ë', end + 1
	case "eacute":
		return 'é', end + 1
	case "ndash":
		return '–', end + 1
	}
	return '&', 1
}
