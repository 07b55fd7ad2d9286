package secret

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// Unquote decodes the inside of a valid JSON string (RFC 8259 §7) into a slice
// of its own, which the caller has to wipe. The standard library would make a
// string of it, which cannot be wiped. Call it only with what encoding/json
// has accepted: it does not check again.
func Unquote(in []byte) []byte {
	out := make([]byte, 0, len(in)) // decoding never grows
	for len(in) > 0 {
		if in[0] != '\\' {
			n := bytes.IndexByte(in, '\\')
			if n < 0 {
				n = len(in)
			}
			out, in = append(out, in[:n]...), in[n:]
			continue
		}
		switch c := in[1]; c {
		case 'u':
			r := hex4(in[2:])
			in = in[6:]
			if utf16.IsSurrogate(r) && len(in) >= 6 && in[0] == '\\' && in[1] == 'u' {
				if pair := utf16.DecodeRune(r, hex4(in[2:])); pair != utf8.RuneError {
					r, in = pair, in[6:]
				}
			}
			out = utf8.AppendRune(out, r)
			continue
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		default: // " \ /
			out = append(out, c)
		}
		in = in[2:]
	}
	return out
}

func hex4(b []byte) (r rune) {
	for _, c := range b[:4] {
		switch {
		case c <= '9':
			c -= '0'
		case c >= 'a':
			c -= 'a' - 10
		default:
			c -= 'A' - 10
		}
		r = r<<4 | rune(c)
	}
	return r
}
