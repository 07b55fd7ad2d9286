package rotation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/durable"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

const pushTimeout = 10 * time.Second

// refresh gets a token with the refresh token (RFC 6749 §6). The caller has
// the minting turn.
//
// What a kill costs, step by step: before the request, nothing; until the
// answer is sealed, perhaps the login, since the issuer may have replaced the
// token (at the next start the old one is tried once); after that, nothing.
func (c *Credential) refresh(ctx context.Context, live *Live, r oidc.Request) (oidc.Token, error) {
	if err := c.openLogin(ctx, c.login); err != nil {
		return oidc.Token{}, err
	}
	c.lookAgain(ctx)
	if err := c.loginRequired(); err != nil {
		return oidc.Token{}, err
	}
	if err := c.loginKey(ctx, c.login); err != nil {
		return oidc.Token{}, err
	}
	now := c.deps.Clock.Now()
	if refused := c.allowed(now, live); refused != nil {
		return oidc.Token{}, refused
	}
	if err := c.recorded(c.ledger.intendLogin(c.login.id(), now.Wall)); err != nil {
		return oidc.Token{}, err
	}
	// A daemon that stops waits for the answer: it may hold the only refresh
	// token that is valid.
	ctx = context.WithoutCancel(ctx)
	call, cancel := context.WithTimeout(ctx, mintTimeout)
	defer cancel()
	m := oidc.Material(maps.Clone(live.Fields))
	m[fieldToken] = c.login.token
	c.deps.Uses.Add(1)
	t, err := c.deps.Issuer.Mint(call, m, r)
	c.deps.Uses.Add(1)
	now = c.deps.Clock.Now()
	// A token that fails its check may have a good refresh token beside it.
	if t.Refresh.Empty() || t.Refresh.Equal(c.login.token) {
		t.Refresh.Wipe() // the old one stays (RFC 6749 §6)
	} else {
		c.keepLogin(ctx, t.Refresh)
	}
	t.Refresh = secret.Secret{}
	if err == nil {
		c.succeeded(live, r, t)
		return t, nil
	}
	// The grant of another client is refused in the same words (RFC 6749 §5.2):
	// a candidate does not end the login that the current bundle lives by.
	if current := c.Current(); oidc.KindOf(err) == oidc.InvalidGrant && (current == nil || current.id == live.id) {
		return oidc.Token{}, c.loginEnded(now, err)
	}
	return oidc.Token{}, c.failed(now, live, r, err)
}

// keepLogin makes a new refresh token durable before anybody gets the access
// token that came with it.
func (c *Credential) keepLogin(ctx context.Context, fresh secret.Secret) {
	l := c.login
	l.token.Wipe()
	l.token, l.pending, l.reason = fresh, true, ""
	for l.gen++; ; l.gen++ { // past what was refused: a person may have gone back to an old version
		if _, refused := c.ledger.refusal(l.id()); !refused {
			break
		}
	}
	c.showLogin()
	sealed := l.seal()
	_ = c.recorded(sealed)
	if l.manager.until.Until(c.deps.Clock.Now()) <= 0 || sealed != nil {
		_ = c.pushLogin(ctx, l)
	}
	if l.pending && sealed != nil {
		c.note(audit.LoginRequired, "", "not_durable", map[string]string{"alarm": "the new refresh token could be written neither to the state directory nor to the secrets manager: " +
			"if the daemon ends now, somebody has to log in again"})
	}
	l.publish("")
}

// loginRequired says why a person has to act; nil: nobody has.
func (c *Credential) loginRequired() error {
	l := c.login
	reason, code := l.reason, "none"
	if f, ok := c.ledger.refusal(l.id()); ok && !l.token.Empty() {
		code = f.Code
		reason = fmt.Sprintf("the issuer ended the login on %s (%s): consent was withdrawn, or the refresh token ran out", f.At.UTC().Format(time.RFC3339), f.Code)
		switch f.Code {
		case "interrupted":
			reason = "the daemon was killed twice while it used the refresh token, which the issuer may have replaced"
		case codeRevoked:
			reason = "an administrator ended the login on " + f.At.UTC().Format(time.RFC3339)
		}
	}
	if reason == "" {
		return nil
	}
	reason += ": run broker login " + c.cfg.Client
	if code == "interrupted" {
		reason += ", or broker retry " + c.cfg.Client + " to try the token once more"
	}
	l.publish(reason)
	return &Error{Kind: LoginRequired, Code: code, Detail: reason, Client: c.cfg.Client}
}

