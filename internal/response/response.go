// Package response answers a leak: it records the incident, contains the
// clients, has what can be revoked revoked, reports, and follows the incident
// until it is closed.
//
// The order that loses nothing: the record becomes durable, which is also the
// quarantine; then nothing is handed over any more; then the steps are taken,
// each within its time; then the report is queued, durably. A process that dies
// anywhere in it goes on from the record at its next start.
package response

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/leak"
	"credentialbroker/internal/secret"
)

// A Responder is the one who answers leaks on this host. All methods may be
// called from many goroutines.
type Responder struct {
	o    Options
	book book

	opened  chan struct{}           // closed when there is an outbox
	posting atomic.Pointer[posting] // nil: there is none

	mu        sync.Mutex // one change of incidents and of what is below at a time
	config    Config
	outbox    *leak.Outbox      // nil: no relay was ever configured
	contained map[string]string // as the Broker has it
	unheld    bool              // that is not written down twice yet
	busy      map[string]bool   // incidents whose steps are under way; true: there are more of them since
	tried     map[string]clock.Reading
	alarmed   map[string]clock.Reading          // what was an alarm lately: messages by Message-ID, incidents
	leaked    map[string][]string               // versions, by client, as the Broker has them
	suspected map[string]clock.Reading          // by client and cause
	worked    map[string]string                 // versions that have authenticated, by client
	ids       atomic.Pointer[map[string]string] // client_id by client; it is replaced whole
	tracing   chan struct{}                     // has one element while somebody reads the audit log
}

// posting is the outbox, when a mail in it is late, and whom mails are for.
type posting struct {
	outbox *leak.Outbox
	late   time.Duration
	config Config
}

// Options are what a Responder works with.
type Options struct {
	Dir    string // of durable state; it must exist
	Host   string // this machine's name
	Broker *broker.Broker
	Audit  *audit.Log
	// AuditDir is the log's, which tells what tokens there were.
	AuditDir string
	Clock    clock.Clock
	Log      *slog.Logger
}

// Config is what a configuration says of leaks.
type Config struct {
	// Sender reports. Zero: nobody does, and incidents wait for one.
	Sender leak.Sender
	// Relays take the mails, in this order. Empty: those of before.
	Relays []leak.Relay
	// Protection signs and encrypts them.
	Protection leak.Protection
	// CopyTo are the organisation's own addresses.
	CopyTo []string
	// UndeliveredAfter is when a mail that no relay has taken is an alarm.
	// Zero: 10 minutes.
	UndeliveredAfter time.Duration
	Clients          map[string]Client
}

// A Client is what a report needs to know of a client, and what is done to it.
type Client struct {
	Issuer      leak.Issuer
	Environment string
	Languages   []leak.Language // of reports, in order
	// Confirmed is the policy for a certain leak. Empty: the declaration says.
	Confirmed leak.Policy
	// Suspected is the policy for a suspicion. Empty: keep-serving.
	Suspected leak.Policy
	// Automatic: what a scan finds is reported to the issuer at once, as a
	// suspicion. Nothing else that the daemon suspects ever is.
	Automatic bool
	// Steps tell a person how the secret is replaced.
	Steps []string
	// Keys: it authenticates with a key of its own.
	Keys bool
	// Hosts is how many hosts have its secret. 0: not known.
	Hosts int
	// OneSecret: a new secret ends the old one at the issuer.
	OneSecret bool
	// Places are where its secret lies, as broker.SecretPlace names them.
	Places []string
	// Shares are other clients with the same secret, as far as the configuration
	// tells; the Broker knows more.
	Shares []string
}

// LevelAlert is the level in the log of what nobody may miss: of a leak, those
// who have to know are not told. The journal has it as alert (syslog(3)).
const LevelAlert slog.Level = 12

const (
	undeliveredAfter = 10 * time.Minute
	stepTime         = 10 * time.Second // so that a slow issuer does not hold the first mail up
	patientTime      = 5 * time.Minute  // of a step that is tried again
	firstUpdate      = 24 * time.Hour
	laterUpdate      = 7 * 24 * time.Hour
	weekly           = 7 * 24 * time.Hour
	roundTime        = 5 * time.Second
	retryTime        = time.Minute
)

// New opens the incidents. It starts nothing.
func New(o Options, c Config) (*Responder, error) {
	records, err := leak.OpenBook(filepath.Join(o.Dir, "incidents"), o.Host, o.Clock)
	if err != nil {
		return nil, err
	}
	if err := leak.MakeOutbox(filepath.Join(o.Dir, "outbox")); err != nil {
		return nil, err
	}
	r := &Responder{o: o, book: book{Book: records}, opened: make(chan struct{}), contained: map[string]string{}, busy: map[string]bool{},
		tried: map[string]clock.Reading{}, alarmed: map[string]clock.Reading{}, suspected: map[string]clock.Reading{}, worked: map[string]string{}, tracing: make(chan struct{}, 1)}
	ids := readIDs(o.Dir)
	r.ids.Store(&ids)
	return r, r.SetConfig(c)
}

