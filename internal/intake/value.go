package intake

import (
	"bytes"

	"credentialbroker/internal/secret"
)

// Rules of this file:
//   - a wrong value costs more than a question: what is not sure is asked;
//   - client ids and secrets are visible ASCII (RFC 6749 appendix A.1, A.2).

// form says where a value stands, and so how much of it is certain.
type form int

const (
	exact      form = iota // JSON: every character counts
	inCell                 // a table: it has no punctuation of its own
	inText                 // a line: may end in a full stop
	inSentence             // perhaps no value at all
	inQuery                // a=b&c=d: may be percent-encoded
)

const maxValue = 4096 // bytes

// A find is a value, or the ways to read one.
type find struct {
	label  label // field "": it has none
	values []secret.Secret
	why    string // why it is not sure; "" if it is
}

// add collects a value with its label. It copies what it keeps.
func (in *reader) add(l label, raw []byte, f form) {
	if l.field == apiSecret {
		in.leave("An API secret stands in %s. It is not taken: no document says to send it.", l.place)
		in.wait(l)
		return
	}
	if l.field == "" && (!plausible(raw) || len(raw) < 12 || bytes.Contains(raw, []byte("://")) || bytes.ContainsAny(raw, "@<>;,")) {
		return
	}
	readings, why := judge(raw, f)
	if len(readings) == 0 {
		in.wait(l)
		return
	}
	if len(in.finds) >= maxFinds {
		in.full = in.full || l.field != "" // values without a label are shown as an offer only
		return
	}
	if l.field == "" {
		why = "no label says what this is"
	}
	got := find{label: l, why: why}
	for _, v := range readings {
		got.values = append(got.values, secret.New(bytes.Clone(v)))
	}
	in.finds = append(in.finds, got)
}

// wait remembers labels that stand without a value.
func (in *reader) wait(labels ...label) {
	if len(in.bare) < maxFinds {
		in.bare = append(in.bare, labels...)
	}
}

// judge gives the ways to read a value, the likeliest first, and why they are
// not sure. None: it is no value.
func judge(v []byte, f form) (readings [][]byte, why string) {
	v = bytes.TrimSpace(v)
	if n := len(v); f == inCell && n >= 2 && v[0] == '"' && v[n-1] == '"' {
		v = undoubled(v[1 : n-1])
	} else if f != exact {
		if inner, ok := unwrapped(v); ok {
			if f = exact; bytes.IndexByte(inner, '\\') >= 0 {
				return [][]byte{inner}, "it holds a backslash, which may stand for something else"
			}
			v = inner
		}
	}
	switch {
	case isPlaceholder(v) || f != exact && isPlaceholder(bytes.TrimRight(v, ".,;:!?")) || len(v) > maxValue:
		return nil, ""
	case bytes.IndexFunc(v, func(r rune) bool { return r < ' ' || r > '~' }) >= 0:
		if f != exact && bytes.ContainsAny(v, " \t") {
			return nil, "" // prose
		}
		return [][]byte{v}, "it holds a character that no id or secret can hold: a mail program may have changed it"
	case bytes.IndexByte(v, ' ') >= 0:
		return spaced(v, f)
	case f == exact:
		return [][]byte{v}, ""
	case f == inSentence:
		return [][]byte{v}, "it may be part of a sentence"
	case f == inQuery:
		if v = bytes.Trim(v, "\"'`"); len(v) == 0 {
			return nil, ""
		}
		return [][]byte{v}, "several values stand together without a space, and may be encoded"
	case bytes.Contains(v, []byte("://")):
		return [][]byte{v}, "it looks like an address"
	}
	if inner := bytes.Trim(v, "\"'`<>*"); len(inner) != len(v) && len(inner) > 0 {
		return [][]byte{inner, v}, "it is not clear whether the quotes or brackets belong to it"
	}
	if f == inText {
		if inner := bytes.TrimRight(v, ".,;:!?)]}"); len(inner) != len(v) && len(inner) > 0 {
			if isUUID(inner) {
				return [][]byte{inner}, ""
			}
			return [][]byte{inner, v}, "it is not clear whether the punctuation at its end belongs to it"
		}
	}
	if !plausible(v) {
		return [][]byte{v}, "it does not look like a credential"
	}
	return [][]byte{v}, ""
}

