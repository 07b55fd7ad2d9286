package rotation

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"credentialbroker/providers"
)

// ledger is what must survive a restart: which versions the issuer has refused
// and how often authentication has failed within the last hour. It is durable
// before the next attempt. It holds no secret, nor anything derived from one.
type ledger struct {
	Format  int                           `json:"format"`
	Refused map[providers.Version]refusal `json:"refused,omitempty"`
	// Failures are the failed authentications of the last hour.
	Failures []intent `json:"failures,omitempty"`
	// Proved is the last version that has authenticated: what others fail
	// does not count against it.
	Proved providers.Version `json:"proved,omitempty"`
	// Intent is an attempt whose outcome is not known yet. Found at start, it
	// counts as a failure, not as a refusal.
	Intent *intent `json:"intent,omitempty"`

	file  string
	works providers.Version // has authenticated in this process
}

type refusal struct {
	At   time.Time `json:"at"`
	Code string    `json:"code"`
}

type intent struct {
	Version providers.Version `json:"version"`
	At      time.Time         `json:"at"`
}

const (
	ledgerFormat = 1
	budgetPeriod = time.Hour
	keptRefusals = 64
)

func openLedger(file string) (ledger, error) {
	l := ledger{Format: ledgerFormat, file: file}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &l)
	}
	if err != nil {
		return l, fmt.Errorf("state file %s cannot be read: %w; if it is damaged, remove it: refused versions will then be tried once more", file, err)
	}
	if l.Format != ledgerFormat {
		return l, fmt.Errorf("state file %s has format %d, this version knows %d: install the version that wrote it", file, l.Format, ledgerFormat)
	}
	if l.Intent != nil {
		l.Failures = append(l.Failures, *l.Intent)
		l.Intent = nil
	}
	return l, nil
}

// change applies f and says whether that made a difference, with the bytes to
// write.
func (l *ledger) change(f func(*ledger)) (bool, []byte) {
	before, _ := json.Marshal(l)
	f(l)
	l.trim()
	after, _ := json.Marshal(l)
	return string(before) != string(after), after
}

func (l *ledger) refused(v providers.Version) bool { _, ok := l.Refused[v]; return ok }

// exhausted gives the time when the budget allows the next attempt with v;
// zero: now.
func (l *ledger) exhausted(now time.Time, limit int, v providers.Version) time.Time {
	var recent []time.Time
	for _, f := range l.Failures {
		if v == l.Proved && f.Version != v {
			continue
		}
		if now.Sub(f.At).Abs() < budgetPeriod {
			recent = append(recent, f.At)
		}
	}
	if len(recent) < limit {
		return time.Time{}
	}
	slices.SortFunc(recent, time.Time.Compare)
	return recent[len(recent)-limit].Add(budgetPeriod)
}

func (l *ledger) intend(v providers.Version, now time.Time) { l.Intent = &intent{v, now} }

func (l *ledger) succeeded(v providers.Version) {
	l.Intent, l.works, l.Proved = nil, v, v
	delete(l.Refused, v)
}

func (l *ledger) forget() { l.Intent = nil }

func (l *ledger) failed(v providers.Version, now time.Time, code string) {
	l.Intent = nil
	l.Failures = append(l.Failures, intent{v, now})
	l.refuse(v, now, code)
}

func (l *ledger) refuse(v providers.Version, now time.Time, code string) {
	if l.works == v {
		l.works = ""
	}
	if l.Proved == v {
		l.Proved = ""
	}
	if l.Refused == nil {
		l.Refused = map[providers.Version]refusal{}
	}
	l.Refused[v] = refusal{now, code}
}

func (l *ledger) pardon() { l.Refused, l.Failures, l.Intent = nil, nil, nil }

// trim keeps the file small, however long the client lives.
func (l *ledger) trim() {
	if n := len(l.Failures); n > keptRefusals {
		l.Failures = l.Failures[n-keptRefusals:]
	}
	for len(l.Refused) > keptRefusals {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(l.Refused)), func(a, b providers.Version) int {
			return l.Refused[a].At.Compare(l.Refused[b].At)
		})
		delete(l.Refused, oldest)
	}
}

// write replaces the file so that either the old or the new one survives a
// power loss.
func (l *ledger) write(data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(l.file), ".ledger-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), l.file)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(l.file))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
