package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
)

const (
	maxParameter = 1024           // bytes of scope, audience, resource
	maxMinTTL    = 24 * time.Hour //
	maxToken     = 16 << 10       // bytes of a rejected token
	maxMore      = 2048           // bytes of more_information
	fingerprints = 43             // characters of base64url(SHA-256)
	parameters   = "min_ttl, scope, audience, resource, surface"
	rejectFields = `{"access_token" or "fingerprint", "status", "more_information"}`
)

// parse reads a query strictly: take says whether it knows a parameter, and
// what is wrong with its value.
func parse(query, known string, take func(name, value string) (bool, error)) error {
	var seen []string
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(rawName)
		value, err2 := url.QueryUnescape(rawValue)
		if err != nil || err2 != nil {
			return invalid("the query is not percent-encoded as it should be")
		}
		ok, err := take(name, value)
		switch {
		case !ok && known == "":
			return invalid("this path takes no parameters")
		case !ok:
			return invalid("unknown parameter; this path takes " + known)
		case err != nil:
			return err
		}
		for _, s := range seen {
			if s == name {
				return invalid("the parameter " + name + " is given twice")
			}
		}
		seen = append(seen, name)
	}
	return nil
}

func noQuery(r *http.Request) error {
	return parse(r.URL.RawQuery, "", func(string, string) (bool, error) { return false, nil })
}

// tokenRequest reads the parameters of a token. With surface=exec the request
// is one of broker exec: an entry that names exec alone lets it pass, and one
// that does not name exec does not. The caller says so itself, which is sound:
// both are the entry's caller, whom the kernel knows.
func tokenRequest(query, name string, surface access.Surface) (broker.Request, error) {
	req := broker.Request{Client: name, Surface: surface}
	if query == "" {
		return req, nil
	}
	err := parse(query, parameters, func(name, value string) (bool, error) {
		switch name {
		case "min_ttl":
			d, err := clock.ParseDuration(value)
			if err != nil || d.D() > maxMinTTL {
				return true, invalid("min_ttl is a duration up to 24h, such as 30s or 5m")
			}
			req.MinTTL = d.D()
		case "scope":
			req.Scope = value
		case "audience":
			req.Audience = value
		case "resource":
			req.Resource = value
		case "surface":
			if value != string(access.Exec) {
				return true, invalid("surface is exec, as broker exec says it, or is left out")
			}
			req.Surface, req.NeedsToken = access.Exec, surface != access.Headers
		default:
			return false, nil
		}
		return true, printable(name, value)
	})
	if err == nil && !validScope(req.Scope) {
		err = invalid("scope holds words with one space between (RFC 6749, section 3.3)")
	}
	return req, err
}

func printable(name, value string) error {
	if len(value) > maxParameter {
		return invalid("the parameter " + name + " is too long")
	}
	for i := range len(value) {
		if value[i] < ' ' || value[i] > '~' {
			return invalid("the parameter " + name + " may hold printable ASCII characters only")
		}
	}
	return nil
}

