package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/scan"
	"credentialbroker/rotation"
)

// Rules of this file: hashing a value costs most of a millisecond and 4 KB, and
// most daemons are never asked to scan. So what serves is hashed when a scan
// begins, and what retires before it is wiped, never while a consumer waits.
// Only hashes are kept.

const (
	tokenField = "access_token"
	findQuiet  = time.Hour // between alarms about one field of a client
)

// sought is what scans look for.
type sought struct {
	index *scan.Index

	mu    sync.Mutex
	live  map[needle]bool       // what was live when the last scan began
	alarm map[finding]time.Time // when the last alarm was
}

type needle struct{ client, field, version string }

type finding struct {
	client, field string
	retired       bool
}

// Unscannable is a value that no scan can look for.
type Unscannable struct{ Client, Field, Reason string }

// Scan gives the filter for one scan: for all values that serve, and for those
// that were retired a short time ago. It also says what is not looked for.
func (b *Broker) Scan() (scan.Filter, []Unscannable) {
	s := &b.sought
	s.mu.Lock()
	defer s.mu.Unlock()
	b.uses.Add(1)
	defer b.uses.Add(1)
	live := map[needle]bool{}
	var cannot []Unscannable
	set := b.clients.Load()
	for _, name := range set.names {
		for _, n := range set.byName[name].needles() {
			switch err := s.index.Add(n); {
			case err == nil:
				live[needle{n.Client, n.Field, n.Version}] = true
			case errors.Is(err, scan.ErrLength):
				cannot = append(cannot, Unscannable{n.Client, n.Field, "it has fewer than 8 bytes, or more than 10240"})
			} // else it was replaced and wiped meanwhile
		}
	}
	for n := range s.live {
		if !live[n] {
			s.index.Retire(n.client, n.field, n.version)
		}
	}
	s.live = live
	return s.index.Filter(), cannot
}

// needles are the values of the client that serve; a refresh token is known
// already.
func (c *cachedClient) needles() (list []scan.Needle) {
	if live := c.cred.Current(); live != nil {
		for _, field := range rotation.SecretFields() {
			if v := live.Fields[field]; !v.Empty() {
				list = append(list, scan.Needle{Client: c.cfg.Name, Field: field, Version: string(live.Version), Value: v})
			}
		}
	}
	for _, e := range c.all() {
		if h := e.held.Load(); h != nil {
			list = append(list, h.needle())
		}
		if t := e.carried.Load(); t != nil {
			list = append(list, scan.Needle{Client: c.cfg.Name, Field: tokenField, Version: t.token.Fingerprint, Value: t.token.Access, Brief: true})
		}
	}
	return list
}

func (h *held) needle() scan.Needle {
	return scan.Needle{Client: h.event.Client, Field: tokenField, Version: h.token.Fingerprint, Value: h.token.Access, Brief: true}
}

// remember has tokens known as retired. Nobody waits for it: at the end of the
// process nothing is remembered anyway.
func (b *Broker) remember(tokens []scan.Needle) {
	if len(tokens) == 0 {
		return
	}
	b.launch(func(context.Context) {
		b.uses.Add(1)
		defer b.uses.Add(1)
		for _, n := range tokens {
			if b.sought.index.Add(n) == nil {
				b.sought.index.Retire(n.Client, n.Field, n.Version)
			}
		}
	})
}

// ConfirmFind says what stands in each candidate, and raises an alarm about what
// does: at most one an hour for each field of a client. It wipes the candidates.
func (b *Broker) ConfirmFind(c *access.Caller, list []scan.Candidate) [][]scan.Match {
	out := make([][]scan.Match, len(list))
	for i, one := range list {
		out[i] = liveFirst(b.sought.index.Confirm(one))
		for _, m := range out[i] {
			b.found(c, m)
		}
	}
	return out
}

// liveFirst leaves out a retired version whose value is also the live one.
func liveFirst(list []scan.Match) []scan.Match {
	return slices.DeleteFunc(list, func(m scan.Match) bool {
		return m.Retired && slices.ContainsFunc(list, func(o scan.Match) bool {
			return !o.Retired && o.Client == m.Client && o.Start == m.Start && o.End == m.End
		})
	})
}

func (b *Broker) found(c *access.Caller, m scan.Match) {
	s, key, now := &b.sought, finding{m.Client, m.Field, m.Retired}, b.o.Clock.Now().Wall
	s.mu.Lock()
	last, told := s.alarm[key]
	quiet := told && now.Sub(last).Abs() < findQuiet
	if !quiet {
		s.alarm[key] = now
	}
	s.mu.Unlock()
	if quiet {
		return
	}
	state := "live"
	if m.Retired {
		state = "retired"
	}
	e := audit.Event{Type: audit.SecretFound, Client: m.Client, Version: m.Version, Code: m.Field,
		Detail: map[string]string{"form": m.Form, "state": state, audit.AlarmKey: fmt.Sprintf(
			"a scan found a %s %s of %s where it does not belong (%s): broker scan says where; broker leak declare %[3]s tells the issuer", state, strings.ReplaceAll(m.Field, "_", " "), m.Client, m.Form)}}
	if m.Field == tokenField {
		e.Version, e.Fingerprint = "", m.Version
	}
	if c != nil {
		actor := auditCaller(c)
		e.Actor = &actor
	}
	b.o.Audit.Note(e)
}
