package main

import (
	"context"
	"crypto/subtle"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"credentialbroker/api/client"
)

// redirected is what the issuer sends back with the browser (RFC 6749 §4.1.2).
type redirected struct {
	code   string
	issuer string // RFC 9207
	err    error  // the issuer's refusal (RFC 6749 §4.1.2.1)
}

// parseRedirect reads the query of a redirect. An error means that it is no
// answer to this login.
func parseRedirect(query, state string) (redirected, error) {
	q, err := url.ParseQuery(query)
	if err != nil {
		return redirected{}, errors.New("the address is not percent-encoded as it should be")
	}
	for _, name := range []string{"state", "code", "iss", "error"} {
		if len(q[name]) > 1 {
			return redirected{}, errors.New("the address has the parameter " + name + " twice")
		}
	}
	if subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(state)) != 1 {
		return redirected{}, errors.New("the address belongs to another login: its state is not the one of this login")
	}
	if code := q.Get("error"); code != "" {
		return redirected{err: refusalOf(code)}, nil
	}
	r := redirected{code: q.Get("code"), issuer: q.Get("iss")}
	if !validCode(r.code) || r.issuer != "" && !visible(r.issuer, 1024) {
		return redirected{}, errors.New("the address holds no authorization code that can be used")
	}
	return r, nil
}

// parsePasted reads what a person pasted: the whole address, or the code alone.
func parsePasted(line, state string) (redirected, error) {
	line = strings.TrimSpace(line)
	_, query, isAddress := strings.Cut(line, "?")
	if isAddress && (strings.Contains(query, "code=") || strings.Contains(query, "error=")) {
		query, _, _ = strings.Cut(query, "#")
		return parseRedirect(query, state)
	}
	if strings.Contains(line, "://") || !validCode(line) {
		return redirected{}, errors.New("this is neither an address with a code in it nor a code: paste what the browser shows after consent was given")
	}
	return redirected{code: line}, nil
}

// validCode follows the daemon's own limits.
func validCode(s string) bool { return visible(s, 4096) }

func visible(s string, most int) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) > 0 && len(s) <= most
}

// refusalOf puts an error code into words; a code that RFC 6749 does not know
// is not repeated.
func refusalOf(code string) error {
	switch code {
	case "access_denied":
		return failure{exitNotAllowed, errors.New("consent was refused at the issuer (access_denied): nothing has changed")}
	case "unauthorized_client":
		return failure{exitNotAllowed, errors.New("the issuer does not let this client log a person in (unauthorized_client): ask it to allow the authorization code grant")}
	case "invalid_scope":
		return failure{exitConfig, errors.New("the issuer does not give this scope (invalid_scope): compare the client's scope with what it was registered for")}
	case "invalid_request", "unsupported_response_type":
		return failure{exitConfig, errors.New("the issuer does not understand the request (" + code + "): check authorization_endpoint, authorization_params and redirect_uri of the client")}
	case "temporarily_unavailable":
		return failure{exitTryAgain, errors.New("the issuer is busy (temporarily_unavailable): try again later")}
	case "server_error":
		return failure{exitUnavailable, errors.New("the issuer failed (server_error): try again later")}
	}
	return failure{exitUnavailable, errors.New("the issuer ended the login with an error that RFC 6749 does not name: the page in the browser may say more")}
}

// listen opens the port on loopback to which redirectURI leads, or any port if
// it names none, and tells the whole URI. Without a listener, reason says why.
func listen(ctx context.Context, redirectURI string) (l net.Listener, whole, reason string) {
	u, err := url.Parse(redirectURI)
	if err != nil || u.Scheme != "http" {
		return nil, "", "the client's redirect_uri does not lead to this machine"
	}
	host, port := u.Hostname(), u.Port()
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, "", "the client's redirect_uri does not lead to this machine"
	}
	if port == "" {
		port = "0"
	}
	if l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(host, port)); err != nil {
		return nil, "", taken + err.Error()
	}
	if port == "0" {
		_, port, _ = net.SplitHostPort(l.Addr().String())
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	if u.Hostname() == "localhost" {
		six, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("::1", port))
		if err == nil {
			l = both{l, six}
		} else if !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EAFNOSUPPORT) {
			_ = l.Close()
			return nil, "", taken + err.Error()
		}
	}
	return l, u.String(), ""
}

// taken begins a reason that is no invitation to paste: whoever has the port
// gets the answer.
const taken = "the port of the client's redirect_uri cannot be opened here: "

// both is the same port of both addresses of localhost: a browser may go to
// either first.
type both struct {
	net.Listener
	other net.Listener
}

// Close implements net.Listener.
func (b both) Close() error { return errors.Join(b.Listener.Close(), b.other.Close()) }

// landing is the page to which the issuer sends the browser. It takes one
// answer, of this login.
type landing struct {
	host, path, state string
	got               chan redirected // room for one
}

// await serves the landing page until the answer is there, or ctx ends.
func await(ctx context.Context, l net.Listener, login *client.Login) (redirected, error) {
	u, err := url.Parse(login.RedirectURI)
	if err != nil {
		return redirected{}, errors.New("the redirect_uri is not a URL")
	}
	page := &landing{host: withoutPort80(u.Host), path: "/" + strings.TrimPrefix(u.Path, "/"), state: login.State, got: make(chan redirected, 1)}
	srv := &http.Server{Handler: page, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0)}
	srv.SetKeepAlivesEnabled(false)
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(l) })
	if b, ok := l.(both); ok {
		serving.Go(func() { _ = srv.Serve(b.other) })
	}
	var answer redirected
	select {
	case answer = <-page.got:
		err = answer.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	// The page is still on its way to the browser.
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if srv.Shutdown(short) != nil {
		_ = srv.Close()
	}
	serving.Wait()
	return answer, err
}

func withoutPort80(host string) string { return strings.TrimSuffix(host, ":80") }

func (p *landing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Another site may have its name lead here (DNS rebinding): it does not know
	// the host that the browser was sent to.
	if withoutPort80(r.Host) != p.host || r.URL.Path != p.path || r.Method != http.MethodGet {
		say(w, http.StatusNotFound, "There is nothing here.")
		return
	}
	answer, err := parseRedirect(r.URL.RawQuery, p.state)
	if err != nil {
		say(w, http.StatusBadRequest, "This is no answer to the login that is under way.")
		return
	}
	select {
	case p.got <- answer:
	default:
		say(w, http.StatusConflict, "The login has had its answer already.")
		return
	}
	if answer.err != nil {
		say(w, http.StatusOK, "The issuer ended the login. The terminal says why. You can close this window.")
		return
	}
	say(w, http.StatusOK, "The answer has arrived; the terminal says how the login ends. You can close this window.")
}

// say writes a page that loads nothing, and gives the address to nobody.
func say(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Credential broker</title><p>"+text+"</p></html>\n")
}
