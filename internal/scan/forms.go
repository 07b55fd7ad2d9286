package scan

import (
	"bytes"
	"encoding/base64"
	"slices"
)

// Rules of this file:
//   - every slice that is made here holds a secret: whoever gets it wipes it,
//     and nothing becomes a string;
//   - the windows of a form come from its core alone, a short piece of the
//     value that others are unlikely to share; the rest of the value leaves no
//     trace in a filter.

// The names of forms, as findings show them.
const (
	Clear     = "clear"
	Base64    = "base64"    // RFC 4648 §4, at any of the three alignments
	Base64URL = "base64url" // RFC 4648 §5, where it differs
	Percent   = "percent"   // RFC 3986 §2.1, and as JavaScript's encodeURIComponent
	FormURL   = "form"      // application/x-www-form-urlencoded, WHATWG URL §5
	Hex       = "hex"       // RFC 4648 §8, either case
	JSON      = "json"      // RFC 8259 §7, as the usual encoders escape
	PEMLine   = "pem-line"  // one line of the middle of a PEM key (RFC 7468)
	PEMBody   = "pem-body"  // the base64 of a PEM key without its line ends
)

const (
	coreSize = 32 // bytes of the value: enough for sixteen windows of every form

	// Widths of windows, so that each depends on about 16 bytes of the value.
	plainWidth  = 16
	base64Width = 20
	hexWidth    = 32
)

// form is one encoding of a value.
type form struct {
	name    string
	text    []byte
	core    int // where the core's encoding begins
	coreLen int
	width   int // of its windows
}

// Form is one encoding of a value, and its name.
type Form struct {
	Name string
	Text []byte
}

// Forms are the encodings in which a scan finds a value, for whoever has to
// find it in some other way. The caller wipes them.
func Forms(v []byte) []Form {
	list := forms(v)
	out := make([]Form, len(list))
	for i := range list {
		out[i] = Form{list[i].name, list[i].text}
	}
	return out
}

// forms makes all encodings of v that differ.
func forms(v []byte) (list []form) {
	at, size, line := core(v)
	add := func(f form, width int) {
		for _, g := range list {
			if bytes.Equal(g.text, f.text) {
				clear(f.text)
				return
			}
		}
		f.width = min(width, f.coreLen)
		list = append(list, f)
	}
	add(form{name: Clear, text: slices.Clone(v), core: at, coreLen: size}, plainWidth)
	for _, alphabet := range []struct {
		name string
		enc  *base64.Encoding
	}{{Base64, base64.RawStdEncoding}, {Base64URL, base64.RawURLEncoding}} {
		for before := range 3 {
			f := base64Form(v, at, size, before, alphabet.enc)
			f.name = alphabet.name
			add(f, base64Width)
		}
	}
	for _, upper := range []bool{false, true} {
		digits := digitsOf(upper)
		f := encode(Hex, v, at, size, func(dst []byte, c byte) []byte { return append(dst, digits[c>>4], digits[c&15]) })
		add(f, hexWidth)
		for _, p := range percents() {
			f := encode(p.name, v, at, size, p.encoder(upper))
			add(f, expandedWidth(f.coreLen, size))
		}
		for _, escaped := range jsonEscaped() {
			f := encode(JSON, v, at, size, jsonEncoder(escaped, upper))
			add(f, expandedWidth(f.coreLen, size))
		}
	}
	if len(line) > 0 {
		// The lines of a key survive indentation, CRLF and "\n" in a string.
		start := bytes.Index(v, line)
		add(form{name: PEMLine, text: slices.Clone(line), core: at - start, coreLen: size}, plainWidth)
		body, before := pemBody(v, start)
		add(form{name: PEMBody, text: body, core: before + at - start, coreLen: size}, plainWidth)
	}
	return list
}

// expandedWidth is the width for an encoding that makes some bytes longer.
func expandedWidth(coreLen, size int) int {
	switch {
	case coreLen == size:
		return plainWidth
	case coreLen < hexWidth+maxStride-1:
		return base64Width
	default:
		return hexWidth
	}
}

// core chooses the piece of v that windows are made of: not the beginning,
// which tokens of one issuer and keys of one kind share. For a PEM key it lies
// in line, one of the lines in the middle, where the private part is.
func core(v []byte) (at, size int, line []byte) {
	if line = pemLine(v); line != nil {
		return bytes.Index(v, line) + (len(line)-coreSize)/2, coreSize, line
	}
	if len(v) <= coreSize {
		return 0, len(v), nil
	}
	run := 0
	for i := len(v) - 1; i >= 0; i-- {
		run++
		if !plain(v[i]) {
			run = 0
		}
		if run == coreSize {
			return i, coreSize, nil
		}
	}
	return len(v) - coreSize, coreSize, nil
}

