package rotation

import (
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/secret"
)

// Rules of this file: the age is that of the credential, not of the version
// that holds it. A version that differs in other fields is as old as the one
// before it.

// since is when the credential of live was made; zero: unknown.
func (c *Credential) since(live *Live) time.Time {
	if before := c.Current(); before != nil && !before.Created.IsZero() && before.Created.Before(live.Created) && sameCredential(before.Fields, live.Fields) {
		_ = c.ledger.olderThan(live.id, before.Created) // if it is forgotten, the age counts from this version
		return before.Created
	}
	if at := c.ledger.since(live.id); !at.IsZero() {
		return at
	}
	return live.Created
}

// sameCredential compares what has an age: what authenticates the client, or,
// where nothing does, the API key.
func sameCredential(a, b map[string]secret.Secret) bool {
	found := false
	for _, field := range []string{"client_secret", "private_key"} {
		if a[field].Empty() && b[field].Empty() {
			continue
		}
		if found = true; !a[field].Equal(b[field]) {
			return false
		}
	}
	return found || !a["api_key"].Empty() && a["api_key"].Equal(b["api_key"])
}

// noteAge records once for each version that it is to be replaced soon, from
// 80 % of its age on, and once that it is overdue.
func (c *Credential) noteAge() {
	live := c.Current()
	if live == nil || live.Created.IsZero() || c.cfg.MaxAge <= 0 {
		return
	}
	age, step := c.deps.Clock.Now().Wall.Sub(live.Created), ""
	switch {
	case age >= c.cfg.MaxAge:
		step = "overdue"
	case age >= c.cfg.MaxAge-c.cfg.MaxAge/5:
		step = "due"
	}
	if step == "" || !c.ledger.ages(live.id, step) {
		return
	}
	due := live.Created.Add(c.cfg.MaxAge).UTC().Format(time.RFC3339)
	detail := map[string]string{"due": due}
	if step == "overdue" {
		detail["alarm"] = "version " + string(live.Version) + " of the secret is older than its max_age, since " + due
	}
	c.note(audit.SecretAge, live.Version, step, detail)
}
