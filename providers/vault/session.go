package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// How often Vault is asked for a login that did not work, or did not last.
const (
	refusedPause = time.Minute // after a refused login, unless its files change
	reloginPause = time.Minute // between logins because a token died early
	renewPause   = time.Second // at least, between tries to renew
)

// A session is one token of Vault's. It is never changed, only replaced: a
// call may still be using it. The collector wipes the forgotten token.
type session struct {
	token     secret.Secret
	own       bool // from a login of ours, and can be revoked
	renewable bool
	from      clock.Reading // when it was asked for
	ttl       time.Duration // 0: no end that we know of
	full      time.Duration // the ttl that the login gave
	next      clock.Reading // when to renew it or to log in again
	stamp     string        // of the token file that it was read from
}

// lasting makes a copy of s with a new life.
func (s session) lasting(from clock.Reading, ttl time.Duration) *session {
	s.from, s.ttl = from, ttl
	s.next = from.Add(max(ttl*2/3, renewPause))
	return &s
}

// later makes a copy of s that is left alone for a while.
func (s session) later(now clock.Reading) *session {
	left := s.from.Add(s.ttl).Until(now)
	s.next = now.Add(max(left/4, renewPause))
	return &s
}

func (s *session) alive(now clock.Reading) bool {
	return s != nil && (s.ttl == 0 || s.from.Add(s.ttl).Until(now) > 0)
}

func (s *session) due(now clock.Reading) bool { return s.ttl != 0 && s.next.Until(now) <= 0 }

// A failure is what came of a login.
type failure struct {
	err     error // nil: it worked, or its caller gave up
	refused bool
	at      clock.Reading
	stamp   string // of the files that it read
}

// do sends a request with a token of the session. A token that Vault has ended
// is replaced, once; a denial by policy stands.
func (p *provider) do(ctx context.Context, path string, query url.Values, body []byte) (answer, error) {
	s, err := p.current(ctx)
	if err != nil {
		return answer{}, err
	}
	a, err := p.call(ctx, s.token, path, query, body)
	if err != nil || a.status != http.StatusForbidden || a.foreign || p.conf.Auth.Agent {
		return a, err
	}
	again, err := p.revive(ctx, s)
	if err != nil || again == nil {
		return a, err
	}
	return p.call(ctx, again.token, path, query, body)
}

// current gives a session that works as far as we know. Only who finds none
// waits for another's login.
func (p *provider) current(ctx context.Context) (*session, error) {
	if p.closed.Load() {
		return nil, closed()
	}
	if p.conf.Auth.Agent {
		return &session{}, nil
	}
	s, now := p.session.Load(), p.clk.Now()
	logins := p.logins.Load()
	if s.alive(now) {
		if !s.due(now) && !p.replaced(s) {
			return s, nil
		}
		select {
		case p.turn <- struct{}{}:
		default:
			return s, nil
		}
	} else if err := p.wait(ctx); err != nil {
		return nil, err
	}
	defer func() { <-p.turn }()
	if p.closed.Load() {
		return nil, closed()
	}
	if newer := p.session.Load(); newer != s && newer.alive(p.clk.Now()) {
		return newer, nil
	}
	if p.logins.Load() != logins && p.failure.err != nil {
		return nil, p.failure.err // of the login that we waited for
	}
	return p.refresh(ctx, s)
}

