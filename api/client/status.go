package client

import "time"

// Status is the state of the whole broker, for administrators. It holds no
// secret and no token.
type Status struct {
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Uptime  int64     `json:"uptime_seconds"`
	// SecretMemory is how many bytes each kind of memory holds: memfd_secret,
	// mlock, unlocked.
	SecretMemory map[string]int `json:"secret_memory"`
	// Platform is what of the kernel and the service manager is used, by what it
	// is used for: caller, process_number, secret_memory, units,
	// loopback_caller, credentials, service_manager, selinux. "none": nothing
	// serves for it on this machine.
	Platform  map[string]string `json:"platform,omitempty"`
	Audit     AuditStatus       `json:"audit"`
	Sockets   SocketStatus      `json:"sockets"`
	Clients   []StatusClient    `json:"clients"`
	Providers []ProviderStatus  `json:"providers"`
	Warnings  []Finding         `json:"warnings"` // of the configuration, and of the machine
	// Incidents are those that are not closed, or whose report has not left.
	Incidents []IncidentLine `json:"incidents,omitempty"`
	// Routes are the reverse proxy's.
	Routes []RouteStatus `json:"routes,omitempty"`
}

// RouteStatus is one route of the reverse proxy.
type RouteStatus struct {
	Client   string `json:"client"`
	Route    string `json:"route"`
	Socket   string `json:"socket"`
	Upstream string `json:"upstream"`
	Requests int64  `json:"requests"` // since the configuration was read
	Failed   int64  `json:"failed"`   // of them: the API gave no whole answer
	// Error is why the last one of these failed, at ErrorAt; empty: none has.
	Error   string    `json:"error,omitempty"`
	ErrorAt time.Time `json:"error_at,omitzero"`
}

// IncidentLine is one incident that is not closed, or whose report has not left.
type IncidentLine struct {
	ID     string `json:"id"`
	State  string `json:"state"`  // draft, open, closed; damaged: its record cannot be read
	Client string `json:"client"` // empty: its record cannot be read
	// Undelivered counts the recipients whose mail relay has not taken the
	// report, though it had its time.
	Undelivered int       `json:"undelivered"`
	Since       time.Time `json:"since"` // of the declaration
}

// AuditStatus says how the audit log does.
type AuditStatus struct {
	Healthy bool   `json:"healthy"`
	Error   string `json:"error,omitempty"`
	Seq     uint64 `json:"seq"`            // of the last durable entry
	Lost    uint64 `json:"lost,omitempty"` // events that could not be written since the start
	Anchors string `json:"anchors"`        // where anchors go
	// AnchorError is why the last anchor could not be set; empty: it was.
	AnchorError string `json:"anchor_error,omitempty"`
}

// SocketStatus counts what happened on the consumer socket since the start.
type SocketStatus struct {
	Connections  int    `json:"connections"`  // open now
	Displaced    uint64 `json:"displaced"`    // idle ones closed to make room
	RateLimited  uint64 `json:"rate_limited"` // requests answered with 429
	Unidentified uint64 `json:"unidentified"` // connections of callers that the kernel could not name
}

