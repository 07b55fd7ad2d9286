package oidc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
)

// Rules of this file:
//   - an answer's bytes are in one buffer of ours, which is wiped; what is
//     taken out of it is a clone, wiped too, or no secret;
//   - no byte of an answer gets into an error, but for the codes and media
//     types that this package knows;
//   - what is odd but harmless (an extra field, an upper-case token type) is
//     taken; what could hurt a consumer (a line break in a token) is refused.

const (
	maxAnswer     = 64 << 10
	maxToken      = 16 << 10
	maxScope      = 4 << 10
	maxJTI        = 128
	maxRetryAfter = time.Hour
)

// An answer is what a server said to one request.
type answer struct {
	host           string
	status         int
	header         http.Header
	body           []byte
	truncated      bool // the body was longer
	sent, received clock.Reading
}

// send does one round trip and reads up to limit bytes of the answer.
func send(rt http.RoundTripper, c clock.Clock, req *http.Request, limit int) (*answer, error) {
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", userAgent)
	a := &answer{host: req.URL.Host, sent: c.Now()}
	resp, err := rt.RoundTrip(req) // not an http.Client: no redirects, no cookies
	if err != nil {
		return nil, transportError(a.host, first(req.Context().Err(), err))
	}
	defer resp.Body.Close()
	buf := make([]byte, limit+1) // at once: growing would leave copies
	n, err := fill(resp.Body, buf)
	if err != nil {
		clear(buf)
		return nil, transportError(a.host, first(req.Context().Err(), err))
	}
	a.received = c.Now()
	a.status, a.header = resp.StatusCode, resp.Header
	a.body, a.truncated = buf[:min(n, limit)], n > limit
	return a, nil
}

// fill reads until buf is full or r ends. io.ReadFull would not tell an early
// end from the normal one.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// first prefers the reason why a context ended to what the transport made of it.
func first(ctxErr, err error) error {
	if ctxErr != nil {
		return ctxErr
	}
	return err
}

func (a *answer) wipe() { clear(a.body) }

// json says whether the answer claims to be JSON (RFC 6749 §5.1).
func (a *answer) json() bool {
	t, _, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	return err == nil && (t == "application/json" || strings.HasPrefix(t, "application/") && strings.HasSuffix(t, "+json"))
}

// mediaType names the answer's type for people.
func (a *answer) mediaType() string {
	t, _, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	switch {
	case len(bytes.TrimSpace(a.body)) == 0:
		return "empty"
	case err != nil || t == "":
		return "of no known type"
	case t == "text/html", t == "text/plain", t == "application/xml", t == "text/xml", t == "application/json":
		return t
	}
	return "of another type"
}

func (a *answer) protocol(hint, format string, args ...any) *Error {
	return &Error{Kind: Protocol, Status: a.status, Hint: hint, Message: a.host + ": " + fmt.Sprintf(format, args...)}
}

// members splits a JSON object. The caller wipes them.
func (a *answer) members() (map[string]json.RawMessage, error) {
	var m map[string]json.RawMessage
	err := json.Unmarshal(a.body, &m)
	if err == nil && m == nil {
		err = errors.New("not an object")
	}
	return m, err
}

func wipeMembers(m map[string]json.RawMessage) {
	for _, raw := range m {
		clear(raw)
	}
}

// object splits a successful answer, which has to be a JSON object. The caller
// wipes the members.
func (a *answer) object(endpoint string) (map[string]json.RawMessage, error) {
	page := "a firewall or proxy may have answered in the issuer's place, or " + endpoint + " is wrong"
	switch {
	case a.truncated:
		return nil, a.protocol("check "+endpoint, "the answer is larger than %d bytes", maxAnswer)
	case len(bytes.TrimSpace(a.body)) == 0:
		return nil, a.protocol(page, "the answer is empty")
	case !a.json():
		return nil, a.protocol(page, "the answer is not JSON (HTTP 200, %s)", a.mediaType())
	}
	m, err := a.members()
	if err != nil {
		wipeMembers(m)
		return nil, a.protocol(page, "the answer claims to be JSON and is no JSON object")
	}
	if raw := m["error"]; raw != nil && string(raw) != "null" {
		wipeMembers(m)
		e := a.protocol("ask the issuer: RFC 6749 has such an answer with HTTP 400 or 401", "an error was answered with HTTP 200")
		e.Code = a.errorCode()
		return nil, e
	}
	return m, nil
}

// token reads a successful answer (RFC 6749 §5.1). The refresh token comes
// with an error too: by then the issuer may have ended the old one.
func (c *Client) token(ctx context.Context, a *answer, q *request) (Token, error) {
	m, err := a.object(q.endpoint)
	if err != nil {
		return Token{}, err
	}
	defer wipeMembers(m)
	refresh, err := a.refresh(m["refresh_token"], q)
	if err != nil {
		return Token{}, err
	}
	t, err := c.access(ctx, a, q, m)
	t.Refresh = refresh
	return t, err
}

// refresh reads the refresh token, if the grant has one: client_credentials
// and assertions have none (RFC 6749 §4.4.3), and what is not kept is not taken.
func (a *answer) refresh(raw json.RawMessage, q *request) (secret.Secret, error) {
	if q.grant != grantRefresh && q.grant != grantCode || raw == nil || string(raw) == "null" || string(raw) == `""` {
		return secret.Secret{}, nil
	}
	b, ok := text(raw)
	if !ok || !printable(b, maxToken) {
		clear(b)
		return secret.Secret{}, a.protocol("", "the answer's refresh_token is no text of at most %d visible characters", maxToken)
	}
	return secret.New(b), nil
}

