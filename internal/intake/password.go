package intake

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"

	"credentialbroker/internal/secret"
)

// unlock gives the password that opens every encrypted entry, as bytes to be
// wiped. All of them are tried, because traditional encryption notices a wrong
// password surely only at the end.
func (in *reader) unlock(entries []entry, archive string) ([]byte, error) {
	var locked []*entry
	for i := range entries {
		if entries[i].encrypted() {
			locked = append(locked, &entries[i])
		}
	}
	if len(locked) == 0 {
		return nil, nil
	}
	for i := len(in.opened) - 1; i >= 0; i-- { // an archive within usually has the same
		if b, err := in.fits(in.opened[i], locked); err == nil {
			return b, nil
		}
	}
	if in.ask == nil {
		return nil, &Error{WrongPassword, title(archive) + " is encrypted, and there is no password", ""}
	}
	var last error
	var other *entry // one that has another password than those before it
	for try := 1; try <= maxTries; try++ {
		p, err := in.ask(archive, try)
		if err != nil {
			return nil, fmt.Errorf("the password of %s: %w", title(archive), err)
		}
		in.opened = append(in.opened, p)
		b, err := in.fits(p, locked)
		if err == nil {
			return b, nil
		}
		// After a check that one wrong password in 256 passes, damage may
		// still be a wrong password: ask again. After AES's it is damage.
		var f *failure
		if errors.As(err, &f) && !errors.Is(err, errPassword) && f.entry.strength != 0 {
			return nil, f.entry.explain(f.err)
		}
		if last = err; f != nil && f.entry != locked[0] && locked[0].strength != 0 {
			other = f.entry
		}
	}
	var f *failure
	switch {
	case other != nil: // WinZip V.2 allows it
		return nil, &Error{Unsupported, title(archive) + " has several passwords: " + other.name + " has another one", hintPlain}
	case errors.As(last, &f) && !errors.Is(last, errPassword):
		return nil, f.entry.explain(f.err)
	}
	return nil, &Error{WrongPassword, fmt.Sprintf("the password of %s was refused %d times", title(archive), maxTries),
		"look at the SMS again: upper and lower case, O and 0, l and 1; each archive has its own"}
}

// A failure is why an entry did not open.
type failure struct {
	entry *entry
	err   error
}

func (f *failure) Error() string { return f.entry.name + ": " + f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// fits gives the spelling of p that opens all of locked, or a *failure; of
// several, that of the spelling that came furthest.
func (in *reader) fits(p secret.Secret, locked []*entry) ([]byte, error) {
	typed, err := p.AppendTo(nil)
	if err != nil {
		return nil, &failure{locked[0], err}
	}
	defer clear(typed)
	all := spellings(typed)
	defer func() {
		for _, s := range all {
			clear(s.bytes)
		}
	}()
	var worst error
	for i, s := range all {
		err := opensAll(locked, s.bytes)
		if err == nil {
			if i > 0 {
				in.note("The password opened the archive %s.", s.how)
			}
			return bytes.Clone(s.bytes), nil
		}
		if worst == nil || errors.Is(worst, errPassword) {
			worst = err
		}
	}
	return nil, worst
}

func opensAll(locked []*entry, password []byte) error {
	for _, e := range locked {
		plain, err := e.open(password)
		clear(plain[:cap(plain)])
		if err != nil {
			return &failure{e, err}
		}
	}
	return nil
}

// A spelling is a password as the sender's program may have encoded it.
type spelling struct {
	bytes []byte
	how   string
}

// spellings gives the ways to write a password, each in a buffer to be wiped.
// No document fixes the encoding: today's programs take UTF-8, older ones the
// code page of their console or of Windows. The likeliest comes first.
func spellings(typed []byte) []spelling {
	all := []spelling{{bytes.Clone(typed), "as typed"}}
	if t := bytes.TrimSpace(typed); len(t) != len(typed) {
		all = append(all, spelling{bytes.Clone(t), "without the spaces around it"})
		typed = t
	}
	if !utf8.Valid(typed) || bytes.IndexFunc(typed, func(r rune) bool { return r >= utf8.RuneSelf }) < 0 {
		return all
	}
	for _, table := range []struct {
		how    string
		encode func(rune) int
	}{
		{"in code page 437", func(r rune) int { return 0x80 + index(cp437, r) }},
		{"in Windows-1252", func(r rune) int {
			if r >= 0xa0 && r <= 0xff {
				return int(r)
			}
			return 0x80 + index(cp1252, r)
		}},
	} {
		if b := encode(typed, table.encode); b != nil {
			all = append(all, spelling{b, table.how})
		}
	}
	return all
}

// encode writes text with one byte a character, nil if one has none.
func encode(text []byte, upper func(rune) int) []byte {
	out := make([]byte, 0, len(text))
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		text = text[n:]
		c := int(r)
		if r >= utf8.RuneSelf {
			c = upper(r)
		}
		if c < 0x80 && r >= utf8.RuneSelf {
			clear(out)
			return nil
		}
		out = append(out, byte(c))
	}
	return out
}
