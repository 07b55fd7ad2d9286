// Package leak is an incident: a leak of credentials or the suspicion of one,
// from declaration to closure. It holds the record ([Book]), the mails that are
// made of it ([Compose]) and their way to a mail relay ([Outbox]).
//
// The order of work that loses nothing: [Book.Declare] or [Book.Update] with
// [Incident.Revise] makes a revision durable; Compose makes its messages, the
// same each time; [Outbox.Enqueue] makes them durable, and leaves alone what it
// has; Update with [Incident.Queued] notes that. At a start, after
// [Book.Absorb], the same again for each incident of which [Incident.Unqueued]
// is true.
//
// Nothing here may hold a secret or a token, or a hash of a secret: tokens are
// named by jti or fingerprint, keys by an identifier. Free text is what a
// person typed: whoever knows the live secrets looks for them in it first.
package leak

import (
	"slices"
	"time"
)

// An Incident is one record of a [Book]. All times are UTC; a zero time is not
// known, or not yet.
type Incident struct {
	// Format is the version of this record's form.
	Format int `json:"format"`
	// ID is unique on its host: year and number, 2026-0007. A number may be
	// left out.
	ID string `json:"id"`
	// Host is the machine whose daemon keeps this record.
	Host string `json:"host"`
	// Joins is the global ID of another host's incident that this one
	// belongs to, as 2026-0007@web1. Empty: it stands by itself.
	Joins string `json:"joins,omitempty"`
	State State  `json:"state"`
	// Drill is an exercise: nothing has leaked, and no issuer is told.
	Drill    bool     `json:"drill,omitempty"`
	Severity Severity `json:"severity"`
	// What has leaked, or may have.
	What []Credential `json:"what"`
	// Happened, Where and FoundBy are what a person typed, cleaned.
	Happened string `json:"happened"`
	Where    string `json:"where,omitempty"`
	FoundBy  string `json:"found_by,omitempty"`
	// Unchecked: whether these hold a secret is not known yet. They are not
	// mailed until it is.
	Unchecked bool `json:"unchecked,omitempty"`
	// Language comes first in its mails. Empty: the configuration says.
	Language Language `json:"language,omitempty"`
	// Window is when strangers may have had it.
	Window Window `json:"window"`
	// PersonalData says whether personal data could be reached with it.
	PersonalData PersonalData `json:"personal_data"`
	// KnownAt is when somebody first knew. Zero on declaring: DeclaredAt.
	KnownAt    time.Time `json:"known_at"`
	DeclaredAt time.Time `json:"declared_at"`
	DeclaredBy Declarer  `json:"declared_by"`
	// Clients are the names of all clients that share the bundle, the
	// declared one first.
	Clients []string `json:"clients"`
	// Versions are the secrets manager's names of what has leaked, by client.
	// A client that is not in it had none in use.
	Versions map[string]string `json:"versions,omitempty"`
	// Renewed are the names of versions of which it was shown, or a person has
	// confirmed, that what has leaked is another in them, by client.
	Renewed map[string]string `json:"renewed,omitempty"`
	// Places are where the secrets that have leaked lie, in the broker's words,
	// and which client had it there: it may get another name.
	Places map[string]string `json:"places,omitempty"`
	// ClientID is the public identifier at the issuer.
	ClientID string `json:"client_id,omitempty"`
	// KnownHosts is how many hosts have the credentials, by the configuration. 0:
	// nobody knows.
	KnownHosts int `json:"known_hosts,omitempty"`
	// KeyID identifies a key (a kid, a version), and is never the key.
	KeyID string `json:"key_id,omitempty"`
	// Environment is production, test, or the issuer's own word.
	Environment string `json:"environment,omitempty"`
	Issuer      Issuer `json:"issuer"`
	// Organisation is the one that reports.
	Organisation Organisation `json:"organisation"`
	// CopyTo are the organisation's own addresses.
	CopyTo  []string `json:"copy_to,omitempty"`
	Policy  Policy   `json:"policy"`
	Actions []Action `json:"actions,omitempty"`
	// Exposure and Holders are of this host; Others have their own.
	Exposure  Exposure   `json:"exposure"`
	Holders   []Holder   `json:"holders,omitempty"`
	Others    []Evidence `json:"others,omitempty"`
	Revisions []Revision `json:"revisions,omitempty"`
	// NextUpdate is when the recipients hear from us again at the latest.
	NextUpdate time.Time `json:"next_update,omitzero"`
	// Deliveries are copied from [Outbox.Deliveries], to be kept.
	Deliveries []Delivery `json:"deliveries,omitempty"`
	// Closing is nil until the incident is closed.
	Closing *Closing `json:"closing,omitempty"`
}

