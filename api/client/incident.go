package client

import (
	"context"
	"encoding/json"
	"net/url"
	"time"
)

// Declare records an incident, and contains and reports it as the declaration
// says; a dry run only answers with what would be done (role incident).
func (a *Admin) Declare(ctx context.Context, d Declaration) (*Incident, error) {
	return send[Incident](ctx, a.dial(), "/v1/incidents", d)
}

// Incidents lists them, newest first (role observe).
func (a *Admin) Incidents(ctx context.Context) ([]Incident, error) {
	list, err := get[Incidents](ctx, a.dial(), "/v1/incidents")
	if err != nil {
		return nil, err
	}
	return list.Incidents, nil
}

// Incident is one, by its ID here or among all hosts (role incident).
func (a *Admin) Incident(ctx context.Context, id string) (*Incident, error) {
	return get[Incident](ctx, a.dial(), incidentPath(id, ""))
}

// Release ends the quarantine of an incident's clients (role incident).
func (a *Admin) Release(ctx context.Context, id string, how IncidentRelease) (*Incident, error) {
	return send[Incident](ctx, a.dial(), incidentPath(id, "/release"), how)
}

// Close ends an incident (role incident).
func (a *Admin) Close(ctx context.Context, id string, how IncidentClose) (*Incident, error) {
	return send[Incident](ctx, a.dial(), incidentPath(id, "/close"), how)
}

// Drill goes through everything but the containment, with the organisation's
// own addresses alone (role incident).
func (a *Admin) Drill(ctx context.Context, name string) (*Incident, error) {
	return send[Incident](ctx, a.dial(), clientPath(name, "drill"), nil)
}

// Evidence is what this host knows of an incident, for the host that reports
// it (role incident).
func (a *Admin) Evidence(ctx context.Context, id string) (json.RawMessage, error) {
	e, err := get[json.RawMessage](ctx, a.dial(), incidentPath(id, "/evidence"))
	if err != nil {
		return nil, err
	}
	return *e, nil
}

// AddEvidence takes what another host knows into an incident: a JSON object of
// at most 1 MiB (role incident).
func (a *Admin) AddEvidence(ctx context.Context, id string, evidence json.RawMessage) (*Incident, error) {
	return send[Incident](ctx, a.dial(), incidentPath(id, "/evidence"), evidence)
}

// Whois follows a token through the audit log, by its fingerprint (role
// observe).
func (a *Admin) Whois(ctx context.Context, fingerprint string) (*Whois, error) {
	return send[Whois](ctx, a.dial(), "/v1/whois", map[string]string{"fingerprint": fingerprint})
}

// WhoisToken has a token judged that the audit log does not know: whether it
// was issued to one of the clients, elsewhere. name is the client whose issuer
// may be asked about it (RFC 7662); empty: none is asked. A *Problem of code
// NotFound says why it cannot be told (role observe; with a name: operate).
func (a *Admin) WhoisToken(ctx context.Context, token, name string) (*Whois, error) {
	body := map[string]string{"access_token": token}
	if name != "" {
		body["client"] = name
	}
	return send[Whois](ctx, a.dial(), "/v1/whois", body)
}

func incidentPath(id, what string) string { return "/v1/incidents/" + url.PathEscape(id) + what }

// A Declaration is a leak, or the suspicion of one: the body of POST
// /v1/incidents (role incident). Texts are at most 2,000 bytes; the daemon
// refuses those that hold one of its secrets.
type Declaration struct {
	// Client is the one whose credentials they are.
	Client string `json:"client"`
	// Draft is the suspicion of this host, the daemon's or one that was declared,
	// that this confirms: a new revision of the same incident. Empty: none.
	Draft string `json:"draft,omitempty"`
	// Severity is suspected or confirmed.
	Severity string `json:"severity"`
	// What has leaked: token, client_secret, api_key, private_key,
	// manager_login, host, unknown.
	What     []string  `json:"what"`
	Happened string    `json:"happened"`
	Where    string    `json:"where,omitempty"`
	FoundBy  string    `json:"found_by,omitempty"`
	From     time.Time `json:"from,omitzero"` // when strangers may have had it first; zero: not known
	To       time.Time `json:"to,omitzero"`   // and last; zero: it goes on
	// PersonalData says whether personal data could be reached: yes, no,
	// unknown. Empty: unknown.
	PersonalData string `json:"personal_data,omitempty"`
	// Policy is keep-serving, quarantine or rotate. Empty: the client's, and
	// keep-serving for a suspicion; without either, a confirmed leak is
	// refused.
	Policy string `json:"policy,omitempty"`
	// As is who declares it: "name, phone", as claimed.
	As string `json:"as,omitempty"`
	// Joins is another host's incident, as 2026-0007@web1, of which this is a
	// part. Empty: it is one of its own.
	Joins string `json:"joins,omitempty"`
	// NoMail reports nothing from here.
	NoMail bool `json:"no_mail,omitempty"`
	// DryRun answers with what would be done, and does nothing.
	DryRun bool `json:"dry_run,omitempty"`
	// Language of what a person reads first: nl or en. Empty: the issuer's.
	Language string `json:"language,omitempty"`
}

