package broker

import (
	"fmt"
	"strings"

	"credentialbroker/internal/secret"
)

// headerTemplate is a header whose value is text and fields in turn.
type headerTemplate struct {
	name  string
	parts []string // text, field, text, field, … text
}

const accessToken = "access_token"

func parseHeader(h Header) (headerTemplate, error) {
	t := headerTemplate{name: h.Name}
	rest := h.Value
	for {
		text, after, found := strings.Cut(rest, "{")
		t.parts = append(t.parts, text)
		if !found {
			break
		}
		field, tail, closed := strings.Cut(after, "}")
		if !closed || field == "" {
			return t, fmt.Errorf("header %s: %q has a brace without its partner", h.Name, h.Value)
		}
		t.parts = append(t.parts, field)
		rest = tail
	}
	return t, nil
}

// expand appends the value to dst, whose owner wipes it.
func (t headerTemplate) expand(dst []byte, g *Grant) ([]byte, error) {
	for i, p := range t.parts {
		if i%2 == 0 {
			dst = append(dst, p...)
			continue
		}
		var s secret.Secret
		if p == accessToken {
			s = g.Token.Access
		} else {
			s = g.fields[p]
		}
		if s.Empty() {
			return dst, fmt.Errorf("header %s: the bundle has no %s", t.name, p)
		}
		var err error
		if dst, err = s.AppendTo(dst); err != nil {
			return dst, err
		}
	}
	for _, b := range dst {
		if b < ' ' && b != '\t' || b == 0x7f {
			return dst, fmt.Errorf("header %s: the value has a control character", t.name)
		}
	}
	return dst, nil
}
