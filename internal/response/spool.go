package response

import (
	"fmt"
	"path/filepath"

	"credentialbroker/api/client"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/leak"
)

// A Spooled is what was declared while no daemon ran.
type Spooled struct {
	Incident client.Incident
	Mails    []leak.Message // as they will be sent, but for what is found out until then
	// Err is why it is not recorded; nil: it is, durably.
	Err error
	// MailErr is why no mail could be made; nil: it could.
	MailErr error
}

// Spool records a declaration in the state directory dir, for the next daemon
// to act on, while none runs. An error means that the declaration has a
// mistake, and nothing was tried.
func Spool(dir, host string, c Config, clk clock.Clock, d client.Declaration, by leak.Declarer) (Spooled, error) {
	now := clk.Now().Wall.UTC()
	i, err := incidentOf(&c, d, now)
	if err != nil {
		return Spooled{}, err
	}
	i.DeclaredBy, i.Unchecked = by, !d.DryRun
	var s Spooled
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
		recorded.Format, recorded.ID, recorded.Host, recorded.DeclaredAt, recorded.KnownAt = 1, fmt.Sprintf("%04d-0000", now.Year()), host, now, now
		recorded.Revise(now, "", d.NoMail)
	}
	recorded.Stopped(quarantines(&recorded))
	s.Incident = view(&c, &recorded, nil)
	recorded.Unchecked = false // whoever typed the texts may see them
	s.Mails, s.MailErr = leak.Compose(recorded, c.Sender, c.client(d.Client).Languages)
	return s, nil
}
