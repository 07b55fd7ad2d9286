package audit

import (
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// An Event is what somebody did, or what happened. It holds no secret and no
// token: a token is named by its fingerprint, a secret by its version. Text is
// bounded when it is recorded: control characters and invalid UTF-8 become
// U+FFFD, anything beyond the bound is cut.
type Event struct {
	Type        Type              `json:"type"`
	Client      string            `json:"client,omitempty"`
	Version     string            `json:"version,omitempty"`     // of the bundle, as the secrets manager names it
	Fingerprint string            `json:"fingerprint,omitempty"` // base64url(SHA-256(token)), as RFC 9449's ath
	JTI         string            `json:"jti,omitempty"`         // of a JWT: RFC 7519, 4.1.7
	Scope       string            `json:"scope,omitempty"`       // at most 1,024 bytes
	Audience    string            `json:"audience,omitempty"`
	Expires     time.Time         `json:"expires,omitzero"` // of the token
	Caller      *Caller           `json:"caller,omitempty"` // the consumer
	Actor       *Caller           `json:"actor,omitempty"`  // the administrator, for administrative acts
	Count       int64             `json:"count,omitempty"`  // events that this one sums up; zero means one
	First       time.Time         `json:"first,omitzero"`   // of the events summed up
	Last        time.Time         `json:"last,omitzero"`
	Code        string            `json:"code,omitempty"`   // of the error or decision
	Detail      map[string]string `json:"detail,omitempty"` // at most 16 keys of 64 bytes, values of 256; not to be changed once handed in
}

// A Caller is what the kernel says of a process. The numbers of user and group
// are always written: 0 is root, not "unknown".
type Caller struct {
	PID       int32  `json:"pid"`
	Start     uint64 `json:"start,omitempty"` // clock ticks since boot: with the pid, it names one process
	UID       uint32 `json:"uid"`
	GID       uint32 `json:"gid"`
	Unit      string `json:"unit,omitempty"`      // of the system manager
	UserUnit  string `json:"user_unit,omitempty"` // of a user manager
	LoginUID  uint32 `json:"loginuid"`            // 4294967295 means that nobody logged in
	Container bool   `json:"container,omitempty"`
	// Place is what the configuration names instead of a process: a file, the
	// credential of a unit; UID is then who can read it, and GID the group that
	// can, 4294967295 if none can. Or it is the loopback
	// listener by which UID asked. There is no PID.
	Place string `json:"place,omitempty"`
}

// A Type says what an Event is about. The types answer the eight questions of
// the OWASP Secrets Management Cheat Sheet, section 2.6; a test holds the map.
type Type string

// The types of events.
const (
	TokenHandover Type = "token.handover" // a token left for a process, for the first time
	TokenRepeats  Type = "token.repeats"  // Count further hand-overs of it to the same process, since First
	KeyHandover   Type = "key.handover"   // an API key left for a process
	AccessDenied  Type = "access.denied"  // a process asked for what no allow entry gives it
	// AccessQuarantined is for a process that would be allowed.
	AccessQuarantined Type = "access.quarantined" // a process asked for a client that is quarantined, and got nothing

	TokenMinted   Type = "token.minted"   // the issuer gave a token
	TokenCarried  Type = "token.carried"  // the token of before a planned restart serves on
	TokenRefused  Type = "token.refused"  // the issuer refused to give one
	TokenRejected Type = "token.rejected" // a consumer says that the API refused its token or key
	TokenRevoked  Type = "token.revoked"  // the issuer took it back, on an administrator's word
	LoginRequired Type = "login.required" // a refresh token ended, or could not be kept: a person has to log in
	TokenExpired  Type = "token.expired"  // a token's last usable second has passed, or it was withdrawn; Count is its hand-overs

	ProviderRead    Type = "provider.read"    // a bundle was read from the secrets manager
	ProviderFailed  Type = "provider.failed"  // the secrets manager did not give one
	BundleInstalled Type = "bundle.installed" // a new version of a client's bundle is in use
	BundleRefused   Type = "bundle.refused"   // a new version was not taken, and why
	BundleKept      Type = "bundle.kept"      // the sealed copy of a bundle could not be written, or serves while the secrets manager is down
	SecretAge       Type = "secret.age"       // a version is due for replacement, or overdue; once each

	UnitRestarted Type = "unit.restarted" // a unit was restarted to read a new credential; with a Code it was not, or what it holds needs a person

	SecretFound Type = "secret.found" // a scan found a secret or token where it does not belong; Code is the field

	FileFailed Type = "file.failed" // a client's file could not be written or removed: Code says which

	ConfigLoaded  Type = "config.loaded"  // the daemon works by this configuration from now on
	ConfigRefused Type = "config.refused" // a changed configuration had errors: the old one stays
	ConfigWidened Type = "config.widened" // the new configuration allows more than the one before
	AdminAct      Type = "admin.act"      // an administrator did something; Actor is the kernel's word for who
	DaemonStart   Type = "daemon.start"   // the daemon came up
	DaemonStop    Type = "daemon.stop"    // it went down in good order; a start without one before it followed a crash

	IncidentRecorded Type = "incident.recorded" // a leak, or the suspicion of one, was declared, reported anew, released or closed: Code
	IncidentAlarm    Type = "incident.alarm"    // about an incident somebody has to do something: Code

	ClockJumped Type = "clock.jumped" // the wall clock was set, or the machine slept: by how much

	LogSegment Type = "audit.segment" // the first entry of each file: format version, log, host
	LogAnchor  Type = "audit.anchor"  // this entry's number and hash went to the journal; with a Code, that failed
	LogBroken  Type = "audit.broken"  // a file was removed, replaced or changed under the running daemon; the log went on in a new one
	LogTorn    Type = "audit.torn"    // the end of a file was unreadable when the log was opened; it was set aside
	LogExpired Type = "audit.expired" // entries older than the retention were deleted: which, and the last one's hash
	LogLost    Type = "audit.lost"    // Count events between First and Last could not be written, and why
)

const (
	maxText   = 256  // bytes of most fields
	maxScope  = 1024 // bytes of Scope and Audience
	maxKey    = 64   // bytes of a key of Detail
	maxDetail = 16   // keys of Detail
)

// bounded gives the event as it may be written: one that fits already costs
// no allocation.
func (e Event) bounded() Event {
	e.Type = Type(text(string(e.Type), maxKey))
	e.Client = text(e.Client, maxText)
	e.Version = text(e.Version, maxText)
	e.Fingerprint = text(e.Fingerprint, maxText)
	e.JTI = text(e.JTI, maxText)
	e.Scope = text(e.Scope, maxScope)
	e.Audience = text(e.Audience, maxScope)
	e.Code = text(e.Code, maxText)
	e.Caller, e.Actor = e.Caller.bounded(), e.Actor.bounded()
	e.Detail = boundedDetail(e.Detail)
	e.Expires, e.First, e.Last = date(e.Expires), date(e.First), date(e.Last)
	return e
}

func (c *Caller) bounded() *Caller {
	if c == nil || fits(c.Unit, maxText) && fits(c.UserUnit, maxText) {
		return c
	}
	b := *c
	b.Unit, b.UserUnit = text(c.Unit, maxText), text(c.UserUnit, maxText)
	return &b
}

func boundedDetail(m map[string]string) map[string]string {
	ok := len(m) <= maxDetail
	for k, v := range m {
		ok = ok && fits(k, maxKey) && fits(v, maxText)
	}
	if ok {
		return m
	}
	b := make(map[string]string, maxDetail)
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if len(b) == maxDetail {
			break
		}
		b[text(k, maxKey)] = text(m[k], maxText)
	}
	return b
}

// date keeps a time within what RFC 3339 can say, so that no upstream's absurd
// lifetime makes an entry unwritable.
func date(t time.Time) time.Time {
	t = t.UTC()
	switch y := t.Year(); {
	case y < 1:
		return time.Time{}
	case y > 9999:
		return time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	}
	return t
}

func fits(s string, limit int) bool {
	if len(s) > limit {
		return false
	}
	for _, r := range s {
		if unprintable(r) {
			return false
		}
	}
	return true
}

// text makes s fit to be read by people and machines, within limit bytes.
func text(s string, limit int) string {
	if fits(s, limit) {
		return s
	}
	const cut = "…"
	var b strings.Builder
	for _, r := range s {
		if unprintable(r) {
			r = utf8.RuneError
		}
		if b.Len()+utf8.RuneLen(r)+len(cut) > limit {
			b.WriteString(cut)
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

// unprintable runes can break lines, move a terminal's cursor, or turn the
// reading direction round. Invalid UTF-8 decodes to RuneError.
func unprintable(r rune) bool {
	if r >= ' ' && r < 0x7f {
		return false
	}
	return r == utf8.RuneError || unicode.Is(unicode.C, r) || r == '\u2028' || r == '\u2029'
}