// validScope checks printable ASCII against RFC 6749, section 3.3.
func validScope(s string) bool {
	return !strings.ContainsAny(s, `"\`) && !strings.HasPrefix(s, " ") && !strings.HasSuffix(s, " ") && !strings.Contains(s, "  ")
}

// optionalBody reads the JSON body of a request that may do without, and has no
// query. The caller owns and wipes it.
func (s *Server) optionalBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if err := noQuery(r); err != nil || r.ContentLength == 0 {
		return nil, err
	}
	return s.readBody(w, r)
}

// readBody reads a JSON body. The caller owns and wipes it.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	return s.readUpTo(w, r, maxBody)
}

// readUpTo is readBody with a limit of its own, in bytes.
func (s *Server) readUpTo(w http.ResponseWriter, r *http.Request, most int64) ([]byte, error) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return nil, invalid("send the body as JSON, with Content-Type: application/json")
	}
	return s.readAny(w, r, most)
}

// readAny reads a body of whatever kind.
func (s *Server) readAny(w http.ResponseWriter, r *http.Request, most int64) ([]byte, error) {
	tooLarge := invalid(fmt.Sprintf("the body is larger than %d KiB", most>>10))
	if r.ContentLength > most {
		return nil, tooLarge
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.times.body))
	// One buffer of the final size: growing would leave copies of a token.
	size := r.ContentLength
	if size < 0 {
		size = most
	}
	body := make([]byte, size+1)
	n, err := io.ReadFull(r.Body, body)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && int64(n) >= r.ContentLength {
		return body[:n], nil // at the end of a body net/http takes the deadline off
	}
	// The deadline stays: net/http reads on, to find the end of the request.
	clear(body)
	w.Header().Set("Connection", "close")
	if err == nil {
		return nil, tooLarge
	}
	return nil, invalid("the body broke off, or came too slowly")
}

// members reads a JSON object whose members are among the names. Unlike a
// struct, it tells upper from lower case, and null from nothing. The members
// stay bytes, so that a token leaves no string behind; the caller wipes them.
func members(body []byte, form string, names ...string) (map[string]json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(body, &m); err != nil || m == nil {
		return nil, invalid("the body has to be a JSON object: " + form)
	}
	for name := range m {
		if !slices.Contains(names, name) {
			wipe(m)
			return nil, invalid("the body has a member that is not known; it takes " + form)
		}
	}
	if memberCount(body) != len(m) {
		wipe(m)
		return nil, invalid("the body has a member twice; it takes " + form)
	}
	return m, nil
}

// memberCount is how many members the outermost object of valid JSON has, each
// counted as often as it stands there.
func memberCount(body []byte) (n int) {
	depth, inside := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case inside && c == '\\':
			i++
		case c == '"':
			inside = !inside
		case inside:
		case c == '{', c == '[':
			depth++
		case c == '}', c == ']':
			depth--
		case c == ':' && depth == 1:
			n++
		}
	}
	return n
}

func wipe(m map[string]json.RawMessage) {
	for _, raw := range m {
		clear(raw)
	}
}

// parseRotation reads the body of a rotate request; there may be none.
func parseRotation(body []byte) (client.Rotation, error) {
	var r client.Rotation
	m, err := optionalMembers(body, `{"accept": true or false, "version" or "latest", "stored" and "fields"}`, "accept", "version", "latest", "stored", "fields")
	if err != nil {
		return r, err
	}
	if r.Accept, err = truthOf(m, "accept"); err != nil {
		return r, err
	}
	if r.Latest, err = truthOf(m, "latest"); err != nil {
		return r, err
	}
	for name, to := range map[string]*string{"version": &r.Version, "stored": &r.Stored} {
		if raw, there := m[name]; there {
			v, ok := text(raw)
			if *to = string(v); !ok || !validVersion(*to) {
				return r, invalid(name + " is one of the secrets manager's versions, as broker status shows them")
			}
		}
	}
	if raw, there := m["fields"]; there {
		if json.Unmarshal(raw, &r.Fields) != nil || len(r.Fields) == 0 || len(r.Fields) > 3 || r.Stored == "" || slices.ContainsFunc(r.Fields, func(f string) bool { return !broker.Brought(f) }) {
			return r, invalid("fields names what is new in the version that was stored: client_id, client_secret, api_key")
		}
	}
	if r.Latest && (r.Version != "" || r.Accept || r.Stored != "") {
		return r, invalid("latest takes a pin away: it goes with nothing else")
	}
	return r, nil
}

// validVersion says whether a bundle's version could be called so: that of a
// gathered one is a list.
func validVersion(s string) bool {
	return len(s) > 0 && len(s) <= 1024 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-+") == ""
}

// parseRejection reads the body of a reject request and wipes it.
func parseRejection(body []byte) (broker.Rejection, error) {
	defer clear(body)
	var none broker.Rejection
	members, err := members(body, rejectFields, "access_token", "fingerprint", "status", "more_information")
	if err != nil {
		return none, err
	}
	defer wipe(members)
	var out broker.Rejection
	var ok bool
	if out.Status, ok = apiStatus(members["status"]); !ok {
		return none, invalid("status is the API's HTTP status, 400 to 599")
	}
	if raw, there := members["more_information"]; there {
		more, ok := text(raw)
		if !ok || utf8.RuneCount(more) > maxMore {
			return none, invalid("more_information is a string of at most 2048 characters")
		}
		out.MoreInformation = string(more)
	}
	token, byToken := members["access_token"]
	fingerprint, byFingerprint := members["fingerprint"]
	switch {
	case byToken && byFingerprint:
		return none, invalid("name the token by one of access_token and fingerprint")
	case !byToken && !byFingerprint: // of an API key
		return out, nil
	}
	if byFingerprint {
		value, _ := text(fingerprint)
		if out.Fingerprint = string(value); !validFingerprint(out.Fingerprint) {
			return none, invalid("fingerprint is 43 characters of base64url, as /token gives it")
		}
		return out, nil
	}
	value, _ := text(token)
	if !validToken(value) {
		clear(value)
		return none, invalid("access_token is a string of printable ASCII without spaces, at most 16384 bytes")
	}
	out.AccessToken = secret.New(value)
	return out, nil
}

// text is a JSON string's content, which the caller wipes where it has to.
func text(raw json.RawMessage) ([]byte, bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return nil, false
	}
	return secret.Unquote(raw[1 : len(raw)-1]), true
}

func apiStatus(raw json.RawMessage) (int, bool) {
	var n float64 // 401.0 is an integer to JSON Schema
	if raw == nil || json.Unmarshal(raw, &n) != nil {
		return 0, false
	}
	return int(n), n >= 400 && n <= 599 && n == math.Trunc(n)
}

// validToken follows RFC 6750, section 2.1, and allows what some issuers add.
func validToken(b []byte) bool { return visible(b, maxToken) }

func validFingerprint(s string) bool {
	if len(s) != fingerprints {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
