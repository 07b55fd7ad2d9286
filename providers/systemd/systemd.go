// Package systemd reads the credentials of the daemon's own unit: what
// LoadCredential=, SetCredential= and their Encrypted forms put into
// $CREDENTIALS_DIRECTORY (systemd.exec(5)).
//
// systemd makes the files anew whenever it starts the unit and never in
// between. So the version of a credential is when its file was made: it
// changes with every restart, also when the content did not. Only a hash of
// the content could tell better, and a secret is not hashed into records.
package systemd

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"credentialbroker/internal/clock"
	"credentialbroker/providers"
)

// credentials is the provider. It holds nothing.
type credentials struct{ dir string }

// Config is the directory of credentials.
type Config struct {
	// Directory is where the credentials are. Empty: $CREDENTIALS_DIRECTORY,
	// which systemd sets.
	Directory string `yaml:"directory,omitempty" json:"directory,omitempty"`
}

// Validate finds every mistake that can be seen without the files.
func (c Config) Validate() error {
	if c.Directory != "" && !filepath.IsAbs(c.Directory) && !strings.HasPrefix(c.Directory, "${CREDENTIALS_DIRECTORY}") {
		return errors.New("directory: want an absolute path, or none for the daemon's own credentials")
	}
	return nil
}

// Open makes the provider. It touches no file; the clock is not needed.
func Open(c Config, _ clock.Clock) (providers.Provider, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Directory == "" {
		c.Directory = os.Getenv("CREDENTIALS_DIRECTORY")
	}
	return &credentials{c.Directory}, nil
}

// Close has nothing to end.
func (*credentials) Close() error { return nil }

// Fetch reads the credential that ref.Path names. An unchanged one is not
// opened.
func (c *credentials) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	b, err := c.fetch(ctx, ref, have)
	if err == nil || errors.Is(err, providers.ErrUnchanged) {
		return b, err
	}
	e := (*providers.Error)(nil)
	if !errors.As(err, &e) {
		e = classify(err)
	}
	out := *e
	out.Provider, out.Ref = "systemd", ref
	return b, &out
}

func (c *credentials) fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	if err := ctx.Err(); err != nil {
		return providers.Bundle{}, err
	}
	if err := c.check(ref); err != nil {
		return providers.Bundle{}, err
	}
	dir, err := os.OpenRoot(c.dir)
	if err != nil {
		return providers.Bundle{}, err
	}
	defer dir.Close()
	info, err := dir.Lstat(ref.Path)
	switch {
	case err != nil:
		return providers.Bundle{}, err
	case !info.Mode().IsRegular():
		return providers.Bundle{}, &providers.Error{Kind: providers.Denied, Message: "it is a link or no regular file"}
	case versionOf(info) == have:
		return providers.Bundle{}, providers.ErrUnchanged
	}
	payload, info, err := read(dir, ref.Path)
	if err != nil {
		return providers.Bundle{}, err
	}
	fields, err := providers.Parse(payload)
	if err != nil {
		return providers.Bundle{}, err
	}
	// No Created: when systemd copied it says nothing of the secret's age.
	return providers.Bundle{Version: versionOf(info), Fields: fields}, nil
}

func (c *credentials) check(ref providers.Ref) error {
	if c.dir == "" {
		return &providers.Error{Kind: providers.NotFound, Message: "the daemon has no credentials: CREDENTIALS_DIRECTORY is not set",
			Hint: "run it as a unit with LoadCredentialEncrypted=" + ref.Path}
	}
	return Config{}.CheckRef(ref)
}

// CheckRef says whether ref can name a credential.
func (Config) CheckRef(ref providers.Ref) error {
	switch {
	case ref.Version != "":
		return &providers.Error{Kind: providers.Unsupported, Message: "a credential has one version", Hint: "remove version"}
	case ref.Path == "" || ref.Path == "." || ref.Path == ".." || len(ref.Path) > 255 || strings.ContainsAny(ref.Path, "/\x00"):
		return &providers.Error{Kind: providers.NotFound, Message: "no possible name of a credential", Hint: "a name has no slash"}
	}
	return nil
}

// read reads the file at one version of it. Its group's and others' right to
// write are refused; the right to read is not looked at, as systemd gives it
// by an access list, which shows as the group's.
func read(dir *os.Root, name string) (payload []byte, info fs.FileInfo, err error) {
	f, err := dir.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if info, err = f.Stat(); err == nil {
		err = providers.CheckOwner(info)
	}
	if err != nil {
		return nil, nil, err
	}
	// One buffer, as a growing one would leave copies behind; one byte more
	// than is allowed, so that Parse can tell.
	payload = make([]byte, providers.MaxPayload+1)
	n, err := io.ReadFull(f, payload)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		clear(payload)
		return nil, nil, err
	}
	after, err := f.Stat()
	if err == nil && versionOf(after) != versionOf(info) {
		err = &providers.Error{Kind: providers.Unavailable, Message: "it changed while it was read"}
	}
	if err != nil {
		clear(payload)
		return nil, nil, err
	}
	return payload[:n], info, nil
}

// versionOf gives the file's time of modification in nanoseconds, base 36.
func versionOf(info fs.FileInfo) providers.Version {
	return providers.Version(strconv.FormatInt(info.ModTime().UnixNano(), 36))
}

func classify(err error) *providers.Error {
	errno := syscall.Errno(0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &providers.Error{Kind: providers.NotFound, Message: "the daemon's unit has no such credential", Err: err,
			Hint: "add LoadCredentialEncrypted= to the unit and restart it"}
	case errors.Is(err, fs.ErrPermission):
		return &providers.Error{Kind: providers.Denied, Message: "the daemon may not read it", Err: err}
	case errors.As(err, &errno):
		return &providers.Error{Kind: providers.Unavailable, Message: errno.Error(), Err: err}
	}
	return &providers.Error{Kind: providers.Unavailable, Message: "it cannot be read", Err: err}
}
