package main

import (
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
)

func besideOf(socket string) string { return filepath.Join(filepath.Dir(socket), "admin.sock") }

// tokenFlags are what a token may be asked for.
type tokenFlags struct {
	o      client.Options
	asJSON bool
}

func (f *tokenFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&f.o.Scope, "scope", "", "scopes, with a space between (default: the allow entry's, else the client's)")
	c.Flags().StringVar(&f.o.Audience, "audience", "", "audience of the token")
	c.Flags().StringVar(&f.o.Resource, "resource", "", "resource of the token, a URI (RFC 8707)")
	c.Flags().DurationVar(&f.o.MinTTL, "min-ttl", 0, "how much life the token must have left, as in 30s")
	c.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
}

func tokenCommand(s *sockets) *cobra.Command {
	var f tokenFlags
	c := &cobra.Command{Use: "token CLIENT", Short: "Print an access token", Args: oneClient,
		Long: "Print the client's current access token. Ask for each call: the broker keeps it fresh, and answers\n" +
			"from memory.",
		Example: "  broker token vdab\n  curl -sSf -H \"Authorization: Bearer $(broker token vdab)\" …   # better: broker headers, which keeps it out of argv",
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := s.client().Token(cmd.Context(), args[0], f.o)
			if err != nil {
				return err
			}
			if f.asJSON {
				return printJSON(cmd.OutOrStdout(), t)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), t.AccessToken)
			return err
		}}
	f.register(c)
	return c
}

func headersCommand(s *sockets) *cobra.Command {
	var f tokenFlags
	c := &cobra.Command{Use: "headers CLIENT", Short: "Print the headers that a call to the API needs", Args: oneClient,
		Long:    "Print everything that a call to the client's API needs, as header lines for curl -H @-.",
		Example: "  set -o pipefail\n  broker headers vdab | curl -sSf -H @- https://api.vdab.be/services/openservices/",
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := s.client().Headers(cmd.Context(), args[0], f.o)
			if err != nil {
				return err
			}
			if f.asJSON {
				return printJSON(cmd.OutOrStdout(), h)
			}
			return printHeaders(cmd.OutOrStdout(), h)
		}}
	f.register(c)
	return c
}

func printHeaders(w io.Writer, h client.Headers) error {
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if _, err := fmt.Fprintf(w, "%s: %s\n", name, h[name]); err != nil {
			return err
		}
	}
	return nil
}

func apiKeyCommand(s *sockets) *cobra.Command {
	return &cobra.Command{Use: "api-key CLIENT", Short: "Print the API key", Args: oneClient,
		Long:    "Print the client's API key alone. An allow entry has to name the surface api-key.",
		Example: "  broker api-key vdab",
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := s.client().APIKey(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.TrimRight(key, "\n"))
			return err
		}}
}

func whoamiCommand(s *sockets) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "whoami", Short: "Print what the broker sees of you, and what you may have", Args: noArgs,
		Example: "  broker whoami\n  runuser -u www-data -- broker whoami --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := s.client().Whoami(cmd.Context())
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return printJSON(out, w)
			}
			fmt.Fprintln(out, w.Caller)
			if len(w.Clients) == 0 {
				fmt.Fprintln(out, "no allow entry is for you: broker audit denied shows an administrator what you asked for")
			}
			for _, c := range w.Clients {
				fmt.Fprintf(out, "%s: %s\n", c.Client, strings.Join(c.Surfaces, ", "))
			}
			return nil
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
