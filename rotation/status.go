package rotation

import (
	"time"

	"credentialbroker/providers"
)

// A Status is a credential's state, for people. Times are wall-clock; zero
// means that it does not apply.
type Status struct {
	Version   providers.Version // that serves
	Created   time.Time         // by the manager's word
	Installed time.Time
	Works     bool   // has authenticated in this process
	Dead      bool   // the issuer has refused it
	Remedy    string // what to do if it is dead

	Pinned providers.Version // by an administrator; empty: the newest serves

	Candidate providers.Version
	Waiting   string // why the candidate is not installed

	Refused []providers.Version
	Left    int // failed authentications that the budget still allows what serves

	// Degraded is until when the sealed copy serves in place of a secrets
	// manager that is down, and Confirmed the manager's last good answer before
	// that; zero: it does not.
	Degraded, Confirmed time.Time
	Withheld            *Error    // why it does not serve any more; nil: it does
	Kept                time.Time // the manager's last good answer that the sealed copy has; zero: none is known of
	KeepErr             error     // why there is none, or not of now; nil: nothing is wrong

	Login    *LoginStatus // nil: the client needs none
	Probed   time.Time    // when the API last took what serves; zero: never
	ProbeErr error        // why it last did not; nil: it did, or was not asked

	Checked  time.Time // last good answer of the secrets manager
	Provider Trouble   // of reading from it
	Issuer   Trouble   // of getting tokens; its error is an *Error
	State    Trouble   // of writing down what must survive; its error is an *Error
}

// A Trouble is a failure that goes on. Err is nil if there is none.
type Trouble struct {
	Err         error
	Since, Next time.Time // Next: when it is tried again
}

func (t trouble) status() Trouble {
	if t.err == nil {
		return Trouble{}
	}
	return Trouble{Err: t.err, Since: t.since.Wall, Next: t.until.Wall}
}

// Status tells the state now.
func (c *Credential) Status() Status {
	live, withheld := c.Current(), c.withheld(c.deps.Clock.Now())
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Withheld: withheld, Kept: c.kept.confirmed, KeepErr: c.kept.err, Checked: c.checked.Wall, Provider: c.provider.status(), Issuer: c.issuer.status(), State: c.state.status()}
	if s.Issuer.Err != nil {
		s.Issuer.Err = issuerError(s.Issuer.Err, c.issuer.until.Until(c.deps.Clock.Now()))
	}
	if live != nil {
		s.Version, s.Created, s.Installed = live.Version, live.Created, live.Installed.Wall
		s.Works = c.ledger.hasWorked(live.id)
		s.Dead, s.Remedy = c.refused(live.id), c.remedy()
		s.Left = c.ledger.left(c.deps.Clock.Now().Wall, share(c.cfg.Failures, c.cfg.Hosts), live.id)
	}
	if c.brown.on() {
		s.Degraded, s.Confirmed = c.brown.until.Wall.UTC(), c.brown.confirmed
	}
	if c.login != nil {
		s.Login = c.login.status.Load()
	}
	if live != nil {
		if p := c.probes[live.id]; p.taken() {
			s.Probed = p.at.Wall
		} else {
			s.ProbeErr = p.err
		}
	}
	if c.candidate != nil {
		s.Candidate, s.Waiting = c.candidate.bundle.Version, c.candidate.why
	}
	s.Refused, s.Pinned = c.ledger.refusedOf(c.place), c.ledger.pinned(c.place)
	return s
}
