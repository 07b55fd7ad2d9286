package api

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
)

// Rules of this file: the record of an act names client and incident alone,
// never what somebody wrote; a dry run does nothing, and so needs no record:
// it works when nothing can be recorded.

const (
	maxProse     = 2000 // bytes of a text in a declaration
	maxEvidence  = 1 << 20
	guess        = 16  // bytes of a text that count as one place of a scan
	maxHost      = 253 // characters of a host's name (RFC 1035, section 2.3.4)
	declareForm  = `{"client", "severity", "what", "happened", …}, as in openapi.yaml`
	releaseForm  = `{"new_secret_confirmed": true or false}`
	closeForm    = `{"old_still_valid", "as", "new_secret_confirmed"}`
	confirmedNew = "new_secret_confirmed"
	incidentForm = "2026-0007@web1"
)

func (s *Server) declare(w http.ResponseWriter, r *http.Request, c *access.Caller, _ string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	body, err := s.readBody(w, r)
	if err != nil {
		return err
	}
	d, err := parseDeclaration(body)
	if err != nil {
		return err
	}
	if d.DryRun { // its answer tells whether a text holds a secret
		size := len(d.Happened) + len(d.Where) + len(d.FoundBy) + len(d.As)
		if err := s.lookUp(r, 1+size/guess); err != nil {
			return err
		}
	} else {
		var detail map[string]string
		if id := cmp.Or(d.Draft, d.Joins); id != "" {
			detail = map[string]string{"incident": id}
		}
		if err := s.act(r, c, "leak.declare", d.Client, detail); err != nil {
			return err
		}
	}
	i, err := s.cfg.Administration.Declare(r.Context(), c, d)
	return s.done(w, i, err)
}

func (s *Server) incidents(w http.ResponseWriter, r *http.Request, _ *access.Caller, _ string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	list, err := s.cfg.Administration.Incidents(r.Context())
	if list == nil {
		list = []client.Incident{}
	}
	return s.done(w, client.Incidents{Incidents: list}, err)
}

func (s *Server) incident(w http.ResponseWriter, r *http.Request, _ *access.Caller, id string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	i, err := s.cfg.Administration.Incident(r.Context(), id)
	return s.done(w, i, err)
}

func (s *Server) release(w http.ResponseWriter, r *http.Request, c *access.Caller, id string) error {
	body, err := s.optionalBody(w, r)
	if err != nil {
		return err
	}
	m, err := optionalMembers(body, releaseForm, confirmedNew)
	if err != nil {
		return err
	}
	var how client.IncidentRelease
	if how.NewSecretConfirmed, err = truthOf(m, confirmedNew); err != nil {
		return err
	}
	if err := s.actOn(r, c, "leak.release", id); err != nil {
		return err
	}
	i, err := s.cfg.Administration.Release(r.Context(), c, id, how)
	return s.done(w, i, err)
}

func (s *Server) closeIncident(w http.ResponseWriter, r *http.Request, c *access.Caller, id string) error {
	body, err := s.optionalBody(w, r)
	if err != nil {
		return err
	}
	how, err := parseClose(body)
	if err != nil {
		return err
	}
	if err := s.actOn(r, c, "leak.close", id); err != nil {
		return err
	}
	i, err := s.cfg.Administration.Close(r.Context(), c, id, how)
	return s.done(w, i, err)
}

func (s *Server) drill(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	if err := empty(r); err != nil {
		return err
	}
	if err := s.act(r, c, "leak.drill", name, nil); err != nil {
		return err
	}
	i, err := s.cfg.Administration.Drill(r.Context(), c, name)
	return s.done(w, i, err)
}

func (s *Server) evidence(w http.ResponseWriter, r *http.Request, _ *access.Caller, id string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	e, err := s.cfg.Administration.Evidence(r.Context(), id)
	return s.done(w, e, err)
}

