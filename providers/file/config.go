package file

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// Config is one store.
type Config struct {
	// Path is the directory; the secret NAME is its file NAME.age, whose
	// content is a JSON object of fields or one value. Required.
	Path string `yaml:"path" json:"path"`
	// IdentityFile holds the age identity (AGE-SECRET-KEY-1… or
	// AGE-SECRET-KEY-PQ-1…) that decrypts the files: a credential of the
	// daemon's unit, ${CREDENTIALS_DIRECTORY}/NAME. Empty: see IdentityCommand.
	IdentityFile string `yaml:"identity_file,omitempty" json:"identity_file,omitempty"`
	// IdentityCommand prints the identity: an absolute path and arguments. It
	// runs for each new version of a secret. Empty: see IdentityFile; exactly
	// one of the two is required.
	IdentityCommand []string `yaml:"identity_command,omitempty" json:"identity_command,omitempty"`
	// InsecureIdentity allows an IdentityFile that is not a credential of the
	// unit: whoever reads the disk then reads the secrets. False: refused.
	InsecureIdentity bool `yaml:"insecure_identity,omitempty" json:"insecure_identity,omitempty"`
	// RecipientsFile lists those for whom the broker encrypts what it writes,
	// one a line. Empty: the identity's own recipient.
	RecipientsFile string `yaml:"recipients_file,omitempty" json:"recipients_file,omitempty"`
}

// Validate finds every mistake that can be seen without the files.
func (c Config) Validate() error {
	var errs []error
	wrong := func(text string) { errs = append(errs, errors.New(text)) }
	switch {
	case c.Path == "":
		wrong("path: missing: the directory that holds the NAME.age files")
	case !filepath.IsAbs(c.Path):
		wrong("path: want an absolute path")
	}
	switch {
	case c.IdentityFile == "" && len(c.IdentityCommand) == 0:
		wrong("identity_file: missing: the file that decrypts the store, or identity_command")
	case c.IdentityFile != "" && len(c.IdentityCommand) > 0:
		wrong("identity_command: there is an identity_file too: keep one of them")
	case len(c.IdentityCommand) > 0 && !filepath.IsAbs(c.IdentityCommand[0]):
		wrong("identity_command: want the absolute path of a program first")
	}
	if c.IdentityFile != "" && !c.identitySealed() && !c.InsecureIdentity {
		wrong("identity_file: not a credential of the daemon's unit: write ${CREDENTIALS_DIRECTORY}/NAME, " +
			"or accept a plain file with insecure_identity: true")
	}
	return errors.Join(errs...)
}

// identitySealed says whether the identity is a credential of the unit, in the
// configuration's words or after their expansion.
func (c Config) identitySealed() bool {
	file := filepath.Clean(c.IdentityFile)
	if strings.HasPrefix(file, "${CREDENTIALS_DIRECTORY}/") {
		return true
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	return filepath.IsAbs(dir) && strings.HasPrefix(file, filepath.Clean(dir)+"/")
}
