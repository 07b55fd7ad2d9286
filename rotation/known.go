package rotation

import (
	"slices"
	"strconv"

	"credentialbroker/internal/scan"
	"credentialbroker/internal/secret"
)

// Rules of this file: what serves is shown to the index when a scan begins,
// and by somebody else; here it learns, while the values are still there, what
// is no longer in use. A refresh token has no reader but whoever has the
// minting turn: it is shown as soon as there is one.

// SecretFields are the fields of a bundle that a leak is about: the others may
// be known.
func SecretFields() []string {
	return []string{"client_secret", "private_key", Pending + "private_key", "api_key"}
}

// Retire has what serves remembered as retired, for a credential that is not
// used any more.
func (c *Credential) Retire() { c.replaced(c.Current(), nil) }

// replaced has the values of old remembered that live does not have.
func (c *Credential) replaced(old, live *Live) {
	if c.deps.Known == nil || old == nil {
		return
	}
	version := string(old.Version)
	for _, field := range SecretFields() {
		v := old.Fields[field]
		if v.Empty() || live != nil && hasValue(live.Fields, v) {
			continue
		}
		// A value that is too short to be looked for is nothing that could be found.
		_ = c.deps.Known.Add(scan.Needle{Client: c.cfg.Client, Field: field, Version: version, Value: v})
	}
	for _, field := range SecretFields() {
		c.deps.Known.Retire(c.cfg.Client, field, version)
	}
}

func hasValue(fields map[string]secret.Secret, v secret.Secret) bool {
	return slices.ContainsFunc(SecretFields(), func(name string) bool { return fields[name].Equal(v) })
}

// showLogin tells the index which refresh token there is. The caller has the
// minting turn.
func (c *Credential) showLogin() {
	l := c.login
	if c.deps.Known == nil {
		return
	}
	version := strconv.FormatUint(l.gen, 10)
	if l.gen == 0 { // a person has stored it
		version += ":" + string(l.version)
	}
	if l.token.Empty() {
		version = ""
	}
	if l.shown != "" && l.shown != version {
		c.deps.Known.Retire(c.cfg.Client, fieldToken, l.shown)
	}
	l.shown = version
	if version != "" {
		_ = c.deps.Known.Add(scan.Needle{Client: c.cfg.Client, Field: fieldToken, Version: version, Value: l.token})
	}
}
