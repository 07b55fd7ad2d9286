// Package file is the embedded secrets manager: a directory of age-encrypted
// files (https://age-encryption.org/v1), one a secret.
//
// The version of a secret is taken from its ciphertext: the first 16
// hexadecimal digits of its SHA-256. It is the same after a restart, changes
// with every write, and tells nothing of the content, since age encrypts the
// same content differently each time.
package file

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"

	"credentialbroker/internal/clock"
	"credentialbroker/providers"
)

// store is the provider. It holds no secret between calls, its identity
// neither: that is read again for each decryption, of which there is one for
// each new version.
type store struct {
	c   Config
	clk clock.Clock

	writing chan struct{} // full while somebody writes

	mu   sync.Mutex
	seen map[string]seen // by file name
}

// seen is a file as it was when its version was computed.
type seen struct {
	version      providers.Version
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

const (
	suffix = ".age"
	// maxFile leaves room for age's header and chunks.
	maxFile = providers.MaxPayload + 64<<10
	// A file that was changed less than this before it was looked at may change
	// again without its times showing it, as these move in ticks of the kernel.
	settled = 2 * time.Second
)

// Open makes the provider. It touches no file.
func Open(c Config, clk clock.Clock) (providers.Provider, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &store{c: c, clk: clk, writing: make(chan struct{}, 1), seen: map[string]seen{}}, nil
}

// Close has nothing to end.
func (s *store) Close() error { return nil }

// Fetch reads NAME.age. While nothing about the file has changed it is not
// opened.
func (s *store) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	b, err := s.fetch(ctx, ref, have)
	return b, s.explain(err, ref)
}

func (s *store) fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	if err := ctx.Err(); err != nil {
		return providers.Bundle{}, err
	}
	name, err := fileName(ref)
	if err != nil {
		return providers.Bundle{}, err
	}
	dir, err := s.openDir()
	if err != nil {
		return providers.Bundle{}, err
	}
	defer dir.Close()
	if have != "" && s.unchanged(dir, name, have) {
		return providers.Bundle{}, providers.ErrUnchanged
	}
	sealed, state, err := read(dir, name)
	if err != nil {
		return providers.Bundle{}, err
	}
	s.remember(name, state)
	if state.version == have {
		return providers.Bundle{}, providers.ErrUnchanged
	}
	payload, err := s.decrypt(ctx, sealed)
	if err != nil {
		return providers.Bundle{}, err
	}
	fields, err := providers.Parse(payload)
	if err != nil {
		return providers.Bundle{}, err
	}
	return providers.Bundle{Version: state.version, Fields: fields, Created: time.Unix(state.mtime.Unix()).UTC()}, nil
}

// CheckRef says whether ref can name a secret of the store.
func (Config) CheckRef(ref providers.Ref) error {
	_, err := fileName(ref)
	return err
}

// fileName keeps names within the directory and apart from its lock and
// temporary files.
func fileName(ref providers.Ref) (string, error) {
	switch {
	case ref.Version != "":
		return "", &providers.Error{Kind: providers.Unsupported, Message: "the store keeps one version of a secret", Hint: "remove version"}
	case ref.Path == "" || ref.Path[0] == '.' || len(ref.Path) > 200 || strings.ContainsAny(ref.Path, "/\x00"):
		return "", &providers.Error{Kind: providers.NotFound, Message: "no possible name of a secret in the store",
			Hint: "NAME stands for the file NAME.age; it has no slash and does not begin with a dot"}
	}
	return ref.Path + suffix, nil
}

func (s *store) openDir() (*os.Root, error) {
	dir, err := os.OpenRoot(s.c.Path)
	if err != nil {
		return nil, &providers.Error{Kind: kindOf(err), Message: "cannot open the store " + s.c.Path + ": " + reason(err), Err: err}
	}
	info, err := dir.Stat(".")
	if err == nil {
		err = providers.CheckOwner(info)
	}
	if err != nil {
		_ = dir.Close()
		return nil, located(err, "the store "+s.c.Path)
	}
	return dir, nil
}

func (s *store) unchanged(dir *os.Root, name string, have providers.Version) bool {
	info, err := dir.Lstat(name)
	if err != nil || providers.CheckOwner(info) != nil {
		return false // the long way says what is wrong
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.seen[name]
	return ok && old.version == have && old == stateOf(info, have)
}

// remember keeps the state of a file whose next change will show in it.
func (s *store) remember(name string, state seen) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clk.Now().Wall.Sub(time.Unix(state.ctime.Unix())) > settled {
		s.seen[name] = state
	} else {
		delete(s.seen, name)
	}
}