// loginEnded is for a refresh token that the issuer refuses, which is no
// outage: nothing but a new login helps.
func (c *Credential) loginEnded(now clock.Reading, err error) error {
	code := "invalid_grant"
	var e *oidc.Error
	if errors.As(err, &e) && e.Code != "" {
		code = e.Code
	}
	if err := c.recorded(c.ledger.loginFailed(c.login.id(), now.Wall, code)); err != nil {
		return err
	}
	required := c.loginRequired()
	c.note(audit.LoginRequired, "", code, map[string]string{"alarm": required.Error()})
	return required
}

// settleLogin reads the refresh token if it has not been read, or if a person
// has to log in, which may have happened elsewhere; and writes what the manager
// did not take.
func (c *Credential) settleLogin(ctx context.Context) {
	if c.login == nil || c.ledger.minting.take(ctx) != nil {
		return
	}
	defer c.ledger.minting.give()
	l := c.login
	if c.openLogin(ctx, l) != nil {
		return
	}
	if c.loginRequired() != nil {
		if c.lookAgain(ctx); c.loginRequired() != nil {
			return
		}
	}
	if l.pending && l.manager.until.Until(c.deps.Clock.Now()) <= 0 {
		_ = c.pushLogin(ctx, l)
	}
	l.publish("")
}

// lookAgain sees whether somebody else has written the refresh token: another
// host that has taken the login over, or a person. A manager that is down
// changes nothing.
func (c *Credential) lookAgain(ctx context.Context) {
	l := c.login
	if l.pending || l.manager.until.Until(c.deps.Clock.Now()) > 0 { // a push finds it out
		return
	}
	ctx, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	c.deps.Uses.Add(1)
	b, err := c.deps.RefreshProvider.Fetch(ctx, c.cfg.Refresh.Ref, l.version)
	c.deps.Uses.Add(1)
	switch {
	case err == nil:
		defer b.Wipe()
		c.reconcile(ctx, b)
	case errors.Is(err, providers.ErrUnchanged):
		l.manager = trouble{}
	case providers.KindOf(err).Temporary():
		l.manager.fail(c.deps.Clock.Now(), err, 0)
	}
}

// reconcile decides between the token in hand and what somebody else has
// written: the newer one counts, if it is good, and another host's word always.
func (c *Credential) reconcile(ctx context.Context, b providers.Bundle) {
	l := c.login
	_, refused := c.ledger.refusal(l.id())
	if foreign(b, *c.cfg.Refresh) == "" && generation(b) < l.gen && !refused && !l.token.Empty() {
		l.version, l.pending = b.Version, true
		_ = c.pushLogin(ctx, l)
		return
	}
	l.take(b, *c.cfg.Refresh)
	c.showLogin()
	l.publish(l.reason)
}

