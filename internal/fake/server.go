package fake

import (
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// server is what the servers of this package share: registrations, faults,
// counts, assertions that were used, tokens that live.
type server struct {
	mu      sync.Mutex
	clients map[string]*registered
	fault   Fault
	left    int // requests that the fault still concerns, if fault.Times > 0
	stats   Stats
	flying  int
	used    map[string]time.Time // assertions by issuer and jti, until they expire
	tokens  map[string]issued    // that these servers can look up, by their text
}

// A Client is a registration. The values are test data.
type Client struct {
	ID, Secret string
	// Auth is the only method of authentication that is taken, by its
	// registered name. Empty: every one that the server knows and for which
	// there is something here; but "none" has to be said.
	Auth string
	// Keys are the client's public keys: each a JWK, a JWK set, or
	// certificates in PEM. What is a certificate also counts for
	// self_signed_tls_client_auth.
	Keys []string
	// Subject is the name in certificates for tls_client_auth, as RFC 4514
	// writes it. Empty: that method is not taken.
	Subject string
	// Scopes are what may be granted, and what is when none is asked for.
	Scopes []string
	// Audiences are the values of audience and resource that are heeded.
	// Empty: all.
	Audiences []string
	// RedirectURIs are where codes may be sent; on loopback at any port.
	RedirectURIs []string
	// APIKey is what the API wants: the Gateway's X-IBM-Client-Id, or
	// MijnKlantportaal's alternative to a token.
	APIKey string
}

type registered struct {
	Client
	old  string // a second valid secret
	keys []publicKey
}

// Stats counts what a server has seen at its token endpoint, unless it says
// another.
type Stats struct {
	Requests    int            // all
	Minted      int            // tokens issued
	Refreshed   int            // those of them that a refresh token gave
	Refused     int            // answers with invalid_client, at any endpoint
	Replayed    int            // those of them for an assertion that was used before
	MaxInFlight int            // most requests at a time
	JWKS        int            // requests for the public keys
	Metadata    int            // requests for the metadata
	Revoked     int            // requests for revocation that were granted
	Introspects int            // requests for introspection that were granted
	APICalls    int            // calls that the API has let in
	PerSecret   map[string]int // how often each refused secret was presented
	PerMethod   map[string]int // successful authentications, by method
}

// Register adds or replaces a client. It fails if a key is none, or a private
// one, which no server may be given.
func (s *server) Register(c Client) error {
	r := &registered{Client: c}
	for _, text := range c.Keys {
		keys, err := parseKeys(text)
		if err != nil {
			return err
		}
		r.keys = append(r.keys, keys...)
	}
	s.put(r)
	return nil
}

func (s *server) put(r *registered) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients == nil {
		s.clients = map[string]*registered{}
	}
	s.clients[r.ID] = r
}

// Set switches the current fault; the zero Fault switches it off.
func (s *server) Set(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.left = f, f.Times
}

// SetSecret gives a client a new secret; with alsoOld the one before stays
// valid, and the one before that does not.
func (s *server) SetSecret(id, secret string, alsoOld bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := registered{Client: Client{ID: id}}
	if have := s.clients[id]; have != nil {
		c = *have // others may be reading the registration
	}
	old := c.Secret
	c.Secret, c.old = secret, ""
	if alsoOld {
		c.old = old
	}
	if s.clients == nil {
		s.clients = map[string]*registered{}
	}
	s.clients[id] = &c
}

// Stats gives the counts so far.
func (s *server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.PerSecret, st.PerMethod = maps.Clone(st.PerSecret), maps.Clone(st.PerMethod)
	return st
}

func (s *server) count(f func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stats.PerSecret == nil {
		s.stats.PerSecret, s.stats.PerMethod = map[string]int{}, map[string]int{}
	}
	f(&s.stats)
}

// enter counts a token request, and gives the fault that concerns it.
func (s *server) enter() Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Requests++
	s.flying++
	s.stats.MaxInFlight = max(s.stats.MaxInFlight, s.flying)
	f := s.fault
	if f.Kind.atGateway() || f.Kind == ConsentDenied {
		return Fault{}
	}
	if f.Times > 0 {
		if s.left == 0 {
			return Fault{}
		}
		s.left--
	}
	return f
}

func (s *server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flying--
}

// client gives a registration, which is not changed any more, or nil.
func (s *server) client(id string) *registered {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clients[id]
}

// admit checks a secret, and counts a refusal.
func (s *server) admit(id, secret string, f Fault) bool {
	ok := s.accepts(id, secret, f)
	if !ok {
		s.count(func(st *Stats) { st.Refused++ })
	}
	return ok
}

func (s *server) accepts(id, secret string, f Fault) bool {
	c := s.client(id)
	if f.Kind != InvalidClient && c != nil && c.knows(secret) {
		return true
	}
	s.count(func(st *Stats) { st.PerSecret[secret]++ })
	return false
}

func (c *registered) knows(secret string) bool {
	return secret != "" && (secret == c.Secret || secret == c.old)
}

// A refusal is an error answer (RFC 6749 §5.2). Its text helps whoever writes
// a test.
type refusal struct {
	status     int
	code, text string
}

func refused(code, text string) *refusal {
	status := http.StatusBadRequest
	if code == "invalid_client" {
		status = http.StatusUnauthorized
	}
	return &refusal{status, code, text}
}

// readForm reads a request to a token endpoint or one beside it: a POST of a
// form without repeated parameters (RFC 6749 §3.2), and no credentials in the
// address (§2.3.1).
func readForm(w http.ResponseWriter, r *http.Request) (url.Values, *refusal) {
	query := r.URL.Query()
	for _, name := range []string{"client_secret", "client_assertion", "assertion", "refresh_token", "code", "token"} {
		if query.Has(name) {
			return nil, refused("invalid_request", name+" must not be in the address")
		}
	}
	if r.Method != http.MethodPost {
		return nil, &refusal{http.StatusMethodNotAllowed, "invalid_request", "the request is no POST"}
	}
	if mediaType(r) != "application/x-www-form-urlencoded" {
		return nil, refused("invalid_request", "the body is no form")
	}
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if err := r.ParseForm(); err != nil {
		return nil, refused("invalid_request", "the form cannot be read")
	}
	for name, values := range r.PostForm {
		if len(values) > 1 && name != "resource" { // RFC 8707 §2
			return nil, refused("invalid_request", name+" is there twice")
		}
	}
	return r.PostForm, nil
}

func mediaType(r *http.Request) string {
	t, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(t))
}

// base is the address of the server as the client sees it.
func base(r *http.Request) string {
	if r.TLS == nil {
		return "http://" + r.Host
	}
	return "https://" + r.Host
}

func setDate(w http.ResponseWriter) {
	if w.Header().Get("Date") == "" {
		w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
	}
}

// write sends the refusal.
func (x *refusal) write(w http.ResponseWriter, r *http.Request) {
	if x.status == http.StatusUnauthorized && r.Header.Get("Authorization") != "" {
		w.Header().Set("WWW-Authenticate", `Basic realm="token"`) // RFC 6749 §5.2
	}
	refuse(w, x.status, x.code, x.text)
}