// A State is where an incident stands.
type State string

// The states. A draft is the daemon's suspicion, which a person has to confirm.
const (
	Draft  State = "draft"
	Open   State = "open"
	Closed State = "closed"
)

// A Severity says how sure the leak is.
type Severity string

// The severities.
const (
	Suspected Severity = "suspected"
	Confirmed Severity = "confirmed"
)

// A Credential is a kind of thing that leaks.
type Credential string

// What leaks. Host means that somebody had a machine on which it was in use.
const (
	Token        Credential = "token"
	ClientSecret Credential = "client_secret"
	APIKey       Credential = "api_key"
	PrivateKey   Credential = "private_key"
	ManagerLogin Credential = "manager_login"
	Host         Credential = "host"
	Unknown      Credential = "unknown"
)

// PersonalData says whether personal data could be reached.
type PersonalData string

// The answers.
const (
	PersonalYes     PersonalData = "yes"
	PersonalNo      PersonalData = "no"
	PersonalUnknown PersonalData = "unknown"
)

// A Policy is what happens to the client.
type Policy string

// The policies.
const (
	KeepServing Policy = "keep-serving"
	Quarantine  Policy = "quarantine"
	Rotate      Policy = "rotate"
)

// A Window is a span of time.
type Window struct {
	From time.Time `json:"from,omitzero"` // zero: not known
	To   time.Time `json:"to,omitzero"`   // zero: it goes on
}

// A Declarer is who declared an incident: the kernel's word, and beside it what
// was claimed.
type Declarer struct {
	UID      uint32 `json:"uid"`
	LoginUID uint32 `json:"login_uid"` // 4294967295: none (audit(7))
	PID      int32  `json:"pid"`
	Claimed  string `json:"claimed,omitempty"` // "name, phone"
}

// An Issuer is whose credentials they are.
type Issuer struct {
	Name string `json:"name"`
	// Contacts are its addresses for a leak.
	Contacts []string `json:"contacts,omitempty"`
	// Rotation is self-service or by-request.
	Rotation string `json:"rotation"`
}

// Organisation is named in reports.
type Organisation struct {
	// Name is the organisation's, as registered.
	Name string `yaml:"name" json:"name" check:"required"`
	// KBO is its number in the Belgian register of enterprises. Missing: left
	// out.
	KBO string `yaml:"kbo" json:"kbo,omitempty"`
}

// An Action is a step that was taken, or tried.
type Action struct {
	At time.Time `json:"at"`
	// What is one of the codes quarantine, end_streams, remove_files,
	// stop_children, revoke_tokens, trace_tokens, rotate, install_version,
	// release, confirm_new, remind, record, deliver, merge_evidence; another is shown as it
	// is.
	What    string  `json:"what"`
	Outcome Outcome `json:"outcome"`
	// Detail is one line that needs no translation: a count, a version. The
	// issuer reads it too: no user, process or path of a host.
	Detail string `json:"detail,omitempty"`
}

// An Outcome is how an action ended.
type Outcome string

// The outcomes.
const (
	Done        Outcome = "done"
	Failed      Outcome = "failed"
	Pending     Outcome = "pending"
	NotPossible Outcome = "not_possible"
)

// Why a revocation is not possible: details that are translated.
const (
	NoRevocation = "no_revocation" // the issuer offers none, or not to this client
	ValuesGone   = "values_gone"   // this process never had the tokens
)

// Exposure is which tokens were issued in the window.
type Exposure struct {
	Count int `json:"count"`
	// Tokens are the first 500 of them.
	Tokens []IssuedToken `json:"tokens,omitempty"`
	// LastExpiry is when the last of all of them ends.
	LastExpiry time.Time `json:"last_expiry,omitzero"`
	// LogBegins is when the log that tells this begins, if that is after the
	// window does: what was issued before is not known.
	LogBegins time.Time `json:"log_begins,omitzero"`
}

