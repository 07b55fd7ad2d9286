package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// Bounds of a question to ConfirmScan.
const (
	MaxScanCandidates = 64        // in one question
	MaxScanBody       = 256 << 10 // bytes of it, with the texts as base64
)

// maxFilter bounds what is read of a filter: that of a million values.
const maxFilter = 1 << 30

// Scan is the answer of POST /v1/scan.
type Scan struct {
	// Filter tells a scanner where to look. It is for one scan; do not store it.
	Filter json.RawMessage `json:"filter"`
	// Skipped are values that are not looked for.
	Skipped []ScanSkipped `json:"skipped,omitempty"`
}

// ScanSkipped is a value that is not looked for, and why.
type ScanSkipped struct {
	Client string `json:"client"`
	Field  string `json:"field"`
	Reason string `json:"reason"`
}

// ScanCandidates is what a scanner asks of POST /v1/scan/confirm.
type ScanCandidates struct {
	Candidates []ScanCandidate `json:"candidates"`
}

// ScanCandidate is a window that passed the filter, with what stands around it.
type ScanCandidate struct {
	At   int    `json:"at"`   // where in Text the window begins
	Text []byte `json:"text"` // base64 on the wire
}

// ScanMatches is the answer: for each candidate, in order, the values that
// stand in it.
type ScanMatches struct {
	Matches [][]ScanMatch `json:"matches"`
}

// ScanMatch is a value that stands, whole, in a candidate's text.
type ScanMatch struct {
	Client  string `json:"client"`
	Field   string `json:"field"`
	Version string `json:"version"` // the secrets manager's, or a token's fingerprint
	Form    string `json:"form"`    // clear, base64 …
	Retired bool   `json:"retired"`
	Start   int    `json:"start"` // in the candidate's text
	End     int    `json:"end"`
}

// Scan begins a scan (role operate).
func (a *Admin) Scan(ctx context.Context) (*Scan, error) {
	body, err := a.dial().stream(ctx, http.MethodPost, "/v1/scan")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, maxFilter))
	if err != nil {
		return nil, fmt.Errorf("the broker's answer broke off: %w", err)
	}
	return decode[Scan](b)
}

// ConfirmScan asks what stands in at most MaxScanCandidates candidates (role
// operate). The texts stay the caller's to wipe. A *Problem with the code
// RateLimited says when to ask again.
func (a *Admin) ConfirmScan(ctx context.Context, list []ScanCandidate) ([][]ScanMatch, error) {
	body := scanBody(list)
	defer clear(body)
	b, err := a.dial().whole(ctx, http.MethodPost, "/v1/scan/confirm", body)
	if err != nil {
		return nil, err
	}
	m, err := decode[ScanMatches](b)
	if err != nil {
		return nil, err
	}
	return m.Matches, nil
}

// ScanBodySize is how many bytes of a question c takes, at most.
func ScanBodySize(c ScanCandidate) int {
	return len(`{"at":-9223372036854775808,"text":""},`) + base64.StdEncoding.EncodedLen(len(c.Text))
}

// scanBody is written by hand, into one buffer: an encoder would leave copies
// behind.
func scanBody(list []ScanCandidate) []byte {
	size := len(`{"candidates":[]}`)
	for _, c := range list {
		size += ScanBodySize(c)
	}
	b := append(make([]byte, 0, size), `{"candidates":[`...)
	for i, c := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(strconv.AppendInt(append(b, `{"at":`...), int64(c.At), 10), `,"text":"`...)
		b = append(base64.StdEncoding.AppendEncode(b, c.Text), `"}`...)
	}
	return append(b, `]}`...)
}
