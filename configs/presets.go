package configs

import (
	"bytes"
	"cmp"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/goccy/go-yaml/ast"
)

// Rules of this file:
//   - a preset is data: Settings as a client writes them, with { value, source }
//     in the place of each value; the source is the document that says so;
//   - a client starts from its preset's Settings, and its own keys replace them.

//go:embed presets/*.yaml
var presetFiles embed.FS

// A Preset is what is known of one issuer.
type Preset struct {
	Name   string   `json:"name"`
	Title  string   `json:"title"`
	Values []Stated `json:"values"` // in the order of the file
	Notes  []Stated `json:"notes"`  // what is known besides
}

// Stated is a value and the document that states it.
type Stated struct {
	Key    string `json:"key,omitempty"`
	Value  any    `json:"value"` // text, a list of texts, or a mapping of texts
	Source string `json:"source"`
}

// Presets lists the names of all presets.
func Presets() []string {
	files, err := fs.Glob(presetFiles, "presets/*.yaml")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = strings.TrimSuffix(strings.TrimPrefix(f, "presets/"), ".yaml")
	}
	slices.Sort(names)
	return names
}

// A Contact is where an issuer is told of a leak.
type Contact struct {
	Issuer    string
	Addresses []string
}

// LeakContacts are the issuers of the presets whose addresses for a leak are
// known, by name.
func LeakContacts() []Contact {
	var all []Contact
	for _, name := range Presets() {
		p, err := readPreset(newReport(), name)
		if err != nil || len(p.settings.LeakContacts) == 0 { // each is tested
			continue
		}
		c := Contact{cmp.Or(p.settings.IssuerName, p.Title), p.settings.LeakContacts}
		if !slices.ContainsFunc(all, func(o Contact) bool { return o.Issuer == c.Issuer && slices.Equal(o.Addresses, c.Addresses) }) {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b Contact) int { return cmp.Compare(a.Issuer, b.Issuer) })
	return all
}

// Show prints a preset, every value with its source, as text or as one JSON
// object.
func Show(w io.Writer, name string, asJSON bool) error {
	if !slices.Contains(Presets(), name) {
		return errors.New(strings.TrimSpace("there is no preset " + quote(name) + ", only " + list(Presets(), "and") + "; " + didYouMean(name, Presets())))
	}
	p, err := readPreset(newReport(), name)
	if err != nil {
		return err
	}
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(p.Preset)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s: %s\n\n", p.Name, p.Title)
	t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	for _, v := range p.Values {
		key := v.Key
		for _, line := range append(v.lines(), "["+v.Source+"]") {
			fmt.Fprintf(t, "%s\t%s\n", key, line)
			key = ""
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&out, "\n- %s [%s]", n.Value, n.Source)
	}
	if len(p.Notes) > 0 {
		out.WriteByte('\n')
	}
	_, err = out.WriteTo(w)
	return err
}

func (s Stated) lines() []string {
	switch v := s.Value.(type) {
	case []string:
		return v
	case map[string]string:
		var lines []string
		for name, text := range v {
			lines = append(lines, name+": "+text)
		}
		slices.Sort(lines)
		return lines
	}
	return []string{fmt.Sprint(s.Value)}
}

// preset is a Preset with the Settings that it gives.
type preset struct {
	Preset
	settings Settings
}

// presetFile is a preset as it is stored, once its sources are taken out.
type presetFile struct {
	Title    string   `yaml:"title" check:"required"`
	Settings Settings `yaml:"settings" check:"required"`
	Notes    []struct {
		Value  string `yaml:"value" check:"required"`
		Source string `yaml:"source" check:"required"`
	} `yaml:"notes"`
}

// readPreset decodes one, as strictly as a configuration.
func readPreset(r *report, name string) (*preset, error) {
	data, err := presetFiles.ReadFile("presets/" + name + ".yaml")
	if err != nil {
		return nil, err
	}
	f, err := parseYAML(r.re.unwritten(string(data)))
	if err != nil {
		return nil, err
	}
	own := newReport()
	own.fields, own.re = r.fields, r.re
	d := &decoder{report: own, file: &source{name: name, lines: strings.Split(string(data), "\n")}}
	p := &preset{Preset: Preset{Name: name, Notes: []Stated{}}}
	root, _ := f.Docs[0].Body.(*ast.MappingNode)
	for _, pair := range root.Values {
		if d.text(pair.Key) == "settings" {
			d.takeSources(pair, "", &p.Preset)
		}
	}
	var file presetFile
	d.value(root, reflect.ValueOf(&file).Elem(), "")
	if len(own.problems) > 0 {
		return nil, own.problems
	}
	p.Title, p.settings = file.Title, file.Settings
	for _, n := range file.Notes {
		p.Notes = append(p.Notes, Stated{Value: n.Value, Source: n.Source})
	}
	return p, nil
}

// takeSources replaces every { value, source } below pair by its value.
func (d *decoder) takeSources(pair *ast.MappingValueNode, path string, p *Preset) {
	m, ok := pair.Value.(*ast.MappingNode)
	if !ok {
		d.problem(d.at(pair), path, path+" has no source", "{ value, source }", "")
		return
	}
	stated := map[string]ast.Node{}
	for _, inner := range m.Values {
		stated[d.text(inner.Key)] = inner.Value
	}
	if len(stated) == 2 && stated["value"] != nil && stated["source"] != nil {
		pair.Value = stated["value"]
		p.Values = append(p.Values, Stated{path, d.plainValue(pair.Value), d.text(stated["source"])})
		return
	}
	for _, inner := range m.Values {
		d.takeSources(inner, join(path, d.text(inner.Key)), p)
	}
}

func (d *decoder) plainValue(n ast.Node) any {
	switch n := n.(type) {
	case *ast.SequenceNode:
		items := []string{}
		for _, v := range n.Values {
			items = append(items, d.text(v))
		}
		return items
	case *ast.MappingNode:
		m := map[string]string{}
		for _, pair := range n.Values {
			m[d.text(pair.Key)] = d.text(pair.Value)
		}
		return m
	}
	return d.text(n)
}

// applyPreset gives c the settings that its own keys then replace.
func (d *decoder) applyPreset(c *Client, pairs []*ast.MappingValueNode, path string) {
	for _, pair := range pairs {
		name := d.text(pair.Key)
		if name != "preset" {
			continue
		}
		name = d.text(pair.Value)
		if !slices.Contains(Presets(), name) {
			if isScalar(pair.Value) && pair.Value.Type() == ast.StringType {
				d.problem(d.at(pair.Value), path+".preset", "there is no preset "+quote(name), list(Presets(), "or"), didYouMean(name, Presets()))
			}
			return
		}
		if d.presets[name] == nil {
			p, err := readPreset(d.report, name)
			if err != nil {
				panic(fmt.Sprintf("configs: preset %s: %v", name, err)) // TestPresets reads all
			}
			d.presets[name] = p
		}
		c.Settings = d.presets[name].settings
	}
}
