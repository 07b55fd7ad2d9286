package api

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/gate"
	"credentialbroker/internal/scan"
)

const candidateForm = `{"candidates": [{"at", "text"}]}`

// scanLimits is how many candidates a user may ask about: enough for a scan,
// which asks about what it does not know yet alone, too few to guess.
func scanLimits() gate.Limits { return gate.Limits{RequestsPerSecond: 33, Burst: 2000} }

// scan begins a scan.
func (s *Server) scan(w http.ResponseWriter, r *http.Request, c *access.Caller, _ string) error {
	if err := empty(r); err != nil {
		return err
	}
	if err := s.act(r, c, "scan", "", nil); err != nil {
		return err
	}
	f, cannot := s.cfg.Administration.Scan()
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	out := client.Scan{Filter: b}
	for _, u := range cannot {
		out.Skipped = append(out.Skipped, client.ScanSkipped(u))
	}
	return s.sendJSON(w, http.StatusOK, out)
}

// confirmScan says what stands in a scanner's candidates. A find is recorded;
// that somebody asked is not, beyond the scan's beginning.
func (s *Server) confirmScan(w http.ResponseWriter, r *http.Request, c *access.Caller, _ string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	body, err := s.readUpTo(w, r, client.MaxScanBody)
	if err != nil {
		return err
	}
	list, err := parseCandidates(body)
	if err != nil {
		return err
	}
	defer wipeCandidates(list)
	if err := s.lookUp(r, len(list)); err != nil {
		return err
	}
	out := client.ScanMatches{Matches: make([][]client.ScanMatch, 0, len(list))}
	for _, found := range s.cfg.Administration.ConfirmFind(c, list) {
		matches := make([]client.ScanMatch, 0, len(found))
		for _, m := range found {
			matches = append(matches, client.ScanMatch(m))
		}
		out.Matches = append(out.Matches, matches)
	}
	return s.sendJSON(w, http.StatusOK, out)
}

// lookUp counts n places of which the user asks whether they hold a secret.
func (s *Server) lookUp(r *http.Request, n int) error {
	if conn := gate.From(r.Context()); conn != nil {
		if wait := conn.AdmitScan(scanLimits(), n); wait > 0 {
			s.rateLimited.Add(1)
			return &broker.Error{Code: client.RateLimited, RetryAfter: wait,
				Detail: "this user asks about more than 2000 places a minute, in scans and dry runs: go on after Retry-After"}
		}
	}
	return nil
}

// parseCandidates reads the body of a confirm request and wipes it. No text
// becomes a string, and no error repeats one.
func parseCandidates(body []byte) (list []scan.Candidate, err error) {
	defer clear(body)
	defer func() {
		if err != nil {
			wipeCandidates(list)
			list = nil
		}
	}()
	m, err := members(body, candidateForm, "candidates")
	if err != nil {
		return nil, err
	}
	defer wipe(m)
	var given []json.RawMessage
	if json.Unmarshal(m["candidates"], &given) != nil || len(given) == 0 || len(given) > client.MaxScanCandidates {
		return nil, invalid(fmt.Sprintf("candidates is an array of 1 to %d", client.MaxScanCandidates))
	}
	defer func() {
		for _, raw := range given {
			clear(raw)
		}
	}()
	for _, raw := range given {
		c, err := parseCandidate(raw)
		if err != nil {
			return list, err
		}
		list = append(list, c)
	}
	return list, nil
}

func parseCandidate(raw json.RawMessage) (c scan.Candidate, err error) {
	m, err := members(raw, candidateForm, "at", "text")
	if err != nil {
		return c, err
	}
	defer wipe(m)
	encoded, ok := text(m["text"])
	defer clear(encoded)
	c.Text = make([]byte, base64.StdEncoding.DecodedLen(len(encoded)))
	n, bad := base64.StdEncoding.Decode(c.Text, encoded)
	c.Text = c.Text[:n]
	if !ok || bad != nil || n == 0 {
		clear(c.Text)
		return c, invalid("text is a string of base64 (RFC 4648, section 4)")
	}
	if c.At, bad = strconv.Atoi(string(m["at"])); bad != nil || c.At < 0 || c.At >= n {
		clear(c.Text)
		return c, invalid("at is a place in the text")
	}
	return c, nil
}

func wipeCandidates(list []scan.Candidate) {
	for _, c := range list {
		clear(c.Text)
	}
}
