package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"credentialbroker/configs"
	"credentialbroker/internal/access"
	"credentialbroker/internal/clock"
)

func checkCommand() *cobra.Command {
	file, egress, asJSON := defaultConfig(), false, false
	var replace []string
	c := &cobra.Command{Use: "check", Short: "Check the configuration, offline", Args: noArgs,
		Long: "Check the configuration without connecting to anything: every mistake of every file, then what\n" +
			"works and may not be meant. Exit code 78 if there are mistakes.\n\n" +
			"With --replace FILE=NEW, what it would be with the file NEW in the place of FILE, which need not be there yet.",
		Example: "  broker check\n  broker check --config ./broker.yaml\n  broker check --egress\n  broker check --live\n" +
			"  broker check --replace /etc/credential-broker/clients.d/vdab.yaml=./vdab.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := configs.Options{Credentials: os.Getenv("CREDENTIALS_DIRECTORY"), Offline: true, Replace: map[string]string{}}
			for _, r := range replace {
				old, now, ok := strings.Cut(r, "=")
				if !ok || !filepath.IsAbs(old) || now == "" {
					return usageError{fmt.Errorf("--replace %s: want FILE=NEW, FILE with its whole path", r)}
				}
				o.Replace[filepath.Clean(old)] = now
			}
			c, err := configs.Load(file, o)
			if err != nil {
				return err
			}
			if egress {
				return showEgress(cmd, c, asJSON)
			}
			if unreported := c.Unreported(); len(unreported) > 0 {
				return unreported
			}
			return showCheck(cmd, c, asJSON)
		}}
	c.Flags().StringVar(&file, "config", file, "configuration file")
	c.Flags().StringArrayVar(&replace, "replace", nil, "check with the file NEW in the place of FILE, as in FILE=NEW (repeatable)")
	c.Flags().BoolVar(&egress, "egress", false, "list every host:port, for the firewall request")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func showCheck(cmd *cobra.Command, c *configs.Config, asJSON bool) error {
	warnings := c.Warnings(access.SystemNames())
	out := cmd.OutOrStdout()
	if asJSON {
		written := []map[string]string{}
		for _, f := range fileEntries(c) {
			written = append(written, map[string]string{"client": f.Client, "path": f.Path, "text": f.String(), "needs": f.Needs()})
		}
		return json.NewEncoder(out).Encode(map[string]any{"files": written, "providers": len(c.Providers), "clients": len(c.Clients), "warnings": append([]configs.Problem{}, warnings...),
			"metrics": map[string]string{"listen": c.Metrics.Listen, "textfile": c.Metrics.TextFile}})
	}
	for _, w := range warnings {
		printf(out, "warning: %s\n", w.Error())
	}
	for _, f := range fileEntries(c) {
		printf(out, "file of %s: %s\n", f.Client, f)
		if needs := f.Needs(); needs != "" {
			printf(out, "  %s\n", needs)
		}
	}
	if m := c.Metrics; m.Listen != "" {
		printf(out, "metrics: http://%s/metrics, for everybody on this machine\n", m.Listen)
	}
	if m := c.Metrics; m.TextFile != "" {
		printf(out, "metrics: %s, every %s, for everybody on this machine\n", m.TextFile, exportEvery)
	}
	printf(out, "%d secrets managers, %d clients, no mistakes, %d warnings\n", len(c.Providers), len(c.Clients), len(warnings))
	return nil
}

func showEgress(cmd *cobra.Command, c *configs.Config, asJSON bool) error {
	list, err := c.Egress(clock.System{})
	out := cmd.OutOrStdout()
	if asJSON {
		if e := json.NewEncoder(out).Encode(append([]configs.Destination{}, list...)); e != nil {
			return e
		}
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, d := range list {
		via := ""
		if d.Via != "" {
			via = "through " + d.Via
		}
		printf(w, "%s\t%s\t%s\n", d.Address, via, strings.Join(d.For, ", "))
	}
	if e := w.Flush(); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("not complete: %w", err)
	}
	return nil
}