// StatusClient is the state of one client.
type StatusClient struct {
	Client  string `json:"client"`
	Owner   string `json:"owner"`   // contact
	Purpose string `json:"purpose"` // in words
	Preset  string `json:"preset,omitempty"`

	// Ready: a consumer that may would get a token now. Else Code and Reason.
	Ready  bool   `json:"ready"`
	Code   Code   `json:"code,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Runway is for how many seconds the tokens in hand serve.
	Runway int64 `json:"runway_seconds"`

	Provider string `json:"provider"` // name of the secrets manager
	// Version of the bundle in use; empty: none yet.
	Version   string    `json:"version,omitempty"`
	Installed time.Time `json:"installed,omitzero"`
	// Proved says how the version was shown to work; empty: it was not.
	Proved string `json:"proved,omitempty"`
	// Pinned is the version that an administrator wants to serve; empty: the
	// newest does.
	Pinned string `json:"pinned,omitempty"`
	// PendingKey is the key identifier of a key that waits for the issuer to
	// know it; empty: there is none.
	PendingKey string `json:"pending_key,omitempty"`
	// Candidate is a newer version that is not in use yet.
	Candidate string `json:"candidate,omitempty"`
	// Waiting is why the candidate is not in use, in words.
	Waiting string `json:"waiting,omitempty"`
	// Refused are versions that the issuer refused: not tried again.
	Refused []string `json:"refused,omitempty"`
	// APIKey is what is known of the API key: "unproved", "probed OK at …",
	// "rejected by 3 callers, last at …"; empty: there is none.
	APIKey string `json:"api_key,omitempty"`
	// Age of the bundle and the age at which it is due, in seconds; MaxAge 0:
	// no limit.
	Age    int64 `json:"age_seconds"`
	MaxAge int64 `json:"max_age_seconds,omitempty"`
	// Due is when the bundle will be older than MaxAge; zero: there is no such
	// limit, or the secrets manager does not tell the age.
	Due time.Time `json:"due,omitzero"`
	// Steps are what a person does at the issuer to replace the secret; empty:
	// it is neither due nor refused, or the preset has none.
	Steps []string `json:"steps,omitempty"`

	// DegradedUntil is until when, at most, a sealed copy of this host serves
	// in place of a secrets manager that has been down since before the daemon
	// started, and DegradedReason says so in words; zero: none does.
	DegradedUntil  time.Time `json:"degraded_until,omitzero"`
	DegradedReason string    `json:"degraded_reason,omitempty"`
	// Kept is the secrets manager's last good answer that the sealed copy has;
	// zero: there is none, or none is known of. KeepError says why not.
	Kept      time.Time `json:"kept,omitzero"`
	KeepError string    `json:"keep_error,omitempty"`

	// Login is the state of a person's login (authorization_code); nil: the
	// client needs none.
	Login *LoginStatus `json:"login,omitempty"`

	// Files are those that the configuration names, by path.
	Files []FileStatus `json:"files,omitempty"`

	Issuer IssuerStatus  `json:"issuer"`
	Source SourceStatus  `json:"source"`
	Tokens []TokenStatus `json:"tokens"`
}

// FileStatus is how one file does.
type FileStatus struct {
	Path string `json:"path"`
	// State is ok, kept (it is still good, and what replaces it cannot be had or
	// written), waiting (nothing has come for it yet) or missing.
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"` // in words
	// Expires is when what it holds ends; zero: it does not, or nothing is there.
	Expires time.Time `json:"expires,omitzero"`
}

// IssuerStatus is how the authorization server did when it was last asked.
type IssuerStatus struct {
	State string    `json:"state"`          // ok, failing, unknown
	Code  Code      `json:"code,omitempty"` // of the failure
	Since time.Time `json:"since,omitzero"`
	Next  time.Time `json:"next,omitzero"` // when it is asked again
}

// LoginStatus is the state of a refresh token.
type LoginStatus struct {
	// State is ok, required, or pending: the newest token is sealed on this
	// host and not in the secrets manager yet.
	State      string `json:"state"`
	Reason     string `json:"reason,omitempty"` // in words, what to do
	Generation uint64 `json:"generation"`       // how often the token has been replaced
}

// SourceStatus is how reading the bundle went when it was last tried.
type SourceStatus struct {
	State  string    `json:"state"`            // ok, failing, unknown
	Error  string    `json:"error,omitempty"`  // kind of the failure
	Reason string    `json:"reason,omitempty"` // in words
	Since  time.Time `json:"since,omitzero"`
	Next   time.Time `json:"next,omitzero"` // when it is read again
}

// TokenStatus is one token in hand.
type TokenStatus struct {
	Scope       string    `json:"scope"` // asked for
	Granted     string    `json:"granted"`
	Narrowed    bool      `json:"narrowed,omitempty"` // some of the scope was not granted
	Audience    string    `json:"audience,omitempty"`
	Bound       string    `json:"x5t#S256,omitempty"` // of the certificate that the token is bound to (RFC 8705)
	Fingerprint string    `json:"fingerprint"`
	Expires     time.Time `json:"expires"`
	Reads       int64     `json:"reads"`
	LastRead    time.Time `json:"last_read,omitzero"`
}

// ProviderStatus is the state of one secrets manager.
type ProviderStatus struct {
	Provider string    `json:"provider"`
	Kind     string    `json:"kind"`            // vault, aws, azure, gcp, file, systemd, exec
	State    string    `json:"state"`           // ok, failing, unknown
	Error    string    `json:"error,omitempty"` // kind of the failure
	Since    time.Time `json:"since,omitzero"`
	Next     time.Time `json:"next,omitzero"`
}

