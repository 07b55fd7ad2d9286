package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
)

// Rules of this file:
//   - the headers of the client replace what the caller sent, after its
//     Connection header has had its say;
//   - cookies pass in neither direction: a session that the API opened for the
//     token would be a credential, and the caller's;
//   - no answer's header shows what the request was given;
//   - a request is repeated once, after the API has refused its token and another
//     one is there, if it is idempotent (RFC 9110 §9.2.2) and has no body, or one
//     of at most maxReplay bytes.

const maxReplay = 16 << 10

// call is one request on its way.
type call struct {
	door    *door
	rt      *route
	in      *http.Request // for its method and target
	caller  *access.Caller
	control *http.ResponseController

	grant *broker.Grant
	to    *url.URL
	given []header // what the broker adds

	// ctx ends when the caller is gone, or may have no answer any more, or the API
	// is silent too long. It is the caller's own: httputil's would pass interim
	// answers on.
	ctx    context.Context
	cancel context.CancelCauseFunc
	silent silence
	cut    atomic.Bool // the caller's body broke off

	from   *incoming // the caller's body; nil: none
	again  bool      // the request can be repeated
	body   []byte    // of a request that can; nil: none
	code   string    // for the metrics
	failed string    // why the API gave no answer, for the status

	refusing bool      // the answer is the broker's own
	outdated time.Time // when the flight saw that its route has changed
}

type header struct {
	name, value string
	credential  bool // else it is text of the configuration alone
}

type callKey struct{}

func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// errSilent is why a call was given up.
var errSilent = errors.New("the API was silent too long")

// rewrite makes what is sent (httputil.ReverseProxy.Rewrite).
func rewrite(p *httputil.ProxyRequest) {
	x := callOf(p.In.Context())
	out := p.Out
	out.URL, out.Host, out.Trailer = x.to, "", nil
	if x.again {
		out.Header.Del("Expect") // the body is here already
	}
}

// RoundTrip sends a request with the client's headers, and once more if that
// can help.
func (rt *route) RoundTrip(req *http.Request) (*http.Response, error) {
	x := callOf(req.Context())
	resp, err := x.send(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	renewed, err := x.refused(resp)
	if err != nil || !renewed {
		return resp, err
	}
	_ = resp.Body.Close()
	rt.counts.retries.Inc()
	return x.send(req)
}

// send sends the request with the headers of the grant.
func (x *call) send(req *http.Request) (*http.Response, error) {
	via, err := x.rt.via(x.grant)
	if err != nil {
		return nil, err
	}
	if err := x.headers(); err != nil {
		return nil, err
	}
	ctx := x.ctx
	if x.grant.Token.Bound != "" {
		ctx = context.WithValue(ctx, grantKey{}, x.grant)
	}
	out := req.Clone(ctx)
	x.strip(out.Header)
	for _, h := range x.given {
		out.Header.Set(h.name, h.value)
	}
	if x.body != nil {
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(x.body)), nil }
		out.Body, _ = out.GetBody()
	}
	x.silent.answering(false)
	resp, err := via.RoundTrip(out)
	x.silent.answering(true)
	if err != nil {
		return nil, err
	}
	resp.Request = req
	x.rt.server.metrics.take(&x.rt.Route, resp.Header)
	if resp.StatusCode == http.StatusSwitchingProtocols { // nobody asked for it
		_ = resp.Body.Close()
		return nil, errors.New("it switches protocols unasked")
	}
	resp.Body = &answer{ReadCloser: resp.Body, call: x, resp: resp}
	return resp, nil
}

// headers takes the headers from the grant.
func (x *call) headers() error {
	x.given = x.given[:0]
	return x.grant.AppendHeaders(func(name string, value []byte) error {
		x.given = append(x.given, header{http.CanonicalHeaderKey(name), string(value), x.grant.Fills(name)})
		return nil
	})
}

