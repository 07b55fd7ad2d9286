// Package rotation keeps one live credential: its version, its budget of
// failed authentications, and how the next version is found, proved and
// installed.
//
// A bundle moves in one direction:
//
//	read ──(gathered: settle)──> candidate ──(proved)──> current ──> retired
//	                                 │
//	                                 └──(the issuer says invalid_client)──> refused
//
// The first bundle of a process has nothing to replace and is current at once;
// the first mint proves it. A candidate that cannot be proved because the
// issuer does not answer stays one. A refused version is remembered on disk
// and not tried again until the manager has another or an administrator says
// so. Whatever happens to a candidate, the current bundle serves on.
package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// A Credential is one client's live credential. Run is its only writer beside
// Mint and Check, which take turns with it; readers never wait.
type Credential struct {
	cfg  Config
	deps Deps

	ledger   *Ledger
	place    string // what is in front of a version in the ledger
	current  atomic.Pointer[Live]
	checking turn // reading from the secrets manager
	wake     chan struct{}

	mu        sync.Mutex // the fields below; never held over I/O
	candidate *candidate
	provider  trouble
	issuer    trouble
	state     trouble // of the state directory
	checked   clock.Reading
}

// Config says what the credential is and how it is kept.
type Config struct {
	Client string         // name of the client, also of its state file
	Spec   providers.Spec // where the bundle is
	// Required fields, without which a bundle is not accepted.
	Required []string
	// Prove says how a new bundle is proved. Zero: ProveMint.
	Prove Prove
	// AcceptUnproved installs what cannot be proved (ProveNone).
	AcceptUnproved bool
	// Default is the token request that proves a bundle.
	Default oidc.Request
	// Poll is the time between looks at the secrets manager. Zero: 5 minutes.
	Poll time.Duration
	// Settle is for how long a gathered bundle must stay the same. Zero: 30 s.
	Settle time.Duration
	// Failures is the budget of failed authentications an hour. Zero: 3.
	Failures int
	// Delay spreads the first reads of many clients. Zero: none.
	Delay time.Duration
}

// Prove is a way to prove a bundle.
type Prove string

// The ways. A profile states the one that its issuer allows.
const (
	ProveMint Prove = "mint" // get a token with it
	ProveNone Prove = "none" // it cannot be proved: an administrator accepts it
)

// Deps are what a Credential works with.
type Deps struct {
	Provider     providers.Provider
	ProviderName string
	Issuer       *oidc.Client // nil: an API key needs no issuer
	IssuerName   string       // tells issuers apart in the ledger: the token endpoint
	Audit        *audit.Log
	Clock        clock.Clock
	Ledger       *Ledger // the client's, whatever its configuration
	// Uses counts reads of secrets and their uses at issuers, before and after
	// each: whoever cleans memory up looks whether it has changed.
	Uses *atomic.Uint64
}

// A Live is an installed bundle. It does not change.
type Live struct {
	Version   providers.Version
	Fields    map[string]secret.Secret
	Created   time.Time     // as the manager says; zero: unknown
	Expires   time.Time     // the manager's own expiry; zero: none
	Installed clock.Reading // when this process took it
	// Proof is the token that proved the bundle, for Config.Default; nil if
	// it was installed without proof.
	Proof *oidc.Token

	id versionID
}

// A candidate is a bundle that was read and does not serve yet.
type candidate struct {
	bundle providers.Bundle
	ready  clock.Reading // when it has settled
	next   clock.Reading // when to try again; zero: when the manager is asked again
	why    string        // for people
}

const (
	defaultPoll     = 5 * time.Minute
	defaultSettle   = 30 * time.Second
	defaultFailures = 3
	checkTimeout    = 30 * time.Second
	mintTimeout     = 20 * time.Second
	shortestWait    = 100 * time.Millisecond
)

// New makes a credential. It starts nothing and does no I/O.
func New(cfg Config, deps Deps) (*Credential, error) {
	if cfg.Poll == 0 {
		cfg.Poll = defaultPoll
	}
	if cfg.Settle == 0 {
		cfg.Settle = defaultSettle
	}
	if cfg.Failures == 0 {
		cfg.Failures = defaultFailures
	}
	if cfg.Prove == "" {
		cfg.Prove = ProveMint
	}
	if deps.Issuer == nil {
		cfg.Prove = ProveNone
	}
	if cfg.Prove != ProveMint && cfg.Prove != ProveNone {
		return nil, fmt.Errorf("prove: %s is not available in this version: mint or none", cfg.Prove)
	}
	place, err := json.Marshal([]any{deps.IssuerName, deps.ProviderName, cfg.Spec})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(place)
	return &Credential{cfg: cfg, deps: deps, ledger: deps.Ledger, place: hex.EncodeToString(sum[:4]) + ":",
		checking: newTurn(), wake: make(chan struct{}, 1)}, nil
}