func (s *Server) addEvidence(w http.ResponseWriter, r *http.Request, c *access.Caller, id string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	body, err := s.readUpTo(w, r, maxEvidence)
	if err != nil {
		return err
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(body, &object); err != nil || object == nil {
		return invalid("evidence is the JSON object that broker leak evidence printed on another host")
	}
	if err := s.actOn(r, c, "leak.evidence", id); err != nil {
		return err
	}
	i, err := s.cfg.Administration.AddEvidence(r.Context(), c, id, body)
	return s.done(w, i, err)
}

// actOn records an act on an incident.
func (s *Server) actOn(r *http.Request, c *access.Caller, act, id string) error {
	return s.act(r, c, act, "", map[string]string{"incident": id})
}

// parseDeclaration reads the body of a declaration and wipes it. Its errors do
// not repeat the texts.
func parseDeclaration(body []byte) (client.Declaration, error) {
	defer clear(body)
	var d client.Declaration
	m, err := members(body, declareForm, "client", "draft", "severity", "what", "happened", "where", "found_by", "from", "to",
		"personal_data", "policy", "as", "joins", "no_mail", "dry_run", "language")
	if err != nil {
		return d, err
	}
	defer wipe(m)
	name, _ := text(m["client"])
	if d.Client = string(name); !validName(d.Client) {
		return d, invalid("client: " + nameForm)
	}
	for _, f := range []struct {
		name string
		to   *string
		must bool
		of   []string
	}{
		{"severity", &d.Severity, true, []string{"suspected", "confirmed"}},
		{"personal_data", &d.PersonalData, false, []string{"yes", "no", "unknown"}},
		{"policy", &d.Policy, false, []string{"keep-serving", "quarantine", "rotate"}},
		{"language", &d.Language, false, []string{"nl", "en"}},
	} {
		if *f.to, err = oneOf(m, f.name, f.must, f.of...); err != nil {
			return d, err
		}
	}
	if d.What, err = leaked(m["what"]); err != nil {
		return d, err
	}
	for _, f := range []struct {
		name string
		to   *string
	}{{"happened", &d.Happened}, {"where", &d.Where}, {"found_by", &d.FoundBy}, {"as", &d.As}} {
		if *f.to, err = prose(m, f.name); err != nil {
			return d, err
		}
	}
	if strings.TrimSpace(d.Happened) == "" {
		return d, invalid("happened is missing: say in a sentence what happened")
	}
	return d, parseDeclared(m, &d)
}

// parseDeclared reads times, incidents and switches.
func parseDeclared(m map[string]json.RawMessage, d *client.Declaration) (err error) {
	for _, f := range []struct {
		name string
		to   *time.Time
	}{{"from", &d.From}, {"to", &d.To}} {
		raw, there := m[f.name]
		if !there {
			continue
		}
		value, _ := text(raw)
		if *f.to, err = time.Parse(time.RFC3339, string(value)); err != nil {
			return invalid(f.name + " is a time as 2026-11-21T03:12:00Z (RFC 3339)")
		}
	}
	if !d.From.IsZero() && !d.To.IsZero() && d.To.Before(d.From) {
		return invalid("to lies before from: strangers cannot have had it last before they had it first")
	}
	for _, f := range []struct {
		name   string
		to     *string
		global bool
	}{{"draft", &d.Draft, false}, {"joins", &d.Joins, true}} {
		raw, there := m[f.name]
		if !there {
			continue
		}
		value, _ := text(raw)
		if *f.to = string(value); !validIncident(*f.to) || f.global && !strings.Contains(*f.to, "@") {
			return invalid(f.name + " is an incident, as " + incidentForm)
		}
	}
	if d.NoMail, err = truthOf(m, "no_mail"); err != nil {
		return err
	}
	d.DryRun, err = truthOf(m, "dry_run")
	return err
}

// leaked reads what has leaked.
func leaked(raw json.RawMessage) ([]string, error) {
	kinds := []string{"token", "client_secret", "api_key", "private_key", "manager_login", "host", "unknown"}
	wrong := invalid("what is a list of what has leaked, each once: " + strings.Join(kinds, ", "))
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil || len(list) == 0 || len(list) > len(kinds) {
		return nil, wrong
	}
	var what []string
	for _, one := range list {
		value, _ := text(one)
		if !slices.Contains(kinds, string(value)) || slices.Contains(what, string(value)) {
			return nil, wrong
		}
		what = append(what, string(value))
	}
	return what, nil
}

func oneOf(m map[string]json.RawMessage, name string, must bool, words ...string) (string, error) {
	raw, there := m[name]
	if !there && !must {
		return "", nil
	}
	value, _ := text(raw)
	if !slices.Contains(words, string(value)) {
		return "", invalid(name + " is one of " + strings.Join(words, ", "))
	}
	return string(value), nil
}

// prose is a text that a person wrote; it may have several lines.
func prose(m map[string]json.RawMessage, name string) (string, error) {
	raw, there := m[name]
	if !there {
		return "", nil
	}
	value, ok := text(raw)
	defer clear(value)
	bad := func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }
	if !ok || len(value) > maxProse || !utf8.Valid(value) || strings.ContainsFunc(string(value), bad) {
		return "", invalid(name + " is a string of at most 2000 bytes, without control characters but line ends and tabs")
	}
	return string(value), nil
}

func parseClose(body []byte) (how client.IncidentClose, err error) {
	defer clear(body)
	m, err := optionalMembers(body, closeForm, "old_still_valid", "as", "told_by_hand", confirmedNew)
	if err != nil {
		return how, err
	}
	if how.NewSecretConfirmed, err = truthOf(m, confirmedNew); err != nil {
		return how, err
	}
	if raw, there := m["told_by_hand"]; there {
		var told map[string]json.RawMessage
		if json.Unmarshal(raw, &told) != nil || len(told) > 100 {
			return how, invalid("told_by_hand is an object: how each recipient was told, by address; at most 100")
		}
		how.ToldByHand = map[string]string{}
		for to := range told {
			if how.ToldByHand[to], err = prose(told, to); err != nil {
				return how, invalid("told_by_hand: how somebody was told is a string of at most 2000 bytes, without control characters but line ends and tabs")
			}
		}
	}
	if how.OldStillValid, err = prose(m, "old_still_valid"); err != nil {
		return how, err
	}
	how.As, err = prose(m, "as")
	return how, err
}

// validIncident says whether an incident could be called so, here (2026-0007)
// or among all hosts (2026-0007@web1).
func validIncident(s string) bool {
	id, host, global := strings.Cut(s, "@")
	year, number, ok := strings.Cut(id, "-")
	if !ok || len(year) != 4 || len(number) < 4 || len(number) > 9 || !digits(year) || !digits(number) {
		return false
	}
	return !global || validHost(host)
}

func digits(s string) bool { return strings.Trim(s, "0123456789") == "" }

func validHost(h string) bool {
	return h != "" && len(h) <= maxHost && h[0] != '.' && h[0] != '-' && h[0] != '_' &&
		strings.Trim(h, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}
