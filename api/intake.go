package api

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/secret"
)

const (
	maxFields  = 16      // of an intake
	maxValue   = 8 << 10 // bytes of one field
	maxField   = 64      // characters of its name
	intakeForm = `{"fields": {NAME: VALUE}, "accept": true or false}`
)

// intake's record names the fields, and holds nothing of their values.
func (s *Server) intake(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	body, err := s.readBody(w, r)
	if err != nil {
		return err
	}
	in, err := parseIntake(body)
	if err != nil {
		return err
	}
	defer wipeFields(in.Fields)
	names := slices.Sorted(maps.Keys(in.Fields))
	if err := s.act(r, c, "intake", name, map[string]string{"fields": strings.Join(names, " "), "accept": truth(in.Accept)}); err != nil {
		return err
	}
	done, err := s.cfg.Administration.Intake(r.Context(), name, in)
	return s.done(w, done, err)
}

// parseIntake reads the body of an intake and wipes it. No value becomes a
// string, and no error repeats one.
func parseIntake(body []byte) (broker.Intake, error) {
	defer clear(body)
	var none broker.Intake
	m, err := members(body, intakeForm, "fields", "accept")
	if err != nil {
		return none, err
	}
	defer wipe(m)
	accept, err := truthOf(m, "accept")
	if err != nil {
		return none, err
	}
	var given map[string]json.RawMessage
	if raw := m["fields"]; json.Unmarshal(raw, &given) != nil || len(given) == 0 || len(given) > maxFields {
		wipe(given)
		return none, invalid("fields is an object with 1 to 16 members")
	}
	defer wipe(given)
	in := broker.Intake{Fields: make(map[string]secret.Secret, len(given)), Accept: accept}
	for name, raw := range given {
		value, ok := text(raw)
		switch {
		case !fieldName(name):
			err = invalid("the name of a field has 1 to 64 of the characters a to z and _")
		case !ok || len(value) == 0 || len(value) > maxValue || !utf8.Valid(value):
			err = invalid("the value of " + name + " is a string of 1 to 8192 bytes")
		}
		if err != nil {
			clear(value)
			wipeFields(in.Fields)
			return none, err
		}
		in.Fields[name] = secret.New(value)
	}
	return in, nil
}

func fieldName(s string) bool {
	return len(s) > 0 && len(s) <= maxField && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz_") == ""
}

func wipeFields(m map[string]secret.Secret) {
	for _, v := range m {
		v.Wipe()
	}
}
