package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// A Minted is a token and the bundle that it was minted with.
type Minted struct {
	Token oidc.Token
	Live  *Live
}

// A Kind says why there is no token.
type Kind string

// The kinds. The broker maps them to what a consumer sees.
const (
	Rejected        Kind = "rejected"         // the issuer refused this version of the secret
	RequestRefused  Kind = "request_refused"  // the issuer refused this scope or audience
	Protocol        Kind = "protocol"         // the issuer's answer is no token
	Unavailable     Kind = "unavailable"      // the issuer does not answer, or asks to wait
	NoBundle        Kind = "no_bundle"        // the secrets manager has given nothing usable yet
	StateUnwritable Kind = "state_unwritable" // the attempt could not be recorded first
	LoginRequired   Kind = "login_required"   // a person has to log in: the refresh token is missing or ended
)

// An Error is why there is no token. Detail says what to do; RetryAfter is
// when the next attempt is due, 0 if somebody has to act first.
type Error struct {
	Kind       Kind
	Code       string // the issuer's or the manager's error code, if it gave one
	Detail     string
	RetryAfter time.Duration
	Err        error

	Client string // LoginRequired: whom somebody has to log in for

	fresh bool // the issuer said so just now: a newer version may be there
}

func (e *Error) Error() string { return e.Detail }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Mint gets a token with the current bundle. If the issuer refuses the bundle,
// the secrets manager is asked once for a newer one, which is tried at once; or
// else for the one that worked last, of which there may be a sealed copy.
// Errors are of type *Error, or ctx's.
func (c *Credential) Mint(ctx context.Context, r oidc.Request) (Minted, error) {
	live, err := c.loaded(ctx)
	if err != nil {
		return Minted{}, err
	}
	t, err := c.mint(ctx, live, r)
	var e *Error
	if err == nil || !errors.As(err, &e) || e.Kind != Rejected {
		return Minted{t, live}, err
	}
	if e.fresh {
		if down := c.Check(ctx); down != nil && !outage(down) {
			return Minted{}, err
		}
	}
	if c.Current() == live && !c.fallBack(ctx, live) {
		return Minted{}, err
	}
	live = c.Current()
	if live.Proof != nil && r == c.cfg.Default {
		return Minted{*live.Proof, live}, nil
	}
	t, err = c.mint(ctx, live, r)
	return Minted{t, live}, err
}

// Sign makes a JWT for one user, where the broker is the issuer. Errors are as
// of Mint.
func (c *Credential) Sign(ctx context.Context, u oidc.User) (Minted, error) {
	live, err := c.loaded(ctx)
	if err != nil {
		return Minted{}, err
	}
	t, err := c.sign(live, u)
	return Minted{t, live}, err
}

func (c *Credential) sign(live *Live, u oidc.User) (oidc.Token, error) {
	t, err := c.deps.Issuer.Sign(oidc.Material(live.Fields), u)
	if err != nil {
		return oidc.Token{}, &Error{Kind: RequestRefused, Detail: err.Error(), Err: err}
	}
	return t, nil
}

// Bundle gives the current bundle, for those who need no token. Errors are as
// of Mint.
func (c *Credential) Bundle(ctx context.Context) (*Live, error) { return c.loaded(ctx) }

// loaded gives the current bundle, reading it if this is the first need.
func (c *Credential) loaded(ctx context.Context) (*Live, error) {
	now := c.deps.Clock.Now()
	live := c.Current()
	if live == nil {
		c.mu.Lock()
		err, wait := c.provider.err, c.provider.until.Until(now)
		c.mu.Unlock()
		if err == nil || wait <= 0 {
			err = c.checkFirst(ctx)
		}
		if live = c.Current(); live == nil {
			return nil, c.noBundle(err)
		}
	}
	if err := c.withheld(now); err != nil {
		return nil, err
	}
	if !live.Expires.IsZero() && !now.Wall.Before(live.Expires) {
		return nil, &Error{Kind: NoBundle, Code: string(providers.Expired),
			Detail: fmt.Sprintf("version %s of the secret expired at %s: store a new one", live.Version, live.Expires.UTC().Format(time.RFC3339))}
	}
	return live, nil
}

func (c *Credential) noBundle(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := &Error{Kind: NoBundle, Err: err, RetryAfter: max(time.Second, c.provider.until.Until(c.deps.Clock.Now()))}
	switch {
	case c.provider.err != nil:
		e.Code, e.Detail = string(providers.KindOf(c.provider.err)), "the secrets manager gave no credentials: "+c.provider.err.Error()
	case c.candidate != nil && c.candidate.why != "":
		e.Detail = fmt.Sprintf("version %s of the secret cannot be used: %s", c.candidate.bundle.Version, c.candidate.why)
	default:
		e.Detail = "the secrets manager has not answered yet"
	}
	return e
}

