package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/gate"
	"credentialbroker/oidc"
)

// Rules of this file:
//   - what the broker itself answers has the header errorHeader; what has not is
//     the API's own, whatever its status;
//   - a body that nobody reads to its end gets a short time, then the connection
//     ends.

// errorHeader tells the broker's answers from the API's. Its value is the code.
const errorHeader = "Credential-Broker-Error"

// lastRead is how long the rest of a body that nobody wants may take.
const lastRead = time.Second

// ServeHTTP serves the route of the door as it is now.
func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn := gate.From(r.Context())
	x := &call{door: d, in: r, caller: conn.Caller(), control: http.NewResponseController(w)}
	x.ctx, x.cancel = context.WithCancelCause(r.Context())
	flight := &d.route.Load().server.flight
	flight.begin(x)
	start := time.Now()
	x.code = "aborted"
	defer func() {
		x.cancel(nil)
		flight.end(x)
		if e := x.stopped(); e != nil {
			x.code = string(e.Code)
		}
		x.rt.counts.done(x.code, time.Since(start))
		x.rt.note(x.failed)
		v := recover()
		if v == nil {
			return
		}
		if err, ok := v.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
			x.rt.server.o.Log.Error("a request failed inside the broker; please report this", "client", x.rt.Client, "route", x.rt.Name, "stack", string(debug.Stack()))
		}
		panic(http.ErrAbortHandler)
	}()
	p := &patient{w, x}
	if err := x.prepare(conn, r); err != nil {
		_ = x.control.SetReadDeadline(time.Now().Add(lastRead))
		x.refuse(p, err)
		return
	}
	x.pass(p, r)
}

// prepare decides, and gets what the call needs.
func (x *call) prepare(conn *gate.Conn, r *http.Request) (err error) {
	if wait, over := conn.Admit(); wait > 0 || over {
		return &broker.Error{Code: client.RateLimited, Detail: "this user asks too often, or has too many connections with a request in progress", RetryAfter: max(wait, time.Second)}
	}
	if err := conn.Direct(r); err != nil {
		return invalid(err.Error())
	}
	if err := direct(r); err != nil {
		return err
	}
	if x.to, err = x.rt.target(r); err != nil {
		return x.outside(err)
	}
	x.grant, err = x.rt.server.o.Broker.Token(x.ctx, x.caller, x.request())
	return err
}

// direct refuses what the process that asks has only passed on, and what this
// proxy cannot pass on.
func direct(r *http.Request) error {
	for name := range r.Header {
		if name == "Origin" || name == "X-Forwarded-For" || name == "Forwarded" || strings.HasPrefix(name, "Sec-Fetch-") {
			return invalid("the header " + name + " shows a browser or a proxy: the application itself asks here")
		}
	}
	if up := r.Header.Get("Upgrade"); up != "" && !strings.EqualFold(up, "h2c") {
		return invalid("WebSocket and other upgrades are not passed on")
	}
	r.Header.Del("Upgrade") // h2c may be ignored (RFC 9110 §7.8)
	return nil
}

// pass sends the request on and the answer back.
func (x *call) pass(p *patient, r *http.Request) {
	x.silent.timeout = x.rt.timeout
	x.silent.timer = time.AfterFunc(x.rt.timeout, func() { x.cancel(errSilent) })
	defer x.silent.answering(true)
	x.again = idempotent(r.Method) && r.ContentLength >= 0 && r.ContentLength <= maxReplay
	if r.ContentLength != 0 {
		x.from = &incoming{ReadCloser: r.Body, call: x}
		defer context.AfterFunc(x.ctx, x.from.drop)()
		defer func() {
			if x.unread() {
				_ = x.control.SetReadDeadline(time.Now().Add(lastRead))
			}
		}()
		r.Body = x.from
		if x.again {
			var err error
			if x.body, err = x.from.keep(r.ContentLength); err != nil {
				x.refuse(p, bodyLate())
				return
			}
			r.Body = io.NopCloser(strings.NewReader("")) // send puts the kept one in
		}
	}
	x.rt.proxy.ServeHTTP(p, r.WithContext(context.WithValue(r.Context(), callKey{}, x)))
	if p.ready() != nil { // net/http writes the end, and what trails it
		panic(http.ErrAbortHandler)
	}
}

func bodyLate() *broker.Error { return invalid("the body did not come whole, or not in time") }

// unread says whether there is more of the caller's body: what follows it on
// the connection is no request.
//
// An answer that begins before that ends the connection; so net/http does not
// wait for the body before it sends it.
func (x *call) unread() bool { return x.from != nil && !x.from.whole.Load() }

// idempotent methods (RFC 9110 §9.2.2).
func idempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

// refuse answers with an error document.
func (x *call) refuse(w http.ResponseWriter, err error) {
	if e := x.stopped(); e != nil {
		err = e
	}
	p := broker.Problem(err)
	if p.Code == client.Internal && !errors.Is(err, context.Canceled) {
		x.rt.server.o.Log.Error("a request failed", "client", x.rt.Client, "route", x.rt.Name, "error", err)
	}
	if p.Status == http.StatusServiceUnavailable {
		p.RetryAfter = max(p.RetryAfter, 1)
	}
	x.code = string(p.Code)
	h := w.Header()
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	if x.unread() || p.Code == client.RateLimited {
		h.Set("Connection", "close")
	}
	body, err := json.Marshal(p)
	if err != nil { // it cannot be: strings and numbers
		panic(http.ErrAbortHandler)
	}
	h.Set(errorHeader, string(p.Code))
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	x.refusing = true
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n'))
}

// unreachable says why the API gave no answer, without its words.
func unreachable(host string, err error) string {
	e := oidc.Unreachable(host, err)
	if e.Hint == "" {
		return "the API gave no answer that could be passed on: " + e.Message
	}
	return "the API gave no answer that could be passed on: " + e.Message + ": " + e.Hint
}
