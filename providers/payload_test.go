package providers

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     map[string]string
	}{
		{"strings", `{"a":"1","b":""}`, map[string]string{"a": "1", "b": ""}},
		{"spaces around", " \n{\"a\" : \"1\"}\r\n", map[string]string{"a": "1"}},
		{"other values", `{"n":6594,"f":1.50,"t":true,"l":[1, 2],"o":{"k":"v"}}`,
			map[string]string{"n": "6594", "f": "1.50", "t": "true", "l": "[1, 2]", "o": `{"k":"v"}`}},
		{"null is no field", `{"a":null}`, map[string]string{}},
		{"the empty name is no field", `{"":"x"}`, map[string]string{}},
		{"the last of a name", `{"a":"1","a":"2"}`, map[string]string{"a": "2"}},
		{"escapes", `{"a":"\"\\\/\b\f\n\r\t\u0041\u00e9\u20AC"}`, map[string]string{"a": "\"\\/\b\f\n\r\tAé€"}},
		{"surrogates", `{"a":"\ud83d\ude00","b":"\ud83d","c":"\ude00\ud83d","d":"\ud83d\u0041"}`,
			map[string]string{"a": "😀", "b": "\uFFFD", "c": "\uFFFD\uFFFD", "d": "\uFFFDA"}},
		{"no object", "abc", map[string]string{Whole: "abc"}},
		{"no object, kept as it is", " abc\n", map[string]string{Whole: " abc\n"}},
		{"an array", `["a"]`, map[string]string{Whole: `["a"]`}},
		{"binary", "\xff\x00", map[string]string{Whole: "\xff\x00"}},
		{"nothing", "", map[string]string{Whole: ""}},
	} {
		in := []byte(c.in)
		got, err := Parse(in)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		wantFields(t, c.name, got, c.want)
		if len(bytes.Trim(in, "\x00")) != 0 {
			t.Errorf("%s: the payload still holds %q", c.name, in)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, in := range []string{`{"canary`, `{"a":"canary"} x`, `{canary}`, `{"a":"\x"}`, strings.Repeat("canary", MaxPayload/6+1)} {
		payload := []byte(in)
		got, err := Parse(payload)
		if KindOf(err) != Malformed || got != nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%.20q: %v", in, err)
		}
		if len(bytes.Trim(payload, "\x00")) != 0 {
			t.Errorf("%.20q: not wiped", in)
		}
	}
	if _, err := Parse(bytes.Repeat([]byte("x"), MaxPayload)); err != nil {
		t.Errorf("the largest payload: %v", err)
	}
}

// FuzzParse compares with the standard library, whose strings cannot be wiped.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{`{"a":"1","b":2}`, `{"a":"\ud83d\ude00\ud83d\n"}`, `{"a":{"b":[null]}} `, "abc", `{`, "{\"a\":\"\xff\"}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := Parse(bytes.Clone(in))
		if err != nil {
			if e := (*Error)(nil); !errors.As(err, &e) || e.Kind != Malformed {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		if whole, ok := got[Whole]; ok {
			if b, _ := whole.AppendTo(nil); !bytes.Equal(b, in) {
				t.Errorf("%q became %q", in, b)
			}
			return
		}
		var want map[string]any
		if err := json.Unmarshal(in, &want); err != nil {
			t.Fatalf("%q was taken as an object: %v", in, err)
		}
		for name, v := range want {
			s, isString := v.(string)
			if !isString || name == "" {
				continue
			}
			b, _ := got[name].AppendTo(nil)
			// The library replaces what is no UTF-8; a secret keeps its bytes.
			if string(b) != s && strings.ToValidUTF8(string(b), "") == string(b) {
				t.Errorf("%q is %q, want %q", name, b, s)
			}
		}
	})
}
