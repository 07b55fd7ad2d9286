package intake

import (
	"bytes"
	stdpbkdf2 "crypto/pbkdf2"
	"crypto/sha1"
	"encoding/hex"
	"strings"
	"testing"
)

// TestPBKDF2 compares with the standard library's, and once with a value from
// elsewhere: Python's hashlib.
func TestPBKDF2(t *testing.T) {
	const want = "6e88be8bad7eae9d9e10aa061224034fed48d03f"
	if got := hex.EncodeToString(pbkdf2([]byte("password"), []byte("salt"), 20)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, n := range []int{1, 20, 34, 50, 66} {
		for _, p := range []string{"", "geheim", strings.Repeat("lang", 40)} {
			want, err := stdpbkdf2.Key(sha1.New, p, []byte("zout"), rounds, n)
			if err != nil {
				t.Fatal(err)
			}
			if got := pbkdf2([]byte(p), []byte("zout"), n); !bytes.Equal(got, want) {
				t.Errorf("%d bytes of %q differ", n, p)
			}
		}
	}
}

func TestSpellings(t *testing.T) {
	for typed, want := range map[string][]string{
		"geheim":  {"geheim"},
		" ge im ": {" ge im ", "ge im"},
		"café":    {"café", "caf\x82", "caf\xe9"},
		"€5":      {"€5", "\x805"},
		"αβ":      {"αβ"}, // code page 437 has the alpha and not the beta
		"ß":       {"ß", "\xe1", "\xdf"},
		"日本":      {"日本"},
		"\xff":    {"\xff"},
		"é\n":     {"é\n", "é", "\x82", "\xe9"},
	} {
		var got []string
		for _, s := range spellings([]byte(typed)) {
			got = append(got, string(s.bytes))
		}
		if strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("%q: got %q, want %q", typed, got, want)
		}
	}
}

func TestDecode(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                         "plain",
		"\xef\xbb\xbfmark":              "mark",
		"\xff\xfeh\x00\xeb\x00":         "hë",
		"\xfe\xff\x00h\x00\xeb":         "hë",
		"\xff\xfe\x3d\xd8\x00\xdeA\x00": "😀A",
		"\xff\xfeh\x00\x3d\xd8":         "h\ufffd",
		"\xff\xfeh\x00i":                "h\ufffd",
		"cli\xebnt \x80 \x93x\x94":      "cliënt € “x”",
		"a\r\nb\rc\u2028d\ve":           "a\nb\nc\nd\ne",
		"a\u00a0b\u202fc\u3000d":        "a b c d",
		"a\u200bb\u00adc\u2060d\ufeff":  "abcd",
		"a\tb":                          "a\tb",
	} {
		got, ok := decode([]byte(in))
		if string(got) != want || !ok {
			t.Errorf("%q: got %q, %v; want %q", in, got, ok, want)
		}
		if cap(got) > 3*len(in)+4 {
			t.Errorf("%q: the buffer grew, which leaves a copy", in)
		}
	}
	for _, in := range []string{"a\x00b", "\x1b[0m", "\xff\xfe\x00\x00", "x\x81"} {
		if _, ok := decode([]byte(in)); ok {
			t.Errorf("%q is a text", in)
		}
	}
}
