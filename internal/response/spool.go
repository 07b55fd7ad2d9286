package response

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"credentialbroker/api/client"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/leak"
)

// A Spooled is what was declared while no daemon ran.
type Spooled struct {
	// Incident has what a person has to do, and after Look the mails to send.
	Incident client.Incident
	// Err is why it is not recorded; nil: it is, durably.
	Err error

	record leak.Incident
	config Config
	dir    string
	clock  clock.Clock
}

// Spool records a declaration in the state directory dir, for the next daemon
// to act on, while none runs. An error means that the declaration has a
// mistake, and nothing was tried.
func Spool(dir, host string, c Config, clk clock.Clock, d client.Declaration, by leak.Declarer) (*Spooled, error) {
	now := clk.Now().Wall.UTC()
	i, err := incidentOf(&c, d, now)
	if err != nil {
		return nil, err
	}
	i.DeclaredBy, i.Unchecked = by, !d.DryRun
	i.ClientID = cmp.Or(i.ClientID, readIDs(dir)[d.Client])
	s := Spooled{config: c, dir: dir, clock: clk}
	book, err := leak.OpenBook(filepath.Join(dir, "incidents"), host, clk)
	recorded := i
	if err == nil && !d.DryRun {
		recorded, err = book.Spool(i, d.NoMail)
	}
	if err == nil && !d.DryRun && quarantines(&recorded) {
		_, _ = book.Hold(map[string][]string{recorded.ID: recorded.Clients}) // the record contains alone, too, and the daemon tries again
	}
	if s.Err = err; err != nil || d.DryRun {
		recorded = i
		if err != nil {
			recorded = undone(i)
		}
		recorded.Format, recorded.ID, recorded.Host, recorded.DeclaredAt, recorded.KnownAt = 1, fmt.Sprintf("%04d-0000", now.Year()), host, now, now
		recorded.Revise(now, "", d.NoMail)
	}
	recorded.Stopped(quarantines(&recorded)) // no daemon serves, and the next one does not either
	s.record, s.Incident = recorded, view(&c, &recorded, nil)
	return &s, nil
}

// Look reads in the audit log, which may take a while, what tokens there were,
// and makes the mails for a person to send. Without the log they say that this
// is not determined yet.
func (s *Spooled) Look() error {
	i := s.record
	i.Unchecked = false                                                                                                                   // whoever typed the texts may see them
	if t, err := looking(context.Background(), filepath.Join(s.dir, "audit"), &i, s.clock.Now().Wall); err == nil && !t.Begins.IsZero() { // an empty log tells nothing
		t.into(&i)
		i.Actions = slices.Clone(i.Actions)
		if !outcome(&i, "trace_tokens", leak.Done, fmt.Sprint(i.Exposure.Count), i.DeclaredAt) {
			i.Actions = append(i.Actions, leak.Action{At: i.DeclaredAt, What: "trace_tokens", Outcome: leak.Done, Detail: fmt.Sprint(i.Exposure.Count)})
		}
	}
	return byPerson(&s.config, i, s.config.languages(&i), &s.Incident)
}
