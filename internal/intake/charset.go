package intake

import (
	"encoding/binary"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The upper halves of IBM's code page 437 and, where it differs from Latin-1,
// of Windows-1252 (0 where it has nothing).
const (
	cp437  = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0"
	cp1252 = "€\x00‚ƒ„…†‡ˆ‰Š‹Œ\x00Ž\x00\x00‘’“”•–—˜™š›œ\x00žŸ"
)

// nth gives the nth character of a table.
func nth(table string, n int) rune {
	for _, r := range table {
		if n == 0 {
			return r
		}
		n--
	}
	return 0
}

// index gives the place of r in a table, -1 if it has none.
func index(table string, r rune) int {
	n := 0
	for _, have := range table {
		if have == r {
			return n
		}
		n++
	}
	return -1
}

func fromCP437(c byte) rune {
	if c < 0x80 {
		return rune(c)
	}
	return nth(cp437, int(c-0x80))
}

func fromCP1252(c byte) rune {
	if c >= 0x80 && c < 0xa0 {
		return nth(cp1252, int(c-0x80))
	}
	return rune(c)
}

// decode gives data as clean UTF-8 in a buffer of its own, which the caller
// wipes: UTF-16 and UTF-8 by their mark (RFC 3629 §6, RFC 2781 §3.2), valid
// UTF-8, else Windows-1252. Lines end in \n, spaces are plain, and characters
// that take no room, which mail programs add, are gone: no credential can hold
// one (RFC 6749 appendix A). It reports false for what is no text.
func decode(data []byte) ([]byte, bool) {
	out := make([]byte, 0, 3*len(data)+utf8.UTFMax) // no character grows more: no copy is left behind
	ok, last := true, rune(0)
	put := func(r rune) {
		switch {
		case r == '\n' && last == '\r':
		case r == '\r', r == '\u2028', r == '\u2029', r == '\v', r == '\f', r == '\u0085':
			out = append(out, '\n')
		case r == '\u200b', r == '\u200c', r == '\u200d', r == '\u2060', r == '\ufeff', r == '\u00ad':
		case r != '\t' && unicode.IsSpace(r) && r != '\n':
			out = append(out, ' ')
		case unicode.IsControl(r) && r != '\t' && r != '\n':
			ok = false
		default:
			out = utf8.AppendRune(out, r)
		}
		last = r
	}
	switch {
	case hasPrefix(data, "\xff\xfe"):
		decode16(data[2:], binary.LittleEndian, put)
	case hasPrefix(data, "\xfe\xff"):
		decode16(data[2:], binary.BigEndian, put)
	case utf8.Valid(data):
		for len(data) > 0 {
			r, n := utf8.DecodeRune(data)
			put(r)
			data = data[n:]
		}
	default:
		for _, c := range data {
			put(fromCP1252(c))
		}
	}
	return out, ok
}

func decode16(data []byte, order binary.ByteOrder, put func(rune)) {
	for ; len(data) >= 2; data = data[2:] {
		r := rune(order.Uint16(data))
		if r >= 0xd800 && r < 0xdc00 && len(data) >= 4 {
			if low := rune(order.Uint16(data[2:])); low >= 0xdc00 && low < 0xe000 {
				r, data = (r-0xd800)<<10|(low-0xdc00)+0x10000, data[2:]
			}
		}
		put(r)
	}
	if len(data) > 0 {
		put(unicode.ReplacementChar) // half a character at the end
	}
}

// cleaned makes a name fit to be shown: printable, at most maxName characters.
func cleaned(name string) string {
	var b strings.Builder
	n := 0
	for at, r := range name {
		if n++; n == maxName && len(name) > at+utf8.RuneLen(r) {
			return b.String() + "…"
		}
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}
