package rotation

import (
	"maps"
	"slices"
	"time"

	"credentialbroker/providers"
)

// A Status is a credential's state, for people. Times are wall-clock; zero
// means that it does not apply.
type Status struct {
	Version   providers.Version // that serves
	Created   time.Time         // by the manager's word
	Installed time.Time
	Works     bool // has authenticated in this process

	Candidate providers.Version
	Waiting   string // why the candidate is not installed

	Refused []providers.Version

	Checked     time.Time // last good answer of the secrets manager
	ProviderErr error
	IssuerErr   error
	Since       time.Time // of the worse of both
	Next        time.Time // when it is tried again
}

// Status tells the state now.
func (c *Credential) Status() Status {
	live := c.Current()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Checked: c.checked.Wall, ProviderErr: c.provider.err, IssuerErr: c.issuer.err,
		Refused: slices.Sorted(maps.Keys(c.ledger.Refused))}
	if live != nil {
		s.Version, s.Created, s.Installed = live.Version, live.Created, live.Installed.Wall
		s.Works = c.ledger.works == live.Version
	}
	if c.candidate != nil {
		s.Candidate, s.Waiting, s.Next = c.candidate.bundle.Version, c.candidate.why, c.candidate.next.Wall
	}
	for _, t := range []trouble{c.provider, c.issuer} {
		if t.err != nil {
			s.Since, s.Next = t.since.Wall, t.until.Wall
		}
	}
	return s
}
