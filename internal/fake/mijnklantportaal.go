package fake

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// A MijnKlantportaal answers as that portal does: /oauth/authorize, where the
// person is logged in and consents at once, /oauth/tokens, which takes JSON
// alone and names no token_type, and an API below /api/, which wants a token or
// an API key in the header Authentication. The zero MijnKlantportaal is ready
// for use.
type MijnKlantportaal struct {
	server
	// Lifetime is that of the access tokens. Zero: an hour. Not to be changed later.
	Lifetime time.Duration
	// RotateRefresh gives a new refresh token at every refresh and ends the old
	// one at once, as Geosecure does. False: there is one, in the first answer.
	// Not to be changed later.
	RotateRefresh bool
	// User is who logs in. Empty: "user". Not to be changed later.
	User string

	codes   map[string]consent // by code, each used once
	refresh map[string]consent // by refresh token
	prompt  string
}

// A consent is what a person has allowed.
type consent struct {
	client, user, scope string
	redirect, challenge string    // of a code
	until               time.Time // of a code
}

const codeLifetime = time.Minute

// RoundTripper reaches it without a network: see [Local].
func (m *MijnKlantportaal) RoundTripper() http.RoundTripper { return Local(m) }

// Prompt is what the last visit to /oauth/authorize had as prompt.
func (m *MijnKlantportaal) Prompt() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.prompt
}

// Revoke takes a person's consent back: all codes and tokens end.
func (m *MijnKlantportaal) Revoke(user string) {
	m.drop(func(_ string, t issued) bool { return t.user == user })
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, list := range []map[string]consent{m.codes, m.refresh} {
		for text, c := range list {
			if c.user == user {
				delete(list, text)
			}
		}
	}
}

// ServeHTTP implements http.Handler.
func (m *MijnKlantportaal) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setDate(w)
	switch {
	case r.URL.Path == "/oauth/authorize" && r.Method == http.MethodGet:
		m.authorize(w, r)
	case r.URL.Path == "/oauth/tokens":
		m.token(w, r)
	case strings.HasPrefix(r.URL.Path, "/api/"):
		m.api(w, r)
	default:
		page(w, http.StatusNotFound, "404", "Not found.")
	}
}

// authorize sends the person back at once. What is wrong with the client or
// its address is said here, the rest there (RFC 6749 §4.1.2.1).
func (m *MijnKlantportaal) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	m.mu.Lock()
	m.prompt = q.Get("prompt")
	denied := m.fault.Kind == ConsentDenied
	m.mu.Unlock()
	client := m.client(q.Get("client_id"))
	if client == nil || !client.redirects(q.Get("redirect_uri")) {
		page(w, http.StatusBadRequest, "400", "This application or its address is not known.")
		return
	}
	scope, ok := client.scopes(q.Get("scope"))
	back, code := url.Values{}, ""
	switch {
	case q.Get("response_type") != "code":
		code = "unsupported_response_type"
	case !slices.Contains([]string{"", "consent", "login"}, q.Get("prompt")), q.Has("code_challenge") && q.Get("code_challenge_method") != "S256":
		code = "invalid_request"
	case q.Get("scope") != "" && !ok:
		code = "invalid_scope"
	case denied:
		code = "access_denied"
	}
	if code != "" {
		back.Set("error", code)
	} else {
		back.Set("code", m.remember(&m.codes, consent{client.ID, cmp.Or(m.User, "user"), scope, q.Get("redirect_uri"), q.Get("code_challenge"), time.Now().Add(codeLifetime)}))
	}
	if q.Has("state") {
		back.Set("state", q.Get("state"))
	}
	to, _ := url.Parse(q.Get("redirect_uri")) // redirects has parsed it
	query := to.Query()
	for name, v := range back {
		query[name] = v
	}
	to.RawQuery = query.Encode()
	w.Header().Set("Location", to.String())
	page(w, http.StatusFound, "302", "You are sent back.")
}

// redirects says whether uri is a registered one, on loopback at any port
// (RFC 8252 §7.3).
func (c *registered) redirects(uri string) bool {
	u, err := url.Parse(uri)
	return err == nil && slices.ContainsFunc(c.RedirectURIs, func(have string) bool {
		h, err := url.Parse(have)
		loopback := err == nil && h.Scheme == "http" && slices.Contains([]string{"127.0.0.1", "::1"}, h.Hostname())
		return have == uri || loopback && u.Scheme == h.Scheme && u.Hostname() == h.Hostname() && u.RequestURI() == h.RequestURI() && u.User == nil && u.Fragment == ""
	})
}

