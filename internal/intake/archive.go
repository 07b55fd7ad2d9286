package intake

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"strings"
	"unicode/utf8"
)

// Rules of this file:
//   - archive/zip reads the directory (zip64 and data descriptors included);
//     what is in an entry is read here, from the directory's sizes alone;
//   - a size is checked before anything of that size is made;
//   - names decide nothing but what is skipped and what is shown.

const (
	flagEncrypted = 1 << 0 // APPNOTE 4.4.4
	flagLater     = 1 << 3 // sizes and CRC follow the data
	flagStrong    = 1 << 6
	flagMasked    = 1 << 13 // parts of the directory are encrypted

	methodAES = 99     // WinZip II.2
	extraAES  = 0x9901 // WinZip II.4
)

const (
	hintAgain = "save the attachment again, or ask the issuer to send it again"
	hintOpen  = "open it and paste the values"
	hintPlain = "ask the issuer for an ordinary zip, or open it yourself and paste the values"
)

// errOffice is an archive that is the document itself.
var errOffice = errors.New("an office document")

// isZip tells an archive by its first record: a file, the end of an empty
// archive, or the mark of one that was once split (APPNOTE 4.3.7, 4.3.16,
// 8.5).
func isZip(data []byte) bool {
	return hasPrefix(data, "PK\x03\x04", "PK\x05\x06", "PK\x07\x08PK", "PK00PK")
}

// An entry is one file of an archive.
type entry struct {
	name   string // cleaned, with the archive's
	raw    []byte // a part of the archive, still packed and encrypted
	size   int    // unpacked
	crc    uint32
	method uint16
	// encryption; neither: none
	strength byte // 1, 2, 3: AES; 0: not AES
	bareCRC  bool // AE-2: there is no CRC (WinZip II.3)
	crypto   bool // traditional
	check    byte // of the traditional header
}

func (e *entry) encrypted() bool { return e.strength != 0 || e.crypto }

// archive reads all entries of an archive, one after the other.
func (in *reader) archive(data []byte, name string, depth int) error {
	if depth > maxNesting {
		return &Error{TooLarge, "an archive in an archive in an archive: " + title(name), hintPlain}
	}
	entries, err := list(data, name)
	if errors.Is(err, errOffice) {
		in.refuse(&Error{Unsupported, title(name) + " is an office document", hintOpen})
		return nil
	}
	if err != nil {
		return err
	}
	password, err := in.unlock(entries, name)
	if err != nil {
		return err
	}
	defer clear(password)
	for i := range entries {
		e := &entries[i]
		plain, err := e.open(password)
		if err != nil {
			return e.explain(err)
		}
		err = in.read(plain, e.name, depth+1)
		clear(plain[:cap(plain)])
		if err != nil {
			return err
		}
	}
	return nil
}

