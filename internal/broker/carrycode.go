package broker

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// Rules of this file: the form in which tokens go from one process to the next.
// It is
//
//	carryFormat, SHA-256 of all that follows, and for each token
//	the lengths of both parts (4 bytes each, big-endian), carriedFacts as JSON, the token
//
// A single changed byte makes the whole of it void. Another version of the
// broker that changes anything here changes carryFormat: then it is not read.

const carryFormat = "credential-broker tokens 1\n"

const (
	// MaxCarried is the length of what Carry gives, at most. What does not fit
	// is fetched.
	MaxCarried   = 8 << 20
	maxCarriedAT = 64 << 10 // one token: far more than oidc takes
	carryHead    = len(carryFormat) + sha256.Size
)

var (
	errCarryFormat  = errors.New("another version of the broker left them, or they are something else")
	errCarryDamaged = errors.New("they are damaged")
)

// carriedFacts is what goes with a token. None of it is a secret.
type carriedFacts struct {
	Client      string            `json:"client"`
	Issuer      string            `json:"issuer"`
	Origin      string            `json:"origin"`
	ClientID    string            `json:"client_id"`
	Version     providers.Version `json:"version"`
	Want        oidc.Request      `json:"want"`
	Read        time.Duration     `json:"read"`
	Type        string            `json:"type"`
	Scope       string            `json:"scope"`
	Sent        clock.Reading     `json:"sent"`
	Expires     clock.Reading     `json:"expires"`
	Fingerprint string            `json:"fingerprint"`
	JTI         string            `json:"jti"`
	Skew        time.Duration     `json:"skew"`
	Narrowed    bool              `json:"narrowed"`
	Bound       string            `json:"bound"`
}

// encodeCarried gives nil if there is nothing.
func encodeCarried(list []carried) (data []byte, n int, err error) {
	facts := make([][]byte, 0, len(list))
	size := carryHead
	for _, c := range list {
		t := c.token
		f, err := json.Marshal(carriedFacts{c.client, c.issuer, c.origin, c.clientID, c.version, c.want, c.read,
			t.Type, t.Scope, t.Sent, t.Expires, t.Fingerprint, t.JTI, t.Skew, t.Narrowed, t.Bound})
		if err != nil {
			return nil, 0, err
		}
		one := 8 + len(f) + t.Access.Len()
		if size+one > MaxCarried {
			break
		}
		facts, size = append(facts, f), size+one
	}
	if len(facts) == 0 {
		return nil, 0, nil
	}
	data = make([]byte, carryHead, size) // at once: growing would leave copies
	copy(data, carryFormat)
	for i, f := range facts {
		token := list[i].token.Access
		data = binary.BigEndian.AppendUint32(data, uint32(len(f)))      // #nosec G115 -- less than MaxCarried
		data = binary.BigEndian.AppendUint32(data, uint32(token.Len())) // #nosec G115 -- less than MaxCarried
		data = append(data, f...)
		if data, err = token.AppendTo(data); err != nil {
			clear(data)
			return nil, 0, err
		}
	}
	sum := sha256.Sum256(data[carryHead:])
	copy(data[len(carryFormat):], sum[:])
	return data, len(facts), nil
}

// decodeCarried gives all of it, or an error. The tokens are moved out of data,
// the rest of which is the caller's to wipe.
func decodeCarried(data []byte) (list []carried, err error) {
	switch {
	case !bytes.HasPrefix(data, []byte(carryFormat)):
		return nil, errCarryFormat
	case len(data) < carryHead || len(data) > MaxCarried:
		return nil, errCarryDamaged
	}
	rest := data[carryHead:]
	if sum := sha256.Sum256(rest); !bytes.Equal(sum[:], data[len(carryFormat):carryHead]) {
		return nil, errCarryDamaged
	}
	defer func() {
		if err != nil {
			for _, c := range list {
				c.token.Access.Wipe()
			}
			list = nil
		}
	}()
	for len(rest) > 0 {
		var c carried
		if c, rest, err = decodeOne(rest); err != nil {
			return list, err
		}
		list = append(list, c)
	}
	return list, nil
}

func decodeOne(data []byte) (c carried, rest []byte, err error) {
	if len(data) < 8 {
		return c, nil, errCarryDamaged
	}
	facts, token := uint64(binary.BigEndian.Uint32(data)), uint64(binary.BigEndian.Uint32(data[4:]))
	data = data[8:]
	if facts+token > uint64(len(data)) || token == 0 || token > maxCarriedAT {
		return c, nil, errCarryDamaged
	}
	var f carriedFacts
	if json.Unmarshal(data[:facts], &f) != nil {
		return c, nil, errCarryDamaged
	}
	value, rest := data[facts:facts+token], data[facts+token:]
	sum := sha256.Sum256(value)
	if f.Fingerprint != base64.RawURLEncoding.EncodeToString(sum[:]) || f.Expires.Sub(f.Sent) <= 0 {
		return c, nil, errCarryDamaged
	}
	return carried{client: f.Client, issuer: f.Issuer, origin: f.Origin, clientID: f.ClientID, version: f.Version, want: f.Want, read: f.Read,
		token: oidc.Token{Access: secret.New(value), Type: f.Type, Scope: f.Scope, Sent: f.Sent, Expires: f.Expires,
			Fingerprint: f.Fingerprint, JTI: f.JTI, Skew: f.Skew, Narrowed: f.Narrowed, Bound: f.Bound}}, rest, nil
}
