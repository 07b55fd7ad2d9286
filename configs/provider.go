package configs

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"

	"credentialbroker/internal/clock"
	"credentialbroker/providers"
	"credentialbroker/providers/exec"
	"credentialbroker/providers/file"
	"credentialbroker/providers/systemd"
)

// leftOut stands for the section of an adapter that a build tag (no_vault,
// no_aws, no_azure, no_gcp) leaves out. Its keys are not looked at.
type leftOut struct{}

// isLeftOut finds it in what stands for a section.
func isLeftOut(t reflect.Type) bool {
	return t.NumField() == 1 && t.Field(0).Type == reflect.TypeFor[leftOut]()
}

// section is what every adapter's Config can do.
type section interface{ Validate() error }

// sections lists the adapters that p sets, by their key.
func (p Provider) sections() (kinds []string, set []section) {
	add := func(kind string, ok bool, s section) {
		if ok {
			kinds, set = append(kinds, kind), append(set, s)
		}
	}
	add("vault", p.Vault != nil, p.Vault)
	add("aws", p.AWS != nil, p.AWS)
	add("azure", p.Azure != nil, p.Azure)
	add("gcp", p.GCP != nil, p.GCP)
	add("file", p.File != nil, p.File)
	add("systemd", p.Systemd != nil, p.Systemd)
	add("exec", p.Exec != nil, p.Exec)
	return kinds, set
}

// Kind is the key that is set: vault, aws, azure, gcp, file, systemd or exec;
// empty if it is not exactly one.
func (p Provider) Kind() string {
	if kinds, _ := p.sections(); len(kinds) == 1 {
		return kinds[0]
	}
	return ""
}

// Open makes the adapter. It connects to nothing.
func (p Provider) Open(clk clock.Clock) (providers.Provider, error) {
	switch p.Kind() {
	case "vault":
		return openVault(*p.Vault, clk)
	case "aws":
		return openAWS(*p.AWS, clk)
	case "azure":
		return openAzure(*p.Azure, clk)
	case "gcp":
		return openGCP(*p.GCP, clk)
	case "file":
		return file.Open(*p.File, clk)
	case "systemd":
		return systemd.Open(*p.Systemd, clk)
	case "exec":
		return exec.Open(*p.Exec, clk)
	}
	return nil, errors.New("a provider is exactly one of vault, aws, azure, gcp, file, systemd, exec")
}

// A Login is what a person logs in with, as far as it is not the SDK's own.
type Login struct {
	Home         string // of the person
	TokenFile    string // of Vault; empty: .vault-token in Home, as vault login writes it
	IdentityFile string // of an age-encrypted store; empty: the configured identity
}

// Own is the same secrets manager with a person's own login in place of the
// daemon's: the token of vault login, the default chain of a cloud's SDK. Its
// error says what to do instead.
func (p Provider) Own(l Login) (Provider, error) {
	p.Write = ""
	switch p.Kind() {
	case "vault":
		if l.TokenFile == "" {
			l.TokenFile = filepath.Join(l.Home, ".vault-token")
		}
		c, err := ownVault(*p.Vault, l.TokenFile)
		p.Vault = &c
		return p, err
	case "aws":
		c := ownAWS(*p.AWS)
		p.AWS = &c
	case "azure":
		c := ownAzure(*p.Azure)
		p.Azure = &c
	case "gcp":
		c := ownGCP(*p.GCP)
		p.GCP = &c
	case "file":
		c := *p.File
		switch {
		case l.IdentityFile != "" && c.RecipientsFile == "":
			return p, errors.New("with an identity of your own the daemon could not read what is written: list its recipient and yours in recipients_file first")
		case l.IdentityFile != "":
			c.IdentityFile, c.IdentityCommand, c.InsecureIdentity = l.IdentityFile, nil, true
		case strings.HasPrefix(c.IdentityFile, credentialsVariable):
			return p, errors.New("the identity of this store is sealed for the daemon: name one of your own with --identity-file (and both recipients in recipients_file), or configure a provider to write with")
		}
		p.File = &c
	default:
		return p, fmt.Errorf("a secrets manager of the kind %s can only be read here: store the fields with its own tools, as one new version", p.Kind())
	}
	return p, nil
}
