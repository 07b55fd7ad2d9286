package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"credentialbroker/internal/clock"
	"credentialbroker/providers"
)

func hostCommand() *cobra.Command {
	file := defaultConfig()
	c := &cobra.Command{Use: "provider-host NAME", Short: "Serve one secrets manager to another process, on standard input and output", Args: oneArg,
		Long: "Serve one configured secrets manager to another process: a request a line on standard input, an\n" +
			"answer a line on standard output, as the exec provider speaks. It keeps an adapter and its SDK\n" +
			"out of the daemon's process: configure it there as exec.",
		Example: "  brokerd provider-host corp --config /etc/credential-broker/corp.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := load(file)
			if err != nil {
				return err
			}
			p, ok := c.Providers[args[0]]
			if !ok {
				return fmt.Errorf("%w: %s has no provider %s", errConfig, file, args[0])
			}
			open, err := p.Open(clock.System{})
			if err != nil {
				return err
			}
			defer open.Close()
			return providers.Serve(cmd.Context(), open, cmd.InOrStdin(), cmd.OutOrStdout())
		}}
	c.Flags().StringVar(&file, "config", file, "configuration file")
	return c
}
