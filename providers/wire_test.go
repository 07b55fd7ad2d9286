package providers

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/secret"
)

// scripted answers every Fetch from a function.
type scripted func(ref Ref, have Version) (Bundle, error)

func (f scripted) Fetch(_ context.Context, ref Ref, have Version) (Bundle, error) {
	return f(ref, have)
}
func (scripted) Close() error { return nil }

func TestServe(t *testing.T) {
	at := time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)
	p := scripted(func(ref Ref, have Version) (Bundle, error) {
		switch {
		case ref.Path == "slow":
			return Bundle{}, context.DeadlineExceeded
		case ref.Path != "app":
			return Bundle{}, &Error{Kind: NotFound, Provider: "test", Ref: ref, Message: "no such secret", Hint: "make it", RetryAfter: 1500 * time.Millisecond}
		case have == "2":
			return Bundle{}, ErrUnchanged
		}
		return bundle("2", "b", "two\n\"\\\x7fé", "a", "\xff\x00", "", "whole"), nil
	})
	in := strings.Join([]string{
		`{"version":1,"operation":"fetch","ref":{"path":"app"}}`,
		`{"version":1,"operation":"fetch","ref":{"path":"app"},"have":"2","unknown":[1]}`,
		`{"version":1,"operation":"fetch","ref":{"mount":"m","path":"other"}}`,
		`{"version":1,"operation":"fetch","ref":{"path":"slow"}}`,
		`{"version":2,"operation":"fetch","ref":{"path":"app"}}`,
		`{"version":1,"operation":"put","ref":{"path":"app"}}`,
		`nonsense`,
	}, "\n")
	want := strings.Join([]string{
		`{"version":"2","fields":{"":"whole","a":{"base64":"/wA="},"b":"two\u000a\"\\\u007fé"}}`,
		`{"unchanged":true}`,
		`{"error":{"kind":"not_found","message":"no such secret","hint":"make it","retry_after_seconds":2}}`,
		`{"error":{"kind":"unavailable","message":"the secrets manager did not answer in time"}}`,
		`{"error":{"kind":"unsupported","message":"the request is not a fetch of version 1"}}`,
		`{"error":{"kind":"unsupported","message":"the request is not a fetch of version 1"}}`,
		`{"error":{"kind":"malformed","message":"the request is not valid JSON"}}`,
	}, "\n") + "\n"
	var out bytes.Buffer
	if err := Serve(t.Context(), p, strings.NewReader(in), &out); err != nil || out.String() != want {
		t.Errorf("%v\n got %s\nwant %s", err, out.String(), want)
	}
	dated := bundle("3", "a", "1")
	dated.Created, dated.NotBefore, dated.Expires = at, at.Add(time.Hour), at.Add(2*time.Hour)
	if got, want := string(encodeAnswer(dated, nil)),
		`{"version":"3","created":"2026-11-21T09:00:00Z","not_before":"2026-11-21T10:00:00Z","expires":"2026-11-21T11:00:00Z","fields":{"a":"1"}}`; got != want {
		t.Errorf(" got %s\nwant %s", got, want)
	}
}

