package files

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"credentialbroker/internal/broker"
	"credentialbroker/internal/secret"
)

// A buffer holds a file's bytes; whoever makes it wipes it.
type buffer struct{ b []byte }

func (w *buffer) wipe() { clear(w.b[:cap(w.b)]) }

// add appends, and wipes what it grows out of.
func (w *buffer) add(b []byte) {
	if cap(w.b)-len(w.b) < len(b) {
		old := w.b
		w.b = append(make([]byte, 0, 2*cap(old)+len(b)), old...)
		clear(old)
	}
	w.b = append(w.b, b...)
}

func (w *buffer) text(s string) { w.add([]byte(s)) }

// value writes one pair, in the format.
type value func(name string, v []byte) error

// fill writes a grant as the file wants it.
func (w *buffer) fill(c Config, g *broker.Grant) error {
	w.b = make([]byte, 0, 8<<10)
	switch {
	case c.Format == Text && c.Content == Headers:
		return g.AppendHeaders(func(name string, v []byte) error {
			w.text(name + ": ")
			w.add(v)
			w.text("\n")
			return nil
		})
	case c.Format == Text:
		s := g.Token.Access
		if c.Content == APIKey {
			s = g.APIKey()
		}
		return w.secret(s)
	case c.Format == Dotenv:
		return each(c, g, w.assignment)
	}
	w.text("{")
	err := each(c, g, w.member)
	w.text("}\n")
	return err
}

func (w *buffer) secret(s secret.Secret) error {
	if s.Empty() {
		return errors.New("there is nothing to write")
	}
	return s.Use(func(b []byte) error { w.add(b); return nil })
}

// each calls put for all that a file of several values holds.
func each(c Config, g *broker.Grant, put value) error {
	switch c.Content {
	case Headers:
		return g.AppendHeaders(put)
	case APIKey:
		return g.APIKey().Use(func(b []byte) error { return put("api_key", b) })
	case Token:
	}
	err := g.Token.Access.Use(func(b []byte) error { return put("access_token", b) })
	more := [][2]string{{"token_type", tokenType(g)}, {"expires_at", g.ExpiresAt().UTC().Format(time.RFC3339)},
		{"scope", g.Token.Scope}, {"client", g.Client}, {"fingerprint", g.Token.Fingerprint}}
	if c.Format == Dotenv { // a program's environment holds what it needs
		more = more[:2]
	}
	for _, one := range more {
		err = errors.Join(err, put(one[0], []byte(one[1])))
	}
	return err
}

func tokenType(g *broker.Grant) string {
	if g.Token.Type == "" {
		return "Bearer"
	}
	return g.Token.Type
}

// member appends "name":"value" of an object.
func (w *buffer) member(name string, v []byte) error {
	if len(w.b) > 1 {
		w.text(",")
	}
	quoted, _ := json.Marshal(name)
	w.add(quoted)
	w.text(`:"`)
	for i, c := range v {
		switch {
		case c < ' ' || c >= 0x7f:
			return fmt.Errorf("the value of %s is not printable ASCII", name)
		case c == '"' || c == '\\':
			w.text(`\`)
		}
		w.add(v[i : i+1])
	}
	w.text(`"`)
	return nil
}

// assignment appends NAME='value', which means the same to a shell, to
// systemd's EnvironmentFile= and to the libraries that read .env files. They
// differ in what they do with quotes and backslashes inside, so there are none.
func (w *buffer) assignment(name string, v []byte) error {
	if bytes.ContainsFunc(v, func(r rune) bool { return r < ' ' || r >= 0x7f || r == '\'' || r == '\\' }) {
		return fmt.Errorf("the value of %s has a quote, a backslash or an unprintable character: write the file with format: json", name)
	}
	w.text(Variable(name) + "='")
	w.add(v)
	w.text("'\n")
	return nil
}

// Variable is the name of a header or field as a variable.
func Variable(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, name)
}