// list gives the entries that are worth reading, with all limits checked.
func list(data []byte, archive string) ([]entry, error) {
	zr, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if errors.Is(err, zip.ErrInsecurePath) {
		return nil, &Error{Suspicious, "a file in the archive has a name that leads outside of it", hintAgain}
	}
	if err != nil {
		return nil, &Error{Damaged, title(archive) + " starts as a zip and is damaged or incomplete", hintAgain}
	}
	if len(zr.File) > maxEntries {
		return nil, &Error{TooLarge, fmt.Sprintf("%s holds more than %d files", title(archive), maxEntries), hintPlain}
	}
	var entries []entry
	for _, f := range zr.File {
		shown := shownName(f)
		if archive != "" {
			shown = archive + ": " + shown
		}
		if leadsOutside(f.Name) || f.Mode()&(fs.ModeSymlink|fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0 {
			return nil, &Error{Suspicious, shown + " has a name that leads outside of the archive, or is no ordinary file",
				"no issuer sends that: ask where the file comes from"}
		}
		if f.Name == "[Content_Types].xml" || f.Name == "mimetype" { // Office Open XML, OpenDocument
			return nil, errOffice
		}
		if isNoise(f) {
			continue
		}
		e, err := check(f, data, shown)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// check turns what the directory says of an entry into one that can be opened
// within the limits.
func check(f *zip.File, data []byte, shown string) (entry, error) {
	e := entry{name: shown, crc: f.CRC32, method: f.Method}
	packed, size := f.CompressedSize64, f.UncompressedSize64
	switch {
	case size > maxEntry:
		return e, &Error{TooLarge, fmt.Sprintf("%s is larger than %d KiB", shown, maxEntry>>10), hintPlain}
	case size > maxRatio*packed:
		return e, &Error{TooLarge, fmt.Sprintf("%s unpacks to more than %d times its size", shown, maxRatio), "no credentials look like that: ask where the file comes from"}
	case packed > maxEntry+4<<10: // packing never grows a file by that much, encryption adds 28 bytes
		return e, &Error{TooLarge, shown + " is larger packed than unpacked", hintAgain}
	}
	off, err := f.DataOffset()
	if err != nil || off < 0 || off > int64(len(data)) || packed > uint64(int64(len(data))-off) {
		return e, &Error{Damaged, shown + " is incomplete", hintAgain}
	}
	e.raw, e.size = data[off:off+int64(packed)], int(size)
	switch {
	case f.Flags&(flagStrong|flagMasked) != 0: // APPNOTE 7.0
		return e, &Error{Unsupported, shown + " uses PKWARE's strong encryption", hintPlain}
	case f.Flags&flagEncrypted == 0 && f.Method == methodAES:
		return e, &Error{Damaged, shown + " contradicts itself about its encryption", hintAgain}
	case f.Method == methodAES:
		if !e.aes(f.Extra) {
			return e, &Error{Unsupported, shown + " uses an unknown kind of AES encryption", hintPlain}
		}
	case f.Flags&flagEncrypted != 0:
		e.crypto, e.check = true, byte(f.CRC32>>24) // APPNOTE 6.1.6
		if f.Flags&flagLater != 0 {
			e.check = byte(f.ModifiedTime >> 8) // the CRC was not known yet: Info-ZIP took the raw time, and all follow
		}
	}
	if e.method != zip.Store && e.method != zip.Deflate {
		return e, &Error{Unsupported, fmt.Sprintf("%s is packed with method %d, which is not read", shown, e.method), hintPlain}
	}
	return e, nil
}

// aes reads the AES extra field (WinZip II.4).
func (e *entry) aes(extra []byte) bool {
	for len(extra) >= 4 {
		id, n := binary.LittleEndian.Uint16(extra), int(binary.LittleEndian.Uint16(extra[2:]))
		if extra = extra[4:]; n > len(extra) {
			return false
		}
		if id == extraAES {
			if n < 7 || string(extra[2:4]) != "AE" {
				return false
			}
			version := binary.LittleEndian.Uint16(extra)
			e.strength, e.method = extra[4], binary.LittleEndian.Uint16(extra[5:])
			e.bareCRC = version == 2
			return (version == 1 || version == 2) && e.strength >= 1 && e.strength <= 3
		}
		extra = extra[n:]
	}
	return false
}

// open decrypts, unpacks and checks an entry. The caller wipes the result.
func (e *entry) open(password []byte) ([]byte, error) {
	packed, err := e.raw, error(nil)
	switch {
	case e.strength != 0:
		packed, err = openAES(e.raw, password, e.strength)
	case e.crypto:
		packed, err = openZipCrypto(e.raw, password, e.check)
	}
	if err != nil {
		return nil, err
	}
	if e.encrypted() {
		defer clear(packed)
	}
	plain := make([]byte, e.size)
	if e.method == zip.Deflate {
		err = inflate(plain, packed)
	} else if len(packed) == e.size {
		copy(plain, packed)
	} else {
		err = errDamaged
	}
	if err == nil && !e.bareCRC && crc32.ChecksumIEEE(plain) != e.crc {
		err = errDamaged
	}
	if err != nil {
		clear(plain)
		return nil, err
	}
	return plain, nil
}

// inflate unpacks packed (RFC 1951) into exactly dst, and wipes the window
// that the decompressor keeps.
func inflate(dst, packed []byte) error {
	r := flate.NewReader(bytes.NewReader(packed))
	defer func() {
		window := make([]byte, 32<<10) // RFC 1951 §2: a reset with a full window overwrites the old one
		_ = r.(flate.Resetter).Reset(bytes.NewReader(nil), window)
	}()
	if _, err := io.ReadFull(r, dst); err != nil {
		return errDamaged
	}
	var more [1]byte
	if n, err := r.Read(more[:]); n != 0 || !errors.Is(err, io.EOF) {
		return errDamaged // longer than it says, or its end is missing
	}
	return nil
}

// explain says to a person why the entry could not be opened.
func (e *entry) explain(err error) error {
	switch {
	case errors.Is(err, errPassword):
		return &Error{WrongPassword, "the password does not fit " + e.name, "look at the SMS again"}
	case errors.Is(err, errFIPS):
		return &Error{Unsupported, "AES in a zip needs SHA-1, which this machine's FIPS mode forbids", "read the file on another machine, or paste the values"}
	case errors.Is(err, errDamaged) && e.crypto:
		return &Error{Damaged, e.name + " is damaged: its checksum does not fit", hintAgain + "; seldom, a wrong password looks like that"}
	case errors.Is(err, errDamaged):
		return &Error{Damaged, e.name + " is damaged: its checksum does not fit", hintAgain}
	}
	return fmt.Errorf("%s: %w", e.name, err)
}

// isNoise tells folders, and what macOS and Windows add to every archive.
func isNoise(f *zip.File) bool {
	name := strings.ReplaceAll(f.Name, `\`, "/")
	base := path.Base(name)
	return f.Mode().IsDir() || strings.HasSuffix(name, "/") || strings.HasPrefix(name, "__MACOSX/") || strings.HasPrefix(base, "._") ||
		strings.EqualFold(base, ".DS_Store") || strings.EqualFold(base, "Thumbs.db") || strings.EqualFold(base, "desktop.ini")
}

// leadsOutside tells a name that an unpacker could follow out of its folder.
// Nothing is unpacked here, but who writes such a name is no issuer.
func leadsOutside(name string) bool {
	name = strings.ReplaceAll(name, `\`, "/")
	if name == "" || name[0] == '/' || len(name) > 1 && name[1] == ':' || strings.ContainsRune(name, 0) {
		return true
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// shownName is the name of f without its folders, fit to be shown.
func shownName(f *zip.File) string {
	name := path.Base(strings.ReplaceAll(f.Name, `\`, "/"))
	if !utf8.ValidString(name) { // APPNOTE appendix D.1: code page 437, unless flagged
		var b strings.Builder
		for i := range len(name) {
			b.WriteRune(fromCP437(name[i]))
		}
		name = b.String()
	}
	return cleaned(name)
}
