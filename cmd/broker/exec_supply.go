package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/redact"
	"credentialbroker/internal/scan"
)

// Rules of this file:
//   - a value is masked before it can be read;
//   - a file never holds an expired token, nor anything after a quarantine.

const (
	supplyLook  = 30 * time.Second // expiry, after a suspend too; clients without tokens
	supplyRetry = 5 * time.Second

	shortestWord = 12 // of a header, that may be a secret
)

// supply keeps the files of one command fresh.
type supply struct {
	client *client.Client
	name   string
	o      client.Options
	mask   *redact.Filter // nil: nothing is masked
	renew  chan<- struct{}
	lost   chan<- error

	keyOnly  bool // the client has no tokens
	files    map[string]*memoryFile
	contents map[string]string // what is in them; empty: removed
	expires  time.Time         // of the token; zero: there is none
	away     bool              // lost was told
	masked   []maskedValue
}

// The files, by the environment variable that names them, without _FILE.
const (
	envToken   = "CREDENTIAL_BROKER_TOKEN" // #nosec G101 -- a name
	envHeaders = "CREDENTIAL_BROKER_HEADERS"
	envKey     = "CREDENTIAL_BROKER_API_KEY" // #nosec G101 -- a name
)

func suppliedNames() []string { return []string{envToken, envHeaders, envKey} }

// maskedValue is masked as long as it is live.
type maskedValue struct {
	value string
	until time.Time // zero: for good
	forms [][]byte
}

