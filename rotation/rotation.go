// Package rotation keeps one live credential: its version, its budget of
// failed authentications, and how the next version is found, proved and
// installed.
//
// A bundle moves in one direction: read, candidate, current, retired. What the
// secrets manager has, and does not serve, is the candidate; the first line
// that fits says what becomes of it now. Whatever it is, what serves goes on
// serving. Credential.rules is this table.
//
//	if the candidate                          then it is
//	lacks a field                             held: an alarm, once
//	was proved before it was stored           installed with that proof
//	is the first of this process              installed: the first mint proves it, or falls back
//	was refused                               held, until another version or broker retry
//	is settling, or other hosts have a turn   held until then
//	cannot be proved, and nobody accepts that held, until broker rotate --accept
//	cannot be proved                          installed
//	is anything else                          proved: installed with its proof, or refused for good,
//	                                          or held until the issuer can be asked
//
// and what becomes of the current one:
//
//	if                                        then
//	the issuer refuses it                     the manager is asked for a newer one at once; if there is
//	                                          none, the version that worked last serves
//	an administrator pins a version           that is read, proved and installed; newer ones are not read
//	the manager is down at the start          its sealed copy serves, if there is one that is young enough
//	the manager says that it has ended        it serves no more from that moment
//	another is installed                      it is wiped when the last token that it minted is gone
//
// A client that a person logs in (authorization_code) has a refresh token
// beside its bundle, with a life of its own:
//
//	issuer's answer ──> sealed and synced here ──> in the secrets manager ──> used
//
// The newest generation counts, wherever it is; see login.go.
package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/scan"
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
	login    *login // nil: the client needs none
	place    string // what is in front of a version in the ledger
	current  atomic.Pointer[Live]
	checking turn // reading from the secrets manager
	wake     chan struct{}
	replan   chan struct{} // the time of the next look has changed
	unsealed chan struct{} // what serves may have to be kept

	mu        sync.Mutex // the fields below; never held over I/O
	candidate *candidate
	provider  trouble
	back      trouble // of going back to the version that worked last
	issuer    trouble
	aside     trouble // of the issuer, with what does not serve
	state     trouble // of the state directory
	checked   clock.Reading
	woken     clock.Reading        // when WakeWithin wants the next look; zero: it does not
	brown     brown                // the sealed copy of an outage serves
	probes    map[versionID]probed // of what serves, and of the candidate
	proven    *proven              // before it was stored; nil: nothing
	kept      kept                 // the sealed copy
}

// Config says what the credential is and how it is kept.
type Config struct {
	Client string         // name of the client, also of its state file
	Spec   providers.Spec // where the bundle is
	// Required fields, without which a bundle is not accepted.
	Required []string
	// Proving are those of them that the issuer needs: with these a bundle that
	// is not complete yet can be tried. Nil: all.
	Proving []string
	// Prove says how a new bundle is proved. Zero: ProveMint.
	Prove Prove
	// AcceptUnproved installs what cannot be proved (ProveNone).
	AcceptUnproved bool
	// Refresh is where the client's refresh token is. Nil: it needs none.
	Refresh *Refresh
	// Default is the token request that proves a bundle.
	Default oidc.Request
	// Poll is the time between looks at the secrets manager. Zero: 5 minutes.
	Poll time.Duration
	// Settle is for how long a gathered bundle must stay the same. Zero: 30 s.
	Settle time.Duration
	// Failures is the budget of failed authentications an hour. Zero: 3.
	Failures int
	// Hosts is how many hosts share that budget, and take turns at proving a
	// new version. Zero: 1.
	Hosts int
	// OneSecret says that a new secret ends the old one at the issuer: then a
	// new version is proved at once, on every host.
	OneSecret bool
	// MaxAge is how old a version may become before an alarm says so; at 80 %
	// of it an event does. Zero: no limit.
	MaxAge time.Duration
	// KeepFor is how long after the secrets manager's last good answer a new
	// process may serve from Deps.Keeper. Zero: 24 hours.
	KeepFor time.Duration
	// Delay spreads the first reads of many clients. Zero: none.
	Delay time.Duration
}

// Prove is a way to prove a bundle.
type Prove string

// The ways. A profile states the one that its issuer allows.
const (
	ProveMint    Prove = "mint"    // get a token with it
	ProveRefresh Prove = "refresh" // the same, with the refresh token
	ProveProbe   Prove = "probe"   // a harmless request to the API, with what it needs
	ProveNone    Prove = "none"    // it cannot be proved: an administrator accepts it
)

