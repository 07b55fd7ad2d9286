package rotation

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"credentialbroker/internal/durable"
	"credentialbroker/providers"
)

// A Ledger is what one client must not forget: which versions the issuer has
// refused and how often authentication has failed within the last hour. It is
// durable before the next attempt. It holds no secret, nor anything derived
// from one.
//
// It belongs to the client's name for as long as the process lives: a changed
// configuration gets another Credential and the same Ledger, so that what one
// is doing at the issuer is known to the other.
type Ledger struct {
	file    string
	keeping turn                       // the sealed copy is the client's, whatever its configuration
	keeper  atomic.Pointer[Credential] // that is of today's; nil: any
	minting turn                       // one authentication at a time: a dead secret is presented once

	recording sync.Mutex // orders writes; held over them
	written   []byte

	mu     sync.Mutex
	d      entries
	works  versionID         // has authenticated in this process
	logins map[string]*login // by place
}

// A versionID names a version and the place that it is in: another secrets
// manager, path or issuer may use the same number.
type versionID string

// entries are the file's content.
type entries struct {
	Format  int                   `json:"format"`
	Refused map[versionID]refusal `json:"refused,omitempty"`
	// Failures are the latest failed authentications.
	Failures []intent `json:"failures,omitempty"`
	// Proved is the last version that has authenticated: what others fail
	// does not count against it.
	Proved versionID `json:"proved,omitempty"`
	// Pinned is the version that an administrator wants to serve, whatever
	// newer ones there are.
	Pinned versionID `json:"pinned,omitempty"`
	// Intent is an attempt whose outcome is not known yet. Found at start, it
	// counts as a failure, not as a refusal.
	Intent *intent `json:"intent,omitempty"`
	// Aged is the version of which an age was recorded last, and which.
	Aged aged `json:"aged,omitzero"`
	// Since is when the credential of the current version was made, if an older
	// version had it already.
	Since since `json:"since,omitzero"`
	// Interrupted is the refresh token in whose use the process died. It is
	// tried once more.
	Interrupted versionID `json:"interrupted,omitempty"`
}

type refusal struct {
	At   time.Time `json:"at"`
	Code string    `json:"code"`
}

type since struct {
	Version versionID `json:"version"`
	At      time.Time `json:"at"`
}

type aged struct {
	Version versionID `json:"version"`
	Step    string    `json:"step"` // due or overdue
}

type intent struct {
	Version versionID `json:"version"`
	At      time.Time `json:"at"`
	Login   bool      `json:"login,omitempty"` // Version is a refresh token's
}

const (
	ledgerFormat = 1
	keptRefusals = 64
)

// OpenLedger reads the state file of a client in dir, which must exist.
func OpenLedger(dir, client string) (*Ledger, error) {
	l := &Ledger{file: filepath.Join(dir, client+".json"), minting: newTurn(), keeping: newTurn(), d: entries{Format: ledgerFormat}, logins: map[string]*login{}}
	data, err := os.ReadFile(l.file)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &l.d)
	}
	if err != nil {
		return nil, fmt.Errorf("state file %s cannot be read: %w; if it is damaged, remove it: refused versions will then be tried once more", l.file, err)
	}
	if l.d.Format != ledgerFormat {
		return nil, fmt.Errorf("state file %s has format %d, this version knows %d: install the version that wrote it", l.file, l.d.Format, ledgerFormat)
	}
	if l.d.Intent != nil {
		l.d.interrupted(*l.d.Intent)
	}
	return l, nil
}

// interrupted settles an attempt in which the process died. A refresh token
// may have been replaced by an answer that nobody got: it is tried once more.
func (d *entries) interrupted(i intent) {
	d.Intent = nil
	d.Failures = append(d.Failures, i)
	switch {
	case !i.Login:
	case d.Interrupted != i.Version:
		d.Interrupted = i.Version
	default:
		d.refuse(i.Version, i.At, "interrupted")
	}
}

func (d *entries) refuse(v versionID, at time.Time, code string) {
	if d.Refused == nil {
		d.Refused = map[versionID]refusal{}
	}
	d.Refused[v] = refusal{at, code}
}

// change changes the entries and makes them durable. A write that failed is
// made up for by the next.
func (l *Ledger) change(f func(*entries)) error {
	l.recording.Lock()
	defer l.recording.Unlock()
	l.mu.Lock()
	f(&l.d)
	l.d.trim()
	data, err := json.Marshal(l.d)
	l.mu.Unlock()
	if err != nil || bytes.Equal(data, l.written) || l.written == nil && string(data) == `{"format":1}` {
		return err
	}
	if err := durable.Replace(l.file, data); err != nil {
		return err
	}
	l.written = data
	return nil
}

func (l *Ledger) refusal(v versionID) (refusal, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.d.Refused[v]
	return r, ok
}

// refusedOf lists the refused versions of one place.
func (l *Ledger) refusedOf(place string) (list []providers.Version) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.d.Refused {
		if v, ok := strings.CutPrefix(string(id), place); ok {
			list = append(list, providers.Version(v))
		}
	}
	slices.Sort(list)
	return list
}

// lastFailure is when v failed last, and how often that is known.
func (l *Ledger) lastFailure(v versionID) (at time.Time, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.d.Failures {
		if f.Version == v {
			n++
			if f.At.After(at) {
				at = f.At
			}
		}
	}
	return at, n
}

// left is how many failures the budget still allows v.
func (l *Ledger) left(now time.Time, b budget, v versionID) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(0, b.limit-len(l.d.recent(now, b, v)))
}

// since is when the credential of a version was made, if that was before it.
func (l *Ledger) since(v versionID) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.d.Since.Version != v {
		return time.Time{}
	}
	return l.d.Since.At
}