// plain says whether no encoding but base64 and hex changes c.
func plain(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
}

// pemLine is the line in the middle of a PEM key's body, or nil.
func pemLine(v []byte) []byte {
	if !bytes.HasPrefix(v, []byte("-----BEGIN ")) {
		return nil
	}
	var body [][]byte
	for l := range bytes.Lines(v) {
		if l = bytes.TrimSpace(l); len(l) > coreSize && !bytes.HasPrefix(l, []byte("-----")) && !bytes.ContainsAny(l, ": ") {
			body = append(body, l)
		}
	}
	if len(body) == 0 {
		return nil
	}
	return body[len(body)/2]
}

// pemBody joins the lines between the markers; before is how many characters
// of it come before the line at start.
func pemBody(v []byte, start int) (body []byte, before int) {
	body = make([]byte, 0, len(v))
	pos := 0
	for l := range bytes.Lines(v) {
		if pos == start {
			before = len(body)
		}
		pos += len(l)
		if l = bytes.TrimSpace(l); !bytes.HasPrefix(l, []byte("-----")) && !bytes.ContainsAny(l, ": ") {
			body = append(body, l...)
		}
	}
	return body, before
}

// encode applies a byte by byte encoding.
func encode(name string, v []byte, at, size int, enc func([]byte, byte) []byte) form {
	f := form{name: name, text: make([]byte, 0, 6*len(v))} // no growth: it would leave copies
	for i, c := range v {
		switch i {
		case at:
			f.core = len(f.text)
		case at + size:
			f.coreLen = len(f.text) - f.core
		}
		f.text = enc(f.text, c)
	}
	if at+size == len(v) {
		f.coreLen = len(f.text) - f.core
	}
	return f
}

// base64Form keeps the characters that depend on v alone when before more
// bytes (modulo 3) precede it.
func base64Form(v []byte, at, size, before int, enc *base64.Encoding) form {
	shifted := make([]byte, before+len(v))
	copy(shifted[before:], v)
	text := make([]byte, enc.EncodedLen(len(shifted)))
	enc.Encode(text, shifted)
	clear(shifted)
	first := func(n int) int { return (8*n + 5) / 6 } // character that begins at or after byte n
	end := func(n int) int { return 8 * n / 6 }       // character that is not complete at byte n
	begin := first(before)
	return form{
		text:    text[begin:end(before+len(v))],
		core:    first(before+at) - begin,
		coreLen: end(before+at+size) - first(before+at),
	}
}

func digitsOf(upper bool) string {
	if upper {
		return "0123456789ABCDEF"
	}
	return "0123456789abcdef"
}

// percentForm is a set of characters that are kept.
type percentForm struct {
	name, kept string
	plus       bool // a space becomes +
}

func percents() []percentForm {
	return []percentForm{
		{Percent, "-._~", false},
		{Percent, "-._~!'()*", false}, // encodeURIComponent, ECMA-262 §19.2.6
		{FormURL, "-._*", true},
		{FormURL, "-._~", true}, // as Go and Python do
		{FormURL, "-._", true},  // as PHP does
	}
}

func (p percentForm) encoder(upper bool) func([]byte, byte) []byte {
	digits := digitsOf(upper)
	return func(dst []byte, c byte) []byte {
		switch {
		case plain(c) || bytes.IndexByte([]byte(p.kept), c) >= 0:
			return append(dst, c)
		case c == ' ' && p.plus:
			return append(dst, '+')
		}
		return append(dst, '%', digits[c>>4], digits[c&15])
	}
}

// jsonEscaped are the characters that encoders escape beyond what they must.
func jsonEscaped() []string {
	return []string{"", "/", "<>&", "<>&'", "<>&'+`", "/<>&'"}
}

func jsonEncoder(escaped string, upper bool) func([]byte, byte) []byte {
	digits := digitsOf(upper)
	return func(dst []byte, c byte) []byte {
		if i := bytes.IndexByte([]byte("\"\\\b\f\n\r\t"), c); i >= 0 {
			return append(dst, '\\', `"\bfnrt`[i])
		}
		over := bytes.IndexByte([]byte(escaped), c) >= 0
		switch {
		case c == '/' && over:
			return append(dst, '\\', '/')
		case c < ' ' || over:
			return append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
		return append(dst, c)
	}
}
