package intake

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unicode"
	"unicode/utf8"
)

// wantSane checks what holds for every input.
func wantSane(t *testing.T, f Found, err error) {
	t.Helper()
	readable := func(s string, limit int) {
		if !utf8.ValidString(s) || utf8.RuneCountInString(s) > limit {
			t.Errorf("unfit to be shown: %q", s)
		}
		for _, r := range s {
			if !unicode.IsPrint(r) {
				t.Errorf("unfit to be shown: %q", s)
			}
		}
	}
	if err != nil {
		var e *Error
		if !errors.As(err, &e) || e.Message == "" {
			t.Errorf("error %v", err)
		}
		readable(err.Error(), 500)
		if len(f.Fields)+len(f.Doubts)+len(f.Notes) > 0 {
			t.Errorf("both an error and something found: %v", err)
		}
		return
	}
	candidates := 0
	for field, v := range f.Fields {
		b := []byte(reveal(v))
		if len(b) == 0 || len(b) > maxValue || bytes.IndexFunc(b, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
			t.Errorf("%s cannot be %q", field, b)
		}
	}
	for _, d := range f.Doubts {
		if _, sure := f.Fields[d.Field]; sure || d.Why == "" {
			t.Errorf("doubt about %q, %q", d.Field, d.Why)
		}
		readable(d.Why, 300)
		for i, c := range d.Candidates {
			candidates++
			readable(c.Label, maxName)
			readable(c.Place, 200)
			if c.Value.Empty() || c.Value.Len() > maxValue {
				t.Errorf("a candidate of %d bytes", c.Value.Len())
			}
			for _, other := range d.Candidates[:i] {
				if other.Value.Equal(c.Value) {
					t.Errorf("the candidate %q twice", reveal(c.Value))
				}
			}
		}
	}
	if len(f.Fields) == 0 && candidates == 0 {
		t.Error("nothing found and no error")
	}
	for _, n := range f.Notes {
		readable(n, 400)
	}
	f.Wipe()
}

func FuzzArchive(f *testing.F) {
	all, err := filepath.Glob("testdata/*.[zd]*")
	if err != nil || len(all) == 0 {
		f.Fatal("no fixtures", err)
	}
	for _, path := range all {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if !isZip(b) {
			return
		}
		before := bytes.Clone(b)
		found, err := readBytes(b, fixturePassword)
		wantSane(t, found, err)
		if !bytes.Equal(b, before) {
			t.Error("the input was changed")
		}
	})
}

func FuzzDocument(f *testing.F) {
	for _, c := range golden {
		f.Add([]byte(c.text))
	}
	f.Add([]byte("\xff\xfeC\x00l\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if isZip(b) {
			return
		}
		found, err := readBytes(b)
		wantSane(t, found, err)
		// What is sure stands in the text as it is, where nothing is escaped.
		text, _ := decode(b)
		if !bytes.ContainsAny(text, "{[<\"") {
			for field, v := range found.Fields {
				if v := reveal(v); v != "" && !bytes.Contains(text, []byte(v)) {
					t.Errorf("%s=%q stands nowhere", field, v)
				}
			}
		}
	})
}

// FuzzString writes any text as JSON, and reads it.
func FuzzString(f *testing.F) {
	for _, s := range []string{"abc", "a\"b\\c/", "d\te", "é", "\u2028", "x y", "<>&", "😀"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		wantRoundTrip(t, s)
	})
}
