package providers

import (
	"bytes"
	"encoding/json"
	"fmt"

	"credentialbroker/internal/secret"
)

// Parse splits a payload into fields and wipes it. A JSON object gives its
// members: strings by their value, numbers, booleans, arrays and objects by
// their JSON text, null not at all. Anything else, binary data included, is
// the one field Whole. A payload that starts as an object and is none is
// Malformed; the error quotes nothing of it.
func Parse(payload []byte) (map[string]secret.Secret, error) {
	defer clear(payload)
	if len(payload) > MaxPayload {
		return nil, &Error{Kind: Malformed, Message: fmt.Sprintf("the secret is larger than %d bytes", MaxPayload)}
	}
	trimmed := bytes.TrimSpace(payload)
	if len(trimmed) == 0 || trimmed[0] != '{' {
		return map[string]secret.Secret{Whole: secret.New(bytes.Clone(payload))}, nil
	}
	var members map[string]json.RawMessage
	err := json.Unmarshal(trimmed, &members)
	defer func() {
		for _, raw := range members {
			clear(raw)
		}
	}()
	if err != nil {
		return nil, &Error{Kind: Malformed, Message: "the secret starts as a JSON object and is not valid JSON", Err: nil}
	}
	fields := make(map[string]secret.Secret, len(members))
	for name, raw := range members {
		switch {
		case name == Whole || bytes.Equal(raw, []byte("null")):
		case raw[0] == '"':
			fields[name] = secret.New(secret.Unquote(raw[1 : len(raw)-1]))
		default:
			fields[name] = secret.New(bytes.Clone(raw))
		}
	}
	return fields, nil
}
