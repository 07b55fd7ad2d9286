package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"credentialbroker/configs"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// maxInput bounds the fields on standard input, in bytes.
const maxInput = 256 << 10

// storeCommand runs as a person, with that person's login: the daemon's
// permissions have no part in it, nor has its process.
func storeCommand() *cobra.Command {
	file, replaces, login := defaultConfig(), "", configs.Login{}
	c := &cobra.Command{Use: "store CLIENT", Short: "Store fields of a client's secret, with your own login; broker intake runs it", Args: oneArg,
		Long: "Store fields of a client's secret as one new version, with the login of whoever runs it: the token of\n" +
			"vault login, or what the cloud's own tools have set up. The other fields stay. The fields are one JSON object\n" +
			"on standard input. broker intake proves credentials first, and then runs this.",
		Example: "  broker intake credentials.zip vdab\n  brokerd store vdab <fields.json",
		RunE: func(cmd *cobra.Command, args []string) error {
			var have *providers.Version
			if cmd.Flags().Changed("replaces") {
				v := providers.Version(replaces)
				have = &v
			}
			login.Home, _ = os.UserHomeDir() // without it the token's file is not found, which is said
			version, err := store(cmd, file, args[0], login, have)
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"version": string(version)})
		}}
	c.Flags().StringVar(&file, "config", file, "configuration file")
	c.Flags().StringVar(&replaces, "replaces", "", "the version that may be replaced; empty: none may be there")
	c.Flags().StringVar(&login.TokenFile, "token-file", "", "file with your Vault token (default ~/.vault-token)")
	c.Flags().StringVar(&login.IdentityFile, "identity-file", "", "your age identity, for a store whose own is sealed for the daemon")
	return c
}

func store(cmd *cobra.Command, file, name string, login configs.Login, have *providers.Version) (providers.Version, error) {
	fields, err := readFields(cmd.InOrStdin())
	if err != nil {
		return "", err
	}
	defer providers.Bundle{Fields: fields}.Wipe()
	c, err := configs.Load(file, configs.Options{Offline: true})
	if err != nil {
		return "", err
	}
	cl, ok := c.Clients[name]
	if !ok {
		return "", fmt.Errorf("%w: %s has no client %s", errConfig, file, name)
	}
	own, err := c.Providers[cl.Secret.Provider].Own(login)
	if err != nil {
		return "", storeError{&providers.Error{Kind: providers.Unsupported, Message: err.Error()}}
	}
	p, err := own.Open(clock.System{})
	if err != nil {
		return "", fmt.Errorf("%w: provider %s: %w", errConfig, cl.Secret.Provider, err)
	}
	defer p.Close()
	var version providers.Version
	if have != nil {
		version, err = providers.Replace(cmd.Context(), p, cl.Secret.Spec, fields, *have)
	} else {
		version, err = providers.Store(cmd.Context(), p, cl.Secret.Spec, fields, providers.Any)
	}
	if err != nil {
		return "", storeError{err}
	}
	return version, nil
}

// readFields reads named fields, and wipes what it read.
func readFields(in io.Reader) (map[string]secret.Secret, error) {
	text := make([]byte, maxInput+1)
	defer clear(text)
	n, err := io.ReadFull(in, text)
	bad := storeError{&providers.Error{Kind: providers.Malformed, Message: "standard input is no JSON object of fields, or larger than 256 KiB"}}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, bad
	}
	fields, err := providers.Parse(text[:n])
	if _, whole := fields[providers.Whole]; err != nil || whole || len(fields) == 0 {
		providers.Bundle{Fields: fields}.Wipe()
		return nil, bad
	}
	return fields, nil
}

// storeError is why a secrets manager did not take what it was given.
type storeError struct{ error }

func (e storeError) Unwrap() error { return e.error }

func (e storeError) exit() int {
	switch providers.KindOf(e.error) {
	case providers.Denied, providers.LoginFailed:
		return exitNotAllowed
	case providers.Conflict, providers.Throttled, providers.Unavailable, providers.NotYetValid:
		return exitTryAgain
	case providers.Malformed:
		return exitData
	case providers.NotFound, providers.Unsupported, providers.Disabled, providers.Deleted, providers.Expired:
	}
	return exitUnavailable
}