func stateOf(info fs.FileInfo, v providers.Version) seen {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return seen{version: v}
	}
	return seen{v, st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
}

// read reads a regular file of ours that is no link, whole.
func read(dir *os.Root, name string) ([]byte, seen, error) {
	info, err := dir.Lstat(name)
	if err == nil && !info.Mode().IsRegular() {
		err = &providers.Error{Kind: providers.Denied, Message: "it is a link or no regular file"}
	}
	if err != nil {
		return nil, seen{}, err
	}
	f, err := dir.Open(name)
	if err != nil {
		return nil, seen{}, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, seen{}, err
	}
	if err := providers.CheckOwner(info); err != nil {
		return nil, seen{}, err
	}
	sealed, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, seen{}, err
	case len(sealed) > maxFile:
		return nil, seen{}, &providers.Error{Kind: providers.Malformed, Message: "the file is larger than a secret may be"}
	}
	return sealed, stateOf(info, versionOf(sealed)), nil
}

func versionOf(sealed []byte) providers.Version {
	sum := sha256.Sum256(sealed)
	return providers.Version(hex.EncodeToString(sum[:8]))
}

// decrypt returns the plaintext, which its caller wipes. The age package keeps
// a chunk of it in a buffer of its own until the next collection.
func (s *store) decrypt(ctx context.Context, sealed []byte) ([]byte, error) {
	ids, err := s.identities(ctx)
	if err != nil {
		return nil, err
	}
	return open(sealed, ids)
}

func open(sealed []byte, ids []age.Identity) ([]byte, error) {
	var in io.Reader = bytes.NewReader(sealed)
	if bytes.HasPrefix(sealed, []byte(armor.Header)) {
		in = armor.NewReader(in)
	}
	corrupt := func(err error) error {
		return &providers.Error{Kind: providers.Malformed, Message: "the file is not a whole age file",
			Hint: "write it again, or restore it from a backup", Err: err}
	}
	clearText, err := age.Decrypt(in, ids...)
	switch noMatch := (*age.NoIdentityMatchError)(nil); {
	case errors.As(err, &noMatch):
		return nil, &providers.Error{Kind: providers.LoginFailed, Message: "the file is encrypted for another identity",
			Hint: "encrypt it for the recipient that age-keygen -y prints for the broker's identity"}
	case err != nil:
		return nil, corrupt(err)
	}
	// Never longer than the ciphertext, so it does not grow and leave a copy.
	out := make([]byte, 0, len(sealed)+1)
	for {
		n, err := clearText.Read(out[len(out):cap(out)])
		out = out[:len(out)+n]
		switch {
		case errors.Is(err, io.EOF):
			return out, nil
		case err == nil && len(out) == cap(out):
			err = io.ErrShortBuffer
			fallthrough
		case err != nil:
			clear(out)
			return nil, corrupt(err)
		}
	}
}

// explain makes every error one of the provider's.
func (s *store) explain(err error, ref providers.Ref) error {
	if err == nil || errors.Is(err, providers.ErrUnchanged) {
		return err
	}
	e := (*providers.Error)(nil)
	if !errors.As(err, &e) {
		e = &providers.Error{Kind: kindOf(err), Message: reason(err), Err: err}
		if e.Kind == providers.NotFound {
			e.Message, e.Hint = "the store has no such secret", "it would be "+ref.Path+suffix+" in "+s.c.Path
		}
	}
	out := *e
	out.Provider, out.Ref = "file", ref
	return &out
}

func kindOf(err error) providers.Kind {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return providers.NotFound
	case errors.Is(err, fs.ErrPermission):
		return providers.Denied
	}
	return providers.Unavailable
}

// reason gives the system's word alone, since paths are said elsewhere.
func reason(err error) string {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno.Error()
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return "the time for it ran out"
	}
	return "it cannot be read"
}

// located says which file a refusal is about.
func located(err error, what string) error {
	e := (*providers.Error)(nil)
	if !errors.As(err, &e) {
		return &providers.Error{Kind: kindOf(err), Message: what + ": " + reason(err), Err: err}
	}
	out := *e
	out.Message = what + ": " + out.Message
	return &out
}