func (p *provider) wait(ctx context.Context) error {
	select {
	case p.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

// refresh renews s or logs in. While s lives, a failure to do either is no
// reason to stop using it. The caller has the turn.
func (p *provider) refresh(ctx context.Context, s *session) (*session, error) {
	now := p.clk.Now()
	if s.alive(now) && s.renewable && !p.replaced(s) {
		renewed, err := p.renew(ctx, s)
		if err != nil {
			renewed = s.later(now)
		}
		if renewed != nil {
			p.session.Store(renewed)
			return renewed, nil
		}
	}
	fresh, err := p.enter(ctx)
	if err != nil {
		if s.alive(p.clk.Now()) {
			fresh = s.later(now)
			p.session.Store(fresh)
			return fresh, nil
		}
		return nil, err
	}
	p.session.Store(fresh)
	return fresh, nil
}

// renew gives nil if Vault does not renew s any more, and an error if it could
// not answer. Near its longest life Vault renews a token for less and less:
// one that gets under half of what it had is not renewed again.
func (p *provider) renew(ctx context.Context, s *session) (*session, error) {
	from := p.clk.Now()
	a, err := p.call(ctx, s.token, "auth/token/renew-self", nil, []byte("{}"))
	defer clear(a.body)
	if err != nil {
		return nil, err
	}
	if !a.ok() {
		if e := refusal(a); e.Kind.Temporary() {
			return nil, e
		}
		return nil, nil
	}
	got, err := parseLogin(a.body)
	if err != nil {
		return nil, err
	}
	clear(got.token)
	renewed := s.lasting(from, got.ttl)
	renewed.renewable = got.renewable && got.ttl >= s.full/2
	return renewed, nil
}

// revive looks why Vault denied a call with s. It gives the session to try
// again with, or nil if the token is alive, and the denial is the policy's.
func (p *provider) revive(ctx context.Context, s *session) (*session, error) {
	if now := p.session.Load(); now != s && now != nil {
		return now, nil
	}
	a, err := p.call(ctx, s.token, "auth/token/lookup-self", nil, nil)
	clear(a.body)
	if err != nil || a.ok() {
		return nil, err
	}
	if a.status != http.StatusForbidden {
		return nil, refusal(a)
	}
	if err := p.wait(ctx); err != nil {
		return nil, err
	}
	defer func() { <-p.turn }()
	if now := p.session.Load(); now != s && now != nil {
		return now, nil
	}
	now := p.clk.Now()
	switch {
	case p.closed.Load():
		return nil, closed()
	case p.conf.Auth.TokenFile != "" && !p.replaced(s):
		return nil, fail(providers.LoginFailed, "Vault does not accept the token in token_file",
			"put a valid one there; a token without the default policy needs read on auth/token/lookup-self")
	case !p.relogin.IsZero() && now.Sub(p.relogin) < reloginPause:
		return nil, nil
	}
	p.relogin = now
	fresh, err := p.enter(ctx)
	if err != nil {
		p.session.CompareAndSwap(s, nil)
		return nil, err
	}
	p.session.Store(fresh)
	return fresh, nil
}

// enter logs in. A login that Vault refuses is not tried again for a while:
// it counts the attempts and locks out. The caller has the turn.
func (p *provider) enter(ctx context.Context) (*session, error) {
	now, stamp := p.clk.Now(), stampOf(p.conf.Auth.files())
	if f := p.failure; f.refused && f.stamp == stamp && now.Sub(f.at) < refusedPause {
		var e *providers.Error
		if errors.As(f.err, &e) {
			told := *e
			told.RetryAfter = refusedPause - now.Sub(f.at)
			return nil, &told
		}
	}
	p.failure = failure{at: now, stamp: stamp}
	s, err := p.logIn(ctx, stamp)
	p.logins.Add(1)
	if err != nil && ctx.Err() == nil {
		p.failure.err, p.failure.refused = err, providers.KindOf(err) == providers.LoginFailed
	}
	return s, err
}

// replaced says whether the token file has changed since s was read from it.
func (p *provider) replaced(s *session) bool {
	return p.conf.Auth.TokenFile != "" && s.stamp != stampOf(p.conf.Auth.files())
}

// stampOf changes when one of the files does.
func stampOf(files []string) string {
	var b strings.Builder
	for _, f := range files {
		fi, err := os.Stat(f)
		if err != nil {
			b.WriteString("absent;")
			continue
		}
		var inode uint64
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			inode = st.Ino
		}
		fmt.Fprintf(&b, "%d,%d,%d;", inode, fi.Size(), fi.ModTime().UnixNano())
	}
	return b.String()
}