// A Change is one difference that a reload made.
type Change struct {
	What  string `json:"what"`  // in words
	Wider bool   `json:"wider"` // somebody may now have more than before
}

// Changes is the answer of /v1/reload; empty: nothing differs.
type Changes struct {
	Changes []Change `json:"changes"`
}

// A Level grades a Finding.
type Level string

// The levels.
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Error   Level = "error"
)

// A Finding is the result of one check, or of looking at a state.
type Finding struct {
	Check  string `json:"check"`  // what was looked at: socket, clock, tls, provider …
	Target string `json:"target"` // which one
	Level  Level  `json:"level"`
	Detail string `json:"detail"` // what is wrong and what to do; or what was seen
}

// Rotation is what an administrator asks of /v1/clients/{client}/rotate.
type Rotation struct {
	// Accept takes the newest version also where nothing can prove it.
	Accept bool `json:"accept,omitempty"`
	// Version makes this one serve and pins it. Empty: the newest, or the one
	// that is pinned already.
	Version string `json:"version,omitempty"`
	// Latest takes a pin away.
	Latest bool `json:"latest,omitempty"`
	// Stored is the version that broker intake has stored with the
	// administrator's own login, and Fields names what is new in it. They are
	// recorded, and change nothing. Empty: none has been.
	Stored string   `json:"stored,omitempty"`
	Fields []string `json:"fields,omitempty"`
}

// Outcome is the answer to an administrative act on one client.
type Outcome struct {
	Version string `json:"version,omitempty"` // in use after the act
	Reason  string `json:"reason"`            // what was done, or why nothing
}

// Denials is the answer of /v1/audit/denied.
type Denials struct {
	Denials []Denial `json:"denials"`
}

// A Denial sums up the refusals of one identity that asked for one thing.
type Denial struct {
	Client  string       `json:"client"`            // what was asked for; it may not exist
	Surface string       `json:"surface,omitempty"` // token, headers, api-key …
	Scope   string       `json:"scope,omitempty"`   // asked for; empty: none in particular
	Code    string       `json:"code,omitempty"`    // why it was refused
	Caller  DeniedCaller `json:"caller"`
	First   time.Time    `json:"first"`
	Last    time.Time    `json:"last"`
	Count   int64        `json:"count"`
}

// DeniedCaller is what the kernel said of who asked.
type DeniedCaller struct {
	PID       int32  `json:"pid"`             // of the newest attempt
	Start     uint64 `json:"start,omitempty"` // clock ticks since boot
	UID       uint32 `json:"uid"`
	GID       uint32 `json:"gid"`
	Unit      string `json:"unit,omitempty"`
	UserUnit  string `json:"user_unit,omitempty"`
	LoginUID  uint32 `json:"loginuid"` // 4294967295: nobody logged in
	Container bool   `json:"container,omitempty"`
	// Place is the loopback listener by which UID asked; empty: PID asked by a
	// socket.
	Place string `json:"place,omitempty"`
}

// A Verdict is what checking the audit log found. Without Problems it is
// intact.
type Verdict struct {
	Log      string           `json:"log"` // the log's own name
	Segments int              `json:"segments"`
	Entries  uint64           `json:"entries"`
	First    uint64           `json:"first"` // number of the first entry that is kept
	Last     uint64           `json:"last"`
	Since    time.Time        `json:"since,omitzero"`
	Until    time.Time        `json:"until,omitzero"`
	Hash     string           `json:"hash"`               // of the last entry
	Anchors  int              `json:"anchors"`            // that fit; 0: the log is consistent in itself, and that is all
	Covered  uint64           `json:"covered"`            // the last entry that a fitting anchor covers
	Lost     int64            `json:"lost"`               // events that the log itself says it could not write
	Torn     int              `json:"torn"`               // unfinished ends that the log itself says it set aside
	Partial  string           `json:"partial,omitempty"`  // where an unfinished last line is: harmless
	Problems []VerdictProblem `json:"problems,omitempty"` // at most 100
	More     int              `json:"more,omitempty"`     // problems beyond those
}

// A VerdictProblem is one place where the log is not what was written.
type VerdictProblem struct {
	File  string `json:"file,omitempty"`
	Line  int    `json:"line,omitempty"`
	Seq   uint64 `json:"seq,omitempty"`
	What  string `json:"what"`
	Means string `json:"means"`
}
