package intake

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"credentialbroker/internal/secret"
)

// What all fixtures hold: see testdata/make.sh.
const (
	fixtureID       = "kMadeUpByATest0000001"
	fixtureSecret   = "sMadeUpByATest/0000000000+0000000000="
	fixturePassword = "geheim-2026"
)

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// typed gives the passwords one after the other, and counts.
func typed(asked *int, passwords ...string) func(string, int) (secret.Secret, error) {
	return func(string, int) (secret.Secret, error) {
		*asked++
		return secret.FromString(passwords[min(*asked, len(passwords))-1]), nil
	}
}

func readBytes(b []byte, passwords ...string) (Found, error) {
	return Read(bytes.NewReader(b), int64(len(b)), typed(new(int), append(passwords, "")...))
}

func reveal(s secret.Secret) string {
	b, _ := s.AppendTo(nil)
	return string(b)
}

// show writes what was found, for comparison.
func show(f Found, err error) string {
	var b strings.Builder
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return "error " + err.Error()
		}
		return string(e.Kind)
	}
	for _, field := range []string{ClientID, ClientSecret, APIKey} {
		if v, ok := f.Fields[field]; ok {
			fmt.Fprintf(&b, "%s=%s\n", field, reveal(v))
		}
	}
	for _, d := range f.Doubts {
		fmt.Fprintf(&b, "?%s: %s", d.Field, d.Why)
		for _, c := range d.Candidates {
			fmt.Fprintf(&b, " [%s|%s|%s]", reveal(c.Value), c.Label, c.Place)
		}
		b.WriteString("\n")
	}
	for _, n := range f.Notes {
		fmt.Fprintf(&b, "! %s\n", n)
	}
	return strings.TrimSpace(b.String())
}