func TestServeIsBounded(t *testing.T) {
	if err := Serve(t.Context(), scripted(nil), strings.NewReader(strings.Repeat("x", maxRequest+1)), nil); err == nil {
		t.Error("an endless request was read")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Serve(ctx, scripted(nil), strings.NewReader("{}\n"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
}

func TestServeWipes(t *testing.T) {
	b := bundle("1", "a", "1")
	p := scripted(func(Ref, Version) (Bundle, error) { return b, nil })
	out := &keeper{}
	if err := Serve(t.Context(), p, strings.NewReader(`{"version":1,"operation":"fetch","ref":{"path":"a"}}`), out); err != nil {
		t.Fatal(err)
	}
	if err := b.Fields["a"].Use(func([]byte) error { return nil }); !errors.Is(err, secret.ErrWiped) {
		t.Errorf("the bundle: %v, want ErrWiped", err)
	}
	if len(bytes.Trim(out.b, "\x00")) != 0 {
		t.Errorf("the line still holds %q", out.b)
	}
}

type keeper struct{ b []byte }

func (k *keeper) Write(b []byte) (int, error) { k.b = b; return len(b), nil }

func TestDecodeAnswer(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     map[string]string
		err      string
	}{
		{"strings", `{"version":"7","fields":{"a":"x\u00e9","b":""}}`, map[string]string{"a": "xé", "b": ""}, ""},
		{"other values", ` {"version":"7","fields":{"n":12345678901234567890,"t":true,"l":[1],"j":{"kty":"RSA"},"nil":null}} `,
			map[string]string{"n": "12345678901234567890", "t": "true", "l": "[1]", "j": `{"kty":"RSA"}`}, ""},
		{"base64", `{"version":"7","fields":{"a":{"base64":"\u002fwA="}}}`, map[string]string{"a": "\xff\x00"}, ""},
		{"an object with base64 and more", `{"version":"7","fields":{"a":{"base64":"x","b":1}}}`, map[string]string{"a": `{"base64":"x","b":1}`}, ""},
		{"whole", `{"version":"7","fields":{"":"x"}}`, map[string]string{Whole: "x"}, ""},
		{"no fields but known", `{"version":"7","fields":{}}`, map[string]string{}, ""},
		{"unknown members", `{"version":"7","fields":{"a":"1"},"lease":{}}`, map[string]string{"a": "1"}, ""},
		{"bad base64", `{"version":"7","fields":{"a":{"base64":"canary!"}}}`, nil, "no valid base64"},
		{"empty", ``, nil, "not one valid JSON object"},
		{"cut", `{"version":"7","fields":{"a":"canary`, nil, "not one valid JSON object"},
		{"array", `["canary"]`, nil, "not one valid JSON object"},
		{"two", `{"unchanged":true}{"unchanged":true}`, nil, "not one valid JSON object"},
		{"wrong type", `{"version":7,"fields":{}}`, nil, "wrong type at version"},
		{"fields no object", `{"version":"7","fields":"canary"}`, nil, "wrong type at fields"},
		{"a bad time", `{"version":"7","fields":{},"expires":"canary"}`, nil, "not one valid JSON object"},
		{"no version", `{"fields":{"a":"canary"}}`, nil, "no usable version"},
		{"a bad version", `{"version":"a b","fields":{}}`, nil, "no usable version"},
		{"a tuple's version", `{"version":"a+b","fields":{}}`, nil, "no usable version"},
		{"a long version", `{"version":"` + strings.Repeat("v", 129) + `","fields":{}}`, nil, "no usable version"},
		{"no fields", `{"version":"7"}`, nil, "no fields"},
		{"nothing", `{}`, nil, "no usable version"},
		{"null", `null`, nil, "no usable version"},
		{"two things", `{"unchanged":true,"version":"7","fields":{}}`, nil, "two things"},
		{"an error and fields", `{"error":{"kind":"denied"},"fields":{"a":"canary"}}`, nil, "two things"},
		{"an unknown kind", `{"error":{"kind":"canary"}}`, nil, "unknown kind"},
	} {
		in := []byte(c.in)
		b, err := DecodeAnswer(in)
		if c.err != "" {
			if KindOf(err) != Malformed || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: %v, want %q", c.name, err, c.err)
			}
		} else if err != nil || b.Version != "7" {
			t.Errorf("%s: version %q, %v", c.name, b.Version, err)
		}
		wantFields(t, c.name, b.Fields, c.want)
		if len(bytes.Trim(in, "\x00")) != 0 {
			t.Errorf("%s: the input still holds %q", c.name, in)
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Error
	}{
		{`{"error":{"kind":"throttled","retry_after_seconds":30}}`, Error{Kind: Throttled, RetryAfter: 30 * time.Second}},
		{`{"error":{"kind":"throttled","retry_after_seconds":-1}}`, Error{Kind: Throttled}},
		{`{"error":{"kind":"throttled","retry_after_seconds":99999999}}`, Error{Kind: Throttled, RetryAfter: 24 * time.Hour}},
		{`{"error":{"kind":"denied","message":"two\nlines\u001b[0m","hint":"` + strings.Repeat("é", 300) + `"}}`,
			Error{Kind: Denied, Message: "two lines [0m", Hint: strings.Repeat("é", 199) + "…"}},
	} {
		_, err := DecodeAnswer([]byte(c.in))
		e := (*Error)(nil)
		if !errors.As(err, &e) || *e != c.want {
			t.Errorf("%s gives %+v, want %+v", c.in, e, c.want)
		}
	}
	if _, err := DecodeAnswer([]byte(`{"unchanged":true}`)); !errors.Is(err, ErrUnchanged) {
		t.Errorf("%v, want ErrUnchanged", err)
	}
}

func TestEncode(t *testing.T) {
	for _, c := range []struct {
		fields map[string]secret.Secret
		want   string
		err    string
	}{
		{nil, `{}`, ""},
		{bundle("", "b", "2\t", "a", `"`).Fields, `{"a":"\"","b":"2\u0009"}`, ""},
		{bundle("", Whole, "\xff").Fields, "\xff", ""},
		{bundle("", Whole, "x", "a", "y").Fields, "", "not both"},
		{bundle("", "a", "\xff").Fields, "", `"a" is not text`},
	} {
		out, err := Encode(c.fields)
		if string(out) != c.want || (err == nil) != (c.err == "") || err != nil && (KindOf(err) != Unsupported || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%q, %v, want %q, %q", out, err, c.want, c.err)
		}
	}
}

// The buffer must never grow, or a copy of the values stays behind.
func TestEncodingDoesNotGrow(t *testing.T) {
	for _, value := range []string{"", "x", strings.Repeat("\x00", 999), strings.Repeat("\xff", 1000), strings.Repeat(`"`, 1000)} {
		fields := bundle("", strings.Repeat("\xff", 50), value, "\x01", value).Fields
		size := fieldsSize(fields)
		out, err := appendFields(make([]byte, 0, size), fields, true)
		if err != nil || cap(out) != size {
			t.Errorf("%d bytes of %.2q grew from %d to %d, %v", len(value), value, size, cap(out), err)
		}
		answer := encodeAnswer(Bundle{Version: "1", Fields: fields}, nil)
		if &answer[0] != &append(answer, '\n')[0] {
			t.Error("no room for the line end")
		}
	}
}

// FuzzDecodeAnswer: an answer is a bundle that is written and read back alike,
// or a clean error.
func FuzzDecodeAnswer(f *testing.F) {
	f.Add([]byte(`{"version":"7","fields":{"a":"x\u00e9\ud83d\ude00","b":{"base64":"/w=="},"n":1, "o" : { "p" : [ ] } }}`))
	f.Add([]byte(`{"unchanged":true}`))
	f.Add([]byte(`{"error":{"kind":"throttled","message":"m","retry_after_seconds":5}}`))
	f.Add([]byte(`{"version":"1","fields":{},"created":"2026-11-21T09:00:00Z"}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := DecodeAnswer(bytes.Clone(in))
		if err != nil {
			e := (*Error)(nil)
			if !errors.Is(err, ErrUnchanged) && !errors.As(err, &e) {
				t.Fatalf("%T", err)
			}
			if len(b.Fields) != 0 || strings.ContainsAny(err.Error(), "\n\r\x1b") {
				t.Errorf("fields beside, or an unclean, error: %q", err)
			}
			return
		}
		again, err := DecodeAnswer(encodeAnswer(b, nil))
		if err != nil || again.Version != b.Version || len(again.Fields) != len(b.Fields) || !again.Expires.Equal(b.Expires) {
			t.Fatalf("%+v was read back as %+v, %v", b, again, err)
		}
		for name := range b.Fields {
			if !b.Fields[name].Equal(again.Fields[name]) {
				t.Errorf("field %q differs", name)
			}
		}
	})
}

func FuzzServe(f *testing.F) {
	f.Add([]byte(`{"version":1,"operation":"fetch","ref":{"path":"app"},"have":"2"}` + "\n{}\n"))
	p := scripted(func(Ref, Version) (Bundle, error) { return Bundle{}, ErrUnchanged })
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		_ = Serve(t.Context(), p, bytes.NewReader(in), &out)
		for line := range bytes.Lines(out.Bytes()) {
			if _, err := DecodeAnswer(bytes.Clone(line)); err == nil {
				t.Errorf("%q", line)
			}
		}
	})
}