// SetConfig takes a changed configuration.
func (r *Responder) SetConfig(c Config) error {
	next, err := r.Prepare(c)
	if err == nil {
		next.Commit()
	}
	return err
}

// A Prepared is a configuration of which everything that can fail is done.
type Prepared struct {
	r      *Responder
	config Config
	outbox *leak.Outbox // the first one; nil: there is one
}

// Prepare does whatever c needs that can fail, and changes nothing. One
// configuration is prepared and committed, or given up, at a time.
func (r *Responder) Prepare(c Config) (*Prepared, error) {
	r.mu.Lock()
	have := r.outbox != nil
	r.mu.Unlock()
	p := &Prepared{r: r, config: c}
	for _, relay := range c.Relays {
		if err := relay.Validate(); err != nil {
			return nil, err
		}
	}
	if have || len(c.Relays) == 0 {
		return p, nil
	}
	var err error
	p.outbox, err = leak.OpenOutbox(filepath.Join(r.o.Dir, "outbox"), r.o.Host, c.Relays, r.o.Clock)
	return p, err
}

// Commit makes it the configuration. Mails that wait go to the new relays;
// where there are none now, to those of before.
func (p *Prepared) Commit() {
	r, c := p.r, p.config
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case p.outbox != nil:
		if err := p.outbox.Damaged(); err != nil {
			r.alarm("", "damaged", "", err.Error())
		}
		p.outbox.SetProtection(c.Protection)
		r.outbox = p.outbox
		close(r.opened)
	case len(c.Relays) > 0:
		_ = r.outbox.SetRelays(c.Relays) // they were judged
		r.outbox.SetProtection(c.Protection)
	}
	r.config = c
	if r.outbox != nil {
		r.posting.Store(&posting{r.outbox, cmp.Or(c.UndeliveredAfter, undeliveredAfter), c})
	}
}

// SetLogin gives the login of relay n, in the order of Config.Relays.
func (r *Responder) SetLogin(n int, username string, password secret.Secret) error {
	r.mu.Lock()
	out := r.outbox
	r.mu.Unlock()
	if out == nil {
		return errors.New("there is no mail relay")
	}
	return out.SetLogin(n, username, password)
}

// SetSigningKey gives the private key of Config.Protection's certificate.
func (r *Responder) SetSigningKey(private secret.Secret) error {
	r.mu.Lock()
	out := r.outbox
	r.mu.Unlock()
	if out == nil {
		return errors.New("there is no mail relay")
	}
	return out.SetSigningKey(private)
}

// Signs says whether reports leave signed now.
func (r *Responder) Signs() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.outbox != nil && r.outbox.Signs()
}

// CheckRelays goes as far as each relay lets it without sending.
func (r *Responder) CheckRelays(ctx context.Context) []leak.Attempt {
	r.mu.Lock()
	out := r.outbox
	r.mu.Unlock()
	if out == nil {
		return nil
	}
	return out.Check(ctx)
}

// Start takes in what was declared while no daemon ran, and contains every
// client that is quarantined. Call it before anything can be handed over. What
// cannot be read is an alarm, and keeps nobody from being served.
func (r *Responder) Start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.absorb()
}

// absorb takes in what was spooled, which may happen while the daemon runs: it
// came back while somebody was typing. The caller holds mu.
func (r *Responder) absorb() {
	absorbed, err := r.book.Absorb()
	for _, i := range absorbed {
		r.note(&i, "declared", nil)
	}
	if err := errors.Join(err, r.contain()); err != nil && !r.often(err.Error()) {
		r.alarm("", "damaged", "", err.Error())
	}
}

