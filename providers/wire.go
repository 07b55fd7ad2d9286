package providers

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"credentialbroker/internal/secret"
)

// The one JSON form of requests and answers, which a command of the exec
// provider and a provider in another process speak. Lines of JSON: a request
//
//	{"version":1,"operation":"fetch","ref":{"path":"vdab"},"have":"7"}
//
// and one of three answers:
//
//	{"version":"8","fields":{"client_id":"…","client_secret":"…"},
//	 "created":"2026-11-21T09:00:00Z","not_before":"…","expires":"…"}
//	{"unchanged":true}
//	{"error":{"kind":"not_found","message":"…","hint":"…","retry_after_seconds":30}}
//
// A field is a string, or {"base64":"…"} for bytes that are not text; the
// field of a secret that is one value has the empty name. Times are RFC 3339
// and optional, as are message, hint and retry_after_seconds; the kinds are
// those of [Kind]. Unknown members are ignored, in both directions.

// A Request is what a provider in another process is asked.
type Request struct {
	Version   int     `json:"version"`        // of this form: 1
	Operation string  `json:"operation"`      // fetch
	Ref       Ref     `json:"ref"`            // the secret
	Have      Version `json:"have,omitempty"` // answer "unchanged" if this is current
}

// maxRequest bounds a line that Serve reads, in bytes.
const maxRequest = 64 << 10

type answer struct {
	Version   Version                    `json:"version,omitempty"`
	Created   time.Time                  `json:"created,omitzero"`
	NotBefore time.Time                  `json:"not_before,omitzero"`
	Expires   time.Time                  `json:"expires,omitzero"`
	Fields    map[string]json.RawMessage `json:"fields,omitempty"`
	Unchanged bool                       `json:"unchanged,omitempty"`
	Error     *answerError               `json:"error,omitempty"`
}

type answerError struct {
	Kind       Kind   `json:"kind"`
	Message    string `json:"message,omitempty"`
	Hint       string `json:"hint,omitempty"`
	RetryAfter int64  `json:"retry_after_seconds,omitempty"`
}

// Serve answers the requests of in from p, one line each, until in ends or ctx
// does. It returns the error of reading or writing; errors of p are answers.
// It reads in without regard to ctx: to stop it at once, close in.
func Serve(ctx context.Context, p Provider, in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxRequest)
	for ctx.Err() == nil && lines.Scan() {
		line := append(serveOne(ctx, p, lines.Bytes()), '\n')
		_, err := out.Write(line)
		clear(line)
		if err != nil {
			return fmt.Errorf("write an answer: %w", err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read a request: %w", err)
	}
	return ctx.Err()
}

func serveOne(ctx context.Context, p Provider, line []byte) []byte {
	var r Request
	switch err := json.Unmarshal(line, &r); {
	case err != nil:
		return encodeAnswer(Bundle{}, &Error{Kind: Malformed, Message: "the request is not valid JSON"})
	case r.Version != 1 || r.Operation != "fetch":
		return encodeAnswer(Bundle{}, &Error{Kind: Unsupported, Message: "the request is not a fetch of version 1"})
	}
	b, err := p.Fetch(ctx, r.Ref, r.Have)
	defer b.Wipe()
	return encodeAnswer(b, err)
}

// encodeAnswer leaves room for a line end. The caller wipes what it returns.
func encodeAnswer(b Bundle, err error) []byte {
	if err != nil {
		a := answer{Unchanged: errors.Is(err, ErrUnchanged)}
		if !a.Unchanged {
			a.Error = &answerError{Kind: KindOf(err), Message: "the secrets manager did not answer in time"}
			if e := (*Error)(nil); errors.As(err, &e) {
				a.Error = &answerError{e.Kind, e.Message, e.Hint, int64((e.RetryAfter + time.Second - 1) / time.Second)}
			}
		}
		out, _ := json.Marshal(a) // it holds nothing that can fail
		return out
	}
	head, err := json.Marshal(answer{Version: b.Version, Created: b.Created, NotBefore: b.NotBefore, Expires: b.Expires})
	if err != nil {
		return encodeAnswer(Bundle{}, &Error{Kind: Malformed, Message: "the secrets manager gave a time that cannot be written"})
	}
	// The values are put in by hand: encoding/json would leave them in its pool.
	out := make([]byte, 0, len(head)+fieldsSize(b.Fields)+len(`,"fields":`)+1)
	out = append(out, head[:len(head)-1]...)
	out = append(out, `,"fields":`...)
	if out, err = appendFields(out, b.Fields, true); err != nil {
		clear(out)
		return encodeAnswer(Bundle{}, &Error{Kind: Unavailable, Message: "the values were wiped before they were sent", Err: err})
	}
	return append(out, '}')
}

// DecodeAnswer reads what Serve or a command has written, and wipes it. The
// error is ErrUnchanged, the other side's *Error, or one of kind Malformed that
// quotes nothing but names of members.
func DecodeAnswer(line []byte) (Bundle, error) {
	defer clear(line)
	var a answer
	err := json.Unmarshal(line, &a)
	defer func() {
		for _, raw := range a.Fields {
			clear(raw)
		}
	}()
	malformed := func(message string) (Bundle, error) {
		return Bundle{}, &Error{Kind: Malformed, Message: message,
			Hint: `an answer is {"version":…,"fields":{…}}, {"unchanged":true} or {"error":{"kind":…}}`}
	}
	wrongType := (*json.UnmarshalTypeError)(nil)
	switch {
	case errors.As(err, &wrongType) && wrongType.Field != "" && validVersion(Version(wrongType.Field)):
		return malformed("the answer has a wrong type at " + wrongType.Field)
	case err != nil:
		return malformed("the answer is not one valid JSON object")
	case a.Error != nil && (a.Unchanged || a.Version != "" || a.Fields != nil),
		a.Unchanged && (a.Version != "" || a.Fields != nil):
		return malformed("the answer says two things at once")
	case a.Error != nil && !a.Error.Kind.known():
		return malformed("the answer has an unknown kind of error")
	case a.Error != nil:
		return Bundle{}, a.Error.error()
	case a.Unchanged:
		return Bundle{}, ErrUnchanged
	case !validVersion(a.Version):
		return malformed("the answer has no usable version: 1 to 128 characters of A-Z a-z 0-9 . _ : -")
	case a.Fields == nil:
		return malformed("the answer has no fields")
	}
	b := Bundle{Version: a.Version, Created: a.Created, NotBefore: a.NotBefore, Expires: a.Expires,
		Fields: make(map[string]secret.Secret, len(a.Fields))}
	for name, raw := range a.Fields {
		value, ok := decodeField(raw)
		if !ok {
			b.Wipe()
			return malformed("the answer has a field that is no valid base64")
		}
		if !bytes.Equal(raw, []byte("null")) {
			b.Fields[name] = value
		}
	}
	return b, nil
}

// decodeField reads a value as Parse does, and {"base64": …} besides.
func decodeField(raw json.RawMessage) (secret.Secret, bool) {
	switch raw[0] {
	case '"':
		return secret.New(secret.Unquote(raw[1 : len(raw)-1])), true
	case '{':
		var members map[string]json.RawMessage
		_ = json.Unmarshal(raw, &members) // it was read before
		defer func() {
			for _, m := range members {
				clear(m)
			}
		}()
		coded, ok := members["base64"]
		if len(members) != 1 || !ok || coded[0] != '"' {
			break
		}
		text := secret.Unquote(coded[1 : len(coded)-1])
		defer clear(text)
		out := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
		n, err := base64.StdEncoding.Decode(out, text)
		defer clear(out)
		if err != nil {
			return secret.Secret{}, false
		}
		return secret.New(out[:n]), true
	}
	return secret.New(bytes.Clone(raw)), true
}

func (k Kind) known() bool {
	return slices.Contains([]Kind{NotFound, Denied, LoginFailed, Throttled, Unavailable, Disabled, Deleted, Expired,
		NotYetValid, Malformed, Conflict, Unsupported}, k)
}

func (e *answerError) error() *Error {
	const day = 24 * 60 * 60
	return &Error{Kind: e.Kind, Message: printable(e.Message), Hint: printable(e.Hint),
		RetryAfter: time.Duration(min(max(e.RetryAfter, 0), day)) * time.Second}
}

// printable makes one short line of a text from another process.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 200 {
		s = string(r[:199]) + "…"
	}
	return s
}