// Deps are what a Credential works with.
type Deps struct {
	Provider     providers.Provider
	ProviderName string
	// RefreshProvider holds Config.Refresh, and can write it.
	RefreshProvider providers.Provider
	// Keeper seals the bundle that serves on this host, for a start while the
	// secrets manager is down. Nil: nothing is kept.
	Keeper Keeper
	// Prober asks the API. Nil: it cannot be asked.
	Prober     Prober
	Issuer     *oidc.Client // nil: an API key needs no issuer
	IssuerName string       // tells issuers apart in the ledger: the token endpoint
	Audit      *audit.Log
	Clock      clock.Clock
	Ledger     *Ledger // the client's, whatever its configuration
	// Uses counts reads of secrets and their uses at issuers, before and after
	// each: whoever cleans memory up looks whether it has changed.
	Uses *atomic.Uint64
	// Known learns of refresh tokens, and of what is replaced before it is
	// wiped. Nil: nobody scans.
	Known *scan.Index
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

	id    versionID
	trial bool // a refusal is no alarm: see Try and StillTaken
}

// A candidate is a bundle that was read and does not serve yet.
type candidate struct {
	bundle providers.Bundle
	ready  clock.Reading // when it has settled, and it is this host's turn
	turn   bool          // ready is for the turn alone
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
	calm            = 30 * time.Second // between looks while there is trouble and a bundle serves
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
	if cfg.KeepFor == 0 {
		cfg.KeepFor = defaultKeepFor
	}
	if cfg.Prove == "" {
		cfg.Prove = ProveMint
	}
	switch cfg.Prove {
	case ProveMint, ProveRefresh:
		if deps.Issuer == nil || deps.Issuer.Local() { // whom nobody contradicts
			cfg.Prove = ProveNone
		}
	case ProveProbe:
		if deps.Prober == nil {
			cfg.Prove = ProveNone
		}
	case ProveNone:
	default:
		return nil, fmt.Errorf("prove: %q is not known: mint, refresh, probe or none", cfg.Prove)
	}
	place, err := json.Marshal([]any{deps.IssuerName, deps.ProviderName, cfg.Spec})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(place)
	c := &Credential{cfg: cfg, deps: deps, ledger: deps.Ledger, place: hex.EncodeToString(sum[:4]) + ":",
		checking: newTurn(),
		wake:     make(chan struct{}, 1), replan: make(chan struct{}, 1), unsealed: make(chan struct{}, 1)}
	if cfg.Refresh != nil {
		r := *cfg.Refresh
		r.Issuer = deps.IssuerName
		c.cfg.Refresh = &r
		c.login = deps.Ledger.loginOf(cfg.Client, r)
	}
	return c, nil
}

// id is a version's name in the ledger.
func (c *Credential) id(v providers.Version) versionID { return versionID(c.place + string(v)) }

// refused says whether the issuer has refused a version.
func (c *Credential) refused(v versionID) bool { _, ok := c.ledger.refusal(v); return ok }

// Current is the bundle that serves now; nil before the first read.
func (c *Credential) Current() *Live { return c.current.Load() }

// Wake makes Run look at the secrets manager now.
func (c *Credential) Wake() { signal(c.wake) }

