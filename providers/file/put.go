package file

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"filippo.io/age"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

const lockName = ".lock"

// Put replaces NAME.age in one step, under the store's lock: a reader has the
// old file or the new one, also after a crash.
func (s *store) Put(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret, expect providers.Version) (providers.Version, error) {
	v, err := s.put(ctx, ref, fields, &expect)
	return v, s.explain(err, ref)
}

// Replace is Put in place of whatever is there, readable or not.
func (s *store) Replace(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret) error {
	_, err := s.put(ctx, ref, fields, nil)
	return s.explain(err, ref)
}

// Remove takes NAME.age away, durably. If there is none, it says NotFound.
func (s *store) Remove(ctx context.Context, ref providers.Ref) error {
	return s.explain(s.remove(ctx, ref), ref)
}

func (s *store) remove(ctx context.Context, ref providers.Ref) error {
	name, err := fileName(ref)
	if err != nil {
		return err
	}
	dir, err := s.openDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	unlock, err := lock(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := dir.Remove(name); err != nil {
		return err
	}
	return syncDir(dir)
}

// put writes if the store has the version expect; nil: whatever it has.
func (s *store) put(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret, expect *providers.Version) (providers.Version, error) {
	name, err := fileName(ref)
	if err != nil {
		return "", err
	}
	sealed, err := s.seal(ctx, fields)
	if err != nil {
		return "", err
	}
	dir, err := s.openDir()
	if err != nil {
		return "", err
	}
	defer dir.Close()
	unlock, err := lock(ctx, dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	if expect != nil {
		switch _, state, err := read(dir, name); {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return "", err
		case state.version != *expect && *expect == "":
			return "", conflict("the secret exists already")
		case state.version != *expect:
			return "", conflict("the secret has been changed or removed by another writer")
		}
	}
	if err := replace(dir, name, sealed); err != nil {
		return "", &providers.Error{Kind: kindOf(err), Message: "cannot write into the store " + s.c.Path + ": " + reason(err), Err: err}
	}
	return versionOf(sealed), nil
}

func conflict(text string) error {
	return &providers.Error{Kind: providers.Conflict, Message: text, Hint: "nothing was written: read it again first"}
}

// seal encrypts for the recipients.
func (s *store) seal(ctx context.Context, fields map[string]secret.Secret) ([]byte, error) {
	to, err := s.recipients(ctx)
	if err != nil {
		return nil, err
	}
	payload, err := providers.Encode(fields)
	if err != nil {
		return nil, err
	}
	defer clear(payload)
	if len(payload) > providers.MaxPayload {
		return nil, &providers.Error{Kind: providers.Unsupported, Message: fmt.Sprintf("the secret is larger than %d bytes", providers.MaxPayload)}
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, to...)
	if err == nil {
		_, err = w.Write(payload)
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		return nil, &providers.Error{Kind: providers.Malformed, Message: "the secret cannot be encrypted for these recipients", Err: err}
	}
	return sealed.Bytes(), nil
}

func (s *store) recipients(ctx context.Context) ([]age.Recipient, error) {
	if s.c.RecipientsFile != "" {
		text, err := os.ReadFile(s.c.RecipientsFile)
		if err != nil {
			return nil, &providers.Error{Kind: kindOf(err), Message: "the recipients file " + s.c.RecipientsFile + ": " + reason(err), Err: err}
		}
		to, err := age.ParseRecipients(bytes.NewReader(text))
		if err != nil {
			return nil, &providers.Error{Kind: providers.Malformed, Message: "the recipients file " + s.c.RecipientsFile + " has a line that is no recipient",
				Hint: "a recipient begins with age1"}
		}
		return to, nil
	}
	ids, err := s.identities(ctx)
	if err != nil {
		return nil, err
	}
	var to []age.Recipient
	for _, id := range ids {
		switch id := id.(type) {
		case *age.X25519Identity:
			to = append(to, id.Recipient())
		case *age.HybridIdentity:
			to = append(to, id.Recipient())
		}
	}
	if len(to) == 0 {
		return nil, &providers.Error{Kind: providers.Unsupported, Message: "no recipient follows from the identity", Hint: "set recipients_file"}
	}
	return to, nil
}

// lock takes the store's lock, of which other processes know too.
func lock(ctx context.Context, dir *os.Root) (unlock func(), err error) {
	f, err := dir.OpenFile(lockName, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, &providers.Error{Kind: providers.Unavailable, Message: "another process holds the lock of the store", Err: ctx.Err()}
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// replace writes a new file, makes it durable, and puts it in place.
func replace(dir *os.Root, name string, content []byte) (err error) {
	old, err := dir.Lstat(name)
	if err != nil {
		old = nil // there is none
	}
	tmp := ".new-" + rand.Text()
	f, err := dir.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = dir.Remove(tmp)
		}
	}()
	_, err = io.Copy(f, bytes.NewReader(content))
	if err := errors.Join(err, keepReaders(f, dir, old), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := dir.Rename(tmp, name); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// keepReaders lets the group read a new file that could read the old one, or
// the directory: an administrator who stores a secret must not shut the daemon
// out.
func keepReaders(f *os.File, dir *os.Root, old fs.FileInfo) error {
	like, also := old, fs.FileMode(0o044)
	if old == nil {
		var err error
		if like, err = dir.Stat("."); err != nil {
			return err
		}
		also = 0o040
	}
	if owner, ok := like.Sys().(*syscall.Stat_t); !ok || f.Chown(-1, int(owner.Gid)) != nil {
		also &^= 0o040 // of another group
	}
	return f.Chmod(0o600 | like.Mode().Perm()&also)
}
