package proxy

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Rules of this file: nothing is read ahead but the small bodies of requests
// that can be repeated, and the beginning of a 401.

// errGone is that the caller has exited.
var errGone = errors.New("the process that opened the connection has exited")

// silence is the API's time: it ends the call. Until the answer begins, it
// stops while the caller is to send; from then on, while the caller is to take.
type silence struct {
	mu       sync.Mutex
	timer    *time.Timer
	timeout  time.Duration
	answered bool // the answer has begun
}

// reading says whether the API waits for the caller's body.
func (s *silence) reading(now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.answered {
		s.run(!now)
	}
}

// answering says whether the answer has begun.
func (s *silence) answering(now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered = now
	s.run(!now)
}

// waiting says whether the caller waits for the next part of the answer.
func (s *silence) waiting(now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.run(now)
}

func (s *silence) run(on bool) {
	if on {
		s.timer.Reset(s.timeout)
	} else {
		s.timer.Stop()
	}
}

// incoming is the body of a request on its way to the API. Each read has its
// own time.
type incoming struct {
	io.ReadCloser
	call    *call
	until   time.Time   // when it has to be there; zero: while it moves
	whole   atomic.Bool // the end was read
	dropped atomic.Bool // nobody wants more of it
}

// errDropped is that the rest of a body is of no use.
var errDropped = errors.New("nobody wants the rest of the body")

// drop ends the read in progress, and all that would follow.
func (b *incoming) drop() {
	if !b.whole.Load() {
		b.dropped.Store(true)
		_ = b.call.control.SetReadDeadline(time.Now())
	}
}

// Read implements io.Reader. Whoever sends a body of a known length looks once
// more whether it has ended; net/http may have closed it by then, since the
// answer has begun.
func (b *incoming) Read(p []byte) (int, error) {
	if b.whole.Load() {
		return 0, io.EOF
	}
	b.call.silent.reading(true)
	defer b.call.silent.reading(false)
	until := b.until
	if until.IsZero() {
		until = time.Now().Add(b.call.rt.timeout)
	}
	_ = b.call.control.SetReadDeadline(until)
	if b.dropped.Load() { // only now: drop sets the deadline after it has said so
		b.drop()
		return 0, errDropped
	}
	n, err := b.ReadCloser.Read(p)
	if !b.call.caller.Alive() { // whoever has the connection now may have sent it
		b.call.cancel(errGone)
		n, err = 0, errGone
	}
	if err != nil {
		whole := errors.Is(err, io.EOF)
		b.whole.Store(whole)
		b.call.cut.Store(!whole)
		if whole || !b.dropped.Load() {
			// A deadline that stays would end the request while the answer is awaited.
			_ = b.call.control.SetReadDeadline(time.Time{})
		}
	}
	return n, err
}

// keep reads a small body to have it twice.
func (b *incoming) keep(length int64) ([]byte, error) {
	b.until = time.Now().Add(b.call.rt.timeout)
	kept, err := io.ReadAll(b) // to the end, which puts the deadline away
	if err == nil && int64(len(kept)) != length {
		err = io.ErrUnexpectedEOF
	}
	return kept, err
}

// answer is the body of an answer on its way to the caller. The API's time
// runs while a read waits for it.
type answer struct {
	io.ReadCloser
	call *call
	resp *http.Response
}

// Read implements io.Reader.
func (a *answer) Read(p []byte) (int, error) {
	a.call.silent.waiting(true)
	n, err := a.ReadCloser.Read(p)
	a.call.silent.waiting(false)
	if ended := context.Cause(a.call.ctx); ended != nil {
		n, err = 0, ended // an end that the API made because of ours is not its answer's
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			a.call.clean(a.resp.Trailer) // they are there now
		} else if a.call.ctx.Err() == nil || errors.Is(context.Cause(a.call.ctx), errSilent) {
			a.call.failed, a.call.code = "the API's answer broke off", "broken"
		}
	}
	return n, err
}

// Close implements io.Closer. HTTP/2 waits for a read of the request's body
// that is in progress.
func (a *answer) Close() error {
	if a.call.unread() {
		a.call.from.drop()
	}
	return a.ReadCloser.Close()
}

// patient is the way back to the caller: each write has its own time, and
// somebody who holds the connection after the caller's exit gets no more.
type patient struct {
	http.ResponseWriter
	call *call
}

// Unwrap is for http.ResponseController.
func (p *patient) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// WriteHeader implements http.ResponseWriter. An answer may have nothing else.
func (p *patient) WriteHeader(status int) {
	if p.more() != nil {
		panic(http.ErrAbortHandler)
	}
	p.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (p *patient) Write(b []byte) (int, error) {
	if err := p.more(); err != nil {
		return 0, err
	}
	return p.ResponseWriter.Write(b)
}

// more says whether more of an answer may be written, and gives it its time.
func (p *patient) more() error {
	if err := p.ready(); err != nil || p.call.refusing {
		return err
	}
	return context.Cause(p.call.ctx) // only now: stop sets the deadline after it has ended ctx
}

// ready says whether the caller is there, and gives the next write its time.
func (p *patient) ready() error {
	if !p.call.caller.Alive() {
		return errGone
	}
	_ = p.call.control.SetWriteDeadline(time.Now().Add(p.call.rt.timeout))
	return nil
}

// information is what the API says of a refusal in moreInformation (API
// Connect), or "". The body can be read from its beginning afterwards, and
// breaks off where it did: status and challenge say enough without it.
func (x *call) information(resp *http.Response) (string, error) {
	const most = 16 << 10
	start, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil && x.ctx.Err() != nil {
		return "", err
	}
	rest := io.Reader(resp.Body)
	if err != nil {
		rest = broken{err}
	}
	resp.Body = &rewound{io.MultiReader(bytes.NewReader(start), rest), resp.Body}
	if strings.EqualFold(resp.Header.Get("Content-Encoding"), "gzip") {
		if z, err := gzip.NewReader(bytes.NewReader(start)); err == nil {
			start, _ = io.ReadAll(io.LimitReader(z, most))
		}
	}
	var said struct {
		MoreInformation string `json:"moreInformation"`
	}
	_ = json.Unmarshal(start, &said)
	return said.MoreInformation, nil
}

type rewound struct {
	io.Reader
	io.Closer
}

// aboutToken says whether the challenges of a 401 mean the token (RFC 6750
// §3.1). Without any it is not said what else could be meant.
func aboutToken(challenges []string) bool {
	if len(challenges) == 0 {
		return true
	}
	for _, c := range challenges {
		c = strings.ToLower(c)
		_, params, bearer := strings.Cut(" "+c, " bearer")
		if _, code, found := strings.Cut(params, "error="); bearer && (!found || strings.HasPrefix(strings.Trim(code, `" `), "invalid_token")) {
			return true
		}
	}
	return false
}

// broken is the rest of a body that has broken off.
type broken struct{ error }

func (b broken) Read([]byte) (int, error) { return 0, b.error }