// id is a version's name in the ledger.
func (c *Credential) id(v providers.Version) versionID { return versionID(c.place + string(v)) }

// refused says whether the issuer has refused a version.
func (c *Credential) refused(v versionID) bool { _, ok := c.ledger.refusal(v); return ok }

// Current is the bundle that serves now; nil before the first read.
func (c *Credential) Current() *Live { return c.current.Load() }

// Adopt starts c with a bundle that another Credential of the same client
// holds, so that a changed configuration does not begin with a gap.
func (c *Credential) Adopt(l *Live) { c.current.CompareAndSwap(nil, l) }

// Wake makes Run look at the secrets manager now.
func (c *Credential) Wake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run looks for new versions until ctx ends; it returns nil then.
func (c *Credential) Run(ctx context.Context) error {
	wait := c.cfg.Delay
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-c.wake:
			timer.Stop()
		case <-timer.C:
		}
		_ = c.Check(ctx) // the outcome is in the state, which decides when to look again
		wait = c.next()
	}
}

// next is how long to wait for the next look.
func (c *Credential) next() time.Duration {
	now := c.deps.Clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	wait := jitter(c.cfg.Poll)
	live := c.current.Load()
	if live == nil || c.refused(live.id) {
		wait = min(wait, jitter(30*time.Second)) // people are waiting
	}
	if c.provider.err != nil {
		wait = min(wait, max(0, c.provider.until.Until(now)))
		if live == nil {
			return wait
		}
	}
	if c.candidate != nil && !c.candidate.next.IsZero() {
		wait = min(wait, max(0, c.candidate.next.Until(now)))
	}
	return max(wait, shortestWait)
}

// jitter spreads d by a tenth to either side.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1) // #nosec G404 -- spreads load, guards nothing
}

// Check makes one round: read, settle, prove, install. A new version that is
// not installed is no error; what the secrets manager says is.
func (c *Credential) Check(ctx context.Context) error {
	if err := c.checking.take(ctx); err != nil {
		return err
	}
	defer c.checking.give()
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if err := c.read(ctx); err != nil {
		return err
	}
	return c.advance(ctx)
}

// read asks the secrets manager for a version other than the one in hand.
func (c *Credential) read(ctx context.Context) error {
	live := c.current.Load()
	var have providers.Version
	c.mu.Lock()
	cand := c.candidate
	c.mu.Unlock()
	switch {
	case cand != nil:
		have = cand.bundle.Version
	case live != nil && live.id == c.id(live.Version): // else it is from another place, with numbers of its own
		have = live.Version
	}
	c.deps.Uses.Add(1)
	b, err := providers.Load(ctx, c.deps.Provider, c.cfg.Spec, have)
	c.deps.Uses.Add(1)
	now := c.deps.Clock.Now()
	if err != nil && !errors.Is(err, providers.ErrUnchanged) {
		c.readFailed(now, err)
		return err
	}
	c.mu.Lock()
	recovered := c.provider.err != nil
	c.provider, c.checked = trouble{}, now
	if err == nil {
		if live != nil && c.id(b.Version) == live.id {
			c.candidate = nil // the manager went back to what serves
			b.Wipe()
		} else {
			c.candidate = &candidate{bundle: b, ready: now}
			if live != nil && c.cfg.Spec.Gathered() {
				c.candidate.ready = now.Add(c.cfg.Settle)
			}
		}
	}
	c.mu.Unlock()
	if err == nil || recovered {
		c.note(audit.ProviderRead, b.Version, "", nil)
	}
	return nil
}

func (c *Credential) readFailed(now clock.Reading, err error) {
	kind := providers.KindOf(err)
	c.mu.Lock()
	again := c.provider.err != nil && providers.KindOf(c.provider.err) == kind
	var e *providers.Error
	var after time.Duration
	if errors.As(err, &e) {
		after = e.RetryAfter
	}
	c.provider.fail(now, err, after)
	c.mu.Unlock()
	if !again {
		c.note(audit.ProviderFailed, "", string(kind), map[string]string{"error": err.Error()})
	}
}

// advance takes the candidate as far as it goes now.
func (c *Credential) advance(ctx context.Context) error {
	c.mu.Lock()
	cand := c.candidate
	c.mu.Unlock()
	if cand == nil {
		return nil
	}
	live, now := c.current.Load(), c.deps.Clock.Now()
	lacking := c.lacking(cand.bundle, live)
	switch {
	case lacking != "":
		if c.hold(cand, lacking, clock.Reading{}) {
			c.note(audit.BundleRefused, cand.bundle.Version, "incomplete", map[string]string{"alarm": lacking})
		}
	case live == nil: // even a refused one: whoever asks is told so
		c.install(cand, nil)
	case c.refused(c.id(cand.bundle.Version)):
		c.hold(cand, "the issuer refused it: store another version, or run broker retry "+c.cfg.Client, clock.Reading{})
	case now.Sub(cand.ready) < 0:
		c.hold(cand, "its parts have to settle", cand.ready)
	case c.cfg.Prove == ProveNone && !c.cfg.AcceptUnproved:
		c.hold(cand, "it cannot be proved: broker rotate --accept "+c.cfg.Client+" installs it", clock.Reading{})
	case c.cfg.Prove == ProveNone:
		c.install(cand, nil)
	default:
		return c.prove(ctx, cand)
	}
	return nil
}

// prove gets a token with the candidate; success installs both.
func (c *Credential) prove(ctx context.Context, cand *candidate) error {
	if err := c.ledger.minting.take(ctx); err != nil {
		return err
	}
	defer c.ledger.minting.give()
	b := cand.bundle
	token, err := c.attempt(ctx, &Live{Version: b.Version, Fields: b.Fields, id: c.id(b.Version)}, c.cfg.Default)
	if err == nil {
		c.install(cand, &token)
		return nil
	}
	var next clock.Reading
	var e *Error
	if errors.As(err, &e) && e.RetryAfter > 0 {
		next = c.deps.Clock.Now().Add(e.RetryAfter)
	}
	c.hold(cand, "not proved: "+err.Error(), next)
	return nil
}

// hold says why the candidate is not installed, and when to try again. It says
// whether the reason is a new one.
func (c *Credential) hold(cand *candidate, why string, next clock.Reading) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := cand.why != why
	cand.why, cand.next = why, next
	return changed
}

// lacking says in words what a bundle does not have: required fields, or
// fields that its predecessor had ("kv put" replaces all of them).
func (c *Credential) lacking(b providers.Bundle, live *Live) string {
	var missing []string
	for _, name := range c.cfg.Required {
		if b.Fields[name].Empty() {
			missing = append(missing, name)
		}
	}
	if live != nil {
		for name := range live.Fields {
			if _, ok := b.Fields[name]; !ok && !slices.Contains(missing, name) {
				missing = append(missing, name)
			}
		}
	}
	if len(missing) == 0 {
		return ""
	}
	slices.Sort(missing)
	return "it lacks " + strings.Join(missing, ", ") + "; store a version with all fields"
}

func (c *Credential) install(cand *candidate, proof *oidc.Token) {
	b := cand.bundle
	c.mu.Lock()
	c.candidate = nil
	c.mu.Unlock()
	c.current.Store(&Live{Version: b.Version, Fields: b.Fields, Created: b.Created, Expires: b.Expires,
		Installed: c.deps.Clock.Now(), Proof: proof, id: c.id(b.Version)})
	// What was current is wiped when the last token minted with it is gone:
	// its holders keep it alive, the collector ends it.
	how := "unproved"
	if proof != nil {
		how = "proved"
	}
	c.note(audit.BundleInstalled, b.Version, how, nil)
}

// Accept looks for a new version and installs it without proof, on an
// administrator's word. If there is one that cannot be installed even so, why
// says it in words.
func (c *Credential) Accept(ctx context.Context) (installed bool, why string, err error) {
	if err := c.Check(ctx); err != nil {
		return false, "", err
	}
	if err := c.checking.take(ctx); err != nil {
		return false, "", err
	}
	defer c.checking.give()
	c.mu.Lock()
	cand := c.candidate
	c.mu.Unlock()
	if cand == nil {
		return false, "", nil
	}
	if why = c.lacking(cand.bundle, c.current.Load()); why != "" {
		return false, why, nil
	}
	if c.refused(c.id(cand.bundle.Version)) || c.deps.Clock.Now().Sub(cand.ready) < 0 {
		return false, cand.why, nil
	}
	c.install(cand, nil)
	return true, "", nil
}

func (c *Credential) note(t audit.Type, v providers.Version, code string, detail map[string]string) {
	c.deps.Audit.Note(audit.Event{Type: t, Client: c.cfg.Client, Version: string(v), Code: code, Detail: detail})
}