// remember makes a code or refresh token.
func (m *MijnKlantportaal) remember(list *map[string]consent, c consent) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if *list == nil {
		*list = map[string]consent{}
	}
	text := randomText(24)
	(*list)[text] = c
	return text
}

func (m *MijnKlantportaal) token(w http.ResponseWriter, r *http.Request) {
	f := m.enter()
	defer m.leave()
	if f.before(w, r) {
		return
	}
	answer, x := m.exchange(w, r, f)
	if x != nil {
		x.write(w, r)
		return
	}
	f.send(w, answer)
}

// exchange answers a request that may have a token.
func (m *MijnKlantportaal) exchange(w http.ResponseWriter, r *http.Request, f Fault) (map[string]any, *refusal) {
	var in map[string]string
	switch {
	case r.Method != http.MethodPost:
		return nil, &refusal{http.StatusMethodNotAllowed, "invalid_request", "the request is no POST"}
	case mediaType(r) != "application/json":
		return nil, refused("invalid_request", "the body is not JSON")
	case json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&in) != nil:
		return nil, refused("invalid_request", "the body is no JSON object of strings")
	case !m.admit(in["client_id"], in["client_secret"], f):
		return nil, refused("invalid_client", "")
	}
	m.count(func(st *Stats) { st.PerMethod[secretPost]++ })
	var c consent
	var x *refusal
	refresh := ""
	switch in["grant_type"] {
	case "authorization_code":
		if c, x = m.redeem(in); x == nil {
			refresh = m.remember(&m.refresh, consent{client: c.client, user: c.user, scope: c.scope})
		}
	case "refresh_token":
		if c, x = m.renew(in); x == nil && m.RotateRefresh {
			refresh = m.remember(&m.refresh, c)
		}
	default:
		x = refused("unsupported_grant_type", "")
	}
	if x != nil {
		return nil, x
	}
	now, token := time.Now(), randomText(32)
	lifetime := f.lifetime(cmp.Or(m.Lifetime, time.Hour))
	m.keep(token, issued{client: c.client, user: c.user, scope: c.scope, from: now, until: now.Add(lifetime)})
	answer := map[string]any{"access_token": token, "expires_in": int64(lifetime / time.Second)}
	if refresh != "" {
		answer["refresh_token"] = refresh
	}
	return answer, nil
}

// redeem uses up a code, also when what came with it is wrong.
func (m *MijnKlantportaal) redeem(in map[string]string) (consent, *refusal) {
	m.mu.Lock()
	c, ok := m.codes[in["code"]]
	delete(m.codes, in["code"])
	m.mu.Unlock()
	sum := sha256.Sum256([]byte(in["code_verifier"]))
	switch {
	case !ok, !time.Now().Before(c.until), c.client != in["client_id"]:
		return c, refused("invalid_grant", "the code is not known, used or too old")
	case c.redirect != in["redirect_uri"]:
		return c, refused("invalid_grant", "redirect_uri is not the one of the code")
	case c.challenge == "" && in["code_verifier"] != "", // RFC 9700 §2.1.1
		c.challenge != "" && c.challenge != base64.RawURLEncoding.EncodeToString(sum[:]):
		return c, refused("invalid_grant", "code_verifier does not fit")
	}
	return c, nil
}

// renew takes a refresh token, which is used up if they rotate.
func (m *MijnKlantportaal) renew(in map[string]string) (consent, *refusal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.refresh[in["refresh_token"]]
	if !ok || c.client != in["client_id"] {
		return c, refused("invalid_grant", "")
	}
	if m.RotateRefresh {
		delete(m.refresh, in["refresh_token"])
	}
	m.stats.Refreshed++
	return c, nil
}

// api wants the header that the portal documents.
func (m *MijnKlantportaal) api(w http.ResponseWriter, r *http.Request) {
	token, bearer := strings.CutPrefix(r.Header.Get("Authentication"), "Bearer ")
	_, ok := m.find(token)
	m.mu.Lock()
	for _, c := range m.clients {
		ok = ok || c.APIKey != "" && c.APIKey == token
	}
	m.mu.Unlock()
	if !bearer || !ok {
		writeJSON(w, http.StatusUnauthorized, map[string]any{"message": "Unauthenticated."})
		return
	}
	m.count(func(st *Stats) { st.APICalls++ })
	writeJSON(w, http.StatusOK, map[string]any{"data": []any{}})
}