func (c *Credential) mint(ctx context.Context, live *Live, r oidc.Request) (oidc.Token, error) {
	if c.deps.Issuer == nil {
		return oidc.Token{}, &Error{Kind: RequestRefused, Detail: "this client has an API key and no issuer: ask for headers or api-key"}
	}
	if err := c.ledger.minting.take(ctx); err != nil {
		return oidc.Token{}, err
	}
	defer c.ledger.minting.give()
	return c.attempt(ctx, live, r)
}

// attempt makes one request to the issuer, if the rules allow one: not with a
// refused version, not beyond the budget, not before the backoff is over. The
// caller has the minting turn.
func (c *Credential) attempt(ctx context.Context, live *Live, r oidc.Request) (oidc.Token, error) {
	switch {
	case c.deps.Issuer.Local():
		t, err := c.sign(live, oidc.User{})
		if err == nil {
			c.minted(live, r, t)
		}
		return t, err
	case c.login != nil:
		return c.refresh(ctx, live, r)
	}
	now := c.deps.Clock.Now()
	if refused := c.allowed(now, live); refused != nil {
		return oidc.Token{}, refused
	}
	if !c.ledger.hasWorked(live.id) {
		// A process that dies in its first attempt must not spend it twice.
		if err := c.recorded(c.ledger.intend(live.id, now.Wall)); err != nil {
			return oidc.Token{}, err
		}
	}
	call, cancel := context.WithTimeout(ctx, mintTimeout)
	defer cancel()
	c.deps.Uses.Add(1)
	t, err := c.deps.Issuer.Mint(call, oidc.Material(live.Fields), r)
	c.deps.Uses.Add(1)
	now = c.deps.Clock.Now()
	if err == nil {
		c.succeeded(live, r, t)
		return t, nil
	}
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
		// The daemon stops: whether the issuer has judged is not known, and the
		// intent stays for the next start.
		return oidc.Token{}, ctx.Err()
	}
	return oidc.Token{}, c.failed(now, live, r, err)
}

// succeeded notes that live has authenticated.
func (c *Credential) succeeded(live *Live, r oidc.Request, t oidc.Token) {
	c.mu.Lock()
	c.issuer, c.aside = trouble{}, trouble{}
	c.mu.Unlock()
	// If this cannot be written, the intent stays on disk: that costs a part of
	// the budget after a restart, and no token now.
	_ = c.recorded(c.ledger.succeeded(live.id))
	if current := c.Current(); current != nil && current.id == live.id {
		_ = c.recorded(c.ledger.serves(live.id))
		if c.unkept(live) {
			signal(c.unsealed)
		}
	}
	c.minted(live, r, t)
}

func (c *Credential) minted(live *Live, r oidc.Request, t oidc.Token) {
	e := audit.Event{Type: audit.TokenMinted, Client: c.cfg.Client, Version: string(live.Version), Fingerprint: t.Fingerprint,
		JTI: t.JTI, Scope: t.Scope, Audience: r.Audience + r.Resource, Expires: t.Expires.Wall}
	if t.Narrowed {
		e.Code, e.Detail = "narrowed", map[string]string{"asked": r.Scope}
	}
	if c.login != nil {
		e.Detail = map[string]string{"login": fmt.Sprint(c.login.gen)}
	}
	c.deps.Audit.Note(e)
}

// allowed says why no attempt may be made now.
func (c *Credential) allowed(now clock.Reading, live *Live) *Error {
	if f, ok := c.ledger.refusal(live.id); ok {
		return c.refusedError(live, f)
	}
	b := share(c.cfg.Failures, c.cfg.Hosts)
	if live.trial { // one failure is kept for what is stored
		b.limit = max(1, b.limit-1)
	}
	if at := c.ledger.exhausted(now.Wall, b, live.id); !at.IsZero() {
		return &Error{Kind: Rejected, Code: "budget", RetryAfter: at.Sub(now.Wall), Detail: fmt.Sprintf(
			"%d authentications failed within %s; to avoid a lock-out the next attempt is at %s, or after broker retry %s", b.limit, b.within, at.UTC().Format(time.RFC3339), c.cfg.Client)}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if current := c.Current(); current != nil && current.id != live.id {
		if wait := c.aside.until.Until(now); c.aside.err != nil && wait > 0 {
			return issuerError(c.aside.err, wait)
		}
	}
	if c.issuer.err != nil {
		if wait := c.issuer.until.Until(now); wait > 0 {
			return issuerError(c.issuer.err, wait)
		}
	}
	return nil
}

func (c *Credential) refusedError(live *Live, f refusal) *Error {
	return &Error{Kind: Rejected, Code: f.Code, Detail: fmt.Sprintf("the issuer refused version %s of the secret on %s (%s): %s",
		live.Version, f.At.UTC().Format(time.RFC3339), f.Code, c.remedy())}
}

// remedy is what to do about a refused version.
func (c *Credential) remedy() string {
	if slices.Contains(c.cfg.Required, "private_key") {
		return fmt.Sprintf("see that the issuer has the key that broker keys show %s prints, and takes the assertion's audience; then run broker retry %[1]s", c.cfg.Client)
	}
	return fmt.Sprintf("store a new version, or, if the issuer was wrong, run broker retry %s", c.cfg.Client)
}

// recorded notes how a write of the ledger went.
func (c *Credential) recorded(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.state = trouble{}
		return nil
	}
	e := &Error{Kind: StateUnwritable, RetryAfter: longestWait, Err: err,
		Detail: "the state directory cannot be written, so that no authentication is attempted: " + err.Error()}
	c.state.fail(c.deps.Clock.Now(), e, 0)
	return e
}

