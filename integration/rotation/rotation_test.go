//go:build real

// Package rotation is the script that shows rotation without an outage: 64
// consumers read without pause while a client's secret is rotated 50 times, on
// real secrets managers, and both the manager and the issuer fail at random
// moments. It runs the daemon as it ships.
//
// What is random follows from one seed, which a failure prints; ROTATION_SEED
// takes it again. Counts are asserted, never times.
package rotation

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
)

const (
	consumers = 64
	rotations = 50
	budget    = 3 // failed authentications an hour, the product's default
	pace      = 1700 * time.Millisecond
)

// What one rotation does.
const (
	good  = "good"
	twice = "twice" // the same fields again at once, as when somebody mends a comment
	half  = "half"  // a version that lacks a field
	bad   = "bad"   // a secret that the issuer does not know
)

// plan says in which order versions come. The last is good.
func plan(rng *rand.Rand) []string {
	list := slices.Concat(slices.Repeat([]string{bad}, budget-1), slices.Repeat([]string{half}, 4), slices.Repeat([]string{twice}, 3))
	list = append(list, slices.Repeat([]string{good}, rotations-1-len(list))...)
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return append(list, good)
}

func seed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("ROTATION_SEED")
	if text == "" {
		return rand.Uint64()
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRotation(t *testing.T) {
	n := seed(t)
	t.Logf("ROTATION_SEED=%d", n)
	for i, start := range []func(*testing.T) *manager{startVault, startMoto} {
		for j, secrets := range []string{"two", "one"} {
			t.Run([]string{"vault", "aws"}[i]+"/"+secrets, func(t *testing.T) {
				t.Parallel()
				m := start(t)
				real.Row(t, "rotation", m.server+", brokerd, fake VDAB", "64 consumers, 50 rotations, "+secrets+
					" at a time, manager and issuer failing: no failed read, one fetch a version and lifetime, dead secrets within the budget, audit log intact")
				run(t, m, secrets, rand.New(rand.NewPCG(n, uint64(2*i+j))))
			})
		}
	}
}

func run(t *testing.T, m *manager, secrets string, rng *rand.Rand) {
	w, rotating, steady := newWorld(t, m, secrets)
	t.Cleanup(func() {
		if t.Failed() {
			w.report()
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	chaos, calm := context.WithCancel(ctx)
	var reading, troubling sync.WaitGroup
	defer func() { calm(); stop(); troubling.Wait(); reading.Wait() }()
	for n := range consumers {
		reading.Go(func() { w.consume(ctx, rotating, n) })
	}
	reading.Go(func() { w.consume(ctx, steady, 0) })
	w.until("the first tokens", func() bool {
		return w.status(rotating).Ready && w.status(steady).Ready && len(w.status(rotating).Tokens) == len(rotating.scopes)
	})
	fork := func() *rand.Rand { return rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64())) }
	mine, others, its := fork(), fork(), fork()
	troubling.Go(func() { w.troubleIssuer(chaos, rotating, mine) })
	troubling.Go(func() { w.troubleIssuer(chaos, steady, others) })
	troubling.Go(func() { w.troubleManager(chaos, its) })
	s := &script{world: w, party: rotating, alsoOld: secrets == "two", rng: rng, refused: map[string]bool{}, versions: 1}
	s.rotate()
	w.until("the renewal of a token that nothing else replaces", func() bool { return steady.issuer.Stats().Minted > 1 })
	calm()
	troubling.Wait()
	s.check()
	lived := int(math.Ceil(float64(time.Since(w.start)) / float64(lifetime*3/4))) // renewed after 3/4 of a life at the earliest
	if n := steady.issuer.Stats(); n.Minted > lived || n.Refused != 0 || n.MaxInFlight > 1 {
		t.Errorf("the client that was not rotated: %d tokens, %d refusals, %d requests at a time; want %d tokens at most, no refusal, one request at a time", n.Minted, n.Refused, n.MaxInFlight, lived)
	}
	s.exhaust()
	stop()
	reading.Wait()
	for what, n := range w.failed {
		t.Errorf("%d of %d reads failed: %s", n, w.reads.Load(), what)
	}
	if w.reads.Load() < 100*consumers || w.calls.Load() == 0 {
		t.Errorf("%d reads, %d calls of the API: the consumers were not there", w.reads.Load(), w.calls.Load())
	}
	v, err := w.admin.Verify(t.Context())
	if err != nil || len(v.Problems) != 0 || v.Lost != 0 {
		t.Errorf("audit log: %v %+v", err, v)
	}
	st := rotating.issuer.Stats()
	t.Logf("%d reads, %d calls of the API, %d versions, %d tokens, %d requests, refused: %v; steady: %+v; audit: %d entries",
		w.reads.Load(), w.calls.Load(), s.versions, st.Minted, st.Requests, st.PerSecret, steady.issuer.Stats(), v.Entries)
}

// A script rotates one client.
type script struct {
	*world
	*party
	alsoOld  bool // the issuer knows the secret before the newest, too
	rng      *rand.Rand
	made     int             // secrets
	versions int             // that can be proved, the first included
	refused  map[string]bool // bad secrets
	version  string          // the one that serves
}

// secret makes one that the issuer does not know yet.
func (s *script) secret() string {
	s.made++
	return fmt.Sprintf("rotating-secret-%d-%x", s.made, s.rng.Uint64())
}

func with(fields map[string]string, name, value string) map[string]string {
	out := maps.Clone(fields)
	out[name] = value
	return out
}

// store writes a version; sometimes an administrator then says that it is there.
func (s *script) store(fields map[string]string) string {
	s.t.Helper()
	v := s.put(s.party, fields)
	if s.rng.IntN(2) == 0 {
		_, err := s.admin.Rotate(s.t.Context(), s.name, client.Rotation{})
		s.note("broker rotate: %v", err)
	}
	return v
}

func (s *script) rotate() {
	s.t.Helper()
	next := time.Now()
	for i, kind := range plan(s.rng) {
		time.Sleep(time.Until(next)) // so that outages of all kinds fall between all steps
		next = time.Now().Add(pace)
		s.step(i, kind)
	}
}

func (s *script) step(i int, kind string) {
	s.t.Helper()
	switch kind {
	case bad:
		wrong := s.secret()
		s.refused[wrong] = true
		v := s.store(with(s.fields, "client_secret", wrong))
		s.note("%d: bad version %s", i, v)
		s.until("the refusal of version "+v, func() bool { return slices.Contains(s.status(s.party).Refused, v) })
	case half:
		fields := maps.Clone(s.fields)
		delete(fields, "api_key")
		v := s.store(fields)
		s.note("%d: half a version %s", i, v)
		s.until("candidate "+v, func() bool { return s.status(s.party).Candidate == v })
	default:
		s.fields = with(s.fields, "client_secret", s.secret())
		s.issuer.SetSecret(s.fields["client_id"], s.fields["client_secret"], s.alsoOld)
		v := s.store(s.fields)
		s.versions++
		if kind == twice {
			v = s.store(s.fields)
			s.versions++
		}
		s.note("%d: %s version %s", i, kind, v)
		s.until("version "+v, func() bool { return s.status(s.party).Version == v })
		s.version = v
	}
	s.note("%d: done", i)
}

// check is about what the issuer has seen.
func (s *script) check() {
	s.t.Helper()
	tokens := map[string]int{} // by version
	sum := func() (n int) {
		for _, of := range tokens {
			n += of
		}
		return n
	}
	s.until("the audit log to have all tokens of the issuer", func() bool {
		tokens = s.minted(s.party)
		return sum() == s.issuer.Stats().Minted
	})
	st, now := s.issuer.Stats(), s.status(s.party)
	if now.Version != s.version || !now.Ready || now.Candidate != "" {
		s.t.Errorf("version %q serves, want %q: %+v", now.Version, s.version, now)
	}
	// One token for each version and scope. Beyond that a token is renewed after
	// 3/4 of its life at the earliest, and no version serves for so long.
	for version, n := range tokens {
		if n > len(s.scopes) {
			s.t.Errorf("%d tokens with version %s for %d scopes", n, version, len(s.scopes))
		}
	}
	if n := sum(); n > s.versions*len(s.scopes) {
		s.t.Errorf("%d tokens for %d versions and %d scopes", n, s.versions, len(s.scopes))
	}
	total := 0
	for dead, n := range st.PerSecret {
		total += n
		switch {
		case s.refused[dead]:
			if n != 1 {
				s.t.Errorf("a bad secret was presented %d times", n)
			}
		case s.alsoOld:
			s.t.Errorf("secret %q was presented %d times when the issuer had forgotten it", dead, n)
		case n > 1:
			s.t.Errorf("secret %q was presented %d times when it was dead", dead, n)
		}
	}
	if total > budget {
		s.t.Errorf("%d failed authentications within an hour, the budget is %d", total, budget)
	}
}

// exhaust spends the rest of the budget on bad versions, and one more.
func (s *script) exhaust() {
	s.t.Helper()
	for s.issuer.Stats().Refused < budget {
		s.step(rotations, bad)
	}
	wrong := s.secret()
	v := s.put(s.party, with(s.fields, "client_secret", wrong))
	s.until("candidate "+v, func() bool { return s.status(s.party).Candidate == v })
	for range 5 { // also when somebody insists
		_, _ = s.admin.Rotate(s.t.Context(), s.name, client.Rotation{})
	}
	st, now := s.issuer.Stats(), s.status(s.party)
	if st.PerSecret[wrong] != 0 || st.Refused != budget {
		s.t.Errorf("beyond the budget a bad secret was presented %d times; %d refusals", st.PerSecret[wrong], st.Refused)
	}
	if now.Version != s.version || !now.Ready || now.Candidate != v {
		s.t.Errorf("with the budget spent: %+v", now)
	}
}
