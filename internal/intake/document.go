package intake

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// document reads one document that is no archive. Something that cannot be
// read is remembered, not returned: the next document may hold everything.
func (in *reader) document(data []byte, name string) error {
	if len(data) > maxEntry {
		return &Error{TooLarge, fmt.Sprintf("%s is larger than %d KiB", title(name), maxEntry>>10),
			"credentials take a few hundred bytes: is it the right file?"}
	}
	if hasPrefix(data, "MZ", "\x7fELF", "\xcf\xfa\xed\xfe") {
		return &Error{Suspicious, title(name) + " is a program", "do not run it; ask the issuer for an ordinary zip or a text"}
	}
	if what, hint := foreign(data); what != "" {
		in.refuse(&Error{Unsupported, title(name) + " is " + what, hint})
		return nil
	}
	text, ok := decode(data)
	defer func() { clear(text[:cap(text)]) }()
	if !ok {
		in.refuse(&Error{Unsupported, title(name) + " is no text", hintOpen})
		return nil
	}
	trimmed := bytes.TrimSpace(text)
	switch {
	case len(trimmed) == 0:
	case isMail(trimmed):
		in.refuse(&Error{Unsupported, title(name) + " is a whole mail", "save its attachment, or paste its text"})
	case (trimmed[0] == '{' || trimmed[0] == '[') && json.Valid(trimmed):
		w := walker{in: in, b: trimmed, name: name}
		w.value(nil, nil, 0)
	case isHTML(trimmed):
		plain := stripTags(trimmed)
		defer clear(plain)
		in.text(plain, name, false)
	default:
		in.text(text, name, true)
	}
	return nil
}

// foreign names the formats that issuers may send and that are not read.
func foreign(data []byte) (what, hint string) {
	for _, f := range []struct{ magic, what, hint string }{
		{"%PDF", "a PDF", hintOpen},
		{"\xd0\xcf\x11\xe0", "an office document or a saved Outlook mail", hintOpen},
		{"{\\rtf", "an RTF document", hintOpen},
		{"7z\xbc\xaf\x27\x1c", "a 7z archive", hintPlain},
		{"Rar!\x1a\x07", "a RAR archive", hintPlain},
		{"\x1f\x8b", "a gzip file", hintPlain},
		{"BZh", "a bzip2 file", hintPlain},
		{"\xfd7zXZ", "an xz file", hintPlain},
		{"-----BEGIN PGP MESSAGE", "encrypted with PGP", "decrypt it with gpg --decrypt and give the result on standard input"},
		{"age-encryption.org/", "encrypted with age", "decrypt it with age --decrypt and give the result on standard input"},
		{"\x89PNG", "a picture", "type the values over"},
		{"\xff\xd8\xff", "a picture", "type the values over"},
		{"GIF8", "a picture", "type the values over"},
	} {
		if hasPrefix(data, f.magic) {
			return f.what, f.hint
		}
	}
	return "", ""
}

// isMail tells a saved mail (RFC 5322) whose text is encoded or in parts: such
// a text would give broken values (RFC 2045 §6.7 breaks lines).
func isMail(text []byte) bool {
	head, _, _ := bytes.Cut(text, []byte("\n\n"))
	head = bytes.ToLower(head[:min(len(head), 16<<10)]) // a copy
	defer clear(head)
	first, _, _ := bytes.Cut(head, []byte("\n"))
	name, _, ok := bytes.Cut(first, []byte(":"))
	if !ok || bytes.ContainsAny(name, " \t") {
		return false
	}
	return bytes.Contains(head, []byte("\ncontent-type: multipart/")) ||
		bytes.Contains(head, []byte("\ncontent-transfer-encoding: base64")) ||
		bytes.Contains(head, []byte("\ncontent-transfer-encoding: quoted-printable"))
}

// A walker goes through JSON that json.Valid has accepted, without making
// strings of it.
type walker struct {
	in   *reader
	b    []byte
	i    int
	name string
}

// maxDepth of JSON: beyond it values are skipped.
const maxDepth = 64

// A member is one scalar member of an object, as it stands.
type member struct {
	key, value []byte
	at         int
}

// value reads one value. key is its member's, parent that of the object around
// it, both quoted or nil.
func (w *walker) value(parent, key []byte, depth int) {
	switch w.space(); w.b[w.i] {
	case '{':
		w.object(key, depth)
	case '[':
		w.i++
		for w.space(); w.b[w.i] != ']'; w.space() {
			if w.b[w.i] == ',' {
				w.i++
			}
			w.value(parent, key, depth+1)
		}
		w.i++
	default:
		at := w.i
		w.scalar(parent, member{key, w.token(), at}, depth)
	}
}

func (w *walker) object(parent []byte, depth int) {
	var members []member
	w.i++
	for w.space(); w.b[w.i] != '}'; w.space() {
		if w.b[w.i] == ',' {
			w.i++
			w.space()
		}
		key := w.token()
		w.space()
		w.i++ // the colon
		w.space()
		if at := w.i; w.b[at] == '{' || w.b[at] == '[' {
			w.value(parent, key, depth+1)
		} else {
			members = append(members, member{key, w.token(), at})
		}
	}
	w.i++
	if w.named(members, depth) {
		return
	}
	for _, m := range members {
		w.scalar(parent, m, depth)
	}
}

// named reads {"name": "client_id", "value": "…"}, as lists of variables have
// it.
func (w *walker) named(members []member, depth int) bool {
	var l label
	var value *member
	for i, m := range members {
		key := unquoted(m.key)
		switch string(bytes.ToLower(key)) {
		case "name", "naam", "key", "label", "field", "veld", "title", "titel":
			if text := unquoted(m.value); m.value[0] == '"' {
				if got, ok := labelOf(text); ok {
					l = got
				}
				clear(text)
			}
		case "value", "waarde", "val", "currentvalue":
			value = &members[i]
		}
		clear(key)
	}
	if l.field == "" || value == nil {
		return false
	}
	w.found(l, *value, depth)
	return true
}

func (w *walker) scalar(parent []byte, m member, depth int) {
	key := unquoted(m.key)
	defer clear(key)
	l, ok := labelOf(key)
	if (!ok || l.strength != strong) && parent != nil { // {"client": {"id": …}}
		both := append(append(unquoted(parent), ' '), key...)
		if wider, found := labelOf(both); found && (!ok || wider.strength > l.strength) {
			l, ok = wider, true
		}
		clear(both)
	}
	if ok {
		w.found(l, m, depth)
	}
}

func (w *walker) found(l label, m member, depth int) {
	if depth > maxDepth {
		return
	}
	l.place = place(w.name, 1+bytes.Count(w.b[:m.at], []byte("\n")))
	v := m.value
	switch v[0] {
	case '"':
		v = unquoted(v)
		defer clear(v)
	case 't', 'f', 'n': // true, false, null
		v = nil
	}
	w.in.add(l, v, exact)
}

func (w *walker) space() {
	for w.i < len(w.b) && bytes.IndexByte([]byte(" \t\r\n"), w.b[w.i]) >= 0 {
		w.i++
	}
}

// token reads a string, with its quotes, or another scalar.
func (w *walker) token() []byte {
	start := w.i
	if w.b[w.i] == '"' {
		for w.i++; w.b[w.i] != '"'; w.i++ {
			if w.b[w.i] == '\\' {
				w.i++
			}
		}
		w.i++
		return w.b[start:w.i]
	}
	for w.i < len(w.b) && bytes.IndexByte([]byte(" \t\r\n,]}"), w.b[w.i]) < 0 {
		w.i++
	}
	return w.b[start:w.i]
}
