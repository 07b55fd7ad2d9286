package leak

import (
	"fmt"
	"net/mail"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// removed stands where something stood that looks like a token.
const removed = "[removed: it looked like a token]"

// clean makes text of a person harmless: no control or direction characters,
// no token in the form of a JWT, at most n characters. Line ends stay.
func clean(s string, n int) string {
	s = strings.ReplaceAll(strings.ReplaceAll(strings.ToValidUTF8(s, "�"), "\r\n", "\n"), "\r", "\n")
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return r
		case r == '\t', unicode.Is(unicode.Zs, r), unicode.Is(unicode.Zl, r), unicode.Is(unicode.Zp, r):
			return ' '
		case unicode.Is(unicode.Cc, r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Co, r):
			return -1
		}
		return r
	}, s)
	if strings.Contains(s, "eyJ") {
		s = regexp.MustCompile(`eyJ[\w-]{5,}\.[\w-]{5,}(\.[\w-]*)?`).ReplaceAllLiteralString(s, removed)
	}
	s = strings.TrimSpace(s)
	if utf8.RuneCountInString(s) > n {
		s = string([]rune(s)[:n-1]) + "…"
	}
	return s
}

// Forms are what a text of a person becomes in a record, with its lines and
// without: whoever looks for secrets looks there too, for what is left out
// between two letters joins them.
func Forms(s string) []string { return []string{clean(s, longText), line(s)} }

// withhold leaves out what a person typed, until it is known to be no secret.
func (i *Incident) withhold() {
	const later = "Volgt zodra vaststaat dat de tekst geen geheim bevat.\nFollows once the text is known to hold no secret."
	for _, s := range []*string{&i.Happened, &i.Where, &i.FoundBy, &i.DeclaredBy.Claimed} {
		if *s != "" {
			*s = later
		}
	}
}

// line is clean for one line.
func line(s string) string {
	return strings.Join(strings.Fields(clean(s, lineText)), " ")
}

// validAddress takes a bare mail address of plain ASCII (RFC 5321 §4.1.2): no
// display name, comment or line end can come with it.
func validAddress(a string) error {
	parsed, err := mail.ParseAddress(a)
	if err != nil || parsed.Address != a || len(a) > 254 || strings.ContainsFunc(a, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"<>()[]\,;:`, r)
	}) {
		return fmt.Errorf("%q is no mail address: write name@host", line(a))
	}
	return nil
}

// domain is what follows the @, in lower case.
func domain(address string) string {
	return strings.ToLower(address[strings.LastIndexByte(address, '@')+1:])
}
