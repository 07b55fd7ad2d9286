package fake

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// A ZGW is the API of an Open Zaak, below /zaken/api/v1/: it wants a JWT that
// its caller has signed (HS256) with the secret that is registered, not older
// than an hour and not of the future. The zero ZGW is ready for use.
type ZGW struct {
	server
	// NoAC makes it fail to ask its Autorisatiecomponent. Not to be changed later.
	NoAC bool

	userID, userRepresentation string
}

// zgwClaims are those that it reads. Numbers may have a fraction.
type zgwClaims struct {
	ClientID           string   `json:"client_id"`
	UserID             string   `json:"user_id"`
	UserRepresentation string   `json:"user_representation"`
	IssuedAt           *float64 `json:"iat"`
	NotBefore          *float64 `json:"nbf"`
	Expires            *float64 `json:"exp"`
}

const zgwExpiry = 3600.0 // seconds after iat, Open Zaak's JWT_EXPIRY

// RoundTripper reaches it without a network: see [Local].
func (z *ZGW) RoundTripper() http.RoundTripper { return Local(z) }

// User is whom the last JWT that was let in has named.
func (z *ZGW) User() (id, representation string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.userID, z.userRepresentation
}

// ServeHTTP implements http.Handler. All refusals are 403.
func (z *ZGW) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setDate(w)
	f := z.enter()
	defer z.leave()
	if f.before(w, r) {
		return
	}
	if !strings.HasPrefix(r.URL.Path, "/zaken/api/v1/") {
		problem(w, http.StatusNotFound, "not_found", "Not found.")
		return
	}
	token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !bearer {
		problem(w, http.StatusForbidden, "not_authenticated", "No credentials were given.")
		return
	}
	c, code := z.check(token, time.Now())
	if code != "" {
		z.count(func(st *Stats) { st.Refused++ })
		problem(w, http.StatusForbidden, code, "The JWT is refused.")
		return
	}
	z.count(func(st *Stats) { st.APICalls++ })
	z.mu.Lock()
	z.userID, z.userRepresentation = c.UserID, c.UserRepresentation
	z.mu.Unlock()
	f.send(w, map[string]any{"count": 0, "next": nil, "previous": nil, "results": []any{}})
}

// check gives the claims of a token, or the code of what is wrong with it.
func (z *ZGW) check(token string, at time.Time) (c zgwClaims, code string) {
	var header struct {
		Alg              string
		ClientIdentifier string `json:"client_identifier"` // the form of 2018
	}
	input, sig := cutLast(token, ".")
	head, payload, ok := strings.Cut(input, ".")
	mac, err := base64.RawURLEncoding.DecodeString(sig)
	if !ok || err != nil || readPart(head, &header) != nil || readPart(payload, &c) != nil || header.Alg != "HS256" {
		return c, "jwt-decode-error"
	}
	// Whose secret it is follows from what nobody has verified yet.
	id := c.ClientID
	if id == "" {
		id = header.ClientIdentifier
	}
	client := z.client(id)
	switch {
	case id == "":
		return c, "missing-client-identifier"
	case client == nil || client.Secret == "":
		return c, "invalid-client-identifier"
	case !macOf(client.Secret, input, mac) && (client.old == "" || !macOf(client.old, input, mac)):
		return c, "invalid-jwt-signature"
	}
	now := float64(at.UnixNano()) / 1e9
	switch {
	case c.IssuedAt == nil:
		return c, "jwt-missing-iat-claim"
	case *c.IssuedAt > now, c.NotBefore != nil && *c.NotBefore > now: // no leeway
		return c, "jwt-decode-error"
	case now-*c.IssuedAt >= zgwExpiry, c.Expires != nil && *c.Expires <= now:
		return c, "jwt-expired"
	case z.NoAC:
		return c, "not_authenticated_for_ac"
	}
	return c, ""
}

func readPart(part string, to any) error {
	raw, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, to)
}

func macOf(secret, input string, mac []byte) bool {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(input))
	return hmac.Equal(h.Sum(nil), mac)
}

// problem writes an error document as those APIs do (RFC 7807).
func problem(w http.ResponseWriter, status int, code, detail string) {
	doc, err := json.Marshal(map[string]any{"type": "about:blank", "code": code, "title": http.StatusText(status), "status": status, "detail": detail})
	if err != nil {
		panic(err) // it holds nothing that can fail
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_, _ = w.Write(doc)
}