// first gets the values for the first time. What waiting may mend is tried
// again until wait is over.
func (s *supply) first(ctx context.Context, wait time.Duration) error {
	for end := time.Now().Add(wait); ; {
		err := s.fetch(ctx)
		pause := pauseAfter(err)
		if pause == 0 || time.Now().Add(pause).After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// pauseAfter is when to ask again after err; zero: there is no use.
func pauseAfter(err error) time.Duration {
	var p *client.Problem
	switch {
	case err == nil, errors.Is(err, fs.ErrPermission), errors.Is(err, context.Canceled):
		return 0
	case !errors.As(err, &p): // no broker there
		return 200 * time.Millisecond
	case p.RetryAfter > 0:
		return time.Duration(p.RetryAfter) * time.Second
	case p.Status >= 500 && p.Code != client.CredentialsRejected:
		return time.Second
	}
	return 0
}

// fetch asks for everything once.
func (s *supply) fetch(ctx context.Context) error {
	who, err := s.client.Whoami(ctx)
	if err != nil {
		return err
	}
	withKey := slices.ContainsFunc(who.Clients, func(c client.WhoamiClient) bool {
		return c.Client == s.name && slices.Contains(c.Surfaces, "api-key")
	})
	t, err := s.client.Token(ctx, s.name, s.o)
	var p *client.Problem
	if errors.As(err, &p) && p.Code == client.InvalidRequest {
		// Either the client has no tokens, or what was asked for is wrong: the
		// headers know.
		if _, e := s.client.Headers(ctx, s.name, s.o); e != nil {
			return err
		}
		s.keyOnly, err = true, nil
	}
	if err == nil {
		_, err = s.update(ctx, t, withKey)
	}
	return err
}

// update asks for what belongs to a token, which is nil if the client has none,
// and says whether anything is new.
func (s *supply) update(ctx context.Context, t *client.Token, withKey bool) (bool, error) {
	h, err := s.client.Headers(ctx, s.name, s.o)
	if err != nil {
		return false, err
	}
	var lines bytes.Buffer
	if err := printHeaders(&lines, h); err != nil {
		return false, err
	}
	next := map[string]string{envHeaders: lines.String()}
	for name, value := range h {
		if !plainHeader(name) {
			for word := range strings.FieldsSeq(value) {
				if len(word) >= shortestWord && (t == nil || word != t.AccessToken) {
					s.hide(word, time.Time{})
				}
			}
		}
	}
	if t != nil {
		next[envToken] = t.AccessToken
		s.hide(t.AccessToken, t.ExpiresAt)
	}
	if withKey {
		key, err := s.client.APIKey(ctx, s.name)
		if err != nil {
			return false, err
		}
		next[envKey] = key
		s.hide(key, time.Time{})
	}
	if err := s.setMask(); err != nil {
		return false, err
	}
	changed, err := s.write(next)
	if s.expires = (time.Time{}); t != nil {
		s.expires = t.ExpiresAt
	}
	return changed, err
}

// plainHeader says whether a header tells what is spoken rather than who speaks.
func plainHeader(name string) bool {
	name = strings.ToLower(name)
	return strings.HasPrefix(name, "accept") || strings.HasPrefix(name, "content-") || name == "user-agent"
}

// hide has a value masked from the next setMask on.
func (s *supply) hide(value string, until time.Time) {
	if s.mask == nil {
		return
	}
	for i := range s.masked {
		if s.masked[i].value == value {
			s.masked[i].until = until
			return
		}
	}
	m := maskedValue{value: value, until: until}
	for _, f := range scan.Forms([]byte(value)) {
		m.forms = append(m.forms, f.Text)
	}
	for _, format := range []string{"%%%02X", "%%%02x"} { // Forms encodes what has to be
		var all []byte
		for _, c := range []byte(value) {
			all = fmt.Appendf(all, format, c)
		}
		m.forms = append(m.forms, all)
	}
	s.masked = append(s.masked, m)
}

func (s *supply) setMask() error {
	if s.mask == nil {
		return nil
	}
	now := time.Now()
	s.masked = slices.DeleteFunc(s.masked, func(m maskedValue) bool { return !m.until.IsZero() && m.until.Before(now) })
	var all [][]byte
	for _, m := range s.masked {
		all = append(all, m.forms...)
	}
	return s.mask.Set(all)
}

// write puts what has changed into the files.
func (s *supply) write(next map[string]string) (changed bool, err error) {
	for _, name := range suppliedNames() {
		content, there := next[name]
		switch f := s.files[name]; {
		case !there, s.contents[name] == content:
			continue
		case f == nil:
			f, err = newMemoryFile(name, []byte(content))
			s.files[name] = f
		default:
			err = f.put(name, []byte(content))
		}
		if err != nil {
			return changed, err
		}
		s.contents[name], changed = content, true
	}
	return changed, nil
}

// remove takes everything away.
func (s *supply) remove() error {
	var errs []error
	for name, f := range s.files {
		if s.contents[name] != "" {
			errs = append(errs, f.remove())
		}
	}
	clear(s.contents)
	s.expires = time.Time{}
	return errors.Join(errs...)
}

// answer is an event of the stream.
type answer struct {
	token *client.Token
	err   error
}

// run follows the broker until ctx ends.
func (s *supply) run(ctx context.Context) {
	events := make(chan answer)
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !s.keyOnly {
		wg.Go(func() { s.follow(ctx, events) })
	}
	var last *client.Token
	again := false
	for {
		wait := supplyLook
		if !s.expires.IsZero() {
			wait = max(0, min(wait, time.Until(s.expires)))
		}
		if again {
			wait = min(wait, supplyRetry)
		}
		var err error
		select {
		case <-ctx.Done():
			return
		case a := <-events:
			if last, err = a.token, a.err; err == nil {
				err = s.take(ctx, last)
			}
			again = err != nil && last != nil
		case <-time.After(wait):
			if s.keyOnly || again {
				err = s.take(ctx, last)
				again = err != nil
			}
		}
		s.judge(ctx, err)
	}
}

// take is an update, and tells of what is new.
func (s *supply) take(ctx context.Context, t *client.Token) error {
	_, withKey := s.files[envKey]
	changed, err := s.update(ctx, t, withKey)
	if changed && err == nil {
		s.away = false
		tell(ctx, s.renew, struct{}{})
	}
	return err
}

// judge removes what may not be there after err, or after this time.
func (s *supply) judge(ctx context.Context, err error) {
	var p *client.Problem
	switch {
	case errors.As(err, &p) && (p.Code == client.Quarantined || p.Code == client.NotAllowed):
	case !s.expires.IsZero() && !time.Now().Before(s.expires):
		if err = fmt.Errorf("%s: the token has expired, and there is no new one", s.name); p != nil {
			err = fmt.Errorf("%w: %s", err, p.Detail)
		}
		p = nil
	default:
		return
	}
	if e := s.remove(); e != nil {
		err = errors.Join(err, e)
	}
	if !s.away {
		s.away = true
		tell(ctx, s.lost, err)
	}
}

// follow keeps a stream of tokens open, over restarts of the broker.
func (s *supply) follow(ctx context.Context, to chan<- answer) {
	for ctx.Err() == nil {
		for t, err := range s.client.Events(ctx, s.name, s.o) {
			tell(ctx, to, answer{t, err})
		}
		select {
		case <-ctx.Done():
		case <-time.After(supplyRetry):
		}
	}
}

func tell[T any](ctx context.Context, to chan<- T, v T) {
	select {
	case to <- v:
	case <-ctx.Done():
	}
}
