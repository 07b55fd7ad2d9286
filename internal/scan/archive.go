package scan

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"sync/atomic"
)

// The limits of unpacking. What lies beyond is noted, and scanned as it is.
const (
	maxDepth     = 3        // archives in each other
	maxRatio     = 250      // of all that is unpacked to the size of the file
	freeUnpacked = 64 << 20 // bytes that need no ratio
	maxMember    = 32 << 20 // bytes of an archive within another, which has to be in memory
	maxDirectory = 8 << 20  // bytes of a zip's directory
)

var (
	errBomb      = errors.New("unpacks to far more than its size: only the beginning was read")
	errDirectory = errors.New("its directory is too large")
)

// kind is what the first bytes of a text say.
type kind string

const (
	plainText kind = ""
	gzipped   kind = "gzip"
	zipped    kind = "zip"
)

func kindOf(head []byte) kind {
	for _, m := range []struct {
		magic string
		kind  kind
	}{
		{"\x1f\x8b\x08", gzipped}, {"PK\x03\x04", zipped}, {"PK\x05\x06", zipped},
		{"\xfd7zXZ\x00", "xz"}, {"\x28\xb5\x2f\xfd", "zstd"}, {"7z\xbc\xaf\x27\x1c", "7z"}, {"\x04\x22\x4d\x18", "lz4"},
		{"BZh", "bzip2"},
	} {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.kind
		}
	}
	return plainText
}

// packed scans the members of r, if it is an archive. The caller scans r itself
// afterwards, at at.
func (w *worker) packed(ctx context.Context, at *spot, r io.ReaderAt, size int64) error {
	head := make([]byte, 6)
	n, _ := r.ReadAt(head[:min(size, 6)], 0)
	kind := kindOf(head[:n])
	if kind == plainText {
		return nil
	}
	at.packed = true
	if at.inside == nil {
		at.inside = map[inside]bool{}
	}
	if at.left == nil {
		left := max(freeUnpacked, maxRatio*min(size, 1<<50))
		at.left = &left
	}
	switch {
	case kind != gzipped && kind != zipped:
		w.s.unread(*at, string(kind)+" is not unpacked")
	case at.depth == maxDepth:
		w.s.unread(*at, "archives in more than three archives are not unpacked")
	case kind == gzipped:
		return w.gunzip(ctx, *at, io.NewSectionReader(r, 0, size))
	default:
		return w.unzip(ctx, *at, r, size)
	}
	return nil
}

// gunzip scans what RFC 1952 members in r hold, as one text.
func (w *worker) gunzip(ctx context.Context, at spot, r io.Reader) error {
	z, err := gzip.NewReader(r)
	if err != nil {
		w.s.unread(at, damaged(err))
		return nil
	}
	name := "gunzipped"
	if z.Name != "" {
		name = z.Name
	}
	return w.member(ctx, at, name, z)
}

// unzip scans the members of a zip file.
func (w *worker) unzip(ctx context.Context, at spot, r io.ReaderAt, size int64) error {
	opening := &bounded{r: r, left: maxDirectory}
	z, err := zip.NewReader(opening, size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		w.s.unread(at, damaged(err))
		return nil
	}
	opening.opened = true
	for _, f := range z.File {
		if f.FileInfo().IsDir() {
			continue
		}
		if f.Flags&1 != 0 {
			if err := w.skipped(ctx, at, f.Name, "encrypted"); err != nil {
				return err
			}
			continue
		}
		m, err := f.Open()
		if err != nil {
			if err := w.skipped(ctx, at, f.Name, damaged(err)); err != nil {
				return err
			}
			continue
		}
		err = w.member(ctx, at, f.Name, m)
		m.Close()
		if err != nil {
			return err
		}
		if *at.left <= 0 {
			break // said already
		}
	}
	return nil
}

// within is the place of a member.
func (w *worker) within(ctx context.Context, at spot, name string) (spot, error) {
	around := at.member
	shown, err := w.name(ctx, at, name)
	if around != "" {
		shown = around + "!" + shown
	}
	at.member = shown
	return at, err
}

func (w *worker) skipped(ctx context.Context, at spot, name, why string) error {
	at, err := w.within(ctx, at, name)
	if err == nil {
		w.s.unread(at, why)
	}
	return err
}

// member scans a member, and what is packed in it.
func (w *worker) member(ctx context.Context, at spot, name string, r io.Reader) error {
	at, err := w.within(ctx, at, name)
	if err != nil {
		return err
	}
	at.depth++
	at.packed = false
	return w.content(ctx, at, &unpacked{counted{r: r, n: &w.s.inside}, at.left})
}

// content scans a text that can be read once, and what is packed in it.
func (w *worker) content(ctx context.Context, at spot, r io.Reader) error {
	head := make([]byte, 6)
	n, err := readFull(r, head)
	head = head[:n]
	rest := io.MultiReader(bytes.NewReader(head), r)
	if err != nil {
		rest = io.MultiReader(bytes.NewReader(head), failing{err})
	}
	if kindOf(head) == plainText {
		return w.stream(ctx, at, rest)
	}
	// An archive in an archive has to be read twice.
	var whole bytes.Buffer
	_, err = io.Copy(&whole, io.LimitReader(rest, maxMember+1))
	switch {
	case err != nil:
		rest = io.MultiReader(&whole, failing{err})
	case whole.Len() > maxMember && kindOf(head) == gzipped && at.depth < maxDepth:
		return w.gunzip(ctx, at, io.MultiReader(&whole, rest))
	case whole.Len() > maxMember:
		w.s.unread(at, "an archive of more than 32 MiB in an archive is not unpacked")
		rest = io.MultiReader(&whole, rest)
	default:
		if err := w.packed(ctx, &at, bytes.NewReader(whole.Bytes()), int64(whole.Len())); err != nil {
			return err
		}
		rest = &whole
	}
	return w.stream(ctx, at, rest)
}

// damaged says what is wrong with an archive.
func damaged(err error) string {
	if errors.Is(err, zip.ErrAlgorithm) {
		return "packed by a method that is not unpacked"
	}
	return "damaged: " + reason(err)
}

// counted counts what is read.
type counted struct {
	r io.Reader
	n *atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// unpacked ends what unpacks to too much.
type unpacked struct {
	counted
	left *int64
}

func (u *unpacked) Read(b []byte) (int, error) {
	if *u.left <= 0 {
		return 0, errBomb
	}
	n, err := u.counted.Read(b[:min(int64(len(b)), *u.left)])
	*u.left -= int64(n)
	return n, err
}

// bounded limits what is read until the archive is open.
type bounded struct {
	r      io.ReaderAt
	left   int
	opened bool
}

func (b *bounded) ReadAt(p []byte, off int64) (int, error) {
	if !b.opened {
		if b.left -= len(p); b.left < 0 {
			return 0, errDirectory
		}
	}
	return b.r.ReadAt(p, off)
}

// failing is a reader that fails.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
