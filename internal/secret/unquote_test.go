package secret

import (
	"encoding/json"
	"testing"
)

func FuzzUnquote(f *testing.F) {
	for _, s := range []string{`""`, `"a\"b\\c\/d\b\f\n\r\t"`, `"\u00e9\u00E9"`, `"\ud83d\ude00"`, `"\ud83d"`, `"\ud83dx"`, `"\ud83d\u0041"`, `"\udc00\ud83d\ude00"`, `"é😀"`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var want string
		if len(raw) < 2 || raw[0] != '"' || raw[len(raw)-1] != '"' || json.Unmarshal(raw, &want) != nil {
			return
		}
		got := Unquote(raw[1 : len(raw)-1])
		// encoding/json also replaces bytes that are no UTF-8; Unquote leaves them.
		if json.Valid(raw) && string([]rune(string(got))) != string([]rune(want)) {
			t.Errorf("%s: %q, want %q", raw, got, want)
		}
	})
}