// WakeWithin is Wake at a random moment within d: many at once would ask more
// than a secrets manager answers.
func (c *Credential) WakeWithin(d time.Duration) {
	at := c.deps.Clock.Now().Add(rand.N(d + 1)) // #nosec G404 -- spreads load
	c.mu.Lock()
	c.woken = at
	c.mu.Unlock()
	signal(c.replan)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run looks for new versions until ctx ends; it returns nil then.
func (c *Credential) Run(ctx context.Context) error {
	c.ledger.keeper.Store(c)
	wait := c.cfg.Delay
	for {
		due := time.Now().Add(wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-c.replan:
			timer.Stop()
			wait = c.next()
			continue
		case <-c.unsealed:
			timer.Stop()
			c.keep(ctx)
			wait = time.Until(due)
			continue
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
	withheld := c.withheld(now) != nil
	c.mu.Lock()
	defer c.mu.Unlock()
	wait := jitter(c.cfg.Poll)
	live := c.current.Load()
	hurry := live == nil || withheld || c.refused(live.id) // people are waiting
	if hurry {
		wait = min(wait, jitter(calm))
	}
	if !c.woken.IsZero() {
		wait = min(wait, max(0, c.woken.Until(now)))
	}
	if c.provider.err != nil {
		again := max(0, c.provider.until.Until(now))
		if !hurry {
			again = max(again, jitter(calm))
		}
		wait = min(wait, again)
		if live == nil {
			return wait
		}
	}
	if c.candidate != nil && !c.candidate.next.IsZero() {
		wait = min(wait, max(0, c.candidate.next.Until(now)))
	}
	if c.login != nil && c.login.status.Load().Pending {
		wait = min(wait, jitter(longestWait))
	}
	return max(wait, shortestWait)
}

// jitter spreads d by a tenth to either side.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1) // #nosec G404 -- spreads load, guards nothing
}

// Check makes one round: read, settle, prove, install, and see to the refresh
// token. A new version that is not installed is no error; what the secrets
// manager says is.
func (c *Credential) Check(ctx context.Context) error {
	if err := c.checking.take(ctx); err != nil {
		return err
	}
	defer c.checking.give()
	return c.check(ctx)
}

// checkFirst is Check for somebody who needs any bundle: it may be there when
// the turn comes.
func (c *Credential) checkFirst(ctx context.Context) error {
	if err := c.checking.take(ctx); err != nil {
		return err
	}
	defer c.checking.give()
	if c.Current() != nil {
		return nil
	}
	return c.check(ctx)
}

// check is for somebody who has the turn.
func (c *Credential) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := c.read(ctx)
	if err == nil {
		err = c.advance(ctx)
	}
	c.settleLogin(ctx)
	c.probeOnce(ctx)
	c.forgetOldProof()
	c.noteAge()
	if live := c.Current(); live != nil && c.unkept(live) {
		signal(c.unsealed)
	}
	return err
}

// read asks the secrets manager for a version other than the one in hand.
func (c *Credential) read(ctx context.Context) error {
	live := c.current.Load()
	var have providers.Version
	c.mu.Lock()
	cand := c.candidate
	c.woken = clock.Reading{}
	c.mu.Unlock()
	switch {
	case cand != nil:
		have = cand.bundle.Version
	case live != nil && live.id == c.id(live.Version): // else it is from another place, with numbers of its own
		have = live.Version
	}
	c.deps.Uses.Add(1)
	call, cancel := c.patience(ctx)
	b, err := providers.Load(call, c.deps.Provider, c.spec(), have)
	cancel()
	c.deps.Uses.Add(1)
	now := c.deps.Clock.Now()
	if err != nil && !errors.Is(err, providers.ErrUnchanged) {
		if live == nil {
			c.brownOut(ctx, err) // before anybody can see that there is nothing else
		}
		c.readFailed(now, err)
		c.withdraw(ctx, err)
		return err
	}
	c.mu.Lock()
	recovered, wasBrown := c.provider.err != nil, c.brown.on()
	c.provider, c.checked, c.brown = trouble{}, now, brown{}
	if err == nil {
		if live != nil && c.id(b.Version) == live.id {
			c.candidate = nil // the manager went back to what serves
			b.Wipe()
		} else {
			c.candidate = &candidate{bundle: b, ready: now}
			switch {
			case live == nil:
			case c.cfg.Spec.Gathered():
				c.candidate.ready = now.Add(c.cfg.Settle)
			case c.cfg.Hosts > 1 && !c.cfg.OneSecret:
				c.candidate.ready, c.candidate.turn = now.Add(rand.N(turns(c.cfg.Hosts))), true // #nosec G404 -- spreads load
			}
		}
	}
	c.mu.Unlock()
	if err == nil || recovered {
		c.note(audit.ProviderRead, b.Version, "", nil)
	}
	if wasBrown {
		c.note(audit.BundleKept, live.Version, "recovered", nil)
	}
	return nil
}

// spec is where the version is that is wanted: the pinned one, else the newest.
func (c *Credential) spec() providers.Spec {
	if pinned, ok := c.cfg.Spec.At(c.ledger.pinned(c.place)); ok {
		return pinned
	}
	return c.cfg.Spec
}

// turns is how long the hosts take to prove a new version one after another.
func turns(hosts int) time.Duration {
	return min(time.Duration(hosts)*30*time.Second, 10*time.Minute)
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

func (c *Credential) note(t audit.Type, v providers.Version, code string, detail map[string]string) {
	c.deps.Audit.Note(audit.Event{Type: t, Client: c.cfg.Client, Version: string(v), Code: code, Detail: detail})
}