// Run does what is left to do, sends mails and watches, until ctx ends.
func (r *Responder) Run(ctx context.Context) error {
	var sending sync.WaitGroup
	sending.Go(func() {
		select {
		case <-ctx.Done():
		case <-r.opened:
			_ = r.outbox.Run(ctx)
		}
	})
	watch := r.watch()
	tick := time.NewTicker(roundTime)
	defer tick.Stop()
	for ctx.Err() == nil {
		r.round(ctx)
		watch.look(r)
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	watch.close()
	sending.Wait()
	return nil
}

// contain tells the Broker which clients are quarantined, and writes that down a
// second time. A record that cannot be read lets nobody go: neither while the
// daemon runs, nor at its next start. If both are damaged nobody knows whom it
// was about, and the alarm about it has to do: one bad file stops nobody else.
// The caller holds mu.
func (r *Responder) contain() error {
	list, err := r.book.List()
	now, held := map[string]string{}, map[string][]string{}
	if err != nil {
		maps.Copy(now, r.contained)
	}
	for n := range list {
		i := &list[n]
		held[i.ID] = nil
		if quarantines(i) {
			held[i.ID] = i.Clients
		}
		for _, name := range contained(i) {
			if now[name] == "" {
				now[name] = i.ID
			}
		}
		if err != nil && !quarantines(i) { // what can be read counts
			maps.DeleteFunc(now, func(_, id string) bool { return id == i.ID })
		}
	}
	lost, failed := r.book.Hold(held)
	r.unheld = failed != nil
	for _, h := range lost {
		if now[h.Client] == "" {
			now[h.Client] = h.Incident
		}
		failed = errors.Join(failed, fmt.Errorf("incident %s: its record is damaged or gone, and %s stays quarantined: put the record back from a copy; or declare the leak again and remove %s; then start the daemon again",
			h.Incident, h.Client, h.File))
	}
	r.know(list, err == nil)
	r.contained = now
	r.o.Broker.Contain(maps.Clone(now))
	return errors.Join(err, failed)
}

// know tells the Broker which versions have leaked, so that it can tell whether
// what comes after them is another secret. Of a list that is not whole it takes
// what it has. The caller holds mu.
func (r *Responder) know(list []leak.Incident, whole bool) {
	now := map[string][]string{}
	if !whole {
		maps.Copy(now, r.leaked)
	}
	for n := range list {
		i := &list[n]
		if i.State == leak.Closed || i.Drill || tokenOnly(i) {
			continue
		}
		for name, version := range i.Versions {
			if !slices.Contains(now[name], version) {
				now[name] = append(slices.Clip(now[name]), version)
			}
		}
	}
	r.leaked = now
	r.o.Broker.Leaked(now)
}

// contained are the clients that i keeps from being served, by name and by the
// place of their secret.
func contained(i *leak.Incident) []string {
	if !quarantines(i) {
		return nil
	}
	return slices.AppendSeq(slices.Clone(i.Clients), maps.Keys(i.Places))
}

// quarantines says whether i keeps its clients from being served.
func quarantines(i *leak.Incident) bool {
	if i.State != leak.Open || i.Drill || i.Policy != leak.Quarantine {
		return false
	}
	for _, a := range slices.Backward(i.Actions) { // a suspicion that was released may be confirmed
		if a.What == "quarantine" || a.What == "release" && a.Outcome == leak.Done {
			return a.What == "quarantine"
		}
	}
	return true
}

// stopped says whether none of the incident's clients is served, because of it
// or of another one. The caller holds mu.
func (r *Responder) stopped(i *leak.Incident) bool {
	return !slices.ContainsFunc(i.Clients, func(name string) bool { return r.contained[name] == "" })
}

// now is the time as records have it.
func (r *Responder) now() time.Time { return r.o.Clock.Now().Wall.UTC().Truncate(time.Second) }

// note writes to the audit log what became of an incident.
func (r *Responder) note(i *leak.Incident, code string, who *audit.Caller) {
	r.o.Audit.Note(event(i, code, who))
}

// event says what became of an incident; who is nil for the daemon itself.
func event(i *leak.Incident, code string, who *audit.Caller) audit.Event {
	return audit.Event{Type: audit.IncidentRecorded, Client: i.Clients[0], Code: code, Actor: who, Detail: map[string]string{
		"incident": i.GlobalID(), "state": string(i.State), "revision": fmt.Sprint(len(i.Revisions)), "clients": strings.Join(i.Clients, " "), "policy": string(i.Policy)}}
}

// alarm is for what a person has to see to.
func (r *Responder) alarm(name, code, incident, text string) {
	level := slog.LevelError
	if slices.Contains([]string{"undelivered", "unreported", "damaged"}, code) {
		level = LevelAlert
	}
	r.o.Log.Log(context.Background(), level, "an incident needs somebody", "incident", incident, "client", name, "why", text)
	r.o.Audit.Note(audit.Event{Type: audit.IncidentAlarm, Client: name, Code: code, Detail: map[string]string{audit.AlarmKey: text, "incident": incident}})
}

// often says whether the alarm about what has sounded within the hour, and
// takes note that it does now. The caller holds mu.
func (r *Responder) often(what string) bool {
	now := r.o.Clock.Now()
	if last, ok := r.alarmed[what]; ok && now.Sub(last) < time.Hour {
		return true
	}
	r.alarmed[what] = now
	return false
}

// client is what the configuration says of a client; languages are never empty.
func (c *Config) client(name string) Client {
	one := c.Clients[name]
	if one.Issuer.Name == "" {
		one.Issuer.Name = name
	}
	if one.Issuer.Rotation == "" {
		one.Issuer.Rotation = "by-request"
	}
	if len(one.Languages) == 0 {
		one.Languages = []leak.Language{leak.Dutch, leak.English}
	}
	return one
}

// languages are those of i's mails, in order.
func (c *Config) languages(i *leak.Incident) []leak.Language {
	order := c.client(i.Clients[0]).Languages
	if i.Language == "" {
		return order
	}
	return append([]leak.Language{i.Language}, slices.DeleteFunc(slices.Clone(order), func(l leak.Language) bool { return l == i.Language })...)
}

func (r *Responder) configured() Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.config
}