// spaced judges a value with a space in it, which is allowed, but rare.
func spaced(v []byte, f form) ([][]byte, string) {
	if f == exact {
		return [][]byte{v}, "it holds a space"
	}
	first, _, _ := bytes.Cut(v, []byte(" "))
	if first = bytes.TrimRight(first, ",;"); !plausible(first) {
		return nil, "" // prose
	}
	return [][]byte{first, v}, "other text follows it"
}

// unwrapped takes off quotes or bold type around a value, and the comma that a
// list puts behind it.
func unwrapped(v []byte) ([]byte, bool) {
	for _, q := range [][2]string{{`"`, `"`}, {"'", "'"}, {"`", "`"}, {"“", "”"}, {"„", "”"}, {"„", "“"}, {"‘", "’"}, {"«", "»"}, {"**", "**"}, {"__", "__"}} {
		t := bytes.TrimRight(v, ",;")
		if len(t) > len(q[0])+len(q[1]) && bytes.HasPrefix(t, []byte(q[0])) && bytes.HasSuffix(t, []byte(q[1])) {
			inner := t[len(q[0]) : len(t)-len(q[1])]
			if !bytes.Contains(inner, []byte(q[1])) {
				return inner, true
			}
		}
	}
	return v, false
}

// undoubled makes one quote of two (RFC 4180 §2), in place.
func undoubled(v []byte) []byte {
	n := 0
	for i := 0; i < len(v); i++ {
		v[n] = v[i]
		n++
		if v[i] == '"' && i+1 < len(v) && v[i+1] == '"' {
			i++
		}
	}
	return v[:n]
}

// isPlaceholder tells what stands where a value should: nothing, stars,
// "<client id>", "${clientId}", "n.v.t.".
func isPlaceholder(v []byte) bool {
	if len(v) == 0 || bytes.Equal(v, []byte("-")) || bytes.Count(v, []byte("•")) > 2 || bytes.HasPrefix(v, []byte("****")) ||
		len(v) >= 3 && len(bytes.Trim(v, string(v[:1]))) == 0 {
		return true
	}
	for _, p := range [][2]string{{"${", "}"}, {"{{", "}}"}, {"%", "%"}} {
		if bytes.HasPrefix(v, []byte(p[0])) && bytes.HasSuffix(v, []byte(p[1])) {
			return true
		}
	}
	if v[0] == '<' && v[len(v)-1] == '>' {
		inner := v[1 : len(v)-1]
		_, known := labelOf(inner)
		return known || !plausible(inner)
	}
	for _, word := range []string{"null", "none", "geen", "n/a", "n.v.t.", "nvt", "tbd", "todo"} {
		if bytes.EqualFold(v, []byte(word)) {
			return true
		}
	}
	return false
}

// plausible says whether one word looks made by a machine.
func plausible(v []byte) bool {
	var digit, lower, upper bool
	for i, c := range v {
		switch {
		case c <= ' ' || c > '~':
			return false
		case c >= '0' && c <= '9':
			digit = true
		case c >= 'a' && c <= 'z':
			lower = true
		case c >= 'A' && c <= 'Z':
			upper = upper || i > 0
		}
	}
	return len(v) >= 20 || len(v) >= 8 && lower && upper || len(v) >= 4 && digit
}

// isUUID tells the textual form of RFC 9562 §4.
func isUUID(v []byte) bool {
	if len(v) != 36 {
		return false
	}
	for i, c := range v {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && bytes.IndexByte([]byte("0123456789abcdefABCDEF"), c) < 0 {
			return false
		}
	}
	return true
}

// unquoted decodes a JSON string with its quotes into a buffer of its own.
func unquoted(s []byte) []byte {
	if len(s) < 2 {
		return nil
	}
	return secret.Unquote(s[1 : len(s)-1])
}