// An Incident is the answer about one: what was recorded, what was done, what
// is to be done by a person.
type Incident struct {
	// ID is this host's, as 2026-0007; empty in a dry run.
	ID string `json:"id,omitempty"`
	// Global names it on other hosts: 2026-0007@web1.
	Global   string    `json:"global,omitempty"`
	State    string    `json:"state"` // draft, open, closed
	Drill    bool      `json:"drill,omitempty"`
	Severity string    `json:"severity"`
	Clients  []string  `json:"clients"` // all that share what has leaked
	Policy   string    `json:"policy"`
	Declared time.Time `json:"declared,omitzero"`
	// Quarantined are the clients of which nothing is handed over now.
	Quarantined []string `json:"quarantined,omitempty"`
	// Done are the steps that were taken, or will be, with their outcome.
	Done []IncidentStep `json:"done,omitempty"`
	// ByHand is what a person has to do, in words.
	ByHand []string `json:"by_hand,omitempty"`
	// Clocks are the legal deadlines that may run; the broker decides nothing.
	Clocks []string `json:"clocks,omitempty"`
	// Mails are what is sent: in a dry run and where it is asked for, whole.
	Mails []Mail `json:"mails,omitempty"`
	// Missing is what a person has to fill in, or to configure, before the mails
	// are complete; of a dry run.
	Missing []string `json:"missing,omitempty"`
	// Unrecorded is, of a dry run, what a person has to send and do if the
	// incident cannot be recorded: then nothing was done.
	Unrecorded *Incident `json:"unrecorded,omitempty"`
	// Record is the whole record, for programs; absent in a list.
	Record json.RawMessage `json:"record,omitempty"`
}

// An IncidentStep is one action.
type IncidentStep struct {
	At      time.Time `json:"at,omitzero"`
	What    string    `json:"what"`    // in words
	Outcome string    `json:"outcome"` // done, failed, pending, not_possible
	Detail  string    `json:"detail,omitempty"`
}

// A Mail is one report to one recipient.
type Mail struct {
	To       string `json:"to"`
	Revision int    `json:"revision"`
	// State is queued, sent or refused; empty: it is not under way.
	State string    `json:"state,omitempty"`
	Since time.Time `json:"since,omitzero"`
	// Attempts to send it so far, and the time of the next one; of a mail that
	// was not taken, Why is what each relay said.
	Attempts    int       `json:"attempts,omitempty"`
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	Why         []string  `json:"why,omitempty"`
	// Subject and Text are empty where they were not asked for.
	Subject string `json:"subject,omitempty"`
	Text    string `json:"text,omitempty"`
	// Signed: with S/MIME; EncryptedTo: to the key with this fingerprint. Of a
	// mail that has left, or would.
	Signed      bool   `json:"signed,omitempty"`
	EncryptedTo string `json:"encrypted_to,omitempty"`
	// Remarks are what was not as it should be when it left: unsigned though it
	// was to be signed, with a certificate or key that has expired.
	Remarks []string `json:"remarks,omitempty"`
}

// Incidents is the answer of GET /v1/incidents: newest first, without texts.
type Incidents struct {
	Incidents []Incident `json:"incidents"`
}

// IncidentRelease is the body of POST /v1/incidents/{incident}/release.
type IncidentRelease struct {
	// NewSecretConfirmed is a person's word that what has leaked was replaced.
	// It is recorded, and counts where nothing else can show it: the old version
	// is not known any more, here or to the secrets manager.
	NewSecretConfirmed bool `json:"new_secret_confirmed,omitempty"`
}

// IncidentClose is the body of POST /v1/incidents/{incident}/close.
type IncidentClose struct {
	IncidentRelease
	// OldStillValid is why the old secret may go on working at the issuer.
	// Empty: it has to be refused, which one attempt shows.
	OldStillValid string `json:"old_still_valid,omitempty"`
	As            string `json:"as,omitempty"` // as in Declaration
	// ToldByHand are recipients whom no mail reaches, and how they were told.
	ToldByHand map[string]string `json:"told_by_hand,omitempty"`
}

// Whois is the answer of POST /v1/whois, whose body names a token by
// {"access_token"} or {"fingerprint"}.
type Whois struct {
	Client      string    `json:"client"`
	Version     string    `json:"version,omitempty"` // of the bundle that it was issued for
	Fingerprint string    `json:"fingerprint"`
	JTI         string    `json:"jti,omitempty"`
	Scope       string    `json:"scope,omitempty"`
	Issued      time.Time `json:"issued,omitzero"`
	Expires     time.Time `json:"expires,omitzero"`
	Revoked     time.Time `json:"revoked,omitzero"`
	// Valid says whether it would still be taken, as far as is known here.
	Valid   bool     `json:"valid"`
	Current bool     `json:"current"` // the broker hands it out now
	Holders []Holder `json:"holders"`
	// Foreign: the client's issuer issued it, and this host certainly did not.
	Foreign bool `json:"foreign,omitempty"`
	// Reason is what shows that, for a person.
	Reason string `json:"reason,omitempty"`
	// Incident is the draft of one that was made of it. Empty: none.
	Incident string `json:"incident,omitempty"`
}

// A Holder is a process that was handed something, or a place that was.
type Holder struct {
	PID  int32  `json:"pid"`
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
	Unit string `json:"unit,omitempty"`
	// Place is what the configuration names instead of a process: then there is
	// no PID, and UID and GID (4294967295: none) are who can read it, or who
	// asked by that listener.
	Place   string    `json:"place,omitempty"`
	Surface string    `json:"surface,omitempty"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Count   int64     `json:"count"`
}
