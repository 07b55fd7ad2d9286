// Package intake finds credentials in what an issuer sends: an encrypted zip
// by mail whose password comes by SMS, a text, a table, JSON, or whatever a
// person pastes.
//
// Nothing is written to a file. All buffers that hold plain text are wiped,
// and every size is bounded before it is believed. A value is taken only if
// its label and its form leave no doubt; everything else is handed back as a
// question for a person.
package intake

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"credentialbroker/internal/secret"
)

// The fields that are looked for, by the names that bundles use.
const (
	ClientID     = "client_id"
	ClientSecret = "client_secret"
	APIKey       = "api_key"
)

// Found is what a file holds. The caller wipes it.
type Found struct {
	Fields map[string]secret.Secret // what is sure, by ClientID, ClientSecret, APIKey
	Places map[string]string        // where each of Fields stands: "credentials.txt, line 5"; nothing secret
	Doubts []Doubt                  // what a person has to decide, in the order of the fields
	Notes  []string                 // sentences for a person; nothing secret
	Left   []string                 // those of Notes that tell of a value that was not taken, or of an entry that was not read
}

// A Doubt is a question that only a person can answer.
type Doubt struct {
	Field      string      // one of the fields, never one of Found.Fields; "" if not even that is known
	Why        string      // a sentence; nothing secret
	Candidates []Candidate // in the order of the file; none if a label stands without a value
}

// A Candidate is a value that may be the right one.
type Candidate struct {
	Value secret.Secret
	Label string // as the file writes it, cleaned, at most 64 characters; "" if it has none
	Place string // "credentials.txt, line 5": a cleaned name, nothing secret
}

// Wipe wipes all values.
func (f *Found) Wipe() {
	for _, v := range f.Fields {
		v.Wipe()
	}
	for _, d := range f.Doubts {
		for _, c := range d.Candidates {
			c.Value.Wipe()
		}
	}
}

// Kind says what is wrong with a file.
type Kind string

// The kinds of Error.
const (
	NotUnderstood Kind = "not_understood" // no value that could be a credential
	WrongPassword Kind = "wrong_password" // refused three times
	Damaged       Kind = "damaged"        // truncated, or a checksum or authentication code does not fit
	TooLarge      Kind = "too_large"      // past a limit, or a bomb
	Unsupported   Kind = "unsupported"    // a format, method or encryption that is not read
	Suspicious    Kind = "suspicious"     // no mail with credentials looks like that
)

// Error is why a file was refused. It holds nothing secret: of the file it
// repeats cleaned names of entries alone.
type Error struct {
	Kind    Kind
	Message string // what is wrong, and where
	Hint    string // what to do next
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + " (" + e.Hint + ")"
}

// The limits. Credentials are small: each is far above what issuers send.
const (
	maxArchive = 4 << 20   // bytes of an archive
	maxEntry   = 256 << 10 // bytes of an entry once unpacked, and of a document
	maxEntries = 64        // in an archive, folders and the like included
	maxRatio   = 200       // of unpacked to packed size
	maxNesting = 1         // archives in an archive
	maxTries   = 3         // of a password
	maxName    = 64        // characters of a name that is shown
	maxFinds   = 256       // values, and labels without one
	maxNotes   = 32
)

// Read reads the first size bytes of r. For an encrypted archive it calls
// password, with try from 1 to at most 3; archive is "" for the file itself,
// else the cleaned name of the archive within it. Read owns the password that
// it gets, and wipes it. An error from password ends the reading and is
// returned, wrapped. All other errors are an *Error, except those of r.
func Read(r io.ReaderAt, size int64, password func(archive string, try int) (secret.Secret, error)) (Found, error) {
	if size > maxArchive {
		return Found{}, &Error{TooLarge, fmt.Sprintf("the file is larger than %d MiB", maxArchive>>20),
			"credentials take a few hundred bytes: is it the right file?"}
	}
	if size <= 0 {
		return Found{}, &Error{NotUnderstood, "the file is empty", "save the attachment again"}
	}
	data := make([]byte, size)
	defer clear(data)
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, size), data); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return Found{}, &Error{Damaged, "the file ended early", "save the attachment again"}
		}
		return Found{}, fmt.Errorf("read the file: %w", err)
	}
	in := reader{ask: password}
	defer in.wipe()
	if err := in.read(data, "", 0); err != nil {
		return Found{}, err
	}
	return in.result()
}

// A reader goes through one file and collects what it finds.
type reader struct {
	ask     func(archive string, try int) (secret.Secret, error)
	opened  []secret.Secret // passwords that were given, the likeliest last
	finds   []find          // at most maxFinds
	bare    []label         // labels without a value
	full    bool            // finds are: there are more
	notes   []string
	left    []string // of notes
	refused *Error   // the first document that cannot be read: the error if nothing else is found
}

func (in *reader) wipe() {
	for _, p := range in.opened {
		p.Wipe()
	}
	for _, f := range in.finds {
		for _, v := range f.values {
			v.Wipe()
		}
	}
}

// read reads an archive or a document, at a depth of nesting.
func (in *reader) read(data []byte, name string, depth int) error {
	if isZip(data) {
		return in.archive(data, name, depth)
	}
	return in.document(data, name)
}

func (in *reader) note(format string, args ...any) {
	in.notes = noted(in.notes, fmt.Sprintf(format, args...))
}

// leave notes what is in the file, and is neither taken nor asked about.
func (in *reader) leave(format string, args ...any) {
	in.note(format, args...)
	in.left = noted(in.left, fmt.Sprintf(format, args...))
}

func noted(list []string, n string) []string {
	if len(list) >= maxNotes || slices.Contains(list, n) {
		return list
	}
	return append(list, n)
}

// refuse remembers that a document could not be read. Others may still hold
// everything.
func (in *reader) refuse(err *Error) {
	if in.refused == nil {
		in.refused = err
	}
	in.leave("%s", err.Error())
}

// title names a document or archive in a sentence.
func title(name string) string {
	if name == "" {
		return "the file"
	}
	return name
}

func hasPrefix(data []byte, prefixes ...string) bool {
	for _, p := range prefixes {
		if bytes.HasPrefix(data, []byte(p)) {
			return true
		}
	}
	return false
}
