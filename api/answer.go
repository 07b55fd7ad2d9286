package api

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/gate"
)

// wiped is a buffer for what may hold a token: growing and giving it back wipe
// the old bytes.
type wiped struct{ b []byte }

// buffers holds wiped buffers that wait for the next answer.
type buffers struct{ pool sync.Pool }

func (p *buffers) get() *wiped {
	if w, ok := p.pool.Get().(*wiped); ok {
		return w
	}
	return &wiped{make([]byte, 0, 4096)}
}

func (p *buffers) put(w *wiped) {
	clear(w.b)
	w.b = w.b[:0]
	p.pool.Put(w)
}

// need makes room for n more bytes.
func (w *wiped) need(n int) {
	if cap(w.b)-len(w.b) >= n {
		return
	}
	old := w.b
	w.b = append(make([]byte, 0, 2*cap(old)+n), old...)
	clear(old)
}

func (w *wiped) text(s string) {
	w.need(len(s))
	w.b = append(w.b, s...)
}

func (w *wiped) bytes(b []byte) error {
	w.need(len(b))
	w.b = append(w.b, b...)
	return nil
}

// quoted appends a JSON string. Tokens are printable ASCII by contract; what is
// not comes out escaped or, if no text at all, refused.
func (w *wiped) quoted(b []byte) error {
	const hex = "0123456789abcdef"
	if plain(b) {
		w.need(len(b) + 2)
		w.b = append(append(append(w.b, '"'), b...), '"')
		return nil
	}
	w.need(6*len(b) + 2)
	w.b = append(w.b, '"')
	for _, c := range b {
		switch {
		case c >= 0x80:
			return errors.New("a value for an answer is not printable ASCII")
		case c == '"' || c == '\\':
			w.b = append(w.b, '\\', c)
		case c < ' ':
			w.b = append(w.b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			w.b = append(w.b, c)
		}
	}
	w.b = append(w.b, '"')
	return nil
}

// plain says whether b is a JSON string's content as it is, and ASCII. It looks
// at eight bytes at once, and never errs to true; a byte above 0x7f keeps its
// high bit through at least one of the three subtractions.
func plain(b []byte) bool {
	const each, high = 0x0101010101010101, 0x8080808080808080
	for ; len(b) >= 8; b = b[8:] {
		x := binary.LittleEndian.Uint64(b)
		if ((x-each*' ')|((x^each*'"')-each)|((x^each*'\\')-each))&high != 0 {
			return false
		}
	}
	for _, c := range b {
		if c < ' ' || c >= 0x80 || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// word appends a JSON string that holds no secret.
func (w *wiped) word(s string) {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			b, _ := json.Marshal(s)
			_ = w.bytes(b)
			return
		}
	}
	w.need(len(s) + 2)
	w.b = append(append(append(w.b, '"'), s...), '"')
}

// token writes the answer of the token surface.
func (w *wiped) token(g *broker.Grant) error {
	w.text(`{"access_token":`)
	if err := g.Token.Access.Use(w.quoted); err != nil {
		return err
	}
	w.text(`,"token_type":`)
	w.word(g.Token.Type)
	w.text(`,"expires_in":`)
	w.need(64)
	w.b = strconv.AppendInt(w.b, g.ExpiresIn(), 10)
	w.text(`,"expires_at":"`)
	w.need(64)
	w.b = g.ExpiresAt().UTC().AppendFormat(w.b, time.RFC3339)
	w.text(`","scope":`)
	w.word(g.Token.Scope)
	w.text(`,"client":`)
	w.word(g.Client)
	w.text(`,"fingerprint":`)
	w.word(g.Token.Fingerprint)
	w.text("}\n")
	return nil
}

// lines writes the answer of the headers surface as text.
func (w *wiped) lines(g *broker.Grant) error {
	return g.AppendHeaders(func(name string, value []byte) error {
		w.text(name)
		w.text(": ")
		_ = w.bytes(value)
		w.text("\n")
		return nil
	})
}

// object writes the answer of the headers surface as JSON.
func (w *wiped) object(g *broker.Grant) error {
	separator := "{"
	err := g.AppendHeaders(func(name string, value []byte) error {
		w.text(separator)
		w.word(name)
		w.text(":")
		separator = ","
		return w.quoted(value)
	})
	if separator == "{" {
		w.text(separator)
	}
	w.text("}\n")
	return err
}

// fixed are header values that all answers share; net/http does not change
// them.
type fixed struct{ noStore, json, text, problem, stream, events, csv []string }

func newFixed() fixed {
	return fixed{
		noStore: []string{"no-store"},
		json:    []string{"application/json"},
		text:    []string{"text/plain; charset=utf-8"},
		problem: []string{"application/problem+json"},
		stream:  []string{"application/x-ndjson"},
		events:  []string{"text/event-stream"},
		csv:     []string{"text/csv; charset=utf-8"},
	}
}

// send writes a whole answer. An error means that the consumer is gone.
func send(w http.ResponseWriter, status int, kind []string, body []byte) {
	h := w.Header()
	h["Content-Type"] = kind
	if len(body) > 1500 { // shorter ones net/http counts itself, for less
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// sendJSON answers with something that holds no secret.
func (s *Server) sendJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	send(w, status, s.fixed.json, append(b, '\n'))
	return nil
}

// refuse answers with an error document, or not at all if whoever asked has
// exited.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if c := gate.From(r.Context()); c != nil {
		c.MustLive()
	}
	var said *refusal
	if errors.As(err, &said) {
		s.refuseOAuth(w, r, said, 0)
		return
	}
	p := broker.Problem(err)
	if p.Code == client.Internal && r.Context().Err() == nil {
		s.log.Error("a request failed", "method", r.Method, "error", err)
	}
	if r.URL.Path == oauthPath {
		var e *broker.Error
		_ = errors.As(err, &e)
		var why access.Reason
		if e != nil {
			why = e.Reason
		}
		s.refuseOAuth(w, r, inOAuth(p, why), retryAfter(p))
		return
	}
	s.problem(w, p)
}

func (s *Server) problem(w http.ResponseWriter, p *client.Problem) {
	if p.RetryAfter = retryAfter(p); p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	b, err := json.Marshal(p)
	if err != nil { // it cannot be: strings and numbers
		panic(http.ErrAbortHandler)
	}
	send(w, p.Status, s.fixed.problem, append(b, '\n'))
}

// retryAfter is in seconds; 503 always has it.
func retryAfter(p *client.Problem) int {
	if p.Status == http.StatusServiceUnavailable {
		return max(p.RetryAfter, 1)
	}
	return p.RetryAfter
}

// seconds rounds up: nobody comes back too early.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }
