package api

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
)

const (
	maxUser    = 255  // bytes of user_id, user_representation
	maxCode    = 4096 // bytes of an authorization code
	maxKeyID   = 255  // bytes of an issuer's name for a key
	maxSubject = 64   // characters of a certificate's common name (RFC 5280, appendix A.1)
	maxWord    = 1024 // bytes of redirect_uri, state, iss
	userFields = `{"user_id", "user_representation"}`
	keyFields  = `{"kind", "certificate", "subject"}`
)

// jwt answers with a JWT that the broker signs, for the user that is named.
func (s *Server) jwt(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	body, err := s.optionalBody(w, r)
	if err != nil {
		return err
	}
	user, err := parseUser(body)
	if err != nil {
		return err
	}
	g, err := s.cfg.Broker.JWT(r.Context(), c, broker.UserRequest{Client: name, User: user})
	if err != nil {
		return err
	}
	return s.sendWiped(w, s.fixed.json, func(b *wiped) error { return b.token(g) })
}

func (s *Server) key(w http.ResponseWriter, r *http.Request, _ *access.Caller, name string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	key, err := s.cfg.Administration.Key(r.Context(), name)
	return s.done(w, key, err)
}

func (s *Server) newKey(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	body, err := s.optionalBody(w, r)
	if err != nil {
		return err
	}
	want, err := parseNewKey(body)
	if err != nil {
		return err
	}
	if err := s.act(r, c, "keys.new", name, map[string]string{"kind": want.Kind, "certificate": truth(want.Certificate)}); err != nil {
		return err
	}
	key, err := s.cfg.Administration.NewKey(r.Context(), name, want)
	return s.done(w, key, err)
}

func (s *Server) rotateKey(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	body, err := s.optionalBody(w, r)
	if err != nil {
		return err
	}
	want, err := parseKeyRotation(body)
	if err != nil {
		return err
	}
	if err := s.act(r, c, "keys.rotate", name, map[string]string{"kind": want.Kind, "probe": truth(want.Probe), "abandon": truth(want.Abandon)}); err != nil {
		return err
	}
	done, err := s.cfg.Administration.RotateKey(r.Context(), name, want)
	return s.done(w, done, err)
}

func (s *Server) login(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	body, err := s.optionalBody(w, r)
	if err != nil {
		return err
	}
	start, err := parseLoginStart(body)
	if err != nil {
		return err
	}
	if err := s.act(r, c, "login.start", name, nil); err != nil {
		return err
	}
	login, err := s.cfg.Administration.Login(r.Context(), name, start)
	return s.done(w, login, err)
}

// finishLogin's record names neither code nor state.
func (s *Server) finishLogin(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	body, err := s.readBody(w, r)
	if err != nil {
		return err
	}
	code, err := parseLoginFinish(body)
	if err != nil {
		return err
	}
	defer code.Code.Wipe()
	if err := s.act(r, c, "login", name, nil); err != nil {
		return err
	}
	done, err := s.cfg.Administration.FinishLogin(r.Context(), name, code)
	return s.done(w, done, err)
}

func (s *Server) revoke(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	body, err := s.optionalBody(w, r)
	if err != nil {
		return err
	}
	var want client.Revocation
	if want.Login, err = parseSwitch(body, "login"); err != nil {
		return err
	}
	if err := s.act(r, c, "revoke", name, map[string]string{"login": truth(want.Login)}); err != nil {
		return err
	}
	done, err := s.cfg.Administration.Revoke(r.Context(), name, want)
	return s.done(w, done, err)
}

// parseUser reads the body of a jwt request, if there is one, and wipes it.
// Its errors do not repeat the values: they are personal data.
func parseUser(body []byte) (oidc.User, error) {
	defer clear(body)
	m, err := optionalMembers(body, userFields, "user_id", "user_representation")
	if err != nil {
		return oidc.User{}, err
	}
	defer wipe(m)
	var u oidc.User
	for name, to := range map[string]*string{"user_id": &u.ID, "user_representation": &u.Representation} {
		raw, there := m[name]
		if !there {
			continue
		}
		value, ok := text(raw)
		if !ok || len(value) > maxUser || !plainText(value) {
			return oidc.User{}, invalid(name + " is a string of at most 255 bytes, without control characters")
		}
		*to = string(value)
		clear(value)
	}
	return u, nil
}

func parseNewKey(body []byte) (client.NewKey, error) {
	m, err := optionalMembers(body, keyFields, "kind", "certificate", "subject")
	if err != nil {
		return client.NewKey{}, err
	}
	return newKeyOf(m)
}

