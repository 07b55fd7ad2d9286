package man

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Commands describes every command below root as its --help does: what it
// does, its flags, its examples. elsewhere is said of commands whose flags are
// another program's.
func (p *Page) Commands(root *cobra.Command, elsewhere string) {
	for _, c := range root.Commands() {
		if !c.IsAvailableCommand() || c.Name() == "help" {
			continue
		}
		if c.Runnable() {
			p.command(c, elsewhere)
		}
		p.Commands(c, elsewhere)
	}
}

func (p *Page) command(c *cobra.Command, elsewhere string) {
	p.Sub(c.UseLine())
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	p.Text(text)
	if c.DisableFlagParsing && elsewhere != "" {
		p.Text(elsewhere)
	}
	p.Flags(c.NonInheritedFlags())
	if c.Example != "" {
		p.Code(c.Example)
	}
}

// Flags lists flags, but for --help, which every command has.
func (p *Page) Flags(set *pflag.FlagSet) {
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		kind, usage := pflag.UnquoteUsage(f)
		word := "--" + f.Name
		if f.Shorthand != "" {
			word = "-" + f.Shorthand + ", " + word
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" && f.DefValue != "[]" {
			usage += " (default " + f.DefValue + ")"
		}
		p.Term(word, kind, strings.TrimSuffix(usage, ".")+".")
	})
}
