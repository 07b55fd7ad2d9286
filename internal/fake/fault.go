package fake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// A Fault is what a server, or an Issuer's Gateway, does wrong.
type Fault struct {
	Kind       FaultKind
	Times      int           // how many requests it concerns; 0: all, until changed
	Delay      time.Duration // before the answer; 0: none, but 2 s for Slow
	RetryAfter time.Duration // header of that name, in whole seconds; 0: none
	Lifetime   time.Duration // with None: of the token; with Absurd: what expires_in says. 0: the server's own and ten years
	Opaque     bool          // the token is no JWT, where it would be one
}

// A FaultKind names a fault, also on the demonstration's command line.
type FaultKind string

// The faults.
const (
	None          FaultKind = ""
	InvalidClient FaultKind = "401"        // invalid_client, as JSON
	Unauthorized  FaultKind = "400"        // unauthorized_client, as JSON
	Forbidden     FaultKind = "403html"    // a firewall's page
	Unavailable   FaultKind = "503"        // JSON, an error code of no standard
	Maintenance   FaultKind = "503html"    // a page
	Throttled     FaultKind = "throttle"   // 429
	Slow          FaultKind = "slow"       // answers properly after Delay
	Hang          FaultKind = "hang"       // never answers
	Reset         FaultKind = "reset"      // cuts the connection, having done nothing
	Lost          FaultKind = "lost"       // does what was asked, then cuts the connection
	HTML          FaultKind = "html"       // 200, a page
	Empty         FaultKind = "empty"      // 200, nothing
	CookieOnly    FaultKind = "cookieonly" // 200, cookies and nothing else
	Redirect      FaultKind = "redirect"   // 302 to a login form
	NoExpiry      FaultKind = "noexpiry"   // no expires_in
	Absurd        FaultKind = "absurd"     // expires_in beyond belief
	BadType       FaultKind = "badtype"    // token_type "mac"
	Huge          FaultKind = "huge"       // a megabyte
	NoType        FaultKind = "notype"     // no token_type
	BadToken      FaultKind = "badtoken"   // a line break in the token

	ConsentDenied FaultKind = "denied" // the person says no

	GatewayToken    FaultKind = "api401token" // the gateway refuses every token
	GatewayKey      FaultKind = "api401key"   // the gateway refuses every key
	GatewayThrottle FaultKind = "api429"      // the gateway's rate limit
)

func (k FaultKind) atGateway() bool { return strings.HasPrefix(string(k), "api") }

// before delays, and answers if the fault is an answer of its own.
func (f Fault) before(w http.ResponseWriter, r *http.Request) (done bool) {
	delay := f.Delay
	if f.Kind == Slow && delay == 0 {
		delay = 2 * time.Second
	}
	if f.Kind == Hang {
		<-r.Context().Done()
		return true
	}
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return true
		}
	}
	if f.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(f.RetryAfter/time.Second)))
	}
	return f.answer(w)
}

func (f Fault) answer(w http.ResponseWriter) (done bool) {
	switch f.Kind {
	case Unauthorized:
		refuse(w, http.StatusBadRequest, "unauthorized_client", "")
	case Forbidden:
		page(w, http.StatusForbidden, "HPDIA0112E", "Access is blocked by policy. Support ID: 1172839.")
	case Unavailable:
		refuse(w, http.StatusServiceUnavailable, "internal server error", "")
	case Maintenance:
		page(w, http.StatusServiceUnavailable, "HPDIA0114E", "The service is under maintenance.")
	case Throttled:
		refuse(w, http.StatusTooManyRequests, "slow_down", "")
	case Reset:
		panic(http.ErrAbortHandler)
	case HTML:
		page(w, http.StatusOK, "HPDIA0309W", "Please sign in.")
	case Empty:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
	case CookieOnly:
		w.WriteHeader(http.StatusOK)
	case Redirect:
		w.Header().Set("Location", "/pkmslogin.form")
		page(w, http.StatusFound, "HPDIA0309W", "Please sign in.")
	case Huge:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append([]byte(`{"access_token":"`), bytes.Repeat([]byte{'a'}, 1<<20)...))
	default:
		return false
	}
	return true
}

// lifetime is that of a token, which is usual without a fault.
func (f Fault) lifetime(usual time.Duration) time.Duration {
	if f.Kind == None && f.Lifetime > 0 {
		return f.Lifetime
	}
	return usual
}

// send writes a good answer, as the fault spoils it.
func (f Fault) send(w http.ResponseWriter, answer map[string]any) {
	if f.Kind == Lost {
		panic(http.ErrAbortHandler)
	}
	f.alter(answer)
	writeJSON(w, http.StatusOK, answer)
}

// alter spoils a good answer.
func (f Fault) alter(answer map[string]any) {
	switch f.Kind {
	case NoExpiry:
		delete(answer, "expires_in")
	case Absurd:
		seconds := int64(10 * 365 * 24 * 3600)
		if f.Lifetime != 0 {
			seconds = int64(f.Lifetime / time.Second)
		}
		answer["expires_in"] = seconds
	case BadType:
		answer["token_type"] = "mac"
	case NoType:
		delete(answer, "token_type")
	case BadToken:
		answer["access_token"] = fmt.Sprint(answer["access_token"], "\r\nX-Injected: yes")
	default:
	}
}

// refuse writes an error document as the original does.
func refuse(w http.ResponseWriter, status int, code, description string) {
	doc := map[string]any{"error": code}
	if description != "" {
		doc["error_description"] = description
	}
	writeJSON(w, status, doc)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json;charset=UTF-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // all callers write plain maps
	}
	_, _ = w.Write(b)
}

// page writes a page as the proxy in front of the original does.
func page(w http.ResponseWriter, status int, id, text string) {
	w.Header().Set("Content-Type", "text/html;charset=UTF-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<!DOCTYPE html>\n<html><head><title>Server Message</title></head>\n"+
		"<body><h1>Server Message</h1><p>%s %s</p></body></html>\n", id, text)
}