func parseKeyRotation(body []byte) (k client.KeyRotation, err error) {
	m, err := optionalMembers(body, `{"kind", "certificate", "subject", "key_id", "probe", "abandon"}`, "kind", "certificate", "subject", "key_id", "probe", "abandon")
	if err != nil {
		return k, err
	}
	if k.NewKey, err = newKeyOf(m); err != nil {
		return k, err
	}
	if k.Probe, err = truthOf(m, "probe"); err != nil {
		return k, err
	}
	if k.Abandon, err = truthOf(m, "abandon"); err != nil {
		return k, err
	}
	if raw, there := m["key_id"]; there {
		value, _ := text(raw)
		if k.KeyID = string(value); k.KeyID == "" || len(k.KeyID) > maxKeyID || !plainText(value) {
			return k, invalid("key_id is a name of 1 to 255 bytes, without control characters")
		}
	}
	if about := (k.NewKey != client.NewKey{}) || k.KeyID != ""; k.Probe && k.Abandon || about && (k.Probe || k.Abandon) {
		return k, invalid("probe and abandon stand alone: they are about the pending key that there is")
	}
	return k, nil
}

func newKeyOf(m map[string]json.RawMessage) (k client.NewKey, err error) {
	if raw, there := m["kind"]; there {
		kinds := []string{"rsa-2048", "rsa-3072", "rsa-4096", "p-256", "ed25519"}
		value, _ := text(raw)
		if k.Kind = string(value); !slices.Contains(kinds, k.Kind) {
			return k, invalid("kind is one of " + strings.Join(kinds, ", "))
		}
	}
	if k.Certificate, err = truthOf(m, "certificate"); err != nil {
		return k, err
	}
	if raw, there := m["subject"]; there {
		value, _ := text(raw)
		if k.Subject = string(value); k.Subject == "" || utf8.RuneCountInString(k.Subject) > maxSubject || !plainText(value) {
			return k, invalid("subject is a name of 1 to 64 characters, without control characters")
		}
	}
	return k, nil
}

func parseLoginStart(body []byte) (client.LoginStart, error) {
	var l client.LoginStart
	m, err := optionalMembers(body, `{"redirect_uri"}`, "redirect_uri")
	if err != nil {
		return l, err
	}
	if raw, there := m["redirect_uri"]; there {
		l.RedirectURI, err = word(raw, "redirect_uri")
	}
	return l, err
}

// parseLoginFinish reads the body of a finished login and wipes it. The code
// never becomes a string.
func parseLoginFinish(body []byte) (broker.LoginCode, error) {
	defer clear(body)
	var none broker.LoginCode
	m, err := members(body, `{"state", "code", "iss"}`, "state", "code", "iss")
	if err != nil {
		return none, err
	}
	defer wipe(m)
	var out broker.LoginCode
	if out.State, err = word(m["state"], "state"); err != nil {
		return none, err
	}
	if raw, there := m["iss"]; there {
		if out.Issuer, err = word(raw, "iss"); err != nil {
			return none, err
		}
	}
	value, _ := text(m["code"])
	if !visible(value, maxCode) {
		clear(value)
		return none, invalid("code is a string of printable ASCII without spaces, at most 4096 bytes")
	}
	out.Code = secret.New(value)
	return out, nil
}

// parseSwitch reads an optional body with one member that is true or false.
func parseSwitch(body []byte, name string) (bool, error) {
	m, err := optionalMembers(body, `{"`+name+`": true or false}`, name)
	if err != nil {
		return false, err
	}
	return truthOf(m, name)
}

// optionalMembers is members of a body that may be missing.
func optionalMembers(body []byte, form string, names ...string) (map[string]json.RawMessage, error) {
	if len(body) == 0 {
		return nil, nil
	}
	return members(body, form, names...)
}

func truthOf(m map[string]json.RawMessage, name string) (bool, error) {
	raw, there := m[name]
	if !there {
		return false, nil
	}
	if s := string(raw); s != "true" && s != "false" {
		return false, invalid(name + " is true or false")
	}
	return string(raw) == "true", nil
}

func truth(b bool) string {
	if b {
		return "true"
	}
	return "false"
}

// word is a member without spaces, such as a URI.
func word(raw json.RawMessage, name string) (string, error) {
	value, _ := text(raw)
	if !visible(value, maxWord) {
		return "", invalid(name + " is a string of printable ASCII without spaces, at most 1024 bytes")
	}
	return string(value), nil
}

// visible says whether b holds 1 to most bytes of ASCII that shows.
func visible(b []byte, most int) bool {
	for _, c := range b {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(b) > 0 && len(b) <= most
}

// plainText says whether b is UTF-8 without control characters.
func plainText(b []byte) bool {
	for _, r := range string(b) {
		if unicode.IsControl(r) {
			return false
		}
	}
	return utf8.Valid(b)
}
