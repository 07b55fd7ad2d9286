package oidc

import (
	"encoding/base64"
	"errors"
	"io"
	"net"
	"sync"
	"unicode/utf8"
	"unsafe"
)

var errNotText = errors.New("not UTF-8")

// A form is a request's body that can be wiped even while a transport that was
// told to stop still reads it, and beside it the Authorization header.
type form struct {
	json    bool // else application/x-www-form-urlencoded
	mu      sync.Mutex
	all     []byte
	rest    []byte // not read yet
	auth    []byte // the Authorization header's string points here; nil: none
	started bool   // a transport reads the body only when it has written the header
	wiped   bool
}

// Read implements io.Reader.
func (f *form) Read(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started = true
	if f.wiped {
		return 0, net.ErrClosed
	}
	n := copy(b, f.rest)
	f.rest = f.rest[n:]
	if len(f.rest) == 0 {
		return n, io.EOF
	}
	return n, nil
}

// Close implements io.Closer.
func (f *form) Close() error { return nil }

func (f *form) wipe() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.all)
	f.wiped = true
	if f.started {
		clear(f.auth) // else the header may be on its way: it is left to the collector
	}
}

func (f *form) mediaType() string {
	if f.json {
		return "application/json"
	}
	return "application/x-www-form-urlencoded"
}

// basic writes the header of RFC 6749 §2.3.1: form-urlencoded first, then as
// RFC 7617 has it.
func (f *form) basic(m Material) error {
	id, key := m["client_id"], m["client_secret"]
	plain := make([]byte, 0, 3*(id.Len()+key.Len())+1)
	err := id.Use(func(b []byte) error { plain = appendForm(plain, b); return nil })
	plain = append(plain, ':')
	err = errors.Join(err, key.Use(func(b []byte) error { plain = appendForm(plain, b); return nil }))
	defer func() { clear(plain) }()
	const scheme = "Basic "
	f.auth = make([]byte, len(scheme)+base64.StdEncoding.EncodedLen(len(plain)))
	base64.StdEncoding.Encode(f.auth[copy(f.auth, scheme):], plain)
	return err
}

// add appends one parameter.
func (f *form) add(p parameter) error {
	if p.text == "" && p.value.Empty() {
		return nil
	}
	first := len(f.all) == 0
	if f.json {
		if first {
			f.all = append(f.all, '{')
		} else {
			f.all = append(f.all, ',')
		}
		_ = f.quoted([]byte(p.name))
		f.all = append(f.all, ':')
		if p.text != "" {
			return f.quoted([]byte(p.text))
		}
		return p.value.Use(f.quoted)
	}
	if !first {
		f.all = append(f.all, '&')
	}
	f.all = append(appendForm(f.all, []byte(p.name)), '=')
	if p.text != "" {
		f.all = appendForm(f.all, []byte(p.text))
		return nil
	}
	return p.value.Use(func(b []byte) error { f.all = appendForm(f.all, b); return nil })
}

// end makes the body ready to be read.
func (f *form) end() {
	if f.json {
		f.all = append(f.all, '}')
	}
	f.rest = f.all
}

// quoted appends a JSON string. The standard library would make a string of
// it, which cannot be wiped.
func (f *form) quoted(b []byte) error {
	const hex = "0123456789abcdef"
	if !utf8.Valid(b) {
		return errNotText
	}
	f.all = append(f.all, '"')
	for _, c := range b {
		switch {
		case c == '"' || c == '\\':
			f.all = append(f.all, '\\', c)
		case c < ' ':
			f.all = append(f.all, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			f.all = append(f.all, c)
		}
	}
	f.all = append(f.all, '"')
	return nil
}

// appendForm encodes as application/x-www-form-urlencoded. The standard
// library would make strings of it, which cannot be wiped.
func appendForm(dst, src []byte) []byte {
	const hex = "0123456789ABCDEF"
	for _, c := range src {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_', c == '~':
			dst = append(dst, c)
		case c == ' ':
			dst = append(dst, '+')
		default:
			dst = append(dst, '%', hex[c>>4], hex[c&15])
		}
	}
	return dst
}

// view makes a string that shares b's memory, so that it is wiped with it. It
// must not be used after that.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