func (l *Ledger) olderThan(v versionID, at time.Time) error {
	return l.change(func(d *entries) { d.Since = since{v, at} })
}

// ages notes that a version has reached a step of its age; false: it was noted,
// or cannot be.
func (l *Ledger) ages(v versionID, step string) bool {
	l.mu.Lock()
	known := l.d.Aged
	l.mu.Unlock()
	if known.Version == v && (known.Step == step || known.Step == "overdue") {
		return false
	}
	err := l.change(func(d *entries) { d.Aged = aged{v, step} })
	if err != nil { // the next look records it
		l.mu.Lock()
		l.d.Aged = known
		l.mu.Unlock()
	}
	return err == nil
}

func (l *Ledger) hasWorked(v versionID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.works == v
}

// exhausted gives the time when the budget allows the next attempt with v;
// zero: now.
func (l *Ledger) exhausted(now time.Time, b budget, v versionID) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.d.exhausted(now, b, v)
}

// A budget is how many authentications may fail within a time.
type budget struct {
	limit  int
	within time.Duration
}

// share is the part of one of several hosts: where it would be less than one
// failure an hour, it is one in more hours.
func share(failures, hosts int) budget {
	hosts = max(hosts, 1)
	if failures >= hosts {
		return budget{failures / hosts, time.Hour}
	}
	return budget{1, time.Hour * time.Duration(hosts) / time.Duration(failures)}
}

// proved is the version of a place that authenticated last; empty: none is known.
func (l *Ledger) proved(place string) providers.Version {
	return l.of(place, func(d *entries) versionID { return d.Proved })
}

// pinned is the version of a place that an administrator has pinned.
func (l *Ledger) pinned(place string) providers.Version {
	return l.of(place, func(d *entries) versionID { return d.Pinned })
}

func (l *Ledger) of(place string, f func(*entries) versionID) providers.Version {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := strings.CutPrefix(string(f(&l.d)), place)
	if !ok {
		return ""
	}
	return providers.Version(v)
}

// pin makes an administrator's word durable; empty: the newest serves.
func (l *Ledger) pin(v versionID) error { return l.change(func(d *entries) { d.Pinned = v }) }

// allow lets one refused version be tried once more.
func (l *Ledger) allow(v versionID) error { return l.change(func(d *entries) { delete(d.Refused, v) }) }

func (l *Ledger) intend(v versionID, now time.Time) error {
	return l.change(func(d *entries) { d.Intent = &intent{Version: v, At: now} })
}

// intendLogin is for the use of a refresh token.
func (l *Ledger) intendLogin(v versionID, now time.Time) error {
	return l.change(func(d *entries) { d.Intent = &intent{Version: v, At: now, Login: true} })
}

// loginFailed is for a refresh token that the issuer has refused: the client's
// authentication is not in doubt.
func (l *Ledger) loginFailed(v versionID, now time.Time, code string) error {
	return l.change(func(d *entries) {
		d.Intent, d.Interrupted = nil, ""
		d.refuse(v, now, code)
	})
}

func (l *Ledger) succeeded(v versionID) error {
	return l.change(func(d *entries) {
		d.Intent, d.Interrupted = nil, ""
		delete(d.Refused, v)
	})
}

// serves is for a version that has authenticated and is the current one.
func (l *Ledger) serves(v versionID) error {
	l.mu.Lock()
	l.works = v
	l.mu.Unlock()
	return l.change(func(d *entries) { d.Proved = v })
}

// forget is for an attempt that the issuer did not judge.
func (l *Ledger) forget() error { return l.change(func(d *entries) { d.Intent = nil }) }

// tried is for what is not stored: there is no version to remember.
func (l *Ledger) tried(v versionID, now time.Time) error {
	return l.change(func(d *entries) {
		d.Intent = nil
		d.Failures = append(d.Failures, intent{Version: v, At: now})
	})
}

func (l *Ledger) failed(v versionID, now time.Time, code string) error {
	l.mu.Lock()
	if l.works == v {
		l.works = ""
	}
	l.mu.Unlock()
	return l.change(func(d *entries) {
		d.Intent = nil
		d.Failures = append(d.Failures, intent{Version: v, At: now})
		if d.Proved == v {
			d.Proved = ""
		}
		d.refuse(v, now, code)
	})
}

// pardon forgets what issuers have said; what an administrator did, it does not.
func (l *Ledger) pardon() error {
	return l.change(func(d *entries) {
		maps.DeleteFunc(d.Refused, func(_ versionID, r refusal) bool { return r.Code != codeRevoked })
		d.Failures, d.Intent = nil, nil
	})
}

const codeRevoked = "revoked"

func (d *entries) exhausted(now time.Time, b budget, v versionID) time.Time {
	recent := d.recent(now, b, v)
	if len(recent) < b.limit {
		return time.Time{}
	}
	slices.SortFunc(recent, time.Time.Compare)
	return recent[len(recent)-b.limit].Add(b.within)
}

// recent are the failures that count against v now.
func (d *entries) recent(now time.Time, b budget, v versionID) (recent []time.Time) {
	for _, f := range d.Failures {
		if v == d.Proved && f.Version != v {
			continue
		}
		if now.Sub(f.At).Abs() < b.within {
			recent = append(recent, f.At)
		}
	}
	return recent
}

// trim keeps the file small, however long the client lives.
func (d *entries) trim() {
	if n := len(d.Failures); n > keptRefusals {
		d.Failures = d.Failures[n-keptRefusals:]
	}
	for len(d.Refused) > keptRefusals {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(d.Refused)), func(a, b versionID) int {
			return d.Refused[a].At.Compare(d.Refused[b].At)
		})
		delete(d.Refused, oldest)
	}
}