// failed classifies a failed attempt, once.
func (c *Credential) failed(now clock.Reading, live *Live, r oidc.Request, err error) error {
	var e *oidc.Error
	if !errors.As(err, &e) {
		e = &oidc.Error{Kind: oidc.Unavailable, Message: "the issuer did not answer", Err: err}
	}
	// A refused grant is an assertion's (RFC 7523 §3.1): the key is not taken.
	if e.Kind == oidc.InvalidClient || e.Kind == oidc.InvalidGrant {
		if err := c.refuse(live, now, e.Code); err != nil {
			return err
		}
		c.note(audit.TokenRefused, live.Version, e.Code, live.alarm("the issuer refused this version of the secret"))
		refused := c.refusedError(live, refusal{now.Wall, e.Code})
		refused.fresh = true
		return refused
	}
	// The issuer did not judge the secret: the attempt is not counted.
	if err := c.recorded(c.ledger.forget()); err != nil {
		return err
	}
	current := c.Current()
	served := current == nil || current.id == live.id
	switch {
	case e.Kind == oidc.Refused && e.Status != 0 && !served && !live.trial:
		return c.unfit(live, e)
	case e.Kind == oidc.Refused && e.Status != 0:
		return &Error{Kind: RequestRefused, Code: e.Code, Err: err, Detail: fmt.Sprintf("%s (scope %q, audience %q)", e.Error(), r.Scope, r.Audience+r.Resource)}
	case e.Kind == oidc.Refused && !served: // of a candidate, which does not stop what serves
		return &Error{Kind: Rejected, Code: "unusable", Err: err, Detail: e.Error(), RetryAfter: longestWait}
	}
	c.mu.Lock()
	// What the issuer does not take of another bundle says nothing of the one
	// that serves.
	t := &c.issuer
	if !served {
		t = &c.aside
	}
	again := t.err != nil
	t.fail(now, e, e.RetryAfter)
	wait := t.until.Until(now)
	c.mu.Unlock()
	if !again {
		c.note(audit.TokenRefused, live.Version, string(e.Kind), map[string]string{"error": e.Error()})
	}
	return issuerError(e, wait)
}

// refuse makes a refusal durable.
func (c *Credential) refuse(live *Live, now clock.Reading, code string) error {
	if live.Version == notStored {
		return c.recorded(c.ledger.tried(live.id, now.Wall))
	}
	return c.recorded(c.ledger.failed(live.id, now.Wall, code))
}

// unfit is for a candidate that the issuer refuses for another reason than its
// authentication, as a client that may not do what the one before it might: it
// is not tried again.
func (c *Credential) unfit(live *Live, e *oidc.Error) error {
	if err := c.refuse(live, c.deps.Clock.Now(), e.Code); err != nil {
		return err
	}
	c.note(audit.TokenRefused, live.Version, e.Code, live.alarm("the issuer refused this version of the secret: "+e.Error()))
	return &Error{Kind: Rejected, Code: e.Code, Err: e, Detail: e.Error()}
}

func issuerError(err error, wait time.Duration) *Error {
	kind := map[oidc.Kind]Kind{oidc.Protocol: Protocol, oidc.Refused: Rejected}[oidc.KindOf(err)] // refused: unusable, and so not sent
	if kind == "" {
		kind = Unavailable
	}
	return &Error{Kind: kind, Detail: err.Error(), RetryAfter: max(wait, time.Second), Err: err}
}

// Retry forgets refusals and failures, on an administrator's word, and looks
// again.
func (c *Credential) Retry() error {
	err := c.recorded(c.ledger.pardon())
	c.mu.Lock()
	c.issuer, c.aside, c.provider = trouble{}, trouble{}, trouble{}
	c.mu.Unlock()
	c.Wake()
	return err
}
