package client

import (
	"maps"
	"slices"
	"strconv"
)

// Intake is the answer of POST /v1/clients/{client}/intake, whose body is
// {"fields": {NAME: VALUE}, "accept": bool}: the values of an issuer's mail, on
// their way to the secrets manager.
type Intake struct {
	Client string `json:"client"`
	// Provider and Secret say where the values belong, Kind what the secrets
	// manager is: vault, aws …
	Provider string `json:"provider"`
	Kind     string `json:"kind"`
	Secret   string `json:"secret"`
	// Proved says how they were shown to work: mint, refresh, probe; empty:
	// they were not, and accept allowed that.
	Proved string `json:"proved,omitempty"`
	// Unprovable says that nothing can prove them, rather than that the issuer
	// could not be asked.
	Unprovable bool `json:"unprovable,omitempty"`
	// Changed are the given fields that the secrets manager has with another
	// value, or not at all.
	Changed []string `json:"changed,omitempty"`
	// Missing are the fields that the client needs, and that neither were
	// given nor are in the secrets manager.
	Missing []string `json:"missing,omitempty"`
	// Stored says that the daemon has written them, with the provider's write
	// credentials, as Version. Otherwise the operator's own login has to.
	Stored  bool   `json:"stored"`
	Version string `json:"version,omitempty"`
	// Replaces is the version that was the newest when they were proved;
	// empty: there was none.
	Replaces string `json:"replaces,omitempty"`
}

// KeyRotation is what an administrator asks of POST
// /v1/clients/{client}/keys/rotate. Each request is one step, which may be
// repeated. Zero: make a pending key, if there is none yet.
type KeyRotation struct {
	NewKey
	// KeyID is the issuer's own name for the new key. Empty: its thumbprint.
	KeyID string `json:"key_id,omitempty"`
	// Probe asks the issuer whether it takes the pending key, and makes it the
	// key if so. Without a pending key the answer is the key that there is.
	Probe bool `json:"probe,omitempty"`
	// Abandon gives the pending key up.
	Abandon bool `json:"abandon,omitempty"`
}

// The states of a key rotation.
const (
	KeyPending   = "pending"   // a new key is in the secrets manager, and the issuer does not take it yet
	KeyRotated   = "rotated"   // it is the key
	KeyAbandoned = "abandoned" // there is no new key any more
)

// RotatedKey is how far the rotation of a key is.
type RotatedKey struct {
	State string `json:"state"`
	// Key is the new one, or, if it was given up, the one that stays. Its
	// version is of the secret that holds it.
	Key Key `json:"key"`
	// Old is the key identifier of the one that it replaces; empty: none.
	Old string `json:"old,omitempty"`
	// RetryAfter is after how many seconds the issuer may be asked (again).
	RetryAfter int64  `json:"retry_after,omitempty"`
	Reason     string `json:"reason"` // in words
	// Steps are what a person does at the issuer, from the preset.
	Steps []string `json:"steps,omitempty"`
}

// intakeBody is written by hand, into one buffer of its final size: an encoder
// would leave copies behind.
func intakeBody(fields map[string][]byte, accept bool) []byte {
	size := len(`{"fields":{},"accept":false}`)
	for name, v := range fields {
		size += len(`"":"",`) + len(name) + len(`\u0000`)*len(v)
	}
	b := append(make([]byte, 0, size), `{"fields":{`...)
	for i, name := range slices.Sorted(maps.Keys(fields)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), name...), `":"`...)
		for _, c := range fields[name] {
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c < ' ':
				b = append(b, '\\', 'u', '0', '0', "0123456789abcdef"[c>>4], "0123456789abcdef"[c&15])
			default:
				b = append(b, c)
			}
		}
		b = append(b, '"')
	}
	return append(strconv.AppendBool(append(b, `},"accept":`...), accept), '}')
}
