package file

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"filippo.io/age"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

const (
	maxIdentity    = 64 << 10
	commandTimeout = 30 * time.Second
)

// Create makes the directory of a new store, and an identity for it, which its
// caller keeps safe and names to the broker: it is the text of an identity
// file, an X25519 one, which every age reads. There is no copy of it.
func Create(dir string) (secret.Secret, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return secret.Secret{}, err
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return secret.Secret{}, err
	}
	return secret.FromString(id.String() + "\n"), nil
}

// identities reads the identity anew: it may have been replaced.
func (s *store) identities(ctx context.Context) ([]age.Identity, error) {
	text, err := s.identityText(ctx)
	defer clear(text)
	if err != nil {
		return nil, err
	}
	// age's own errors quote no key, ours need not quote age's.
	ids, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		return nil, &providers.Error{Kind: providers.LoginFailed, Message: s.identityName() + " holds no age identity",
			Hint: "make one with age-keygen: a line that begins with AGE-SECRET-KEY-"}
	}
	return ids, nil
}

func (s *store) identityName() string {
	if s.c.IdentityFile != "" {
		return "the identity file " + s.c.IdentityFile
	}
	return "the output of the identity command " + s.c.IdentityCommand[0]
}

func (s *store) identityText(ctx context.Context) ([]byte, error) {
	if s.c.IdentityFile == "" {
		return s.runIdentityCommand(ctx)
	}
	f, err := os.OpenFile(s.c.IdentityFile, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, s.noIdentity(reason(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, s.noIdentity(reason(err))
	}
	if err := providers.CheckOwner(info); err != nil {
		return nil, located(err, s.identityName())
	}
	// systemd gives the unit's user access by an ACL, whose mask shows as the
	// group's bits: there, they say nothing.
	if !s.c.identitySealed() && info.Mode().Perm()&0o077 != 0 {
		return nil, &providers.Error{Kind: providers.Denied, Message: s.identityName() + ": its group or others may read it",
			Hint: "chmod 600 it, and consider it known to them"}
	}
	text, err := readText(f)
	if err != nil {
		return nil, s.noIdentity(reason(err))
	}
	return text, nil
}

func (s *store) noIdentity(why string) error {
	return &providers.Error{Kind: providers.LoginFailed, Message: s.identityName() + ": " + why,
		Hint: "the broker needs it to decrypt the store"}
}

// runIdentityCommand runs the command in a process group of its own, which
// ends with it, in an environment of PATH and HOME.
func (s *store) runIdentityCommand(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	argv := s.c.IdentityCommand
	if info, err := os.Stat(argv[0]); err == nil {
		if err := providers.CheckOwner(info); err != nil {
			return nil, located(err, argv[0])
		}
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	out := &capped{}
	cmd.Stdout = out
	if err := cmd.Run(); err != nil {
		clear(out.b)
		if ctx.Err() != nil {
			return nil, &providers.Error{Kind: providers.Unavailable, Err: ctx.Err(),
				Message: "the identity command " + argv[0] + " did not end in time"}
		}
		return nil, s.noIdentity("it did not succeed")
	}
	return out.b, nil
}

// capped takes a command's output.
type capped struct{ b []byte }

// ReadFrom spares the copy that io.Copy would make and leave behind.
func (c *capped) ReadFrom(r io.Reader) (n int64, err error) {
	c.b, err = readText(r)
	return int64(len(c.b)), err
}

// Write is there to make capped an io.Writer; os/exec uses ReadFrom.
func (c *capped) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

// readText reads at most maxIdentity bytes, in one buffer.
func readText(r io.Reader) ([]byte, error) {
	b := make([]byte, maxIdentity)
	n, err := io.ReadFull(r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return b[:n], nil
	}
	clear(b)
	if err == nil {
		err = io.ErrShortBuffer // there is more
	}
	return nil, err
}
