package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"
)

// An Entry is one line of the log: an event, its place, and its hash.
//
// Hash is the SHA-256, in hexadecimal, over the line's bytes without the hash
// itself: everything from the opening brace to the last member before "hash",
// and the closing brace. Prev is the Hash of the line before, over the
// boundaries of files; the first entry of all has none. So
//
//	sed 's/,"hash":"[0-9a-f]*"}$/}/' | tr -d '\n' | sha256sum
//
// of one line gives its hash.
type Entry struct {
	Seq  uint64    `json:"seq"`  // 1 is the first
	Time time.Time `json:"time"` // UTC, when the event was handed in
	Boot int64     `json:"boot"` // milliseconds since boot, suspended time included: the order of things when the wall clock was set
	Event
	Prev string `json:"prev,omitempty"`
	Hash string `json:"hash,omitempty"`

	File string `json:"-"` // where it was read: name of the file within the directory
	Line int    `json:"-"` // and line, from 1
}

const (
	maxLine   = 64 << 10 // bytes: no bounded event comes near
	hashStart = `,"hash":"`
	hashLen   = sha256.Size * 2
	tailLen   = len(hashStart) + hashLen + len(`"}`)
)

var (
	errNoEntry = errors.New("the line is no audit entry: it was damaged, cut or put in by hand")
	errHash    = errors.New("the line was changed after it was written: its hash does not fit")
)

// appendLine writes e, which has no hash yet, as a line, and gives its hash.
func appendLine(buf *bytes.Buffer, e *Entry) (string, error) {
	start := buf.Len()
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		buf.Truncate(start)
		return "", err
	}
	buf.Truncate(buf.Len() - 1) // the encoder's newline
	sum := sha256.Sum256(buf.Bytes()[start:])
	hash := hex.EncodeToString(sum[:])
	buf.Truncate(buf.Len() - 1) // the closing brace
	buf.WriteString(hashStart)
	buf.WriteString(hash)
	buf.WriteString("\"}\n")
	return hash, nil
}

// parseLine reads a line without its newline. With errHash, the entry is what
// the line claims.
func parseLine(line []byte) (Entry, error) {
	var e Entry
	if len(line) <= tailLen || !bytes.HasPrefix(line[len(line)-tailLen:], []byte(hashStart)) {
		return e, errNoEntry
	}
	if err := json.Unmarshal(line, &e); err != nil || e.Seq == 0 || e.Type == "" {
		return Entry{}, errNoEntry
	}
	h := sha256.New()
	h.Write(line[:len(line)-tailLen])
	h.Write([]byte("}"))
	if hex.EncodeToString(h.Sum(nil)) != e.Hash {
		return e, errHash
	}
	return e, nil
}
