package files

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/internal/clock"
)

// Config is one file of a client. That it is written here is the permission:
// whoever can read the file has what is in it.
type Config struct {
	// Path is the file: absolute, without symbolic links, in a directory on a
	// tmpfs that is root's or the daemon's own and that nobody else may write.
	// Under /run/credential-broker/files missing directories are made.
	Path string `yaml:"path" check:"required" hint:"as in path: /run/credential-broker/files/vdab/token"`
	// Content is what the file holds. Missing: token.
	Content Content `yaml:"content"`
	// Format is how it is written. Missing: text.
	Format Format `yaml:"format"`
	// Owner is the user that the file belongs to, by name or number; another
	// one than the daemon's own needs a daemon that runs as root. Missing: the
	// daemon's own.
	Owner string `yaml:"owner"`
	// Group is the file's group, by name or number; the daemon must be a member
	// of it, or root. Missing: the daemon's own, or that of a directory with the
	// setgid bit.
	Group string `yaml:"group"`
	// Mode is 0400 (the owner reads) or 0440 (the group too). Missing: 0440 if
	// there is a group, else 0400.
	Mode string `yaml:"mode"`
	// MinTTL is how much life the token in the file has left at any time, 10s or
	// more: a file that cannot have that is removed. Missing: 2m.
	MinTTL clock.Duration `yaml:"min_ttl"`
	// Scope chooses the token (space-separated). Missing: the client's default.
	Scope string `yaml:"scope"`
	// Audience chooses the token. Missing: the client's default.
	Audience string `yaml:"audience"`
}

// Content is what a file holds.
type Content string

// The contents of files.
const (
	Token   Content = "token"   // the access token
	Headers Content = "headers" // all that a call to the API needs
	APIKey  Content = "api-key" // the API key alone, which does not expire
)

// Format is how a file is written.
type Format string

// The formats of files.
const (
	Text   Format = "text"   // the value alone; of headers, Name: value lines
	JSON   Format = "json"   // one object
	Dotenv Format = "dotenv" // NAME='value' lines
)

const (
	defaultMinTTL  = 2 * time.Minute
	shortestMinTTL = 10 * time.Second
	longestName    = 240 // that leaves room for the name of a moment
)

// Validate reports every mistake. Each begins with the key that it is about.
func (c Config) Validate() error {
	var errs []error
	wrong := func(is bool, format string, args ...any) {
		if is {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	switch base := path.Base(c.Path); {
	case !path.IsAbs(c.Path) || path.Clean(c.Path) != c.Path || c.Path == "/" || strings.ContainsRune(c.Path, 0):
		wrong(true, "path: %q is no plain absolute path: write one that begins with /, without .. and a / at the end", c.Path)
	case strings.HasPrefix(base, ".") || len(base) > longestName:
		wrong(true, "path: a file cannot be called %q here: take another name, which does not begin with a dot, of at most %d bytes", base, longestName)
	case path.Dir(c.Path) == "/run/credential-broker":
		wrong(true, "path: /run/credential-broker is the directory of the sockets: write /run/credential-broker/files/%s", base)
	}
	wrong(!oneOf(c.Content, "", Token, Headers, APIKey), "content: %q is unknown: write token, headers or api-key", c.Content)
	wrong(!oneOf(c.Format, "", Text, JSON, Dotenv), "format: %q is unknown: write text, json or dotenv", c.Format)
	wrong(!oneOf(c.Mode, "", "0400", "0440"), "mode: %q cannot be: write 0400 (the owner reads) or 0440 (the group too); for more users use a group, or an ACL of the directory", c.Mode)
	wrong(c.MinTTL < 0 || c.MinTTL > 0 && c.MinTTL.D() < shortestMinTTL, "min_ttl: %s is too short to replace a file in: write 10s or more", c.MinTTL)
	if c.Content == APIKey {
		wrong(c.Scope != "", "scope: an API key has no scope: remove it")
		wrong(c.Audience != "", "audience: an API key has no audience: remove it")
		wrong(c.MinTTL != 0, "min_ttl: an API key does not expire: remove it")
	}
	return errors.Join(errs...)
}

func oneOf[T comparable](v T, of ...T) bool {
	for _, o := range of {
		if v == o {
			return true
		}
	}
	return false
}

// filled gives c with what is missing.
func (c Config) filled() Config {
	if c.Content == "" {
		c.Content = Token
	}
	if c.Format == "" {
		c.Format = Text
	}
	if c.MinTTL == 0 && c.Content != APIKey {
		c.MinTTL = clock.Duration(defaultMinTTL)
	}
	if c.Mode == "" {
		c.Mode = "0400"
		if c.Group != "" {
			c.Mode = "0440"
		}
	}
	return c
}

// String says in words what is where, and who can read it.
func (c Config) String() string {
	c = c.filled()
	owner, group := c.Owner, c.Group
	if owner == "" {
		owner = "the daemon"
	} else {
		owner = "the user " + owner
	}
	text := fmt.Sprintf("%s: %s (%s)", c.Path, c.Content, c.Format)
	for _, one := range [][2]string{{"scope", c.Scope}, {"audience", c.Audience}} {
		if one[1] != "" {
			text += ", " + one[0] + " " + one[1]
		}
	}
	text += ", for " + owner
	switch {
	case c.Mode == "0440" && group == "":
		text += " and its group, or the directory's"
	case c.Mode == "0440":
		text += " and everybody in the group " + group
	}
	return text
}

// Needs says what the daemon's unit must permit for the file's owner and
// group, by a person's reading; empty: nothing.
func (c Config) Needs() string {
	switch {
	case c.Owner != "":
		return "owner: " + c.Owner + " needs a daemon that runs as root or as that user, and the shipped unit runs as neither: " +
			"with group: and mode 0440 it needs none (docs/applications.md)"
	case c.Group != "":
		return "group: " + c.Group + " needs a daemon that is a member of it: see the drop-in files.conf of the unit (docs/applications.md)"
	}
	return ""
}

// who is the file's owner and group in numbers; -1: as the kernel makes it.
type who struct{ uid, gid int }

func (c Config) who(names access.Names) (w who, err error) {
	w = who{-1, -1}
	if c.Owner != "" {
		uid, err := names.User(c.Owner)
		if err != nil {
			return w, fmt.Errorf("owner: %w", err)
		}
		w.uid = int(uid)
	}
	if c.Group != "" {
		gid, err := names.Group(c.Group)
		if err != nil {
			return w, fmt.Errorf("group: %w", err)
		}
		w.gid = int(gid)
	}
	return w, nil
}

func (c Config) mode() uint32 {
	m, _ := strconv.ParseUint(c.filled().Mode, 8, 32) // Validate has seen it
	return uint32(m)
}
