package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
)

// maxUserFile bounds a file that names a user, in bytes.
const maxUserFile = 64 << 10

func jwtCommand(s *sockets) *cobra.Command {
	var u client.User
	var from string
	var asJSON bool
	c := &cobra.Command{Use: "jwt CLIENT", Short: "Print a JWT that the broker signs, for one user", Args: oneClient,
		Long: "Print a JWT for one call to an API whose clients sign for themselves (VNG's ZGW APIs), with the user for whom\n" +
			"the call is made. What is not given is the client's default.\n\n" +
			"Other users of this machine can read command lines, and a user is personal data: where that matters, give a\n" +
			"file with --user, or - for standard input, that holds {\"user_id\": …, \"user_representation\": …}.",
		Example: "  broker jwt zgw --user-id 4711 --user-representation 'Case worker 4711'\n" +
			"  printf '{\"user_id\":\"jdoe\",\"user_representation\":\"Jane Doe\"}' | broker jwt zgw --user -",
		RunE: func(cmd *cobra.Command, args []string) error {
			if from != "" {
				if u != (client.User{}) {
					return usageError{errors.New("give the user by --user, or by --user-id and --user-representation, not by both")}
				}
				var err error
				if u, err = readUser(from, cmd.InOrStdin()); err != nil {
					return err
				}
			}
			t, err := s.client().JWT(cmd.Context(), args[0], u)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), t)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), t.AccessToken)
			return err
		}}
	c.Flags().StringVar(&u.UserID, "user-id", "", "claim user_id, at most 255 bytes")
	c.Flags().StringVar(&u.UserRepresentation, "user-representation", "", "claim user_representation, at most 255 bytes")
	c.Flags().StringVar(&from, "user", "", "file with both as JSON; - for standard input")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// readUser reads a user from a file, or from in. Errors do not repeat it.
func readUser(name string, in io.Reader) (u client.User, err error) {
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return u, failure{exitData, err}
		}
		defer f.Close()
		in = f
	}
	d := json.NewDecoder(io.LimitReader(in, maxUserFile))
	d.DisallowUnknownFields()
	err = d.Decode(&u)
	if _, end := d.Token(); err != nil || !errors.Is(end, io.EOF) {
		return u, failure{exitData, errors.New(`the user has to be one JSON object of two strings: {"user_id": …, "user_representation": …}`)}
	}
	return u, nil
}