// Encode is the inverse of Parse: the payload that a Writer stores, whose
// caller wipes it. Fields become a JSON object of strings; the field Whole
// alone is written as it is. A value that is no UTF-8 text is Unsupported.
func Encode(fields map[string]secret.Secret) ([]byte, error) {
	whole, ok := fields[Whole]
	switch {
	case ok && len(fields) > 1:
		return nil, &Error{Kind: Unsupported, Message: "a secret is one value or has named fields, not both"}
	case ok:
		return whole.AppendTo(make([]byte, 0, whole.Len()))
	}
	out, err := appendFields(make([]byte, 0, fieldsSize(fields)), fields, false)
	if err != nil {
		clear(out)
		return nil, err
	}
	return out, nil
}

// fieldsSize is more than appendFields needs, so that nothing has to grow: a
// grown slice leaves its old bytes behind.
func fieldsSize(fields map[string]secret.Secret) int {
	n := 2
	for name, s := range fields {
		n += 6*len(name) + 6*s.Len() + len(`"":{"base64":""},`) + 4
	}
	return n
}

func appendFields(out []byte, fields map[string]secret.Secret, binary bool) ([]byte, error) {
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	out = append(out, '{')
	for i, name := range names {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(appendQuoted(out, []byte(strings.ToValidUTF8(name, "\uFFFD"))), ':')
		err := fields[name].Use(func(b []byte) error {
			switch {
			case utf8.Valid(b):
				out = appendQuoted(out, b)
			case binary:
				out = append(base64.StdEncoding.AppendEncode(append(out, `{"base64":"`...), b), `"}`...)
			default:
				return &Error{Kind: Unsupported, Message: "the field " + strconv.Quote(name) + " is not text",
					Hint: "encode it, as base64 say, before it is stored"}
			}
			return nil
		})
		if err != nil {
			return out, err
		}
	}
	return append(out, '}'), nil
}

func appendQuoted(out, b []byte) []byte {
	out = append(out, '"')
	for _, c := range b {
		switch {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c < 0x20 || c == 0x7f:
			out = append(out, '\\', 'u', '0', '0', "0123456789abcdef"[c>>4], "0123456789abcdef"[c&15])
		default:
			out = append(out, c)
		}
	}
	return append(out, '"')
}