// strip takes away what the caller may not say: the credentials' place is ours
// in every spelling that a server may take for it, and some servers let a
// header name another path.
func (x *call) strip(h http.Header) {
	for name := range h {
		plain := strings.ReplaceAll(name, "_", "-")
		switch {
		case x.ours(plain, false), strings.EqualFold(plain, "Cookie"), strings.EqualFold(plain, "Cookie2"),
			strings.EqualFold(plain, "X-Original-Url"), strings.EqualFold(plain, "X-Rewrite-Url"), strings.EqualFold(plain, errorHeader):
			delete(h, name)
		}
	}
}

// ours says whether a header of that name is the broker's to set; credential:
// and holds one.
func (x *call) ours(name string, credential bool) bool {
	if strings.EqualFold(name, "Authorization") {
		return true
	}
	for _, g := range x.given {
		if strings.EqualFold(name, g.name) && (g.credential || !credential) {
			return true
		}
	}
	return false
}

// clean takes out of an answer what the caller may not see
// (httputil.ReverseProxy.ModifyResponse).
func clean(resp *http.Response) error {
	x := callOf(resp.Request.Context())
	if e := x.stopped(); e != nil {
		return e
	}
	x.code = string(rune('0'+resp.StatusCode/100)) + "xx"
	x.clean(resp.Header)
	if x.unread() {
		resp.Header.Set("Connection", "close")
	}
	return nil
}

func (x *call) clean(h http.Header) {
	for name, values := range h {
		if x.ours(name, true) || name == "Set-Cookie" || name == "Set-Cookie2" || name == errorHeader || x.shows(values) {
			delete(h, name)
		}
	}
}

// shows says whether a value has one of the credentials in it.
func (x *call) shows(values []string) bool {
	const shortest = 8 // a shorter one stands in words
	for _, g := range x.given {
		credential := g.value[strings.LastIndexByte(g.value, ' ')+1:]
		for _, v := range values {
			if g.credential && len(credential) >= shortest && strings.Contains(v, credential) {
				return true
			}
		}
	}
	return false
}

// refused asks the broker what to do about a 401, and says whether the request
// should be sent again.
func (x *call) refused(resp *http.Response) (bool, error) {
	said, err := x.information(resp)
	if err != nil {
		return false, err
	}
	if said == "" && !aboutToken(resp.Header.Values("Www-Authenticate")) {
		return false, nil
	}
	return x.renew(resp.StatusCode, said), nil
}

// renew says whether there is another token now, and the request can be sent
// again. If not, the API's own answer tells the caller more than an error here.
func (x *call) renew(status int, said string) bool {
	b, used := x.rt.server.o.Broker, x.grant.Token.Fingerprint
	if _, err := b.Reject(x.ctx, x.caller, broker.Rejection{Client: x.rt.Client, Fingerprint: used, Status: status, MoreInformation: said}); err != nil || !x.again {
		return false
	}
	g, err := b.Token(x.ctx, x.caller, x.request())
	if err != nil || g.Token.Fingerprint == used {
		return false
	}
	x.grant = g
	return true
}

// failed answers when the API has not (httputil.ReverseProxy.ErrorHandler).
func failed(w http.ResponseWriter, req *http.Request, err error) {
	x := callOf(req.Context())
	e := x.stopped()
	switch {
	case e != nil, errors.As(err, &e):
	case errors.Is(context.Cause(x.ctx), errSilent):
		e = &broker.Error{Code: client.APITimeout, Detail: "the API has not begun to answer within " + x.rt.timeout.String() + ": it may have done what was asked; timeout of the route can be longer"}
	case x.cut.Load(): // a deadline that passes ends ctx too
		e = bodyLate()
	case x.ctx.Err() != nil: // the caller has gone
		panic(http.ErrAbortHandler)
	default:
		e = &broker.Error{Code: client.APIUnavailable, Detail: unreachable(x.to.Host, err)}
	}
	if e.Code == client.APITimeout || e.Code == client.APIUnavailable {
		x.failed = e.Detail
	}
	x.refuse(w, e)
}
