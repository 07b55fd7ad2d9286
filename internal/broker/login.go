package broker

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"sync"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
)

const loginPatience = 10 * time.Minute

// logins are those that are under way: at most one a client, in memory alone.
type logins struct {
	mu sync.Mutex
	m  map[string]pendingLogin // by client
}

type pendingLogin struct {
	oidc.Authorization
	issuer *oidc.Client
	until  clock.Reading
}

// StartLogin begins a person's login: it gives the URL of the consent page. A
// new one takes the place of one that is under way.
func (b *Broker) StartLogin(ctx context.Context, name, redirect string) (client.Login, error) {
	cl, err := b.loginClient(name)
	if err != nil {
		return client.Login{}, err
	}
	redirect, ok := cl.issuer.Redirect(redirect)
	if !ok {
		return client.Login{}, &Error{Code: client.InvalidRequest, Detail: "the redirect_uri is not the client's; on loopback the port alone may differ, if redirect_uri has none"}
	}
	live, err := cl.cred.Bundle(ctx)
	if err != nil {
		return client.Login{}, explain(err)
	}
	a := oidc.Authorization{RedirectURI: redirect, State: rand.Text(), Verifier: newVerifier(), Scope: cl.cfg.Default.Scope}
	page, err := cl.issuer.AuthorizeURL(ctx, oidc.Material(live.Fields), a)
	if err != nil {
		a.Verifier.Wipe()
		return client.Login{}, &Error{Code: client.IssuerProtocolError, Detail: err.Error(), Err: err}
	}
	now := b.o.Clock.Now()
	b.logins.mu.Lock()
	defer b.logins.mu.Unlock()
	if b.logins.m == nil {
		b.logins.m = map[string]pendingLogin{}
	}
	b.logins.m[name] = pendingLogin{a, cl.issuer, now.Add(loginPatience)}
	return client.Login{URL: page, RedirectURI: redirect, State: a.State, Expires: now.Wall.Add(loginPatience).UTC()}, nil
}

// FinishLogin redeems what the login brought back, and serves its token.
func (b *Broker) FinishLogin(ctx context.Context, name string, code LoginCode) (client.Outcome, error) {
	cl, err := b.loginClient(name)
	if err != nil {
		return client.Outcome{}, err
	}
	b.logins.mu.Lock()
	p, ok := b.logins.m[name]
	match := ok && p.State == code.State
	if match {
		delete(b.logins.m, name) // whatever comes of it: state and code can be used once
	}
	b.logins.mu.Unlock()
	switch {
	case !match:
		return client.Outcome{}, &Error{Code: client.InvalidRequest, Detail: "this login was not begun here, or another one has taken its place: begin again with broker login " + name}
	case p.until.Until(b.o.Clock.Now()) <= 0 || p.issuer != cl.issuer:
		return client.Outcome{}, &Error{Code: client.InvalidRequest, Detail: "the login took too long, or the configuration has changed meanwhile: begin again with broker login " + name}
	case code.Issuer != "" && cl.cfg.Issuer.Issuer != "" && code.Issuer != cl.cfg.Issuer.Issuer:
		return client.Outcome{}, &Error{Code: client.InvalidRequest, Detail: "the code comes from another issuer than the one that is configured (RFC 9207): begin again, and look at the address of the consent page"}
	}
	m, err := cl.cred.Login(ctx, p.Authorization, code.Code)
	if err != nil {
		return client.Outcome{}, explain(err)
	}
	e, err := cl.entry(cl.cfg.Default, b.o.Clock.Now())
	if err != nil {
		return client.Outcome{}, err
	}
	b.install(e, newHeld(e, m.Token, m.Live))
	b.o.Audit.Note(audit.Event{Type: audit.BundleInstalled, Client: name, Version: string(m.Live.Version), Code: "login",
		Detail: map[string]string{"generation": fmt.Sprint(cl.cred.Status().Login.Generation)}})
	out := client.Outcome{Version: string(m.Live.Version), Reason: "the login is stored in the secrets manager, and its token is served"}
	if s := cl.cred.Status().Login; s.Pending {
		out.Reason = "the login is sealed on this host, and its token is served; the secrets manager has not taken it yet: " + s.Reason
	}
	if m.Token.Narrowed {
		out.Reason += fmt.Sprintf("; the scope %q was granted where %q was asked for", m.Token.Scope, p.Scope)
	}
	return out, nil
}

func (b *Broker) loginClient(name string) (*cachedClient, error) {
	cl := b.clients.Load().byName[name]
	if cl == nil {
		return nil, noClient(name)
	}
	if cl.cfg.Rotation.Refresh == nil {
		return nil, &Error{Code: client.NotFound, Detail: name + " needs no login: its grant is not authorization_code"}
	}
	return cl, nil
}

// newVerifier makes 43 characters of 256 random bits (RFC 7636 §4.1).
func newVerifier() secret.Secret {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // it does not fail
	defer clear(b)
	return secret.New(base64.RawURLEncoding.AppendEncode(nil, b))
}