// Add counts a token, and lists it while there is room.
func (e *Exposure) Add(t IssuedToken) {
	e.Count++
	if len(e.Tokens) < mostTokens {
		e.Tokens = append(e.Tokens, t)
	}
	if t.Expires.After(e.LastExpiry) {
		e.LastExpiry = t.Expires
	}
}

// An IssuedToken names a token without being it.
type IssuedToken struct {
	JTI         string    `json:"jti,omitempty"`         // RFC 7519 §4.1.7
	Fingerprint string    `json:"fingerprint,omitempty"` // base64url(SHA-256(token))
	Issued      time.Time `json:"issued"`
	Expires     time.Time `json:"expires"`
}

// A Holder is a process that was handed something. No issuer is told.
type Holder struct {
	UID   uint32    `json:"uid"`
	PID   int32     `json:"pid,omitempty"`
	Unit  string    `json:"unit,omitempty"`
	Held  string    `json:"held"` // which of a token's fingerprint, jti, or surface
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// Evidence is what another host adds to an incident: [Book.Export] there,
// [Book.Merge] here.
type Evidence struct {
	Format int `json:"format"`
	// Incident is the global ID of the incident that it is for.
	Incident   string    `json:"incident"`
	Host       string    `json:"host"`
	ExportedAt time.Time `json:"exported_at"`
	Actions    []Action  `json:"actions,omitempty"`
	Exposure   Exposure  `json:"exposure"`
	Holders    []Holder  `json:"holders,omitempty"`
}

// A Revision is one report of the incident: the first, a follow-up or the last.
type Revision struct {
	N  int       `json:"n"`
	At time.Time `json:"at"`
	// Why is what is new, for a person. Empty in the first.
	Why string `json:"why,omitempty"`
	// Draft: the incident was one, and no issuer was told.
	Draft bool `json:"draft,omitempty"`
	// NoMail: it is not reported from here.
	NoMail bool `json:"no_mail,omitempty"`
	// Stopped: none of the clients was served on this host then, because of
	// this incident or of another.
	Stopped bool `json:"stopped,omitempty"`
	// Queued: its messages are in the outbox.
	Queued bool `json:"queued,omitempty"`
}

// A Closing is how an incident ended.
type Closing struct {
	At time.Time `json:"at"`
	By Declarer  `json:"by,omitzero"` // left out for the issuer
	// OldRefused: the issuer refuses the old secret. If not, StillValid is the
	// reason for closing all the same.
	OldRefused bool   `json:"old_refused"`
	StillValid string `json:"still_valid,omitempty"`
	// ToldByHand says how recipients were told whom no mail reached. Left out for
	// the issuer.
	ToldByHand map[string]string `json:"told_by_hand,omitempty"`
	// NewVersion is the secrets manager's name of what serves now.
	NewVersion string `json:"new_version,omitempty"`
}

// GlobalID is the ID among all hosts, as 2026-0007@web1.
func (i *Incident) GlobalID() string { return i.ID + "@" + i.Host }

// Hosts are the hosts whose evidence the incident holds, its own first.
func (i *Incident) Hosts() []string {
	hosts := []string{i.Host}
	for _, o := range i.Others {
		hosts = append(hosts, o.Host)
	}
	return hosts
}

// Revise adds a revision: what the recipients have to be told now, and why.
func (i *Incident) Revise(at time.Time, why string, noMail bool) {
	i.Revisions = append(i.Revisions, Revision{N: len(i.Revisions) + 1, At: at.UTC(), Why: clean(why, longText), Draft: i.State == Draft, NoMail: noMail})
}

// Queued notes that the newest revision's messages are in the outbox.
func (i *Incident) Queued() {
	if n := len(i.Revisions); n > 0 {
		i.Revisions[n-1].Queued = true
	}
}

// Stopped notes whether none of the clients is served as the newest revision is
// reported.
func (i *Incident) Stopped(all bool) {
	if n := len(i.Revisions); n > 0 {
		i.Revisions = slices.Clone(i.Revisions)
		i.Revisions[n-1].Stopped = all
	}
}

// Unqueued says whether the newest revision has yet to be composed and
// enqueued.
func (i *Incident) Unqueued() bool {
	n := len(i.Revisions)
	return n > 0 && !i.Revisions[n-1].Queued && !i.Revisions[n-1].NoMail
}
