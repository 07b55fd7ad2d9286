package broker

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/fake"
	"credentialbroker/providers"
)

// A step of a random schedule.
type step struct {
	what string
	wait time.Duration
	kind fake.FaultKind
}

var issuerFaults = []fake.FaultKind{fake.None, fake.None, fake.None, fake.Unavailable, fake.Hang, fake.Forbidden, fake.HTML, fake.Empty, fake.Throttled, fake.Reset, fake.NoExpiry, fake.Absurd}

func steps() *rapid.Generator[[]step] {
	one := rapid.Custom(func(t *rapid.T) step {
		return step{
			what: rapid.SampledFrom([]string{"wait", "wait", "issuer", "provider down", "provider up", "good version", "bad version",
				"issuer forgets the old", "restart", "jump", "reject", "admin retry", "reload"}).Draw(t, "what"),
			wait: time.Duration(rapid.IntRange(0, 1200).Draw(t, "wait")) * time.Second,
			kind: rapid.SampledFrom(issuerFaults).Draw(t, "kind"),
		}
	})
	return rapid.SliceOfN(one, 1, 30)
}

// model is what must hold, told apart from how the broker does it.
type model struct {
	w        *world
	serial   int
	good     map[string]bool // secrets that the issuer takes
	down     bool            // the issuer may be unable to mint
	provider bool            // the secrets manager answers
	pardons  int
	restarts int

	secrets  map[providers.Version]string // of each version in the manager
	takes    []string                     // what the issuer takes
	worked   providers.Version            // of the last token that a consumer got
	calm     time.Time                    // since when neither clock nor other side was disturbed
	copied   providers.Version            // of the last token that a consumer got while the secrets manager answered
	copiedAt time.Time                    // by the wall clock
	broken   []string
}

func (m *model) fail(format string, args ...any) {
	if len(m.broken) < 3 {
		m.broken = append(m.broken, fmt.Sprintf(format, args...))
	}
}

// Random schedules of faults, versions, clock jumps, complaints, reloads and
// restarts, also while the secrets manager is down, against the promises: no token is served in its last seconds, one
// request is in flight at a time, no wait while a token is valid, no error that
// a version that has worked could have avoided, a refused secret is presented once a pardon, the audit log verifies.
func TestRandomSchedules(t *testing.T) {
	caller := self(t)
	base := t.TempDir()
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		schedule := steps().Draw(rt, "schedule")
		run++
		dir := filepath.Join(base, fmt.Sprint(run))
		if err := os.Mkdir(dir, 0o700); err != nil {
			rt.Fatal(err)
		}
		var broken []string
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, dir, caller)
			copies := fake.NewStore()
			w.edit = func(list []Client) []Client { list[0].Keeper = copies; return list }
			w.start()
			m := &model{w: w, good: map[string]bool{theSecret: true}, provider: true, calm: time.Now(),
				secrets: map[providers.Version]string{"1": theSecret}, takes: []string{theSecret}}
			for i, s := range schedule {
				m.take(s)
				m.look(fmt.Sprintf("step %d (%s)", i, s.what))
			}
			m.end()
			broken = m.broken
		})
		if len(broken) > 0 {
			rt.Fatalf("%q", broken)
		}
		_ = os.RemoveAll(dir)
	})
}

func (m *model) take(s step) {
	w := m.w
	switch s.what {
	case "issuer", "provider down", "provider up", "jump":
		m.calm = time.Now()
	}
	switch s.what {
	case "issuer":
		w.issuer.Set(fake.Fault{Kind: s.kind})
		m.down = s.kind != fake.None && s.kind != fake.NoExpiry && s.kind != fake.Absurd
	case "provider down":
		w.store.SetFault(providers.Unavailable)
		m.provider = false
	case "provider up":
		w.store.SetFault("")
		m.provider = true
	case "good version", "bad version":
		m.serial++
		secret := fmt.Sprintf("%s %d", s.what, m.serial)
		if s.what == "good version" {
			w.issuer.SetSecret(theID, secret, true)
			m.good[secret] = true
			m.takes = []string{secret, m.takes[0]}
		}
		w.secret(secret)
		m.secrets[providers.Version(fmt.Sprint(len(m.secrets)+1))] = secret
	case "issuer forgets the old":
		w.issuer.SetSecret(theID, fmt.Sprintf("newest %d", m.serial), false)
		m.takes = []string{fmt.Sprintf("newest %d", m.serial)}
	case "restart":
		m.restarts++
		w.restart()
	case "jump":
		w.skew.Add(int64(s.wait - 10*time.Minute))
	case "reject":
		if g, err := w.get(Request{}); err == nil {
			_, _ = w.reject(g)
		}
	case "admin retry":
		m.pardons++
		_ = w.b.Retry("vdab")
	case "reload":
		if err := w.b.Apply(w.edit(w.config())); err != nil {
			m.fail("reload: %v", err)
		}
	}
	// Consumers read all the while.
	for end := time.Now().Add(s.wait); time.Now().Before(end); time.Sleep(17 * time.Second) {
		m.look(s.what)
	}
	synctest.Wait()
}

// look is one consumer's read.
func (m *model) look(when string) {
	w := m.w
	held := m.valid()
	before := time.Now()
	g, err := w.get(Request{})
	took := time.Since(before)
	switch {
	case err != nil && held:
		m.fail("%s: an error while a token was valid: %v", when, err)
	case err != nil && !m.down && (m.provider || m.copy()) && before.Sub(m.calm) > 20*time.Minute && slices.Contains(m.takes, m.secrets[m.worked]):
		m.fail("%s: an error, although the issuer takes version %s, which has worked: %v", when, m.worked, err)
	case err != nil:
		if p := Problem(err); p.Code == "internal" || p.Detail == "" {
			m.fail("%s: %+v from %v", when, p, err)
		}
	case held && took > 0:
		m.fail("%s: waited %v while a token was valid", when, took)
	default:
		m.worked = g.Version
		if m.provider && before.Sub(m.calm) > 20*time.Minute {
			m.copied, m.copiedAt = g.Version, w.clock.Now().Wall
		}
		if left := g.Token.Expires.Until(w.clock.Now()); left <= 0 {
			m.fail("%s: an expired token, by %v", when, -left)
		}
	}
	if took > 60*time.Second {
		m.fail("%s: an answer took %v", when, took)
	}
}

// copy says whether the last version that worked is to be had on this host. A
// clock that was set back, to a time before the copy, excuses.
func (m *model) copy() bool {
	return m.copied != "" && m.copied == m.worked && !m.w.clock.Now().Wall.Before(m.copiedAt)
}

// valid says whether the cache holds a token with life beyond the margin.
func (m *model) valid() bool {
	for _, s := range m.w.b.Status() {
		if s.Runway > 0 {
			return true
		}
	}
	return false
}

func (m *model) end() {
	w := m.w
	stats := w.issuer.Stats()
	if stats.MaxInFlight > 1 {
		m.fail("%d requests in flight", stats.MaxInFlight)
	}
	for secret, n := range stats.PerSecret {
		if n > 1+m.pardons {
			m.fail("a refused secret was presented %d times with %d pardons and %d restarts: %s", n, m.pardons, m.restarts, secret)
		}
	}
	w.stop()
	report, err := audit.Verify(filepath.Join(w.dir, "audit"), nil)
	if err != nil || len(report.Problems) > 0 {
		m.fail("the audit log: %+v, %v", report.Problems, err)
	}
}