// Login redeems the code that a person's login brought back (RFC 6749 §4.1.3)
// and stores the refresh token; this host owns it from then on.
func (c *Credential) Login(ctx context.Context, a oidc.Authorization, code secret.Secret) (Minted, error) {
	live, err := c.loaded(ctx)
	if err != nil {
		return Minted{}, err
	}
	if err := c.ledger.minting.take(ctx); err != nil {
		return Minted{}, err
	}
	defer c.ledger.minting.give()
	// The code can be used once: what could fail otherwise comes before it.
	l := c.login
	opened := l.opened
	l.opened, l.manager = false, trouble{}
	if err := c.openLogin(ctx, l); err != nil {
		l.opened = opened // the login that there is goes on
		return Minted{}, err
	}
	if err := c.loginKey(ctx, l); err != nil {
		return Minted{}, err
	}
	now := c.deps.Clock.Now()
	if refused := c.allowed(now, live); refused != nil {
		return Minted{}, refused
	}
	if err := c.recorded(c.ledger.intend(live.id, now.Wall)); err != nil {
		return Minted{}, err
	}
	ctx = context.WithoutCancel(ctx)
	call, cancel := context.WithTimeout(ctx, mintTimeout)
	defer cancel()
	c.deps.Uses.Add(1)
	t, err := c.deps.Issuer.Redeem(call, oidc.Material(live.Fields), a, code)
	c.deps.Uses.Add(1)
	now = c.deps.Clock.Now()
	if err == nil && t.Refresh.Empty() {
		t.Access.Wipe()
		err = &oidc.Error{Kind: oidc.Protocol, Message: "the issuer gave no refresh token, so that the login would end with this access token",
			Hint: "ask for one as the issuer wants it, as in scope: offline_access, or authorization_params: { prompt: consent }"}
	}
	if oidc.KindOf(err) == oidc.InvalidGrant {
		if err := c.recorded(c.ledger.forget()); err != nil {
			return Minted{}, err
		}
		return Minted{}, &Error{Kind: RequestRefused, Code: "invalid_grant", Err: err,
			Detail: "the issuer refuses the code: it can be used once, within a minute or so of the consent; begin again"}
	}
	if !t.Refresh.Empty() {
		c.keepLogin(ctx, t.Refresh)
		t.Refresh = secret.Secret{}
	}
	if err != nil {
		return Minted{}, c.failed(now, live, oidc.Request{Scope: a.Scope}, err)
	}
	c.succeeded(live, oidc.Request{Scope: a.Scope}, t)
	return Minted{t, live}, nil
}

// Authenticated calls f, which authenticates to the issuer with the current
// bundle for another purpose than a token: by the same rules, within the same
// budget.
func (c *Credential) Authenticated(ctx context.Context, f func(context.Context, oidc.Material) error) error {
	live, err := c.loaded(ctx)
	if err != nil {
		return err
	}
	if err := c.ledger.minting.take(ctx); err != nil {
		return err
	}
	defer c.ledger.minting.give()
	return c.authenticated(ctx, live, f)
}

// authenticated is Authenticated for somebody who has the minting turn. An
// error that is not about the client is f's own.
func (c *Credential) authenticated(ctx context.Context, live *Live, f func(context.Context, oidc.Material) error) error {
	now := c.deps.Clock.Now()
	if refused := c.allowed(now, live); refused != nil {
		return refused
	}
	if err := c.recorded(c.ledger.intend(live.id, now.Wall)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, mintTimeout)
	defer cancel()
	c.deps.Uses.Add(1)
	err := f(ctx, oidc.Material(live.Fields))
	c.deps.Uses.Add(1)
	if oidc.KindOf(err) == oidc.InvalidClient {
		return c.failed(c.deps.Clock.Now(), live, oidc.Request{}, err)
	}
	if err := c.recorded(c.ledger.forget()); err != nil {
		return err
	}
	return err
}

// Logout gives the refresh token to f, which revokes it, and uses it no more,
// also if the issuer has no way to revoke it; then f's error is returned. ended
// is false if there was no login, or it goes on.
func (c *Credential) Logout(ctx context.Context, f func(context.Context, oidc.Material, secret.Secret) error) (ended bool, err error) {
	live, err := c.loaded(ctx)
	if err != nil {
		return false, err
	}
	if err := c.ledger.minting.take(ctx); err != nil {
		return false, err
	}
	defer c.ledger.minting.give()
	if err := c.openLogin(ctx, c.login); err != nil {
		return false, err
	}
	if c.login.token.Empty() {
		return false, nil
	}
	err = c.authenticated(ctx, live, func(ctx context.Context, m oidc.Material) error { return f(ctx, m, c.login.token) })
	var e *oidc.Error
	if cannot := errors.As(err, &e) && e.Kind == oidc.Refused && e.Status == 0; err != nil && !cannot {
		return false, err // the next attempt needs the token
	}
	if lost := c.recorded(c.ledger.loginFailed(c.login.id(), c.deps.Clock.Now().Wall, codeRevoked)); lost != nil {
		return false, lost
	}
	_ = c.loginRequired() // publishes it
	c.login.token.Wipe()
	c.login.token, c.login.reason = secret.Secret{}, "an administrator ended the login"
	c.showLogin()
	_ = c.pushLogin(ctx, c.login) // without it; if the manager is down, what is recorded holds
	_ = durable.Remove(c.login.file)
	return true, err
}