// access reads all but the refresh token.
func (c *Client) access(ctx context.Context, a *answer, q *request, m map[string]json.RawMessage) (Token, error) {
	t := Token{Type: "Bearer", Sent: a.sent, Skew: a.skew()}
	kind, ok := text(m["token_type"])
	if m["token_type"] == nil || string(m["token_type"]) == "null" {
		ok, kind = c.profile.TokenType == typeOptional, []byte(t.Type)
	}
	if !ok || !strings.EqualFold(string(kind), t.Type) {
		return Token{}, a.protocol("only bearer tokens can be handed out; token_type: optional takes an answer without one",
			"the answer's token_type is missing or is not bearer")
	}
	var err error
	if t.Scope, t.Narrowed, err = granted(q.scope, m["scope"]); err != nil {
		return Token{}, a.protocol("", "the answer's scope is no list of scopes")
	}
	access, ok := text(m["access_token"])
	defer clear(access)
	if !ok || !printable(access, maxToken) {
		return Token{}, a.protocol("", "the answer holds no access_token that fits into a header")
	}
	cl, lives, err := c.inspect(ctx, a, access)
	if err != nil {
		return Token{}, err
	}
	if t.Bound, err = c.bound(a, q, cl); err != nil {
		return Token{}, err
	}
	t.JTI = cl.jti
	t.Expires = t.Sent.Add(c.lifetime(m["expires_in"], lives))
	hash := sha256.Sum256(access)
	t.Fingerprint = base64.RawURLEncoding.EncodeToString(hash[:])
	t.Access = secret.New(access)
	return t, nil
}

// lifetime is the shorter of what the answer and, if it is one, the JWT says.
// What is missing, not positive or no number does not count; if nothing
// counts, the default does. Nothing counts for more than the maximum.
func (c *Client) lifetime(expiresIn json.RawMessage, jwt float64) time.Duration {
	def, most := c.profile.lifetimes()
	s, ok := number(expiresIn)
	switch jwt = math.Floor(jwt); {
	case !ok || s < 1:
		s = jwt
	case jwt > 0:
		s = min(s, jwt)
	}
	switch {
	case s < 1:
		return def
	case s >= most.Seconds():
		return most
	}
	return time.Duration(s) * time.Second
}

// granted reads the scope of an answer: as requested if it is absent. One that
// is there and empty grants nothing.
func granted(asked string, raw json.RawMessage) (scope string, narrowed bool, err error) {
	if raw == nil || string(raw) == "null" {
		return asked, false, nil
	}
	b, ok := text(raw)
	if !ok || len(b) > maxScope {
		return "", false, errors.New("scope")
	}
	for _, c := range b { // RFC 6749 §3.3
		if c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			return "", false, errors.New("scope")
		}
	}
	have := strings.Fields(string(b))
	for _, s := range strings.Fields(asked) {
		narrowed = narrowed || !slices.Contains(have, s)
	}
	return strings.Join(have, " "), narrowed, nil
}

// measured is how far the Date header is ahead of our clock.
func (a *answer) measured() (ahead time.Duration, ok bool) {
	date, err := http.ParseTime(a.header.Get("Date"))
	if err != nil {
		return 0, false
	}
	return clock.Ahead(date, a.sent, a.received), true
}

// skew is what was measured, or 0.
func (a *answer) skew() time.Duration {
	ahead, _ := a.measured()
	return ahead
}

// remember keeps how far the issuer's clock is ahead.
func (c *Client) remember(a *answer) {
	if ahead, ok := a.measured(); ok {
		c.ahead.Store(&ahead)
	}
}

// retryAfter reads the header of that name (RFC 9110 §10.2.3).
func (a *answer) retryAfter() time.Duration {
	v := strings.TrimSpace(a.header.Get("Retry-After"))
	var d time.Duration
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		d = time.Duration(s) * time.Second
	} else if at, err := http.ParseTime(v); err == nil {
		from, err := http.ParseTime(a.header.Get("Date")) // the issuer's too, so its clock's error does not matter
		if err != nil {
			from = a.received.Wall
		}
		d = at.Sub(from)
	}
	return max(0, min(d, maxRetryAfter))
}

// text decodes a JSON string. The caller wipes it, if it is a secret.
func text(raw json.RawMessage) ([]byte, bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return nil, false
	}
	return secret.Unquote(raw[1 : len(raw)-1]), true
}

// number reads a JSON number, or a string that holds a decimal one, which some
// servers send. It is finite.
func number(raw json.RawMessage) (float64, bool) {
	s := strings.Trim(string(raw), `"`)
	if s == "" || len(s) > 32 || strings.Trim(s, "0123456789.eE+-") != "" {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	if errors.Is(err, strconv.ErrRange) {
		return math.Copysign(math.MaxFloat64, f), true
	}
	return f, err == nil
}

// printable says whether b is 1 to most visible ASCII characters, so that it
// can stand in a header and in a record.
func printable(b []byte, most int) bool {
	for _, c := range b {
		if c <= 0x20 || c > 0x7e {
			return false
		}
	}
	return len(b) > 0 && len(b) <= most
}
