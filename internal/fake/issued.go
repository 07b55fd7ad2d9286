package fake

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// issued is what a server knows of an access token.
type issued struct {
	client, user string // empty user: there is none
	scope        string
	audience     []string
	from, until  time.Time
	bound        string // x5t#S256 of its certificate; empty: to none
}

// keep makes a token one that can be looked up.
func (s *server) keep(token string, t issued) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tokens == nil {
		s.tokens = map[string]issued{}
	}
	for text, old := range s.tokens {
		if !time.Now().Before(old.until) {
			delete(s.tokens, text)
		}
	}
	s.tokens[token] = t
	s.stats.Minted++
}

// find gives a living token.
func (s *server) find(token string) (issued, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tokens[token]
	return t, ok && time.Now().Before(t.until)
}

// drop ends the tokens that f names.
func (s *server) drop(f func(text string, t issued) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for text, t := range s.tokens {
		if f(text, t) {
			delete(s.tokens, text)
		}
	}
}

// scopes grants what is asked for and allowed, or all that is allowed; false
// if that leaves nothing (RFC 6749 §3.3).
func (c *registered) scopes(asked string) (granted string, ok bool) {
	if asked == "" {
		return strings.Join(c.Scopes, " "), true
	}
	var out []string
	for scope := range strings.SplitSeq(asked, " ") {
		if slices.Contains(c.Scopes, scope) && !slices.Contains(out, scope) {
			out = append(out, scope)
		}
	}
	return strings.Join(out, " "), len(out) > 0
}

// audience gives what a token is for, the client itself by default.
func (c *registered) audience(form url.Values) ([]string, *refusal) {
	var out []string
	for _, resource := range form["resource"] {
		if u, err := url.Parse(resource); err != nil || !u.IsAbs() || u.Fragment != "" {
			return nil, refused("invalid_target", "resource is no absolute URI") // RFC 8707 §2
		}
		out = append(out, resource)
	}
	if form.Has("audience") {
		out = append(out, form.Get("audience"))
	}
	if len(c.Audiences) > 0 {
		out = slices.DeleteFunc(out, func(a string) bool { return !slices.Contains(c.Audiences, a) })
	}
	if len(out) == 0 {
		return []string{c.ID}, nil
	}
	return out, nil
}

// introspect answers an authenticated client (RFC 7662 §2.2).
func (s *server) introspect(w http.ResponseWriter, form url.Values) {
	s.count(func(st *Stats) { st.Introspects++ })
	t, ok := s.find(form.Get("token"))
	if !ok {
		writeJSON(w, http.StatusOK, map[string]any{"active": false})
		return
	}
	doc := map[string]any{"active": true, "client_id": t.client, "sub": cmp.Or(t.user, t.client), "scope": t.scope, "aud": one(t.audience), "token_type": "Bearer",
		"iat": t.from.Unix(), "exp": t.until.Unix()}
	if t.bound != "" {
		doc["cnf"] = map[string]any{"x5t#S256": t.bound}
	}
	writeJSON(w, http.StatusOK, doc)
}

// one writes a list of one as its member (RFC 7519 §4.1.3).
func one(list []string) any {
	if len(list) == 1 {
		return list[0]
	}
	return list
}

// guarded is an API that lets in whoever presents a living token of s: one for
// audience, unless that is empty, and over its certificate, if it has one.
func (s *server) guarded(audience string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		setDate(w)
		token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		t, ok := s.find(token)
		code := "invalid_token" // RFC 6750 §3.1
		switch {
		case !bearer || !ok, audience != "" && !slices.Contains(t.audience, audience):
		case t.bound != "" && t.bound != presented(r):
		default:
			s.count(func(st *Stats) { st.APICalls++ })
			writeJSON(w, http.StatusOK, map[string]any{"client_id": t.client, "scope": t.scope})
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer error="`+code+`"`)
		refuse(w, http.StatusUnauthorized, code, "")
	})
}

// presented is the thumbprint of the request's certificate, or "".
func presented(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	return x5tS256(r.TLS.PeerCertificates[0])
}

// credentials is the client credentials grant (RFC 6749 §4.4) of a client that
// has been authenticated.
func (c *registered) credentials(form url.Values, lifetime time.Duration) (issued, *refusal) {
	scope, ok := c.scopes(form.Get("scope"))
	if !ok {
		return issued{}, refused("invalid_scope", "none of these scopes is the client's")
	}
	audience, x := c.audience(form)
	now := time.Now()
	return issued{client: c.ID, scope: scope, audience: audience, from: now, until: now.Add(lifetime)}, x
}

// opaque answers with a token that says nothing by itself.
func (s *server) opaque(w http.ResponseWriter, f Fault, t issued) {
	token := randomText(32)
	s.keep(token, t)
	f.send(w, map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": int64(t.until.Sub(t.from) / time.Second), "scope": t.scope})
}
